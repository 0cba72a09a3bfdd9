"""The source of a corpus in MLflow's format, so that ``mlflow.data.get_source`` finds the text."""

import json
import os
from pathlib import Path
from typing import Any

from distill.data.corpus import corpus_files
from distill.errors import UserError
from distill.io.files import directory_uri
from distill.io.hub import split_revision
from distill.tasks.sources import source_files
from pipelines.tracking.store_uri import UNREADABLE


def mlflow_source(corpus: str, revision: str | None, prepared: Path) -> tuple[str, str]:
    """The source of a corpus for MLflow's ``Dataset`` entity.

    A ``hf:`` corpus becomes MLflow's Hugging Face source, whose ``load`` gives the rows of that revision. Any other
    corpus becomes MLflow's local source. Its ``load`` gives the path of a single file, or of the deepest directory that
    contains all files. If MLflow cannot read the name of a single file, the source is the directory of that file.

    Args:
        corpus: the name of the prepared data: the value of ``data.corpus``, or of ``task.examples``.
        revision: the commit of a data set on the hub, else None.
        prepared: the directory of the prepared data, which is the source if the files of the corpus no longer exist.

    Returns:
        The type of the source, and its JSON, which also contains ``corpus``.
    """
    kind, _, name = corpus.partition(":")
    if kind == "hf" and " + " not in name:
        return "hugging_face", json.dumps({**_of_hub(name, revision), "corpus": corpus})
    try:
        files = [os.path.abspath(path) for path in _files(corpus)]
    except UserError:
        files = [os.path.abspath(prepared)]
    place = Path(os.path.commonpath(files))
    if place.is_file() and UNREADABLE.search(place.name):
        place = place.parent
    uri = place.as_uri() if place.is_file() else directory_uri(place)
    return "local", json.dumps({"uri": uri, "corpus": corpus})


def _files(corpus: str) -> list[Path]:
    """The files of a corpus, or of the sources of a task, whose names are joined by `` + ``."""
    if corpus == "stdlib" or corpus.startswith("text:"):
        return corpus_files(corpus)
    return [path for source in corpus.split(" + ") for path in source_files(source)]


def _of_hub(name: str, revision: str | None) -> dict[str, Any]:
    """The arguments of ``datasets.load_dataset``, under MLflow's names."""
    dataset, _, config = name.partition(":")
    path, pinned = split_revision(dataset)
    if os.path.isdir(path):
        path = os.path.abspath(path)
    unused = {"data_dir": None, "data_files": None}
    return {"path": path, "config_name": config or None, **unused, "split": "train", "revision": revision or pinned}
