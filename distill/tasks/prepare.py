"""Preparation of a task: read its pairs once, split them by hash, tokenise them, write them with digests."""

import contextlib
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from distill.config import DataConfig
from distill.data.corpus import split_of
from distill.data.key import TASK_VERSION
from distill.data.overlap import unseen_shares
from distill.data.prepared_data import Part
from distill.data.round_trip import RoundTripCounter
from distill.data.tokenizer import (
    TRAINING_CHARACTERS,
    encode_texts,
    find_special_tokens,
    load_tokenizer,
    train_on_split,
)
from distill.errors import UserError
from distill.models.save import save_tokenizer
from distill.special_tokens import token_type
from distill.tasks.config import SourceConfig, TaskConfig
from distill.tasks.pairs import Pair, bad_pairs, read_pairs
from distill.tasks.prepared import PAIR

_BATCH = 1024  # pairs that are tokenised at a time
_SAMPLE_EVERY = 16  # one of this many pairs is decoded again
_CHARACTERS_PER_TOKEN = 16  # characters that a tokenizer is trained on for each token of data.train_tokens, at most
_MOST_GROUPS = 2**16


def prepare_pairs(
    config: DataConfig,
    task: TaskConfig,
    directory: Path,
    revisions: dict[str, Any],
    beside: Callable[[], AbstractContextManager[None]],
) -> dict[str, Any]:
    """Write tokenizer/ and the files of each split; return the fields of PreparedPairs except directory and sha256.

    Args:
        config: the splits and the tokenizer.
        task: the sources, templates and lengths.
        directory: an empty directory.
        revisions: from ``distill.data.key.task_revisions``.
        beside: returns a context for the tokenisation, which leaves the interpreter to other threads.

    Raises:
        UserError: the sources or the tokenizer cannot be used, or a split is empty.
    """
    bad_rows = bad_pairs(config.bad_rows)
    loaded = None if config.tokenizer == "train" else load_tokenizer(config.tokenizer)
    with beside():
        pairs = _with_split(config, read_pairs(task.sources, revisions["sources"], bad_rows))
        enough = min(TRAINING_CHARACTERS, _CHARACTERS_PER_TOKEN * (config.train_tokens or TRAINING_CHARACTERS))
        tokenizer, pairs = (loaded, pairs) if loaded else train_on_split(pairs, config.vocabulary, enough)
        save_tokenizer(tokenizer, directory / "tokenizer")
        writer = _Writer(tokenizer, task, RoundTripCounter(tokenizer))
        parts = _write_parts(config, directory, pairs, writer)
        bad_rows.check(sum(part.examples for part in parts.values()))
        if task.unlabelled:
            source = SourceConfig(source=task.unlabelled, input=task.input, split_by=task.split_by)
            inputs = read_pairs([source], [revisions["unlabelled"]], bad_rows, with_target=False)
            own = (replace(pair, source=len(task.sources)) for pair in inputs)  # not the weight of another source
            parts["unlabelled"] = _write_unlabelled(config, directory, own, writer)
    _check_splits(parts)
    _check_sources(task, parts["train"])
    _check_groups(task, writer.groups)
    facts = _facts(task, parts, writer, tokenizer)
    facts["task"]["unlabelled_revision"] = revisions["unlabelled"]
    return {
        **facts,
        "skipped_rows": bad_rows.skipped,
        "first_skipped": bad_rows.first,
        "revision": ", ".join(filter(None, revisions["sources"])) or None,
        "tokenizer_revision": revisions["tokenizer_revision"],
    }


def _with_split(config: DataConfig, pairs: Iterator[Pair]) -> Iterator[tuple[str, Pair]]:
    """Each pair with the name of its split."""
    return ((split_of(pair.key, config.test_fraction, config.validation_fraction), pair) for pair in pairs)


def _write_parts(
    config: DataConfig, directory: Path, pairs: Iterator[tuple[str, Pair]], writer: "_Writer"
) -> dict[str, "_SplitWriter"]:
    """Write the splits until ``data.train_tokens`` are read; returns them by name, with their files closed."""
    names = ["train", "test", *(["validation"] if config.validation_fraction else [])]
    with contextlib.ExitStack() as stack:
        parts = {name: stack.enter_context(_SplitWriter(directory, name, writer.vocabulary_size)) for name in names}
        while batch := list(itertools.islice(pairs, _BATCH)):
            writer.write(batch, parts)
            if config.train_tokens and parts["train"].tokens >= config.train_tokens:
                break
    return parts


