"""Fingerprints of a fixed set of outputs, through the command line alone: did a change of the house change a number?

    python tests/fingerprints.py              # prints them as JSON; a minute or two
    python tests/fingerprints.py --write      # and keeps them in tests/data/fingerprints.json

Each has the digest of all values, which holds on one processor, and a few numbers, which hold on any.
"""

from __future__ import annotations

import csv
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import dcmread

KEPT = Path(__file__).parent / "data" / "fingerprints.json"
#: Numbers that a fingerprint keeps beside its digest.
NUMBERS = 16
#: Of results, what follows from the clock, the machine or the version.
LEFT_OUT = {
    "provenance",
    "cost",
    "software",
    "sha256",
    "seconds",
    "commit",
    "machine",
    "path",
    "report",
    "model",
    "models",
}


def run(*arguments: object) -> str:
    """One call of the command line; its standard output."""
    command = [sys.executable, "-m", "concordct.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout


def of_numbers(values: Any) -> dict[str, Any]:
    """Of an array: digest at six significant digits, mean and spread, and means of blocks."""
    flat = np.asarray(values, dtype=np.float64).ravel()
    text = ",".join(f"{value:.6g}" for value in flat)
    known = flat[np.isfinite(flat)]
    blocks = [float(f"{block.mean():.8g}") for block in np.array_split(known, NUMBERS) if block.size]
    return {"digest": hashlib.sha256(text.encode()).hexdigest()[:16], "count": int(flat.size), "blocks": blocks}


def of_series(folder: Path) -> dict[str, Any]:
    """Of stored pixels, slice by slice."""
    files = [dcmread(path) for path in sorted(folder.rglob("*.dcm"))]
    return of_numbers(np.stack([f.pixel_array for f in sorted(files, key=lambda f: float(f.ImagePositionPatient[2]))]))


def of_json(value: Any) -> dict[str, Any]:
    """Of every number in results, in order of the keys."""
    found: list[float] = []

    def walk(part: Any) -> None:
        if isinstance(part, dict):
            for key in sorted(part):
                if key not in LEFT_OUT:
                    walk(part[key])
        elif isinstance(part, list):
            for item in part:
                walk(item)
        elif isinstance(part, (int, float)):
            found.append(float(part))

    walk(value)
    return of_numbers(found)


def of_csv(path: Path) -> dict[str, Any]:
    """Of every number of a features file."""
    with path.open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    found = []
    for row in rows:
        for cell in row:
            try:
                found.append(float(cell))
            except ValueError:
                continue
    return of_numbers(found)


def fingerprints(place: Path) -> dict[str, dict[str, Any]]:
    """Simulate, calibrate, standardize, measure, judge, train and compare in a folder."""
    found: dict[str, dict[str, Any]] = {}
    common = ("--kernel", "Br40", "--kernel", "Bl64", "--slice-thickness", 3, "--slices", 2, "--matrix", 256)
    fixed = ("--pixel-mm", 1.2, "--mas", 100, "--kvp", 120, "--geometry", "parallel", "--seed", 3)
    run("simulate", "patients", "-n", 2, *common, *fixed, "-o", place / "cohort")
    folders = sorted(path.parent for path in (place / "cohort").rglob("Br40"))
    first, second = folders[0], folders[1]
    for kernel in ("Br40", "Bl64"):
        found[f"simulate {kernel}"] = of_series(second / kernel)
    for method in ("concord", "spectral"):
        model = place / method
        summary = run("calibrate", first / "Br40", first / "Bl64", "-o", model, "--method", method, "--json")
        found[f"calibrate {method}"] = of_json(json.loads(summary))
        for mode in ("sample", "mean"):
            out = place / f"{method}-{mode}"
            run("standardize", second / "Br40", "-m", model, "-o", out, "--mode", mode, "--json")
            found[f"standardize {method} {mode}"] = of_series(out)
    rois = place / "rois.nii.gz"
    run("rois", second / "Br40", "-o", rois, "--size", 24)
    for preset in ("ibex-1401", "pyradiomics-default"):
        for name, scan in (("source", second / "Br40"), ("target", second / "Bl64")):
            table = place / f"{preset}-{name}.csv"
            run("features", scan, "--roi", rois, "--preset", preset, "--name", "one", "-o", table)
        found[f"features {preset}"] = of_csv(table)
        run("agree", place / f"{preset}-source.csv", table, "-o", place / f"agree-{preset}")
        found[f"agree {preset}"] = of_json(json.loads((place / f"agree-{preset}" / "results.json").read_text()))
    run(
        *("evaluate", "--source", second / "Br40", "--standardized", place / "concord-sample"),
        *("--target", second / "Bl64", "-m", place / "concord", "-o", place / "report"),
    )
    found["evaluate"] = of_json(json.loads((place / "report" / "results.json").read_text()))
    pairs = place / "cohort" / "pairs.csv"
    for method in ("histogram", "unetpp"):
        steps = () if method == "histogram" else ("--most-steps", 3)
        run("train", method, pairs, "-o", place / method, *steps)
        run("standardize", second / "Br40", "-m", place / method, "-o", place / f"{method}-out", "--json")
        found[f"train {method}"] = of_series(place / f"{method}-out")
    models = [f"{name}={place / name}" for name in ("concord", "histogram")]
    run("compare", pairs, "-m", models[0], "-m", models[1], "--split", "all", "-o", place / "compared")
    found["compare"] = of_json(json.loads((place / "compared" / "results.json").read_text()))
    return found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        everything = fingerprints(Path(scratch))
    text = json.dumps(everything, indent=1) + "\n"
    if "--write" in sys.argv:
        KEPT.write_text(text)
    print(text, end="")
