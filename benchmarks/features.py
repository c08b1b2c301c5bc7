"""Radiomic features: concordct beside PyRadiomics 3.0.1, the values and the time, each in a process of its own.

    python -m benchmarks.features [--pyradiomics PYTHON] [--rois 2] [--json OUT]
    python -m benchmarks.features --rows 2    # the next two rows that are missing: half a minute to three each
    python -m benchmarks.features --anew      # what stands is measured again

Writes its page of docs/results when all rows stand in runs/features. PYTHON is an interpreter that has PyRadiomics: by
default that of `make reference`; without one, concordct's figures are printed and the section stays. PyRadiomics' time
for 100 ROIs is that of `--rois` of them, scaled up. Both run with PyRadiomics' default, which filters the whole image,
and with `preCrop`, which filters the surroundings of each ROI only and gives other values. CPU time is what a busy
machine leaves comparable.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results import ROOT, data_folder, table, write_section

ROIS = 100
PRESETS = ROOT / "src" / "concordct" / "radiomics" / "presets"
KEPT = Path(os.environ.get("CONCORDCT_RUNS", ROOT / "runs")) / "features"
#: Threads of BLAS gain nothing on matrices of grey levels and, on busy cores, wait for each other at full CPU.
ONE_BLAS_THREAD = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
#: What `make reference` installs.
REFERENCE = ROOT / ".venv" / "pyradiomics"

#: Runs in PyRadiomics' interpreter: volume, parameter file, ROIs to measure, preCrop.
RIVAL = """
import json, logging, resource, sys, time, warnings
import numpy as np, SimpleITK as sitk
warnings.filterwarnings("ignore")
import radiomics
from radiomics import featureextractor
radiomics.logger.setLevel(logging.ERROR)
found = np.load(sys.argv[1])
image, mask = sitk.GetImageFromArray(found["hu"]), sitk.GetImageFromArray(found["labels"])
image.SetSpacing([float(mm) for mm in found["spacing"][::-1]])
mask.CopyInformation(image)
extractor = featureextractor.RadiomicsFeatureExtractor(sys.argv[2], preCrop=sys.argv[4] == "1")
extractor.addProvenance(False)
start, cpu = time.perf_counter(), time.process_time()
for label in json.loads(sys.argv[3]):
    count = len(extractor.execute(image, mask, label=label))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