def _write_unlabelled(config: DataConfig, directory: Path, inputs: Iterator[Pair], writer: "_Writer") -> "_SplitWriter":
    """Write the inputs without targets, except those that belong to a held-out split."""
    kept = (("unlabelled", pair) for part, pair in _with_split(config, inputs) if part == "train")
    with _SplitWriter(directory, "unlabelled", writer.vocabulary_size) as part:
        while batch := list(itertools.islice(kept, _BATCH)):
            writer.write(batch, {"unlabelled": part})
    return part


def _facts(task: TaskConfig, parts: dict[str, "_SplitWriter"], writer: "_Writer", tokenizer: Any) -> dict[str, Any]:
    """The facts of the splits, the tokenizer and the task, and the fingerprint of all of them."""
    special_tokens, train = find_special_tokens(tokenizer), parts["train"]
    trained_on = (train.read(), train.targets())
    of_task = {
        "groups": list(writer.groups),
        "weights": [one.weight for one in task.sources],
        "lengths": {name: part.lengths() for name, part in parts.items()},
        "truncated": {name: part.truncated for name, part in parts.items()},
    }
    split_digests = {name: [part.digest, part.index_digest()] for name, part in parts.items()}
    identity = json.dumps(
        [TASK_VERSION, split_digests, of_task, special_tokens, tokenizer.backend_tokenizer.to_str()], sort_keys=True
    )
    return {
        "name": " + ".join(dict.fromkeys(one.source for one in task.sources)),
        "digest": hashlib.sha256("".join(part.digest for part in parts.values()).encode()).hexdigest()[:32],
        "fingerprint": hashlib.sha256(identity.encode()).hexdigest()[:32],
        "parts": {name: asdict(part.facts(*trained_on)) for name, part in parts.items()},
        "special_tokens": list(special_tokens),
        "round_trip": writer.round_trip.result()._asdict(),
        "task": of_task,
    }


class _SplitWriter:
    """Writes the files of one split.

    NAME.bin has the tokens of each input, then of its target; NAME.pairs their ends, document, group and source. A
    held-out split also has NAME.jsonl with the texts.
    """

    def __init__(self, directory: Path, name: str, vocabulary_size: int):
        self._paths = [directory / f"{name}.{ending}" for ending in ("bin", "pairs", "jsonl")]
        self._held_out = name in ("test", "validation")
        self._type = token_type(vocabulary_size)
        self._hash = hashlib.sha256()
        self.tokens = self.examples = 0
        self.truncated = [0, 0]  # inputs, targets

    def __enter__(self) -> "_SplitWriter":
        paths = self._paths if self._held_out else self._paths[:2]
        self._files = [open(path, "wb") for path in paths]  # noqa: SIM115  closed in __exit__
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()

    def add(self, pair: Pair, ids: list[int], target_ids: list[int], group: int) -> None:
        self._hash.update(pair.digest)
        end = self.tokens + len(ids)
        self.tokens, self.examples = end + len(target_ids), self.examples + 1
        document, texts = (int.from_bytes(digest[:8], "little") for digest in (pair.key, pair.digest))
        row = np.array((end, self.tokens, document, texts, group, pair.source), PAIR)
        contents = [np.asarray([*ids, *target_ids], self._type).tobytes(), row.tobytes()]
        if self._held_out:
            text = {"input": pair.input, "target": pair.target, "columns": pair.columns}
            contents.append(f"{json.dumps(text)}\n".encode())
        for file, content in zip(self._files, contents, strict=True):
            file.write(content)

    @property
    def digest(self) -> str:
        """Of all texts, in order; MLflow takes at most 36 characters."""
        return self._hash.hexdigest()[:32]

    def index_digest(self) -> str:
        """SHA-256 of NAME.pairs, after the files are closed."""
        return hashlib.sha256(self._paths[1].read_bytes()).hexdigest()

    def index(self) -> np.ndarray:
        """The facts of all pairs, [examples], after the files are closed."""
        return np.fromfile(self._paths[1], PAIR)

    def read(self) -> np.ndarray:
        """All tokens, after the files are closed."""
        return np.fromfile(self._paths[0], self._type)

    def targets(self) -> np.ndarray:
        """A number for the tokens of each target, [examples], after the files are closed; valid in this process."""
        tokens, index = self.read(), self.index()
        return np.array([hash(tokens[a:b].tobytes()) for a, b in zip(index["input"], index["target"], strict=True)])

    def facts(self, train_tokens: np.ndarray, train_targets: np.ndarray) -> Part:
        """The facts of the split; those of a held-out one are relative to ``read`` and ``targets`` of the training one.

        The overlap is the share of its targets that are training targets.
        """
        documents = len(np.unique(self.index()["document"]))
        if not self._held_out:
            return Part(self.digest, documents, self.tokens)
        overlap = float(np.isin(self.targets(), train_targets).mean())
        return Part(self.digest, documents, self.tokens, overlap, *unseen_shares(train_tokens, [self.read()]))

    def lengths(self) -> dict[str, float]:
        """Number of examples, and the longest and mean numbers of tokens of inputs and targets."""
        index = self.index()
        starts = np.concatenate([[0], index["target"][:-1]]).astype(np.int64)
        inputs, targets = index["input"].astype(np.int64) - starts, index["target"] - index["input"]
        return {
            "examples": len(index),
            "inputs_longest": int(inputs.max(initial=0)),
            "targets_longest": int(targets.max(initial=0)),
            "inputs_mean": float(inputs.mean()) if len(index) else 0.0,
            "targets_mean": float(targets.mean()) if len(index) else 0.0,
        }


