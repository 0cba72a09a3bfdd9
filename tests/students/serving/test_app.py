"""HTTP requests to a real server process: answers, refusals and recovery."""

import gzip
import json
import socket
import time
from urllib.parse import urlsplit

import pytest
import requests


def test_a_completion_has_openais_format(echo):
    before = time.time()
    answer = echo.complete(["a <extra_id_0> b", "hello there"], max_tokens=7).json()
    assert answer["object"] == "text_completion" and answer["id"].startswith("cmpl-") and answer["model"] == "echo"
    assert before - 1 <= answer["created"] <= time.time()
    assert answer["choices"] == [
        {"index": 0, "text": "a <extra_id_0> b", "logprobs": None, "finish_reason": "stop"},
        {"index": 1, "text": "hello t", "logprobs": None, "finish_reason": "length"},
    ]
    assert answer["usage"] == {"prompt_tokens": 6 + 12, "completion_tokens": 6 + 7, "total_tokens": 31}


@pytest.mark.parametrize(
    "max_tokens, text, reason",
    [(6, "hello", "stop"), (5, "hello", "length"), (1, "h", "length"), (None, "hello", "stop")],
)
def test_finish_reason_says_whether_the_model_ended(echo, max_tokens, text, reason):
    choice = echo.complete("hello", **({} if max_tokens is None else {"max_tokens": max_tokens})).json()["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == (text, reason)


def test_models_health_and_the_page(echo):
    listed = requests.get(f"{echo.url}/v1/models").json()
    assert listed["object"] == "list" and [model["id"] for model in listed["data"]] == ["echo"]
    assert listed["data"][0]["object"] == "model" and listed["data"][0]["ready"]
    assert requests.get(f"{echo.url}/v1/models/echo").json() == listed["data"][0]
    assert requests.get(f"{echo.url}/health").json() == {"status": "ok"}
    page = requests.get(f"{echo.url}/")
    assert (
        page.headers["content-type"].startswith("text/html")
        and "default-src 'none'" in page.headers["content-security-policy"]
    )
    schema = requests.get(f"{echo.url}/openapi.json").json()
    body = schema["paths"]["/v1/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    own = {"prompt", "inputs", "model", "max_tokens", "min_tokens", "temperature", "seed", "stop", "stream"}
    own |= {"stream_options"}
    assert own < set(body["properties"]) and body["properties"]["n"] == {"enum": [1, None]}


def test_unicode_is_preserved(echo):
    text = 'Grüße, 世界 \U0001f40d \u0000 \\ " <b>'
    assert echo.complete(text, max_tokens=256).json()["choices"][0]["text"] == text


def test_metrics_count_requests_and_tokens(echo_server):
    with echo_server() as server:
        server.complete(["hello", "you"])
        server.complete("hello", n=2)
        assert server.metric("requests_total", status="200") == 1
        assert server.metric("requests_total", status="400") == 1
        assert server.metric("request_seconds_count") == 1
        assert server.metric("batch_size_sum") == 2 and server.metric("batch_size_count") == 1
        assert server.metric("prompt_tokens_total", model="echo") == 10
        assert server.metric("completion_tokens_total", model="echo") == 10
        assert server.metric("waiting_prompts") == 0


# name -> body (bytes, or a dict for JSON), status, part of the message
GOOD = {"prompt": "hello"}
BAD = {
    "empty body": (b"", 400, "not JSON"),
    "no JSON": (b"hello", 400, "not JSON"),
    "cut off": (b'{"prompt": "hel', 400, "not JSON"),
    "two values": (b'{"prompt": "a"} {"prompt": "b"}', 400, "not JSON"),
    "single quotes": (b"{'prompt': 'a'}", 400, "not JSON"),
    "trailing comma": (b'{"prompt": "a",}', 400, "not JSON"),
    "not UTF-8": (b'{"prompt": "\xff\xfe"}', 400, "not JSON"),
    "UTF-16": ('{"prompt": "a"}'.encode("utf-16"), 400, "not JSON"),
    "lone surrogate": (b'{"prompt": "\\ud800"}', 400, "not JSON"),
    "control character": (b'{"prompt": "a\x00b"}', 400, "not JSON"),
    "nested too deep": (b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400, "not JSON"),
    "null": (b"null", 400, "not a JSON object"),
    "list": (b'["hello"]', 400, "not a JSON object"),
    "text": (b'"hello"', 400, "not a JSON object"),
    "number": (b"1", 400, "not a JSON object"),
    "no prompt": ({}, 400, "prompt is missing"),
    "other name": ({"prompts": ["a"]}, 400, "prompt is missing"),
    "prompt and inputs": ({"prompt": "a", "inputs": {"source": "a"}}, 400, "exclude each other; give one of them"),
    "inputs without a template": ({"inputs": {"source": "a"}}, 400, "echo has no template of its inputs; send the"),
    "inputs a text": ({"inputs": "a"}, 400, 'inputs must be an object such as {"source": "a text"}'),
    "inputs a list": ({"inputs": [{"source": "a"}]}, 400, "inputs must be an object"),
    "inputs null": ({"inputs": None}, 400, "prompt is missing"),
    "prompt null": ({"prompt": None}, 400, "prompt is missing"),
    "prompt number": ({"prompt": 5}, 400, "prompt must be a text or a list of texts"),
    "prompt object": ({"prompt": {"text": "a"}}, 400, "prompt must be a text or a list of texts"),
    "prompt of token ids": ({"prompt": [1, 2, 3]}, 400, "prompt must be a text or a list of texts"),
    "prompt of lists": ({"prompt": [["a"]]}, 400, "prompt must be a text or a list of texts"),
    "prompt with a null": ({"prompt": ["a", None]}, 400, "prompt must be a text or a list of texts"),
    "prompt empty": ({"prompt": ""}, 400, "prompt is empty"),
    "prompt of spaces": ({"prompt": " \n"}, 400, "prompt is empty"),
    "no prompts": ({"prompt": []}, 400, "0 texts"),
    "one prompt empty": ({"prompt": ["a", ""]}, 400, "prompt is empty"),
    "too many prompts": ({"prompt": ["a"] * 33}, 400, "33 texts; give 1 to 32"),
    "prompt too long": ({"prompt": "a" * 512}, 400, "513 tokens long; the limit is 512"),
    "one prompt too long": ({"prompt": ["a", "a" * 600]}, 400, "601 tokens long"),
    "min_tokens negative": ({**GOOD, "min_tokens": -1}, 400, "min_tokens should be"),
    "min_tokens above max_tokens": ({**GOOD, "max_tokens": 4, "min_tokens": 5}, 400, "but max_tokens is 4"),
    "max_tokens 0": ({**GOOD, "max_tokens": 0}, 400, "max_tokens should be greater"),
    "max_tokens negative": ({**GOOD, "max_tokens": -1}, 400, "max_tokens should be greater"),
    "max_tokens too large": ({**GOOD, "max_tokens": 257}, 400, "the limit is 256"),
    "max_tokens huge": (b'{"prompt": "a", "max_tokens": 1' + b"0" * 400 + b"}", 400, "max_tokens"),
    "max_tokens digits without end": (b'{"prompt": "a", "max_tokens": ' + b"9" * 100_000 + b"}", 400, "out of range"),
    "max_tokens a text": ({**GOOD, "max_tokens": "5"}, 400, "max_tokens should be"),
    "max_tokens a fraction": ({**GOOD, "max_tokens": 5.5}, 400, "max_tokens should be"),
    "max_tokens a truth": ({**GOOD, "max_tokens": True}, 400, "max_tokens should be"),
    "max_tokens a list": ({**GOOD, "max_tokens": [5]}, 400, "max_tokens should be"),
    "temperature negative": ({**GOOD, "temperature": -0.1}, 400, "temperature should be"),
    "temperature too high": ({**GOOD, "temperature": 2.1}, 400, "temperature should be"),
    "temperature NaN": (b'{"prompt": "a", "temperature": NaN}', 400, "temperature should be"),
    "temperature infinite": (b'{"prompt": "a", "temperature": Infinity}', 400, "temperature should be"),
    "temperature overflow": (b'{"prompt": "a", "temperature": 1e999}', 400, "temperature should be"),
    "temperature a text": ({**GOOD, "temperature": "hot"}, 400, "temperature should be"),
    "seed too small": ({**GOOD, "temperature": 1, "seed": -(2**63) - 1}, 400, "seed should be"),
    "seed too large": ({**GOOD, "temperature": 1, "seed": 2**63}, 400, "seed should be"),
    "seed a text": ({**GOOD, "temperature": 1, "seed": "a"}, 400, "seed should be"),
    "stop a number": ({**GOOD, "stop": 5}, 400, "stop must be a text or a list of texts"),
    "stop of token ids": ({**GOOD, "stop": [5]}, 400, "stop must be a text or a list of texts"),
    "stop with a null": ({**GOOD, "stop": ["a", None]}, 400, "stop must be a text or a list of texts"),
    "stop empty": ({**GOOD, "stop": ""}, 400, "stop has an empty text"),
    "one stop empty": ({**GOOD, "stop": ["a", ""]}, 400, "stop has an empty text"),
    "too many stops": ({**GOOD, "stop": list("abcde")}, 400, "stop has 5 texts; give at most 4"),
    "stream a text": ({**GOOD, "stream": "yes"}, 400, "stream should be"),
    "stream a number": ({**GOOD, "stream": 1}, 400, "stream should be"),
    "stream_options a truth": (
        {**GOOD, "stream": True, "stream_options": True},
        400,
        "stream_options must be an object",
    ),
    "include_usage a text": (
        {**GOOD, "stream_options": {"include_usage": "a"}},
        400,
        "stream_options must be an object",
    ),
    "unsupported stream option": (
        {**GOOD, "stream": True, "stream_options": {"include_usage": True, "include_obfuscation": True}},
        400,
        "stream_options.include_obfuscation is true, which is not supported; it may be false or null",
    ),
    "bad before a stream": ({**GOOD, "stream": True, "max_tokens": 257}, 400, "the limit is 256"),
    "failing before a stream": ({"prompt": "crash", "stream": True}, 500, "the server's log says why"),
    "model unknown": ({**GOOD, "model": "gpt-4"}, 404, "there is no model 'gpt-4'; this server has echo"),
    "model a number": ({**GOOD, "model": 4}, 400, "model should be"),
    "model a path": ({**GOOD, "model": "../../etc/passwd"}, 404, "there is no model"),
    "a name of a megabyte": ({**GOOD, "x" * 900_000: 1}, 400, "is not supported"),
    "an empty name": ({**GOOD, "": 1}, 400, "is not supported"),
    "body too large": (b'{"prompt": "' + b"a" * (1 << 20) + b'"}', 413, "larger than 1,048,576 bytes"),
    **{
        f"{name} asks for more": ({**GOOD, name: value}, 400, f"{name} is {json.dumps(value)}, which is not supported")
        for name, value in {
            "n": 2,
            "best_of": 2,
            "logprobs": 0,
            "echo": True,
            "suffix": "a",
            "top_p": 0.9,
            "top_k": 5,
            "min_p": 0.1,
            "logit_bias": {"5": 1},
            "presence_penalty": -0.5,
            "frequency_penalty": 1,
            "num_beams": 4,
            "tools": [{"type": "function"}],
            "tool_choice": "required",
            "response_format": {"type": "json_object"},
            "store": True,
        }.items()
    },
    "n true": ({**GOOD, "n": True}, 400, "n is true, which is not supported; it may be 1 or null"),
    "logprobs true": (
        {**GOOD, "logprobs": True},
        400,
        "logprobs is true, which is not supported; it may be false or null",
    ),
    "echo 0": ({**GOOD, "echo": 0}, 400, "echo is 0, which is not supported"),
    "top_p a text at temperature 0": ({**GOOD, "temperature": 0, "top_p": "1"}, 400, 'top_p is "1", which is not'),
    "top_p with a temperature": (
        {**GOOD, "temperature": 1, "top_p": 0.9},
        400,
        "top_p is 0.9, which is not supported; it may be 1 or null, and any number at temperature 0",
    ),
    "a long value": ({**GOOD, "suffix": "a" * 900_000}, 400, 'suffix is "aaaaa'),
    "messages": ({**GOOD, "messages": [{"role": "user", "content": "hi"}]}, 400, "messages is not supported"),
    "nonsense": ({**GOOD, "nonsense": 0}, 400, "nonsense is not supported; the parameters of a request are"),
}

# Each set of values has no effect.
NEUTRAL = [
    {"n": 1, "best_of": 1, "echo": False, "suffix": "", "logprobs": None, "stop": None, "stream": False},
    {"top_p": 1, "frequency_penalty": 0, "presence_penalty": 0, "logit_bias": {}, "user": "me"},
    {"n": 1.0, "top_p": 1.0, "frequency_penalty": 0.0, "presence_penalty": 0.0, "temperature": 0.0},
    {"temperature": None, "max_tokens": None, "min_tokens": None, "seed": None, "model": None, "stream": None},
    {"logprobs": False, "top_logprobs": 0, "stop": [], "stream_options": None},
    {"stream_options": {}},
    {"stream_options": {"include_usage": False, "include_obfuscation": False, "continuous_usage_stats": None}},
    {"temperature": 0, "top_p": 0.9, "top_k": 50, "min_p": 0.05, "seed": 7},
    {"seed": -1},
    {"top_k": -1, "min_p": 0, "repetition_penalty": 1, "use_beam_search": False, "num_beams": 1},
    {"tools": [], "tool_choice": "none", "parallel_tool_calls": True, "response_format": {"type": "text"}},
    {"store": False, "metadata": {"a": "b"}, "service_tier": "auto", "safety_identifier": "x", "nonsense": None},
]


@pytest.mark.parametrize("fields", NEUTRAL, ids=json.dumps)
def test_values_without_effect_are_accepted_and_change_nothing(echo, fields):
    answer, plain = (echo.complete("hello", **extra) for extra in (fields, {}))
    assert answer.status_code == 200, answer.text
    assert [answer.json()[key] for key in ("choices", "usage")] == [plain.json()[key] for key in ("choices", "usage")]


def check_refused(response: requests.Response, status: int, message: str) -> None:
    assert response.status_code == status, response.text[:300]
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and message in error["message"]
    assert len(response.content) < 1000 and "Traceback" not in response.text


@pytest.mark.parametrize("name", BAD)
def test_a_bad_body_is_refused_with_a_clear_message_and_the_server_continues(echo, name):
    body, status, message = BAD[name]
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = requests.post(f"{echo.url}/v1/completions", data=data, headers={"Content-Type": "application/json"})
    check_refused(response, status, message)
    assert echo.complete("hello").json()["choices"][0]["text"] == "hello"


ODD = {
    "no content type": ({"data": b'{"prompt": "a"}'}, 415, "Content-Type is missing"),
    "form": ({"data": {"prompt": "a"}}, 415, "Content-Type is application/x-www-form-urlencoded"),
    "plain text": ({"data": b"{}", "headers": {"Content-Type": "text/plain"}}, 415, "Content-Type is text/plain"),
    "upload": ({"files": {"prompt": b"a"}}, 415, "Content-Type is multipart/form-data"),
    "compressed": (
        {
            "data": gzip.compress(b'{"prompt": "a"}'),
            "headers": {"Content-Type": "application/json", "Content-Encoding": "gzip"},
        },
        415,
        "Content-Encoding",
    ),
    "too large in chunks": (
        {"data": (b"a" * 65536 for _ in range(64)), "headers": {"Content-Type": "application/json"}},
        413,
        "larger than",
    ),
    "GET": ({"method": "GET"}, 405, "Method Not Allowed"),
    "PUT": ({"method": "PUT", "json": GOOD}, 405, "Method Not Allowed"),
    "DELETE": ({"method": "DELETE"}, 405, "Method Not Allowed"),
    "chat": ({"path": "/v1/chat/completions", "json": GOOD}, 404, "Not Found"),
    "embeddings": ({"path": "/v1/embeddings", "json": GOOD}, 404, "Not Found"),
    "no such path": ({"path": "/etc/passwd", "method": "GET"}, 404, "Not Found"),
    "a path upwards": ({"path": "/%2e%2e/%2e%2e/etc/passwd", "method": "GET"}, 404, "Not Found"),
    "no such model": ({"path": "/v1/models/other", "method": "GET"}, 404, "there is no model 'other'"),
}


@pytest.mark.parametrize("name", ODD)
def test_unusual_requests_are_refused(echo, name):
    request, status, message = ODD[name]
    request = dict(request)
    method, path = request.pop("method", "POST"), request.pop("path", "/v1/completions")
    check_refused(requests.request(method, echo.url + path, **request), status, message)
    assert echo.complete("hello").ok


@pytest.mark.parametrize(
    "sent",
    [
        b"hello\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: many\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}",  # no Host
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
    ],
    ids=["text", "TLS", "negative length", "length as text", "no host", "long header"],
)
def test_bytes_that_are_not_http_are_answered_400(echo, sent):
    address = urlsplit(echo.url)
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        connection.sendall(sent)
        assert connection.recv(100).startswith(b"HTTP/1.1 400 ")
    assert echo.complete("hello").ok


def test_at_least_50_kinds_of_bad_requests_are_tested():
    assert len(BAD) + len(ODD) >= 50


def test_a_failure_of_the_model_is_500_and_the_server_continues(echo):
    response = echo.complete("crash")
    assert response.status_code == 500 and "the server's log says why" in response.json()["error"]["message"]
    assert echo.complete("hello").ok