print(json.dumps({"seconds": seconds, "cpu_seconds": cpu, "features": count, "peak_gb": peak}))
"""


def ours(path: Path, preset_name: str, labels: list[int], *, crop: bool) -> dict[str, float]:
    """Measure some ROIs with concordct, in this process, after a warm-up that compiles."""
    import resource

    from concordct.radiomics.extract import extract
    from concordct.radiomics.presets import preset
    from concordct.volumes.volume import Volume

    settings = dataclasses.replace(preset(preset_name), pre_crop=crop)
    found = np.load(path)
    volume = Volume(found["hu"].astype(np.float32), np.diag([*found["spacing"], 1.0]))
    every = found["labels"].astype(np.int32)
    small = Volume(volume.hu[:12, :12, :12].copy(), volume.affine)
    block = np.zeros(small.shape, np.int32)
    block[2:10, 2:10, 2:10] = 1
    extract(small, block, settings)
    wanted = np.where(np.isin(every, labels), every, 0) if len(labels) < every.max() else every
    start, cpu = time.perf_counter(), time.process_time()
    table = extract(volume, wanted, settings)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return {"seconds": seconds, "cpu_seconds": cpu, "features": len(table.names), "peak_gb": peak}


def smooth_noise(shape: tuple[int, int, int], *, mean: float, seed: int) -> np.ndarray:
    """Whole HU with a texture of about two voxels, slice by slice."""
    from scipy import ndimage

    generator = np.random.default_rng(seed)
    out = np.empty(shape, np.int16)
    for z in range(shape[0]):
        out[z] = np.round(ndimage.gaussian_filter(generator.normal(0, 250, shape[1:]), 1) + mean)
    return out


def balls() -> dict[str, np.ndarray]:
    """512 x 512 x 60 voxels with 100 balls of 30 mm."""
    spacing = np.array([1.25, 0.7, 0.7])
    labels = np.zeros((60, 512, 512), np.uint8)
    z, y, x = np.ogrid[-12:13, -22:23, -22:23]
    ball = (z * spacing[0]) ** 2 + (y * spacing[1]) ** 2 + (x * spacing[2]) ** 2 <= 15**2
    places = [(cz, cy, cx) for cz in (15, 42) for cy in range(30, 490, 50) for cx in range(30, 490, 60)][:ROIS]
    for label, (cz, cy, cx) in enumerate(places, start=1):
        labels[cz - 12 : cz + 13, cy - 22 : cy + 23, cx - 22 : cx + 23][ball] = label
    return {"hu": smooth_noise(labels.shape, mean=-100, seed=0), "labels": labels, "spacing": spacing}


def lungs() -> dict[str, np.ndarray]:
    """Two ellipsoids of together five million voxels."""
    shape = (120, 512, 512)
    z, y, x = np.ogrid[: shape[0], : shape[1], : shape[2]]
    labels = np.zeros(shape, np.uint8)
    for centre in (150, 362):
        labels[((z - 60) / 58) ** 2 + ((y - 256) / 130) ** 2 + ((x - centre) / 82) ** 2 < 1] = 1
    return {"hu": smooth_noise(shape, mean=-800, seed=1), "labels": labels, "spacing": np.array([2.5, 0.7, 0.7])}


def run(command: list[str]) -> dict[str, float]:
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=ONE_BLAS_THREAD)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:2])} failed: {done.stderr.strip().splitlines()[-1]}")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def compare(
    given: argparse.Namespace, path: Path, preset_name: str, labels: list[int], crop: str, title: str
) -> dict[str, Any]:
    """One task: concordct, and PyRadiomics where there is one."""
    here = run([sys.executable, "-m", "benchmarks.features", "--one", str(path), preset_name, json.dumps(labels), crop])
    print(
        f"{title}, {here['features']} features\n    concordct: {here['seconds']:.1f} s "
        f"({here['cpu_seconds']:.1f} s of CPU), {here['peak_gb']:.2f} GB",
        flush=True,
    )
    if not given.pyradiomics:
        return {"concordct": here}
    some = labels[:: max(1, len(labels) // given.rois)][: given.rois]
    arguments = [str(path), str(PRESETS / f"{preset_name}.yaml"), json.dumps(some), crop]
    rival = run([given.pyradiomics, "-c", RIVAL, *arguments])
    for clock in ("seconds", "cpu_seconds"):
        rival[clock] *= len(labels) / len(some)
    times, cpu_times = (rival[clock] / here[clock] for clock in ("seconds", "cpu_seconds"))
    print(
        f"    PyRadiomics 3.0.1: {rival['seconds']:.1f} s ({rival['cpu_seconds']:.1f} s of CPU), "
        f"{rival['peak_gb']:.2f} GB, {len(some)} of {len(labels)} ROIs measured: "
        f"{times:.1f} times the time, {cpu_times:.1f} times the CPU time",
        flush=True,
    )
    return {"concordct": here, "PyRadiomics 3.0.1": rival, "ROIs measured by PyRadiomics": len(some)}


def parity_of(number: int, data: Path, python: Path) -> list[str]:
    """Values of both on real ROIs, a row of the table; the cases are the tests'."""
    sys.path.insert(0, str(ROOT / "tests"))
    from parity_pyradiomics import compare, digital_phantom, random_chest, tumour

    cases = (digital_phantom, lambda data: tumour(data, "pat_2"), lambda data: tumour(data, "pat_3"), random_chest)
    case = cases[number](data)
    with tempfile.TemporaryDirectory() as folder:
        found = compare(case, Path(folder), python=python)
    same = "yes" if found.names == found.reference_names else "no"
    rois, columns = found.reference.shape
    return [case.title, f"{rois}", f"{columns:,}", same, f"{len(found.far)}", f"{found.largest:.0e}"]


def parity_table(rows: list[list[str]]) -> str:
    """One line for each case."""
    sys.path.insert(0, str(ROOT / "tests"))
    from parity_pyradiomics import CLOSE

    header = ["what", "ROIs", "columns each", "same order", f"values beyond {CLOSE:.0e}", "largest relative difference"]
    return table(header, rows)


#: Title -> who makes the volume, preset, ROIs, preCrop.
TASKS: dict[str, tuple[Callable[[], dict[str, np.ndarray]], str, list[int], str]] = {
    "100 ROIs of 30 mm": (balls, "pyradiomics-1401", list(range(1, ROIS + 1)), "0"),
    "100 ROIs of 30 mm, `preCrop`": (balls, "pyradiomics-1401", list(range(1, ROIS + 1)), "1"),
    "1 ROI of 30 mm": (balls, "pyradiomics-1401", [50], "0"),
    "1 ROI of 30 mm, `preCrop`": (balls, "pyradiomics-1401", [50], "1"),
    "a pair of lungs": (lungs, "pyradiomics-default", [1], "0"),
}
NO_DATA = "Not measured: real CT data not found."
#: Cases of `parity_of`.
CASES = 4


