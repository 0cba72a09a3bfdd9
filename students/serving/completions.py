"""From the body of a request to its answer, whole or as a stream of events."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from typing import Any, NamedTuple, TypeVar

from fastapi import Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.requests import ClientDisconnect

from distill.errors import UserError
from students.serving.answers import Answer
from students.serving.batching import Batcher, QueueFull
from students.serving.limits import Limits
from students.serving.metrics import Metrics
from students.serving.models import Model, find
from students.serving.responses import DONE, choice, event, head, usage
from students.serving.schema import CompletionRequest, RequestError, parse_request

log = logging.getLogger("switch_distill.serving")
# Neither a cache nor a proxy (nginx reads the second) is to hold back what a stream has so far.
_STREAM_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
T = TypeVar("T")


class Service(NamedTuple):
    """What requests are answered with; the first of ``models`` answers those that name none."""

    models: list[Model]
    limits: Limits
    metrics: Metrics


class _Work(NamedTuple):
    """A request that can be answered."""

    model: Model
    batcher: Batcher
    wanted: CompletionRequest
    inputs: list[list[int]]
    max_tokens: int  # of each answer
    deadline: float  # in the loop's time

    def answer(self, show: Callable[[str, str | None], None] | None = None) -> Answer:
        return Answer(self.batcher.runner.tokenizer, self.max_tokens, self.wanted.stops, self.wanted.min_tokens, show)


async def respond(request: Request, service: Service) -> Response:
    """The answer to a request for completions. A stream begins once there is something in it.

    Raises:
        RequestError: there is no answer; it says why.
    """
    began, metrics = time.perf_counter(), service.metrics
    deadline = asyncio.get_running_loop().time() + service.limits.timeout
    with _failures(service):
        async with asyncio.timeout_at(deadline):
            work = await _accept(request, service, deadline)
            if not work.wanted.stream:
                answer = await _unless_gone(request, _complete(work, metrics))
                metrics.answered(began)
                return JSONResponse(answer)
            events = _events(work, metrics)
            first = await _unless_gone(request, anext(events))
    body = _stream(first, events, service, began)
    return StreamingResponse(body, headers=_STREAM_HEADERS, media_type="text/event-stream")


async def _accept(request: Request, service: Service, deadline: float) -> _Work:
    wanted = parse_request(await _read_body(request, service.limits.max_body), service.limits)
    model = find(service.models, wanted.model or service.models[0].name)
    if model.batcher is None:
        raise RequestError(503, f"{model.name} is still loading; /health says when it answers")
    encodings = await asyncio.to_thread(model.runner.tokenizer.encode_batch, wanted.prompts)
    inputs = [encoding.ids for encoding in encodings]
    if (longest := max(map(len, inputs))) > model.limits.max_input:
        raise RequestError(
            400,
            f"prompt is {longest} tokens long; at most {model.limits.max_input} are served",
            param="prompt",
            code="context_length_exceeded",
        )
    if min(map(len, inputs)) < 2:  # </s> alone
        raise RequestError(400, "prompt has no word that the tokenizer knows; give another text", param="prompt")
    max_tokens = min(wanted.max_tokens or model.max_tokens, model.limits.max_output)
    if wanted.min_tokens > max_tokens:
        raise RequestError(
            400, f"min_tokens is {wanted.min_tokens}, more than the {max_tokens} of an answer", param="min_tokens"
        )
    return _Work(model, model.batcher, wanted, inputs, max_tokens, deadline)


async def _complete(work: _Work, metrics: Metrics) -> dict[str, Any]:
    answers = [work.answer() for _ in work.inputs]
    # Only a stop sequence has to be looked for while an answer is made.
    listeners = answers if work.wanted.stops else None
    outputs = await work.batcher.generate(work.inputs, work.max_tokens, work.wanted.decoding, listeners)
    if listeners is None:
        for answer, ids in zip(answers, outputs, strict=True):
            answer.read(ids)
    counts = _count(work, answers, metrics)
    choices = [choice(index, answer.text, answer.finish_reason) for index, answer in enumerate(answers)]
    return head(work.model.name) | {"choices": choices, "usage": counts}


async def _events(work: _Work, metrics: Metrics) -> AsyncGenerator[str, None]:
    """The events of a stream, as its answers are made."""
    loop, pieces = asyncio.get_running_loop(), asyncio.Queue()

    def show(index: int, text: str, finish_reason: str | None) -> None:  # in the worker's thread
        loop.call_soon_threadsafe(pieces.put_nowait, choice(index, text, finish_reason))

    answers = [work.answer(partial(show, index)) for index in range(len(work.inputs))]
    making = asyncio.create_task(work.batcher.generate(work.inputs, work.max_tokens, work.wanted.decoding, answers))
    making.add_done_callback(pieces.put_nowait)
    common, unfinished = head(work.model.name), len(answers)
    if work.wanted.include_usage:
        common["usage"] = None
    try:
        while unfinished:
            async with asyncio.timeout_at(work.deadline):
                piece = await pieces.get()
            if piece is making:  # after the last piece: what is unfinished has failed
                raise making.exception() or AssertionError("an answer has no end")
            unfinished -= piece["finish_reason"] is not None
            yield event(common | {"choices": [piece]})
        counts = _count(work, answers, metrics)
        if work.wanted.include_usage:
            yield event(common | {"choices": [], "usage": counts})
        yield DONE
    finally:
        making.cancel()


async def _stream(first: str, events: AsyncGenerator[str, None], service: Service, began: float) -> AsyncIterator[str]:
    """All events. What fails once a stream has begun is its last event, and there is no end after it."""
    try:
        with _failures(service):
            yield first
            async for one in events:
                yield one
            service.metrics.answered(began)
    except RequestError as error:
        yield event(error.body())
    finally:
        await events.aclose()


def _count(work: _Work, answers: list[Answer], metrics: Metrics) -> dict[str, int]:
    counts = usage(work.inputs, [answer.ids for answer in answers])
    metrics.prompt_tokens.labels(work.model.name).inc(counts["prompt_tokens"])
    metrics.completion_tokens.labels(work.model.name).inc(counts["completion_tokens"])
    return counts


@contextlib.contextmanager
def _failures(service: Service) -> Iterator[None]:
    """Counts a request that fails in the block, and makes a ``RequestError`` of what it fails with."""
    failed = service.metrics.requests
    try:
        yield
    except (asyncio.CancelledError, GeneratorExit):  # the client of a stream has gone
        failed.labels(499).inc()
        raise
    except Exception as error:
        refusal = _refusal(error, service.limits)
        failed.labels(refusal.status).inc()
        raise refusal from None


def _refusal(error: Exception, limits: Limits) -> RequestError:
    match error:
        case RequestError():
            return error
        case UserError():  # what this format's runtime cannot do
            return RequestError(400, str(error), code="unsupported_parameter")
        case QueueFull():
            return RequestError(429, str(error), code="queue_full")
        case TimeoutError():
            message = f"no answer within {limits.timeout:g} seconds; ask for fewer tokens, or again later"
            return RequestError(408, message)
        case ClientDisconnect():
            return RequestError(499, "the client has gone")  # for the metrics; nobody reads it
    log.error("a request failed", exc_info=error)
    return RequestError(500, "the model failed on this request; the server's log says why")


async def _unless_gone(request: Request, work: Awaitable[T]) -> T:
    """What ``work`` gives; it is cancelled where the client disconnects first."""
    answer, gone = asyncio.ensure_future(work), asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ClientDisconnect
        return answer.result()
    finally:
        answer.cancel()
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _read_body(request: Request, limit: int) -> bytes:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # which also keeps other sites' pages from posting here
        raise RequestError(415, f"Content-Type is {kind[:60] or 'missing'}; send application/json")
    if request.headers.get("content-encoding", "identity") != "identity":
        raise RequestError(415, "Content-Encoding is not supported; send the body uncompressed")
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise RequestError(413, f"the body is larger than {limit:,} bytes")
    return body
