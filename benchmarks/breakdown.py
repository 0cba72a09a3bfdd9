"""Where our distillation step spends its time: ``python -m benchmarks.breakdown demo`` (or ``base``).

``switch-128`` is a Switch layer of 128 experts on 8,192 tokens. What is not a product with weights or of attention
bounds how much faster a step could be.
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
    "softmax, both ways": ("aten::_softmax", "aten::_softmax_backward_data"),
    "casts, copies, layout": ("aten::copy_", "aten::cat", "aten::fill_", "aten::index_copy_", "aten::index_select"),
    "optimizer and gradient norm": ("Optimizer.step#AdamW.step", "aten::_fused_adamw_", "aten::_foreach_norm"),
}


def main(what: str, steps: int) -> None:
    """Milliseconds of a step by kind of operation; a kind's time is that of its operations alone."""
    if what.startswith("switch-"):
        step = ffn_step("ours", experts=int(what.removeprefix("switch-")), count=8192)
    else:
        step = our_step(what, {"demo": 16, "base": 4}[what], "online")
    for _ in range(3):
        step()
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        for _ in range(steps):
            step()
    found = {event.key: event for event in recorded.key_averages()}
    total = sum(event.self_cpu_time_total for event in found.values())
    table = Table("kind", "ms a step", "share", "operations", box=box.SIMPLE_HEAD, title=f"A step, {what}")
    rest_time, rest_count = total, sum(e.count for k, e in found.items() if k.startswith("aten::"))
    for kind, names in KINDS.items():
        events = [found[name] for name in names if name in found]
        spent, count = sum(event.self_cpu_time_total for event in events), sum(event.count for event in events)
        rest_time, rest_count = rest_time - spent, rest_count - count
        table.add_row(kind, f"{spent / steps / 1e3:.1f}", f"{spent / total:.0%}", f"{count / steps:.0f}")
    rest = "element by element, and starting operations"
    table.add_row(rest, f"{rest_time / steps / 1e3:.1f}", f"{rest_time / total:.0%}", f"{rest_count / steps:.0f}")
    Console().print(table)


if __name__ == "__main__":
    asked = sys.argv[1] if len(sys.argv) > 1 else "demo"
    main(asked, steps=10 if asked == "demo" else 1)
