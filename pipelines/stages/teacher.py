"""Stage 1: train a Switch teacher on hard labels with a load-balancing loss, or load one; measure its quality."""

from collections.abc import Callable

import numpy as np
import torch
from transformers import SwitchTransformersForConditionalGeneration

from distill.errors import UserError
from distill.models.build import place
from distill.models.layerwise import Forward, by_batch
from distill.processes import is_main_process
from distill.training.divergence import TrainingDiverged
from distill.training.loop import shares_weights, train
from pipelines.reporting.plot import plot_routing
from pipelines.runner.measure import answer, measure, save_results, validation_quality
from pipelines.runner.stage_data import training_examples
from pipelines.runner.stage_run import Outcome, StageRun
from pipelines.workdir.teacher_files import open_finished_teacher, reference_facts
from teachers.build import build_teacher, count_undivided
from teachers.load import StoredTeacher, open_teacher, read_teacher
from teachers.routing import RoutingSummary, measure_routing
from teachers.save import save_teacher
from teachers.streaming import RunningTeacher, run_teacher
from teachers.train_module import HardLabelsAndLoadBalance


def compute(run: StageRun) -> Outcome:
    """Measure a teacher's quality. Save a trained teacher so that plain transformers can read it.

    A loaded teacher is not copied. The facts name its place, its revision and the SHA-256 of its files.

    Raises:
        UserError: the teacher's checkpoint cannot be loaded.
        TrainingDiverged: a loss is not finite, or the router of a trained teacher has collapsed.
    """
    stage, trains = run.stage, run.config.trains_teacher(run.ratio)
    source = _source(run)
    stored = open_teacher(source) if source else None
    shared = shares_weights(run.accelerator)
    forward: Forward = by_batch
    if stored and not trains:
        model, forward, *_ = _measured_form(run, stored, divided=run.config.distill.expert_parallel)
    else:
        model = _trainable(run, stored)
        # Of a model whose weights are shared, no device needs to hold more than a share.
        place(model, torch.device("cpu") if shared else run.accelerator.device)
    parameters = count_undivided(model)

    def measured() -> tuple[float, np.ndarray, RoutingSummary]:
        with measure_routing(model) as routing:
            quality, losses = measure(run, model, forward)
        return quality, losses, routing(run.accelerator)

    steps = _train_and_save(run, model, measured) if trains else 0
    if trains and shared:  # only the main process has the weights
        model, forward, *_ = _measured_form(run, open_teacher(str(run.directory / "model")), divided=True)
    quality, losses, routing = measured()
    if trains and (collapsed := routing.collapse()):
        raise TrainingDiverged(
            f"{stage.title} is not a sparse teacher: {collapsed}; raise teacher.load_balancing_weight or lower "
            "teacher.training.learning_rate"
        )
    save_results(run, losses, answer(run, model))
    if is_main_process():
        plot_routing(routing.layers, routing.load.numpy(), run.directory / "routing.png")
    facts = {"experts": model.config.num_experts, "parameters": parameters, "checkpoint": source, "steps": steps}
    if source and stored and not trains:
        facts |= reference_facts(source, stored)
    metrics = {
        "quality": quality,
        "parameters": parameters,
        "experts": model.config.num_experts,
        **routing.overall_metrics(),
    }
    return Outcome(metrics, facts)


def frozen_teacher(run: StageRun, *, divided: bool = False) -> RunningTeacher:
    """The frozen teacher of a later stage.

    Args:
        run: the stage.
        divided: whether the processes divide the experts among them, and run the teacher at the same time.

    Raises:
        UserError: its files are missing, damaged or not those that the teacher stage has read.
    """
    return run_frozen(run, open_finished_teacher(run.inputs["teacher"]), divided=divided)


def require_in_memory(run: StageRun, running: RunningTeacher) -> None:
    """Raise UserError if a teacher runs layer by layer: answers are generated token by token."""
    if running.streamed:
        raise UserError(f"teacher {run.ratio} does not fit into memory, so it cannot answer; raise teacher.memory")


