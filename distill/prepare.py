"""A corpus on disk: split by hash, cut into tokens, with the digests that say what it was. Needs no torch."""

import contextlib
import hashlib
import itertools
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np

from distill.config import DataConfig
from distill.corpus import Digest, corpus_files, read_documents, split_of
from distill.errors import UserError
from distill.files import check_digests, file_digests, new_directory, read_record, write_record
from distill.lock import one_at_a_time
from distill.span_corruption import SpanLengths, raw_length_for, span_lengths

if TYPE_CHECKING:  # transformers takes seconds to import, and prepared data is reused without it
    from transformers import PreTrainedTokenizerFast


_FORMAT = 1  # of the files that _prepare writes


class WordIds(NamedTuple):
    """The ids that the objective needs. Sentinel k is ``sentinel_start - k``, for k < ``sentinels``."""

    size: int
    pad: int
    eos: int
    sentinel_start: int
    sentinels: int


@dataclass(frozen=True)
class PreparedData:
    """A corpus that was split, cut into tokens and written to ``directory``."""

    directory: str
    name: str
    digest: str  # of the bytes of every document, in order
    train_digest: str  # of the training documents alone
    test_digest: str
    fingerprint: str  # of everything that an example depends on: the documents, the split and the tokenizer
    train_documents: int
    test_documents: int
    train_tokens: int
    test_tokens: int
    word_ids: list[int]  # the fields of WordIds
    validation_digest: str = ""
    validation_documents: int = 0
    validation_tokens: int = 0
    sha256: dict[str, str] = field(default_factory=dict)  # of the files; none in data that was prepared without

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerFast":
        """Raises UserError where a file of it is not what was written."""
        from distill.tokenizer import load_tokenizer

        self._check({name for name in self.sha256 if name.startswith("tokenizer/")})
        return load_tokenizer(Path(self.directory) / "tokenizer")

    @property
    def words(self) -> WordIds:
        return WordIds(*self.word_ids)

    @property
    def vocab_size(self) -> int:
        """The tokenizer's words, rounded up to a multiple of 128 as T5 does (32,100 -> 32,128)."""
        return -(-self.words.size // 128) * 128

    def tokens(self, split: str) -> np.ndarray:
        """All token ids of ``train``, ``test`` or ``validation``, memory-mapped.

        Raises:
            UserError: they are not those that were written.
        """
        self._check({f"{split}.bin"} & set(self.sha256))
        return np.memmap(Path(self.directory) / f"{split}.bin", dtype=_token_type(self.words.size), mode="r")

    def _check(self, names: set[str]) -> None:
        """Read files once, when they are first needed: a finished pipeline is answered without."""
        directory = Path(self.directory)
        check_digests(directory, {name: self.sha256[name] for name in names - self._checked}, _cure(directory))
        self._checked.update(names)

    @cached_property
    def _checked(self) -> set[str]:
        return set()


def prepare_data(
    config: DataConfig,
    root: Path,
    say: Callable[[str], None] = lambda text: None,
    check: Callable[[PreparedData], None] = lambda data: None,
) -> PreparedData:
    """Read, split, and cut a corpus into ``root``/<key>, or reuse it where files and settings are the same.

    Args:
        check: of new data; raises a UserError where it does not fit, and then it is not kept.

    Raises:
        UserError: the corpus or the tokenizer cannot be used, one side of the split is empty, or what is to be reused
            is damaged.
        DiskFull: nothing is left of the preparation.
    """
    directory = root / _key(config)
    if is_prepared(config, root):
        return read_prepared(directory)

    def held(by: str) -> None:
        say(f"Waiting for {by}, which prepares {config.corpus} (Ctrl-C stops waiting)")

    with one_at_a_time(directory, held):
        if not is_prepared(config, root):  # by whoever was waited for
            say(f"Preparing {config.corpus}: splitting documents by hash and cutting them into tokens")
            for left in root.glob(f".{directory.name}.[0-9]*"):  # by a process that was killed
                shutil.rmtree(left)
            with new_directory(directory) as beside:
                facts = _prepare(config, beside)
                write_record(beside / "data.json", {**facts, "sha256": file_digests(beside, beside.rglob("*"))})
                check(read_prepared(beside))
    return read_prepared(directory)


def read_prepared(directory: Path) -> PreparedData:
    """What ``prepare_data`` left in ``directory``.

    Raises:
        UserError: its data.json is damaged.
    """
    values = read_record(directory / "data.json", _cure(directory))
    try:
        return PreparedData(directory=str(directory), **values)
    except TypeError as error:
        raise UserError(f"{directory / 'data.json'} is not what was written; {_cure(directory)}") from error


def is_prepared(config: DataConfig, root: Path) -> bool:
    """Whether ``prepare_data`` would reuse what it finds in ``root``."""
    return (root / _key(config) / "data.json").exists()


def example_lengths(data: PreparedData, config: DataConfig) -> tuple[int, SpanLengths]:
    """Raw tokens of an example, and what they are corrupted to.

    Raises:
        UserError: the data has too few tokens, or its tokenizer too few sentinels, for such examples.
    """
    shape = {"noise_density": config.noise_density, "mean_span_length": config.mean_span_length}
    raw = raw_length_for(config.input_length, **shape)
    lengths = span_lengths(raw, **shape)
    if data.train_tokens < raw:
        raise UserError(
            f"the training part of {data.name} has {data.train_tokens} tokens, one example needs {raw}; "
            "use more text or a shorter data.input_length"
        )
    held_out = {"test": data.test_tokens, "validation": data.validation_tokens}[config.eval_split]
    if (available := held_out // raw) < config.test_examples:
        raise UserError(
            f"data.test_examples is {config.test_examples}, but the {config.eval_split} part of {data.name} "
            f"gives {available} of {raw} tokens; ask for fewer, or raise data.{config.eval_split}_fraction"
        )
    if lengths.spans > data.words.sentinels:
        raise UserError(
            f"an example of data.input_length {config.input_length} has {lengths.spans} spans, but the tokenizer "
            f"has {data.words.sentinels} sentinels; choose a shorter one"
        )
    return raw, lengths


def _prepare(config: DataConfig, directory: Path) -> dict:
    """Write tokenizer/ and a file of tokens for each part; return the fields of PreparedData but the directory."""
    from distill.tokenizer import load_tokenizer, train_tokenizer, word_ids

    def documents() -> Iterator[tuple[str, str]]:
        for text in read_documents(config.corpus, config.text_column):
            yield split_of(text, config.test_fraction, config.validation_fraction), text

    if config.tokenizer == "train":
        tokenizer = train_tokenizer((text for part, text in documents() if part == "train"), config.vocabulary)
    else:
        tokenizer = load_tokenizer(config.tokenizer)
    tokenizer.save_pretrained(directory / "tokenizer")

    parts = ["train", "test", *(["validation"] if config.validation_fraction else [])]
    digests = {name: Digest() for name in ("all", *parts)}
    unknown = 0
    counts = {f"{part}_{unit}": 0 for part in parts for unit in ("documents", "tokens")}
    with contextlib.ExitStack() as stack:
        files = {part: stack.enter_context(open(directory / f"{part}.bin", "wb")) for part in parts}
        for batch in _batches(documents(), 256):
            unknown += _write_tokens(batch, tokenizer, files, counts)
            for part, text in batch:
                digests["all"].add(text)
                digests[part].add(text)
            if config.train_tokens and counts["train_tokens"] >= config.train_tokens:
                break
    for part in parts:
        if not counts[f"{part}_tokens"]:
            found = " and ".join(f"{counts[f'{name}_documents']} {name}" for name in parts)
            raise UserError(
                f"the {part} part of {config.corpus} is empty ({found} documents at data.test_fraction "
                f"{config.test_fraction}); use more documents or another fraction"
            )
    if 4 * unknown > (total := sum(counts[f"{part}_tokens"] for part in parts)):
        raise UserError(
            f"tokenizer {config.tokenizer!r} does not know {unknown / total:.0%} of the words of {config.corpus}; "
            "use one made for such text, or data.tokenizer: train"
        )
    words = json.dumps([word_ids(tokenizer), tokenizer.backend_tokenizer.to_str()])
    identity = [digests["all"].hexdigest(), hashlib.sha256(words.encode()).hexdigest(), config.test_fraction]
    if config.validation_fraction:
        identity.append(config.validation_fraction)
    return {
        "name": config.corpus,
        "digest": digests["all"].hexdigest(),
        **{f"{part}_digest": digests[part].hexdigest() for part in parts},
        "fingerprint": hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32],
        **counts,
        "word_ids": list(word_ids(tokenizer)),
    }


def _write_tokens(
    batch: list[tuple[str, str]],
    tokenizer: "PreTrainedTokenizerFast",
    files: dict[str, BinaryIO],
    counts: dict,
) -> int:
    """Append a batch to the files and counts; how many of its tokens stand for what the tokenizer does not know."""
    from distill.tokenizer import encode

    id_of_unknown, unknown = tokenizer.unk_token_id, 0
    if id_of_unknown is None and (word := getattr(tokenizer.backend_tokenizer.model, "unk_token", None)):
        id_of_unknown = tokenizer.backend_tokenizer.token_to_id(word)
    for (part, _), ids in zip(batch, encode(tokenizer, [text for _, text in batch]), strict=True):
        files[part].write(np.asarray(ids, dtype=_token_type(len(tokenizer))).tobytes())  # tofile hides a full disk
        counts[f"{part}_documents"] += 1
        counts[f"{part}_tokens"] += len(ids)
        unknown += ids.count(id_of_unknown)
    return unknown


def _batches(items: Iterable, size: int) -> Iterator[list]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def _cure(directory: Path) -> str:
    return f"delete {directory}, and the same command prepares the text again"


def _token_type(vocabulary: int) -> type:
    return np.uint16 if vocabulary <= 2**16 else np.uint32


def _key(config: DataConfig) -> str:
    """Changes with every setting that preparation reads, and with size or time of every local file."""
    fractions = {"test_fraction", "validation_fraction"}
    shaping = config.model_dump(
        include={"corpus", "text_column", "tokenizer", "vocabulary", "train_tokens", *fractions}
    )
    files = corpus_files(config.corpus)
    if (local := Path(config.tokenizer)).is_dir():
        files += sorted(path for path in local.iterdir() if path.is_file())
    stamps = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(json.dumps([_FORMAT, shaping, stamps]).encode()).hexdigest()[:16]