def speed_of(given: argparse.Namespace, title: str) -> dict[str, Any]:
    """Time and memory of one task."""
    make, preset_name, labels, crop = TASKS[title]
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "volume.npz"
        np.savez(path, **make())
        return {**compare(given, path, preset_name, labels, crop, title), "load": load}


def kept_rows(given: argparse.Namespace) -> dict[str, Any]:
    """What stands, and of what is missing as much as is asked for."""
    place, data = KEPT / "rows.json", data_folder()
    rows: dict[str, Any] = {} if given.anew or not place.exists() else json.loads(place.read_text())
    work: dict[str, Callable[[], Any]] = {title: partial(speed_of, given, title) for title in TASKS}
    if data is not None and given.pyradiomics:
        python = Path(given.pyradiomics)
        work |= {f"values {number}": partial(parity_of, number, data, python) for number in range(CASES)}
    left = given.rows
    for name, measure in work.items():
        if name in rows or left == 0:
            continue
        rows[name] = measure()
        left = None if left is None else left - 1
        if given.pyradiomics:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(json.dumps(rows))
    return rows if rows.keys() >= work.keys() else {}


def speed_table(figures: dict[str, dict[str, Any]]) -> str:
    """One line for each task."""

    def shown(found: dict[str, float]) -> str:
        clocks = (f"{s:,.0f} s" if s >= 100 else f"{s:.3g} s" for s in (found["seconds"], found["cpu_seconds"]))
        return f"{', '.join(clocks)}, {found['peak_gb']:.2f} GB"

    rows = []
    for title, found in figures.items():
        here, rival = found["concordct"], found["PyRadiomics 3.0.1"]
        times = [f"{rival[clock] / here[clock]:.2g} times" for clock in ("seconds", "cpu_seconds")]
        rows.append([title, f"{here['features']:,}", shown(here), shown(rival), *times])
    header = ["what", "columns", "concordct: clock, CPU, peak", "PyRadiomics: clock, CPU, peak", "clock", "CPU"]
    return table(header, rows)


def main() -> None:
    """Measure and write the section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found = str(REFERENCE / "bin" / "python") if (REFERENCE / "installed").exists() else None
    parser.add_argument("--pyradiomics", default=found, help="an interpreter that has PyRadiomics")
    parser.add_argument("--rois", type=int, default=2, help="ROIs that PyRadiomics measures before scaling to 100")
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--rows", type=int, help="so many rows that are missing; all without")
    parser.add_argument("--anew", action="store_true", help="measure again what stands")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(ours(Path(given.one[0]), given.one[1], json.loads(given.one[2]), crop=given.one[3] == "1")))
        return
    rows = kept_rows(given)
    if not rows:
        print("rows are missing yet: docs/results is left as it is")
        return
    figures = {title: rows[title] for title in TASKS}
    load = max(one["load"] for one in figures.values())
    if given.json:
        machine = platform.processor() or platform.machine()
        whole = {"machine": machine, "cores": os.cpu_count(), "load": load, **figures}
        given.json.write_text(json.dumps(whole, indent=1) + "\n")
    if not given.pyradiomics:
        print("no PyRadiomics 3.0.1 (see `make reference`): docs/results is left as it is")
        return
    values = parity_table([rows[f"values {number}"] for number in range(CASES)]) if "values 0" in rows else NO_DATA
    beside = (
        f"Other work ran on the same cores (load average {load:.1f} before it began), so that\n"
        "CPU time is what can be compared."
        if load > 0.5
        else ""
    )
    write_section(
        "features",
        "make bench-features",
        "## Radiomic features beside PyRadiomics 3.0.1\n\n"
        "Values: every class and feature of the image types of `pyradiomics-1401` and of LBP in 2D. The tumours are\n"
        "filtered as whole images, the random ROIs (the papers' HU ranges; squares of 24 pixels, balls of 20 mm) with\n"
        "`preCrop`. Below 1e-9 in both, a value is zero.\n\n"
        f"{values}\n\n"
        "Time: volume of 512 x 512 x 60 at 0.7 x 0.7 x 1.25 mm with balls of 30 mm under `pyradiomics-1401`; lungs of\n"
        "5.2 million voxels in 512 x 512 x 120 under `pyradiomics-default`. Compiled code was in numba's\n"
        "cache, both ran with one BLAS thread. "
        f"PyRadiomics measured {given.rois} of the 100 ROIs, scaled up. nyxus is absent: it has no\n"
        f"LoG or wavelet images, so it cannot measure these columns.\n{beside}\n\n"
        f"{speed_table(figures)}",
        seed="0, 1",
    )


if __name__ == "__main__":
    main()
