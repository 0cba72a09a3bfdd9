"""Where a corpus comes from, as MLflow writes it down, so that its own ``mlflow.data.get_source`` finds the text."""

import json
import os
from pathlib import Path
from typing import Any

from distill.data.corpus import corpus_files
from distill.errors import UserError
from distill.io.files import directory_uri
from distill.io.hub import split_revision
from pipelines.tracking.store_uri import UNREADABLE


def mlflow_source(corpus: str, revision: str | None, prepared: Path) -> tuple[str, str]:
    """Type and JSON of the source of MLflow's ``Dataset`` entity; the JSON also holds ``corpus`` as the config has it.

    A ``hf:`` corpus is MLflow's Hugging Face source, whose ``load`` gives the rows of that revision. Any other is its
    local one, whose ``load`` gives the path of the one file, or of the deepest directory that holds all files; for a
    file whose name MLflow cannot read, that is its directory.

    Args:
        revision: the commit that a data set of the hub is read at; of anything else None.
        prepared: the directory of what was made of the corpus, which is the source where its files have gone since.
    """
    kind, _, name = corpus.partition(":")
    if kind == "hf":
        return "hugging_face", json.dumps({**_of_hub(name, revision), "corpus": corpus})
    try:
        files = [os.path.abspath(path) for path in corpus_files(corpus)]
    except UserError:
        files = [os.path.abspath(prepared)]
    place = Path(os.path.commonpath(files))
    if place.is_file() and UNREADABLE.search(place.name):
        place = place.parent
    uri = place.as_uri() if place.is_file() else directory_uri(place)
    return "local", json.dumps({"uri": uri, "corpus": corpus})


def _of_hub(name: str, revision: str | None) -> dict[str, Any]:
    """What ``datasets.load_dataset`` is given, under MLflow's names for it."""
    dataset, _, config = name.partition(":")
    path, pinned = split_revision(dataset)
    if os.path.isdir(path):
        path = os.path.abspath(path)
    unused = {"data_dir": None, "data_files": None}
    return {"path": path, "config_name": config or None, **unused, "split": "train", "revision": revision or pinned}
