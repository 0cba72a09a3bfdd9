"""The check of the Host header: valid host names, and the answers of a real server."""

import asyncio
import json
import socket
from urllib.parse import urlsplit

import pytest
import requests

from distill.errors import UserError
from students.serving.hosts import HostCheck, allowed_names, canonical_name

ROUTES = ["/", "/health", "/metrics", "/v1/models", "/v1/models/echo", "/openapi.json", "/nowhere"]


@pytest.mark.parametrize(
    "value, name",
    [
        ("Example.ORG", "example.org"),
        ("example.org.", "example.org"),
        ("my_service-2", "my_service-2"),
        ("192.0.2.1", "192.0.2.1"),
        ("::1", "::1"),
        ("[::1]", "::1"),
        ("0:0:0:0:0:0:0:1", "::1"),
        ("[2001:DB8::A]", "2001:db8::a"),
        ("fe80::1%eth0", "fe80::1"),
        ("a" * 63, "a" * 63),
    ],
)
def test_canonical_name(value, name):
    assert canonical_name(value) == name


NO_NAMES = ["", " ", ".", "..", "a b", "a\n", "a..b", "-a", "a-", "*", "*.a", "a:1", "[::1", "::1]", "[::1]:1", "[]"]
NO_NAMES += [
    "[a]",
    "[127.0.0.1]",
    "http://a",
    "a/b",
    "me@a",
    "a?b",
    "a,b",
    "münchen.example",
    "a" * 64,
    "a." * 126 + "aa",
]


@pytest.mark.parametrize("value", NO_NAMES)
def test_an_invalid_host_is_refused_with_its_option(value):
    assert canonical_name(value) is None
    with pytest.raises(UserError, match="--host .* is not a host name"):
        allowed_names(value)
    if value != "*":
        with pytest.raises(UserError, match="--allowed-host .* is not a host name"):
            allowed_names("127.0.0.1", ["example.org", value])


def test_loopback_the_servers_host_and_configured_hosts_are_allowed():
    loopback = {"localhost", "127.0.0.1", "::1"}
    assert allowed_names("127.0.0.1") == loopback
    assert allowed_names("0.0.0.0") == loopback | {"0.0.0.0"}
    assert allowed_names("[::]", ["A.example"]) == loopback | {"::", "a.example"}


def answer(allowed: frozenset[str], *hosts: bytes) -> tuple[int, str]:
    """Status and error message for a request with these Host headers to an application that answers 200."""
    sent = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b'{"error": {"message": ""}}'})

    async def send(message):
        sent.append(message)

    headers = [(b"accept", b"*/*"), *((b"host", host) for host in hosts), (b"x-forwarded-host", b"localhost")]
    scope = {"type": "http", "method": "GET", "path": "/", "headers": headers}
    asyncio.run(HostCheck(app, allowed)(scope, None, send))
    return sent[0]["status"], json.loads(sent[1]["body"])["error"]["message"]


ALLOWED = [b"localhost", b"LocalHost:8000", b"localhost.", b"localhost:", b"127.0.0.1", b"127.0.0.1:1", b"[::1]"]
ALLOWED += [b"[::1]:8000", b"[0:0::1]:8000", b"a.example", b"A.EXAMPLE:443", b"[2001:db8::1]:80", b" localhost "]
REFUSED = [b"b.example", b"x.a.example", b"a.example.org", b"aa.example", b"localhost.a", b"127.0.0.2", b"0.0.0.0"]
REFUSED += [b"[::2]:8000", b"[::ffff:7f00:1]", b"xn--a.example", b"2130706433"]
NONSENSE = [b"", b":80", b"::1", b"::1:80", b"[::1", b"[::1]x", b"[localhost]", b"localhost:80:80", b"localhost:a"]
NONSENSE += [
    b"localhost:-1",
    b"localhost b.example",
    b"localhost,b.example",
    b"me@localhost",
    b"localhost:80@b.example",
]
NONSENSE += [b"http://localhost", b"localhost/", b"localhost\xff", b"*", b"*:80", b"a" * 5000, b"localhost:\xb2"]


@pytest.mark.parametrize("host", ALLOWED)
def test_an_allowed_host_reaches_the_application_with_any_port(host):
    assert answer(allowed_names("2001:db8::1", ["a.example"]), host) == (200, "")


