"""The models of a server, and how they are loaded."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from distill.tasks.template import columns_of
from students.runtime import Runner
from students.serving.batching import Batcher
from students.serving.limits import Limits
from students.serving.metrics import Metrics
from students.serving.schema import RequestError

WARM_UP = "Thank you <extra_id_0> me to your party"


@dataclass
class Model:
    """A model of the server: the student, or its teacher for comparison."""

    name: str
    load: Callable[[], Runner]
    limits: Limits = field(default_factory=Limits)
    role: str = "student"
    max_tokens: int = 64  # of an answer, if the request has no max_tokens
    template: str | None = None  # of the inputs of the task
    created: int = field(default_factory=lambda: int(time.time()))  # seconds since 1970
    batcher: Batcher | None = None  # None until the model is loaded

    @property
    def runner(self) -> Runner:
        """The runner of a loaded model."""
        assert self.batcher is not None
        return self.batcher.runner

    def describe(self) -> dict[str, Any]:
        """The entry of the model in /v1/models."""
        fields = {"id": self.name, "object": "model", "created": self.created, "owned_by": "switch-distill"}
        fields |= {"role": self.role, "max_tokens": self.max_tokens, "ready": self.batcher is not None}
        if self.template is not None:
            fields |= {"template": self.template, "columns": list(dict.fromkeys(columns_of(self.template)))}
        if self.batcher is not None:
            fields |= {"format": self.runner.format, "compute_type": self.runner.compute_type}
        return fields


def find_model(models: list[Model], name: str) -> Model:
    """The model called ``name``.

    Raises:
        RequestError: there is no such model (404).
    """
    for model in models:
        if model.name == name:
            return model
    known = ", ".join(model.name for model in models)
    raise RequestError(404, f"there is no model {name[:100]!r}; this server has {known}", code="model_not_found")


async def load_and_run(
    models: list[Model], metrics: Metrics, on_ready: Callable[[], None], on_failure: Callable[[Exception], None]
) -> None:
    """Load ``models`` one after another, call ``on_ready``, and compute their batches until cancelled.

    Args:
        on_ready: called when all models are loaded.
        on_failure: called with the error of a model that cannot be loaded.
    """
    # All models share one thread: a runtime uses all its cores, and torch's generator is global to the process.
    running, worker = [], ThreadPoolExecutor(1, thread_name_prefix="model")
    try:
        for model in models:
            runner = await asyncio.to_thread(_load, model)
            model.batcher = Batcher(runner, model.limits, worker, metrics.batch_size.labels(model.name).observe)
            running.append(asyncio.create_task(model.batcher.run()))
        on_ready()
        await asyncio.gather(*running)
    except Exception as error:
        on_failure(error)


def _load(model: Model) -> Runner:
    runner = model.load()
    runner.tokenizer.no_truncation()
    runner.tokenizer.no_padding()
    runner.generate([runner.tokenizer.encode(WARM_UP).ids], [4])
    return runner
