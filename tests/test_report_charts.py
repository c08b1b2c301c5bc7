"""Charts: ticks, axes and paths land where the numbers say."""

import re

import numpy as np
import pytest

from concordct.errors import ConcordctError
from concordct.report.charts import BOX_WITH_SECOND_AXIS, Curve, draw, histogram, nice_ticks, role, tick_text


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (-30, 70, [-20, 0, 20, 40, 60]), (0, 11, [0, 2, 4, 6, 8, 10])],
)
def test_ticks_are_round_numbers_inside_the_range(low, high, expected):
    assert nice_ticks(low, high) == pytest.approx(expected)


def test_tick_text():
    assert [tick_text(v) for v in (0.0, -0.5, 1200, 1e-5, 0.30000000000000004)] == ["0", "−0.5", "1200", "1e−5", "0.3"]


def test_series_of_a_stack_are_known_by_their_first_word():
    assert [role(n) for n in ("source", "Target, fit", "standardized (mean)", "resource", "")] == [
        "source",
        "target",
        "standardized",
        "",
        "",
    ]


def test_points_markers_and_second_axis_share_one_scale():
    x = np.linspace(0, 10, 11)
    chart = draw(
        Curve("t", "lp/cm", "H", [("H", x, x)], x2_label="cycles/pixel", x2_per_x=0.05, markers=[(5.0, "cut-off")],
              y_range=(0, 10))
    )  # fmt: skip
    left, top, right, bottom = BOX_WITH_SECOND_AXIS
    points = [tuple(map(float, p.split())) for p in re.findall(r"[ML]([\d.]+ [\d.]+)", chart["lines"][0]["path"])]
    assert points[0] == (left, bottom)
    assert points[-1] == (right, top)
    assert chart["markers"][0]["at"] == pytest.approx((left + right) / 2)
    (half,) = [t["at"] for t in chart["x2_ticks"] if t["text"] == "0.3"]
    (same,) = [t["at"] for t in chart["x_ticks"] if t["text"] == "6"]
    assert half == same


def test_gaps_break_the_line_and_log_axes_leave_out_what_has_no_logarithm():
    chart = draw(Curve("t", "x", "y", [("a", [0, 1, 2, 3, 4], [1, 10, np.nan, 0, 100])], log_y=True))
    assert chart["lines"][0]["path"].count("M") == 2
    assert [t["text"] for t in chart["y_ticks"]] == ["1", "10", "100"]
    assert chart["hover"]["series"][0]["y"] == [1, 10, None, None, 100]


def test_numerical_dust_does_not_stretch_a_log_axis():
    chart = draw(Curve("t", "x", "y", [("a", [0, 1, 2], [1e-20, 10, 1000])], log_y=True))
    assert chart["hover"]["y"] == pytest.approx([1e-3, 1e3])


def test_empty_and_constant_series_still_draw():
    assert draw(Curve("t", "x", "y", [("a", [], [])]))["lines"][0]["path"] == ""
    assert draw(Curve("t", "x", "y", [("a", [1.0], [3.0])]))["lines"][0]["path"].startswith("M")


def test_unequal_lengths_are_refused():
    with pytest.raises(ConcordctError, match=r"found 2 x and 3 y"):
        draw(Curve("t", "x", "y", [("a", [0, 1], [0, 1, 2])]))


def test_histogram_counts_every_finite_value_once():
    curve = histogram({"source": [-0.2, 0.0, 0.5, 1.0, float("nan")]}, title="t", x_label="CCC", bins=4)
    assert list(curve.series[0][2]) == [2, 0, 1, 1]
