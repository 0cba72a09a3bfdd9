"""The models of a server: they load in turn, and are found by their names."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from students.runtime import Runner
from students.serving.batching import Batcher
from students.serving.limits import Limits
from students.serving.metrics import Metrics
from students.serving.schema import RequestError

WARM_UP = "Thank you <extra_id_0> me to your party"


@dataclass
class Model:
    """A model that the server offers: the student, or its teacher to compare with."""

    name: str
    load: Callable[[], Runner]
    limits: Limits = field(default_factory=Limits)
    role: str = "student"
    max_tokens: int = 64  # of an answer, where a request does not say
    created: int = field(default_factory=lambda: int(time.time()))  # seconds since 1970
    batcher: Batcher | None = None  # once it answers

    @property
    def runner(self) -> Runner:
        assert self.batcher is not None
        return self.batcher.runner

    def facts(self) -> dict[str, Any]:
        """As /v1/models lists it."""
        facts = {"id": self.name, "object": "model", "created": self.created, "owned_by": "switch-distill"}
        facts |= {"role": self.role, "max_tokens": self.max_tokens, "ready": self.batcher is not None}
        if self.batcher is not None:
            facts |= {"format": self.runner.format, "compute_type": self.runner.compute_type}
        return facts


def find(models: list[Model], name: str) -> Model:
    """The model of that name.

    Raises:
        RequestError: there is none.
    """
    for model in models:
        if model.name == name:
            return model
    known = ", ".join(model.name for model in models)
    raise RequestError(404, f"there is no model {name[:100]!r}; this server has {known}", code="model_not_found")


async def load_and_run(
    models: list[Model], metrics: Metrics, on_ready: Callable[[], None], on_failure: Callable[[Exception], None]
) -> None:
    """Load ``models``, tell ``on_ready``, and answer what their batchers are asked, until cancelled."""
    # One thread for all: a runtime uses all cores that it is given, and torch's generator is one for the process.
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
