import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from distill.config import DataConfig
from distill.data.prepare import prepare_data
from distill.errors import UserError
from distill.tasks.config import TaskConfig
from pipelines.deploy.export_source import Source, StudentTask, find_source, held_out_examples
from students.export.parity_examples import EXAMPLES, make_examples
from students.runtime import encode


def node(stage: str, datasets: dict[str, str], *inputs: dict) -> dict:
    """A node of a lineage; ``datasets`` are digests by context."""
    entries = [{"digest": digest, "context": context} for context, digest in datasets.items()]
    return {"stage": stage, "datasets": entries, "inputs": list(inputs)}


def source_of(data, lineage, task: StudentTask | None = None) -> Source:
    return Source("student", Path(data.directory) / "tokenizer", None, lineage, task)


@pytest.mark.parametrize("part", ["test", "validation"])
def test_an_export_is_compared_on_the_text_that_its_student_was_evaluated_on(data_config, tmp_path, part):
    data = prepare_data(data_config.model_copy(update={"validation_fraction": 0.2}), tmp_path / "data")
    digest = data.parts[part].digest
    found = held_out_examples(source_of(data, node("distill", {part: digest})), tmp_path, None)
    assert (found.name, found.digest, found.split) == (f"{data.name}-{part}", digest, part)
    tokens = data.tokens(part)
    tokenizer = Tokenizer.from_file(str(Path(data.directory) / "tokenizer" / "tokenizer.json"))
    assert found.tokens == len(tokens) and found.texts is None
    assert found.examples == make_examples(tokens, data.special_tokens, tokenizer)


def test_missing_text_is_named(data_config, tmp_path):
    data = prepare_data(data_config, tmp_path / "data")
    with pytest.raises(UserError, match=r"student \(digest abc\) is not in"):
        held_out_examples(source_of(data, node("distill", {"test": "abc"})), tmp_path, None)


@pytest.fixture(scope="module")
def pairs_in(tmp_path_factory):
    """A work directory with the pairs of a task whose texts are known, the task, and the data."""
    root = tmp_path_factory.mktemp("pairs")
    rows = [{"a": f"number {n} {'of ' * (n % 23)}many", "b": f"{n} it is"} for n in range(400)]
    (root / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = TaskConfig(examples=f"jsonl:{root}/rows.jsonl", input="say: {a}", target="{b}", max_input=24, max_target=6)
    config = DataConfig(vocabulary=400, test_fraction=0.4, validation_fraction=0.2, test_examples=100)
    return root, StudentTask(task, config), prepare_data(config, root / "data", task=task)


@pytest.mark.parametrize("split", ["test", "validation"])
def test_the_examples_of_a_task_are_its_evaluated_pairs_of_all_lengths(pairs_in, split):
    root, task, data = pairs_in
    found = held_out_examples(source_of(data, node("distill", {split: data.parts[split].digest}), task), root, None)
    evaluated = data.task_examples(task.data.model_copy(update={"eval_split": split}))
    known = dict(zip(evaluated.inputs, evaluated.references, strict=True))
    assert found.split == split and len(found.texts.inputs) == len(set(found.texts.inputs)) == EXAMPLES
    assert found.texts.references == [known[text] for text in found.texts.inputs]
    tokenizer, eos = Tokenizer.from_file(str(Path(data.directory) / "tokenizer" / "tokenizer.json")), 1
    limits = {"inputs": 24, "references": 6}
    for texts, rows in zip(limits, (found.examples.inputs, found.examples.targets), strict=True):
        for text, row in zip(getattr(found.texts, texts), rows, strict=True):
            assert row == [*encode(tokenizer, text)[:-1][: limits[texts] - 1], eos]
    lengths = [len(row) for row in found.examples.inputs]
    assert max(lengths) == 24 and min(lengths) < 15 and all(len(set(lengths[n : n + 8])) > 2 for n in (0, 8, 16))
    assert found.examples.max_tokens == [6] * EXAMPLES


def test_the_data_is_that_of_the_student_and_not_of_the_models_before_it(pairs_in, data_config):
    """A teacher on a corpus with the same tokenizer comes before the student in the directory of prepared data."""
    root, task, data = pairs_in
    test, validation = (data.parts[name].digest for name in ("test", "validation"))
    student = node("distill", {"train": "x", "test": test}, node("teacher", {"test": validation}))
    exported = node("export", {"test": validation}, student)
    assert held_out_examples(source_of(data, exported, task), root, None).digest == test
    init = node("init", {}, node("teacher", {"validation": validation}))
    assert held_out_examples(source_of(data, init, task), root, None).digest == validation


def test_the_task_of_a_student_is_in_the_config_of_its_run(task_work, task_student, exporting, distilled):
    found = find_source(str(task_student), task_work, None).task
    assert (found.task.input, found.task.metrics) == ("{source}", ["exact_match", "token_f1"])
    assert found.data.test_examples == 64
    assert find_source(str(distilled), exporting, None).task is None