class _Writer:
    """Tokenises pairs and appends them to their splits."""

    def __init__(self, tokenizer: Any, task: TaskConfig, round_trip: RoundTripCounter):
        self._tokenizer, self._eos, self.vocabulary_size = tokenizer, tokenizer.eos_token_id, len(tokenizer)
        self._limits, self.round_trip = (task.max_input, task.max_target), round_trip
        self.groups: dict[str, int] = {}

    def write(self, batch: list[tuple[str, Pair]], parts: dict[str, _SplitWriter]) -> None:
        """Tokenise a batch of pairs, and append each to its split."""
        texts = [text for _, pair in batch for text in (pair.input, pair.target)]
        encoded = encode_texts(self._tokenizer, texts)
        for number, (name, pair) in enumerate(batch):
            part, both = parts[name], []
            for kind, limit in enumerate(self._limits):
                ids = encoded[2 * number + kind]
                self.round_trip.count(ids)
                part.truncated[kind] += len(ids) >= limit
                both.append([*ids[: limit - 1], self._eos] if kind == 0 or pair.target else [])
            if number % _SAMPLE_EVERY == 0 and pair.target:
                self.round_trip.sample(pair.target, encoded[2 * number + 1])
            group = 0 if pair.group is None else self.groups.setdefault(pair.group, len(self.groups))
            part.add(pair, both[0], both[1], group)


def _check_splits(parts: dict[str, _SplitWriter]) -> None:
    for name, part in parts.items():
        if not part.examples:
            found = " and ".join(f"{one.examples} {other}" for other, one in parts.items())
            cure = "use more pairs or another data.test_fraction or data.validation_fraction"
            raise UserError(f"the {name} part of the task is empty ({found} pairs); {cure}")
    train = parts["train"]
    if train.truncated[1] * 2 > train.examples:
        raise UserError(
            f"{train.truncated[1]:,} of {train.examples:,} training targets are longer than task.max_target; raise it"
        )


def _check_sources(task: TaskConfig, train: _SplitWriter) -> None:
    counts = np.bincount(train.index()["source"], minlength=len(task.sources))
    if absent := [one.source for one, count in zip(task.sources, counts, strict=True) if not count]:
        raise UserError(
            f"no pair of {absent[0]} is in the training split; raise data.train_tokens, which ends the reading of the "
            "sources in their order, or use more pairs"
        )


def _check_groups(task: TaskConfig, groups: dict[str, int]) -> None:
    if not task.has_groups:
        return
    if len(groups) == 1:
        raise UserError(f"all pairs are in group {next(iter(groups))!r}; leave out task.group, or use another column")
    if len(groups) > _MOST_GROUPS:
        raise UserError(f"task.group has {len(groups):,} values; use a column with at most {_MOST_GROUPS:,}")
