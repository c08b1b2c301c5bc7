"""A series of 300 slices through the verbs: time, memory, and what the guard costs.

    python -m benchmarks.long_series                       # writes docs/results/long-series.md
    python -m benchmarks.long_series --only features       # the other rows stay as the page has them

The series is a real one of 28 slices, repeated along z; so only time and memory are measured on it.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pydicom
from pydicom.uid import UID, JPEG2000Lossless, JPEGLSLossless

from benchmarks.child import Measured, succeeded
from benchmarks.results import RESULTS, data_folder, table, write_section
from concordct.volumes.files import open_volume_file, write_volume_file
from concordct.volumes.find import find_series

SERIES = 300
#: More than `concordct.radiomics.filters.image_types.LARGE` voxels.
IN_SLABS = 66
#: Runs of each way of decoding; the middle one stands.
ROUNDS = 3
NAME = "long-series"
#: The model is of other scans: the self-check would say so.
FILTER = ("--any-kernel", "--check", "off", "--mode", "mean", "--overwrite")
HEADER = ["300 slices of 512 x 512", "clock, s", "CPU, s", "peak, MiB"]

_TEXTURES = "featureClass: {firstorder: [], glcm: [], glrlm: [], glszm: [], gldm: [], ngtdm: []}\n"

#: Run in the child before the command line: decoding in this process, in the worker's place.
IN_PLACE = """
import numpy
from concordct.volumes import codestreams, guard
class Direct:
    def __init__(self, function, data, *, path, **options):
        self.found = guard.Decoded(numpy.asarray(function(data, **options)), "")
    def result(self):
        return self.found
codestreams.ask = Direct
"""
#: Every second codestream is decoded in this process, so that both ways meet the same machine: whole runs of one way,
#: one after the other, differ by 10 to 30 %. Said at the end: processor seconds of the calls and of the worker.
ALTERNATE = f"""{IN_PLACE}
import atexit, json, resource, sys, time
calls, spent = [0, 0], [0.0, 0.0]
class Either:
    def __init__(self, *words, **options):
        self.way = (sum(calls) + FIRST) % 2
        calls[self.way] += 1
        self.asked = self.timed((guard.ask, Direct)[self.way], *words, **options)
    def timed(self, function, *words, **options):
        begun = time.process_time()
        try:
            return function(*words, **options)
        finally:
            spent[self.way] += time.process_time() - begun
    def result(self):
        return self.timed(self.asked.result)
codestreams.ask = Either
@atexit.register
def tell():
    guard.end_worker()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(json.dumps([spent[0] + used.ru_utime + used.ru_stime, spent[1]]), file=sys.stderr)
