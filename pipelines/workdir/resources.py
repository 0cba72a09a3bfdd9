"""What a planned stage takes of a machine: CPUs, a GPU, and the memory that ``switch-distill inspect`` estimates.

Imports no torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from rich.filesize import decimal

from distill.errors import UserError
from distill.model_size import num_parameters
from distill.training.memory import training_bytes
from distill.training.precision import resolve_precision
from pipelines.workdir.disk_budget import built_model
from pipelines.workdir.inspection import inspect_model
from pipelines.workdir.plan import training_of
from pipelines.workdir.stage import Stage
from pipelines.workdir.stage_needs import stage_needs
from pipelines.workdir.workspace import Workspace

PYTHON = 500_000_000  # bytes of Python and its libraries, which the estimates do not include


@dataclass(frozen=True)
class Slots:
    """The usable nodes of a cluster, and what a stage takes of one."""

    nodes: list[Mapping[str, float]]  # resource -> amount
    cpus: int
    gpus: int

    @classmethod
    def of(cls, nodes: list[Mapping[str, float]], jobs: int) -> "Slots":
        """Divide each node into ``jobs`` stages, or into as many as it has GPUs. Beside GPUs, other nodes stay idle.

        Raises:
            UserError: no node has a CPU.
        """
        gpus = int(any(node.get("GPU", 0) >= 1 for node in nodes))
        usable = [node for node in nodes if node.get("CPU", 0) >= 1 and node.get("GPU", 0) >= gpus]
        if not usable:
            raise UserError("no node of the Ray cluster has a CPU for tasks; add one with: ray start --address ADDRESS")
        cpus = min(node["CPU"] // max(jobs, node.get("GPU", 0)) for node in usable)
        return cls(usable, max(int(cpus), 1), gpus)

    @property
    def memory(self) -> int:
        """Bytes of the largest node."""
        return int(max(node.get("memory", 0) for node in self.nodes))

    def options(self, workspace: Workspace, stage: Stage) -> dict[str, Any]:
        """The resources of a stage, as Ray names them. With a GPU, the estimate is of the GPU's memory.

        Raises:
            UserError: no node has the memory.
        """
        options = {"num_cpus": self.cpus, "num_gpus": self.gpus}
        if self.gpus:
            return options
        memory = memory_bytes(workspace, stage, self.memory)
        if memory > self.memory:
            raise UserError(
                f"{stage.title} needs about {decimal(memory)} of memory, but the largest node of the Ray cluster has "
                f"{decimal(self.memory)}; add a larger one"
            )
        return {**options, "memory": memory}

    def number(self, options: Mapping[str, Any]) -> int:
        """How many tasks with these options run at a time."""
        needs = {"CPU": options["num_cpus"], "GPU": options["num_gpus"], "memory": options.get("memory", 0)}
        return sum(int(min(node.get(name, 0) // need for name, need in needs.items() if need)) for node in self.nodes)


def memory_bytes(workspace: Workspace, stage: Stage, limit: int) -> int:
    """An estimate of the bytes that ``stage`` needs with its models in memory, or layer by layer above ``limit``.

    Args:
        workspace: of the stage.
        stage: one of its stages.
        limit: bytes of the machine; a loaded teacher that needs more runs layer by layer.
    """
    config = workspace.config.of_variant(stage.variant)
    loaded = [*([stage.ratio] if stage.ratio else config.teacher.ratios)]
    sources = [source for ratio in loaded if (source := config.teacher.checkpoints.get(ratio))]
    trained = _training_bytes(workspace, stage)
    if not sources:
        return PYTHON + trained + _built_teacher(workspace, stage)
    cached = stage.kind == "distill" and "label" in stage.inputs
    rows = {"answer": "label", "distill": "distill, cached labels" if cached else "distill"}
    row = rows.get(stage.kind, stage.command)
    needs = stage_needs(_inspected(sources[0]), config, resolve_precision(config.precision), limit - PYTHON)
    own = trained if stage.kind == "teacher" else 0  # the row has the memory of a teacher that is not trained
    return int(PYTHON + max(needs[row]["memory"], own))


_inspected = lru_cache(maxsize=64)(inspect_model)


def _training_bytes(workspace: Workspace, stage: Stage) -> int:
    """Bytes to train the model of a stage that is built from ``model``; 0 if it trains none."""
    config, training = workspace.config, training_of(workspace.config, stage)
    if training is None:
        return 0
    shape, parameters = built_model(config, stage, workspace.data.vocab_size)
    lengths = workspace.data.lengths(config.data)
    return training_bytes(
        shape,
        parameters,
        training,
        resolve_precision(config.precision),
        examples=training.examples_per_pass(1),
        inputs=int(lengths.inputs),
        targets=int(lengths.targets),
    )


def _built_teacher(workspace: Workspace, stage: Stage) -> int:
    """Bytes of the weights of a teacher that was trained by this run and that a later stage reads, in float32."""
    if not stage.ratio or "teacher" not in stage.inputs:
        return 0
    experts = workspace.config.teacher.ratios[stage.ratio]
    return 4 * num_parameters(workspace.config.model, workspace.data.vocab_size, experts)
