"""The values of a task's report, its sections, groups.csv and the plot of groups."""

import csv
import io
import json
import warnings
from types import SimpleNamespace

import numpy as np
import pytest

from distill.tasks.prepared import TaskExamples
from pipelines.reporting import fraction_kept
from pipelines.reporting.comparison import Figure, Models, compared, kept_by_seed, mean_quality
from pipelines.reporting.group_plot import plot_groups
from pipelines.reporting.task_report import group_shares, task_facts, task_results
from pipelines.reporting.task_table import flat_row, groups_csv, task_sections
from pipelines.reporting.verdict import why_none

EXAMPLES, SEEDS = 240, 2
WORDS = ["red", "blue", "green", "grey"]
RATIOS = [("e4", "paper"), ("e4", "mine"), ("e8", "paper"), ("e8", "mine")]


@pytest.fixture
def examples() -> TaskExamples:
    """Six groups of 39 to 41 examples, and one with two. Two examples are of one document."""
    rng = np.random.default_rng(0)
    groups = [f"g{number % 6}" for number in range(EXAMPLES)]
    groups[0] = groups[1] = "rare|<b>"
    references = [" ".join(rng.choice(WORDS, rng.integers(1, 5))) for _ in range(EXAMPLES)]
    inputs = [f"colour: {number}\n`|` <script>" for number in range(EXAMPLES)]
    return TaskExamples(inputs, references, groups, np.arange(EXAMPLES) // 2, rng.integers(1, 9, EXAMPLES), [{}])


def losses() -> Models[np.ndarray]:
    """The teacher of e8 gains 0.4 in most groups and loses in group g5. Students keep about half."""
    rng = np.random.default_rng(1)
    baseline = rng.normal(4.0, 1.0, (SEEDS, EXAMPLES))
    gained = np.where(np.arange(EXAMPLES) % 6 == 5, -0.2, 0.4)

    def model(share: float) -> np.ndarray:
        return baseline - share * gained + rng.normal(0, 0.05, (SEEDS, EXAMPLES))

    students = {key: model(0.5 if key[1] == "paper" else 0.1) for key in RATIOS}
    return Models({"": baseline, "_long": model(0.2)}, {"e4": model(0.8), "e8": model(1.0)}, students)


def answers(examples: TaskExamples) -> Models[list[list[str]]]:
    """Answers of which the words are right with a probability; the teacher e4 is loaded, so it has one seed's."""
    rng = np.random.default_rng(2)

    def model(share: float, seeds: int = SEEDS) -> list[list[str]]:
        return [
            [" ".join(w if rng.random() < share else "black" for w in text.split()) for text in examples.references]
            for _ in range(seeds)
        ]

    return Models(
        {"": model(0.3), "_long": model(0.4)}, {"e4": model(0.8, 1), "e8": model(0.9)}, {k: model(0.6) for k in RATIOS}
    )


@pytest.fixture
def report(examples) -> dict:
    """The values of report.json that tasks have, with those that their sections and plot read."""
    quality = Figure(losses(), examples.documents, examples.target_tokens)
    task = task_results(["exact_match", "error_rate", "chrf"], answers(examples), examples, SEEDS)
    rows = [
        {"ratio": ratio, "variant": variant, "experts": int(ratio[1:]), "seeds": [0, 1]} for ratio, variant in RATIOS
    ]
    task.add_rows(rows, quality, 500)
    prepared = {
        "groups": ["rare|<b>", *(f"g{number}" for number in range(6)), "absent"],
        "lengths": {"train": {"examples": 1000}, "test": {"examples": EXAMPLES}},
        "truncated": {"train": [20, 0], "test": [0, 12]},
    }
    facts = task_facts(SimpleNamespace(task=prepared), "test", task)
    data = {"name": "jsonl:$a_$b", "eval_split": "test", "test_examples": EXAMPLES, **facts}
    return json.loads(json.dumps({"ratios": rows, "data": data, "examples": task.shown()}))


def test_metrics_of_a_row_are_means_over_seeds(report, examples):
    given = answers(examples)
    row = report["ratios"][2]["metrics"]["exact_match"]
    shares = [
        np.mean([one == other for one, other in zip(of_seed, examples.references, strict=True)])
        for of_seed in given.students["e8", "paper"]
    ]
    assert row["student_by_seed"] == pytest.approx(shares) and row["student"] == pytest.approx(np.mean(shares))
    assert row["better"] == "higher" and row["gain"] == pytest.approx(row["teacher"] - row["baseline"])
    assert row["fraction_kept"] == pytest.approx((row["student"] - row["baseline"]) / row["gain"])
    assert row["gain_long"] == pytest.approx(row["teacher"] - row["long_baseline"]) and row["gain_long"] < row["gain"]


def test_fewer_errors_are_a_positive_gain(report):
    for row in report["ratios"]:
        of = row["metrics"]["error_rate"]
        assert of["better"] == "lower" and 0 < of["teacher"] < of["student"] < of["baseline"]
        assert of["gain"] == pytest.approx(of["baseline"] - of["teacher"]) and of["gain"] > 0
        assert of["student_by_seed"][0] > 0
    undefined = [row["metrics"][name].get("fraction_undefined") for row in report["ratios"] for name in row["metrics"]]
    assert all(one is None or " in " in one for one in undefined)  # the unit of a gain is the metric, not nats


def test_a_loaded_teacher_has_the_same_answers_for_every_seed(report, examples):
    share = np.mean([a == b for a, b in zip(answers(examples).teachers["e4"][0], examples.references, strict=True)])
    assert report["ratios"][0]["metrics"]["exact_match"]["teacher"] == pytest.approx(share)


def test_a_group_has_the_figures_of_its_examples(report, examples):
    """Against the same figures of the chosen examples alone, weighted by target tokens."""
    of, values = np.array(examples.groups), losses()
    (found,) = [one for one in report["ratios"][2]["groups"] if one["group"] == "g3"]
    chosen = of == "g3"
    weights = examples.target_tokens[chosen]
    quality = {
        "baseline": values.baselines[""],
        "teacher": values.teachers["e8"],
        "student": values.students["e8", "paper"],
    }
    for name, one in quality.items():
        expected = -np.average(one[:, chosen], axis=1, weights=weights).mean()
        assert found[f"{name}_quality"] == pytest.approx(expected)
    options = {"documents": examples.documents[chosen], "weights": weights, "resamples": 500}
    fraction, interval = fraction_kept(*(one[:, chosen] for one in quality.values()), **options)
    assert found["fraction_kept"] == pytest.approx(fraction) and found["fraction_interval"] == pytest.approx(interval)
    assert found["examples"] == chosen.sum() and found["documents"] == len(set(examples.documents[chosen]))
    given, wanted = answers(examples).students["e8", "paper"], np.array(examples.references)
    right = np.mean([np.array(one)[chosen] == wanted[chosen] for one in given])
    assert found["metrics"]["exact_match"]["student"] == pytest.approx(right)


def test_groups_are_counted_if_they_have_enough_documents(report):
    row = report["ratios"][2]
    assert len(row["groups"]) == 7 and report["data"]["small_groups"] == ["rare|<b>"]
    # Of six groups, the teacher is worse in g5. The student keeps half of the gain in the other five.
    assert row["group_shares"] == {"groups": 6, "gain": pytest.approx(5 / 6), "keep_30_percent": pytest.approx(5 / 6)}
    assert report["ratios"][3]["group_shares"]["keep_30_percent"] == 0  # this student keeps a tenth
    assert group_shares([{"too_few_documents": True}]) == {"groups": 0, "gain": 0, "keep_30_percent": 0}


def test_the_facts_of_the_data_are_shares(report):
    data = report["data"]
    assert data["truncated_inputs"] == {"train": 0.02, "test": 0} and data["truncated_targets"]["test"] == 0.05
    assert data["groups"] == 7 and data["groups_without_examples"] == ["absent"] and data["remarks"] == []


def test_the_shown_examples_do_not_depend_on_the_answers(report, examples):
    shown = [one["input"] for one in report["examples"]]
    assert len(set(shown)) == 10 and set(shown) <= set(examples.inputs) and shown != examples.inputs[:10]
    other = task_results([], losses().map(lambda _: [["?"] * EXAMPLES]), examples, SEEDS)
    assert [one["input"] for one in other.shown()] == shown
    one = report["examples"][0]
    names = ["input", "reference", "group", "baseline", "long baseline", "teacher e8", "student e8 paper"]
    assert list(one) == names
    row = examples.inputs.index(one["input"])
    assert one["reference"] == examples.references[row]
    assert one["student e8 paper"] == answers(examples).students["e8", "paper"][0][row]
    assert len(other.table()["teacher e8"]) == EXAMPLES


def test_equal_inputs_are_shown_once():
    """A name may be that of a language and of a script, so two examples may have the same text."""
    twice = TaskExamples(["a", "a", "b"], ["x", "x", "y"], None, np.arange(3), np.ones(3), [{}, {}, {}])
    made = [["x", "?", "y"]]
    found = task_results([], Models({"": made}, {"e2": made}, {("e2", None): made}), twice, 1)
    assert sorted((one["input"], one["student e2"]) for one in found.shown()) == [("a", "x"), ("b", "y")]


def test_fewer_examples_than_are_shown(examples):
    few = TaskExamples(["a", "b"], ["x", "y"], None, np.arange(2), np.ones(2), [{}, {}])
    found = task_results([], Models({"": [["x", "y"]]}, {"e2": [["x", "z"]]}, {("e2", None): [["x", "y"]]}), few, 1)
    rows = [{"ratio": "e2", "variant": None, "seeds": [0]}]
    found.add_rows(rows, Figure(losses(), few.documents), 100)
    assert rows == [{"ratio": "e2", "variant": None, "seeds": [0], "metrics": {}}]
    assert sorted(one["input"] for one in found.shown()) == ["a", "b"] and "group" not in found.table()
    report = {"ratios": rows, "data": {"eval_split": "test", "remarks": []}, "examples": found.shown()}
    text = task_sections(report)
    assert text.startswith("## Answers to 2 test examples") and "## Groups" not in text


def test_the_sections_have_every_metric_and_group(report):
    text = task_sections(report)
    of = report["ratios"][3]["metrics"]
    values = [f"{100 * of['error_rate'][model]:.1f}%" for model in ("baseline", "long_baseline", "teacher", "student")]
    assert f"| `error_rate` | e8 mine | {' | '.join(values)} | " in text
    assert f"| `chrf` | e8 mine | {of['chrf']['baseline']:.1f} | " in text
    assert "- `error_rate`: edits per word of the references, from 0; lower is better." in text
    assert "version:2." in text and "- `exact_match`: share of examples, 0 to 1; higher is better." in text
    assert "| e8 paper | 6 | 83% | 83% |" in text
    assert "1 group has fewer than 10 documents and no part in the shares: rare\\|\\<b\\>." in text
    assert "Without test examples: absent." in text and "All groups, for e8 paper, by the teacher's gain" in text


def test_text_of_the_data_has_no_effect_on_the_tables(report):
    """Line breaks, bars and tags of an input stay within their cell."""
    lines = task_sections(report).partition("## Answers")[2].splitlines()
    rows = [line for line in lines if line.startswith("| colour")]
    assert len(rows) == 10
    assert all(row.count("|") - row.count("\\|") == 8 and "\\`\\|\\` \\<script\\>" in row for row in rows)


def test_of_many_groups_the_best_and_the_worst_are_listed(report):
    row = report["ratios"][2]
    many = [{**row["groups"][0], "group": f"n{number}", "gain": number / 100} for number in range(100)]
    for one in report["ratios"]:
        one["groups"] = many
    text = task_sections(report)
    listed = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| n")]
    assert listed == [f"n{number}" for number in (*range(99, 89, -1), *range(9, -1, -1))]
    assert "The 10 groups with the largest and with the smallest gain, for e8 paper" in text


def test_remarks_stand_below_the_metrics(report):
    report["data"]["remarks"] = ["accuracy is meant for labels"]
    assert "\n- accuracy is meant for labels.\n" in task_sections(report)


def test_groups_csv_has_every_figure_once(report):
    rows = list(csv.DictReader(io.StringIO(groups_csv(report))))
    assert len(rows) == 4 * 7 and {row["group"] for row in rows[:7]} == {row["group"] for row in rows[7:14]}
    (found,) = [row for row in rows if (row["ratio"], row["variant"], row["group"]) == ("e8", "mine", "g2")]
    (group,) = [one for one in report["ratios"][3]["groups"] if one["group"] == "g2"]
    assert float(found["gain_low"]) == group["gain_interval"][0]
    assert float(found["chrf_student"]) == group["metrics"]["chrf"]["student"]
    assert found["exact_match_better"] == "higher" and "fraction_undefined" not in found


def test_a_row_of_the_csv_has_shares_but_no_groups(report):
    line = flat_row(report["ratios"][0])
    assert line["groups_keep_30_percent"] == report["ratios"][0]["group_shares"]["keep_30_percent"]
    assert line["chrf_student_by_seed"].count(" ") == 1 and line["seeds"] == "0 1"
    assert not [key for key, value in line.items() if isinstance(value, (list, dict))]


@pytest.mark.parametrize("count", [1, 10, 250])
def test_any_number_of_groups_is_drawn(count, report, tmp_path, monkeypatch):
    """The panels are those of the first variant. Names are no formulas, and may be of a script without a font."""
    drawn = []
    save = "matplotlib.figure.Figure.savefig"
    original = __import__("matplotlib.figure").figure.Figure.savefig
    monkeypatch.setattr(
        save, lambda figure, *args, **options: (drawn.append(figure), original(figure, *args, **options))
    )
    for row in report["ratios"]:
        row["groups"] = [{**row["groups"][1], "group": f"$\\frac{n}", "gain": n / 7} for n in range(count)]
        row["groups"][0] |= {"group": "日本語", "too_few_documents": True}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_groups(report, tmp_path / "groups.png")
    assert (tmp_path / "groups.png").read_bytes().startswith(b"\x89PNG")
    panels = drawn[0].axes
    assert len(panels) == 2 and panels[0].get_title().startswith("e4: the teacher gains in 83% of 6 groups")
    names = [label.get_text() for label in panels[0].get_xticklabels()]
    assert len(names) <= 60 and (count > 60) == ("one name of 5 is written" in panels[0].get_xlabel())
    assert names[-1] == "日本語" if count <= 60 else names[0] == "$\\frac249"
    assert panels[0].get_ylabel() == "gain over the baseline\n(nats per target token)"


def test_a_comparison_is_that_of_the_public_function():
    """Of losses with equal weights, as for span corruption."""
    values, documents = losses(), np.arange(EXAMPLES) // 3
    sums = Figure(values, documents).sums()
    row = compared(sums, "e8", "mine", 400)
    models = values.baselines["_long"], values.teachers["e8"], values.students["e8", "mine"]
    options = {"documents": documents, "resamples": 400}
    assert (row["fraction_kept_long"], tuple(row["fraction_long_interval"])) == fraction_kept(*models, **options)
    by_seed = [fraction_kept(*one, **options)[0] for one in zip(*models, strict=True)]
    assert kept_by_seed(sums, "e8", "mine", "_long", 400) == by_seed
    assert kept_by_seed(sums._replace(teachers={"e8": sums.baselines["_long"]}), "e8", "mine", "_long", 400) is None
    assert list(compared(sums, "e8", "mine", 400, against=("",))) == [
        *("gain", "gain_interval", "fraction_kept", "fraction_interval")
    ]


@pytest.mark.parametrize("documents,seeds,reason", [(40, 2, "worse"), (1, 2, "worse"), (1, 1, "one document and")])
def test_only_one_document_and_one_seed_give_no_interval(documents, seeds, reason):
    """Also if the baseline answers everything right and the teacher nothing, so that the ends of the interval meet."""
    texts = ["red"] * documents
    right, wrong = [texts] * seeds, [["?"] * documents] * seeds
    examples = TaskExamples(texts, texts, None, np.arange(documents), np.ones(documents), [{}] * documents)
    models = Models({"": right, "_long": right}, {"e4": wrong}, {("e4", None): wrong})
    sums = task_results(["exact_match"], models, examples, seeds).figures["exact_match"].sums()
    row = compared(sums, "e4", None, 100)
    assert row["gain_interval"] == row["gain_long_interval"] == [-1.0, -1.0]
    assert reason in row["fraction_undefined"] and reason in row["fraction_long_undefined"]
    assert why_none([row], "_long") == ("negative" if reason == "worse" else "undefined")


def test_a_quality_weights_target_tokens():
    values, weights = np.array([[1.0, 4.0], [2.0, 4.0]]), np.array([3, 1])
    assert mean_quality(values, weights) == pytest.approx(-(7 / 4 + 10 / 4) / 2)
    assert mean_quality(values, None) == -values.mean()
