"""A task whose pairs are known: 120 phrases in up to three languages, with a group per language."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from distill.config import DataConfig
from distill.data.prepare import prepare_data
from distill.tasks.config import TaskConfig
from tests.once import once

WORDS = (Path(__file__).parents[3] / "LICENSE").read_text().split()
LANGUAGES = {"de": 120, "fr": 60, "it": 20}  # language -> number of phrases in it


def write_rows(path: Path, rows: Iterable[dict]) -> str:
    """Write a file of JSON lines; returns it as a source."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"jsonl:{path}"


def known_rows() -> list[dict]:
    """Rows with unequal lengths, whose inputs and targets all differ."""
    rows = []
    for number in range(max(LANGUAGES.values())):
        phrase = f"{number} " + " ".join(WORDS[number * 7 : number * 7 + 1 + number % 9])
        for language, count in LANGUAGES.items():
            if number < count:
                rows.append({"language": language, "source": phrase, "target": f"{language} {phrase[::-1]}"})
    return rows


@pytest.fixture(scope="session")
def rows() -> list[dict]:
    return known_rows()


@pytest.fixture(scope="session")
def pairs_file(shared) -> str:
    """The source with the known rows."""
    made = once(shared / "pairs", lambda directory: write_rows(directory / "pairs.jsonl", known_rows()))
    return f"jsonl:{made / 'pairs.jsonl'}"


@pytest.fixture(scope="session")
def task(pairs_file) -> TaskConfig:
    return TaskConfig(
        examples=pairs_file,
        input="to {language}: {source}",
        group="language",
        split_by="source",
        metrics=["exact_match"],
        max_input=128,
        max_target=128,
    )


@pytest.fixture(scope="session")
def pairs_config() -> DataConfig:
    return DataConfig(vocabulary=400, test_fraction=0.25, validation_fraction=0.2, test_examples=30)


@pytest.fixture(scope="session")
def prepare(shared, pairs_config, task) -> Callable:
    """Prepare the known task, or one that differs from it in some settings of the task or of the data."""

    def make(of_data: dict | None = None, root: Path = shared / "tasks", **changes):
        new_task = TaskConfig.model_validate({**task.model_dump(), **changes})
        return prepare_data(DataConfig(**{**pairs_config.model_dump(), **(of_data or {})}), root, task=new_task)

    return make


@pytest.fixture(scope="session")
def prepared(prepare):
    return prepare()
