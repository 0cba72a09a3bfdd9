"""Stage 1: train a Switch teacher on hard labels with a load-balancing loss, or load one; measure its quality."""

import numpy as np
import torch
from transformers import SwitchTransformersForConditionalGeneration

from distill.data.examples import Examples
from distill.evaluation import evaluate
from distill.models.build import count_parameters, freeze, place
from distill.processes import is_main_process
from distill.training.divergence import TrainingDiverged
from distill.training.loop import train
from pipelines.reporting.plot import plot_routing
from pipelines.runner.stage_run import Outcome, StageRun
from teachers.build import build_teacher, switch_layers
from teachers.load import load_teacher
from teachers.routing import RoutingSummary, measure_routing
from teachers.save import save_teacher
from teachers.train_module import HardLabelsAndLoadBalance


def compute(run: StageRun) -> Outcome:
    """Save a teacher that plain transformers can read, and the loss of every evaluated example.

    Raises:
        UserError: the teacher's checkpoint cannot be loaded.
        TrainingDiverged: a loss is not finite, or the router of a trained teacher has collapsed.
    """
    settings, stage = run.config.teacher, run.stage
    held_out = Examples(run.data, run.config.data, seed=None)
    source = settings.checkpoints.get(run.ratio)
    model = place(load_teacher(source, settings) if source else _build(run), run.accelerator.device)

    def measure() -> tuple[float, np.ndarray, RoutingSummary]:
        with measure_routing(model) as routing:
            batch_size = settings.evaluation_batch_size
            quality, losses = evaluate(model, held_out, batch_size=batch_size, accelerator=run.accelerator)
        return quality, losses, routing(run.accelerator)

    def curves() -> dict[str, float]:
        quality, _, routing = measure()
        if collapsed := routing.collapse():
            raise TrainingDiverged(f"{collapsed} (or raise teacher.load_balancing_weight)")
        return {"eval/quality": quality, **routing.layer_metrics()}

    if not source:
        train(
            HardLabelsAndLoadBalance(model, load_balancing_weight=settings.load_balancing_weight),
            Examples(run.data, run.config.data, seed=run.seed),
            settings.training,
            accelerator=run.accelerator,
            directory=run.directory / "checkpoints",
            seed=run.seed,
            hooks=run.hooks(curves),
        )
    quality, losses, routing = measure()
    if not source and (collapsed := routing.collapse()):
        raise TrainingDiverged(
            f"{stage.title} is not a sparse teacher: {collapsed}; raise teacher.load_balancing_weight or lower "
            "teacher.training.learning_rate"
        )
    run.save_losses(losses)
    if is_main_process():
        plot_routing(routing.layers, routing.load.numpy(), run.directory / "routing.png")
        save_teacher(model, run.directory / "model", run.data.tokenizer)
    run.accelerator.wait_for_everyone()
    parameters = count_parameters(model)
    facts = {"experts": model.config.num_experts, "parameters": parameters, "checkpoint": source}
    metrics = {
        "quality": quality,
        "parameters": parameters,
        "experts": model.config.num_experts,
        **routing.overall_metrics(),
    }
    return Outcome(metrics, facts)


def frozen_teacher(run: StageRun) -> SwitchTransformersForConditionalGeneration:
    """The frozen teacher of a later stage, with matrices in the precision of the run and ``distill.teacher_routing``.

    Raises:
        UserError: its files are missing or damaged.
    """
    model = load_teacher(run.inputs["teacher"].read("model"), run.config.teacher)
    for _, layer in switch_layers(model):
        layer.mlp.routing = run.config.distill.teacher_routing
        layer.mlp.num_sampled_experts = run.config.distill.num_sampled_experts
    precision = torch.bfloat16 if run.accelerator.mixed_precision == "bf16" else torch.float32
    return place(freeze(model, precision), run.accelerator.device)


def _build(run: StageRun) -> SwitchTransformersForConditionalGeneration:
    config, special_tokens = run.config, run.data.special_tokens
    experts = config.teacher.ratios[run.ratio]
    return build_teacher(
        config.model,
        config.teacher,
        run.data.vocab_size,
        experts,
        pad=special_tokens.pad,
        eos=special_tokens.eos,
        seed=run.seed,
    )
