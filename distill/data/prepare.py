"""Preparation of a corpus: read it once, split it by hash, tokenise it, write it with digests. Needs no torch."""

import contextlib
import hashlib
import itertools
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from distill.config import DataConfig
from distill.data.corpus import BadRows, Digest, Document, read_documents, split_of
from distill.data.key import TEXT_VERSION, data_key, task_revisions, text_revisions
from distill.data.overlap import overlaps, unseen_shares
from distill.data.prepared_data import TEXT, Part, PreparedData, RoundTrip
from distill.data.read_prepared import read_prepared
from distill.errors import UserError
from distill.io.files import file_digest, file_digests, new_directory, write_record
from distill.io.lock import exclusive_lock
from distill.models.save import save_tokenizer
from distill.special_tokens import token_type
from distill.tasks.config import TaskConfig

if TYPE_CHECKING:  # transformers takes seconds to import, and prepared data is reused without it
    from transformers import PreTrainedTokenizerFast

    from distill.data.round_trip import RoundTripCounter

T = TypeVar("T")

_BATCH = 256  # documents that are tokenised at a time
_MOST_UNKNOWN = 0.25  # share of the tokens; above it, the tokenizer does not fit the text
_SAMPLE_EVERY = 16  # one of this many documents is decoded again


def prepare_data(
    config: DataConfig,
    root: Path,
    say: Callable[[str], None] = lambda text: None,
    check: Callable[[PreparedData], None] = lambda data: None,
    beside: Callable[[], AbstractContextManager[None]] = nullcontext,
    task: TaskConfig | None = None,
) -> PreparedData:
    """Prepare a corpus or a task in ``root``/<key>, or reuse prepared data of the same files and settings.

    Args:
        config: the corpus, its splits and its tokenizer.
        root: directory of all prepared data.
        say: is called with messages to the user.
        check: is called with new data. If it raises a UserError, the data is removed.
        beside: returns a context for the tokenisation of new data, which leaves the interpreter to other threads.
        task: the pairs that replace the corpus.

    Raises:
        UserError: the corpus or the tokenizer cannot be used, a split is empty, or prepared data is damaged.
        DiskFull: there is no space; unfinished data is removed.
    """
    directory, name = root / data_key(config, task), config.corpus if task is None else "the pairs of the task"
    if is_prepared(config, root, task):
        return read_prepared(directory)

    def on_wait(by: str) -> None:
        say(f"Waiting for {by}, which prepares {name} (Ctrl-C stops waiting)")

    with exclusive_lock(directory, on_wait):
        if not is_prepared(config, root, task):  # the other process may have done it
            say(f"Preparing {name}: splitting documents by hash and tokenising them")
            for left in root.glob(f".{directory.name}.[0-9]*"):  # of a killed process
                shutil.rmtree(left)
            with new_directory(directory) as tmp_dir:
                facts = _prepare(config, tmp_dir, beside) if task is None else _pairs(config, task, tmp_dir, beside)
                write_record(tmp_dir / "data.json", {**facts, "sha256": file_digests(tmp_dir, tmp_dir.rglob("*"))})
                check(read_prepared(tmp_dir))
            data = read_prepared(directory)
            _say_losses(data, say)
            return data
    return read_prepared(directory)


def _say_losses(data: PreparedData, say: Callable[[str], None]) -> None:
    """Report the rows that were skipped and the text that the tokenizer loses."""
    if data.skipped_rows:
        say(f"Skipped {data.skipped_rows:,} bad rows of {data.name}; the first: {data.first_skipped}")
    if data.round_trip.restored_share < 1 or data.round_trip.unknown_share:
        say(f"The tokenizer loses text of {data.name}: {data.round_trip.summary}")


def is_prepared(config: DataConfig, root: Path, task: TaskConfig | None = None) -> bool:
    """Whether ``prepare_data`` would reuse data in ``root``."""
    return (root / data_key(config, task) / "data.json").exists()


def _pairs(
    config: DataConfig, task: TaskConfig, directory: Path, beside: Callable[[], AbstractContextManager[None]]
) -> dict[str, Any]:
    from distill.tasks.prepare import prepare_pairs  # imports transformers

    return prepare_pairs(config, task, directory, task_revisions(config, task), beside)


