"""OpenAI's Python client against a real server process: default parameters, stop sequences, streams, errors."""

import inspect
import json
from collections.abc import Callable

import openai
import pytest
import requests
from openai.types.completion_create_params import CompletionCreateParamsNonStreaming

TEXT = 'Grüße, 世界 \U0001f40d\u2028\x85 \\ " <b>\n\ndata: [DONE]\n'


def client_of(server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=30)


@pytest.fixture(scope="module")
def client(echo):
    with client_of(echo) as client:
        yield client


@pytest.fixture(scope="module")
def slow(echo_server):
    """A server that generates a token every 10 ms."""
    with echo_server(pace=0.01, max_batch=4) as server:
        yield server


@pytest.fixture
def ask(client) -> Callable[..., openai.types.Completion]:
    return lambda prompt="hello", **fields: client.completions.create(model="echo", prompt=prompt, **fields)


def read(stream: openai.Stream) -> tuple[dict[int, str], dict[int, str], list[openai.types.Completion]]:
    """Texts and finish reasons of a stream by prompt index, and its chunks."""
    texts, reasons, chunks = {}, {}, list(stream)
    for chunk in chunks:
        for choice in chunk.choices:
            assert choice.index not in reasons  # no piece follows the end of an answer
            texts[choice.index] = texts.get(choice.index, "") + choice.text
            if choice.finish_reason is not None:
                reasons[choice.index] = choice.finish_reason
    return texts, reasons, chunks


def test_a_completion_and_the_models(client, ask):
    answer = ask()
    assert (answer.choices[0].text, answer.choices[0].finish_reason, answer.usage.total_tokens) == ("hello", "stop", 12)
    assert [model.id for model in client.models.list()] == ["echo"] and client.models.retrieve("echo").id == "echo"


DEFAULTS = {"best_of": 1, "echo": False, "frequency_penalty": 0, "logit_bias": {}, "max_tokens": 16, "n": 1}
DEFAULTS |= {"presence_penalty": 0, "stop": None, "stream": False, "suffix": None, "temperature": 1, "top_p": 1}
DEFAULTS |= {"logprobs": None, "seed": None, "stream_options": None, "user": "someone"}


def test_every_openai_parameter_may_have_its_documented_default(ask):
    known = inspect.get_annotations(CompletionCreateParamsNonStreaming)
    for base in CompletionCreateParamsNonStreaming.__orig_bases__:
        known |= inspect.get_annotations(base)
    assert set(DEFAULTS) == set(known) - {"model", "prompt"}  # a new parameter of the client fails here
    assert ask(**DEFAULTS).choices[0].text == "hello"
    assert ask(**dict.fromkeys(DEFAULTS)).choices[0].text == "hello"


@pytest.mark.parametrize(
    "stop, text, tokens",
    [
        ("there", "say hello ", 15),
        (["xyz", "llo", "hello"], "say ", 9),  # the one that begins first counts
        (["\n"], "say hello there", 16),
        (" ", "say", 4),
        ("s", "", 1),
    ],
)
def test_an_answer_ends_before_the_first_stop_sequence(ask, stop, text, tokens):
    answer = ask("say hello there", stop=stop)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (text, "stop")
    assert answer.usage.completion_tokens == tokens
    texts, reasons, chunks = read(
        ask("say hello there", stop=stop, stream=True, stream_options={"include_usage": True})
    )
    assert (texts, reasons, chunks[-1].usage) == ({0: text}, {0: "stop"}, answer.usage)


def test_a_mask_can_be_a_stop_sequence(ask):
    answer = ask("a <extra_id_0> b <extra_id_1> c", stop="<extra_id_1>")
    assert answer.choices[0].text == "<extra_id_0> for inviting "


def test_each_prompt_stops_independently(ask):
    answer = ask(["a.b", "ab", "a.", "abcdef"], stop=".", max_tokens=5)
    assert [(choice.text, choice.finish_reason) for choice in answer.choices] == [
        ("a", "stop"),
        ("ab", "stop"),
        ("a", "stop"),
        ("abcde", "length"),
    ]
    texts, reasons, _ = read(ask(["a.b", "ab", "a.", "abcdef"], stop=".", max_tokens=5, stream=True))
    assert texts == {0: "a", 1: "ab", 2: "a", 3: "abcde"} and reasons == {0: "stop", 1: "stop", 2: "stop", 3: "length"}


@pytest.mark.parametrize("max_tokens", [1, 3, 9, 256])
def test_the_pieces_of_a_stream_add_up_to_the_answer(ask, max_tokens):
    prompts = [TEXT, "hello", "a <extra_id_0> b <extra_id_1> c"]
    whole = ask(prompts, max_tokens=max_tokens)
    texts, reasons, chunks = read(ask(prompts, max_tokens=max_tokens, stream=True))
    assert texts == {choice.index: choice.text for choice in whole.choices}
    assert reasons == {choice.index: choice.finish_reason for choice in whole.choices}
    assert {(chunk.id, chunk.created, chunk.model, chunk.object) for chunk in chunks} == {
        (chunks[0].id, chunks[0].created, "echo", "text_completion")
    }
    assert all(len(chunk.choices) == 1 and chunk.usage is None for chunk in chunks)
    assert max_tokens < 256 or len(chunks) > 60  # the answers arrive in many pieces


def test_usage_is_the_last_chunk_if_requested(ask):
    whole = ask(["hello", "you"])
    *pieces, last = read(ask(["hello", "you"], stream=True, stream_options={"include_usage": True}))[2]
    assert (last.choices, last.usage) == ([], whole.usage) and all(piece.usage is None for piece in pieces)


