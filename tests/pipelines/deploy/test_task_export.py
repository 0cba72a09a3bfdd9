"""Export and serving of the student of task-smoke: parity on the task's inputs, metrics, template and card."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import requests
import torch
from mlflow import MlflowClient
from transformers import AutoTokenizer, T5ForConditionalGeneration

from distill.config import DataConfig
from distill.data.read_prepared import read_prepared
from distill.metrics import METRICS
from pipelines.reporting.cells import metric_value
from students.runtime import load_runner

ROOT = Path(__file__).parents[3]
LIBRARY = {"onnx": "onnxruntime", "ctranslate2": "ctranslate2"}
MODELS = ("baseline", "long_baseline", "teacher", "student")
KINDS = [
    ("hf", "float32"),
    pytest.param(("ctranslate2", "int8"), marks=pytest.mark.slow),
    pytest.param(("onnx", "int8"), marks=pytest.mark.slow),
    pytest.param(("mlflow", "float32"), marks=pytest.mark.slow),
]


@pytest.fixture(scope="module", params=KINDS, ids=str)
def exported(request, task_export):
    format, precision = request.param
    if format in LIBRARY and importlib.util.find_spec(LIBRARY[format]) is None:
        pytest.skip(f"{LIBRARY[format]} is not installed")
    directory = task_export(format, precision)
    return directory, json.loads((directory / "manifest.json").read_text())


@pytest.fixture(scope="module")
def examples(task_work):
    """The evaluated examples of the run: texts, and ids of inputs and targets."""
    (facts,) = task_work.glob("data/*/data.json")
    data, config = read_prepared(facts.parent), DataConfig(test_fraction=0.3, test_examples=64)
    pairs, rows = data.pairs("test"), data.evaluated_rows(config)
    ids = [pairs.tokens[pairs.starts[row] : pairs.middles[row]].tolist() for row in rows]
    return data.task_examples(config), ids


@pytest.fixture(scope="module")
def answered(task_student):
    """A function: the answer of transformers to token ids, of at most 32 tokens."""
    model = T5ForConditionalGeneration.from_pretrained(task_student).eval()
    tokenizer = AutoTokenizer.from_pretrained(task_student)

    @torch.inference_mode()
    def answer(ids: list[int], max_tokens: int = 32) -> str:
        row = model.generate(torch.tensor([ids]), max_new_tokens=max_tokens, do_sample=False, num_beams=1)[0]
        return tokenizer.decode(row, skip_special_tokens=True)

    return answer


def test_the_metrics_are_those_of_the_answers_to_the_tasks_inputs(exported, examples, answered):
    directory, manifest = exported
    (texts, ids), task = examples, manifest["task"]
    assert manifest["parity"]["tokens"] == texts.target_tokens.sum()  # 64 examples: all of them
    runner = load_runner(directory, threads=1)
    rows = [row for start in range(0, 64, 8) for row in runner.generate(ids[start : start + 8], [32] * 8)]
    made = {
        "student": [answered(row) for row in ids],
        "export": [runner.tokenizer.decode(row, skip_special_tokens=True) for row in rows],
    }
    assert task["examples"] == 64 and list(task["metrics"]) == ["exact_match", "token_f1"]
    for name, values in task["metrics"].items():
        for model, answers in made.items():
            assert values[model] == pytest.approx(METRICS[name].value(answers, texts.references), abs=1e-9)
    assert (task["input"], task["columns"]) == ("{source}", ["source"])
    assert task["example"]["input"] in texts.inputs


def test_the_store_has_the_metrics_and_the_data_of_the_check(exported, task_work):
    directory, manifest = exported
    client = MlflowClient(f"sqlite:///{task_work}/mlflow.db")
    tree = json.loads((directory / "lineage.json").read_text())
    run = client.get_run(tree["run_id"])
    for name, values in manifest["task"]["metrics"].items():
        assert run.data.metrics[name] == pytest.approx(values["export"], abs=1e-6)
    (entry,) = run.inputs.dataset_inputs
    assert entry.dataset.name == "stdlib:docstrings-test"


def test_the_card_has_the_template_an_example_and_metrics_and_its_code_runs(exported, task_work):
    directory, manifest = exported
    reported = json.loads((task_work / "report.json").read_text())["ratios"][0]["metrics"]
    card, example = (directory / "model_card.md").read_text(), manifest["task"]["example"]
    assert "\n    {source}\n" in card and "held-out text" not in card
    for text in example.values():
        assert "\n".join(f"    {line}" for line in text.splitlines()) in card
    for name, values in manifest["task"]["metrics"].items():
        shown = [metric_value(name, reported[name][model]) for model in MODELS]
        assert f"| {name} | {' | '.join(shown)} |" in card
        assert f"| {name} | higher | {metric_value(name, values['student'])} | " in card
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    assert repr(example["input"]) in code
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr


def test_the_server_answers_the_columns_as_the_student_answers_the_text(task_export, serving, answered, examples):
    """Also with the body of the command in docs/serving.md."""
    texts, ids = examples
    number = min(range(64), key=lambda one: len(ids[one]))
    documented = re.search(r"'(\{\"inputs\".*?\})'", (ROOT / "docs" / "serving.md").read_text())[1]
    bodies = [json.loads(documented), {"inputs": {"source": texts.inputs[number]}, "max_tokens": 32}]
    tokenizer = AutoTokenizer.from_pretrained(task_export("hf", "float32"))
    command = ["-m", "pipelines.cli", "serve", str(task_export("hf", "float32")), "--port", "0"]
    with serving(command) as server:
        for body in bodies:
            answer = requests.post(f"{server.url}/v1/completions", json=body, timeout=60).json()
            row = tokenizer(body["inputs"]["source"]).input_ids
            assert answer["choices"][0]["text"] == answered(row, body["max_tokens"])
        refused = requests.post(f"{server.url}/v1/completions", json={"inputs": {"text": "a"}}, timeout=60)
        assert refused.status_code == 400
        assert refused.json()["error"]["message"] == "inputs has no source; the columns of the template are source"
