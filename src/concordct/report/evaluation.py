"""The evaluation report: one HTML file that opens offline, with the images, the curves and the tables in it.

Nothing is fetched: scripts, styles and voxels are inline, and the page's content security policy names the hash of
each, so that a browser refuses anything else. Differences are computed in the browser from the voxels.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from concordct.errors import ConcordctError
from concordct.report.charts import Curve, draw, histogram
from concordct.report.tables import (
    agreement_rows,
    flatten,
    headline,
    is_number,
    nps_rows,
    number,
    percent,
    quality_rows,
    worst_features,
)
from concordct.report.voxels import KeptVoxels, pack
from concordct.report.words import counted
from concordct.volumes.place import atomic_file
from concordct.volumes.volume import BODY_ABOVE_HU

__all__ = ["Curve", "ShownStack", "write_evaluation_report"]

#: What a stack is called on the page, by its name.
LABELS = {"source": "Before", "standardized": "After", "target": "Target"}

#: Differences offered, minuend - subtrahend, the first available one shown first.
DIFFERENCES = (("standardized", "target"), ("source", "target"), ("standardized", "source"))

#: Display windows (centre, width), HU; "full" is added from the data.
WINDOWS = {"lung": (-600, 1500), "soft": (40, 400), "bone": (500, 2000)}

#: Between these HU inside the body lies aerated lung and hardly anything else; with more of it than this share of the
#: body, the viewer opens in the lung window.
LUNG_HU = (-980, -600)
LUNG_SHARE = 0.1

#: Room in the file for the page's frame around voxels and content, bytes.
_FRAME_SLACK = 2_000


@dataclass(frozen=True)
class ShownStack:
    """A volume that the viewer shows.

    Attributes
    ----------
    name : "source", "standardized" or "target"; another name is shown as it is, without differences.
    hu : [z, y, x] int16 or float, Hounsfield units; shown and stored as whole HU.
    label : what it is called on the page; None for `LABELS`.
    """

    name: str
    hu: NDArray[Any]
    label: str | None = None

    @property
    def shown_as(self) -> str:
        """Its label."""
        return self.label or LABELS.get(self.name, self.name)


def write_evaluation_report(
    path: str | Path,
    *,
    results: Mapping[str, Any],
    stacks: Sequence[ShownStack],
    spacing_mm: Sequence[float],
    slice_positions_mm: Sequence[float],
    curves: Sequence[Curve],
    title: str,
    max_bytes: int = 15_000_000,
    affine: ArrayLike | None = None,
) -> int:
    """Write the report, aside first and then moved into place.

    When the voxels do not fit, the slices are cropped to the body; when they still do not, evenly spaced slices are
    kept. The page says which.

    Parameters
    ----------
    path : the HTML file.
    results : what evaluate writes as results.json; a missing section is left out of the page. `cards` stands for the
        headline where it is given: dicts of label, before, after, unit, verdict and note.
    stacks : volumes of one shape [z, y, x]; may be empty.
    spacing_mm : (z, y, x) distance between voxel centres, mm.
    slice_positions_mm : z positions along the normal, mm, one per slice.
    curves : charts, in the page's order.
    title : shown as it is; the caller keeps patient data out of it.
    max_bytes : the file's size at most.
    affine : [4, 4], index (z, y, x, 1) -> LPS mm; with it the cursor shows LPS and the panes their anatomical sides.

    Returns
    -------
    The bytes written.

    Raises
    ------
    ConcordctError
        When stacks differ in shape or hold NaN, positions do not match the slices, or the tables alone pass max_bytes.
    """
    _check(stacks, slice_positions_mm)
    text = _page(results, stacks, spacing_mm, slice_positions_mm, curves, title, max_bytes, affine)
    data = text.encode("utf-8")
    if len(data) > max_bytes:
        raise ConcordctError(f"report of {len(data)} bytes without images, expected at most {max_bytes}")
    with atomic_file(path, overwrite=True) as aside:
        aside.write_bytes(data)
    return len(data)


def _check(stacks: Sequence[ShownStack], positions: Sequence[float]) -> None:
    for stack in stacks:
        if stack.hu.ndim != 3 or stack.hu.size == 0:
            raise ConcordctError(f"stack '{stack.name}' has shape {stack.hu.shape}, expected non-empty (z, y, x)")
        if stack.hu.shape != stacks[0].hu.shape:
            raise ConcordctError(
                f"stack '{stack.name}' has shape {stack.hu.shape}, expected {stacks[0].hu.shape} as '{stacks[0].name}'"
            )
        if len(positions) != stack.hu.shape[0]:
            raise ConcordctError(f"found {len(positions)} slice positions, expected {stack.hu.shape[0]}, one per slice")
        if not np.isfinite(stack.hu).all():
            raise ConcordctError(f"stack '{stack.name}' holds values that are not finite, expected HU")
    names = [stack.name for stack in stacks]
    if len(set(names)) != len(names):
        raise ConcordctError(f"stacks {names} share a name, expected one each")


def _page(
    results: Mapping[str, Any], stacks: Sequence[ShownStack], spacing_mm: Sequence[float], positions: Sequence[float],
    curves: Sequence[Curve], title: str, max_bytes: int, affine: ArrayLike | None,
) -> str:  # fmt: skip
    content = _content(results, curves, title)
    if not stacks:
        return _render(content | {"viewer": None, "voxels": [], "stacks": []})
    names = [stack.name for stack in stacks]
    volumes = [stack.hu for stack in stacks]
    depth, height, width = volumes[0].shape
    everything = KeptVoxels(tuple(range(depth)), (0, height), (0, width), (depth, height, width))
    viewer = _viewer(stacks, everything, spacing_mm, positions, affine)
    frame = len(_render(content | {"viewer": viewer, "voxels": [], "stacks": names}).encode("utf-8"))
    kept, voxels = pack(volumes, max_bytes=max_bytes - frame - _FRAME_SLACK)
    viewer = _viewer(stacks, kept, spacing_mm, positions, affine)
    return _render(content | {"viewer": viewer, "voxels": voxels, "stacks": names})


def _content(results: Mapping[str, Any], curves: Sequence[Curve], title: str) -> dict[str, Any]:
    """Everything on the page but the images."""
    charts = [draw(curve) for curve in curves if len(curve.series)]
    features = (results.get("agreement") or {}).get("features") or []
    if features:
        ccc = {label: [f.get(f"{key}_ccc") for f in features if is_number(f.get(f"{key}_ccc"))]
               for key, label in (("source", "source"), ("standardized", "standardized"))}  # fmt: skip
        if any(ccc.values()):
            charts.append(draw(histogram(ccc, title="Concordance of the features", x_label="CCC")))
    provenance = results.get("provenance") or {}
    nps = results.get("nps") or {}
    return {
        "title": title,
        "warnings": [str(w) for w in results.get("warnings") or []],
        "origin": str(provenance.get("simulated_or_real") or ""),
        "basis": _basis(results),
        "in_sample": results.get("in_sample"),
        "settings": str((results.get("agreement") or {}).get("settings") or ""),
        "headline": results.get("cards") or headline(results),
        "charts": charts,
        "quality": results.get("image_quality") or {},
        "quality_rows": quality_rows(results),
        "bias": results.get("bias_by_hu_range") or [],
        "endpoints": [row for row in results.get("endpoints") or [] if row["headline"]],
        "classes": agreement_rows(results),
        "repeats": any(is_number(row.get("standardized_to_repeat_median")) for row in agreement_rows(results)),
        "ceiling": any(is_number(row.get("ceiling_ccc_mean")) for row in agreement_rows(results)),
        "worst": worst_features(results),
        "feature_count": len(features),
        "undefined": [str(name) for name in (results.get("agreement") or {}).get("undefined") or []],
        "bands": nps_rows(results),
        "nps_unit": str(nps.get("unit") or "cycles/pixel"),
        "methods": results.get("methods"),
        "facts": [
            (name, rows)
            for name, key in (
                ("Inputs", "inputs"),
                ("Lungs", "lungs"),
                ("Model", "model"),
                ("Self-check", "self_check"),
                ("Provenance", "provenance"),
            )
            if (rows := flatten(results.get(key)))
        ],
    }


def _basis(results: Mapping[str, Any]) -> str:
    """How many slices of how many subjects everything on the page is over."""
    inputs = results.get("inputs") or {}
    slices, subjects = inputs.get("slices"), inputs.get("subjects")
    if not slices or not subjects:
        return ""
    return f"{counted(slices, 'slice')} of {counted(subjects, 'subject')}"


def _sides(affine: NDArray[np.float64]) -> dict[str, str]:
    """The patient's side at each edge of a slice, from the directions of rows and columns in LPS."""

    def letters(direction: NDArray[np.float64]) -> tuple[str, str]:
        axis = int(np.argmax(np.abs(direction)))
        pair = (("R", "L"), ("A", "P"), ("F", "H"))[axis]
        return pair if direction[axis] > 0 else (pair[1], pair[0])

    top, bottom = letters(affine[:3, 1])
    left, right = letters(affine[:3, 2])
    return {"left": left, "right": right, "top": top, "bottom": bottom}


