"""The comparison as one offline page: tables with the best in bold, curve, images with difference maps, cost."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment
from markupsafe import Markup
from numpy.typing import NDArray

from concordct.judging.stages import TARGET
from concordct.signal.drawing import new_figure, ready_to_draw

#: The papers' display window, HU.
WINDOW_HU = (-800.0, 600.0)
#: Differences to the target are drawn from minus this, blue, to this, red, HU.
DIFFERENCE_HU = 200.0
#: Edge of the magnified square, pixels.
ZOOM_PIXELS = 64


@dataclass(frozen=True, eq=False)
class Panel:
    """One image of the row: what it is called, and its slice [y, x] HU."""

    name: str
    hu: NDArray[np.int16]


def write_comparison(
    path: Path,
    results: Mapping[str, Any],
    panels: Sequence[Panel],
    *,
    centre: tuple[int, int],
    below: Mapping[str, float | None],
) -> None:
    """Write the page.

    Parameters
    ----------
    results : what `pipelines.compare` found.
    panels : the same slice of target, input and models.
    centre : (row, column) of the magnified square.
    below : name -> concordance that is printed under the panel.
    """
    template = (resources.files(__package__) / "assets" / "comparison.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True)
    environment.filters["n"] = lambda value: "?" if value is None else f"{value:.2f}"
    environment.filters["g"] = lambda value: "?" if value is None else f"{value:.4g}"
    region = results["headline_region"]
    for rows in results["table"].values():
        for row in rows:
            for cell in row["classes"].values():
                low, high = cell["difference_to_input"]
                cell["tied"] = low is not None and high is not None and low <= 0 <= high and row is not rows[0]
    rows_px = next((cost["rows"] for cost in results["cost"].values()), "?")
    style = (resources.files(__package__) / "assets" / "report.css").read_text(encoding="utf-8")
    page = environment.from_string(template).render(
        style=Markup(style),
        r=results,
        row_png=_encoded(image_row(panels, centre, below)),
        curve_png=_encoded(_curve(results["thresholds"], results["curves"][region])),
        rows_px=rows_px,
    )
    path.write_text(page, encoding="utf-8")


def image_row(panels: Sequence[Panel], centre: tuple[int, int], below: Mapping[str, float | None]) -> bytes:
    """Every panel, a square of it magnified, and its difference to the target, as PNG; see `write_comparison`."""
    ready_to_draw()
    from matplotlib.patches import Rectangle

    height, width = panels[0].hu.shape
    half = min(ZOOM_PIXELS, height, width) // 2
    y, x = (int(np.clip(c, half, size - half)) for c, size in zip(centre, (height, width), strict=True))
    columns = min(len(panels), 5)
    lines = -(-len(panels) // columns)
    figure = new_figure(figsize=(2.3 * columns, 7.6 * lines), dpi=110, facecolor="white", layout="constrained")
    axes = np.asarray(figure.subplots(3 * lines, columns, squeeze=False))
    target = next((panel.hu for panel in panels if panel.name == TARGET), None)
    for one in axes.ravel():
        one.set_axis_off()
    for index, panel in enumerate(panels):
        line, column = divmod(index, columns)
        whole, zoom, apart = (axes[3 * line + i, column] for i in range(3))
        low, high = WINDOW_HU
        whole.imshow(panel.hu, cmap="gray", vmin=low, vmax=high)
        whole.add_patch(Rectangle((x - half, y - half), 2 * half, 2 * half, fill=False, edgecolor="#d9480f"))
        whole.set_title(panel.name, fontsize=9, wrap=True)
        zoom.imshow(panel.hu[y - half : y + half, x - half : x + half], cmap="gray", vmin=low, vmax=high)
        value = below.get(panel.name)
        if value is not None:
            zoom.text(0.5, -0.06, f"GLCM {value:.2f}", transform=zoom.transAxes, ha="center", va="top", fontsize=9)
        if target is not None and panel.name != TARGET:
            difference = panel.hu.astype(np.float32) - target
            apart.imshow(difference, cmap="coolwarm", vmin=-DIFFERENCE_HU, vmax=DIFFERENCE_HU)
    return _png(figure)


def _curve(thresholds: Sequence[float], curves: Mapping[str, Sequence[float | None]]) -> bytes:
    figure = new_figure(figsize=(7.5, 4.2), dpi=110, facecolor="white", layout="constrained")
    axes = figure.subplots()
    for index, (name, shares) in enumerate(curves.items()):
        values = [np.nan if share is None else share for share in shares]
        axes.plot(thresholds, values, label=name, linestyle=("-", "--", ":")[index % 3])
    axes.axvline(0.15, color="#5a6672", linewidth=0.8)
    axes.set_xlabel("threshold of the relative error")
    axes.set_ylabel("share of features")
    axes.set_ylim(0, 1)
    axes.legend(fontsize=8)
    return _png(figure)


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _encoded(png: bytes) -> str:
    return base64.b64encode(png).decode()
