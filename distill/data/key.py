"""The key of prepared data: a hash of everything that it depends on. Imports neither torch nor transformers."""

import hashlib
import json
from pathlib import Path
from typing import Any

from distill.config import DataConfig
from distill.data.corpus import corpus_files
from distill.io.hub import resolve_revision
from distill.tasks.config import TaskConfig
from distill.tasks.embedded import EMBEDDED
from distill.tasks.sources import source_files

# Versions of the files of prepared data; they are a part of the data's fingerprint. Raise them with every change to the
# reading, splitting or tokenising of documents, or to the choice of evaluated examples.
TEXT_VERSION = 3  # corpus, prepare, tokenizer, held_out
TASK_VERSION = 1  # distill.tasks
_SPLITS = {"bad_rows", "tokenizer", "vocabulary", "train_tokens", "test_fraction", "validation_fraction"}


def data_key(config: DataConfig, task: TaskConfig | None = None) -> str:
    """A hash of all settings of the preparation, of revisions, and of size and time of every local file.

    Raises:
        UserError: a source does not exist.
    """
    if task is None:
        files = corpus_files(config.corpus)  # first, because it checks the kind of the corpus
        shaping = config.model_dump(include={"corpus", "text_column", "split_by", *_SPLITS})
        settings = [TEXT_VERSION, shaping, text_revisions(config)]
    else:
        sources = {one.source: "task.examples" for one in task.sources}
        sources |= {task.unlabelled: "task.unlabelled"} if task.unlabelled else {}
        files = [path for source, key in sources.items() for path in source_files(source, key)]
        shaping = config.model_dump(include=_SPLITS)
        settings = [TASK_VERSION, shaping, task.model_dump(exclude={"metrics"}), task_revisions(config, task)]
        settings += [EMBEDDED[one].version for one in sources if one in EMBEDDED and EMBEDDED[one].version > 1]
    if (local := Path(config.tokenizer)).is_dir():
        files = [*files, *sorted(path for path in local.iterdir() if path.is_file())]
    stamps = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(json.dumps([*settings, stamps]).encode()).hexdigest()[:16]


def text_revisions(config: DataConfig) -> dict[str, str | None]:
    """Commits of the corpus and the tokenizer if they are on the hub, as fields of PreparedData."""
    revision = _commit(config.corpus, "data.corpus")
    return {"revision": revision, "tokenizer_revision": _tokenizer_commit(config)}


def task_revisions(config: DataConfig, task: TaskConfig) -> dict[str, Any]:
    """Commits of each source and of the tokenizer if they are on the hub."""
    commits = [_commit(one.source, "task.examples") for one in task.sources]
    unlabelled = _commit(task.unlabelled, "task.unlabelled") if task.unlabelled else None
    return {"sources": commits, "unlabelled": unlabelled, "tokenizer_revision": _tokenizer_commit(config)}


def _commit(source: str, key: str) -> str | None:
    if not source.startswith("hf:"):
        return None
    return resolve_revision(source.removeprefix("hf:").partition(":")[0], "dataset", f"{key} {source!r}")


def _tokenizer_commit(config: DataConfig) -> str | None:
    if config.tokenizer == "train":
        return None
    return resolve_revision(config.tokenizer, "model", f"data.tokenizer {config.tokenizer!r}")