def run_frozen(
    run: StageRun, stored: StoredTeacher, compute_dtype: torch.dtype | None = None, *, divided: bool = False
) -> RunningTeacher:
    """A teacher without gradients, which runs layer by layer if it does not fit into ``teacher.memory``.

    Args:
        run: the stage that needs it.
        stored: its files.
        compute_dtype: of its products; None: the precision of the run.
        divided: whether the processes divide the experts.

    Raises:
        UserError: the memory does not even suffice layer by layer.
    """
    precision = torch.bfloat16 if run.accelerator.mixed_precision == "bf16" else torch.float32
    lengths = run.data.lengths(run.config.data)
    running = run_teacher(
        stored,
        run.config.teacher,
        compute_dtype=compute_dtype or precision,
        device=run.accelerator.device,
        lengths=(int(lengths.inputs), int(lengths.targets)),
        directory=run.directory,
        process=run.accelerator.process_index if divided else 0,
        processes=run.accelerator.num_processes if divided else 1,
    )
    if running.sentence:
        run.workspace.say(f"{run.stage.title:<16} {running.sentence}")
    return running


def _train_and_save(
    run: StageRun,
    model: SwitchTransformersForConditionalGeneration,
    measured: Callable[[], tuple[float, np.ndarray, RoutingSummary]],
) -> int:
    """Train ``model``, whose quality ``measured`` gives during the training; returns the number of steps."""
    settings = run.config.teacher

    def curves() -> dict[str, float]:
        quality, _, routing = measured()
        if collapsed := routing.collapse():
            raise TrainingDiverged(f"{collapsed} (or raise teacher.load_balancing_weight)")
        return {"eval/quality": quality, **routing.layer_metrics()}

    steps = train(
        HardLabelsAndLoadBalance(model, load_balancing_weight=settings.load_balancing_weight),
        training_examples(run.data, run.config.data, seed=run.seed, batch_size=settings.training.batch_size),
        settings.training,
        accelerator=run.accelerator,
        directory=run.directory / "checkpoints",
        seed=run.seed,
        gather_in_main=True,
        hooks=run.hooks(curves, lambda: validation_quality(run, model)),
    )
    if is_main_process():
        save_teacher(model, run.directory / "model", run.data.tokenizer)
    run.accelerator.wait_for_everyone()
    return steps


def _measured_form(run: StageRun, stored: StoredTeacher, *, divided: bool) -> RunningTeacher:
    """A teacher of which only the measurement is left. Answers need all experts in each process.

    Raises:
        UserError: it has to answer, or the memory does not even suffice layer by layer.
    """
    answers = run.config.task is not None
    running = run_frozen(run, stored, divided=divided and not answers)
    if answers:
        require_in_memory(run, running)
    return running


def _source(run: StageRun) -> str | None:
    """The directory or hub name of a loaded or pre-trained teacher; None if the teacher starts from scratch."""
    pretrained = run.inputs.get("pretrained")
    return str(pretrained.read("model")) if pretrained else run.config.teacher.checkpoints.get(run.ratio)


def _trainable(run: StageRun, stored: StoredTeacher | None) -> SwitchTransformersForConditionalGeneration:
    """The teacher that training begins from, in float32; with its share of the experts, if the processes share it."""
    config, special_tokens = run.config, run.data.special_tokens
    share = {}
    if shares_weights(run.accelerator):
        share = {"process": run.accelerator.process_index, "processes": run.accelerator.num_processes}
    if stored:
        return read_teacher(stored, config.teacher, compute_dtype=torch.float32, **share).float().train()
    return build_teacher(
        config.model,
        config.teacher,
        run.data.vocab_size,
        config.teacher.ratios[run.ratio],
        pad=special_tokens.pad,
        eos=special_tokens.eos,
        seed=run.seed,
        **share,
    )
