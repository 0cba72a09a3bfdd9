"""The student to export, and the held-out text on which its export is compared with it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from distill.data.read_prepared import read_prepared
from distill.errors import UserError
from distill.special_tokens import SpecialTokens
from pipelines.tracking.data_source import mlflow_source
from pipelines.tracking.lineage import find_model, nodes, read_lineage
from pipelines.tracking.store import Store, existing_store


@dataclass(frozen=True)
class Source:
    """A student on disk, with its store and lineage if a store knows it."""

    name: str
    directory: Path
    store: Store | None = None
    lineage: dict[str, Any] = field(default_factory=dict)


class HeldOutText(NamedTuple):
    """Token ids [N] that the student was not trained on."""

    name: str
    digest: str
    tokens: np.ndarray
    special_tokens: SpecialTokens
    split: str  # test or validation
    source: tuple[str, str]  # in MLflow's format, see pipelines.tracking.data_source


def find_source(model: str, workdir: Path, text: str | None) -> Source:
    """The student that MODEL names, with its lineage if a store knows it.

    A directory needs no store if ``text`` is given.

    Args:
        model: the MODEL argument of the command line.
        workdir: the work directory of the store.
        text: files (a glob) to compare the export on.

    Raises:
        UserError: there is no such model, or its files have changed since it was made.
    """
    local = next((path for path in (Path(model), Path(model) / "model") if (path / "config.json").is_file()), None)
    if local and text:
        return Source(local.absolute().name, local)
    if local and not _is_recorded(local):
        raise UserError(
            f"no store knows {model}, so there is no text to compare its export on; give text with --text FILES"
        )
    store = existing_store(workdir)
    model_id = find_model(store, model)
    lineage = read_lineage(store, model_id)
    directory = local if local and (local / "manifest.json").is_file() else store.model_files(model_id)
    return Source(lineage["model"], directory, store, lineage)


def held_out_text(source: Source, workdir: Path, text: str | None) -> HeldOutText:
    """The held-out split that the student was evaluated on, or the text of the files ``text`` (a glob).

    Raises:
        UserError: the work directory does not have the data, or the files cannot be used.
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
        own = Tokenizer.from_file(str(path.parent / "tokenizer" / "tokenizer.json")).get_vocab()
        for name, part in data.parts.items():  # one of them is the split that the student was evaluated on
            if part.digest in digests and own == vocabulary:
                place = mlflow_source(data.name, data.revision, path.parent)
                return HeldOutText(
                    f"{data.name}-{name}", part.digest, data.tokens(name), data.special_tokens, name, place
                )
    raise UserError(
        f"the held-out text of {source.name} (digest {', '.join(sorted(digests)) or 'unknown'}) is not in "
        f"{workdir / 'data'}; name the work directory that made it with --workdir, or other text with --text FILES"
    )


def _of_files(source: Source, pattern: str) -> HeldOutText:
    from distill.data.corpus import Digest, read_documents
    from distill.data.tokenizer import encode_texts, find_special_tokens, load_tokenizer

    documents, digest = list(read_documents(f"text:{pattern}")), Digest()
    for document in documents:
        digest.add(document)
    tokenizer = load_tokenizer(source.directory)
    ids = [id_ for row in encode_texts(tokenizer, [document.text for document in documents]) for id_ in row]
    corpus = f"text:{pattern}"
    place = mlflow_source(corpus, None, source.directory)
    return HeldOutText(corpus, digest.hexdigest(), np.array(ids), find_special_tokens(tokenizer), "test", place)


def _is_recorded(directory: Path) -> bool:
    return (directory.parent / "stage.json").is_file() or (directory / "lineage.json").is_file()
