from pathlib import Path
from types import SimpleNamespace

import pytest

from pipelines.reporting.registry import log_comparison, tag_students
from pipelines.workdir.stage import FinishedStage, Stage


class Client:
    """A registry in memory with those methods of MlflowClient that the code calls."""

    def __init__(self):
        self.tags, self.aliases = {}, {}

    def set_model_version_tag(self, name, version, key, value):
        self.tags.setdefault((name, version), {})[key] = value

    def get_registered_model(self, name):
        return SimpleNamespace(aliases=self.aliases.get(name, {}))

    def set_registered_model_alias(self, name, alias, version):
        self.aliases.setdefault(name, {})[alias] = version

    def delete_registered_model_alias(self, name, alias):
        del self.aliases[name][alias]


def student(name: str, version: int, quality: float) -> FinishedStage:
    return FinishedStage("distill", "f", "run", "model", f"models:/{name}/{version}", {"quality": quality}, {}, Path())


def rows(fraction=0.5, baseline=-4.0, means=(-2.75, -2.7)):
    interval = None if fraction is None else [0.4, 0.6]
    row = {"fraction_kept": fraction, "fraction_interval": interval, "compression": 0.75, "seeds": [0, 1]}
    ratios = [{**row, "student_quality": quality} for quality in means]
    return {"ratios": ratios, "data": {"test_documents": 89}, "baseline": {"quality": baseline}}


def test_every_version_is_tagged_and_the_best_of_all_seeds_is_the_champion():
    client = Client()
    students = [[student("s-e2", 1, -3.0), student("s-e2", 2, -2.5)], [student("s-e4", 1, -2.7)]]
    tag_students(SimpleNamespace(client=client), rows(), students)
    assert client.tags["s-e2", "1"] == {
        "fraction_kept": "0.5000",
        "fraction_interval": "[0.4000, 0.6000] of 89 documents and 2 seeds",
        "compression": "0.7500",
        "quality": "-3.0000",
    }
    assert len(client.tags) == 3 and client.aliases == {"s-e2": {"champion": "2"}}


def test_the_next_comparison_has_one_champion_and_undefined_fractions_are_tagged():
    client = Client()
    client.aliases = {"s-e2": {"champion": "1", "mine": "1"}}
    students = [[student("s-e2", 1, -3.0)], [student("s-e4", 7, -2.7)]]
    tag_students(SimpleNamespace(client=client), rows(None), students)
    assert client.aliases == {"s-e2": {"mine": "1"}, "s-e4": {"champion": "7"}}
    assert client.tags["s-e4", "7"]["fraction_kept"] == "undefined"


@pytest.mark.parametrize("baseline", [-2.6, -2.7])  # the best student is worse than the baseline, or equal
def test_without_a_student_better_than_the_baseline_there_is_no_champion(baseline):
    """The alias of an earlier report is removed from any version."""
    client = Client()
    client.aliases = {"s-e2": {"champion": "1"}, "s-e4": {"champion": "6", "mine": "7"}, "other": {"champion": "1"}}
    students = [[student("s-e2", 1, -3.0), student("s-e2", 2, -2.5)], [student("s-e4", 7, -2.7)]]
    tag_students(SimpleNamespace(client=client), rows(baseline=baseline), students)
    assert client.aliases == {"s-e2": {}, "s-e4": {"mine": "7"}, "other": {"champion": "1"}}
    assert client.tags["s-e4", "7"]["quality"] == "-2.7000"


def test_a_good_seed_of_a_student_with_a_worse_mean_is_not_the_champion():
    client = Client()
    students = [[student("s-e2", 1, -3.0), student("s-e2", 2, -2.5)], [student("s-e4", 7, -2.7)]]
    tag_students(SimpleNamespace(client=client), rows(baseline=-2.72), students)
    assert client.aliases == {"s-e4": {"champion": "7"}}


class Tracked:
    """The report's run, which keeps what is logged to other runs."""

    def __init__(self):
        self.store, self.results, self.tags = SimpleNamespace(client=Client()), {}, {}

    def set_tags(self, tags, run_id):
        self.tags.setdefault(run_id, {}).update(tags)

    def log_results(self, metrics, *, run_id, model_id):
        self.results[run_id] = metrics


def test_the_run_of_each_student_has_its_own_metrics_of_a_task():
    teacher = Stage("teacher", {}, ratio="e4")
    inputs = {"teacher": teacher} | {f"seed {n}": Stage("distill", {"n": n}, ratio="e4", seed=n) for n in (0, 1)}
    finished = {"teacher": FinishedStage("teacher", "f", "of teacher", "m", None, {}, {}, Path())}
    for n in (0, 1):
        uri = f"models:/s-e4/{n + 1}"
        finished[f"seed {n}"] = FinishedStage("distill", "f", f"of {n}", "m", uri, {"quality": -2.5}, {}, Path())
    report = rows(means=[-2.75])
    metrics = {"gain": 20.0, "fraction_kept": 0.6, "fraction_kept_long": None, "student_by_seed": [41.5, 43.5]}
    figures = {"gain": 0.3, "fraction_kept_long": 0.4, "fraction_long_interval": [0.3, 0.5], "variant": None}
    by_seed = {"fraction_kept_by_seed": [0.4, 0.6], "fraction_kept_long_by_seed": None}
    report["ratios"][0] |= {"ratio": "e4", "experts": 4, **figures, **by_seed, "metrics": {"chrf": metrics}}
    tracked = Tracked()
    log_comparison(tracked, report, Stage("report", {}, inputs), finished)
    for n, value in enumerate((41.5, 43.5)):
        logged = tracked.results[f"of {n}"]
        assert (logged["chrf"], logged["chrf_gain"], logged["chrf_fraction_kept"]) == (value, 20.0, 0.6)
        assert "chrf_fraction_kept_long" not in logged and logged["fraction_kept"] == 0.5
        assert tracked.tags[f"of {n}"]["chrf_fraction_kept_long"] == "undefined"
