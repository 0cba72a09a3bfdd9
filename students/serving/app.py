"""The routes: OpenAI-shaped completions, the models, health, metrics, and the page at the root."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from distill.errors import UserError
from students.runtime import Runner, decode
from students.serving.batching import Batcher, QueueFull
from students.serving.hosts import HostCheck
from students.serving.limits import Limits
from students.serving.metrics import Metrics
from students.serving.schema import CompletionRequest, RequestError, completion, parse_request

log = logging.getLogger("switch_distill.serving")
WARM_UP = "Thank you <extra_id_0> me to your party"
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:"


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


def make_app(
    models: list[Model],
    allowed: frozenset[str],
    *,
    on_ready: Callable[[], None],
    on_failure: Callable[[Exception], None],
) -> FastAPI:
    """The application. Its models load, and answer once, while it already says that it is not ready.

    Args:
        models: the first one answers requests that name none.
        allowed: the hosts that requests to any route may name; see ``hosts.allowed_names``.
        on_ready: called when all models answer.
        on_failure: called with what keeps one from loading.
    """
    metrics, limits = Metrics(), models[0].limits

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(_load_and_run(models, metrics, on_ready, on_failure))
        yield
        task.cancel()

    app = FastAPI(title="switch-distill", docs_url=None, redoc_url=None, lifespan=lifespan)
    app.add_middleware(HostCheck, allowed=allowed)

    @app.exception_handler(RequestError)
    async def refuse(request: Request, error: RequestError) -> Response:
        return JSONResponse(error.body(), error.status, error.headers)

    @app.exception_handler(HTTPException)
    async def refuse_route(request: Request, error: HTTPException) -> Response:
        what = f"{request.method} {request.url.path[:100]}: {error.detail}; this server has POST /v1/completions"
        return JSONResponse(RequestError(error.status_code, what).body(), error.status_code, error.headers)

    @app.post("/v1/completions", openapi_extra=_body_schema())
    async def completions(request: Request) -> Response:
        began, status = time.perf_counter(), 500
        try:
            answer = await _complete(request, models, limits, metrics)
            status = 200
            metrics.latency.observe(time.perf_counter() - began)
            return JSONResponse(answer)
        except RequestError as error:
            status = error.status
            raise
        except Exception:
            log.exception("a request failed")
            raise RequestError(500, "the model failed on this request; the server's log says why") from None
        finally:
            metrics.requests.labels(status).inc()

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [model.facts() for model in models]}

    @app.get("/v1/models/{name:path}")
    async def show_model(name: str) -> dict[str, Any]:
        return _find(models, name).facts()

    @app.get("/health")
    async def health() -> Response:
        ready = all(model.batcher is not None for model in models)
        return JSONResponse({"status": "ok" if ready else "loading"}, 200 if ready else 503)

    @app.get("/metrics")
    async def show_metrics() -> Response:
        for model in models:
            metrics.waiting.labels(model.name).set(model.batcher.waiting if model.batcher is not None else 0)
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/", response_class=HTMLResponse)
    async def page() -> Response:
        return HTMLResponse(_page(), headers={"Content-Security-Policy": _POLICY})

    return app


async def _load_and_run(
    models: list[Model], metrics: Metrics, on_ready: Callable[[], None], on_failure: Callable[[Exception], None]
) -> None:
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


async def _complete(request: Request, models: list[Model], limits: Limits, metrics: Metrics) -> dict[str, Any]:
    try:
        async with asyncio.timeout(limits.timeout):
            wanted = parse_request(await _read_body(request, limits.max_body), limits)
            model = _find(models, wanted.model or models[0].name)
            if model.batcher is None:
                raise RequestError(503, f"{model.name} is still loading; /health says when it answers")
            return await _unless_gone(request, _answer(model, model.batcher, wanted, metrics))
    except TimeoutError:
        message = f"no answer within {limits.timeout:g} seconds; ask for fewer tokens, or again later"
        raise RequestError(408, message) from None
    except ClientDisconnect:
        raise RequestError(499, "the client has gone") from None  # for the metrics; nobody reads it


async def _unless_gone(request: Request, work: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
    """What ``work`` returns; it is cancelled where the client disconnects first."""
    answer, gone = asyncio.create_task(work), asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ClientDisconnect
        return answer.result()
    finally:
        answer.cancel()
        gone.cancel()


async def _answer(model: Model, batcher: Batcher, wanted: CompletionRequest, metrics: Metrics) -> dict[str, Any]:
    tokenizer = batcher.runner.tokenizer
    inputs = [encoding.ids for encoding in await asyncio.to_thread(tokenizer.encode_batch, wanted.prompts)]
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
    try:
        outputs = await batcher.generate(inputs, max_tokens, wanted.decoding)
    except UserError as error:  # what this format's runtime cannot do
        raise RequestError(400, str(error), code="unsupported_parameter") from None
    except QueueFull:
        raise RequestError(
            429, f"{batcher.waiting} prompts are waiting already; try again later", code="queue_full"
        ) from None
    end = tokenizer.token_to_id("</s>")
    ended = [bool(ids) and ids[-1] == end for ids in outputs]
    texts = [decode(tokenizer, ids) for ids in outputs]
    prompt_tokens = sum(map(len, inputs))
    answers = list(zip(texts, map(len, outputs), ended, strict=True))
    metrics.prompt_tokens.labels(model.name).inc(prompt_tokens)
    metrics.completion_tokens.labels(model.name).inc(sum(map(len, outputs)))
    return completion(model.name, answers, prompt_tokens)


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


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _find(models: list[Model], name: str) -> Model:
    for model in models:
        if model.name == name:
            return model
    known = ", ".join(model.name for model in models)
    raise RequestError(404, f"there is no model {name[:100]!r}; this server has {known}", code="model_not_found")


def _body_schema() -> dict[str, Any]:
    content = {"application/json": {"schema": CompletionRequest.model_json_schema()}}
    return {"requestBody": {"required": True, "content": content}}


@cache
def _page() -> str:
    return Path(__file__).with_name("page.html").read_text(encoding="utf-8")
