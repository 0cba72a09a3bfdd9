import importlib.util
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from distill.config import DataConfig
from distill.tasks.config import TaskConfig
from pipelines.deploy.export_source import HeldOut, Source, StudentTask, TaskTexts
from pipelines.deploy.task_record import task_record
from students.export.parity_examples import ParityExamples
from students.runtime import encode

INPUTS, REFERENCES = ["the first one", "a second text", "the last text"], ["one", "two", "three"]


@pytest.fixture
def record(data):
    """A function: the record of a task whose export answers ``exported``, and whose student answers REFERENCES."""
    directory = Path(data.directory) / "tokenizer"
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))

    def ids(texts: list[str]) -> list[list[int]]:
        return [encode(tokenizer, text) for text in texts]

    def make(exported=REFERENCES, *, texts=True, truncated=0, **task):
        source = Source("student", directory, task=StudentTask(TaskConfig(**task), DataConfig()))
        inputs = [row[:1] if number < truncated else row for number, row in enumerate(ids(INPUTS))]
        examples = ParityExamples(inputs, ids(REFERENCES), [9] * 3)
        both = TaskTexts(INPUTS, REFERENCES) if texts else None
        held_out = HeldOut("pairs-test", "abc", "test", ("local", "{}"), 30, examples, both)
        return task_record(source, held_out, ids(REFERENCES), ids(exported))

    return make


def test_the_metrics_are_those_of_the_student_and_of_the_export(record):
    found = record(["one", "too", "three too"], examples="jsonl:x", metrics=["exact_match", "error_rate"])
    assert found["metrics"]["exact_match"] == {"better": "higher", "student": 1.0, "export": pytest.approx(1 / 3)}
    assert found["metrics"]["error_rate"] == {"better": "lower", "student": 0.0, "export": pytest.approx(2 / 3)}
    assert found["examples"] == 3


@pytest.mark.parametrize("metrics, used", [(["chrf"], ["exact_match"]), (["token_f1", "chrf"], ["token_f1"])])
def test_metrics_whose_library_is_missing_are_left_out(record, monkeypatch, metrics, used):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sacrebleu" else real(name))
    assert list(record(examples="jsonl:x", metrics=metrics)["metrics"]) == used


def test_a_task_without_metrics_has_exact_match(record):
    assert list(record(examples="jsonl:x")["metrics"]) == ["exact_match"]


def test_the_example_is_the_first_input_that_was_not_truncated(record):
    assert record(examples="jsonl:x")["example"] == {"input": INPUTS[0], "answer": REFERENCES[0]}
    assert record(examples="jsonl:x", truncated=2)["example"] == {"input": INPUTS[2], "answer": REFERENCES[2]}
    assert record(examples="jsonl:x", truncated=3)["example"] is None


def test_the_template_is_that_of_all_sources(record):
    found = record(examples="jsonl:x", input="{b} and {a} and {b}")
    assert (found["input"], found["columns"]) == ("{b} and {a} and {b}", ["b", "a"])
    two = [{"source": "jsonl:x"}, {"source": "jsonl:y"}]
    assert record(examples=two, input="{a}")["input"] == "{a}"
    two[1]["input"] = "other: {a}"
    assert (record(examples=two, input="{a}")["input"], record(examples=two, input="{a}")["columns"]) == (None, [])


def test_an_export_that_was_compared_on_other_text_has_the_template_alone(record):
    found = record(texts=False, examples="jsonl:x", input="{a}")
    assert (found["input"], found["metrics"], found["examples"], found["example"]) == ("{a}", {}, 0, None)
