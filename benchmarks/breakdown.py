"""The time of a distillation step by kind of operation: ``python -m benchmarks.breakdown small`` (or ``base``).

``switch-128`` measures a Switch layer of 128 experts on 8,192 tokens. The time outside matrix products limits the
speed-up that is still possible.
"""

import sys

from rich import box
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from benchmarks.layers import ffn_step
from benchmarks.models import our_step

KINDS = {
    "matrix products": ("aten::mm", "aten::bmm", "aten::addmm", "aten::addmv_"),
    "softmax, forward and backward": ("aten::_softmax", "aten::_softmax_backward_data"),
    "casts, copies, layout": ("aten::copy_", "aten::cat", "aten::fill_", "aten::index_copy_", "aten::index_select"),
    "optimizer and gradient norm": ("Optimizer.step#AdamW.step", "aten::_fused_adamw_", "aten::_foreach_norm"),
}


def main(step_name: str, steps: int) -> None:
    """Print the milliseconds of a step by kind of operation.

    Args:
        step_name: "small", "base", or "switch-N" for a Switch layer of N experts.
        steps: number of profiled steps, after 3 warm-up steps.
    """
    if step_name.startswith("switch-"):
        step = ffn_step("ours", experts=int(step_name.removeprefix("switch-")), num_tokens=8192)
    else:
        step = our_step(step_name, {"small": 16, "base": 4}[step_name], "online")
    for _ in range(3):
        step()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(steps):
            step()
    # Times exclude nested operations, so each operation counts once.
    by_operation = {event.key: event for event in profiler.key_averages()}
    total = sum(event.self_cpu_time_total for event in by_operation.values())
    table = Table("kind", "ms per step", "share", "operations", box=box.SIMPLE_HEAD, title=f"Step: {step_name}")
    rest_time = total
    rest_count = sum(event.count for name, event in by_operation.items() if name.startswith("aten::"))
    for kind, names in KINDS.items():
        events = [by_operation[name] for name in names if name in by_operation]
        spent, count = sum(event.self_cpu_time_total for event in events), sum(event.count for event in events)
        rest_time, rest_count = rest_time - spent, rest_count - count
        table.add_row(kind, f"{spent / steps / 1e3:.1f}", f"{spent / total:.0%}", f"{count / steps:.0f}")
    rest = "element-wise operations, and overhead per operation"
    table.add_row(rest, f"{rest_time / steps / 1e3:.1f}", f"{rest_time / total:.0%}", f"{rest_count / steps:.0f}")
    Console().print(table)


if __name__ == "__main__":
    name = sys.argv[1] if len(sys.argv) > 1 else "small"
    main(name, steps=10 if name == "small" else 1)
