"""``switch-distill serve`` end to end: an exported student over HTTP against ``generate`` of transformers."""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import openai
import psutil
import pytest
import requests
import torch
from transformers import AutoTokenizer, T5ForConditionalGeneration

from distill.errors import UserError
from pipelines.deploy import serve
from teachers import load_teacher

ROOT = Path(__file__).parents[3]
PROMPTS = ["def <extra_id_0>(self):", "import os <extra_id_0> sys", "x", "the text of a <extra_id_1> <extra_id_0>"]
# The command, which prints the modules that it has imported at its end.
COMMAND = """
import atexit, sys
atexit.register(lambda: print("imported", "torch" in sys.modules, "transformers" in sys.modules, flush=True))
from pipelines.cli.app import main
main()
"""


def needs(library: str):
    return pytest.mark.skipif(importlib.util.find_spec(library) is None, reason=f"{library} is not installed")


FORMATS = [
    pytest.param("onnx", "float32", marks=[needs("onnxruntime"), pytest.mark.slow]),
    pytest.param("ctranslate2", "float32", marks=needs("ctranslate2")),
    pytest.param("hf", "float32", marks=pytest.mark.slow),
]


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def answers(distilled) -> list[list[int]]:
    """Token ids of greedy answers of transformers to PROMPTS, up to and including </s>."""
    return generated(T5ForConditionalGeneration.from_pretrained(distilled / "model").eval(), distilled / "model")


def generated(model, directory: Path) -> list[list[int]]:
    tokenizer, made = AutoTokenizer.from_pretrained(directory), []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        with torch.inference_mode():
            row = model.generate(ids, max_new_tokens=12, do_sample=False, num_beams=1)[0, 1:].tolist()
        made.append(row[: row.index(1) + 1] if 1 in row else row)
    return made


def streamed(server, model: str, **fields) -> list[str]:
    """Answers to PROMPTS, streamed by OpenAI's client."""
    texts = [""] * len(PROMPTS)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        for chunk in client.completions.create(model=model, prompt=PROMPTS, max_tokens=12, stream=True, **fields):
            texts[chunk.choices[0].index] += chunk.choices[0].text
    return texts


