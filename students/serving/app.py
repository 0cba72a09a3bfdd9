"""The routes: OpenAI-shaped completions, the models, health, metrics, and the page at the root."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from students.serving.completions import Service, respond
from students.serving.hosts import HostCheck
from students.serving.metrics import Metrics
from students.serving.models import Model, find, load_and_run
from students.serving.schema import RequestError, body_schema

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:"
_BODY = {"requestBody": {"required": True, "content": {"application/json": {"schema": body_schema()}}}}


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
    metrics = Metrics()
    service = Service(models, models[0].limits, metrics)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(load_and_run(models, metrics, on_ready, on_failure))
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

    @app.post("/v1/completions", openapi_extra=_BODY)
    async def completions(request: Request) -> Response:
        return await respond(request, service)

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [model.facts() for model in models]}

    @app.get("/v1/models/{name:path}")
    async def show_model(name: str) -> dict[str, Any]:
        return find(models, name).facts()

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


@cache
def _page() -> str:
    return Path(__file__).with_name("page.html").read_text(encoding="utf-8")
