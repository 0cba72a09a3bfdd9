"""The process: listen, load, answer, and on SIGTERM or Ctrl-C finish what was accepted."""

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
    """Serve ``models`` until SIGTERM or SIGINT; then answer what was accepted, and return.

    Args:
        host: the address to listen on; an IPv6 one may be in brackets.
        port: 0 for any free one, which ``say`` is told.
        allowed_hosts: that requests may name besides ``host`` and loopback's; "*" is any.

    Raises:
        UserError: the address cannot be listened on, a host is not a name, or a model cannot be used.
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
    patience = round(models[0].limits.timeout) + 5  # every request ends by then; slow readers may not
    config = uvicorn.Config(
        app, http="h11", ws="none", log_level="error", access_log=False, timeout_graceful_shutdown=patience
    )
    server = uvicorn.Server(config)
    # uvicorn stops gracefully and then raises the signal again; there is nothing left to stop.
    before = {kind: signal.signal(kind, lambda *_: None) for kind in (signal.SIGTERM, signal.SIGINT)}
    try:
        server.run(sockets=[listener])
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
    if failures:
        raise failures[0]


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=1024)
        # asyncio sets it only on sockets that name their protocol; without it, each answer waits 40 ms for the client.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except OSError as error:
        raise UserError(f"cannot listen on {host}:{port}: {error.strerror}; choose another --port or --host") from error
