"""From a stage's directory to MLflow.

All that a stage makes is on disk first. What a store that is away does not take, a later stage delivers, or the end of
the command, or the same command given again.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from distill.disk import is_full
from distill.errors import ExpectedError
from pipelines.data_source import mlflow_source
from pipelines.registry import log_comparison
from pipelines.stage import Finished, Stage, find_finished
from pipelines.store_uri import EXPERIMENT, StoreError, cause_of, label
from pipelines.tracking import COLOURS, TrackedRun, describe_run
from pipelines.view import publish_view

if TYPE_CHECKING:
    from pipelines.run import Pipeline

# Files that are artifacts of the stage's run, and directories that are a model: MLflow follows lineage through models
# alone, so soft labels count as one there.
_ARTIFACTS = ("*losses.json", "routing.png", "labels/labels.json", "report.*", "documents.json", "fraction_kept.png")
_MODELS = ("model", "labels")


class Undelivered(ExpectedError, RuntimeError):
    """Stages are finished, but MLflow has not got them. The message says which, why, and what delivers them."""


@contextlib.contextmanager
def going_on(pipeline: "Pipeline") -> Iterator[None]:
    """Go on after the block where the store took no more; ``pipeline.away`` is why."""
    try:
        yield
    except StoreError as error:
        if is_full(error):
            raise
        if not pipeline.away:
            pipeline.say(f"MLflow takes nothing at present, what is computed waits on disk: {error.cause}")
        pipeline.away = error.cause


def check_delivered(pipeline: "Pipeline", finished: list[Finished], command: str) -> None:
    """Whether MLflow has got all of ``finished``; a process that computes a part of another's leaves that to it.

    Raises:
        Undelivered: it has not. ``command`` makes up for it.
    """
    if EXPERIMENT in os.environ or all(one.is_tracked for one in finished):
        return
    known = [found for stage in pipeline.stages if (found := find_finished(stage, pipeline.workdir))]
    titles = ", ".join(one.title for one in known if not one.is_tracked)
    raise Undelivered(
        f"MLflow ({label()}) has not got {titles}: {pipeline.away}; weights, losses and curves are kept in "
        f"{pipeline.workdir / 'stages'}. When it is back, this delivers them and trains nothing again: {command}"
    )


def begin(pipeline: "Pipeline", stage: Stage) -> TrackedRun:
    """Start or go on with the MLflow run of ``stage``, once the stages that it reads are there.

    Raises:
        StoreError: the store is away; what there is to say of the run is kept in the stage's directory.
    """
    config, data = pipeline.config, pipeline.data
    directory = stage.directory(pipeline.workdir)
    tags = _tags(pipeline, stage)
    if not find_finished(stage, pipeline.workdir):  # one that is finished was not computed here
        describe_run(directory, tags)
    for upstream in stage.inputs.values():
        deliver(pipeline, upstream)
    tracked = TrackedRun(pipeline.store, directory, stage.title)
    tracked.log_params({**{key: tags[key] for key in ("ratio", "variant") if key in tags}, **stage.settings})
    tracked.log_file(directory / "config.yaml")
    source = mlflow_source(data.name, data.revision, Path(data.directory))
    if stage.kind not in ("init", "report") or (stage.kind == "init" and config.student.is_calibrated):
        profile = {**asdict(data.parts["train"]), **data.lost, "most_lost": data.round_trip.most_lost}
        tracked.log_data(data.name, data.digest, "train", source, profile)
    if stage.kind not in ("init", "label"):
        split = config.data.eval_split
        held_out = data.parts[split]
        tracked.log_data(f"{data.name}-{split}", held_out.digest, split, source, asdict(held_out))
    models = {role: pipeline.finished(upstream).model_id for role, upstream in stage.inputs.items()}
    tracked.log_model_inputs({role: model_id for role, model_id in models.items() if model_id})
    return tracked


def deliver(pipeline: "Pipeline", stage: Stage) -> None:
    """Bring the finished ``stage`` to MLflow, and those that it reads, as far as they are not there.

    Raises:
        StoreError: it is away.
    """
    if pipeline.finished(stage).is_tracked:
        return
    with pipeline.turn(stage):
        if not pipeline.finished(stage).is_tracked:  # whoever was waited for did it
            deliver_own(pipeline, stage)


def deliver_own(pipeline: "Pipeline", stage: Stage, tracked: TrackedRun | None = None) -> None:
    """``deliver`` for the process whose turn at ``stage`` it is, with the run if it has begun."""
    found, late = pipeline.finished(stage), tracked is None
    tracked = tracked or begin(pipeline, stage)
    for path in sorted(path for pattern in _ARTIFACTS for path in found.directory.glob(pattern)):
        tracked.log_file(path)
    if model := next((one for name in _MODELS if (one := found.directory / name).is_dir()), None):
        if late:  # else it was written just now
            found.read(model.name)
        found = _deliver_model(pipeline, stage, model, found, tracked)
    own = {name: value for name, value in found.metrics.items() if name not in found.not_of_model}
    tracked.log_results(own, model_id=found.model_id)
    tracked.log_results({name: found.metrics[name] for name in found.not_of_model})
    if stage.kind == "label":
        tracked.log_params({"sha256": found.facts["sha256"]})
    if stage.kind == "report":
        _deliver_report(pipeline, stage, found, tracked)
    tracked.close("FINISHED")
    replace(found, run_id=tracked.run_id).save()  # from now on MLflow has all of it
    pipeline.away = None
    if late:
        pipeline.say(f"{stage.title:<16} delivered to MLflow  (run {tracked.run_id[:8]})")


def _deliver_model(
    pipeline: "Pipeline", stage: Stage, directory: Path, found: Finished, tracked: TrackedRun
) -> Finished:
    """Log the model in ``directory``, upload and register a student; returns ``found`` with the model's id and URI."""
    made = {"distill": "student", "label": "labels"}.get(stage.kind, stage.kind)
    name = "-".join(filter(None, (made, stage.ratio, stage.variant)))
    facts = {"ratio": stage.ratio, "seed": stage.seed, "fingerprint": stage.fingerprint}
    student, form = made == "student", "soft-labels" if made == "labels" else "seq2seq"
    model_id, uri = tracked.log_model_output(name, directory, facts, upload=student, form=form)
    if student:
        registered = f"{pipeline.config.name}-{name}"
        uri = f"models:/{registered}/{tracked.register(model_id, registered, facts)}"
    return replace(found, model_id=model_id, model_uri=uri)


