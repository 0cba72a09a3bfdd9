"""The server process: listen, load the models, answer, and stop gracefully on SIGTERM or Ctrl-C."""

import signal
import socket
from collections.abc import Callable, Iterable

import uvicorn

from distill.errors import UserError
from students.serving.app import make_app
from students.serving.hosts import allowed_names
from students.serving.models import Model


def serve(
    models: list[Model],
    host: str,
    port: int,
    *,
    allowed_hosts: Iterable[str] = (),
    say: Callable[[str], None],
) -> None:
    """Serve ``models`` until SIGTERM or SIGINT, then answer the accepted requests and return.

    Args:
        models: the first one answers requests that name no model.
        host: the address to listen on; an IPv6 address may be in brackets.
        port: the port to listen on; 0 for any free port.
        allowed_hosts: more names that the Host header of a request may have; see ``hosts.allowed_names``.
        say: called with a message, including the address, when all models are loaded.

    Raises:
        UserError: the address cannot be used, a host name is invalid, or a model cannot be loaded.
    """
    allowed = allowed_names(host, allowed_hosts)
    host = host.strip("[]")
    listener = _listen(host, port)
    address = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
    failures: list[Exception] = []

    def fail(error: Exception) -> None:
        failures.append(error)
        server.should_exit = True

    def ready() -> None:
        names = ", ".join(f"{m.name} ({m.runner.format}, {m.runner.compute_type})" for m in models)
        say(f"Serving {names} on {address}; Ctrl-C stops it")

    app = make_app(models, allowed, on_ready=ready, on_failure=fail)
    # Every request ends by its timeout; a client that reads its answer slowly may take longer.
    grace_period = round(models[0].limits.timeout) + 5
    config = uvicorn.Config(
        app, http="h11", ws="none", log_level="error", access_log=False, timeout_graceful_shutdown=grace_period
    )
    server = uvicorn.Server(config)
    # uvicorn stops gracefully and then raises the signal again, which these handlers ignore.
    previous = {kind: signal.signal(kind, lambda *_: None) for kind in (signal.SIGTERM, signal.SIGINT)}
    try:
        server.run(sockets=[listener])
    finally:
        for kind, handler in previous.items():
            signal.signal(kind, handler)
    if failures:
        raise failures[0]


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=1024)
        # asyncio sets TCP_NODELAY only on sockets with an explicit protocol. Without it, each answer takes 40 ms more.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except OSError as error:
        raise UserError(f"cannot listen on {host}:{port}: {error.strerror}; choose another --port or --host") from error
