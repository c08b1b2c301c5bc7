"""The registration report: one HTML file that opens offline, with overlays, Dice and volumes before and after."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from concordct.errors import ConcordctError
from concordct.progression.registration import Registered
from concordct.radiomics.regions.lungs import LUNGS
from concordct.report.tables import number, percent
from concordct.signal.drawing import new_figure
from concordct.volumes.place import atomic_file
from concordct.volumes.volume import AIR_HU, Volume

#: Where the axial overlays lie, as shares of the lungs' extent from its first slice.
HEIGHTS = (0.2, 0.45, 0.7)
WINDOW_HU = (-1350.0, 150.0)
DIFFERENCE_HU = 400.0
_INITIAL, _FOLLOWUP = "#3d8fe0", "#ff9f1c"


def write_registration_report(
    path: str | Path,
    registered: Registered,
    *,
    moving: Volume,
    fixed: Volume,
    moving_lungs: NDArray[np.uint8],
    title: str,
    warnings: Sequence[str] = (),
) -> int:
    """Write the report, aside first and then moved into place.

    Parameters
    ----------
    path : the HTML file.
    registered : what `pre_register` found.
    moving, fixed, moving_lungs : the follow-up, the initial scan and the follow-up's lungs, as they were registered.
    title : shown as it is; the caller keeps patient data out of it.
    warnings : lines above the tables.

    Returns
    -------
    The bytes written.
    """
    if registered.volume.shape != fixed.shape:
        raise ConcordctError(
            f"registered volume of {registered.volume.shape}, expected the initial scan's {fixed.shape}"
        )
    text = _page(registered, moving, fixed, moving_lungs, title, warnings)
    data = text.encode("utf-8")
    with atomic_file(path, overwrite=True) as aside:
        aside.write_bytes(data)
    return len(data)


def _page(
    registered: Registered, moving: Volume, fixed: Volume, moving_lungs: NDArray[np.uint8], title: str,
    warnings: Sequence[str],
) -> str:  # fmt: skip
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    assets = resources.files("concordct.report").joinpath("assets")
    style = "\n" + assets.joinpath("report.css").read_text(encoding="utf-8") + "\nimg { max-width: 100%; }\n"
    policy = "'sha256-" + base64.b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii") + "'"
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(num=number, pct=percent)
    return environment.from_string(assets.joinpath("registration.html.j2").read_text(encoding="utf-8")).render(
        title=title,
        backend={"ants": "ANTs", "simpleitk": "SimpleITK"}.get(registered.backend, registered.backend),
        seconds=registered.seconds,
        warnings=list(warnings),
        rows=_rows(registered),
        detail=registered.detail_correlation,
        difference_hu=DIFFERENCE_HU,
        low=number(WINDOW_HU[0], 0),
        high=number(WINDOW_HU[1], 0),
        pictures=_pictures(registered, moving, fixed, moving_lungs),
        style=Markup(style),
        style_policy=policy,
    )


def _rows(registered: Registered) -> list[dict[str, Any]]:
    rows = []
    sizes = {**registered.volumes_ml}
    sizes["both"] = tuple(float(sum(column)) for column in zip(*registered.volumes_ml.values(), strict=True))  # type: ignore[assignment]
    for lung in (*LUNGS, "both"):
        initial, followup, _ = sizes[lung]
        rows.append({
            "lung": lung.capitalize(),
            "before": registered.dice_before[lung],
            "after": registered.dice_after[lung],
            "initial": initial,
            "followup": followup,
            "change": followup / initial - 1.0 if initial else None,
            "determinant": registered.determinants.get(lung),
        })  # fmt: skip
    return rows


def _pictures(
    registered: Registered, moving: Volume, fixed: Volume, moving_lungs: NDArray[np.uint8]
) -> list[dict[str, str]]:
    places = np.argwhere(registered.fixed_lungs > 0)
    low, high = places.min(axis=0), places.max(axis=0)
    boxes: list[tuple[str, int, int]] = []
    for share in HEIGHTS:
        z = round(low[0] + share * (high[0] - low[0]))
        boxes.append((f"Axial slice {z + 1} of {fixed.shape[0]}", 0, z))
    y = round(0.5 * (low[1] + high[1]))
    boxes.append((f"Coronal slice {y + 1} of {fixed.shape[1]}", 1, y))
    pictures = []
    for label, axis, index in boxes:
        cut = tuple(slice(index, index + 1) if a == axis else slice(None) for a in range(3))
        before, before_lungs = _untouched(moving, moving_lungs, fixed, axis, index)
        planes = [
            (fixed.hu[cut], before, registered.fixed_lungs[cut], before_lungs),
            (fixed.hu[cut], registered.volume.hu[cut], registered.fixed_lungs[cut], registered.lungs[cut]),
        ]
        squeezed = [tuple(np.squeeze(part, axis=axis) for part in plane) for plane in planes]
        spacing = [s for a, s in enumerate(fixed.spacing_mm) if a != axis]
        # Patients are shown head up: slices that ascend towards the head are turned over.
        upside_down = axis != 0 and fixed.affine[2, 0] > 0
        right = "left" if fixed.affine[0, 2] > 0 else "right"
        pictures.append({"label": label, "png": _draw(squeezed, spacing[0] / spacing[1], upside_down, right)})
    return pictures


def _untouched(
    moving: Volume, moving_lungs: NDArray[np.uint8], fixed: Volume, axis: int, index: int
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """One plane of the follow-up where it lay before, on the initial scan's grid."""
    size = [1 if a == axis else n for a, n in enumerate(fixed.shape)]
    grid = np.indices(size, dtype=np.float64).reshape(3, -1)
    grid[axis] = index
    to_moving = np.linalg.inv(moving.affine) @ fixed.affine
    place = to_moving[:3, :3] @ grid + to_moving[:3, 3:]
    hu = ndimage.map_coordinates(moving.hu, place, order=1, cval=AIR_HU).reshape(size)
    return hu, ndimage.map_coordinates(moving_lungs, place, order=0, cval=0).reshape(size)