def _deliver_report(pipeline: "Pipeline", stage: Stage, found: Finished, tracked: TrackedRun) -> None:
    inputs = {role: pipeline.finished(upstream) for role, upstream in stage.inputs.items()}
    report = json.loads(found.read("report.json").read_text())
    log_comparison(tracked, report, stage, inputs)
    config = pipeline.config
    differing = {"variant": config.variants, "ratio": config.teacher.ratios, "seed": config.seeds}
    coordinates = [name for name, values in differing.items() if len(values) > 1]
    try:
        publish_view(pipeline.store, config.name, stage.fingerprint[:12], coordinates)
    except Exception as error:  # the view is in the UI's own format, which a server may refuse
        pipeline.say(f"The comparison could not be saved as a view of the MLflow UI: {cause_of(error)}")


def _tags(pipeline: "Pipeline", stage: Stage) -> dict[str, str]:
    from distill.machine import machine_facts  # with torch, which is there where a stage is computed

    config, data = pipeline.config, pipeline.data
    tags = {
        "pipeline": config.name,
        "stage": stage.kind,
        "fingerprint": stage.fingerprint,
        "data.digest": data.digest,
        **{f"data.{name}": commit for name in ("revision", "tokenizer_revision") if (commit := getattr(data, name))},
        "mlflow.source.name": f"switch-distill {stage.kind} {config.name}",
        **machine_facts(pipeline.accelerator),
    }
    if stage.ratio:
        number = list(config.teacher.ratios).index(stage.ratio)
        tags |= {"ratio": stage.ratio, "mlflow.runColor": COLOURS[number % len(COLOURS)]}
    return tags | {
        key: str(value) for key, value in vars(stage).items() if key in ("seed", "variant") and value is not None
    }
