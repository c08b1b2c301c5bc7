"""Runs of the command line, forked from a process that has loaded everything, and what they leave behind.

Used by `benchmarks.crash` (kills, the page) and `benchmarks.crash_disturbed` (full disks and the like).
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from concordct.cli import main as command_line
from concordct.volumes.manifest import PairRow, write_manifest
from concordct.volumes.new_series import SimulatedScan, write_new_series
from concordct.volumes.volume import Volume

SIDE, SLICES = 64, 4
#: A forked run that takes longer hangs; far above what any takes, for machines that are busy otherwise.
LIMIT_SECONDS = 1800

#: Verb and its words; OUT is where it writes, beside the inputs.
VERBS = {
    "calibrate": "calibrate in/a/soft in/a/sharp -o OUT",
    "standardize": "standardize in -m model --any-kernel --mode mean --check off -o OUT",
    "standardize -j 2": "standardize in -m model --any-kernel --mode mean --check off --workers 2 -o OUT",
    "standardize, NIfTI": "standardize in/a/soft -m model --mode mean -o OUT/a.nii.gz",
    "features": "features in/a/soft -p pyradiomics-default --roi rois.nii.gz -o OUT/f.csv",
    "features -j 2": "features --pairs pairs.csv -p pyradiomics-default --workers 2 -o OUT/f.csv",
    "rois": "rois in/a/soft --size 12 -o OUT/rois.nii.gz",
    "agree": "agree soft.csv sharp.csv --repeats 50 -o OUT",
    "evaluate": "evaluate --source in/a/soft --standardized in/a/sharp --target in/a/sharp -o OUT",
    "simulate": "simulate phantom --kernel Br40 --kernel Bl64 --slice-thickness 1 --slices 1 --matrix 32 -o OUT",
    "cohort": "cohort folder in --kernel B30f --kernel B70f -o OUT",
    "train": "train ltdiffpp pairs.csv --recipe small --most-steps 2 -o OUT",
}


def inputs(place: Path) -> None:
    """Two patients with two kernels each, a manifest, ROIs, features and a model."""
    y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    body = np.where(np.hypot(y, x) < 0.4 * SIDE, 40.0, -990.0)
    affine = np.eye(4)[[2, 1, 0, 3]] * (3.0, 0.8, 0.8, 1.0)  # z, y, x to LPS
    rows = []
    for subject in "ab":
        noise = np.random.default_rng(ord(subject)).normal(0, 40, (SLICES, SIDE, SIDE))
        soft = (noise + np.roll(noise, 1, 1) + np.roll(noise, 1, 2)) / 3
        for number, (name, kernel, values) in enumerate((("soft", "B30f", soft), ("sharp", "B70f", noise)), 1):
            hu = np.clip(np.rint(body + values), -1024, 3071).astype(np.float32)
            volume = Volume(hu=hu, affine=affine, slice_thickness_mm=3.0, kernel=kernel)
            scan = SimulatedScan(f"crash-{subject}", f"scan-{subject}", name, number, 120.0, 100.0)
            write_new_series(volume, place / "in" / subject / name, scan)
        source, target = place / "in" / subject / "soft", place / "in" / subject / "sharp"
        rows.append(PairRow(pair=subject, subject=subject, split="train", source=source, target=target))
    write_manifest(place / "pairs.csv", rows)
    for words in (
        "calibrate in/a/soft in/a/sharp -o model",
        "rois in/a/soft --size 12 -o rois.nii.gz",
        "features in/a/soft -p pyradiomics-default --roi rois.nii.gz --name a -o soft.csv",
        "features in/a/sharp -p pyradiomics-default --roi rois.nii.gz --name a -o sharp.csv",
    ):
        code = here(place, words)
        if code:
            sys.exit(f"{words}: expected exit code 0, found {code}")


def here(place: Path, words: str) -> int:
    """The command line in this process."""
    before, arguments = Path.cwd(), sys.argv
    os.chdir(place)
    sys.argv = ["concordct", *words.split()]
    try:
        command_line()
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        os.chdir(before)
        sys.argv = arguments
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
    return 0


def forked(
    place: Path,
    words: str,
    *,
    prepare: Callable[[], None] | None = None,
    finish: Callable[[], None] | None = None,
) -> int:
    """A forked run in a session of its own; its process id. What it says goes to `said` beside the inputs.

    `prepare` and `finish` run in the child, before and after.
    """
    child = os.fork()
    if child:
        return child
    os.setsid()
    said = os.open(place / "said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    code = 70
    try:
        if prepare is not None:
            prepare()
        code = here(place, words)
        if finish is not None:
            finish()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(child: int, seconds: float) -> int | None:
    """Exit code of a run, negative for a signal; None when it still goes on after that time."""
    until = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= until:
            return None
        time.sleep(0.002)


def left_over(session: int) -> bool:
    """Whether a process of that session is there ten seconds later; those found are ended."""
    for _ in range(100):
        alive = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = path.read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(fields[3]) == session and fields[0] not in "ZX":
                alive.append(int(path.parent.name))
        if not alive:
            return False
        time.sleep(0.1)
    for one in alive:
        os.kill(one, signal.SIGKILL)
    return True


def contents(place: Path) -> dict[str, str]:
    """SHA-256 of every file by its path; hidden ones are leftovers."""
    return {
        path.relative_to(place).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(place.rglob("*"))
        if path.is_file()
    }


def visible(found: dict[str, str]) -> dict[str, str]:
    """Without what is hidden, and without the log of a training, whose lines tell seconds."""
    return {
        name: digest
        for name, digest in found.items()
        if not any(part[0] == "." or part in ("metrics.jsonl", "tensorboard") for part in name.split("/"))
    }


def final(path: str) -> bool:
    """Whether a file is a result; records that claim a name for a run change until its end."""
    return path.endswith((".dcm", ".nii.gz", ".csv", ".html", ".safetensors"))
