"""`predict-followup` on a chest of 300 x 300 x 300 voxels at 1 mm: time by stage and peak memory, DICOM to DICOM.

python -m benchmarks.followup_speed     # about five minutes; writes docs/results

The network is recipe `gpu`'s (1 mm, patches of 96) after two steps of training: what it learned changes no time. The
command runs as a user would run it, on two threads; CPU seconds stand beside the clock because other work may share
the machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.child import measured as measured_child
from benchmarks.results import ROOT, table, write_section
from concordct.progression import ciresdiff, ciresdiff_recipes
from concordct.progression.ciresdiff import CohortData
from concordct.progression.lung_function import sentence, write_table
from concordct.progression.patches3d import Followup
from concordct.progression.simulated import visits_of
from concordct.scanner.ipf import ipf_subject
from concordct.training.bundle import save_bundle
from concordct.training.engine import Phase, Run
from concordct.volumes.new_series import SimulatedScan, write_new_series

SEED, NUMBER = 1, 6
SHAPE = (300, 300, 300)
THREADS = 2
#: What the issue asks of it: seconds of the clock, MiB.
MOST_SECONDS, MOST_MIB = 300, 6144
#: Runs the command as it is, but writes down when each stage of its progress bar begins, and what it used.
SCRIPT = """
import contextlib, json, resource, sys, time
import concordct.cli.followup as verb

stages = []

def used():
    found = resource.getrusage(resource.RUSAGE_SELF)
    return found.ru_utime + found.ru_stime

def mark(what, *_):
    if not stages or stages[-1][0] != what:
        stages.append((what, time.time(), used()))

@contextlib.contextmanager
def bar(*, quiet):
    yield mark

verb.bar = bar
from concordct.cli import main
try:
    main()
finally:
    mark("end")
    print("MEASURED", json.dumps(stages), file=sys.stderr)
"""


def scan_of(work: Path) -> Path:
    """The chest as a DICOM series, and the table of its tests beside it."""
    place, subject = work / "scan", ipf_subject(NUMBER, seed=SEED)
    if not place.exists():
        volume = subject.draw_volume("initial", (1.0, 1.0, 1.0), SHAPE)
        identity = SimulatedScan(subject.name, "speed", "Chest 1 mm", 1, 120.0, 90.0)
        volume = dataclasses.replace(volume, hu=np.clip(volume.hu, -1024, 3071))
        write_table(work / "tests.csv", {subject.name: visits_of(subject)}, overwrite=True)
        write_new_series(volume, place, identity)
    return place


def model_of(work: Path) -> Path:
    """The network of recipe `gpu` after two steps on noise."""
    place = work / "model"
    subject = ipf_subject(NUMBER, seed=SEED)
    recipe = ciresdiff_recipes.RECIPES["gpu"]
    noise = np.random.default_rng(SEED).normal(-850.0, 60.0, (2, 32, 32, 32)).astype(np.int16)
    region = np.ones(noise.shape[1:], bool)
    said = sentence(visits_of(subject)[0].values, weeks=subject.weeks)
    data = CohortData(
        [Followup(subject.name, noise[0], noise[1], region, region, said)],
        {"row": "DM-R-CIP", "recipe": "gpu", "weeks": [40.0, 60.0]},
    )
    quick = Phase(steps=2, batch=2, learning_rate=1e-3)
    short = dataclasses.replace(recipe, patch=16, overlap=8, contrast=quick, diffusion=quick)
    with tempfile.TemporaryDirectory(dir=work) as run:
        bundle = ciresdiff.fit(data, short, Run(Path(run)))
    for name in ("patch", "overlap"):
        bundle.metadata["recipe"][name] = getattr(recipe, name)
    save_bundle(bundle, place, card="for its time only", overwrite=True)
    return place


def measured(work: Path) -> dict[str, Any]:
    """One run of the command: seconds of the clock and of CPU by stage, and the peak."""
    subject = ipf_subject(NUMBER, seed=SEED)
    words = [
        "predict-followup", scan_of(work), "--lung-function", work / "tests.csv", "--subject", subject.name,
        "--weeks", "52", "-m", model_of(work), "-o", work / "out", "--overwrite",
    ]  # fmt: skip
    began = time.time()
    done = measured_child([sys.executable, "-c", SCRIPT, *words], threads=THREADS)
    lines = [line for line in done.said.splitlines() if line.startswith("MEASURED ")]
    if done.code or not lines:
        raise SystemExit(f"predict-followup ended with {done.code}: {done.said[-800:]}")
    stages = [["starting", began, 0.0], *json.loads(lines[-1].removeprefix("MEASURED "))]
    rows = [
        {"stage": name, "clock": after[1] - clock, "cpu": after[2] - cpu}
        for (name, clock, cpu), after in pairwise(stages)
    ]
    return {"rows": rows, "peak_mib": done.peak_mib, "load": os.getloadavg()[0], "nice": os.nice(0)}


def text(found: dict[str, Any]) -> str:
    """The section."""
    rows = [[row["stage"], f"{row['clock']:.0f}", f"{row['cpu']:.0f}"] for row in found["rows"]]
    clock, cpu = (sum(row[key] for row in found["rows"]) for key in ("clock", "cpu"))
    rows.append(["**all**", f"**{clock:.0f}**", f"**{cpu:.0f}**"])
    steps = ciresdiff_recipes.RECIPES["gpu"].sampling_steps
    return "\n\n".join(
        [
            "## Speed of `predict-followup`",
            f"A simulated chest of {' x '.join(map(str, SHAPE))} voxels at 1 mm, DICOM to DICOM with change map,\n"
            f"summary and report; recipe `gpu`, {steps} sampling steps, {THREADS} threads. Bar: {MOST_SECONDS} s and\n"
            f"{MOST_MIB} MiB. "
            f"Peak memory: {found['peak_mib']:.0f} MiB. Load average at the end: {found['load']:.1f}, of which\n"
            f"{THREADS} are this command's own, at niceness {found['nice']}; what is above shares its cores.",
            table(["stage", "clock, s", "CPU, s"], rows),
        ]
    )


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "followup-speed")
    parser.add_argument("--look", action="store_true", help="print, write nothing to docs")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    body = text(measured(given.work))
    print(body)
    if not given.look:
        write_section("followup-speed", "python -m benchmarks.followup_speed", body, seed=str(SEED))


if __name__ == "__main__":
    main()
