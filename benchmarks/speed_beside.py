"""What people wait for beside what they would use instead, in one run; and where the time of 300 slices goes.

python -m benchmarks.speed_beside     # writes docs/results/speed-beside.md; dcm2niix is found on PATH or by $DCM2NIIX

Every reader has a process of its own and ends with HU in memory, dcm2niix with a NIfTI file. The series is a real one
of 28 slices, repeated along z; so only time and memory are measured on it. py-spy samples the processor's stack a
hundred times a second.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from pydicom.uid import JPEGLSLossless

from benchmarks.child import PROGRAM, Measured, measured, succeeded
from benchmarks.long_series import FILTER, SERIES, long_series
from benchmarks.results import data_folder, table, write_section
from benchmarks.scale import PLACE
from benchmarks.scale import tree as scale_tree
from concordct.volumes.files import open_volume_file, write_volume_file

REPEATS = 2
OURS = "concordct"
#: Programs that read the series in the folder named last.
READERS = {
    OURS: """
import sys; from pathlib import Path
from concordct.volumes.scans import one_scan
print(one_scan(Path(sys.argv[1])).read().hu.mean())
""",
    "pydicom, a loop over the files": """
import sys; from pathlib import Path
import numpy as np, pydicom
read = [pydicom.dcmread(path) for path in Path(sys.argv[1]).iterdir()]
read.sort(key=lambda one: float(one.ImagePositionPatient[2]))
slices = [one.pixel_array * np.float32(one.RescaleSlope) + np.float32(one.RescaleIntercept) for one in read]
print(np.stack(slices).mean())
""",
    "SimpleITK, ImageSeriesReader": """
import sys
import SimpleITK as sitk
reader = sitk.ImageSeriesReader()
reader.SetFileNames(reader.GetGDCMSeriesFileNames(sys.argv[1]))
print(sitk.GetArrayFromImage(reader.Execute()).mean())
""",
}
#: Lungs found on one core, for the time a slice.
LUNGS = """
import sys, time; from pathlib import Path
from concordct.radiomics.regions.lungs import lung_masks
from concordct.volumes.scans import one_scan
volume = one_scan(Path(sys.argv[1])).read()
begun = time.process_time()
lung_masks(volume)
print("LUNGS", time.process_time() - begun)
"""
#: Rooms and files of a stack's innermost frame of ours -> what it does.
KINDS = (
    ("physics", r"concordct/(methods|signal)/"),
    ("writing", r"concordct/volumes/(derived|rewriting|place|uids|classic)"),
    ("headers", r"concordct/volumes/(headers|find|stacks|geometry|energies|scans)"),
    ("reading and checking", r"concordct/volumes/"),
    ("command line and records", r"concordct/"),
)


def best(line: list[str | Path]) -> Measured:
    """The run that took least processor time."""
    runs = [measured(line) for _ in range(REPEATS)]
    if any(run.code for run in runs):
        raise SystemExit(f"{line[:3]} ended with {runs[0].code}: {runs[0].said[-500:]}")
    return min(runs, key=lambda run: run.cpu_s)


def reading(series: Path, place: Path) -> str:
    """Rows of those who read the series."""
    found = {name: best([sys.executable, "-c", program, series]) for name, program in READERS.items()}
    converter = os.environ.get("DCM2NIIX") or shutil.which("dcm2niix")
    if converter is not None:
        (place / "nifti").mkdir()
        found["dcm2niix, to a file"] = best([converter, "-z", "n", "-b", "n", "-w", "1", "-o", place / "nifti", series])
    rows = [
        [name, f"{run.wall_s:.1f}", f"{run.cpu_s:.1f}", f"{found[OURS].cpu_s / run.cpu_s:.2f}", f"{run.peak_mib:.0f}"]
        for name, run in found.items()
    ]
    return table(["reader", "clock, s", "CPU, s", "CPU of concordct to it", "peak, MiB"], rows)


def kind_of(stack: str) -> str:
    """What a stack of py-spy's, its frames parted by semicolons, is busy with."""
    frames = stack.split(";")
    if any("_find_and_load" in frame for frame in frames):
        return "start: imports"
    for frame in reversed(frames):
        for kind, pattern in KINDS:
            if re.search(pattern, frame):
                return kind
    return "start: the interpreter"


