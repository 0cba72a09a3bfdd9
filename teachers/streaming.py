"""A teacher that is larger than memory: its experts are read from disk layer by layer.

The limit of the memory makes the choice. The results are the same bytes as those of the teacher in memory.
"""

import contextlib
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple

import torch
from rich.filesize import decimal
from torch import nn
from transformers import SwitchTransformersForConditionalGeneration

from distill.errors import UserError
from distill.io.memory import memory_limit
from distill.models.layerwise import ByLayer, Forward, by_batch
from teachers.build import switch_layers
from teachers.config import TeacherConfig
from teachers.load import StoredTeacher, parameter_dtypes, read_teacher
from teachers.memory import limit_of, needs
from teachers.needs import BatchShape, Needs

_ALIGNMENT = 64  # bytes, of the weights in a buffer

Weights = dict[str, torch.Tensor]  # wi, wo and, if gated, wi_gate of a Switch layer


class StreamedExperts:
    """The experts of a teacher, read from its files one Switch layer at a time.

    A thread reads the next layer into a free buffer. With two buffers it reads while a Switch layer and the dense
    blocks after it compute, with one buffer while the dense blocks compute.

    Attributes:
        bytes_read: number of bytes of experts read until now.
    """

    def __init__(
        self,
        stored: StoredTeacher,
        model: SwitchTransformersForConditionalGeneration,
        *,
        compute_dtype: torch.dtype | None,
        buffers: int = 2,
    ):
        """Prepare to read. Nothing is read or allocated yet.

        Args:
            stored: the files.
            model: the result of ``teachers.load.read_teacher`` with ``experts=False``.
            compute_dtype: as given to ``read_teacher``.
            buffers: number of layers in memory at a time.
        """
        self._stored, self._model, self._buffers = stored, model, buffers
        self._layers = {name.partition(".layer.")[0]: f"{name}.mlp" for name, _ in switch_layers(model)}
        self._dtypes = parameter_dtypes(model, stored, compute_dtype)
        self._free: list[torch.Tensor | None] = [None] * buffers  # None: not allocated yet
        self._reads: dict[str, Future[tuple[torch.Tensor, Weights]]] = {}
        self._thread, self._stop = ThreadPoolExecutor(1), threading.Event()
        self.bytes_read = 0

    @contextlib.contextmanager
    def in_place(self, block: str) -> Iterator[None]:
        """Within the ``with`` block, the experts of a block such as "encoder.block.1" are parameters of the model.

        The blocks of a forward pass come in their order, dense ones too.
        """
        try:
            with self._experts(block) if block in self._layers else contextlib.nullcontext():
                self._start(self._next(block))
                yield
            self._start(self._next(block))
        except BaseException:
            self._abandon()
            raise

    @contextlib.contextmanager
    def _experts(self, block: str) -> Iterator[None]:
        layer = self._model.get_submodule(self._layers[block])
        self._start(block)
        buffer, weights = self._reads.pop(block).result()
        former = {name: getattr(layer, name) for name in weights}
        try:
            for name, value in weights.items():
                setattr(layer, name, nn.Parameter(value, requires_grad=False))
            yield
        finally:
            for name, parameter in former.items():
                setattr(layer, name, parameter)
            self._free.append(buffer)

    def _next(self, block: str) -> str | None:
        """The first block with a Switch layer after ``block``; None after the last."""
        stacks = (("encoder", self._model.encoder), ("decoder", self._model.decoder))
        order = [f"{name}.block.{index}" for name, stack in stacks for index in range(len(stack.block))]
        return next((name for name in order[order.index(block) + 1 :] if name in self._layers), None)

    def _start(self, block: str | None) -> None:
        """Start to read the experts of a block, unless this has begun or no buffer is free."""
        if block is not None and block not in self._reads and self._free:
            self._reads[block] = self._thread.submit(self._read, block, self._free.pop())

    def _read(self, block: str, buffer: torch.Tensor | None) -> tuple[torch.Tensor, Weights]:
        """Read the experts of a block into a buffer, which is allocated if it is None."""
        if buffer is None:
            size = max(self._place(name, None)[0] for name in self._layers)
            buffer = torch.empty(size, dtype=torch.uint8, device=self._model.device)
        _, weights = self._place(block, buffer)
        before = self._stored.reader.bytes_read
        for name, target in weights.items():
            plain = self._stored.plain_names(f"{self._layers[block]}.{name}")
            for expert, part in zip(plain, target.unbind(), strict=True):
                if self._stop.is_set():
                    break
                self._stored.reader.read_into(expert, part)
        self.bytes_read += self._stored.reader.bytes_read - before
        return buffer, weights

    def _place(self, block: str, buffer: torch.Tensor | None) -> tuple[int, Weights]:
        """Bytes of a block's experts, and views of a buffer for them; none if it is None."""
        layer, end, views = self._model.get_submodule(self._layers[block]), 0, {}
        for name in ("wi", "wi_gate", "wo"):
            parameter = getattr(layer, name)
            if parameter is not None:
                dtype = self._dtypes[f"{self._layers[block]}.{name}"]
                start, end = end, end + parameter.numel() * dtype.itemsize
                if buffer is not None:
                    views[name] = buffer[start:end].view(dtype).view(parameter.shape)
                end += -end % _ALIGNMENT
        return end, views

    def _abandon(self) -> None:
        """Stop reading. A later forward pass begins anew."""
        self._stop.set()
        wait(self._reads.values())
        self._stop.clear()
        self._reads.clear()
        self._free = [None] * self._buffers


