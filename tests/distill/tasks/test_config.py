import pytest
from pydantic import ValidationError

from distill.tasks.config import SourceConfig, TaskConfig, source_columns


def test_an_embedded_source_has_templates_of_its_own_unless_others_are_set():
    [source] = TaskConfig().sources
    assert (source.source, source.input, source.target) == ("stdlib:docstrings", "{source}", "{summary}")
    [source] = TaskConfig(examples="babel:names").sources
    assert (source.input, source.target, source.group, source.split_by) == (
        "{locale}: {english}",
        "{name}",
        "locale",
        "english",
    )
    [source] = TaskConfig(examples="babel:names", input="{english}", group=None).sources
    assert (source.input, source.target, source.group, source.split_by) == ("{english}", "{name}", None, "english")
    [source] = TaskConfig(examples="jsonl:x").sources
    assert (source.input, source.target, source.group, source.split_by) == ("{source}", "{target}", None, None)


def test_sources_of_a_mixture_inherit_what_they_do_not_set():
    mixture = [{"source": "jsonl:a", "weight": 2.0}, {"source": "csv:b", "target": "{t}", "group": "g", "name": "b"}]
    task = TaskConfig.model_validate({"examples": mixture, "input": "{s}", "target": "{o}", "split_by": "id"})
    first, second = task.sources
    assert first == SourceConfig(source="jsonl:a", weight=2.0, input="{s}", target="{o}", split_by="id")
    assert second == SourceConfig(source="csv:b", name="b", input="{s}", target="{t}", group="g", split_by="id")


@pytest.mark.parametrize(
    "settings,expected",
    [
        ({"examples": "jsonl:a"}, False),
        ({"examples": "jsonl:a", "group": "g"}, True),
        ({"examples": [{"source": "jsonl:a"}]}, False),
        ({"examples": [{"source": "jsonl:a", "group": "g"}]}, True),
        ({"examples": [{"source": "jsonl:a"}, {"source": "jsonl:b"}]}, True),
    ],
)
def test_groups_are_a_column_or_the_sources_of_a_mixture(settings, expected):
    assert TaskConfig.model_validate(settings).has_groups is expected


def test_the_columns_of_a_source_are_those_that_its_settings_name():
    source = SourceConfig(source="jsonl:a", input="{a} {b} {{c}}", target="{b} {d}", group="e", split_by="a")
    assert source_columns(source) == ["a", "b", "d", "e"]
    assert source_columns(source, with_target=False) == ["a", "b", "e"]


@pytest.mark.parametrize(
    "settings,says",
    [
        ({"input": "{a"}, "single '{'"),
        ({"target": "{}"}, "without the name of a column"),
        ({"input": ""}, "at least 1 character"),
        ({"examples": []}, "at least 1 item"),
        ({"examples": [{"source": "jsonl:a", "weight": 0.0}]}, "greater than 0"),
        ({"examples": [{"source": "jsonl:a", "input": "{"}]}, "single '{'"),
        ({"metrics": ["bleu", "bleu"]}, "has a metric twice"),
        ({"max_input": 1}, "greater than or equal to 2"),
    ],
)
def test_wrong_settings_are_refused(settings, says):
    with pytest.raises(ValidationError, match=says):
        TaskConfig.model_validate(settings)
