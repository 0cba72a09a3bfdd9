"""Dynamic batching: prompts that wait at the same time form a batch, which one worker thread computes."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from students.runtime import GREEDY, Decoding, OnToken, Runner
from students.serving.answers import Answer
from students.serving.limits import Limits


class QueueFull(Exception):
    """The queue has no room for the prompts of a request."""


@dataclass(eq=False)
class _Job:
    """A waiting prompt. Prompts with equal ``batch_key`` may share a batch."""

    ids: list[int]
    max_tokens: int
    decoding: Decoding
    batch_key: object
    result: asyncio.Future[list[int]]
    listener: Answer | None


class Batcher:
    """The queue and the batches of one model.

    A batch holds prompts with the same decoding. Prompts with a seed share a batch only with those of their request.
    """

    def __init__(self, runner: Runner, limits: Limits, worker: ThreadPoolExecutor, on_batch: Callable[[int], None]):
        """Make a batcher; ``run`` computes its batches.

        Args:
            worker: an executor with one thread.
            on_batch: called with the size of each computed batch.
        """
        self.runner, self.limits, self._worker, self._on_batch = runner, limits, worker, on_batch
        self._queue: deque[_Job] = deque()
        self._arrived = asyncio.Event()

    @property
    def waiting(self) -> int:
        """The number of prompts in the queue."""
        return len(self._queue)

    async def generate(
        self,
        inputs: list[list[int]],
        max_tokens: int,
        decoding: Decoding = GREEDY,
        listeners: Sequence[Answer] | None = None,
    ) -> list[list[int]]:
        """Queue ``inputs`` and wait for their answers. If the caller is cancelled, waiting inputs are not computed.

        Args:
            inputs: token ids of each input, ``</s>`` included.
            max_tokens: the largest number of tokens of each answer.
            decoding: how tokens are chosen.
            listeners: one for each input. The worker thread gives it each token of the answer as it is generated, and
                it may end the answer.

        Returns:
            The token ids of each answer, in the order of ``inputs``.

        Raises:
            QueueFull: there is no room for all of ``inputs``.
        """
        if len(self._queue) + len(inputs) > self.limits.max_queue:
            raise QueueFull(f"{self.waiting} prompts are waiting already; try again later")
        loop = asyncio.get_running_loop()
        batch_key = decoding if decoding.seed is None else object()
        each: Sequence[Answer | None] = listeners or [None] * len(inputs)
        jobs = [
            _Job(ids, max_tokens, decoding, batch_key, loop.create_future(), listener)
            for ids, listener in zip(inputs, each, strict=True)
        ]
        self._queue.extend(jobs)
        self._arrived.set()
        try:
            return list(await asyncio.gather(*(job.result for job in jobs)))
        except BaseException:
            for job in jobs:
                job.result.cancel()
            self._queue = deque(job for job in self._queue if job not in jobs)
            raise

    async def run(self) -> None:
        """Compute batches until cancelled."""
        while True:
            if batch := await self._next_batch():
                await self._compute(batch)

    async def _compute(self, batch: list[_Job]) -> None:
        first = batch[0]
        inputs, lengths = [job.ids for job in batch], [job.max_tokens for job in batch]
        work = partial(self.runner.generate, inputs, lengths, first.decoding, _on_token(batch))
        try:
            answers = await asyncio.get_running_loop().run_in_executor(self._worker, work)
        except Exception as error:
            if len(batch) > 1:  # compute each prompt alone, so that only those that the model fails on have no answer
                for job in [job for job in batch if not job.result.done()]:
                    await self._compute([job])
            elif not first.result.done():
                first.result.set_exception(error)
            return
        self._on_batch(len(batch))
        for job, answer in zip(batch, answers, strict=True):
            if not job.result.done():  # done if cancelled meanwhile
                job.result.set_result(answer)

    async def _next_batch(self) -> list[_Job]:
        """The batch of the prompt that has waited longest; empty if all prompts were cancelled meanwhile."""
        loop = asyncio.get_running_loop()
        while not self._queue:
            await self._wait_for_arrival()
        deadline = loop.time() + self.limits.wait
        batch, full = self._first_batch()
        while not full:
            try:
                async with asyncio.timeout_at(deadline):
                    await self._wait_for_arrival()
            except TimeoutError:
                break
            batch, full = self._first_batch()
        batch, _ = self._first_batch()
        self._queue = deque(job for job in self._queue if job not in batch)
        return batch

    async def _wait_for_arrival(self) -> None:
        self._arrived.clear()
        await self._arrived.wait()

    def _first_batch(self) -> tuple[list[_Job], bool]:
        """The batch of the first prompt in the queue, and whether it is full."""
        batch: list[_Job] = []
        longest_input = longest_output = 0
        for job in self._queue:
            if batch and job.batch_key != batch[0].batch_key:
                continue
            longest_input = max(longest_input, len(job.ids))
            longest_output = max(longest_output, job.max_tokens)
            tokens = (longest_input + longest_output) * (len(batch) + 1)
            if batch and (len(batch) == self.limits.max_batch or tokens > self.limits.max_batch_tokens):
                return batch, True
            batch.append(job)
        return batch, len(batch) == self.limits.max_batch


def _on_token(batch: list[_Job]) -> OnToken | None:
    """The callback that gives the listeners of a batch their tokens; None if the batch has no listeners."""
    listeners = [job.listener for job in batch]
    for listener in filter(None, listeners):
        listener.reset()

    def on_token(row: int, id_: int) -> bool:
        listener = listeners[row]
        cancelled = batch[row].result.done()  # the client has disconnected
        return cancelled or (listener is not None and listener.add(id_))

    return on_token if any(listeners) else None
