"""Preparation of a corpus: read it once, split it by hash, tokenise it, write it with digests. Needs no torch."""

import contextlib
import hashlib
import itertools
import json
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from distill.config import DataConfig
from distill.data.corpus import BadRows, Digest, Document, corpus_files, read_documents, split_of
from distill.data.overlap import overlaps
from distill.data.prepared_data import TEXT, Part, PreparedData, RoundTrip, read_prepared
from distill.errors import UserError
from distill.io.files import file_digest, file_digests, new_directory, write_record
from distill.io.hub import resolve_revision
from distill.io.lock import exclusive_lock
from distill.models.save import save_tokenizer
from distill.special_tokens import token_type

if TYPE_CHECKING:  # transformers takes seconds to import, and prepared data is reused without it
    from transformers import PreTrainedTokenizerFast

    from distill.data.round_trip import RoundTripCounter

T = TypeVar("T")

# Version of the files that _prepare writes; it is a part of the data's fingerprint. Raise it with every change to the
# reading, splitting or tokenising of documents, or to the choice of evaluated examples (corpus, tokenizer, held_out).
_VERSION = 3
_BATCH = 256  # documents that are tokenised at a time
_MOST_UNKNOWN = 0.25  # share of the tokens; above it, the tokenizer does not fit the text
_SAMPLE_EVERY = 16  # one of this many documents is decoded again


def prepare_data(
    config: DataConfig,
    root: Path,
    say: Callable[[str], None] = lambda text: None,
    check: Callable[[PreparedData], None] = lambda data: None,
    beside: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> PreparedData:
    """Prepare a corpus in ``root``/<key>, or reuse prepared data of the same files and settings.

    Args:
        config: the corpus, its splits and its tokenizer.
        root: directory of all prepared data.
        say: is called with messages to the user.
        check: is called with new data. If it raises a UserError, the data is removed.
        beside: returns a context for the tokenisation of new data, which leaves the interpreter to other threads.

    Raises:
        UserError: the corpus or the tokenizer cannot be used, a split is empty, or prepared data is damaged.
        DiskFull: there is no space; unfinished data is removed.
    """
    directory = root / _key(config)
    if is_prepared(config, root):
        return read_prepared(directory)

    def on_wait(by: str) -> None:
        say(f"Waiting for {by}, which prepares {config.corpus} (Ctrl-C stops waiting)")

    with exclusive_lock(directory, on_wait):
        if not is_prepared(config, root):  # the other process may have done it
            say(f"Preparing {config.corpus}: splitting documents by hash and tokenising them")
            for left in root.glob(f".{directory.name}.[0-9]*"):  # of a killed process
                shutil.rmtree(left)
            with new_directory(directory) as tmp_dir:
                facts = _prepare(config, tmp_dir, beside)
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


def is_prepared(config: DataConfig, root: Path) -> bool:
    """Whether ``prepare_data`` would reuse data in ``root``."""
    return (root / _key(config) / "data.json").exists()


def _prepare(config: DataConfig, directory: Path, beside: Callable[[], AbstractContextManager[None]]) -> dict[str, Any]:
    """Write tokenizer/ and two files per split; return the fields of PreparedData except directory and sha256."""
    from distill.data.round_trip import RoundTripCounter
    from distill.data.tokenizer import find_special_tokens, load_tokenizer

    revisions, bad_rows = _revisions(config), BadRows(config.bad_rows)
    documents = _split_documents(config, revisions["revision"], bad_rows)
    loaded = None if config.tokenizer == "train" else load_tokenizer(config.tokenizer)
    with contextlib.ExitStack() as stack:
        stack.enter_context(beside())
        if loaded:
            tokenizer = loaded
        else:
            tokenizer, documents = _train_tokenizer(documents, config)
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
    identity = json.dumps([_VERSION, split, special_tokens, tokenizer.backend_tokenizer.to_str()], sort_keys=True)
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
    found = overlaps(parts["train"].read(), [parts[name].read() for name in held_out])
    shared = dict(zip(held_out, found, strict=True))
    return {
        name: Part(part.digest.hexdigest(), part.documents, part.tokens, shared.get(name))
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


def _train_tokenizer(
    documents: Iterator[tuple[str, Document]], config: DataConfig
) -> tuple["PreTrainedTokenizerFast", Iterator[tuple[str, Document]]]:
    """Train a tokenizer on the first training texts; also returns an iterator over all documents from the first one."""
    from distill.data.tokenizer import TRAINING_CHARACTERS, train_tokenizer

    kept: deque[tuple[str, Document]] = deque()
    of_training = of_all = 0
    for part, document in documents:
        kept.append((part, document))
        of_all += len(document.text)
        of_training += len(document.text) if part == "train" else 0
        if of_training >= TRAINING_CHARACTERS or of_all >= 4 * TRAINING_CHARACTERS:  # bounds the memory
            break
    tokenizer = train_tokenizer((document.text for part, document in kept if part == "train"), config.vocabulary)
    again = (kept.popleft() for _ in range(len(kept)))  # frees each document after its use
    return tokenizer, itertools.chain(again, documents)


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


def _revisions(config: DataConfig) -> dict[str, str | None]:
    """Commits of the corpus and the tokenizer if they are on the hub, as fields of PreparedData."""
    corpus, tokenizer = None, None
    if config.corpus.startswith("hf:"):
        source = config.corpus.removeprefix("hf:").partition(":")[0]
        corpus = resolve_revision(source, "dataset", f"data.corpus {config.corpus!r}")
    if config.tokenizer != "train":
        tokenizer = resolve_revision(config.tokenizer, "model", f"data.tokenizer {config.tokenizer!r}")
    return {"revision": corpus, "tokenizer_revision": tokenizer}


def _key(config: DataConfig) -> str:
    """A hash of all settings of the preparation, of revisions, and of size and time of every local file."""
    fractions = {"test_fraction", "validation_fraction"}
    shaping = config.model_dump(
        include={"corpus", "text_column", "split_by", "bad_rows", "tokenizer", "vocabulary", "train_tokens", *fractions}
    )
    files = corpus_files(config.corpus)
    if (local := Path(config.tokenizer)).is_dir():
        files += sorted(path for path in local.iterdir() if path.is_file())
    stamps = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(json.dumps([_VERSION, shaping, _revisions(config), stamps]).encode()).hexdigest()[:16]
