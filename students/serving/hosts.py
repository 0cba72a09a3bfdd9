"""The check of the Host header, against DNS rebinding: a web page whose host name resolves to this machine.

Starlette's TrustedHostMiddleware is not used: it answers in plain text and not in the format of this API's errors, and
its older versions cannot parse IPv6 addresses.
"""

import re
from collections.abc import Iterable
from ipaddress import IPv6Address

from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from distill.errors import UserError
from students.serving.schema import RequestError

ANY = "*"
LOOPBACK = ("localhost", "127.0.0.1", "::1")
_LABEL = r"(?!-)[a-z0-9_-]{1,63}(?<!-)"
_NAME = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_HEADER = re.compile(r"(\[[^\]]*\]|[^:\[\]]*)(:[0-9]*)?")  # RFC 9110: host [ ":" port ], IPv6 in brackets


def canonical_name(value: str) -> str | None:
    """The form of a host name or address that is compared, or None if ``value`` is neither.

    A name becomes lower case and loses a trailing dot. An IPv6 address, with or without brackets, takes its shortest
    form and loses its zone, which no client sends.
    """
    bracketed = value.startswith("[") and value.endswith("]")
    try:
        return str(IPv6Address(value[1:-1] if bracketed else value)).partition("%")[0]
    except ValueError:
        name = value.lower().removesuffix(".")
        return name if len(name) <= 253 and _NAME.fullmatch(name) else None


def allowed_names(host: str, others: Iterable[str] = ()) -> frozenset[str]:
    """The names that a request to a server on ``host`` may have in its Host header.

    Args:
        others: more names; "*" allows any name.

    Returns:
        The names in the form of ``canonical_name``: loopback's, ``host`` and ``others``.

    Raises:
        UserError: ``host`` or one of ``others`` is not a host name.
    """
    names = set(LOOPBACK)
    for option, value in [("--host", host), *(("--allowed-host", other) for other in others)]:
        name = ANY if (option, value) == ("--allowed-host", ANY) else canonical_name(value)
        if name is None:
            raise UserError(
                f"{option} {value[:100]!r} is not a host name; give a name or an address alone, in ASCII, "
                "without scheme, port and path"
            )
        names.add(name)
    return frozenset(names)


class HostCheck:
    """ASGI middleware that lets a request pass if its Host header has an allowed name, with any port.

    Args:
        app: the application that receives the allowed requests.
        allowed: the result of ``allowed_names``.
    """

    def __init__(self, app: ASGIApp, allowed: frozenset[str]):
        self.app, self.allowed = app, allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or ANY in self.allowed:
            return await self.app(scope, receive, send)
        try:
            self._check([value.decode("latin-1") for name, value in scope["headers"] if name == b"host"])
        except RequestError as error:
            return await JSONResponse(error.body(), error.status, error.headers)(scope, receive, send)
        await self.app(scope, receive, send)

    def _check(self, sent: list[str]) -> None:
        if len(sent) != 1:
            raise RequestError(400, f"the request has {len(sent)} Host headers; send one", code="invalid_host")
        found = _HEADER.fullmatch(sent[0].strip())
        name = canonical_name(found[1]) if found else None
        if name is None:
            raise RequestError(400, f"Host is {sent[0][:100]!r}, which is not a host name", code="invalid_host")
        if name not in self.allowed:
            # 421 and not 403: no credentials would make this server responsible for the host (RFC 9110, section 7.4).
            message = f"this server does not serve host {name!r}; its option --allowed-host NAME allows another host"
            raise RequestError(421, message, code="host_not_allowed")