def profile(line: list[str | Path], place: Path) -> str:
    """Where the samples of a command fall."""
    raw = place / "profile.txt"
    recorder = [str(Path(sys.executable).with_name("py-spy")), "record"]
    options = ["--format", "raw", "--rate", "100", "--full-filenames", "--output", str(raw)]
    done = subprocess.run([*recorder, *options, "--", *map(str, line)], capture_output=True, text=True)
    if done.returncode or not raw.exists():
        return f"py-spy could not run here ({done.stderr.strip().splitlines()[-1:]})."
    counts: Counter[str] = Counter()
    for row in raw.read_text().splitlines():
        stack, _, count = row.rpartition(" ")
        counts[kind_of(stack)] += int(count)
    total = sum(counts.values())
    return table(["what", "share of samples"], [[kind, f"{n / total:.0%}"] for kind, n in counts.most_common()])


def read_by_all(place: Path, chest: Path) -> str:
    """Who reads a compressed series how fast."""
    said = f"The least CPU of {REPEATS} runs each.\n\n"
    return f"## Reading {SERIES} slices of 512 x 512, JPEG-LS\n\n{said}" + reading(
        long_series(chest, place / "jpeg-ls", syntax=JPEGLSLossless), place
    )


def standardized(place: Path, chest: Path) -> str:
    """The whole command, and where its time goes."""
    native = long_series(chest, place / "series")
    pair = []
    for kernel in ("smooth", "sharp"):
        slice_ = open_volume_file(chest.parent / f"mayo_L067_kernel_pairs/{kernel}_000039.mha").read()
        pair.append(write_volume_file(place / f"{kernel}.nii", slice_))
    succeeded("calibrate", *pair, "-o", place / "filter", "--method", "spectral")
    PLACE.mkdir(parents=True, exist_ok=True)
    scale_tree("one-512", 1, 1, 512)
    flagship = ("-m", PLACE / "model", "--any-kernel", "--check", "off", "--overwrite")
    rows = []
    for name, words in (("filter, `mean`", ("-m", place / "filter", *FILTER)), ("concord, `sample`", flagship)):
        took = succeeded("standardize", native, *words, "-o", place / "out")
        rows.append([name, f"{took.wall_s:.1f}", f"{took.cpu_s:.1f}", f"{took.cpu_s / SERIES:.3f}",
                     f"{took.peak_mib:.0f}"])  # fmt: skip
    line = [sys.executable, "-c", PROGRAM, "standardize", native, *flagship, "-o", place / "out"]
    return (
        f"## The whole `standardize` of {SERIES} slices, DICOM to DICOM\n\n"
        + table(["method", "clock, s", "CPU, s", "CPU a slice, s", "peak, MiB"], rows)
        + f"\n\nWhere the time of {rows[-1][0]} goes, by py-spy:\n\n"
        + profile(line, place)
    )


def lungs(place: Path, chest: Path) -> str:
    """Time of a lung mask."""
    found = measured([sys.executable, "-c", LUNGS, long_series(chest, place / "lungs")])
    said = re.search(r"LUNGS ([\d.]+)", found.said)
    if said is None:
        raise SystemExit(found.said[-500:])
    return (
        f"## Lung mask\n\n{float(said[1]):.1f} CPU s for {SERIES} slices, {found.peak_mib:.0f} MiB with the voxels; "
        "lungmask is not installed with concordct and was not run."
    )


PARTS: dict[str, Callable[[Path, Path], str]] = {"reading": read_by_all, "standardize": standardized, "lungs": lungs}


def main() -> None:
    """Measure the parts that do not stand, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--anew", action="store_true", help="measure again what stands")
    anew = parser.parse_args().anew
    data = data_folder()
    if data is None:
        sys.exit("real CT data not found: set CONCORDCT_DATA or place ../shared/data beside the checkout")
    kept = PLACE.parent / "speed-beside"
    kept.mkdir(parents=True, exist_ok=True)
    for name, part in PARTS.items():
        if anew or not (kept / f"{name}.md").exists():
            load = os.getloadavg()[0]
            with tempfile.TemporaryDirectory() as folder:
                text = part(Path(folder), data / "chest_B40f")
            said = f"\n\nLoad when it began {load:.1f} on {os.cpu_count()} cores, one thread each."
            (kept / f"{name}.md").write_text(text + said)
            print(text + said, flush=True)
        body = [(kept / f"{one}.md").read_text() for one in PARTS if (kept / f"{one}.md").exists()]
        body.append(
            "Features beside PyRadiomics: `features.md`; registration beside SimpleITK and ANTs on whole images: "
            "`registration.md`, each a ratio within one run."
        )
        write_section("speed-beside", "python -m benchmarks.speed_beside", "\n\n".join(body), seed="0")


if __name__ == "__main__":
    main()