@pytest.mark.parametrize("format, precision", FORMATS)
def test_the_server_gives_the_answers_of_transformers(export, serving, distilled, answers, format, precision):
    tokenizer = AutoTokenizer.from_pretrained(distilled / "model")
    directory = export(format, precision)
    with serving(["-c", COMMAND, "serve", str(directory), "--port", "0", "--threads", "1"]) as server:
        answer = server.complete(PROMPTS, max_tokens=12).json()
        texts = [choice["text"] for choice in answer["choices"]]
        assert texts == [tokenizer.decode([id_ for id_ in ids if id_ > 1]) for ids in answers]
        reasons = ["stop" if ids[-1] == 1 else "length" for ids in answers]
        assert [choice["finish_reason"] for choice in answer["choices"]] == reasons
        assert answer["usage"]["completion_tokens"] == sum(map(len, answers))
        assert streamed(server, answer["model"]) == texts
        stop = texts[0][len(texts[0]) // 2 :][:3]
        assert streamed(server, answer["model"], stop=stop) == [text.partition(stop)[0] for text in texts]
        (model,) = requests.get(f"{server.url}/v1/models").json()["data"]
        assert (model["format"], model["id"]) == (format, answer["model"]) and model["id"].startswith("student")
        process = psutil.Process(server.process.pid)
        listening = [found.laddr.ip for found in process.net_connections() if found.status == "LISTEN"]
        assert listening == ["127.0.0.1"]
        assert model["max_tokens"] == 128  # from the export's generation config
        memory = process.memory_info().rss
        server.process.send_signal(signal.SIGTERM)
        said = server.process.stdout.read()
        assert server.process.wait(10) == 0
    if format != "hf":
        assert "imported False False" in said
        assert memory < 250e6


@needs("onnxruntime")
def test_sampling_follows_the_seed(export, serving):
    with serving(["-m", "pipelines.cli", "serve", str(export("onnx", "float32")), "--port", "0"]) as server:

        def sample(seed):
            fields = {} if seed is None else {"seed": seed}
            return server.complete(PROMPTS[0], max_tokens=20, temperature=1.5, **fields).json()["choices"][0]["text"]

        assert sample(1) == sample(1)
        assert len({sample(1), sample(2), sample(3), sample(None)}) > 1


@needs("ctranslate2")
def test_a_seed_is_refused_if_the_runtime_has_none(export, serving):
    with serving(["-m", "pipelines.cli", "serve", str(export("ctranslate2", "float32")), "--port", "0"]) as server:
        refused = server.complete("a", temperature=1.0, seed=1)
        assert refused.status_code == 400 and "seed" in refused.json()["error"]["message"]
        assert server.complete("a", temperature=1.0).ok


def test_teacher_and_student_are_served_together(export, serving, exporting):
    teacher = next((exporting / "stages").glob("teacher-e4-*")) / "model"
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    loaded = load_teacher(teacher)
    for layer in filter(lambda module: hasattr(module, "drops_tokens"), loaded.modules()):
        layer.drops_tokens = False
    expected = [tokenizer.decode([id_ for id_ in ids if id_ > 1]) for ids in generated(loaded, teacher)]
    command = ["serve", str(export("hf", "float32")), "--teacher", str(teacher), "--port", "0"]
    with serving(["-m", "pipelines.cli", *command]) as server:
        models = requests.get(f"{server.url}/v1/models").json()["data"]
        assert [model["role"] for model in models] == ["student", "teacher"]
        answer = server.complete(PROMPTS, max_tokens=12, model=models[1]["id"]).json()
        assert [choice["text"] for choice in answer["choices"]] == expected
        assert streamed(server, models[1]["id"]) == expected


@pytest.mark.slow
def test_a_model_that_is_not_an_export_is_exported_first(exporting, distilled, serving, answers):
    tokenizer = AutoTokenizer.from_pretrained(distilled / "model")
    name = json.loads((distilled / "stage.json").read_text())["model_uri"]
    command = ["serve", name, "--workdir", str(exporting), "--port", "0"]
    with serving(["-m", "pipelines.cli", *command], MLFLOW_TRACKING_URI="") as server:
        choice = server.complete(PROMPTS[0], max_tokens=12).json()["choices"][0]
        assert choice["text"] == tokenizer.decode([id_ for id_ in answers[0] if id_ > 1])


@needs("onnxruntime")
@pytest.mark.parametrize(
    "options, allowed, refused",
    [
        ([], ["localhost", "127.0.0.1:1", "[::1]:8000"], ["example.org", "0.0.0.0", "192.0.2.7"]),
        (
            ["--host", "0.0.0.0", "--allowed-host", "Example.org", "--allowed-host", "::2"],
            ["0.0.0.0:8000", "localhost", "example.org:1", "[::2]"],
            ["x.example.org", "192.0.2.7"],
        ),
        (["--host", "localhost", "--allowed-host", "*"], ["localhost", "example.org", "192.0.2.7:1"], []),
    ],
)
def test_the_options_decide_which_hosts_are_allowed(export, serving, options, allowed, refused):
    command = ["serve", str(export("onnx", "float32")), "--port", "0", *options]
    with serving(["-m", "pipelines.cli", *command]) as server:
        found = {
            host: requests.get(f"{server.url}/health", headers={"Host": host}, timeout=10).status_code
            for host in allowed + refused
        }
    assert found == dict.fromkeys(allowed, 200) | dict.fromkeys(refused, 421)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["nowhere"], "nowhere"),
        (["{export}", "--format", "onnx"], "is an export of format hf; omit --format"),
        (["{export}", "--teacher", "nowhere"], "nowhere has no tokenizer.json"),
        (["{export}", "--host", "192.0.2.1"], "cannot listen on 192.0.2.1"),
        (["{export}", "--max-batch", "0"], "max-batch"),
    ],
)
def test_wrong_input_gives_one_sentence_and_exit_code_2(export, exporting, cli, arguments, words):
    arguments = [argument.format(export=export("hf", "float32")) for argument in arguments]
    done = cli("serve", *arguments, "--port", "0", "--workdir", str(exporting))
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_mlflow_serves_its_export_with_the_same_answers(export, distilled, answers, cli, free_port, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(distilled / "model")
    directory = export("mlflow", "float32")
    command = [
        "models",
        "serve",
        "-m",
        str(directory),
        "--env-manager",
        "local",
        "-h",
        "127.0.0.1",
        "-p",
        str(free_port),
    ]
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # where uvicorn is
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
        "OMP_NUM_THREADS": "1",
    }
    url = f"http://127.0.0.1:{free_port}"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", *command], env=environment, cwd=tmp_path, start_new_session=True, **quiet
    )
    try:
        end = time.monotonic() + 120
        while not answers_ping(url):
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.2)
        body = {"inputs": PROMPTS, "params": {"max_tokens": 12}}
        predictions = requests.post(f"{url}/invocations", json=body, timeout=60).json()["predictions"]
        assert predictions == [tokenizer.decode([id_ for id_ in ids if id_ > 1]) for ids in answers]
        assert requests.post(f"{url}/invocations", json={"wrong": 1}, timeout=60).status_code == 400
    finally:
        os.killpg(process.pid, signal.SIGTERM)  # the whole session, because the server is a child of this process
        process.wait(30)
    refused = cli("serve", str(directory), "--port", "0")
    assert refused.returncode == 2 and "mlflow models serve -m" in refused.stderr


