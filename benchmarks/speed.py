"""Seconds a slice and memory of the spectral method on one core: the method alone, and whole commands.

python -m benchmarks.speed      # writes its page of docs/results
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.child import Measured, succeeded
from benchmarks.results import data_folder, table, write_section
from concordct.methods.models import load_model
from concordct.methods.spectral.transfer import SpectralModel, SpectralStandardizer
from concordct.volumes.files import open_volume_file, write_volume_file
from concordct.volumes.find import find_series
from concordct.volumes.seeds import SliceSeeds

REPEATS = 5
COPIES = (1, 2, 4, 8)
#: The model is of other scans: the self-check would say so.
FILTER = ("--any-kernel", "--check", "off")


def method_seconds(model: SpectralModel, mode: str, chest: Path) -> list[float]:
    """Seconds a slice of the method itself, one process, one core."""
    volume = find_series(chest).series[0].read()
    work = SpectralStandardizer(model, mode)  # type: ignore[arg-type]
    work(volume.slab(0, 2), generator=SliceSeeds(0, "warm-up"))
    found = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work(volume, generator=SliceSeeds(0, "speed"))
        found.append((time.perf_counter() - start) / volume.shape[0])
    return found


def cells(took: Measured) -> list[str]:
    """Seconds by the clock and of a processor, MiB."""
    return [f"{took.wall_s:.1f}", f"{took.cpu_s:.1f}", f"{took.peak_mib:.0f}"]


def _one_core() -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def main() -> None:
    """Measure and write the section."""
    data = data_folder()
    if data is None:
        sys.exit("real CT data not found: set CONCORDCT_DATA or place ../shared/data beside the checkout")
    _one_core()
    chest = data / "chest_B40f"
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        pair = []
        for kernel in ("smooth", "sharp"):
            slice_ = open_volume_file(data / f"mayo_L067_kernel_pairs/{kernel}_000039.mha").read()
            pair.append(write_volume_file(place / f"{kernel}.nii", slice_))
        calibrated = succeeded("calibrate", *pair, "-o", place / "model", "--method", "spectral", one_core=True)
        model = SpectralModel.from_bundle(load_model(place / "model").bundle)
        rows = [["calibrate, one pair of slices", "", *cells(calibrated)]]
        for mode in ("mean", "sample"):
            each = method_seconds(model, mode, chest)
            words = ("standardize", chest, *FILTER, "-o", place / f"out-{mode}", "-m", place / "model", "--mode", mode)
            took = succeeded(*words, one_core=True)
            rows.append(
                [
                    f"standardize 28 slices of 512 x 512, `{mode}`",
                    f"{np.median(each):.3f} ({min(each):.3f} to {max(each):.3f})",
                    *cells(took),
                ]
            )
        tree = []
        for copies in COPIES:
            root = place / f"tree-{copies}"
            for index in range(copies):
                _copy(chest, root / str(index), index)
            words = ("standardize", root, *FILTER, "-m", place / "model", "-o", place / f"done-{copies}")
            took = succeeded(*words, one_core=True)
            tree.append([str(copies), *cells(took)])
    body = (
        "## Speed and memory, one core\n\n"
        + table(["", "method alone, s a slice (median, range)", "whole command, s", "CPU, s", "peak, MiB"], rows)
        + "\n\nThe whole command starts Python, reads DICOM, standardizes and writes a derived series, without the\n"
        "self-check.\n\n" + table(["series of 28 slices in the tree", "s", "CPU, s", "peak, MiB"], tree)
    )
    write_section("speed", "make bench-speed", body, seed="0")


def _copy(chest: Path, to: Path, index: int) -> None:
    """The same slices as another series."""
    import pydicom

    to.mkdir(parents=True)
    for path in sorted(chest.iterdir()):
        dataset = pydicom.dcmread(path)
        dataset.SeriesInstanceUID += f".{index + 1}" if index else ""
        dataset.SOPInstanceUID += f".{index + 1}" if index else ""
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.save_as(to / path.name)
    shutil.copystat(chest, to)


if __name__ == "__main__":
    main()
