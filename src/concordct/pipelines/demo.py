"""The main job from nothing: simulate a pair, calibrate, standardize another patient, judge; real scans where they are.

Two simulated patients are scanned once each and reconstructed with Br40 and Bl64. The first calibrates, the second is
standardized and judged. Where real CT is at hand, a head phantom is calibrated on six slices and judged on the other
six, and a chest series is standardized into a derived DICOM series.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from concordct.judging.case import one_case
from concordct.methods.models import load_model
from concordct.pipelines.calibrate import calibrate_pairs, pairs_of_paths
from concordct.pipelines.evaluate import evaluate
from concordct.pipelines.simulate import plan_simulation, simulate
from concordct.pipelines.standardize import Settings, plan, run
from concordct.report.evaluation import ShownStack
from concordct.report.picture import write_picture
from concordct.signal.drawing import ready_to_draw
from concordct.volumes.find import find_series
from concordct.volumes.scans import one_scan

SEED = 1
SOURCE, TARGET = "Br40", "Bl64"
#: Four slices of 3 mm around a nodule: enough to calibrate from, drawn in seconds.
SLICES, THICKNESS_MM = 4, 3.0
#: Lung window, centre and width.
WINDOW_HU = (-600.0, 1500.0)

#: Magnified squares: around the nodule, and in the right lung of the real chest (row, column, size).
ZOOM_PIXELS = 90
CHEST_ZOOM = (150, 120, 90)

Say = Callable[[str], None]


@dataclass(frozen=True)
class Shown:
    """One example: its title, what `evaluate` found (None without a target), and what to look at."""

    title: str
    results: dict[str, Any] | None
    look_at: Path


def demonstrate(output: Path, *, real_data: Path | None, say: Say) -> tuple[Shown, ...]:
    """Run the demonstration.

    Parameters
    ----------
    output : folder; models, series and reports of an earlier run are replaced, the simulated scans are kept.
    real_data : folder of real CT, or None.
    say : called with each step in words.

    Raises
    ------
    ConcordctError : whatever the steps refuse.
    """
    ready_to_draw()
    output.mkdir(parents=True, exist_ok=True)
    shown = [_simulated(output, say)]
    if real_data is not None:
        shown.append(_head_phantom(output, real_data, say))
        shown.append(_chest(output, real_data, say))
    return tuple(shown)


def _simulated(output: Path, say: Say) -> Shown:
    say(f"scanning two simulated patients, {SLICES} slices each, with {SOURCE} and {TARGET}")
    jobs = plan_simulation(
        "patients", kernels=(SOURCE, TARGET), slice_thickness_mm=(THICKNESS_MM,), seed=SEED, count=2, slices=SLICES
    )
    simulate(jobs, output / "simulated")
    calibration, judged = (output / "simulated" / job.folder / f"{THICKNESS_MM:g}mm" for job in jobs)
    results = _calibrate_and_judge(
        output / f"{SOURCE}-to-{TARGET}", calibration, judged, SOURCE, TARGET, "simulated patients", say
    )
    standardized = output / f"{SOURCE}-to-{TARGET}" / "standardized"
    places = {"source": judged / SOURCE, "standardized": standardized, "target": judged / TARGET}
    nodules = one_scan(judged / "nodules.nii.gz").read().hu > 0
    index = int(nodules.sum(axis=(1, 2)).argmax())
    row, column = (int(centre) - ZOOM_PIXELS // 2 for centre in np.argwhere(nodules[index]).mean(axis=0))
    write_picture(
        output / "picture.png",
        [ShownStack(name, one_scan(place).read().hu) for name, place in places.items()],
        spacing_mm=one_scan(judged / SOURCE).spacing_mm,
        slice_index=index,
        window=WINDOW_HU,
        difference_hu=300.0,
        region=(row, column, ZOOM_PIXELS),
    )
    return results


def _calibrate_and_judge(
    place: Path, calibration: Path, judged: Path, source: str, target: str, origin: str, say: Say
) -> Shown:
    """Calibrate from one folder of two kernels, standardize and judge another; everything lies under `place`."""
    say(f"calibrating {source} to {target} from one paired scan")
    pairs = pairs_of_paths(calibration / source, calibration / target)
    calibrate_pairs(pairs, place / "model", overwrite=True)
    say(f"standardizing {source} to {target} and judging it")
    settings = Settings(seed=SEED, overwrite=True)
    model = load_model(place / "model")
    run(
        plan(judged / source, place / "standardized", model, settings),
        model,
        place / "standardized",
        settings,
    )
    results = evaluate(
        one_case(judged / source, place / "standardized", judged / target, None),
        place / "report",
        model=model,
        seed=SEED,
        origin=origin,
        overwrite=True,
    )
    assert results is not None
    return Shown(f"{source} to {target}, {origin}", results, place / "report" / "report.html")


def _head_phantom(output: Path, real_data: Path, say: Say) -> Shown:
    place = output / "YA-to-UB"
    for name, part in (("calibration", slice(0, 6)), ("judged", slice(6, 12))):
        for kernel in ("YA", "UB"):
            folder = place / name / kernel
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            for ref in find_series(real_data / "philips_head_phantom" / f"{kernel}_1mm").series[0].slices[part]:
                shutil.copyfile(ref.path, folder / ref.path.name)
    origin = "real head phantom, calibrated on six slices, judged on six others"
    return _calibrate_and_judge(place, place / "calibration", place / "judged", "YA", "UB", origin, say)


def _chest(output: Path, real_data: Path, say: Say) -> Shown:
    say("standardizing a real chest series, B40f, with the simulated patients' model")
    place = output / "chest"
    model = load_model(output / f"{SOURCE}-to-{TARGET}" / "model")
    settings = Settings(seed=SEED, any_kernel=True, overwrite=True)
    source = real_data / "chest_B40f"
    run(plan(source, place / "standardized", model, settings), model, place, settings)
    before, after = (one_scan(path).read() for path in (source, place / "standardized"))
    middle = before.shape[0] // 2
    stacks = [
        ShownStack(name, np.asarray(volume.hu[middle : middle + 1]))
        for name, volume in (("source", before), ("standardized", after))
    ]
    write_picture(
        place / "picture.png",
        stacks,
        spacing_mm=before.spacing_mm,
        slice_index=0,
        window=WINDOW_HU,
        difference_hu=300.0,
        region=CHEST_ZOOM,
    )
    return Shown("B40f sharpened, real chest, no target", None, place / "picture.png")
