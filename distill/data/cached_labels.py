"""Soft labels on disk: the teacher makes them once, and students of any seed and setting read them.

Example i of a training stream is a function of (seed, i), so i is the index of its labels. The arrays are memory-mapped
and verified by their SHA-256. Reading a batch reads only its own rows.

B examples, T positions of targets, N = B x T, K token ids per position. An example with fewer than T targets ends with
padding.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from numpy.lib.format import open_memmap
from transformers import PreTrainedModel

from distill.config import LabelsConfig
from distill.data.examples import IGNORE_INDEX, Batch, ExampleSet
from distill.data.soft_labels import equal_shares, sparse_labels
from distill.errors import UserError
from distill.io.disk import disk_full_errors, require_space
from distill.io.files import check_digests, file_digest, read_record, write_record
from distill.loss import SparseSoftLabels
from distill.models.layerwise import Forward, Output, by_batch
from distill.special_tokens import token_type

_STORED_NAMES = {"token_ids": "words"}  # field of SparseSoftLabels -> name of the file, if it differs
_PADDING = {"token_ids": 0, "probs": 0, "entropy": -1}  # the values at padding; no entropy is negative
_OFFSETS = 4  # stream of random numbers; distill.data.examples has 1 to 3
_BATCHES_PER_SAVE = 16  # per process


class LabelledBatch(NamedTuple):
    """A ``distill.data.examples.Batch`` with soft labels for its N positions, in the order of the labels."""

    input_ids: torch.Tensor
    labels: torch.Tensor
    soft_labels: SparseSoftLabels

    def to(self, device: torch.device) -> "LabelledBatch":
        soft_labels = SparseSoftLabels(*(part.to(device, non_blocking=True) for part in self.soft_labels))
        input_ids, labels = (part.to(device, non_blocking=True) for part in (self.input_ids, self.labels))
        return LabelledBatch(input_ids, labels, soft_labels)


class CachedLabels:
    """The memory-mapped labels that ``make_labels`` has written to a directory. ``facts`` is its labels.json."""

    def __init__(self, directory: Path):
        """Open the files, and read all of them once to verify their SHA-256.

        Raises:
            UserError: a file is missing or damaged.
        """
        hint = f"copy it again, or delete {directory.parent} and make the labels again with: switch-distill label"
        self.facts: dict[str, Any] = read_record(directory / "labels.json", hint)
        try:
            check_digests(directory, self.facts["sha256"], hint)
            self._arrays = _open(directory, self.facts, "r")
        except (ValueError, KeyError) as error:
            raise UserError(f"the files in {directory} are not soft labels ({error}); {hint}") from error

    def __len__(self) -> int:
        """Number of labelled examples."""
        return self.facts["examples"]

    @property
    def bytes_per_token(self) -> int:
        """2K + 2 for ``sampled``, 4K + 2 for ``top_k``; 2K more if the vocabulary exceeds 65,536 tokens."""
        return sum(array.nbytes for array in self._arrays.values()) // self._arrays["entropy"].size

    def means(self) -> dict[str, float]:
        """Means over target tokens: ``entropy`` in nats; ``mass``, the probability of the K ids (1 if ``sampled``)."""
        entropy, probs = self._arrays["entropy"], self._arrays.get("probs")
        is_padding = entropy == _PADDING["entropy"]
        tokens = 1 - float(is_padding.mean())  # share of the positions
        mass = 1.0 if probs is None else float(probs.mean(dtype=np.float64)) * probs.shape[-1] / tokens
        return {"entropy": float(np.where(is_padding, 0, entropy).mean(dtype=np.float64)) / tokens, "mass": mass}

    def batch(self, indices: Sequence[int], length: int | None = None) -> SparseSoftLabels:
        """The labels of examples ``indices`` (modulo their number): token_ids and probs [N, K], entropy [N].

        ``length`` is the number of positions T; None is that of the longest example.
        """
        rows = np.asarray(indices) % len(self)
        read = {name: torch.from_numpy(array[rows, :length]).flatten(0, 1) for name, array in self._arrays.items()}
        token_ids = read["token_ids"].long()
        probs = read["probs"].float() if "probs" in read else equal_shares(token_ids)
        return SparseSoftLabels(token_ids, probs, read["entropy"].float())


class LabelledExamples:
    """Training examples with their cached labels. After the last example, the first one follows again."""

    def __init__(self, examples: ExampleSet, labels: CachedLabels):
        """``examples`` must have the data, settings and seed that the labels were made with."""
        self.examples, self.labels = examples, labels

    def batch(self, indices: Sequence[int]) -> LabelledBatch:
        """Like ``ExampleSet.batch``, with soft labels."""
        rows = [index % len(self.labels) for index in indices]
        batch = self.examples.batch(rows)
        return LabelledBatch(*batch, self.labels.batch(rows, batch.labels.shape[1]))


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
    forward: Forward = by_batch,
    on_batch: Callable[[int, int, dict[str, float]], None] = lambda done, count, metrics: None,
) -> None:
    """Label the first ``count`` training examples. A killed call can be repeated: it resumes and writes the same bytes.

    Writes words.npy [count, T, K] (token ids in uint16; in uint32 if the vocabulary exceeds 65,536), entropy.npy
    [count, T] (float16), for ``top_k`` also probs.npy [count, T, K] (float16), and labels.json, with the settings and
    the SHA-256 of the arrays. T is the largest number of targets of an example; padding has entropy -1.

    A teacher's expert capacity depends on the batch, but neither ``count`` nor the number of processes may change the
    labels of an example. So every batch is full, the last one too, and each process takes whole batches.

    Args:
        teacher: a T5 or Switch model; it is set to eval mode.
        examples: the training examples.
        config: form of the labels, K, and seed.
        directory: of the labels; created if it is missing. All processes must have access to it.
        count: number of examples to label.
        temperature: divides the teacher's logits; above 0.
        batch_size: examples per forward pass.
        origin: facts about teacher and data for labels.json. Unfinished labels of another origin are not resumed.
        progress: a JSON file that records the number of finished batches.
        forward: the forward pass; see ``distill.models.layerwise``. A slice of ``ByLayer`` that is killed before its
            last block is computed again.
        on_batch: gets the number of labelled examples, ``count``, the batch's ``entropy``, and ``tokens_per_second``
            since the start. Within a slice of ``ByLayer`` a block counts as its share of the examples, and
            ``batches`` replaces ``entropy``.

    Raises:
        DiskFull: there is no space for the labels. It is raised before the first label, and no file remains.
    """
    teacher.eval()
    facts = {**config.model_dump(mode="json", by_alias=True), "examples": count, "temperature": temperature, **origin}
    facts |= {"targets": examples.lengths.targets, "vocabulary": teacher.lm_head.weight.shape[0]}
    done, batches = _batches_done(progress, directory, facts), -(-count // batch_size)
    if accelerator.is_main_process and not done:
        _create(directory, facts)
    accelerator.wait_for_everyone()
    arrays = _open(directory, facts, "r+")
    mine = range(done + accelerator.process_index, batches, accelerator.num_processes)
    shown = _Progress(on_batch, done * batch_size, count)
    made = forward(
        teacher,
        shown.counting((examples.batch(_rows(number, batch_size)) for number in mine), teacher.config.pad_token_id),
        lambda batches: shown.at(batches * batch_size * accelerator.num_processes, {"batches": batches}),
    )
    while done < batches:
        stop = min(done + _BATCHES_PER_SAVE * accelerator.num_processes, batches)
        for number in range(done + accelerator.process_index, stop, accelerator.num_processes):
            with accelerator.autocast():
                output = next(made)
            rows = _rows(number, batch_size)
            entropy = _label_batch(output, config, rows, arrays, temperature)
            shown.at(rows.stop - shown.start, {"entropy": entropy})
        for array in arrays.values():
            array.flush()
        accelerator.wait_for_everyone()
        done = stop
        if accelerator.is_main_process:
            progress.parent.mkdir(parents=True, exist_ok=True)
            write_record(progress, {"batches": done, "of": facts})
    if accelerator.is_main_process:
        paths = sorted(_path(directory, name) for name in arrays)
        write_record(directory / "labels.json", {**facts, "sha256": {path.name: file_digest(path) for path in paths}})
    accelerator.wait_for_everyone()


class _Progress:
    """Reports the progress of all processes, which never falls."""

    def __init__(self, report: Callable[[int, int, dict[str, float]], None], start: int, count: int):
        """Begin at example ``start`` of ``count``."""
        self.start, self._report, self._count = start, report, count
        self._began, self._most = time.perf_counter(), 0.0
        self._tokens = self._examples = 0  # of the batches of this process

    def counting(self, batches: Iterable[Batch], pad: int) -> Iterator[Batch]:
        """``batches``, while their tokens are counted."""
        for batch in batches:
            tokens = (batch.input_ids != pad).sum() + (batch.labels != IGNORE_INDEX).sum()
            self._tokens, self._examples = self._tokens + int(tokens), self._examples + len(batch.labels)
            yield batch

    def at(self, examples: float, metrics: dict[str, float]) -> None:
        """Report that this number of examples is done since the start."""
        self._most = max(self._most, examples)
        speed = self._most * self._tokens / self._examples / (time.perf_counter() - self._began)
        done = min(int(self.start + self._most), self._count)
        self._report(done, self._count, {**metrics, "tokens_per_second": speed})


def _rows(number: int, batch_size: int) -> range:
    """The examples of a batch."""
    return range(number * batch_size, (number + 1) * batch_size)


def _label_batch(
    output: Output, config: LabelsConfig, rows: range, arrays: Mapping[str, np.ndarray], temperature: float
) -> float:
    """Write the labels of examples ``rows``; returns the mean entropy.

    Rows beyond the last example fill the teacher's batch, and their labels are dropped.
    """
    offsets, shape, is_padding = None, output.labels.shape, output.labels == IGNORE_INDEX
    if config.form == "sampled":
        per_example = [np.random.default_rng((_OFFSETS, config.seed, row)).random(shape[1]) for row in rows]
        offsets = torch.from_numpy(np.concatenate(per_example)).to(output.hidden.device)
    made = sparse_labels(
        output.hidden, output.head, num_tokens=config.num_tokens, temperature=temperature, offsets=offsets
    )
    for name, array in arrays.items():
        values = getattr(made, name).unflatten(0, shape)
        values[is_padding] = _PADDING[name]
        array[rows.start : rows.stop, : shape[1]] = values[: len(array) - rows.start].cpu().numpy()
        array[rows.start : rows.stop, shape[1] :] = _PADDING[name]
    return float(made.entropy[~is_padding.flatten()].mean())


def _layout(facts: dict[str, Any]) -> dict[str, tuple[type, tuple[int, ...]]]:
    """dtype and shape of each array, by field of SparseSoftLabels."""
    targets = (facts["examples"], facts["targets"])
    stored = (*targets, facts["words"])  # K; labels.json has num_tokens under this name
    layout = {"token_ids": (token_type(facts["vocabulary"]), stored), "entropy": (np.float16, targets)}
    return layout if facts["form"] == "sampled" else {**layout, "probs": (np.float16, stored)}


def _path(directory: Path, name: str) -> Path:
    """The file of an array."""
    return directory / f"{_STORED_NAMES.get(name, name)}.npy"


def _create(directory: Path, facts: dict[str, Any]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    layout = _layout(facts)
    for name in layout:
        _path(directory, name).unlink(missing_ok=True)
    needed = labels_bytes(facts)
    require_space(
        directory, needed, "storing soft labels", "lower distill.labels.num_tokens or distill.labels.examples"
    )
    try:
        with disk_full_errors(directory, needed):
            for name, (kind, shape) in layout.items():
                open_memmap(_path(directory, name), "w+", kind, shape)
                _reserve(_path(directory, name))
    except BaseException:
        for name in layout:
            _path(directory, name).unlink(missing_ok=True)
        raise


def labels_bytes(facts: dict[str, Any]) -> int:
    """Size of the arrays in bytes; ``facts`` has the keys examples, targets, words, vocabulary and form."""
    return sum(np.dtype(kind).itemsize * int(np.prod(shape)) for kind, shape in _layout(facts).values())


def _reserve(path: Path) -> None:
    """Allocate all blocks of a file. On a full disk, a write to a memory map of a sparse file kills the process."""
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _open(directory: Path, facts: dict[str, Any], mode: Literal["r", "r+"]) -> dict[str, np.memmap]:
    return {name: np.load(_path(directory, name), mmap_mode=mode, allow_pickle=False) for name in _layout(facts)}


def _batches_done(progress: Path, directory: Path, facts: dict[str, Any]) -> int:
    """Number of finished batches of these labels; 0 if the files are of other labels or cannot be read."""
    try:
        known = read_record(progress, "the labels are made again")
        found = {name: (array.dtype, array.shape) for name, array in _open(directory, known["of"], "r").items()}
    except (UserError, OSError, ValueError, KeyError):
        return 0
    expected = {name: (np.dtype(kind), shape) for name, (kind, shape) in _layout(facts).items()}
    return known["batches"] if known["of"] == facts and found == expected else 0