def _prepare(config: DataConfig, directory: Path, beside: Callable[[], AbstractContextManager[None]]) -> dict[str, Any]:
    """Write tokenizer/ and two files per split; return the fields of PreparedData except directory and sha256."""
    from distill.data.round_trip import RoundTripCounter
    from distill.data.tokenizer import find_special_tokens, load_tokenizer, train_on_split

    revisions, bad_rows = text_revisions(config), BadRows(config.bad_rows)
    documents = _split_documents(config, revisions["revision"], bad_rows)
    loaded = None if config.tokenizer == "train" else load_tokenizer(config.tokenizer)
    with contextlib.ExitStack() as stack:
        stack.enter_context(beside())
        if loaded:
            tokenizer = loaded
        else:
            tokenizer, documents = train_on_split(documents, config.vocabulary)
        save_tokenizer(tokenizer, directory / "tokenizer")
        digest, round_trip = Digest(), RoundTripCounter(tokenizer)
        names = ("train", "test", *(["validation"] if config.validation_fraction else []))
        parts = {name: stack.enter_context(_PartWriter(directory, name, len(tokenizer))) for name in names}
        for batch in _batches(documents, _BATCH):
            _write_tokens(batch, tokenizer, parts, round_trip)
            for _, document in batch:
                digest.add(document)
            if config.train_tokens and parts["train"].tokens >= config.train_tokens:
                break
    facts = _describe_parts(parts)
    bad_rows.check(sum(part.documents for part in facts.values()))
    _check_parts(config, facts, round_trip.result())
    special_tokens = find_special_tokens(tokenizer)
    # Evaluation and resampling depend on the texts of a split and on their grouping into documents.
    split = {name: [part.digest.hexdigest(), file_digest(part.texts)] for name, part in parts.items()}
    identity = json.dumps([TEXT_VERSION, split, special_tokens, tokenizer.backend_tokenizer.to_str()], sort_keys=True)
    return {
        "name": config.corpus,
        "digest": digest.hexdigest(),
        "fingerprint": hashlib.sha256(identity.encode()).hexdigest()[:32],
        "parts": {name: asdict(part) for name, part in facts.items()},
        "special_tokens": list(special_tokens),
        "skipped_rows": bad_rows.skipped,
        "first_skipped": bad_rows.first,
        "round_trip": round_trip.result()._asdict(),
        **revisions,
    }


def _describe_parts(parts: dict[str, "_PartWriter"]) -> dict[str, Part]:
    """The facts of each split, after its files are closed."""
    held_out = [name for name in parts if name != "train"]
    train, texts = parts["train"].read(), [parts[name].read() for name in held_out]
    shared = dict(zip(held_out, overlaps(train, texts), strict=True))
    unseen = dict(zip(held_out, unseen_shares(train, texts), strict=True))
    return {
        name: Part(part.digest.hexdigest(), part.documents, part.tokens, shared.get(name), unseen.get(name))
        for name, part in parts.items()
    }


class _PartWriter:
    """Writes the files of one split: NAME.bin has the tokens, NAME.documents the end and the document of each text."""

    def __init__(self, directory: Path, name: str, vocabulary_size: int):
        self._tokens, self.texts = directory / f"{name}.bin", directory / f"{name}.documents"
        self._type = token_type(vocabulary_size)
        self.digest, self.tokens = Digest(), 0

    def __enter__(self) -> "_PartWriter":
        self._files = [open(path, "wb") for path in (self._tokens, self.texts)]  # noqa: SIM115  closed in __exit__
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()

    def add(self, document: Document, ids: list[int]) -> None:
        self.digest.add(document)
        self.tokens += len(ids)
        text = np.array((self.tokens, int.from_bytes(document.key[:8], "little")), TEXT)
        for file, values in zip(self._files, (np.asarray(ids, self._type), text), strict=True):
            file.write(values.tobytes())  # tofile does not report a full disk

    @property
    def documents(self) -> int:
        """Number of documents, after the files are closed."""
        known = np.sort(np.fromfile(self.texts, TEXT)["document"])
        return int((np.diff(known) != 0).sum()) + min(len(known), 1)

    def read(self) -> np.ndarray:
        """The tokens, after the files are closed."""
        return np.memmap(self._tokens, self._type, "r") if self.tokens else np.empty(0, self._type)


def _split_documents(config: DataConfig, revision: str | None, bad_rows: BadRows) -> Iterator[tuple[str, Document]]:
    for document in read_documents(config.corpus, config.text_column, config.split_by, revision, bad_rows):
        yield split_of(document.key, config.test_fraction, config.validation_fraction), document


def _write_tokens(
    batch: list[tuple[str, Document]],
    tokenizer: "PreTrainedTokenizerFast",
    parts: dict[str, _PartWriter],
    round_trip: "RoundTripCounter",
) -> None:
    """Tokenise a batch of documents and append them to their splits."""
    from distill.data.tokenizer import encode_texts

    for number, ids in enumerate(encode_texts(tokenizer, [document.text for _, document in batch])):
        part, document = batch[number]
        parts[part].add(document, ids)
        round_trip.count(ids)
        if number % _SAMPLE_EVERY == 0:
            round_trip.sample(document.text, ids)


def _check_parts(config: DataConfig, parts: dict[str, Part], round_trip: RoundTrip) -> None:
    for part, facts in parts.items():
        if not facts.tokens:
            found = " and ".join(f"{one.documents} {name}" for name, one in parts.items())
            held_out = "test" if part == "train" else part
            fraction = getattr(config, f"{held_out}_fraction")
            raise UserError(
                f"the {part} part of {config.corpus} is empty ({found} documents at data.{held_out}_fraction "
                f"{fraction}); use more documents or another fraction"
            )
    if round_trip.unknown_share > _MOST_UNKNOWN:
        raise UserError(
            f"tokenizer {config.tokenizer!r} does not know {round_trip.unknown_share:.0%} of the words of "
            f"{config.corpus}; use one made for such text, or data.tokenizer: train"
        )


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
