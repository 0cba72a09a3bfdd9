"""Requests with the columns of a task in place of a prompt, to a real server whose model repeats its input."""

import json

import pytest
import requests


def ask(server, inputs, **fields) -> requests.Response:
    body = json.dumps({"inputs": inputs, **fields})
    headers = {"Content-Type": "application/json"}
    return requests.post(f"{server.url}/v1/completions", data=body, headers=headers, timeout=60)


@pytest.mark.parametrize(
    "inputs, text",
    [
        ({"language": "de", "source": "good day"}, "to de: good day {good day}"),
        ({"source": "x", "language": ""}, "to : x {x}"),
        ({"language": 7, "source": -0.5}, "to 7: -0.5 {-0.5}"),
        ({"language": "{source}", "source": "Grüße\n\\1"}, "to {source}: Grüße\n\\1 {Grüße\n\\1}"),
    ],
)
def test_the_model_gets_the_template_with_the_values(task_echo, inputs, text):
    answer = ask(task_echo, inputs, max_tokens=64).json()
    assert [choice["text"] for choice in answer["choices"]] == [text]
    assert answer["usage"]["prompt_tokens"] == len(text.encode()) + 1


def test_a_stream_takes_inputs_too(task_echo):
    answer = ask(task_echo, {"language": "de", "source": "x"}, stream=True, max_tokens=64)
    events = [json.loads(line[6:]) for line in answer.text.split("\n\n") if line.startswith("data: {")]
    assert "".join(event["choices"][0]["text"] for event in events) == "to de: x {x}"


def test_prompts_are_still_answered_as_they_are(task_echo):
    assert task_echo.complete("hello").json()["choices"][0]["text"] == "hello"


def test_the_model_list_has_the_template_and_its_columns(task_echo, echo):
    def listed(server):
        return requests.get(f"{server.url}/v1/models", timeout=10).json()["data"][0]

    assert listed(task_echo)["template"] == "to {language}: {source} {{{source}}}"
    assert listed(task_echo)["columns"] == ["language", "source"]
    assert "template" not in listed(echo)


@pytest.mark.parametrize(
    "inputs, message",
    [
        ({"language": "de"}, "inputs has no source; the columns of the template are language, source"),
        ({}, "inputs has no language"),
        ({"language": "de", "source": "x", "target": "y"}, "inputs has the unknown column 'target'; the columns of"),
        ({"language": "de", "source": None}, "inputs.source must be a text or a number"),
        ({"language": "de", "source": True}, "inputs.source must be a text or a number"),
        ({"language": "de", "source": ["x"]}, "inputs.source must be a text or a number"),
        ({"language": "de", "source": float("nan")}, "inputs.source must be a text or a number"),
        ({"language": "de", "source": "x" * 40}, "inputs is 91 tokens long; the limit is 64"),
        ({"language": "de", "source": "x", "y" * 900_000: 1}, "inputs has the unknown column 'yyy"),
    ],
)
def test_other_columns_and_values_are_refused_in_one_sentence(task_echo, inputs, message):
    response = ask(task_echo, inputs)
    error = response.json()["error"]
    assert response.status_code == 400 and message in error["message"] and error["param"] == "inputs"
    assert len(response.content) < 1000


def test_an_empty_text_is_refused(echo_server):
    with echo_server(template="{source}") as server:
        response = ask(server, {"source": " \n"})
        assert response.status_code == 400
        assert response.json()["error"]["message"] == "inputs gives an empty text; give a text in its columns"
