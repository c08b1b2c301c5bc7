"""Curves as inline SVG: axes, ticks, paths and what the hover readout needs, as plain data for the page's template.

Hand-made, because a chart with a second axis, a legend and numbers under the cursor then costs a few kilobytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from concordct.errors import ConcordctError

#: Size of the drawing and of its plot area (left, top, right, bottom), SVG units; one unit is about one CSS pixel.
WIDTH, HEIGHT = 460.0, 270.0
BOX = (58.0, 12.0, 448.0, 226.0)
BOX_WITH_SECOND_AXIS = (58.0, 40.0, 448.0, 226.0)

#: A logarithmic axis spans no more than this; what is smaller is numerical dust.
LOG_SPAN = 1e6

#: A series keeps its colour on the whole page when its name says which stack it is of.
ROLES = ("source", "standardized", "target")


@dataclass(frozen=True)
class Curve:
    """One chart of one or more lines over a shared x axis.

    Attributes
    ----------
    title, x_label, y_label : text; units belong in the labels.
    series : (name, x, y) each; x and y of equal length. A gap is drawn where y is not finite. A series named
        "source", "standardized" or "target" (alone or as first word) wears that stack's colour.
    x2_label, x2_per_x : a second axis on top, x2 = x * x2_per_x ("cycles/pixel" over lp/cm).
    log_y : logarithmic y axis; values at or below zero are left out.
    markers : (x, label) of vertical lines, such as a cut-off frequency.
    y_range : the y axis' ends; from the data when None.
    steps : drawn as steps, x being the left edges of equal bins (histograms).
    note : one line under the chart.
    """

    title: str
    x_label: str
    y_label: str
    series: Sequence[tuple[str, ArrayLike, ArrayLike]]
    x2_label: str | None = None
    x2_per_x: float | None = None
    log_y: bool = False
    markers: Sequence[tuple[float, str]] = ()
    y_range: tuple[float, float] | None = None
    steps: bool = False
    note: str = ""


def nice_ticks(low: float, high: float, *, about: int = 6) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten within [low, high], near `about` of them."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((m * power for m in (1, 2, 5) if m * power >= rough), 10 * power)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def tick_text(value: float) -> str:
    """A tick's label: no trailing zeros, a true minus sign."""
    if value == 0:
        return "0"
    text = f"{value:.0e}" if abs(value) >= 1e5 or abs(value) < 1e-3 else f"{value:.6g}"
    return text.replace("e-0", "e-").replace("e+0", "e").replace("-", "−")


def role(name: str) -> str:
    """ "source", "standardized" or "target" when the name starts with it, else ""."""
    first = name.split()[0].strip(",:;()").lower() if name.split() else ""
    return first if first in ROLES else ""


def _rounded(values: NDArray[np.float64]) -> list[float | None]:
    return [float(f"{v:.5g}") if math.isfinite(v) else None for v in values]


def _axis_range(values: list[NDArray[np.float64]], *, log: bool) -> tuple[float, float]:
    finite = np.concatenate([v[np.isfinite(v)] for v in values] or [np.empty(0)])
    if finite.size == 0:
        return (0.1, 1.0) if log else (0.0, 1.0)
    low, high = float(finite.min()), float(finite.max())
    if log:
        bottom, top = 10.0 ** math.floor(math.log10(low)), 10.0 ** math.ceil(math.log10(high))
        return max(bottom, top / LOG_SPAN), top if top > bottom else bottom * 10
    low = min(low, 0.0) if low > 0 and low < 0.5 * high else low
    if high == low:
        return low - 0.5, high + 0.5
    margin = 0.04 * (high - low)
    return (low if low == 0 else low - margin), high + margin


