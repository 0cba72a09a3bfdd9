"""The teacher labels training examples: the files that ``distill.data.cached_labels`` reads.

B examples of a batch, T positions of targets, K token ids per position.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.lib.format import open_memmap
from transformers import PreTrainedModel

from distill.config import LabelsConfig
from distill.data.examples import IGNORE_INDEX, Batch, ExampleSet
from distill.data.label_arrays import PADDING, labels_bytes, layout_of, open_arrays, path_of
from distill.data.soft_labels import sparse_labels
from distill.errors import UserError
from distill.io.disk import disk_full_errors, require_space
from distill.io.files import file_digest, read_record, write_record
from distill.io.units import Units
from distill.models.layerwise import Forward, Output, by_batch

_OFFSETS = 4  # stream of random numbers; distill.data.examples has 1 to 3
_BATCHES_PER_UNIT = 16
_POLL = 0.5  # seconds between looks at the units that other processes make


@torch.no_grad()
def make_labels(
    teacher: PreTrainedModel,
    examples: ExampleSet,
    config: LabelsConfig,
    directory: Path,
    *,
    count: int,
    temperature: float,
    batch_size: int,
    accelerator: Accelerator,
    origin: dict[str, str],
    progress: Path,
    lead: bool = True,
    forward: Forward = by_batch,
    on_batch: Callable[[int, int, dict[str, float]], None] = lambda done, count, metrics: None,
) -> None:
    """Label the first ``count`` training examples. A killed call can be repeated: it resumes and writes the same bytes.

    Writes words.npy [count, T, K] (token ids in uint16; in uint32 if the vocabulary exceeds 65,536), entropy.npy
    [count, T] (float16), for ``top_k`` also probs.npy [count, T, K] (float16), and labels.json, with the settings and
    the SHA-256 of the arrays. T is the largest number of targets of an example; padding has entropy -1.

    A teacher's expert capacity depends on the batch, but neither ``count`` nor the number of processes may change the
    labels of an example. So every batch is full, the last one too, and each process takes whole batches.

    The work is divided into units of 16 batches. The processes of ``accelerator`` share them, and so do other calls,
    also of other machines, with ``lead`` false. The leading call copies finished units to the arrays.

    Args:
        teacher: a T5 or Switch model; it is set to eval mode.
        examples: the training examples.
        config: form of the labels, K, and seed.
        directory: of the labels; created if it is missing. All processes must have access to it.
        count: number of examples to label.
        temperature: divides the teacher's logits; above 0.
        batch_size: examples per forward pass.
        origin: facts about teacher and data for labels.json. Unfinished labels of another origin are not resumed.
        progress: a JSON file that records the number of copied batches. The directory of the units is beside it.
        lead: whether to write the arrays, which ends after all units; only one call may. If false, make units until all
            are finished or claimed.
        forward: the forward pass; see ``distill.models.layerwise``. ``ByLayer`` claims all units of a slice at once. A
            slice that is killed before its last block is computed again.
        on_batch: gets the number of labelled examples, ``count``, the batch's ``entropy``, and ``tokens_per_second``
            since the start. Within a slice of ``ByLayer`` a block counts as its share of the examples, and
            ``batches`` replaces ``entropy``.

    Raises:
        DiskFull: there is no space for the labels. It is raised before the first label, and no file remains.
    """
    teacher.eval()
    facts = {**config.model_dump(mode="json", by_alias=True), "examples": count, "temperature": temperature, **origin}
    facts |= {"targets": examples.lengths.targets, "vocabulary": teacher.lm_head.weight.shape[0]}
    work = {**facts, "unit": _BATCHES_PER_UNIT * batch_size}
    record = directory / "labels.json"
    copier: _Copier | None = None
    if lead and accelerator.is_main_process:
        copier = _Copier(directory, progress, facts, work)
        record.unlink(missing_ok=True)  # to the other processes it says that nothing is left to do
    accelerator.wait_for_everyone()
    with Units(progress.with_suffix(".units"), -(-count // work["unit"]), work) as units:
        if not lead and record.exists():  # the work was finished, and its directory removed, before this call
            units.remove()
            return
        units.done |= set(range(copier.copied if copier else 0))
        shown = _Progress(on_batch, len(units.done) * work["unit"], count)
        labeller = _Labeller(teacher, examples, config, facts, batch_size, accelerator, forward)
        while not record.exists():
            for _ in labeller.units(units, shown):
                if copier:
                    copier.copy(units)
            if copier and copier.copy(units):
                copier.finish()
            elif lead:
                time.sleep(_POLL)  # other processes have claimed the rest
            else:
                break
    accelerator.wait_for_everyone()
    if copier:
        units.remove()


class _Copier:
    """Copies finished units to the arrays, in their order, and records how many."""

    def __init__(self, directory: Path, progress: Path, facts: dict[str, Any], work: dict[str, Any]):
        """Open the arrays, or create them if there are none of this ``work``.

        Raises:
            DiskFull: there is no space for them.
        """
        self._directory, self._progress, self._facts, self._work = directory, progress, facts, work
        self.copied = _units_copied(progress, directory, work)
        if not self.copied:
            _create(directory, facts)
        self._arrays = open_arrays(directory, facts, "r+")

    def copy(self, units: Units) -> bool:
        """Copy the units that follow; returns whether all are copied."""
        before = self.copied
        while self.copied < units.count and (made := units.read(self.copied)) is not None:
            start = self.copied * self._work["unit"]
            for name, array in self._arrays.items():
                array[start : start + len(made[name])] = made[name]
            self.copied += 1
        if self.copied > before:
            for array in self._arrays.values():
                array.flush()
            self._progress.parent.mkdir(parents=True, exist_ok=True)
            write_record(self._progress, {"units": self.copied, "of": self._work})
            for number in range(before, self.copied):
                units.discard(number)
        return self.copied == units.count

    def finish(self) -> None:
        """Write labels.json."""
        paths = sorted(path_of(self._directory, name) for name in self._arrays)
        digests = {path.name: file_digest(path) for path in paths}
        write_record(self._directory / "labels.json", {**self._facts, "sha256": digests})


@dataclass
class _Labeller:
    """The teacher, and what it labels."""

    teacher: Any
    examples: ExampleSet
    config: LabelsConfig
    facts: dict[str, Any]
    batch_size: int
    accelerator: Accelerator
    forward: Forward

    def units(self, units: Units, shown: "_Progress") -> Iterator[int]:
        """Make units until all are finished or claimed by others, and yield the number of each after it is written."""
        claimed: deque[int] = deque()
        size, start = _BATCHES_PER_UNIT * self.batch_size, shown.examples

        def batches() -> Iterator[Batch]:
            while (number := units.claim()) is not None:
                claimed.append(number)
                for first in range(number * size, min((number + 1) * size, self.facts["examples"]), self.batch_size):
                    yield self.examples.batch(range(first, first + self.batch_size))

        def on_block(batches: float) -> None:
            done = start + batches * self.batch_size * self.accelerator.num_processes
            shown.at(done, {"batches": batches})

        made = self.forward(self.teacher, shown.counting(batches(), self.teacher.config.pad_token_id), on_block)
        arrays, filled = dict[str, np.ndarray](), 0
        while True:
            with self.accelerator.autocast():
                output = next(made, None)
            if output is None:
                return
            first = claimed[0] * size
            length = min(size, self.facts["examples"] - first)
            if not filled:
                arrays = {name: np.empty((length, *shape[1:]), kind) for name, (kind, shape) in self._layout()}
            entropy = self._label(output, first, filled, arrays)
            filled += self.batch_size
            shown.at(len(units.done) * size + filled - shown.start, {"entropy": entropy})
            if filled >= length:
                filled = 0
                units.finish(claimed[0], arrays)
                yield claimed.popleft()

    def _layout(self) -> Iterable[tuple[str, tuple[type, tuple[int, ...]]]]:
        return layout_of(self.facts).items()

    def _label(self, output: Output, first: int, filled: int, arrays: Mapping[str, np.ndarray]) -> float:
        """Write the labels of a batch to the arrays of its unit; returns the mean entropy.

        Rows beyond the last example fill the teacher's batch, and their labels are dropped.

        Args:
            output: of the batch.
            first: first example of the unit.
            filled: labelled examples of the unit.
            arrays: of the unit.
        """
        offsets, shape, is_padding = None, output.labels.shape, output.labels == IGNORE_INDEX
        if self.config.form == "sampled":
            rows = range(first + filled, first + filled + shape[0])
            draws = [np.random.default_rng((_OFFSETS, self.config.seed, row)).random(shape[1]) for row in rows]
            offsets = torch.from_numpy(np.concatenate(draws)).to(output.hidden.device)
        temperature, number = self.facts["temperature"], self.config.num_tokens
        made = sparse_labels(output.hidden, output.head, num_tokens=number, temperature=temperature, offsets=offsets)
        for name, array in arrays.items():
            values = getattr(made, name).unflatten(0, shape)
            values[is_padding] = PADDING[name]
            array[filled : filled + shape[0], : shape[1]] = values[: len(array) - filled].cpu().numpy()
            array[filled : filled + shape[0], shape[1] :] = PADDING[name]
        return float(made.entropy[~is_padding.flatten()].mean())


class _Progress:
    """Reports the progress of all processes that this one knows of. It never falls."""

    def __init__(self, report: Callable[[int, int, dict[str, float]], None], start: int, count: int):
        """Begin at example ``start`` of ``count``."""
        self.start, self._report, self._count = start, report, count
        self._began, self.examples = time.perf_counter(), 0.0
        self._tokens = self._counted = 0  # of the batches of this process

    def counting(self, batches: Iterable[Batch], pad: int) -> Iterator[Batch]:
        """``batches``, while their tokens are counted."""
        for batch in batches:
            tokens = (batch.input_ids != pad).sum() + (batch.labels != IGNORE_INDEX).sum()
            self._tokens, self._counted = self._tokens + int(tokens), self._counted + len(batch.labels)
            yield batch

    def at(self, examples: float, metrics: dict[str, float]) -> None:
        """Report that this number of examples is done since the start."""
        self.examples = max(self.examples, examples)
        speed = self.examples * self._tokens / self._counted / (time.perf_counter() - self._began)
        done = min(int(self.start + self.examples), self._count)
        self._report(done, self._count, {**metrics, "tokens_per_second": speed})


def _create(directory: Path, facts: dict[str, Any]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    layout = layout_of(facts)
    for name in layout:
        path_of(directory, name).unlink(missing_ok=True)
    needed = labels_bytes(facts)
    require_space(
        directory, needed, "storing soft labels", "lower distill.labels.num_tokens or distill.labels.examples"
    )
    try:
        with disk_full_errors(directory, needed):
            for name, (kind, shape) in layout.items():
                open_memmap(path_of(directory, name), "w+", kind, shape)
                _reserve(path_of(directory, name))
    except BaseException:
        for name in layout:
            path_of(directory, name).unlink(missing_ok=True)
        raise


def _reserve(path: Path) -> None:
    """Allocate all blocks of a file. On a full disk, a write to a memory map of a sparse file kills the process."""
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _units_copied(progress: Path, directory: Path, facts: dict[str, Any]) -> int:
    """Number of copied units of these labels; 0 if the files are of other labels or cannot be read."""
    try:
        known = read_record(progress, "the labels are made again")
        found = {name: (array.dtype, array.shape) for name, array in open_arrays(directory, known["of"], "r").items()}
    except (UserError, OSError, ValueError, KeyError):
        return 0
    expected = {name: (np.dtype(kind), shape) for name, (kind, shape) in layout_of(facts).items()}
    return known.get("units", 0) if known["of"] == facts and found == expected else 0
