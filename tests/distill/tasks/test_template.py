import pytest

from distill.tasks.template import check_template, columns_of, render


@pytest.mark.parametrize(
    "template,columns,text",
    [
        ("{a}", ["a"], "x"),
        ("to {b}: {a}", ["b", "a"], "to {y}: x"),
        ("{a}{a} and {b}", ["a", "a", "b"], "xx and {y}"),
        ("no column", [], "no column"),
        ("{{{a}}}", ["a"], "{x}"),
        ("{{a}}", [], "{a}"),
        ("{{}} {a}", ["a"], "{} x"),
        ("{two words}", ["two words"], "1"),
        ("{a.b} {a[0]} {a!r} {a:>5}", ["a.b", "a[0]", "a!r", "a:>5"], "2 3 4 5"),
        ("line\n{a}\tüñ", ["a"], "line\nx\tüñ"),
    ],
)
def test_columns_stand_in_braces(template, columns, text):
    values = {"a": "x", "b": "{y}", "two words": "1", "a.b": "2", "a[0]": "3", "a!r": "4", "a:>5": "5"}
    assert check_template(template) == template
    assert columns_of(template) == columns
    assert render(template, values) == text


def test_values_are_not_templates():
    assert render("{a}", {"a": "{b} {{ }} {", "b": "no"}) == "{b} {{ }} {"


@pytest.mark.parametrize(
    "template,says",
    [
        ("{a", "a single '{' at 0; write {{"),
        ("a}", "a single '}' at 1; write }}"),
        ("{a}}", "a single '}' at 3"),
        ("{{a}", "a single '}' at 3"),
        ("{a{b}}", "a single '{' at 0"),
        ("x {}", "without the name of a column"),
        ("x { }", "without the name of a column"),
    ],
)
def test_wrong_braces_are_refused(template, says):
    with pytest.raises(ValueError, match="braces|single") as caught:
        check_template(template)
    assert says in str(caught.value)
