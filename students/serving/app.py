"""The routes: completions in OpenAI's format, models, health, metrics, and the page at the root."""

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
from students.serving.models import Model, find_model, load_and_run
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
    """Make the application. It loads its models after it starts; until then, /health answers 503.

    Args:
        models: the first one answers requests that name no model.
        allowed: the names that the Host header of a request may have; see ``hosts.allowed_names``.
        on_ready: called when all models are loaded.
        on_failure: called with the error of a model that cannot be loaded.
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
        message = f"{request.method} {request.url.path[:100]}: {error.detail}; this server has POST /v1/completions"
        return JSONResponse(RequestError(error.status_code, message).body(), error.status_code, error.headers)

    @app.post("/v1/completions", openapi_extra=_BODY)
    async def completions(request: Request) -> Response:
        return await respond(request, service)

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [model.describe() for model in models]}

    @app.get("/v1/models/{name:path}")
    async def show_model(name: str) -> dict[str, Any]:
        return find_model(models, name).describe()

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