"""


def long_series(chest: Path, to: Path, *, syntax: UID | None = None, apart_mm: float | None = None) -> Path:
    """The slices of a real series, repeated along z to `SERIES`, in another transfer syntax if one is given.

    Parameters
    ----------
    apart_mm : distance and thickness of the slices; None keeps the series' own 3 mm, three times a chest's height.
    """
    to.mkdir(parents=True)
    read = sorted(
        (pydicom.dcmread(path) for path in chest.iterdir()), key=lambda one: float(one.ImagePositionPatient[2])
    )
    step = apart_mm or float(read[1].ImagePositionPatient[2]) - float(read[0].ImagePositionPatient[2])
    first = [float(value) for value in read[0].ImagePositionPatient]
    if syntax is not None:
        read = [_encoded(dataset, syntax, to) for dataset in read]
    for index in range(SERIES):
        dataset = read[index % len(read)]
        dataset.InstanceNumber = index + 1
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = UID(f"2.25.{10**30 + index}")
        dataset.ImagePositionPatient = [first[0], first[1], round(first[2] + index * step, 4)]
        if "SliceLocation" in dataset:
            dataset.SliceLocation = dataset.ImagePositionPatient[2]
        if apart_mm is not None:
            dataset.SliceThickness = apart_mm
        dataset.save_as(to / f"{index:04d}.dcm")
    return to


def _encoded(dataset: pydicom.FileDataset, syntax: UID, place: Path) -> pydicom.FileDataset:
    """A slice in another transfer syntax; JPEG 2000 by GDCM, for pydicom has no encoder of it here."""
    if syntax != JPEG2000Lossless:
        dataset.compress(syntax, generate_instance_uid=False)
        return dataset
    import gdcm

    native, coded = place / "native", place / "coded"
    dataset.save_as(native)
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(native))
    reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEG2000Lossless))
    change.SetInput(reader.GetImage())
    change.Change()
    writer.SetFileName(str(coded))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.Write()
    found = pydicom.dcmread(coded)
    assert found.file_meta.TransferSyntaxUID == JPEG2000Lossless
    native.unlink()
    coded.unlink()
    return found


#: Measures one part: rows of the table, without their first cell where a sentence takes its place.
Part = Callable[[Path, Path], Iterator[list[str]]]


def _row(name: str, *words: str | Path, before: str = "") -> list[str]:
    return _cells(name, succeeded(*words, before=before))


def _cells(name: str, took: Measured) -> list[str]:
    return [name, f"{took.wall_s:.0f}", f"{took.cpu_s:.1f}", f"{took.peak_mib:.0f}"]


def _standardize(place: Path, model: Path) -> Iterator[list[str]]:
    words = ("-m", model, *FILTER, "-o", place / "out")
    yield _row("`standardize`, filter, `mean`, DICOM to DICOM", "standardize", _native(place), *words)


def _guard(place: Path, model: Path) -> Iterator[list[str]]:
    yield from _decoded(place, model, "JPEG-LS", JPEGLSLossless, pairs=3)


def _guard_2000(place: Path, model: Path) -> Iterator[list[str]]:
    yield from _decoded(place, model, "JPEG 2000", JPEG2000Lossless)


def _decoded(place: Path, model: Path, name: str, syntax: UID, *, pairs: int = 1) -> Iterator[list[str]]:
    """Whole runs of each way in turn; then runs that decode every second slice in place, for what the worker costs."""
    data = data_folder()
    assert data is not None
    series = long_series(data / "chest_B40f", place / name, syntax=syntax)
    words = ("standardize", series, "-m", model, *FILTER, "-o", place / "out")
    ways = {"decoded in the worker": "", "decoded in place": IN_PLACE}
    runs: dict[str, list[Measured]] = {said: [] for said in ways}
    for _ in range(ROUNDS):
        for said, before in ways.items():
            runs[said].append(succeeded(*words, before=before))
    for said, found in runs.items():
        yield _cells(f"the same from {name}, {said}", sorted(found, key=lambda run: run.cpu_s)[ROUNDS // 2])
    extra = 0.0
    for first in (0, 1) * pairs:
        said = succeeded(*words, before=ALTERNATE.replace("FIRST", str(first))).said
        worker, here = json.loads(said.splitlines()[-1])
        extra += (worker - here) / pairs  # of half of the slices; two runs together have each slice both ways
    ratio = 1 + extra / sorted(run.cpu_s for run in runs["decoded in place"])[ROUNDS // 2]
    yield [f"ratio of CPU, {name}, worker to in place, every second slice either way", "", f"{ratio:.3f}", ""]


def _volume(place: Path, model: Path) -> Iterator[list[str]]:
    for ending in ("nii.gz", "mha"):
        file = place / f"chest.{ending}"
        (series,) = find_series(_native(place)).series
        write_volume_file(file, series.read())
        words = ("-m", model, *FILTER, "-o", place / f"done.{ending}")
        yield _row(f"`standardize`, filter, `mean`, .{ending} to .{ending}", "standardize", file, *words)
        file.unlink()


def _features(place: Path, model: Path) -> Iterator[list[str]]:
    words = ("-p", "pyradiomics-default", "--overwrite", "-o", place / "features.csv")
    yield _row("`features`, whole image, pyradiomics-default (107)", "features", _native(place), *words)


def _log(place: Path, model: Path) -> Iterator[list[str]]:
    yield _filtered(place, "LoG of sigma 2 mm, six classes", "  LoG: {sigma: [2.0]}\n")


def _wavelet(place: Path, model: Path) -> Iterator[list[str]]:
    yield _filtered(place, "wavelet's eight bands, first order", "  Wavelet: {}\n", "featureClass: {firstorder: []}\n")


def _pointwise(place: Path, model: Path) -> Iterator[list[str]]:
    types = "".join(f"  {name}: {{}}\n" for name in ("Square", "SquareRoot", "Logarithm", "Exponential", "Gradient"))
    classes = "featureClass: {firstorder: [], glszm: []}\n"
    yield _filtered(place, "square, roots, logarithm, exponential, gradient; first order and GLSZM", types, classes)


def _columns(place: Path, model: Path) -> Iterator[list[str]]:
    """The fewest slices that are filtered in slabs, as the whole series is."""
    part = place / "part"
    part.mkdir()
    for path in sorted(_native(place).iterdir())[:IN_SLABS]:
        (part / path.name).hardlink_to(path)
    words = ("-p", "pyradiomics-1401", "--overwrite", "-o", place / "features.csv")
    yield _row(f"`features`, whole image of {IN_SLABS} slices, pyradiomics-1401", "features", part, *words)


def _filtered(place: Path, name: str, image_types: str, classes: str = _TEXTURES) -> list[str]:
    settings = place / "settings.yaml"
    settings.write_text(f"setting: {{binWidth: 25}}\nimageType:\n{image_types}{classes}")
    words = ("-p", settings, "--overwrite", "-o", place / "features.csv")
    return _row(f"`features`, whole image, {name}", "features", _native(place), *words)


def _evaluate(place: Path, model: Path) -> Iterator[list[str]]:
    native = _native(place)
    made = place / "made"
    succeeded("standardize", native, "-m", model, *FILTER, "-o", made)
    words = ("--source", native, "--standardized", made, "--target", native, "--overwrite", "-o", place / "judged")
    yield _row("`evaluate`, three such series", "evaluate", *words)


def _measure(place: Path, model: Path) -> Iterator[list[str]]:
    words = ("--overwrite", "-o", place / "endpoints.csv")
    yield _row("`measure`, every endpoint, lungs and heart's region found", "measure", _native(place), *words)
    data = data_folder()
    assert data is not None
    chest = long_series(data / "chest_B40f", place / "thin", apart_mm=1.0)
    yield _row("`measure`, slices 1 mm apart: as high as a chest", "measure", chest, *words)


PARTS: dict[str, Part] = {
    "measure": _measure,
    "standardize": _standardize,
    "guard": _guard,
    "guard-2000": _guard_2000,
    "volume": _volume,
    "features": _features,
    "log": _log,
    "wavelet": _wavelet,
    "pointwise": _pointwise,
    "columns": _columns,
    "evaluate": _evaluate,
}


def _native(place: Path) -> Path:
    data = data_folder()
    assert data is not None
    series = place / "series"
    return series if series.exists() else long_series(data / "chest_B40f", series)


def _rows() -> dict[str, list[str]]:
    """The rows that stand on the page now."""
    page = RESULTS / f"{NAME}.md"
    text = page.read_text() if page.exists() else ""
    rows = {row[0]: row for row in (line[2:-2].split(" | ") for line in re.findall(r"(?m)^\| .*\|$", text))}
    rows.pop(HEADER[0], None)
    return rows


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS)
    chosen = parser.parse_args().only or list(PARTS)
    data = data_folder()
    if data is None:
        sys.exit("real CT data not found: set CONCORDCT_DATA or place ../shared/data beside the checkout")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        pair = []
        for kernel in ("smooth", "sharp"):
            slice_ = open_volume_file(data / f"mayo_L067_kernel_pairs/{kernel}_000039.mha").read()
            pair.append(write_volume_file(place / f"{kernel}.nii", slice_))
        succeeded("calibrate", *pair, "-o", place / "model", "--method", "spectral")
        for name in chosen:
            found = list(PARTS[name](place, place / "model"))
            print(*found, sep="\n", flush=True)
            rows = _rows() | {row[0]: row for row in found}
            body = (
                "A real series of 28 slices repeated to 300 (only time and memory are measured on it), one thread.\n"
                "Peak is of the largest process. The clock is of a machine with other work; CPU includes workers.\n\n"
                + table(HEADER, list(rows.values()))
            )
            write_section(NAME, "python -m benchmarks.long_series", body, seed="0")


if __name__ == "__main__":
    main()
