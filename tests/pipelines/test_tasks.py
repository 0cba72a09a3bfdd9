"""Runs on a task through the command line: fine-tuning of pre-trained and of loaded models, and a teacher's answers.

One work directory has the smoke preset, whose models are fine-tuned here.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from mlflow import MlflowClient
from safetensors.torch import load_file
from transformers import AutoTokenizer, T5ForConditionalGeneration

from distill.data.read_prepared import read_prepared
from distill.generation import generate
from distill.metrics import METRICS
from distill.tasks.answers import read_answers
from distill.tasks.prepared import PreparedPairs
from pipelines.config.run_config import load_config
from pipelines.workdir.plan import plan
from teachers import load_teacher
from tests.once import once

WORDS = (Path(__file__).parents[2] / "LICENSE").read_text().split()
TRAINING = {"batch_size": 8, "learning_rate": 5e-3, "warmup_steps": 2, "log_every": 2, "checkpoint_every": 8}


def write_rows(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"jsonl:{path}"


def write_config(directory: Path) -> None:
    """Write tuned.yaml, with several students of a fine-tuned teacher, and its pairs and inputs."""
    phrases = [f"{number} {' '.join(WORDS[number * 3 : number * 3 + 3])}" for number in range(150)]
    pairs = [{"of": of, "source": one, "target": f"{of} {one.upper()}"} for one in phrases for of in ("de", "fr")]
    inputs = [{"of": "de", "source": f"new {number}"} for number in range(40)]
    task = {"examples": write_rows(directory / "pairs.jsonl", pairs), "input": "to {of}: {source}", "group": "of"}
    task |= {"split_by": "source", "metrics": ["exact_match", "token_f1"], "max_input": 48, "max_target": 24}
    task |= {"unlabelled": write_rows(directory / "inputs.jsonl", inputs)}
    data = {"test_fraction": 0.25, "validation_fraction": 0.2, "test_examples": 24}
    early = {"steps": 12, "evaluate_every": 1, "patience": 2}
    answers = {"targets": "teacher"}
    variants = {
        "text": {},
        "answers": {"distill": answers},
        "cached": {"distill": {**answers, "soft_labels": "cached"}},
        "early": {"distill": {"hard_fraction": 1.0, "training": {**early, "learning_rate": 1e-30}}},
    }
    config = {"name": "tuned", "pretrained": "smoke", "precision": "float32", "data": data, "task": task}
    config |= {"teacher": {"experts": [4], "training": {**TRAINING, **early}}, "variants": variants}
    config |= {"distill": {"training": {**TRAINING, "steps": 4}}, "report": {"resamples": 200}}
    (directory / "tuned.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


@pytest.fixture(scope="session")
def tuned(finished_smoke, cli, shared) -> Path:
    """A directory with tuned.yaml, and with the work directory of its finished run."""

    def run(directory: Path) -> None:
        write_config(directory)
        shutil.copytree(finished_smoke[0], directory / "work")
        done = cli("run", str(directory / "tuned.yaml"), "--workdir", str(directory / "work"))
        assert done.returncode == 0, done.stderr

    return once(shared / "tuned", run)


@pytest.fixture(scope="session")
def report(tuned) -> dict:
    return json.loads((tuned / "work" / "report.json").read_text())


def stages(work: Path) -> dict[str, list[tuple[Path, dict]]]:
    """Title -> the directories and records of the stages with this title."""
    found: dict[str, list[tuple[Path, dict]]] = {}
    for path in sorted((work / "stages").glob("*/stage.json")):
        record = json.loads(path.read_text())
        found.setdefault(record["title"], []).append((path.parent, record))
    return found


def of_task(work: Path, title: str) -> tuple[Path, dict]:
    """The stage of the task; the smoke run may have one with the same title."""
    [found] = [one for one in stages(work)[title] if [*one[0].glob("answers"), *one[0].glob("*answers.json")]]
    return found


def prepared_task(work: Path) -> PreparedPairs:
    [directory] = [path.parent for path in (work / "data").glob("*/test.jsonl")]
    return read_prepared(directory)


def evaluated(tuned: Path) -> list[dict]:
    """The evaluated rows, in order."""
    data = prepared_task(tuned / "work")
    lines = (Path(data.directory) / "test.jsonl").read_text().splitlines()
    rows = {row["input"]: row for row in map(json.loads, lines)}
    return [rows[one] for one in data.task_examples(load_config(str(tuned / "tuned.yaml")).data).inputs]


def token_ids(tokenizer, text: str, limit: int) -> torch.Tensor:
    ids = tokenizer(text, add_special_tokens=False).input_ids[: limit - 1]
    return torch.tensor([[*ids, tokenizer.eos_token_id]])


@pytest.mark.parametrize("title,prefix", [("distill e4 text", ""), ("baseline", "full_")])
def test_losses_and_answers_are_those_of_transformers_for_each_example_alone(tuned, title, prefix):
    directory, record = of_task(tuned / "work", title)
    model = T5ForConditionalGeneration.from_pretrained(directory / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(directory / "model")
    losses, tokens, answers = [], [], []
    for row in evaluated(tuned):
        ids, labels = token_ids(tokenizer, row["input"], 48), token_ids(tokenizer, row["target"], 24)
        with torch.no_grad():
            losses.append(float(model(input_ids=ids, labels=labels).loss))
        tokens.append(labels.shape[1])
        made = model.generate(ids, max_new_tokens=24, do_sample=False, num_beams=1)
        answers.append(tokenizer.decode(made[0], skip_special_tokens=True))
    assert json.loads((directory / f"{prefix}losses.json").read_text()) == pytest.approx(losses, abs=1e-4)
    assert json.loads((directory / f"{prefix}answers.json").read_text()) == answers
    quality = record["metrics"]["quality" if not prefix else "quality_full"]
    assert quality == pytest.approx(-np.average(losses, weights=tokens), abs=1e-4) and len(set(tokens)) > 1


def test_a_task_without_groups_has_metrics_alone(task_work):
    report = json.loads((task_work / "report.json").read_text())
    [row] = report["ratios"]
    assert set(row["metrics"]) == {"exact_match", "token_f1"} and not row.get("groups")
    assert report["data"]["name"] == "stdlib:docstrings" and report["data"]["test_examples"] == 64
    directory = next((task_work / "stages").glob("distill-e2-*"))
    losses, answers = (json.loads((directory / f"{name}.json").read_text()) for name in ("losses", "answers"))
    assert len(losses) == len(answers) == 64 and np.isfinite(losses).all()


def test_the_report_has_the_metrics_of_all_and_of_each_group(tuned, report):
    rows, work = evaluated(tuned), tuned / "work"
    row = next(one for one in report["ratios"] if one["variant"] == "answers")
    groups = np.array([one["columns"]["of"] for one in rows])
    assert [group["group"] for group in row["groups"]] == ["de", "fr"]
    files = {"student": "distill e4 answers", "teacher": "teacher e4", "baseline": "baseline"}
    for model, title in files.items():
        name = "baseline_answers.json" if model == "baseline" else "answers.json"
        answers = np.array(json.loads((of_task(work, title)[0] / name).read_text()))
        references = np.array([one["target"] for one in rows])
        for name in ("exact_match", "token_f1"):
            metric = METRICS[name]
            assert row["metrics"][name][model] == pytest.approx(metric.value(list(answers), list(references)))
            for group in row["groups"]:
                mine = groups == group["group"]
                expected = metric.value(list(answers[mine]), list(references[mine]))
                assert group["metrics"][name][model] == pytest.approx(expected)
                assert group["examples"] == mine.sum() == 12
    assert report["data"]["test_examples"] == 24
    assert report["data"]["test_documents"] == len({one["columns"]["source"] for one in rows})


def test_only_the_teachers_that_are_named_are_fine_tuned(tuned, report):
    variants = ["text", "answers", "cached", "early"]
    assert [(row["ratio"], row["variant"]) for row in report["ratios"]] == [("e4", one) for one in variants]
    titles = stages(tuned / "work")
    assert len(titles["teacher e2"]) == 1 and len(titles["teacher e4"]) == len(titles["baseline"]) == 2
    # Variants share what does not differ between them.
    assert sorted(title for title in titles if title.startswith(("answer", "label", "init e4 "))) == [
        "answer e4 answers",
        "init e4 text",
        "label e4 cached",
    ]


def test_fine_tuning_begins_from_the_pretrained_weights(tuned):
    """After a few steps, the models are nearer to those of the smoke run than to new ones."""
    work = tuned / "work"
    for title in ("teacher e4", "baseline"):
        after = of_task(work, title)[0]
        [before] = [path for path, _ in stages(work)[title] if path != after]
        one, other = (load_file(path / "model" / "model.safetensors") for path in (before, after))
        moved = float((one["shared.weight"] - other["shared.weight"]).norm() / one["shared.weight"].norm())
        assert one.keys() == other.keys() and 0 < moved < 0.5


def test_training_stops_early(tuned):
    """The learning rate of the variant is too small to change a weight, so no evaluation is better than the first."""
    work = tuned / "work"
    record = of_task(work, "distill e4 early")[1]
    history = MlflowClient(f"sqlite:///{work}/mlflow.db").get_metric_history(record["run_id"], "eval/quality")
    assert [one.step for one in history] == [1, 2, 3]
    assert [one.value for one in history] == pytest.approx([record["metrics"]["quality"]] * 3, abs=1e-6)
    teacher = of_task(work, "teacher e4")[1]["run_id"]
    history = MlflowClient(f"sqlite:///{work}/mlflow.db").get_metric_history(teacher, "eval/quality")
    assert len(history) == 12  # its quality rises all the time


def test_the_lineage_names_both_data_sets(tuned, cli):
    work = tuned / "work"
    done = cli("lineage", "models:/tuned-student-e4-cached/1", "--workdir", str(work), "--json")
    assert done.returncode == 0, done.stderr

    def walk(model):
        yield model
        for one in model["inputs"]:
            yield from walk(one)

    found = {}
    for model in walk(json.loads(done.stdout)):
        of = {(one["name"], one["context"]) for one in model["datasets"]}
        found.setdefault(model["stage"], set()).update(of)
    pairs, inputs = f"jsonl:{tuned}/pairs.jsonl", f"jsonl:{tuned}/inputs.jsonl"
    assert found["distill"] == {(pairs, "train"), (f"{pairs}-test", "test"), (inputs, "unlabelled")}
    assert found["answer"] == {(pairs, "train"), (inputs, "unlabelled")}
    assert {(pairs, "train"), (f"{pairs}-validation", "validation"), ("stdlib", "train")} <= found["teacher"]
    done = cli("lineage", "models:/tuned-student-e4-text/1", "--workdir", str(work), "--json")
    assert (inputs, "unlabelled") not in {(one["name"], one["context"]) for one in json.loads(done.stdout)["datasets"]}


def test_answers_are_those_of_the_fine_tuned_teacher_to_all_training_inputs(tuned):
    work = tuned / "work"
    directory, record = of_task(work, "answer e4 answers")
    tokens, ends = read_answers(directory / "answers")
    prepared = prepared_task(work)
    asked = []
    for part in ("train", "unlabelled"):
        pairs = prepared.pairs(part)
        asked += [pairs.tokens[a:b] for a, b in zip(pairs.starts, pairs.middles, strict=True)]
    assert len(ends) == len(asked) == record["metrics"]["answers"] and len(prepared.pairs("unlabelled").starts) > 10
    teacher = load_teacher(of_task(work, "teacher e4")[0] / "model")
    some = range(0, len(asked), 9)
    expected = generate(teacher, [asked[row] for row in some], max_length=24, batch_size=4)
    stored = [one.tolist() for one in np.split(tokens, ends[:-1])]
    assert [[token for token in stored[row] if token != prepared.special_tokens.eos] for row in some] == expected


def test_a_finished_run_is_reused(tuned, report, cli, tmp_path):
    work = shutil.copytree(tuned / "work", tmp_path / "work")
    done = cli("run", str(tuned / "tuned.yaml"), "--workdir", str(work), "--json")
    assert done.returncode == 0 and "done in" not in done.stderr, done.stderr
    assert json.loads(done.stdout)["fingerprint"] == report["fingerprint"]


def test_a_pretrained_teacher_may_stay_as_it_is(tuned, cli, tmp_path):
    work = shutil.copytree(tuned / "work", tmp_path / "work")
    options = ["teacher.training={steps: 0}", "variants={}", "task.unlabelled=null", "distill.training.steps=3"]
    done = cli("run", str(tuned / "tuned.yaml"), "--workdir", str(work), "--json", *(f"--set={one}" for one in options))
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["baseline"]["steps"] == report["long_baseline"]["steps"] == 3
    [row] = report["ratios"]
    found = {record["run_id"]: (path, record) for path, record in stages(work)["teacher e4"]}
    directory, record = found[row["teacher_run_id"]]
    [before] = [path for path, one in found.values() if not one["facts"]["checkpoint"]]
    assert record["facts"]["checkpoint"] == str(before / "model") and not (directory / "model").exists()
    assert row["teacher_quality"] == pytest.approx(record["metrics"]["quality"])


def test_a_loaded_teacher_is_fine_tuned_or_stays_as_it_is(tuned, finished_smoke, cli, tmp_path):
    source = next((finished_smoke[0] / "stages").glob("teacher-e4-*")) / "model"
    config = yaml.safe_load((tuned / "tuned.yaml").read_text())
    for name in ("pretrained", "variants"):
        del config[name]
    config["task"]["unlabelled"] = None
    config["data"]["tokenizer"] = str(source)
    training = {**TRAINING, "steps": 4}
    config |= {"name": "loaded", "teacher": {"checkpoints": {"e4": str(source)}, "training": training}}
    (tmp_path / "loaded.yaml").write_text(yaml.safe_dump(config))
    arguments = [str(tmp_path / "loaded.yaml"), "--workdir", str(tmp_path / "work"), "--json"]
    done = cli("run", *arguments)
    assert done.returncode == 0, done.stderr
    [row] = json.loads(done.stdout)["ratios"]
    [(fine_tuned, record)] = stages(tmp_path / "work")["teacher e4"]
    assert row["teacher_run_id"] == record["run_id"] and (fine_tuned / "model" / "model.safetensors").exists()
    done = cli("teacher", *arguments, "--set=teacher.training={steps: 0}")
    assert done.returncode == 0, done.stderr
    [facts] = json.loads(done.stdout)
    assert facts["metrics"]["quality"] < record["metrics"]["quality"]
    [(as_it_is, _)] = [one for one in stages(tmp_path / "work")["teacher e4"] if one[0] != fine_tuned]
    assert not (as_it_is / "model").exists()


def test_the_command_that_makes_a_missing_pretraining_is_named(tuned, finished_smoke, cli, tmp_path):
    config = str(tuned / "tuned.yaml")
    done = cli("run", config, "--workdir", str(tmp_path / "empty"))
    assert done.returncode == 2 and not (tmp_path / "empty").exists()
    assert (
        f"pretrained smoke has no models in {tmp_path}/empty; train them with: switch-distill run smoke" in done.stderr
    )
    work = shutil.copytree(finished_smoke[0], tmp_path / "work")
    shutil.rmtree(next((work / "stages").glob("teacher-e4-*")))
    done = cli("run", config, "--workdir", str(work))
    assert done.returncode == 2 and len(list((work / "data").glob("*/data.json"))) == 1
    assert f"teacher e4 is missing in {work}; compute it with: switch-distill teacher smoke --ratio e4" in done.stderr


def test_each_seed_is_fine_tuned_from_the_same_seed_if_there_is_one(tuned):
    before = plan(load_config("smoke", ["seeds=[0, 2]"]), "text")
    stages_of_task = plan(load_config(str(tuned / "tuned.yaml"), ["seeds=[2, 1]"]), "pairs", before)
    for kind in ("teacher", "baseline"):
        seeds = {one.seed: one.inputs["pretrained"].seed for one in stages_of_task if one.kind == kind}
        assert seeds == {2: 2, 1: 0}