class RunningTeacher(NamedTuple):
    """A frozen teacher and its forward pass."""

    model: SwitchTransformersForConditionalGeneration  # without experts if they are streamed
    forward: Forward
    streamed: StreamedExperts | None  # None: all weights are in memory
    sentence: str | None  # how the experts are streamed


def run_teacher(
    stored: StoredTeacher,
    settings: TeacherConfig,
    *,
    compute_dtype: torch.dtype | None,
    device: torch.device,
    lengths: tuple[int, int],
    directory: Path,
    process: int = 0,
    processes: int = 1,
) -> RunningTeacher:
    """Read a teacher into memory if it fits, or prepare to run it layer by layer.

    Args:
        stored: the result of ``teachers.load.open_teacher``.
        settings: with the limit, ``memory``, and the size of a batch, ``evaluation_batch_size``.
        compute_dtype: as for ``teachers.load.read_teacher``.
        device: of the model.
        lengths: numbers of input and target tokens of an example.
        directory: of a temporary file for states that exceed the memory.
        process, processes: several processes divide the experts; see ``teachers.divided``.

    Raises:
        UserError: the memory does not even suffice layer by layer.
    """
    batch = BatchShape(settings.evaluation_batch_size, *lengths)
    needed = needs(stored, settings, compute_dtype, batch).divided(processes)
    limit = limit_of(settings.memory, device)
    fits = needed.whole <= limit
    batch_bytes = batch.state_bytes(stored.config.d_model)
    plan = None if fits else plan_slices(needed, limit, batch_bytes, device, directory)
    # Layer by layer, each process reads all experts for its own slices.
    share = {"process": process, "processes": processes} if fits else {}
    model = read_teacher(stored, settings, compute_dtype=compute_dtype, device=device, experts=fits, **share)
    model.requires_grad_(False)
    if plan is None:
        return RunningTeacher(model, by_batch, None, None)
    streamed = StreamedExperts(stored, model, compute_dtype=compute_dtype, buffers=plan.buffers)
    forward = ByLayer(streamed.in_place, memory=plan.memory, slice_bytes=plan.slice_bytes, directory=directory)
    examples = max(plan.slice_bytes // batch_bytes, 1) * batch.examples
    sentence = (
        f"the teacher needs {decimal(needed.whole)} of memory and may use {decimal(limit)}, so it runs layer by layer: "
        f"{decimal(needed.experts)} of experts are read for every {examples:,} examples"
    )
    if plan.slice_bytes > plan.memory:
        sentence += f", whose states take {decimal(plan.slice_bytes - plan.memory)} of disk"
    return RunningTeacher(model, forward, streamed, sentence)


class SlicePlan(NamedTuple):
    """The use of memory and disk of a teacher that runs layer by layer."""

    buffers: int  # layers of experts in memory
    memory: int  # bytes of states in memory
    slice_bytes: int  # bytes of the states of a slice


def plan_slices(needed: Needs, limit: int, batch_bytes: int, device: torch.device, directory: Path) -> SlicePlan:
    """Divide the memory between the experts and the states of a slice.

    Args:
        needed: the bytes that the teacher needs.
        limit: bytes that it may use.
        batch_bytes: bytes of the states of one batch.
        device: of the model. States are in the memory of the machine.
        directory: of the temporary file.

    Raises:
        UserError: the memory does not suffice.
    """
    layer, on_cpu = max(needed.layers.values()), device.type != "cuda"
    least = needed.by_layer
    if least > limit:
        raise UserError(
            f"the teacher needs {decimal(needed.whole)} of memory, or {decimal(least)} layer by layer, but it may use "
            f"{decimal(limit)}; raise teacher.memory, use a machine with more memory, or lower "
            "teacher.evaluation_batch_size"
        )
    left = limit - least
    # Reading ahead saves at most half of the time, so its buffer may take at most half of the memory of the states.
    buffers = 2 if left >= layer + (max(layer, batch_bytes) if on_cpu else 0) else 1
    memory = left - (buffers - 1) * layer if on_cpu else memory_limit()
    # States on disk are written and read once per block. Slices of this size cost as much as reading the experts.
    on_disk = min(needed.experts // (2 * needed.blocks), shutil.disk_usage(directory).free // 2)
    if 2 * memory < on_disk:
        return SlicePlan(buffers, memory, on_disk)
    # Larger slices save little, and more is lost when the process is killed.
    return SlicePlan(buffers, memory, min(memory, needed.experts))