def _log_ticks(low: float, high: float) -> list[float]:
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    stride = max(1, (last - first) // 6)
    return [10.0**e for e in range(first, last + 1, stride)]


def _path(x: NDArray[np.float64], y: NDArray[np.float64], *, steps: bool) -> str:
    if steps and x.size > 1:
        x = np.concatenate([np.repeat(x, 2)[1:], [2 * x[-1] - x[-2]]])
        y = np.repeat(y, 2)
    parts, pen = [], "M"
    for px, py in zip(x, y, strict=True):
        if math.isfinite(px) and math.isfinite(py):
            parts.append(f"{pen}{px:.1f} {py:.1f}")
            pen = "L"
        else:
            pen = "M"
    return "".join(parts)


def draw(curve: Curve) -> dict[str, Any]:
    """A chart as plain data for the template: ticks, paths and legend in SVG units, samples for the hover readout.

    Raises
    ------
    ConcordctError
        When x and y of a series differ in length.
    """
    names, xs, ys = [], [], []
    for name, x, y in curve.series:
        xa, ya = np.asarray(x, dtype=np.float64).ravel(), np.asarray(y, dtype=np.float64).ravel()
        if xa.size != ya.size:
            raise ConcordctError(f"curve '{curve.title}', series '{name}': found {xa.size} x and {ya.size} y values")
        names.append(name)
        xs.append(xa)
        ys.append(np.where(ya > 0, ya, np.nan) if curve.log_y else ya)

    second = curve.x2_label is not None and bool(curve.x2_per_x)
    left, top, right, bottom = BOX_WITH_SECOND_AXIS if second else BOX
    finite_x = np.concatenate([x[np.isfinite(x)] for x in xs] or [np.empty(0)])
    x0, x1 = (float(finite_x.min()), float(finite_x.max())) if finite_x.size else (0.0, 1.0)
    if curve.steps and finite_x.size > 1:
        x1 += float(xs[0][1] - xs[0][0])
    if x1 <= x0:
        x1 = x0 + 1.0
    y0, y1 = curve.y_range or _axis_range(ys, log=curve.log_y)
    if curve.markers and not curve.y_range and not curve.log_y:
        y1 += (0.04 + 0.08 * len(curve.markers)) * (y1 - y0)  # the markers' labels stand above the lines

    def to_x(value: Any) -> Any:
        return left + (value - x0) / (x1 - x0) * (right - left)

    def to_y(value: Any) -> Any:
        if curve.log_y:
            return bottom - (np.log10(value) - math.log10(y0)) / (math.log10(y1) - math.log10(y0)) * (bottom - top)
        return bottom - (value - y0) / (y1 - y0) * (bottom - top)

    lines = []
    for index, (name, x, y) in enumerate(zip(names, xs, ys, strict=True)):
        line = {
            "name": name,
            "style": role(name) or f"extra{index % 4}",
            "path": _path(to_x(x), np.clip(to_y(y), top - 400, bottom + 400), steps=curve.steps),
        }
        lines.append(line)
    y_ticks = _log_ticks(y0, y1) if curve.log_y else nice_ticks(y0, y1, about=5)
    chart: dict[str, Any] = {
        "title": curve.title,
        "x_label": curve.x_label,
        "y_label": curve.y_label,
        "x2_label": curve.x2_label if second else None,
        "note": curve.note,
        "width": WIDTH,
        "height": HEIGHT,
        "box": {"left": left, "top": top, "right": right, "bottom": bottom},
        "x_ticks": [{"at": round(float(to_x(t)), 1), "text": tick_text(t)} for t in nice_ticks(x0, x1, about=7)],
        "y_ticks": [{"at": round(float(to_y(t)), 1), "text": tick_text(t)} for t in y_ticks],
        "x2_ticks": [],
        "markers": [
            {"at": round(float(to_x(x)), 1), "label": label, "flip": to_x(x) > (left + right) / 2}
            for x, label in curve.markers
            if math.isfinite(x) and x0 <= x <= x1
        ],
        "lines": lines,
        "hover": {
            "x": [x0, x1],
            "y": [y0, y1],
            "log": curve.log_y,
            "steps": curve.steps,
            "box": [left, top, right, bottom],
            "x_label": curve.x_label,
            "series": [
                {"name": n, "style": line["style"], "x": _rounded(x), "y": _rounded(y)}
                for n, x, y, line in zip(names, xs, ys, lines, strict=True)
            ],
        },
    }
    if second:
        scale = float(curve.x2_per_x or 1.0)
        chart["hover"]["x2"] = [curve.x2_label, scale]
        ticks = nice_ticks(*sorted((x0 * scale, x1 * scale)), about=7)
        chart["x2_ticks"] = [{"at": round(float(to_x(t / scale)), 1), "text": tick_text(t)} for t in ticks]
    return chart


def histogram(values: Mapping[str, Sequence[float]], *, title: str, x_label: str, bins: int = 20) -> Curve:
    """Counts of values in [0, 1] by equal bins, one step line per name; what lies below 0 counts into the first bin."""
    edges = np.linspace(0.0, 1.0, bins + 1)
    series = []
    for name, numbers in values.items():
        finite = np.asarray([v for v in numbers if v is not None and math.isfinite(v)], dtype=np.float64)
        counts = np.histogram(np.clip(finite, 0.0, 1.0), bins=edges)[0]
        series.append((name, edges[:-1], counts))
    top = max((float(np.max(c)) for _, _, c in series), default=1.0)
    return Curve(title, x_label, "features", series, steps=True, y_range=(0.0, max(1.0, top * 1.08)),
                 note="Values below 0 are counted in the first bin.")  # fmt: skip