def _draw(planes: list[tuple[NDArray[Any], ...]], aspect: float, upside_down: bool, right: str) -> str:
    """Before and after side by side, each with its difference, as a PNG in base64; R at the patient's right."""
    height, width = planes[0][0].shape
    inches = 2.9
    figure = new_figure(figsize=(4 * inches, inches * height * aspect / width + 0.25), dpi=100, facecolor="white")
    axes = figure.subplots(1, 4)
    figure.subplots_adjust(left=0.0, right=1.0, bottom=0.0, top=1.0 - 0.25 / figure.get_size_inches()[1], wspace=0.02)
    origin: Any = "lower" if upside_down else "upper"
    for column, (name, (initial, followup, lungs, others)) in enumerate(zip(("before", "after"), planes, strict=True)):
        overlay, difference = axes[2 * column], axes[2 * column + 1]
        overlay.imshow(followup, cmap="gray", vmin=WINDOW_HU[0], vmax=WINDOW_HU[1], aspect=aspect, origin=origin)
        for mask, colour in ((lungs, _INITIAL), (others, _FOLLOWUP)):
            if (mask > 0).any() and not (mask > 0).all():
                overlay.contour(mask > 0, levels=[0.5], colors=[colour], linewidths=0.9)
        at = 0.02 if right == "left" else 0.98
        overlay.text(at, 0.5, "R", color="white", fontsize=9, ha=right, va="center", transform=overlay.transAxes)
        overlay.set_title(f"follow-up {name}", fontsize=9, pad=3)
        change = np.clip(followup, *WINDOW_HU) - np.clip(initial, *WINDOW_HU)
        difference.imshow(change, cmap="RdBu_r", vmin=-DIFFERENCE_HU, vmax=DIFFERENCE_HU, aspect=aspect, origin=origin)
        difference.set_title(f"difference {name}", fontsize=9, pad=3)
    for one in axes:
        one.set_axis_off()
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return base64.b64encode(file.getvalue()).decode("ascii")
