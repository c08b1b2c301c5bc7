"""The picture of `benchmarks.followup` (CIResDiff's Fig. 3): one test patient by every method, and what each misses."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.followup_models import SPACING_MM, opened, place_of_model
from benchmarks.followup_rows import PLAIN, of_model, rows_of
from benchmarks.followup_subjects import Trend
from concordct.methods.standardizer import Mode
from concordct.pipelines.followup_data import Prepared
from concordct.signal.drawing import new_figure
from concordct.training.bundle import load_bundle
from concordct.volumes.place import atomic_file

#: Windows of the scans and of the differences, HU; methods side by side; voxels around the lungs.
WINDOW_HU, DIFFERENCE_HU = (-1100.0, 100.0), 200.0
ACROSS, MARGIN = 8, 2
REAL = "real follow-up"


def typical(test: Sequence[Prepared], seen: Sequence[bool]) -> Prepared:
    """The progressive patient, of those never looked at where there is one, whose lungs changed the middle amount."""
    some = [one for one in test if one.label == "progressive"]
    fresh = [one for one, looked in zip(test, seen, strict=True) if one.label == "progressive" and not looked]
    return sorted(fresh or some or test, key=_change)[len(fresh or some or test) // 2]


def _change(one: Prepared) -> float:
    lungs = np.asarray(one.data.lungs)
    return float(np.abs(np.asarray(one.data.followup, np.float32) - one.data.initial)[lungs].mean())


def slice_of(one: Prepared) -> int:
    """Where the lungs are widest."""
    return int(np.asarray(one.data.lungs).sum(axis=(1, 2)).argmax())


def made_slices(
    place: Path, models: Sequence[str], train: Sequence[Prepared], one: Prepared
) -> dict[str, NDArray[np.float32]]:
    """One slice of the patient, [y, x] HU, by every model of a fold that stands; kept beside them until they change."""
    at, folder = slice_of(one), place / "picture"
    found = {"first scan": np.asarray(one.data.initial, np.float32)[at], PLAIN[1]: Trend(train).predict(one)[at]}
    for row in (row for model in models for row in rows_of(model) if of_model(row) == model):
        path = place_of_model(place, of_model(row))
        if not path.exists() or ", text of" in row:
            continue
        bundle, kept = load_bundle(path), folder / f"{place_of_model(folder, row).name}.npz"
        said = f"{one.subject} {at} {bundle.sha256}"
        old = np.load(kept, allow_pickle=False) if kept.exists() else None
        if old is None or str(old["said"]) != said:
            mode: Mode = "sample" if row != of_model(row) else "mean"
            hu = opened(of_model(row), bundle, mode)(one, one.data.sentence)[at]
            folder.mkdir(exist_ok=True)
            with atomic_file(kept, overwrite=True) as aside, aside.open("wb") as file:
                np.savez(file, hu=hu, said=said)
            old = np.load(kept, allow_pickle=False)
        found[row] = old["hu"]
    return found


def draw(one: Prepared, made: Mapping[str, NDArray[np.float32]], path: Path) -> None:
    """Each method's slice, and below it what it differs by from the real follow-up in the lungs."""
    at = slice_of(one)
    lungs, truth = np.asarray(one.data.lungs)[at], np.asarray(one.data.followup, np.float32)[at]
    ys, xs = (np.flatnonzero(lungs.any(axis=axis)) for axis in (1, 0))
    box = tuple(slice(max(int(p[0]) - MARGIN, 0), int(p[-1]) + MARGIN + 1) for p in (ys, xs))
    every = {REAL: truth, **made}
    bands = -(-len(every) // ACROSS)
    tall = 1.6 * np.ptp(ys) / np.ptp(xs) + 0.3
    figure = new_figure(figsize=(1.6 * ACROSS, 2 * tall * bands), dpi=100, facecolor="white", layout="constrained")
    axes = figure.subplots(2 * bands, ACROSS, squeeze=False)
    for one_axes in axes.ravel():
        one_axes.set_axis_off()
    for index, (name, hu) in enumerate(every.items()):
        band, column = divmod(index, ACROSS)
        above, below = axes[2 * band, column], axes[2 * band + 1, column]
        above.imshow(hu[box], cmap="gray", vmin=WINDOW_HU[0], vmax=WINDOW_HU[1])
        above.set_title(textwrap.fill(name, 20), fontsize=7)
        difference = np.where(lungs, hu - truth, 0.0)
        below.imshow(difference[box], cmap="coolwarm", vmin=-DIFFERENCE_HU, vmax=DIFFERENCE_HU)
        if name != REAL:
            below.set_title(f"{np.sqrt((difference[lungs] ** 2).mean()):.0f} HU", fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})


def words(one: Prepared, path: Path) -> list[str]:
    """The picture in the page, and what it shows."""
    return [
        f"One test patient by every method (the paper's Fig. 3): {one.weeks:.0f} weeks between the scans, {one.label}, "
        "the one whose lungs changed the middle amount of the progressive ones never looked at; the slice where the "
        f"lungs are widest, {SPACING_MM:g} mm a voxel, window {WINDOW_HU[0]:g} to {WINDOW_HU[1]:g} HU. Below each, the "
        f"difference to the real follow-up inside the lungs, -{DIFFERENCE_HU:g} (blue) to {DIFFERENCE_HU:g} HU (red), "
        "and its root mean square in this slice.",
        f"![one patient by every method](../figures/{path.name})",
    ]
