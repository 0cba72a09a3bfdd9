"""The handling of a completion request, with a complete answer or a stream of events."""

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
from students.serving.inputs import render_inputs
from students.serving.limits import Limits
from students.serving.metrics import Metrics
from students.serving.models import Model, find_model
from students.serving.responses import DONE, choice, common_fields, event, usage
from students.serving.schema import CompletionRequest, RequestError, parse_request

log = logging.getLogger("switch_distill.serving")
# They keep caches and proxies (nginx reads the second) from buffering a stream.
_STREAM_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
T = TypeVar("T")


class Service(NamedTuple):
    """The parts of a server that answer requests. The first model answers requests that name no model."""

    models: list[Model]
    limits: Limits
    metrics: Metrics


class _AcceptedRequest(NamedTuple):
    """A valid request, with encoded prompts, to a loaded model."""

    model: Model
    batcher: Batcher
    parameters: CompletionRequest
    inputs: list[list[int]]
    max_tokens: int  # of each answer
    deadline: float  # in the time of the event loop

    def new_answer(self, on_text: Callable[[str, str | None], None] | None = None) -> Answer:
        tokenizer, parameters = self.batcher.runner.tokenizer, self.parameters
        return Answer(tokenizer, self.max_tokens, parameters.stops, parameters.min_tokens, on_text)


async def respond(request: Request, service: Service) -> Response:
    """The response to a completion request. A stream begins with its first event, so that earlier errors have a status.

    Raises:
        RequestError: the request is invalid or failed.
    """
    start, metrics = time.perf_counter(), service.metrics
    deadline = asyncio.get_running_loop().time() + service.limits.timeout
    with _request_errors(service):
        async with asyncio.timeout_at(deadline):
            accepted = await _accept(request, service, deadline)
            if not accepted.parameters.stream:
                completion = await _cancel_on_disconnect(request, _complete(accepted, metrics))
                metrics.count_answered(start)
                return JSONResponse(completion)
            events = _events(accepted, metrics)
            first = await _cancel_on_disconnect(request, anext(events))
    body = _stream(first, events, service, start)
    return StreamingResponse(body, headers=_STREAM_HEADERS, media_type="text/event-stream")


async def _accept(request: Request, service: Service, deadline: float) -> _AcceptedRequest:
    parameters = parse_request(await _read_body(request, service.limits.max_body), service.limits)
    model = find_model(service.models, parameters.model or service.models[0].name)
    if model.batcher is None:
        raise RequestError(503, f"{model.name} is still loading; try again when /health answers 200")
    if parameters.inputs is None:
        name, texts = "prompt", parameters.prompts
    else:
        name, texts = "inputs", [render_inputs(model, parameters.inputs)]
    encodings = await asyncio.to_thread(model.runner.tokenizer.encode_batch, texts)
    inputs = [encoding.ids for encoding in encodings]
    if (longest := max(map(len, inputs))) > model.limits.max_input:
        raise RequestError(
            400,
            f"{name} is {longest} tokens long; the limit is {model.limits.max_input}",
            param=name,
            code="context_length_exceeded",
        )
    if min(map(len, inputs)) < 2:  # </s> alone
        raise RequestError(400, f"the tokenizer finds no token in {name}; give another text", param=name)
    max_tokens = min(parameters.max_tokens or model.max_tokens, model.limits.max_output)
    if (min_tokens := parameters.min_tokens) > max_tokens:
        raise RequestError(400, f"min_tokens is {min_tokens}, but max_tokens is {max_tokens}", param="min_tokens")
    return _AcceptedRequest(model, model.batcher, parameters, inputs, max_tokens, deadline)


async def _complete(accepted: _AcceptedRequest, metrics: Metrics) -> dict[str, Any]:
    answers = [accepted.new_answer() for _ in accepted.inputs]
    # Without stop sequences, no answer needs its tokens before it is complete.
    listeners = answers if accepted.parameters.stops else None
    outputs = await accepted.batcher.generate(
        accepted.inputs, accepted.max_tokens, accepted.parameters.decoding, listeners
    )
    if listeners is None:
        for answer, ids in zip(answers, outputs, strict=True):
            answer.add_all(ids)
    counts = _count_tokens(accepted, answers, metrics)
    choices = [choice(index, answer.text, answer.finish_reason) for index, answer in enumerate(answers)]
    return common_fields(accepted.model.name) | {"choices": choices, "usage": counts}