def _lung_share(hu: NDArray[Any]) -> float:
    """The share of the body, [y, x] HU with its holes filled, that reads like aerated lung."""
    from scipy.ndimage import binary_fill_holes

    body = binary_fill_holes(hu > BODY_ABOVE_HU)
    return float(np.mean((hu[body] > LUNG_HU[0]) & (hu[body] < LUNG_HU[1]))) if body.any() else 0.0


def _nice_above(value: float) -> int:
    """The next of 10, 20, 50, 100, ... at or above a value."""
    power = 10.0 ** math.floor(math.log10(max(value, 10.0)))
    return int(next(m * power for m in (1, 2, 5, 10) if m * power >= value * 0.999))


def _minus(minuend: ShownStack, subtrahend: ShownStack) -> str:
    return f"{minuend.shown_as} − {subtrahend.shown_as.lower()}"


def _viewer(
    stacks: Sequence[ShownStack], kept: KeptVoxels, spacing_mm: Sequence[float], positions: Sequence[float],
    affine: ArrayLike | None,
) -> dict[str, Any]:  # fmt: skip
    """What the viewer's script needs to know, as plain data."""
    by_name = {stack.name: index for index, stack in enumerate(stacks)}
    differences: list[dict[str, Any]] = [
        {"a": by_name[a], "b": by_name[b], "label": _minus(stacks[by_name[a]], stacks[by_name[b]])}
        for a, b in DIFFERENCES
        if a in by_name and b in by_name
    ]
    middle = slice(len(positions) // 2, len(positions) // 2 + 1)
    scale = 100
    if differences:
        minuend, subtrahend = (stacks[differences[0][side]].hu[middle] for side in ("a", "b"))
        scale = _nice_above(float(np.percentile(np.abs(np.subtract(minuend, subtrahend, dtype=np.float64)), 99)))
    low = int(min(np.floor(s.hu.min()) for s in stacks))
    high = int(max(np.ceil(s.hu.max()) for s in stacks))
    windows = {name: list(pair) for name, pair in WINDOWS.items()}
    windows["full"] = [round((low + high) / 2), max(1, high - low)]
    matrix = None if affine is None else np.asarray(affine, dtype=np.float64)
    return {
        "stacks": [{"name": s.name, "label": s.shown_as} for s in stacks],
        "shape": list(kept.shape),
        "rows": list(kept.rows),
        "columns": list(kept.columns),
        "cropped": kept.cropped,
        "slices": list(kept.slices),
        "positions": [round(float(positions[i]), 3) for i in kept.slices],
        "spacing": [float(s) for s in spacing_mm],
        "affine": None if matrix is None else [[float(v) for v in row] for row in matrix],
        "sides": None if matrix is None else _sides(matrix),
        "differences": differences,
        "scale": scale,
        "windows": windows,
        "window": "lung" if _lung_share(stacks[0].hu[middle][0]) > LUNG_SHARE else "soft",
    }


def _asset(name: str) -> str:
    return resources.files("concordct.report").joinpath("assets", name).read_text(encoding="utf-8")


def _render(content: Mapping[str, Any]) -> str:
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    def embed(value: Any) -> Markup:
        """JSON that cannot end its script element, whatever it holds."""
        text = json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
        for character in "<>&\u2028\u2029":
            text = text.replace(character, f"\\u{ord(character):04x}")
        return Markup(text)

    def policy(text: str) -> str:
        return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii") + "'"

    style = "\n" + _asset("report.css")
    scripts = ["\n" + _asset(name) for name in ("voxels.js", "painting.js", "viewer.js", "charts.js")]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(num=number, pct=percent, embed=embed)
    return environment.from_string(_asset("evaluation.html.j2")).render(
        **content,
        style=Markup(style),
        scripts=[Markup(script) for script in scripts],
        style_policy=policy(style),
        script_policy=" ".join(policy(script) for script in scripts),
    )