def test_the_bytes_of_a_stream(echo):
    response = echo.complete("h\u2028", stream=True)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-store"
    *events, end, rest = response.content.split(b"\n\n")
    assert (end, rest) == (b"data: [DONE]", b"")
    assert all(event.startswith(b"data: {") and event.isascii() for event in events)
    choices = [json.loads(event.removeprefix(b"data: "))["choices"][0] for event in events]
    assert choices == [
        {"index": 0, "text": "h", "logprobs": None, "finish_reason": None},
        {"index": 0, "text": "\u2028", "logprobs": None, "finish_reason": None},
        {"index": 0, "text": "", "logprobs": None, "finish_reason": "stop"},
    ]


def test_errors_are_parsed_by_the_openai_client(ask, client):
    for stream in (False, True):
        with pytest.raises(
            openai.BadRequestError, match="n is 2, which is not supported; it may be 1 or null"
        ) as found:
            ask(n=2, stream=stream)
        assert (found.value.param, found.value.code) == ("n", "unsupported_parameter")
        with pytest.raises(openai.NotFoundError, match="there is no model 'gpt-4'"):
            client.completions.create(model="gpt-4", prompt="hello", stream=stream)
        with pytest.raises(openai.BadRequestError, match="513 tokens long"):
            ask("a" * 512, stream=stream)
        with pytest.raises(openai.InternalServerError, match="the server's log says why"):
            ask("crash", stream=stream)
    with pytest.raises(openai.NotFoundError, match="this server has POST /v1/completions"):
        client.chat.completions.create(model="echo", messages=[{"role": "user", "content": "hello"}])


def test_the_first_pieces_arrive_while_the_rest_is_generated(slow):
    answered = slow.metric("requests_total", status="200")
    with client_of(slow) as client:
        stream = client.completions.create(model="echo", prompt="a" * 200, max_tokens=200, stream=True)
        first = next(stream)
        assert first.choices[0].text == "a" and slow.metric("requests_total", status="200") == answered
        assert "a" + "".join(chunk.choices[0].text for chunk in stream) == "a" * 200
        assert slow.metric("requests_total", status="200") == answered + 1 and slow.metric("request_seconds_sum") > 2


def test_a_stream_ends_with_its_answer_before_its_batch_ends(echo_server, pool):
    with echo_server(pace=0.01, wait=0.5) as server, client_of(server) as client:
        long = pool.submit(server.complete, "a" * 256, max_tokens=256)
        texts, _, _ = read(client.completions.create(model="echo", prompt="b.c", stop=".", stream=True))
        assert texts == {0: "b"} and not long.done()
        assert long.result().json()["choices"][0]["text"] == "a" * 256
        assert server.metric("batch_size_count") == 1  # both requests were in one batch


def test_a_failure_after_the_first_piece_is_the_last_event(slow):
    broken = slow.metric("requests_total", status="500")
    with client_of(slow) as client:
        stream = client.completions.create(model="echo", prompt="break it", stream=True)
        assert next(stream).choices[0].text == "b"
        with pytest.raises(openai.APIError, match="the server's log says why"):
            list(stream)
    assert slow.complete("break it", stream=True).text.count("[DONE]") == 0
    assert slow.metric("requests_total", status="500") == broken + 2


def test_a_stream_that_fails_or_disconnects_does_not_affect_other_streams(echo_server, pool):
    prompts = ["break one", "stays to its end", "stays, too", "goes away early on " * 10]
    with echo_server(pace=0.01, wait=0.5, max_batch=4) as server, client_of(server) as client:

        def stream(prompt: str) -> str:
            chunks = client.completions.create(model="echo", prompt=prompt, max_tokens=200, stream=True)
            if prompt.startswith("goes"):
                piece = next(chunks).choices[0].text
                chunks.close()
                return piece
            return read(chunks)[0][0]

        broken, *others, gone = [pool.submit(stream, prompt) for prompt in prompts]
        assert [other.result() for other in others] == prompts[1:3] and gone.result() == "g"
        with pytest.raises(openai.APIError, match="the server's log says why"):
            broken.result()
        server.until(lambda: server.metric("requests_total", status="499") == 1)
        assert server.metric("requests_total", status="200") == 2
        assert server.complete("hello").json()["choices"][0]["text"] == "hello"


def test_a_stream_that_times_out_ends_with_an_error(echo_server):
    with echo_server(pace=0.05, timeout=0.5) as server, client_of(server) as client:
        stream = client.completions.create(model="echo", prompt="a" * 100, stream=True)
        assert next(stream).choices[0].text == "a"
        with pytest.raises(openai.APIError, match="no answer within 0.5 seconds"):
            list(stream)
        server.until(lambda: server.metric("requests_total", status="408") == 1)
        assert server.complete("b", max_tokens=1).ok  # the other answer is not completed first


def test_stopping_the_server_lets_streams_end(echo_server):
    with echo_server(pace=0.01) as server, client_of(server) as client:
        stream = client.completions.create(model="echo", prompt="a" * 60, stream=True)
        assert next(stream).choices[0].text == "a"
        server.process.terminate()
        assert "a" + "".join(chunk.choices[0].text for chunk in stream) == "a" * 60
        assert server.process.wait(10) == 0


def test_a_stalled_reader_does_not_block_others(slow):
    with requests.post(f"{slow.url}/v1/completions", json={"prompt": "a" * 60, "stream": True}, stream=True):
        assert slow.complete("hello").json()["choices"][0]["text"] == "hello"
