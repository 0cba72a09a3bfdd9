"""The prompts that share a batch, cancelled requests, and the assignment of answers to requests."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from students.runtime import Decoding
from students.runtime.batches import Answers
from students.serving.batching import Batcher, QueueFull
from students.serving.limits import Limits


class Recorder:
    """A runner that answers with its input, records its batches, and waits until ``gate`` is set."""

    def __init__(self):
        self.batches, self.calls, self.listened, self.gate = [], [], [], threading.Event()
        self.gate.set()

    def generate(self, inputs, max_tokens, how, on_token):
        self.batches.append([ids[0] for ids in inputs])
        self.calls.append((max_tokens, how, threading.current_thread().name))
        self.listened.append(on_token is not None)
        answers = Answers(max_tokens, -1, on_token)
        for step in range(max(max_tokens)):
            answers.add_step([ids[step] if step < len(ids) else -1 for ids in inputs])
            self.gate.wait(10)
        if [13] in inputs:
            raise RuntimeError("unlucky")
        return [row if row[-1] >= 0 else row[:-1] for row in answers.rows]


class Listener:
    """A listener that records an answer and ends it after ``most`` tokens."""

    def __init__(self, most=99):
        self.most, self.heard = most, []

    def reset(self):
        self.heard.append([])

    def add(self, id_):
        self.heard[-1].append(id_)
        return len(self.heard[-1]) == self.most


def run(scenario, **limits):
    """Run ``scenario(batcher, runner)`` on a running batcher. Returns its result and the runner."""

    async def main():
        batcher = Batcher(runner, Limits(**limits), worker, sizes.append)
        running = asyncio.create_task(batcher.run())
        try:
            return await asyncio.wait_for(scenario(batcher, runner), 10)
        finally:
            runner.gate.set()
            running.cancel()

    runner, sizes = Recorder(), []
    with ThreadPoolExecutor(1, thread_name_prefix="model") as worker:
        result = asyncio.run(main())
    assert sizes == [len(batch) for batch in runner.batches if 13 not in batch]
    return result, runner


async def behind_a_closed_gate(batcher, runner, *requests):
    """Queue ``requests`` (arguments of ``generate``) together while the worker computes prompt 0. Returns the tasks."""
    runner.gate.clear()
    first = asyncio.create_task(batcher.generate([[0]], 1))
    while not runner.batches:
        await asyncio.sleep(0.001)
    tasks = [first]
    for request in requests:
        tasks.append(asyncio.create_task(batcher.generate(*request)))
        await asyncio.sleep(0)
    return tasks


def test_waiting_prompts_share_a_batch_and_each_gets_its_own_answer():
    async def scenario(batcher, runner):
        tasks = await behind_a_closed_gate(batcher, runner, *[([[k, 50, 60], [k + 20]], k) for k in (1, 2, 3)])
        runner.gate.set()
        return await asyncio.gather(*tasks)

    answers, runner = run(scenario)
    assert answers == [[[0]], [[1], [21]], [[2, 50], [22]], [[3, 50, 60], [23]]]
    assert runner.batches == [[0], [1, 21, 2, 22, 3, 23]]
    assert runner.calls[1][0] == [1, 1, 2, 2, 3, 3]
    assert {call[2] for call in runner.calls} == {"model_0"}  # always the same thread


def test_a_batch_waits_for_more_prompts():
    async def scenario(batcher, runner):
        first = asyncio.create_task(batcher.generate([[1]], 1))
        await asyncio.sleep(0.02)
        return await asyncio.gather(first, batcher.generate([[2]], 1))

    assert run(scenario, wait=0.2)[1].batches == [[1, 2]]
    assert run(scenario, wait=0.001)[1].batches == [[1], [2]]


def test_a_full_batch_does_not_wait():
    async def scenario(batcher, runner):
        await batcher.generate([[1], [2]], 1)

    assert run(scenario, wait=100, max_batch=2)[1].batches == [[1, 2]]


def test_batches_are_limited_by_prompts_and_padded_tokens():
    async def scenario(batcher, runner):
        long = [3, *[9] * 29]
        tasks = await behind_a_closed_gate(batcher, runner, ([[1], [2]], 5), ([long], 5), ([[4], [5], [6]], 5))
        runner.gate.set()
        return await asyncio.gather(*tasks)

    # 3 prompts of up to 30 + 5 tokens would be 105.
    assert run(scenario, max_batch_tokens=104)[1].batches == [[0], [1, 2], [3, 4], [5, 6]]
    assert run(scenario, max_batch=4)[1].batches == [[0], [1, 2, 3, 4], [5, 6]]


def test_other_temperatures_and_seeded_requests_have_batches_of_their_own():
    async def scenario(batcher, runner):
        requests = [
            ([[1]], 5),
            ([[2]], 5, Decoding(temperature=0.5)),
            ([[3]], 5),
            ([[4]], 5, Decoding(temperature=0.5)),
            ([[5], [6]], 5, Decoding(temperature=0.5, seed=7)),
            ([[8]], 5, Decoding(temperature=0.5, seed=7)),
        ]
        tasks = await behind_a_closed_gate(batcher, runner, *requests)
        runner.gate.set()
        return await asyncio.gather(*tasks)

    runner = run(scenario)[1]
    assert runner.batches == [[0], [1, 3], [2, 4], [5, 6], [8]]
    found = [(call[1].temperature, call[1].seed) for call in runner.calls[1:]]
    assert found == [(0.0, None), (0.5, None), (0.5, 7), (0.5, 7)]


def test_prompts_with_other_min_tokens_form_another_batch():
    async def scenario(batcher, runner):
        requests = [([[1]], 5, Decoding(min_tokens=2)), ([[2]], 5), ([[3]], 5, Decoding(min_tokens=2))]
        tasks = await behind_a_closed_gate(batcher, runner, *requests)
        runner.gate.set()
        return await asyncio.gather(*tasks)

    runner = run(scenario)[1]
    assert runner.batches == [[0], [1, 3], [2]] and [call[1].min_tokens for call in runner.calls] == [0, 2, 0]


def test_a_cancelled_request_is_not_computed_and_frees_its_place():
    async def scenario(batcher, runner):
        tasks = await behind_a_closed_gate(batcher, runner, ([[1], [2]], 1), ([[3]], 1))
        with pytest.raises(QueueFull):
            await batcher.generate([[4]], 1)
        tasks[1].cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert batcher.waiting == 1
        tasks.append(asyncio.create_task(batcher.generate([[5]], 1)))
        await asyncio.sleep(0)
        runner.gate.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    answers, runner = run(scenario, max_queue=3)
    assert runner.batches == [[0], [3, 5]]
    assert isinstance(answers[1], asyncio.CancelledError) and answers[2:] == [[[3]], [[5]]]


def test_a_request_cancelled_while_computed_does_not_affect_others():
    async def scenario(batcher, runner):
        tasks = await behind_a_closed_gate(batcher, runner)
        tasks[0].cancel()
        later = asyncio.create_task(batcher.generate([[1]], 1))
        await asyncio.sleep(0.02)
        runner.gate.set()
        return await later

    assert run(scenario)[0] == [[1]]


def test_a_prompt_that_the_model_fails_on_does_not_affect_its_batch():
    async def scenario(batcher, runner):
        tasks = await behind_a_closed_gate(
            batcher, runner, ([[13]], 1), ([[1]], 1), ([[2]], 1, Decoding(temperature=0.5))
        )
        runner.gate.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        return found, await batcher.generate([[3]], 1)

    (found, after), runner = run(scenario)
    assert str(found[1]) == "unlucky" and found[2:] == [[[1]], [[2]]] and after == [[3]]
    assert runner.batches == [[0], [13, 1], [13], [1], [2], [3]]


def test_a_request_of_several_batches_ends_with_its_first_failure():
    async def scenario(batcher, runner):
        with pytest.raises(RuntimeError, match="unlucky"):
            await batcher.generate([[13], [1], [2], [3]], 1)
        assert batcher.waiting == 0

    run(scenario, max_batch=1)


def test_listeners_receive_their_own_answers_and_can_end_them():
    listeners = [Listener(), Listener(2)]

    async def scenario(batcher, runner):
        request = ([[1, 50, 60], [2, 70, 80]], 3, Decoding(), listeners)
        tasks = await behind_a_closed_gate(batcher, runner, request, ([[3, 90, 95]], 3))
        runner.gate.set()
        return await asyncio.gather(*tasks)

    answers, runner = run(scenario)
    assert answers == [[[0]], [[1, 50, 60], [2, 70]], [[3, 90, 95]]]
    assert [listener.heard for listener in listeners] == [[[1, 50, 60]], [[2, 70]]]
    assert runner.batches == [[0], [1, 2, 3]] and runner.listened == [False, True]


def test_a_cancelled_answer_is_not_generated_to_its_end():
    listener = Listener()

    async def scenario(batcher, runner):
        runner.gate.clear()
        gone = asyncio.create_task(batcher.generate([list(range(50, 90))], 40, Decoding(), [listener]))
        while not listener.heard or not listener.heard[-1]:
            await asyncio.sleep(0.001)
        gone.cancel()
        await asyncio.sleep(0.01)
        runner.gate.set()
        return await batcher.generate([[1]], 1)

    assert run(scenario)[0] == [[1]] and listener.heard == [[50]]


def test_a_listener_is_reset_if_its_batch_fails_because_of_another_prompt():
    listener = Listener()

    async def scenario(batcher, runner):
        tasks = await behind_a_closed_gate(batcher, runner, ([[13]], 1), ([[1, 2]], 2, Decoding(), [listener]))
        runner.gate.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    answers, _ = run(scenario)
    assert str(answers[1]) == "unlucky" and answers[2] == [[1, 2]] and listener.heard == [[1, 2], [1, 2]]