async def _events(accepted: _AcceptedRequest, metrics: Metrics) -> AsyncGenerator[str, None]:
    """The events of a stream, while its answers are generated."""
    loop = asyncio.get_running_loop()
    pieces: asyncio.Queue[Any] = asyncio.Queue()  # pieces of answers, and at the end ``generation``

    def on_text(index: int, text: str, finish_reason: str | None) -> None:  # runs in the worker thread
        loop.call_soon_threadsafe(pieces.put_nowait, choice(index, text, finish_reason))

    answers = [accepted.new_answer(partial(on_text, index)) for index in range(len(accepted.inputs))]
    generation = asyncio.create_task(
        accepted.batcher.generate(accepted.inputs, accepted.max_tokens, accepted.parameters.decoding, answers)
    )
    generation.add_done_callback(pieces.put_nowait)
    common, unfinished = common_fields(accepted.model.name), len(answers)
    if accepted.parameters.include_usage:
        common["usage"] = None
    try:
        while unfinished:
            async with asyncio.timeout_at(accepted.deadline):
                piece = await pieces.get()
            if piece is generation:  # it comes after the last piece, so the unfinished answers have failed
                raise generation.exception() or AssertionError("an answer has no end")
            unfinished -= piece["finish_reason"] is not None
            yield event(common | {"choices": [piece]})
        counts = _count_tokens(accepted, answers, metrics)
        if accepted.parameters.include_usage:
            yield event(common | {"choices": [], "usage": counts})
        yield DONE
    finally:
        generation.cancel()


async def _stream(first: str, events: AsyncGenerator[str, None], service: Service, start: float) -> AsyncIterator[str]:
    """All events of a stream. An error after the first event is the last event, and no ``[DONE]`` follows it."""
    try:
        with _request_errors(service):
            yield first
            async for event_ in events:
                yield event_
            service.metrics.count_answered(start)
    except RequestError as error:
        yield event(error.body())
    finally:
        await events.aclose()


def _count_tokens(accepted: _AcceptedRequest, answers: list[Answer], metrics: Metrics) -> dict[str, int]:
    counts = usage(accepted.inputs, [answer.ids for answer in answers])
    metrics.prompt_tokens.labels(accepted.model.name).inc(counts["prompt_tokens"])
    metrics.completion_tokens.labels(accepted.model.name).inc(counts["completion_tokens"])
    return counts


@contextlib.contextmanager
def _request_errors(service: Service) -> Iterator[None]:
    """Convert an error in the block into a ``RequestError``, and count it in the metrics."""
    requests = service.metrics.requests
    try:
        yield
    except (asyncio.CancelledError, GeneratorExit):  # the client of a stream has disconnected
        requests.labels(499).inc()
        raise
    except Exception as error:
        request_error = _request_error(error, service.limits)
        requests.labels(request_error.status).inc()
        raise request_error from None


def _request_error(error: Exception, limits: Limits) -> RequestError:
    match error:
        case RequestError():
            return error
        case UserError():  # the runtime does not support the request
            return RequestError(400, str(error), code="unsupported_parameter")
        case QueueFull():
            return RequestError(429, str(error), code="queue_full")
        case TimeoutError():
            message = f"no answer within {limits.timeout:g} seconds; request fewer tokens, or try again later"
            return RequestError(408, message)
        case ClientDisconnect():
            return RequestError(499, "the client has disconnected")  # only for the metrics
    log.error("a request failed", exc_info=error)
    return RequestError(500, "the model failed on this request; the server's log says why")


async def _cancel_on_disconnect(request: Request, work: Awaitable[T]) -> T:
    """The result of ``work``, which is cancelled if the client disconnects first.

    Raises:
        ClientDisconnect: the client has disconnected.
    """
    task, disconnected = asyncio.ensure_future(work), asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({task, disconnected}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        disconnected.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _read_body(request: Request, limit: int) -> bytes:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # it also keeps web pages of other sites from posting requests
        raise RequestError(415, f"Content-Type is {kind[:60] or 'missing'}; send application/json")
    if request.headers.get("content-encoding", "identity") != "identity":
        raise RequestError(415, "Content-Encoding is not supported; send the body uncompressed")
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise RequestError(413, f"the body is larger than {limit:,} bytes")
    return body
