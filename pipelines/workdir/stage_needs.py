"""Memory and disk that the stages need for a loaded teacher, from its headers and the settings of a config.

Imports torch only where there may be a GPU.
"""

import shutil
from pathlib import Path
from typing import Any

from distill.io.memory import memory_limit
from distill.model_size import forward_flops
from distill.processes import num_processes
from distill.span_corruption import raw_length_for, span_lengths
from distill.training.memory import training_bytes
from distill.training.precision import Precision, may_have_gpu, resolve_precision
from pipelines.config.run_config import RunConfig
from pipelines.workdir.disk_budget import BASELINE_LENGTHS, checkpoints_bytes, label_bytes, model_bytes
from pipelines.workdir.inspection import Inspected
from teachers.layout import LAYERS
from teachers.needs import BatchShape, Needs, needs_of

IN_MEMORY, BY_LAYER, NOT_HERE = "in memory", "layer by layer", "not here"


def machine(config: RunConfig, workdir: Path) -> dict[str, Any]:
    """The precision, memory and free disk space of this machine. Sizes are in bytes."""
    device, memory = _device_and_memory()
    existing = next(parent for parent in (workdir.absolute(), *workdir.absolute().parents) if parent.exists())
    return {
        "precision": resolve_precision(config.precision),
        "device": device,
        "memory": memory,
        "free_disk": shutil.disk_usage(existing).free,
    }


def stage_needs(model: Inspected, config: RunConfig, precision: Precision, memory: int) -> dict[str, Any]:
    """The needs of each stage with this model as the teacher, in bytes, without Python and its libraries.

    Args:
        model: the teacher.
        config: the settings.
        precision: of the matrix products.
        memory: bytes for a model; see ``teachers.memory.limit_of``.

    Returns:
        By stage: ``memory``; ``runs``, one of ``IN_MEMORY``, ``BY_LAYER`` (then ``memory`` is what this needs) and
        ``NOT_HERE``; ``in_memory`` and ``by_layer``, the memory for both ways to run the teacher; ``work_directory``;
        ``fetch``, the download of a teacher on the hub, which later stages do not repeat.
    """
    training, shape = config.distill.training, model.header.shape
    parameters = model.parameters()["student"]
    inputs, targets = example_lengths(config)
    per_pass = training.examples_per_pass(1)
    sizes = {"examples": per_pass, "inputs": inputs, "targets": targets}
    trained = training_bytes(shape, parameters, training, precision, **sizes)

    def teacher(examples: int) -> Needs:
        batch = BatchShape(examples, inputs, targets)
        return needs_of(model.layout, model.tensors, config.teacher, precision, batch, tied=model.tied)

    needs = teacher(config.teacher.evaluation_batch_size)
    inference = _choose(needs.whole, needs.by_layer, memory)
    beside = teacher(per_pass).divided(num_processes() if config.distill.expert_parallel else 1)
    online = _choose(trained + beside.whole, None, memory)
    alone = _choose(trained, None, memory)
    # transformers makes a head of its own before it ties it, and tensors are converted: two copies of the largest one.
    init = _choose(4 * parameters + 8 * model.header.vocab_size * int(shape["d_model"]), None, memory)
    disk = {
        kind: checkpoints_bytes(training, parameters, number) + model_bytes(kind, parameters)
        for kind, number in (("distill", 1), ("baseline", BASELINE_LENGTHS))
    }
    label_disk = label_bytes(config.distill, targets, model.header.vocab_size)
    return {
        "teacher": {**inference, "work_directory": 0, "fetch": model.bytes if model.remote else 0},
        "init": {**init, "work_directory": model_bytes("init", parameters), "fetch": 0},
        "label": {**inference, "work_directory": label_disk, "fetch": 0},
        "distill": {**online, "work_directory": disk["distill"], "fetch": 0},
        "distill, cached labels": {**alone, "work_directory": disk["distill"], "fetch": 0},
        "baseline": {**alone, "work_directory": disk["baseline"], "fetch": 0},
    }


def operations(model: Inspected, config: RunConfig) -> dict[str, float]:
    """Floating-point operations of a forward pass of teacher and student for one example."""
    sizes, layout = example_lengths(config), model.layout
    sparse = {f"num_sparse_{stack}_layers": len(layout.sparse[stack]) for stack in LAYERS}
    shape = {**model.header.shape, "is_gated_act": layout.gated}
    teacher = {**shape, **sparse, "num_experts": layout.sizes["num_experts"]}
    return {"teacher": forward_flops(teacher, *sizes), "student": forward_flops(shape, *sizes)}


def example_lengths(config: RunConfig) -> tuple[int, int]:
    """The largest numbers of input and target tokens of an example, after span corruption or of the task."""
    if config.task:
        return config.task.max_input, config.task.max_target
    shape = {"noise_density": config.data.noise_density, "mean_span_length": config.data.mean_span_length}
    spans = span_lengths(raw_length_for(config.data.input_length, **shape), **shape)
    return spans.inputs, spans.targets


def _device_and_memory() -> tuple[str, int]:
    if may_have_gpu():
        import torch

        from teachers.memory import limit_of

        if torch.cuda.is_available():
            return "cuda", limit_of(None, torch.device("cuda"))
    return "cpu", memory_limit()


def _choose(in_memory: int, by_layer: int | None, memory: int) -> dict[str, Any]:
    """How a stage runs with this much memory, and what it then needs."""
    runs, needed = IN_MEMORY, in_memory
    if in_memory > memory:
        runs, needed = (BY_LAYER, by_layer) if by_layer is not None and by_layer <= memory else (NOT_HERE, in_memory)
    return {"memory": needed, "runs": runs, "in_memory": in_memory, "by_layer": by_layer}
