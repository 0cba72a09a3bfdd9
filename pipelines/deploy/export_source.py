"""The student to export, and the held-out examples on which its export is compared with it. Imports no torch."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from distill.config import DataConfig
from distill.data.prepared_data import PreparedData, PreparedText
from distill.data.read_prepared import read_prepared
from distill.errors import UserError
from distill.tasks.config import TaskConfig
from distill.tasks.prepared import PreparedPairs
from pipelines.config.safe_yaml import read_yaml
from pipelines.tracking.data_source import mlflow_source
from pipelines.tracking.lineage import find_model, nodes, read_lineage
from pipelines.tracking.store import Store, existing_store
from students.export.parity_examples import ParityExamples, choose_pairs, make_examples, pair_examples


class StudentTask(NamedTuple):
    """The task that a student was made for, and the settings of its evaluated examples."""

    task: TaskConfig
    data: DataConfig


@dataclass(frozen=True)
class Source:
    """A student on disk, with its store, its lineage and its task if a store knows them."""

    name: str
    directory: Path
    store: Store | None = None
    lineage: dict[str, Any] = field(default_factory=dict)
    task: StudentTask | None = None


class TaskTexts(NamedTuple):
    """The texts of N pairs of a task."""

    inputs: list[str]
    references: list[str]


class HeldOut(NamedTuple):
    """Examples that the student was not trained on."""

    name: str
    digest: str
    split: str  # test or validation
    source: tuple[str, str]  # in MLflow's format, see pipelines.tracking.data_source
    tokens: int  # of the text, or of all pairs, that the examples are from
    examples: ParityExamples
    texts: TaskTexts | None = None  # of the examples of a task


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
    return Source(lineage["model"], directory, store, lineage, _task(store, lineage))


def held_out_examples(source: Source, workdir: Path, text: str | None) -> HeldOut:
    """Examples of the held-out split that the student was evaluated on, or of the files ``text`` (a glob).

    Raises:
        UserError: the work directory does not have the data, or the files cannot be used.
    """
    if text:
        return _of_files(source, text)
    tokenizer = Tokenizer.from_file(str(source.directory / "tokenizer.json"))
    vocabulary, digests = tokenizer.get_vocab(), _held_out_digests(source.lineage)
    for path in sorted(workdir.glob("data/*/data.json")):
        data = read_prepared(path.parent)
        own = Tokenizer.from_file(str(path.parent / "tokenizer" / "tokenizer.json")).get_vocab()
        for split, part in data.parts.items():  # one of them is the split that the student was evaluated on
            if part.digest in digests and own == vocabulary:
                return _of_split(source, data, split, tokenizer)
    raise UserError(
        f"the held-out text of {source.name} (digest {', '.join(sorted(digests)) or 'unknown'}) is not in "
        f"{workdir / 'data'}; name the work directory that made it with --workdir, or other text with --text FILES"
    )


def _made(lineage: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The nodes of a lineage that are not exports, the student first."""
    return (node for node in nodes(lineage) if node["stage"] != "export")


def _held_out_digests(lineage: dict[str, Any]) -> set[str]:
    """Digests of the held-out data of the student; those of the models that it was made from if it has none."""
    for node in _made(lineage):
        held_out = [one for one in node["datasets"] if one["context"] in ("test", "validation")]
        if held_out:
            return {one["digest"] for one in held_out}
    return set()


def _task(store: Store, lineage: dict[str, Any]) -> StudentTask | None:
    """The task in the config of the run that made the student.

    Raises:
        UserError: the config is not what was written.
    """
    run_id = next(_made(lineage))["run_id"]
    path = store.client.download_artifacts(run_id, "config.yaml")
    try:
        values = read_yaml(Path(path))
        if values.get("task") is None:
            return None
        return StudentTask(TaskConfig.model_validate(values["task"]), DataConfig.model_validate(values["data"]))
    except (ValueError, KeyError, AttributeError) as error:
        cause = " ".join(str(error).split())[:200]
        raise UserError(f"the config.yaml of run {run_id} is damaged: {cause}; run the stage again") from error


def _of_split(source: Source, data: PreparedData, split: str, tokenizer: Tokenizer) -> HeldOut:
    part, place = data.parts[split], mlflow_source(data.name, data.revision, Path(data.directory))
    facts = (f"{data.name}-{split}", part.digest, split, place, part.tokens)
    if isinstance(data, PreparedText):
        return HeldOut(*facts, make_examples(data.tokens(split), data.special_tokens, tokenizer))
    assert isinstance(data, PreparedPairs) and source.task is not None
    task, config = source.task.task, source.task.data.model_copy(update={"eval_split": split})
    pairs, rows, texts = data.pairs(split), data.evaluated_rows(config), data.task_examples(config)
    chosen = choose_pairs(pairs.input_lengths[rows])
    inputs = [pairs.tokens[pairs.starts[row] : pairs.middles[row]] for row in rows[chosen]]
    targets = [pairs.tokens[pairs.middles[row] : pairs.ends[row]] for row in rows[chosen]]
    return HeldOut(
        *facts,
        pair_examples(inputs, targets, task.max_target),
        TaskTexts([texts.inputs[number] for number in chosen], [texts.references[number] for number in chosen]),
    )


def _of_files(source: Source, pattern: str) -> HeldOut:
    from distill.data.corpus import Digest, read_documents
    from distill.data.tokenizer import encode_texts, find_special_tokens, load_tokenizer

    documents, digest = list(read_documents(f"text:{pattern}")), Digest()
    for document in documents:
        digest.add(document)
    loaded = load_tokenizer(source.directory)  # raises UserError if it is damaged
    ids = [id_ for row in encode_texts(loaded, [document.text for document in documents]) for id_ in row]
    corpus = f"text:{pattern}"
    place = mlflow_source(corpus, None, source.directory)
    tokenizer = Tokenizer.from_file(str(source.directory / "tokenizer.json"))
    examples = make_examples(np.array(ids), find_special_tokens(loaded), tokenizer)
    return HeldOut(corpus, digest.hexdigest(), "test", place, len(ids), examples)


def _is_recorded(directory: Path) -> bool:
    return (directory.parent / "stage.json").is_file() or (directory / "lineage.json").is_file()
