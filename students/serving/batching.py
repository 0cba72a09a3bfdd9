"""Dynamic batching: requests that wait at the same time are answered in one batch, in one worker thread."""

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
    """As many prompts wait as may wait."""


@dataclass(eq=False)
class _Job:
    """One prompt. Those of the same ``company`` may share a batch."""

    ids: list[int]
    max_tokens: int
    how: Decoding
    company: object
    answer: asyncio.Future[list[int]]
    listener: Answer | None


class Batcher:
    """The waiting prompts of one model. Each way of decoding takes its turn; a seed has batches of its own."""

    def __init__(self, runner: Runner, limits: Limits, worker: ThreadPoolExecutor, on_batch: Callable[[int], None]):
        """``worker`` has one thread; ``on_batch`` is told the size of each batch that was computed."""
        self.runner, self.limits, self._worker, self._on_batch = runner, limits, worker, on_batch
        self._queue: deque[_Job] = deque()
        self._arrived = asyncio.Event()

    @property
    def waiting(self) -> int:
        """Prompts that are in no batch yet."""
        return len(self._queue)

    async def generate(
        self,
        inputs: list[list[int]],
        max_tokens: int,
        how: Decoding = GREEDY,
        listeners: Sequence[Answer] | None = None,
    ) -> list[list[int]]:
        """Answers to ``inputs``, in their order. Once the caller is cancelled, what still waits is not computed.

        Args:
            listeners: one for each input, told its tokens by the worker's thread as they are made; they may end it.

        Raises:
            QueueFull: there is no room for all of ``inputs``.
        """
        if len(self._queue) + len(inputs) > self.limits.max_queue:
            raise QueueFull(f"{self.waiting} prompts are waiting already; try again later")
        loop = asyncio.get_running_loop()
        company = how if how.seed is None else object()
        told = listeners or [None] * len(inputs)
        jobs = [
            _Job(ids, max_tokens, how, company, loop.create_future(), listener)
            for ids, listener in zip(inputs, told, strict=True)
        ]
        self._queue.extend(jobs)
        self._arrived.set()
        try:
            return list(await asyncio.gather(*(job.answer for job in jobs)))
        except BaseException:
            for job in jobs:
                job.answer.cancel()
            self._queue = deque(job for job in self._queue if job not in jobs)
            raise

    async def run(self) -> None:
        """Answer batch after batch, until cancelled."""
        while True:
            if batch := await self._next_batch():
                await self._answer(batch)

    async def _answer(self, batch: list[_Job]) -> None:
        first = batch[0]
        inputs, lengths = [job.ids for job in batch], [job.max_tokens for job in batch]
        work = partial(self.runner.generate, inputs, lengths, first.how, _on_token(batch))
        try:
            answers = await asyncio.get_running_loop().run_in_executor(self._worker, work)
        except Exception as error:
            if len(batch) > 1:  # one prompt that the model fails on is not to spoil the answers of others
                for job in [job for job in batch if not job.answer.done()]:
                    await self._answer([job])
            elif not first.answer.done():
                first.answer.set_exception(error)
            return
        self._on_batch(len(batch))
        for job, answer in zip(batch, answers, strict=True):
            if not job.answer.done():  # cancelled meanwhile
                job.answer.set_result(answer)

    async def _next_batch(self) -> list[_Job]:
        """What goes together with the prompt that has waited longest; empty if all were cancelled meanwhile."""
        loop = asyncio.get_running_loop()
        while not self._queue:
            await self._arrival()
        deadline = loop.time() + self.limits.wait
        batch, full = self._fitting()
        while not full:
            try:
                async with asyncio.timeout_at(deadline):
                    await self._arrival()
            except TimeoutError:
                break
            batch, full = self._fitting()
        batch, _ = self._fitting()
        self._queue = deque(job for job in self._queue if job not in batch)
        return batch

    async def _arrival(self) -> None:
        self._arrived.clear()
        await self._arrived.wait()

    def _fitting(self) -> tuple[list[_Job], bool]:
        """The next batch as things stand, and whether it is full."""
        batch: list[_Job] = []
        longest_input = longest_output = 0
        for job in self._queue:
            if batch and job.company != batch[0].company:
                continue
            longest_input = max(longest_input, len(job.ids))
            longest_output = max(longest_output, job.max_tokens)
            tokens = (longest_input + longest_output) * (len(batch) + 1)
            if batch and (len(batch) == self.limits.max_batch or tokens > self.limits.max_batch_tokens):
                return batch, True
            batch.append(job)
        return batch, len(batch) == self.limits.max_batch


def _on_token(batch: list[_Job]) -> OnToken | None:
    """Tells the listeners of a batch its tokens, from the first one on; None if there are none."""
    listeners = [job.listener for job in batch]
    for listener in filter(None, listeners):
        listener.begin()

    def tell(row: int, id_: int) -> bool:
        listener = listeners[row]
        return batch[row].answer.done() or (listener is not None and listener.add(id_))  # done: its client has gone

    return tell if any(listeners) else None
