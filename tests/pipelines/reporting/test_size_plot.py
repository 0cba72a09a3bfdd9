"""The plot of students of several sizes."""

from typing import Any

import pytest

from pipelines.reporting.size_plot import plot_sizes
from tests.pipelines.reporting.test_table import report
from tests.pipelines.reporting.test_table import row as row_of_table


def row(**changes) -> dict:
    return row_of_table(**{"student_d_ff": 32, "student_decoder_layers": 2, **changes})


def test_the_plot_of_sizes_has_every_student_at_its_size(tmp_path, monkeypatch):
    drawn: list[Any] = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, *_, **__: drawn.append(figure))
    sizes = {"x1": 1.0, "x2": 1.2, "x4": 1.6}
    rows = [
        row(ratio=ratio, variant=name, student_parameters=int(1e6 * size), fraction_kept=size / 4)
        for ratio in ("e4", "e8")
        for name, size in sizes.items()
    ]
    rows[-1] |= {"fraction_kept": None, "fraction_interval": None}
    plot_sizes(report(*reversed(rows)), tmp_path / "sizes.png")
    kept, quality = drawn[0].axes
    for axes in (kept, quality):
        assert axes.get_xscale() == "log" and "million parameters" in axes.get_xlabel()
        assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "1.2", "1.6"]
    lines = {container.get_label(): container for container in kept.containers}
    assert lines.keys() == {"e4, 95 % interval", "e8, 95 % interval"}
    line, _, (bars,) = lines["e4, 95 % interval"]
    assert line.get_xydata().tolist() == [[size, pytest.approx(25 * size)] for size in sizes.values()]
    assert [segment[:, 1].tolist() for segment in bars.get_segments()][0] == pytest.approx([25, 60])
    assert len(lines["e8, 95 % interval"][0].get_xydata()) == 2  # no point without a fraction
    assert sorted(text.get_text() for text in kept.texts) == ["x1", "x1", "x2", "x2", "x4"]
    assert [text.get_text() for text in quality.texts] == 2 * list(sizes)
    assert {"baseline", "long baseline", "students of e4", "teacher e8 (2M)"} <= set(
        quality.get_legend_handles_labels()[1]
    )


def test_students_of_another_depth_have_a_line_of_their_own(tmp_path, monkeypatch):
    drawn: list[Any] = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, *_, **__: drawn.append(figure))
    shallow = {"student_decoder_layers": 1}
    rows = [row(variant="x1"), row(variant="x2", student_parameters=1_200_000)]
    rows += [row(variant="flat", student_parameters=800_000, **shallow), row(variant="wide", **shallow)]
    for one in rows[:2]:
        one |= {"fraction_kept": None, "fraction_interval": None, "gain": -1, "gain_interval": [-2, -0.5]}
    plot_sizes(report(*rows), tmp_path / "sizes.png")
    kept, quality = drawn[0].axes
    assert kept.get_legend_handles_labels()[1] == [
        "e4, 2 decoder layers: negative",
        "e4, 1 decoder layer, 95 % interval",
    ]
    lines = {line.get_label(): [*line.get_xdata()] for line in quality.get_lines()}
    assert lines["students of e4, 2 decoder layers"] == [1.0, 1.2]
    assert lines["students of e4, 1 decoder layer"] == [0.8, 1.0]
    assert kept.get_xlim() == quality.get_xlim() and kept.get_xlim()[0] < 0.8 and kept.get_xlim()[1] > 1.2


@pytest.mark.parametrize(
    "rows",
    [
        [row(student_parameters=2_000_000)],  # all students have one size, which is not the baseline's
        [row(variant="a"), row(variant="b", student_parameters=3, fraction_kept=None, fraction_interval=None)],
    ],
)
def test_every_kind_of_report_is_drawn(rows, tmp_path):
    plot_sizes(report(*rows), tmp_path / "sizes.png")
    assert (tmp_path / "sizes.png").read_bytes().startswith(b"\x89PNG")
