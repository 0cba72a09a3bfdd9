"""The parts that ``benchmarks.gpu`` times, and how it times one of them."""

import gc
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from benchmarks.layers import ffn_step, loss_step, product_step
from benchmarks.library import hard_loss_step
from benchmarks.models import LENGTHS, SHAPES, VOCABULARY_SIZE, frozen_teacher, our_step, plain_step, tokens
from benchmarks.timing import Timing
from distill.config import LabelsConfig
from distill.data.examples import Batch
from distill.data.make_labels import make_labels
from distill.data.prepared_data import Lengths
from distill.model_size import forward_flops
from distill.training.loop import make_accelerator

_CASE_SECONDS = 15.0  # after these, a case takes no further timing once it has three


class Sizes(NamedTuple):
    """The sizes of all parts."""

    model: str  # of benchmarks.models
    batch: int  # examples of a step
    teachers: tuple[int, ...]  # numbers of experts of the teachers
    experts: tuple[int, ...]  # numbers of experts of the Switch layers
    ffn_tokens: int
    loss_tokens: int
    side: int  # of the matrix product
    repeats: int  # timings of a case
    steps: int  # per timing of a loss or layer, which are short


FULL = Sizes("base", 32, (8, 32), (8, 16, 32, 64, 128), 8192, 16_384, 8192, repeats=7, steps=10)
TINY = Sizes("small", 2, (8, 16), (8,), 128, 256, 64, repeats=2, steps=1)


@dataclass
class Case:
    """One row of the table. ``build`` makes its step."""

    part: str  # the cases of a part are compared with its first one
    name: str
    build: Callable[[], Callable[[], Any]]
    unit: str  # of ``work``
    work: float  # per step
    operations: float | None = None  # of the model in a step, floating-point; None: unknown
    steps: int = 1  # per timing


def cases(sizes: Sizes, device: torch.device) -> list[Case]:
    """All cases, the most important first. Models, lengths and numbers of tokens are those of ``sizes``."""
    return [
        *_products(sizes, device),
        *(case for experts in sizes.teachers for case in _distillation(sizes, experts)),
        *_switch_layers(sizes, device),
        *_losses(sizes, device),
        _labels(sizes, device),
        *_attention(sizes, device),
    ]


def measure(case: Case, repeats: int, device: torch.device) -> tuple[Timing, int | None]:
    """Build a case, run it twice to warm up, and time it.

    Returns:
        Seconds per step, and the peak of the GPU memory that tensors took, which is None on a CPU.

    Raises:
        torch.OutOfMemoryError: the case does not fit in memory. ``release_memory`` prepares for the next case.
    """
    is_cuda = device.type == "cuda"
    wait: Callable[[], None] = torch.cuda.synchronize if is_cuda else lambda: None
    if is_cuda:
        torch.cuda.reset_peak_memory_stats()
    step = case.build()
    for _ in range(2):
        step()
    seconds: list[float] = []
    while len(seconds) < repeats and (len(seconds) < 3 or sum(seconds) * case.steps < _CASE_SECONDS):
        wait()
        start = time.perf_counter()
        for _ in range(case.steps):
            step()
        wait()
        seconds.append((time.perf_counter() - start) / case.steps)
    return Timing(case.name, seconds, case.work, 0), torch.cuda.max_memory_allocated() if is_cuda else None