def answers_ping(url: str) -> bool:
    try:
        return requests.get(f"{url}/ping", timeout=5).ok
    except requests.ConnectionError:
        return False


@pytest.mark.parametrize(
    "facts, template",
    [
        ({}, None),
        ({"task": None}, None),
        ({"task": {"input": None}}, None),
        ({"task": {"input": "to {x}"}}, "to {x}"),
    ],
)
def test_the_template_is_in_the_manifest_of_an_export(tmp_path, facts, template):
    (tmp_path / "manifest.json").write_text(json.dumps({"format": "hf", **facts}))
    assert serve.stored_template(tmp_path) == template


@pytest.mark.parametrize("task", [{}, [], "x", {"input": "to {x"}, {"input": 5}, {"input": ["{x}"]}])
def test_a_damaged_template_is_named(tmp_path, task):
    (tmp_path / "manifest.json").write_text(json.dumps({"format": "hf", "task": task}))
    with pytest.raises(UserError, match=r"the task in the manifest.json of .* is damaged; export the model again"):
        serve.stored_template(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"inputs": []}', '{"inputs": [{}]}', '{"inputs": [{"model": 3}]}'])
def test_a_damaged_lineage_is_named(tmp_path, text):
    (tmp_path / "lineage.json").write_text(text)
    with pytest.raises(UserError, match=r"lineage.json is damaged: .*; export the model again$"):
        serve.served_name(tmp_path)


def test_the_name_is_that_of_the_student(tmp_path):
    assert serve.served_name(tmp_path) == tmp_path.name
    (tmp_path / "lineage.json").write_text(json.dumps({"inputs": [{"model": "student-e2", "sha256": "1"}]}))
    assert serve.served_name(tmp_path) == "student-e2"


@pytest.mark.parametrize("text", ["{", "[]", *(f'{{"max_new_tokens": {value}}}' for value in ("null", '"9"', "0"))])
def test_a_damaged_generation_config_is_named(tmp_path, text):
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(UserError, match=r"generation_config.json is damaged: .*; export the model again$"):
        serve._answer_length(tmp_path)


@pytest.mark.parametrize("text,length", [(None, 64), ("{}", 64), ('{"max_new_tokens": 9}', 9)])
def test_the_length_of_answers_is_in_the_generation_config(tmp_path, text, length):
    if text:
        (tmp_path / "generation_config.json").write_text(text)
    assert serve._answer_length(tmp_path) == length


def test_a_missing_extra_is_named(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else real(name))
    with pytest.raises(UserError, match=r'needs uvicorn; install it with: pip install "switch-distill\[serve\]"'):
        serve.check_serving("nowhere", None)


def test_the_server_can_be_stopped_before_it_answers(export):
    command = [sys.executable, "-m", "pipelines.cli", "serve", str(export("hf", "float32")), "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        time.sleep(1)
        process.terminate()
        assert process.wait(30) in (0, 143)
        assert "Traceback" not in process.stderr.read()
