"""Which student is exported, and the held-out text that its export is compared on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from distill.data.prepared_data import read_prepared
from distill.errors import UserError
from distill.special_tokens import SpecialTokens
from pipelines.tracking.data_source import mlflow_source
from pipelines.tracking.lineage import find_model, nodes, read_lineage
from pipelines.tracking.store import Store, existing_store


@dataclass(frozen=True)
class Source:
    """A student on disk, and what the store knows of it."""

    name: str
    directory: Path
    store: Store | None = None
    lineage: dict[str, Any] | None = None


class HeldOutText(NamedTuple):
    """Token ids [N] that the student was not trained on."""

    name: str
    digest: str
    tokens: np.ndarray
    words: SpecialTokens
    split: str  # test or validation
    source: tuple[str, str]  # of MLflow, see pipelines.tracking.data_source


def find_source(model: str, workdir: Path, text: str | None) -> Source:
    """The student that MODEL names, with its lineage where a store knows it.

    A directory whose text to compare on is given needs no store.

    Raises:
        UserError: there is no such model, or its files have changed since it was made.
    """
    local = next((path for path in (Path(model), Path(model) / "model") if (path / "config.json").is_file()), None)
    if local and text:
        return Source(local.absolute().name, local)
    if local and not _is_recorded(local):
        raise UserError(
            f"no store knows {model}, so that there is no text to compare its export on; give some with --text FILES"
        )
    store = existing_store(workdir)
    model_id = find_model(store, model)
    lineage = read_lineage(store, model_id)
    exported = local and (local / "manifest.json").is_file()
    return Source(lineage["model"], local if exported else store.model_files(model_id), store, lineage)


def held_out_text(source: Source, workdir: Path, text: str | None) -> HeldOutText:
    """The held-out part of its data that the student was measured on, or ``text``, files that a glob names.

    Raises:
        UserError: the work directory has not that data, or the files cannot be used.
    """
    from tokenizers import Tokenizer

    if text:
        return _of_files(source, text)
    vocabulary = Tokenizer.from_file(str(source.directory / "tokenizer.json")).get_vocab()
    digests = {
        entry["digest"]
        for node in nodes(source.lineage)
        for entry in node["datasets"]
        if entry["context"] in ("test", "validation")
    }
    for path in sorted(workdir.glob("data/*/data.json")):
        data = read_prepared(path.parent)
        words = Tokenizer.from_file(str(path.parent / "tokenizer" / "tokenizer.json")).get_vocab()
        for name, part in data.parts.items():  # what the student was evaluated on
            if part.digest in digests and words == vocabulary:
                place = mlflow_source(data.name, data.revision, path.parent)
                return HeldOutText(f"{data.name}-{name}", part.digest, data.tokens(name), data.words, name, place)
    raise UserError(
        f"the held-out text of {source.name} (digest {', '.join(sorted(digests)) or 'unknown'}) is not in "
        f"{workdir / 'data'}; name the work directory that made it, or other text with --text FILES"
    )


def _of_files(source: Source, pattern: str) -> HeldOutText:
    from distill.data.corpus import Digest, read_documents
    from distill.data.tokenizer import encode, load_tokenizer, special_tokens

    documents, digest = list(read_documents(f"text:{pattern}")), Digest()
    for document in documents:
        digest.add(document)
    tokenizer = load_tokenizer(source.directory)
    ids = [id_ for row in encode(tokenizer, [document.text for document in documents]) for id_ in row]
    corpus = f"text:{pattern}"
    place = mlflow_source(corpus, None, source.directory)
    return HeldOutText(corpus, digest.hexdigest(), np.array(ids), special_tokens(tokenizer), "test", place)


def _is_recorded(directory: Path) -> bool:
    return (directory.parent / "stage.json").is_file() or (directory / "lineage.json").is_file()