@pytest.mark.parametrize("host", REFUSED)
def test_another_host_is_answered_421_with_the_option_that_allows_it(host):
    status, message = answer(allowed_names("2001:db8::1", ["a.example"]), host)
    assert status == 421 and canonical_name(host.decode().removesuffix(":8000")) in message
    assert "--allowed-host NAME" in message


@pytest.mark.parametrize("host", NONSENSE)
def test_an_invalid_host_header_is_answered_400(host):
    status, message = answer(allowed_names("127.0.0.1"), host)
    assert status == 400 and "is not a host name" in message and len(message) < 500


@pytest.mark.parametrize("hosts", [(), (b"localhost", b"localhost"), (b"localhost", b"b.example")])
def test_a_missing_or_repeated_header_is_answered_400(hosts):
    assert answer(allowed_names("127.0.0.1"), *hosts) == (400, f"the request has {len(hosts)} Host headers; send one")


@pytest.mark.parametrize("hosts", [*((host,) for host in ALLOWED + REFUSED + NONSENSE), ()])
def test_a_star_allows_any_host(hosts):
    assert answer(allowed_names("127.0.0.1", ["a.example", "*"]), *hosts) == (200, "")


def get(server, host: str, path: str = "/health") -> requests.Response:
    return requests.get(server.url + path, headers={"Host": host}, timeout=10)


def check_refused(response: requests.Response, host: str) -> None:
    assert response.status_code == 421
    error = response.json()["error"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", None, "host_not_allowed")
    assert repr(host) in error["message"] and "--allowed-host NAME" in error["message"]


@pytest.mark.parametrize("path", ROUTES)
def test_no_route_answers_another_host(echo, path):
    check_refused(get(echo, "rebound.example:8000", path), "rebound.example")
    assert get(echo, "localhost", path).status_code == (404 if path == "/nowhere" else 200)


def test_a_request_for_another_host_is_not_computed(echo_server):
    with echo_server() as server:
        body, headers = {"prompt": "hello"}, {"Host": "rebound.example"}
        check_refused(requests.post(f"{server.url}/v1/completions", json=body, headers=headers), "rebound.example")
        headers |= {"Origin": "http://rebound.example", "X-Forwarded-Host": "localhost"}
        check_refused(requests.options(f"{server.url}/v1/completions", headers=headers), "rebound.example")
        assert server.complete("hello").ok and server.metric("batch_size_sum") == 1


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "127.0.0.1:9", "[::1]", "[::1]:8000"])
def test_a_server_on_loopback_answers_each_of_its_names(echo, host):
    assert get(echo, host).ok


def test_a_server_on_all_addresses_answers_only_that_address_and_loopback(echo_server):
    with echo_server(host="0.0.0.0") as server:
        assert get(server, "0.0.0.0:8000").ok and get(server, "localhost").ok and get(server, "[::1]:80").ok
        for host in ("192.0.2.7", "rebound.example", "::"):
            shown = f"[{host}]" if ":" in host else host
            check_refused(get(server, shown + ":8000"), host)


def test_a_server_answers_its_configured_hosts(echo_server):
    with echo_server(host="0.0.0.0", allowed_hosts=["Models.Example", "192.0.2.7", "[2001:db8::1]"]) as server:
        for host in ("models.example", "MODELS.example:443", "192.0.2.7:8000", "[2001:DB8:0::1]:80", "127.0.0.1"):
            assert get(server, host).ok
        check_refused(get(server, "other.example"), "other.example")
    with echo_server(allowed_hosts=["*"]) as server:
        assert get(server, "whatever.example:1").ok


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        return True
    except OSError:
        return False


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_a_server_on_an_ipv6_address_answers_it(echo_server, host):
    with echo_server(host=host) as server:
        assert server.url.startswith("http://[::1]:")
        assert server.complete("hello").ok and get(server, "localhost:8000").ok
        check_refused(get(server, "[::2]"), "::2")


@pytest.mark.parametrize(
    "lines, status",
    [
        (b"GET /health HTTP/1.0\r\n", 400),
        (b"GET /health HTTP/1.1\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: \r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: ::1\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: rebound.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n", 421),
        (b"GET http://localhost/health HTTP/1.1\r\nHost: rebound.example\r\n", 421),
        (b"GET /health HTTP/1.0\r\nHost: localhost\r\n", 200),
        (b"GET /health HTTP/1.1\r\nhost:localhost:80 \r\n", 200),
    ],
)
def test_raw_requests_are_checked_by_their_host_header(echo, lines, status):
    address = urlsplit(echo.url)
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        connection.sendall(lines + b"\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 %d " % status)