def release_memory() -> None:
    """Return the memory of a finished case to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _products(sizes: Sizes, device: torch.device) -> list[Case]:
    """The rate that the card reaches, next to the peak of its data sheet."""
    name, operations = f"{sizes.side}^3, bfloat16", 2.0 * sizes.side**3
    build = partial(product_step, sizes.side, str(device))
    return [Case("matrix product", name, build, "TFLOP", operations / 1e12, operations, sizes.steps)]


def _distillation(sizes: Sizes, experts: int) -> list[Case]:
    """The distillation step, against the plain loop on the same card. A token is one of inputs or targets."""
    part, work = f"distillation step, {experts} experts", float(sizes.batch * sum(LENGTHS[sizes.model]))
    student, teacher = (sizes.batch * _forward(sizes.model, count) for count in (0, experts))
    plain = partial(plain_step, sizes.model, sizes.batch, "bf16", experts)
    online = partial(our_step, sizes.model, sizes.batch, "online", experts=experts)
    rows = [
        Case(part, "plain loop, bfloat16 autocast", plain, "tokens", work, 3 * student + teacher),
        Case(part, "online soft labels", online, "tokens", work, 3 * student + teacher),
    ]
    if experts == sizes.teachers[0]:  # with cached labels, the teacher is not there
        cached = partial(our_step, sizes.model, sizes.batch, "cached")
        rows.append(Case(part, "cached soft labels", cached, "tokens", work, 3 * student))
    return rows


def _forward(model: str, experts: int) -> float:
    """Floating-point operations of the forward pass of one example; with 0 experts, of the dense model."""
    shape = {**SHAPES[model], "num_decoder_layers": SHAPES[model]["num_layers"], "vocab_size": VOCABULARY_SIZE[model]}
    if experts:
        sparse = shape["num_layers"] // 2
        shape |= {"num_sparse_encoder_layers": sparse, "num_sparse_decoder_layers": sparse, "num_experts": experts}
    return forward_flops(shape, *LENGTHS[model])


def _switch_layers(sizes: Sizes, device: torch.device) -> list[Case]:
    """Forward and backward of Switch layers, against one dense FFN on as many tokens."""
    width, inner = SHAPES[sizes.model]["d_model"], SHAPES[sizes.model]["d_ff"]
    count, part = sizes.ffn_tokens, f"Switch layer, {sizes.ffn_tokens:,} tokens"
    settings: dict[str, Any] = {"num_tokens": count, "width": width, "inner": inner, "device": str(device)}
    rows = [("dense FFN", "dense", 0), *((f"{experts} experts", "ours", experts) for experts in sizes.experts)]
    return [
        Case(
            *(part, name, partial(ffn_step, kind, experts, **settings), "tokens", float(count)),
            operations=3 * 2.0 * count * width * (2 * inner + experts),
            steps=sizes.steps,
        )
        for name, kind, experts in rows
    ]


def _losses(sizes: Sizes, device: torch.device) -> list[Case]:
    """Forward and backward of the mixed loss, and of hard labels alone."""
    count, width, vocabulary_size = sizes.loss_tokens, SHAPES[sizes.model]["d_model"], VOCABULARY_SIZE[sizes.model]
    settings: dict[str, Any] = {"num_tokens": count, "width": width, "vocabulary_size": vocabulary_size}
    settings["device"] = str(device)
    product = 2.0 * count * width * vocabulary_size
    mixed, hard = (f"loss, {labels}, {count:,} tokens x {vocabulary_size:,}" for labels in ("mixed", "hard labels"))
    rows = [
        (mixed, "unfused", partial(loss_step, "unfused", **settings), 4),
        (mixed, "ours", partial(loss_step, "ours", **settings), 4),
        (hard, "ours", partial(hard_loss_step, "ours", **settings), 3),
    ]
    if hasattr(F, "linear_cross_entropy"):
        rows.append((hard, "linear_cross_entropy of torch", partial(hard_loss_step, "torch", **settings), 3))
    return [
        Case(part, name, build, "tokens", float(count), products * product, sizes.steps)
        for part, name, build, products in rows
    ]


class _RandomExamples:
    """An endless ExampleSet of random tokens."""

    target_tokens = None

    def __init__(self, size: str):
        self.size, self.lengths = size, Lengths(*LENGTHS[size])

    def __len__(self) -> int:
        return 2**31

    def batch(self, indices: Sequence[int]) -> Batch:
        return Batch(*tokens(self.size, len(indices)))


def _labels(sizes: Sizes, device: torch.device) -> Case:
    """Cached soft labels as stage ``label`` makes them, with the files that it writes; 4 batches per step."""
    experts, examples = sizes.teachers[0], 4 * sizes.batch
    work = float(examples * LENGTHS[sizes.model][1])

    def build() -> Callable[[], None]:
        accelerator, teacher = make_accelerator("bfloat16"), frozen_teacher(sizes.model, experts, device)
        settings: dict[str, Any] = {"count": examples, "temperature": 1.0, "batch_size": sizes.batch}

        def step() -> None:
            with tempfile.TemporaryDirectory() as root:
                directory, progress = Path(root) / "labels", Path(root) / "progress.json"
                make_labels(
                    *(teacher, _RandomExamples(sizes.model), LabelsConfig(), directory),
                    **settings,
                    accelerator=accelerator,
                    origin={},
                    progress=progress,
                )

        return step

    operations = examples * _forward(sizes.model, experts)
    return Case("labels of stage label", f"{experts} experts, sampled", build, "labels", work, operations)


def _attention(sizes: Sizes, device: torch.device) -> list[Case]:
    """Self-attention of the encoder without its projections: separate operations, and one fused operation of torch."""
    shape, length = SHAPES[sizes.model], LENGTHS[sizes.model][0]
    heads, kv = shape["num_heads"], shape["d_kv"]

    def build(fused: bool) -> Callable[[], None]:
        torch.manual_seed(0)
        q, k, v, upstream = (torch.randn(sizes.batch, heads, length, kv, device=device).bfloat16() for _ in range(4))
        for one in (q, k, v):
            one.requires_grad_()
        bias = torch.randn(heads, length, length, device=device).bfloat16().requires_grad_()

        def step() -> None:
            q.grad = k.grad = v.grad = bias.grad = None
            if fused:
                y = F.scaled_dot_product_attention(q, k, v, bias.expand(len(q), -1, -1, -1), scale=1.0)
            else:
                y = torch.matmul(torch.matmul(q, k.mT).add_(bias).softmax(-1), v)
            y.backward(upstream)

        return step

    work, operations = float(sizes.batch * length), 3 * 4.0 * sizes.batch * length * length * heads * kv
    rows = (("separate operations", False), ("scaled_dot_product_attention", True))
    return [
        Case(f"attention, length {length}", name, partial(build, fused), "tokens", work, operations, sizes.steps)
        for name, fused in rows
    ]
