"""From a model back to the bytes of its data, with only the records in MLflow."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from rich.text import Text
from rich.tree import Tree

from distill.errors import UserError
from distill.io.files import check_digests, read_json
from pipelines.tracking.store import Store
from pipelines.tracking.store_uri import StoreError
from students.runtime import read_manifest

# MLflow's error codes for an unknown model, version or alias, and for an invalid name.
_NOT_THERE = ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND", "INVALID_PARAMETER_VALUE")


def read_lineage(store: Store, model: str) -> dict[str, Any]:
    """The chain of runs, models and data sets that led to ``model``.

    Args:
        model: a run id, ``models:/NAME/VERSION``, ``models:/NAME@ALIAS``, ``models:/<model id>``, a model id, or the
            directory of a stage's model or of an export.

    Returns:
        A tree with the keys model, model_id, sha256, run_id, run, stage, ratio, variant, fingerprint, commit, metrics,
        datasets (name, digest, context, source, revision), loaded (name and revision of a loaded model, else None),
        and inputs, a list of trees of the same form. Cached soft labels and answers count as models.

    Raises:
        UserError: the store has no such model.
        StoreError: the store does not answer.
    """
    return _node(store, find_model(store, model), above=())


def read_export_lineage(model: str) -> dict[str, Any] | None:
    """The lineage stored in an exported directory, which needs no store; None if ``model`` is not an export.

    Raises:
        UserError: a file of the export is missing or has changed.
    """
    directory = Path(model)
    if not (directory / "lineage.json").is_file():
        return None
    files = read_manifest(directory).get("files")
    if not isinstance(files, dict):
        raise UserError(f"the manifest.json of {directory} names no files; export the model again")
    check_digests(directory, files, "export the model again")
    return read_json(directory / "lineage.json", "export the model again")


def nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Iterate over a lineage tree: its root, then the nodes upstream of it."""
    yield node
    for upstream in node["inputs"]:
        yield from nodes(upstream)


def draw(node: dict[str, Any]) -> Tree:
    """The lineage as a tree for a terminal, with the model at the root and its data at the leaves."""
    return _draw(node, None)


def _node(store: Store, model_id: str, above: tuple[str, ...]) -> dict[str, Any]:
    logged = store.client.get_logged_model(model_id)
    run = store.client.get_run(logged.source_run_id)  # search_runs omits the model inputs
    own = {output.model_id for output in run.outputs.model_outputs} | {model_id, *above}
    return {
        "model": logged.name,
        "model_id": model_id,
        "sha256": logged.tags.get("sha256"),
        "run_id": run.info.run_id,
        "run": run.info.run_name,
        "stage": run.data.tags.get("stage"),
        "ratio": run.data.tags.get("ratio"),
        "variant": run.data.tags.get("variant"),
        "fingerprint": run.data.tags.get("fingerprint"),
        "commit": run.data.tags.get("mlflow.source.git.commit"),
        "loaded": {key: run.data.params.get(f"checkpoint.{key}") for key in ("name", "revision")}
        if "checkpoint.name" in run.data.params
        else None,
        "metrics": {key: value for key, value in sorted(run.data.metrics.items()) if "/" not in key},
        "datasets": [
            {
                "name": entry.dataset.name,
                "digest": entry.dataset.digest,
                "context": next((tag.value for tag in entry.tags if tag.key == "mlflow.data.context"), None),
                **_place(json.loads(entry.dataset.source)),
            }
            for entry in run.inputs.dataset_inputs
        ],
        # A model that is an output of its own run, or occurs further up in the tree, would make a cycle.
        "inputs": [
            _node(store, entry.model_id, (*above, model_id))
            for entry in run.inputs.model_inputs
            if entry.model_id not in own
        ],
    }


def _place(source: dict[str, Any]) -> dict[str, str | None]:
    """Source and revision of a data set, from the JSON of ``pipelines.tracking.data_source``."""
    return {"source": source.get("path") or source.get("uri"), "revision": source.get("revision")}


def find_model(store: Store, model: str) -> str:
    """The id of the model that ``model`` names.

    Args:
        model: as for ``read_lineage``.

    Raises:
        UserError: the store has no such model.
        StoreError: the store does not answer.
    """
    try:
        if match := re.fullmatch(r"models:/([^/@]+)(?:/(\d{1,9})|@([^/@]+))", model):  # a database stores 32 bits
            name, version, alias = match.groups()
            found = (
                store.client.get_model_version(name, version)
                if version
                else store.client.get_model_version_by_alias(name, alias)
            )
            return found.source.removeprefix("models:/")  # the open-source registry stores no model id
        if match := re.fullmatch(r"(?:models:/)?(m-[0-9a-f]{32})", model):
            return store.client.get_logged_model(match[1]).model_id
        if re.fullmatch(r"[0-9a-f]{32}", model):
            outputs = store.client.get_run(model).outputs.model_outputs
            if not outputs:
                raise UserError(f"run {model} made no model; name a teacher, init, label or distill run")
            return outputs[-1].model_id
    except StoreError as error:
        if error.code not in _NOT_THERE:
            raise
        raise UserError(f"MODEL {model!r} is not in the store: {error.cause}") from error
    return _of_directory(model)


def _of_directory(model: str) -> str:
    path = Path(unquote(model.removeprefix("file://")) if model.startswith("file://") else model)
    for record in (path / "lineage.json", path / "stage.json", path.parent / "stage.json"):
        if not record.is_file():
            continue
        values = read_json(record, "name the model by its run id, or recompute it")
        if isinstance(values, dict) and isinstance(found := values.get("model_id"), str):
            return found
        if isinstance(values, dict) and values.get("run_id") == "":
            raise UserError(
                f"MODEL {model!r} is not published to MLflow yet; run the command that made it again to publish it"
            )
    raise UserError(
        f"MODEL {model!r} is neither a run id, nor models:/NAME/VERSION or models:/NAME@ALIAS, "
        "nor the directory of a stage's model"
    )


def _revision(place: dict[str, Any]) -> str:
    return f"  revision {place['revision']}" if place.get("revision") else ""


def _draw(node: dict[str, Any], parent: Tree | None) -> Tree:
    quality = node["metrics"].get("quality")
    about = f"  run '{node['run']}' {node['run_id'][:8]}" if node["run_id"] else ""
    about += f"  quality {quality:.4f}" if quality is not None else ""
    label = Text.assemble((node["model"], "bold"), about)  # no markup: names of files may contain brackets
    tree = parent.add(label) if parent else Tree(label)
    if node["sha256"]:
        files = {"label": "labels ", "answer": "answers"}.get(node["stage"], "weights")
        tree.add(f"{files}  sha256 {node['sha256']}")
    if loaded := node["loaded"]:
        tree.add(Text(f"loaded   {loaded['name']}{_revision(loaded)}"))
    for dataset in node["datasets"]:
        line = f"data     {dataset['name']}  ({dataset['context']})  digest {dataset['digest']}"
        tree.add(Text(line + _revision(dataset)))
    for upstream in node["inputs"]:
        _draw(upstream, tree)
    return tree
