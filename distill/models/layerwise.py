"""The forward pass of a model whose weights do not fit in memory: one block at a time, on all batches of a slice.

The operations on a batch, and their order, are those of ``distill.models.t5_forward.hidden_states``, so the results are
the same bytes.

B examples, S input tokens, T target tokens, D d_model.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import IO, Any, NamedTuple

import torch
from transformers import PreTrainedModel

from distill.data.examples import IGNORE_INDEX
from distill.io.disk import disk_full_errors, require_space
from distill.models.t5_forward import (
    Encoded,
    compute_dtype,
    embed,
    final_norm,
    hidden_states,
    position_bias,
    run_block,
    scaled,
    token_mask,
)

Inputs = tuple[torch.Tensor, torch.Tensor]  # input_ids [B, S] and labels [B, T], as for ``hidden_states``
# Puts the weights of a block, such as "encoder.block.3", in their place within the ``with`` block.
InPlace = Callable[[str], AbstractContextManager[None]]
OnBlock = Callable[[float], None]  # gets the number of batches that are done; a batch counts in parts, block by block


def in_memory(block: str) -> AbstractContextManager[None]:
    """The ``InPlace`` of a model whose weights are all in memory."""
    return nullcontext()


class Output(NamedTuple):
    """The result of a forward pass of one batch, on the device of the model."""

    input_ids: torch.Tensor  # [B, S]
    labels: torch.Tensor  # [B, T]
    hidden: torch.Tensor  # [B * T, D], as of ``hidden_states``
    head: torch.Tensor  # [vocabulary, D]


Forward = Callable[[PreTrainedModel, Iterable[Inputs], OnBlock], Iterator[Output]]


def by_batch(model: PreTrainedModel, batches: Iterable[Inputs], on_block: OnBlock) -> Iterator[Output]:
    """A forward pass of each batch, for a model in memory. ``on_block`` is not called."""
    for batch in batches:
        input_ids, labels = (part.to(model.device, non_blocking=True) for part in batch)
        yield Output(input_ids, labels, *hidden_states(model, input_ids, labels))


class ByLayer:
    """A ``Forward`` that runs one block at a time on slices of the batches.

    The states of a slice are kept in memory, and beyond a limit in a temporary file.
    """

    def __init__(self, in_place: InPlace, *, memory: int, slice_bytes: int, directory: Path):
        """Set the limits.

        Args:
            in_place: called once per block and slice.
            memory: bytes of states that are kept in memory.
            slice_bytes: bytes of the states of a slice. A slice has at least one batch.
            directory: of the temporary file.
        """
        self.in_place, self._directory = in_place, directory
        self.memory, self.slice_bytes = memory, slice_bytes

    def __call__(self, model: PreTrainedModel, batches: Iterable[Inputs], on_block: OnBlock) -> Iterator[Output]:
        """Yield the output of each batch. The first output of a slice comes after the last block.

        Raises:
            DiskFull: there is no space for the states.
        """
        blocks, done = sum(map(_num_blocks, (model.encoder, model.decoder))), 0
        for part in self._slices(model, batches):
            with self.states() as states:
                for number, _ in enumerate(run_by_block(model, part, states, self.in_place), 1):
                    on_block(done + len(part) * number / blocks)
                for number, batch in enumerate(part):
                    input_ids, labels = (one.to(model.device) for one in batch)
                    # A view would keep the states in memory during the next slice.
                    hidden = states.get(("decoder", number), model.device).flatten(0, 1).clone()
                    yield Output(input_ids, labels, hidden, model.lm_head.weight)
            done += len(part)

    def states(self) -> "States":
        """An empty place for the states of a slice."""
        return States(self.memory, self._directory)

    def _slices(self, model: PreTrainedModel, batches: Iterable[Inputs]) -> Iterator[list[Inputs]]:
        part: list[Inputs] = []
        size = 0
        for batch in batches:
            more = state_bytes(model.config.d_model, [batch])
            if part and size + more > self.slice_bytes:
                yield part
                part, size = [], 0
            part.append(batch)
            size += more
        if part:
            yield part


def run_by_block(
    model: PreTrainedModel, batches: Sequence[Inputs], states: "States", in_place: InPlace
) -> Iterator[str]:
    """Run encoder and decoder on all batches, one block at a time.

    Args:
        model: a T5 or Switch model in eval mode.
        batches: as for ``hidden_states``.
        states: empty. At the end the key ("decoder", i) has the hidden states [B, T, D] of batch i.
        in_place: called once per block.

    Yields:
        The name of each block after it has run on all batches, with its weights still in place.

    Raises:
        DiskFull: there is no space for the states.
    """
    states.reserve(state_bytes(model.config.d_model, batches))
    forward = _Pass(model, states, compute_dtype(model.lm_head.weight))
    for kind in ("encoder", "decoder"):
        for index in range(_num_blocks(getattr(model, kind))):
            name = f"{kind}.block.{index}"
            with in_place(name):
                for number, batch in enumerate(batches):
                    forward.run(kind, index, number, batch)
                yield name


def state_bytes(width: int, batches: Iterable[Inputs]) -> int:
    """Bytes of the states of batches between two blocks, at most; ``width`` is D."""
    return sum(4 * width * (input_ids.numel() + labels.numel()) for input_ids, labels in batches)


def _num_blocks(stack: Any) -> int:
    return len(stack.block)


class _Pass:
    """Runs one block on one batch, from states to states."""

    def __init__(self, model: Any, states: "States", dtype: torch.dtype):
        self._model, self._states, self._dtype = model, states, dtype
        self._biases: dict[str, torch.Tensor] = {}  # of the longest batch so far, the same for all blocks of a stack

    # Neither setting may be active while ``run_by_block`` waits for its caller.
    @torch.no_grad()
    def run(self, kind: str, index: int, number: int, batch: Inputs) -> None:
        """Run block ``index`` of a stack on batch ``number``."""
        model, stack = self._model, getattr(self._model, kind)
        with torch.autocast(model.device.type, enabled=False):
            x = self._embedded(kind, batch) if index == 0 else self._states.get((kind, number), model.device)
            mask, encoded = self._mask(batch[0], model.config.pad_token_id), None
            if kind == "decoder":
                encoded = Encoded(self._states.get(("encoder", number), model.device), mask)
                mask = self._mask(batch[1], IGNORE_INDEX)
            x = run_block(stack, stack.block[index], x, mask, encoded, self._bias(kind, x.shape[1]), self._dtype)
            if index == len(stack.block) - 1:
                x = final_norm(stack, x, self._dtype)
                x = scaled(model, x) if kind == "decoder" else x
            self._states.put((kind, number), x)

    def _mask(self, ids: torch.Tensor, padding: int) -> torch.Tensor | None:
        mask = token_mask(ids, padding)
        return None if mask is None else mask.to(self._model.device)

    def _embedded(self, kind: str, batch: Inputs) -> torch.Tensor:
        input_ids, labels = (part.to(self._model.device) for part in batch)
        ids = input_ids if kind == "encoder" else self._model.prepare_decoder_input_ids_from_labels(labels)
        return embed(getattr(self._model, kind), ids)

    def _bias(self, kind: str, length: int) -> torch.Tensor:
        if kind not in self._biases or self._biases[kind].shape[1] < length:
            self._biases[kind] = position_bias(getattr(self._model, kind), length, self._dtype)
        return self._biases[kind][:, :length, :length]  # it depends only on the distance


class States:
    """Tensors by key: in memory up to a limit, the others in a temporary file.

    Those in memory share one block. As separate tensors they would lie among the temporary ones of a forward pass, and
    leave gaps that these do not fit into. The file has no memory map, whose pages would count as memory of the process,
    and no name, so that a killed process leaves nothing behind.
    """

    def __init__(self, memory: int = 2**63, directory: Path = Path()):
        """``memory`` is the limit in bytes, and ``directory`` is that of the file."""
        self._limit, self._directory = memory, directory
        self._block = torch.empty(0, dtype=torch.uint8)
        self._slots: dict[Hashable, _Slot] = {}
        self._ends = {True: 0, False: 0}  # of the last slot in memory, and in the file
        self._file: IO[bytes] | None = None

    def __enter__(self) -> "States":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._block = self._block[:0].clone()
        if self._file:
            self._file.close()

    def reserve(self, size: int) -> None:
        """Prepare for ``size`` bytes in total.

        Raises:
            DiskFull: the part that exceeds the memory does not fit on the disk.
        """
        if size > self._limit:
            hint = "free some, choose another --workdir, or raise teacher.memory"
            require_space(self._directory, size - self._limit, "running the teacher layer by layer", hint)
        self._block = torch.empty(min(size, self._limit), dtype=torch.uint8)

    def put(self, key: Hashable, value: torch.Tensor) -> None:
        """Copy a tensor in place of the former one of this key, which was not smaller.

        Raises:
            DiskFull: there is no space on the disk.
        """
        former = self._slots.get(key)
        in_memory = former.in_memory if former else self._ends[True] + value.nbytes <= len(self._block)
        offset = former.offset if former else self._ends[in_memory]
        self._ends[in_memory] = max(self._ends[in_memory], offset + value.nbytes)
        slot = self._slots[key] = _Slot(in_memory, offset, value.shape, value.dtype)
        if in_memory:
            self._view(slot, value.nbytes).copy_(value)
            return
        with disk_full_errors(self._directory, self._ends[False]):
            if self._file is None:
                self._file = TemporaryFile(dir=self._directory)  # noqa: SIM115  # ``__exit__`` closes it
            self._file.seek(offset)
            self._file.write(_bytes(value.cpu().contiguous()))
            self._file.flush()

    def get(self, key: Hashable, device: torch.device) -> torch.Tensor:
        """The tensor of a key, on ``device``. It is valid until the next ``put`` of this key."""
        slot = self._slots[key]
        if slot.in_memory:
            return self._view(slot, slot.shape.numel() * slot.dtype.itemsize).to(device)
        value = torch.empty(slot.shape, dtype=slot.dtype)
        assert self._file is not None  # ``put`` has opened it
        self._file.seek(slot.offset)
        self._file.readinto(_bytes(value))  # type: ignore[attr-defined]  # a buffered file
        return value.to(device)

    def _view(self, slot: "_Slot", size: int) -> torch.Tensor:
        return self._block[slot.offset : slot.offset + size].view(slot.dtype).view(slot.shape)


class _Slot(NamedTuple):
    """The place of a tensor of ``States``, in the block of memory or in the file."""

    in_memory: bool
    offset: int
    shape: torch.Size
    dtype: torch.dtype


def _bytes(value: torch.Tensor) -> memoryview:
    return memoryview(value.flatten().view(torch.uint8).numpy())  # type: ignore[arg-type]
