"""Stage 1: train a Switch teacher on hard labels and load balance, or load one; measure its quality."""

import numpy as np
import torch
from transformers import SwitchTransformersForConditionalGeneration

from distill.data.examples import Examples
from distill.errors import UserError
from distill.evaluation import evaluate
from distill.models.build import count_parameters, freeze, place
from distill.training.divergence import TrainingDiverged
from distill.training.loop import train
from pipelines.reporting.plot import plot_routing
from pipelines.runner.stage_run import Outcome, StageRun
from teachers.model import build_teacher, load_teacher, save_teacher, switch_layers
from teachers.routing import MeasuredRouting, measured_routing
from teachers.train_module import HardLabelsAndLoadBalance


def compute(run: StageRun) -> Outcome:
    """A saved teacher that plain transformers reads, and the loss of every test example."""
    settings, stage = run.config.teacher, run.stage
    held_out = Examples(run.data, run.config.data, seed=None)
    source = settings.checkpoints.get(stage.ratio)
    model = place(_load(run, source) if source else _build(run), run.accelerator.device)

    def measure() -> tuple[float, np.ndarray, MeasuredRouting]:
        with measured_routing(model) as routing:
            batch_size = settings.evaluation_batch_size
            quality, losses = evaluate(model, held_out, batch_size=batch_size, accelerator=run.accelerator)
        return quality, losses, routing(run.accelerator)

    def curves() -> dict[str, float]:
        quality, _, routing = measure()
        if collapsed := routing.collapsed():
            raise TrainingDiverged(f"{collapsed} (or raise teacher.load_balancing_weight)")
        return {"eval/quality": quality, **routing.curves()}

    if not source:
        train(
            HardLabelsAndLoadBalance(model, load_balancing_weight=settings.load_balancing_weight),
            Examples(run.data, run.config.data, seed=stage.seed),
            settings.training,
            accelerator=run.accelerator,
            directory=run.directory / "checkpoints",
            seed=stage.seed,
            hooks=run.hooks(curves),
        )
    quality, losses, routing = measure()
    if not source and (collapsed := routing.collapsed()):
        raise TrainingDiverged(
            f"{stage.title} is no sparse teacher: {collapsed}; raise teacher.load_balancing_weight or lower "
            "teacher.training.learning_rate"
        )
    run.save_losses(losses)
    if run.is_main_process:
        plot_routing(routing.layers, routing.load.numpy(), run.directory / "routing.png")
        save_teacher(model, run.directory / "model", run.data.tokenizer)
    run.accelerator.wait_for_everyone()
    parameters = count_parameters(model)
    facts = {"experts": model.config.num_experts, "parameters": parameters, "checkpoint": source}
    metrics = {
        "quality": quality,
        "parameters": parameters,
        "experts": model.config.num_experts,
        **routing.headlines(),
    }
    return Outcome(metrics, facts)


def frozen_teacher(run: StageRun) -> SwitchTransformersForConditionalGeneration:
    """The teacher of a later stage, which only reads it: matrices in the precision of the run, its own routing."""
    model = load_teacher(run.inputs["teacher"].read("model"), run.config.teacher)
    for _, layer in switch_layers(model):
        layer.mlp.routing, layer.mlp.draws = run.config.distill.teacher_routing, run.config.distill.draws
    precision = torch.bfloat16 if run.accelerator.mixed_precision == "bf16" else torch.float32
    return place(freeze(model, precision), run.accelerator.device)


def _build(run: StageRun) -> SwitchTransformersForConditionalGeneration:
    config, words = run.config, run.data.words
    experts = config.teacher.ratios[run.stage.ratio]
    return build_teacher(
        config.model, config.teacher, run.data.vocab_size, experts, pad=words.pad, eos=words.eos, seed=run.stage.seed
    )


def _load(run: StageRun, source: str) -> SwitchTransformersForConditionalGeneration:
    model = load_teacher(source, run.config.teacher)
    if f"e{model.config.num_experts}" != run.stage.ratio:
        raise UserError(
            f"teacher.checkpoints.{run.stage.ratio} {source!r} has {model.config.num_experts} experts; "
            f"name it e{model.config.num_experts}"
        )
    if model.config.vocab_size < run.data.words.size:
        raise UserError(
            f"teacher {source!r} has {model.config.vocab_size} words, the tokenizer {run.data.words.size}; "
            "set data.tokenizer to the teacher's own"
        )
    return model
