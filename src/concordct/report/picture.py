"""One static picture of a standardization: before, after, target and the difference, each with a magnified region."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from concordct.errors import ConcordctError
from concordct.report.evaluation import DIFFERENCES, LABELS, ShownStack
from concordct.report.tables import number
from concordct.report.voxels import body_box
from concordct.signal.drawing import new_figure, ready_to_draw
from concordct.volumes.place import atomic_file

_INK, _QUIET, _MARK = "#16202a", "#5a6672", "#ffd166"


def write_picture(
    path: str | Path,
    stacks: Sequence[ShownStack],
    *,
    spacing_mm: Sequence[float],
    slice_index: int,
    window: tuple[float, float],
    difference_hu: float,
    region: tuple[int, int, int] | None = None,
    title: str = "",
    dpi: int = 130,
) -> None:
    """Write a PNG: one column per stack and one for the difference; the slice above, a magnified region below.

    Parameters
    ----------
    path : the PNG file; written aside first, then moved into place. The same input gives the same bytes.
    stacks : volumes of one shape [z, y, x], HU.
    spacing_mm : (z, y, x), mm.
    slice_index : along z.
    window : centre and width, HU.
    difference_hu : the colour scale runs from minus this to plus this, HU.
    region : (row, column, size) of the magnified square, voxels; None takes the square of a fifth of the body in which
        the first difference is strongest.
    title : above the picture.

    Raises
    ------
    ConcordctError
        When there is no stack, shapes differ, or the slice or the region lies outside.
    """
    ready_to_draw()
    from matplotlib.patches import Rectangle

    planes = _planes(stacks, slice_index)
    (top, bottom), (left, right) = body_box([plane[None] for plane in planes.values()])
    difference = next(((a, b) for a, b in DIFFERENCES if a in planes and b in planes), None)
    panels: list[tuple[str, NDArray[Any], bool]] = [(LABELS.get(n, n), plane, False) for n, plane in planes.items()]
    if difference:
        a, b = difference
        panels.append((f"{LABELS[a]} − {LABELS[b].lower()}", planes[a] - planes[b], True))
    row, column, size = region or _strongest(planes, (top, bottom), (left, right))
    height, width = next(iter(planes.values())).shape
    if not (0 <= row <= height - size and 0 <= column <= width - size and size > 0):
        raise ConcordctError(f"region of {size} voxels at ({row}, {column}) leaves the slice of {height} x {width}")

    aspect = spacing_mm[1] / spacing_mm[2]
    low, high = window[0] - window[1] / 2, window[0] + window[1] / 2
    panel_inches = 2.6
    body_inches = panel_inches * (bottom - top) * aspect / (right - left)
    zoom_inches = panel_inches * aspect
    head = 0.62 if title else 0.34
    figure = new_figure(
        figsize=(panel_inches * len(panels) + 0.08, body_inches + zoom_inches + head + 0.42), dpi=dpi, facecolor="white"
    )
    total_width, total_height = figure.get_size_inches()

    def place(index: int, from_top: float, inches: float) -> Any:
        return figure.add_axes((
            (0.04 + index * panel_inches + 0.03) / total_width, 1 - (from_top + inches) / total_height,
            (panel_inches - 0.06) / total_width, (inches - 0.06) / total_height,
        ))  # fmt: skip

    if title:
        figure.text(
            0.07 / total_width, 1 - 0.2 / total_height, title, color=_INK, fontsize=11, weight="bold", va="center"
        )
    image = None
    for index, (label, plane, signed) in enumerate(panels):
        colours = (
            {"cmap": _diverging(), "vmin": -difference_hu, "vmax": difference_hu}
            if signed
            else {"cmap": "gray", "vmin": low, "vmax": high}
        )
        figure.text(
            (0.04 + (index + 0.5) * panel_inches) / total_width, 1 - (head - 0.14) / total_height, label,
            color=_INK, fontsize=10, ha="center", va="center",
        )  # fmt: skip
        whole, zoomed = place(index, head, body_inches), place(index, head + body_inches, zoom_inches)
        whole.imshow(plane[top:bottom, left:right], aspect="auto", interpolation="antialiased",
                     extent=(left, right, bottom, top), **colours)  # fmt: skip
        whole.add_patch(Rectangle((column, row), size, size, fill=False, edgecolor=_MARK, linewidth=1.1))
        image = zoomed.imshow(plane[row : row + size, column : column + size], aspect="auto", interpolation="nearest",
                              **colours)  # fmt: skip
        for axes in (whole, zoomed):
            axes.set_axis_off()
    foot = 0.16 / total_height
    figure.text(
        0.07 / total_width, foot, f"centre {number(window[0], 0)}, width {number(window[1], 0)} HU; "
        f"below: the marked {size} × {size} voxels",
        color=_QUIET, fontsize=8, va="center",
    )  # fmt: skip
    if difference and image is not None:
        bar_left = 0.04 + (len(panels) - 1) * panel_inches + 0.5
        bar = figure.add_axes((bar_left / total_width, 0.24 / total_height, 1.6 / total_width, 0.08 / total_height))
        colour_bar = figure.colorbar(image, cax=bar, orientation="horizontal", ticks=[-difference_hu, 0, difference_hu])
        colour_bar.ax.set_xticklabels([f"−{difference_hu:g}", "0 HU", f"+{difference_hu:g}"])
        colour_bar.ax.tick_params(labelsize=8, colors=_QUIET, length=2, pad=1)
        colour_bar.outline.set_linewidth(0.4)
    with atomic_file(path, overwrite=True) as aside, aside.open("wb") as file:
        # Without the library's version in it, the same picture is the same file everywhere.
        figure.savefig(file, format="png", metadata={"Software": None})


def _planes(stacks: Sequence[ShownStack], slice_index: int) -> dict[str, NDArray[np.float64]]:
    if not stacks:
        raise ConcordctError("a picture needs at least one stack, found none")
    for stack in stacks:
        if stack.hu.shape != stacks[0].hu.shape:
            raise ConcordctError(
                f"stack '{stack.name}' has shape {stack.hu.shape}, expected {stacks[0].hu.shape} as '{stacks[0].name}'"
            )
    if not 0 <= slice_index < stacks[0].hu.shape[0]:
        raise ConcordctError(f"found slice index {slice_index}, expected 0 to {stacks[0].hu.shape[0] - 1}")
    return {stack.name: np.asarray(stack.hu[slice_index], dtype=np.float64) for stack in stacks}


def _strongest(
    planes: dict[str, NDArray[np.float64]], rows: tuple[int, int], columns: tuple[int, int]
) -> tuple[int, int, int]:
    """The square of a fifth of the body in which the first two stacks differ most (the brightest one, of one stack)."""
    from scipy.ndimage import uniform_filter

    values = list(planes.values())
    strength = np.square(values[1] - values[0]) if len(values) > 1 else np.square(values[0] + 1000.0)
    size = max(1, min(rows[1] - rows[0], columns[1] - columns[0]) // 5)
    half = size // 2
    local = uniform_filter(strength, size, mode="constant")
    inside = local[rows[0] + half : rows[1] - size + half + 1, columns[0] + half : columns[1] - size + half + 1]
    row, column = np.unravel_index(int(np.argmax(inside)), inside.shape)
    return rows[0] + int(row), columns[0] + int(column), size


def _diverging() -> Any:
    """Blue, near black at zero, orange: the viewer's colours."""
    from matplotlib.colors import LinearSegmentedColormap

    stops = ((178, 224, 255), (30, 120, 200), (10, 10, 12), (205, 92, 10), (255, 222, 150))
    return LinearSegmentedColormap.from_list("difference", [tuple(c / 255 for c in stop) for stop in stops])
