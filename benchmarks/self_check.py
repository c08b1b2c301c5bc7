"""The self-check: scans of the right kernel that it refuses, wrong kernels that it finds, results taken back.

python -m benchmarks.self_check      # writes its page of docs/results

Simulated scans are those of `benchmarks.papers_cohort` (simulated there where they are not yet). Other kernels are made
of them: between two kernels of one raw data set lies the ratio of their MTFs, which is applied to the sharp image.
Other doses are means of two scans, other thicknesses means of slices, other pixels a finer lattice of the same band.
The belly of the test patients is simulated below `abdomens` of the same place. Real scans are judged where
../shared/data is at hand.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.stats import beta

from benchmarks.papers_cohort import cohort, jobs, runs
from benchmarks.real_pairs import mayo_pairs
from benchmarks.results import data_folder, table, write_section
from concordct.methods.models import load_model
from concordct.methods.spectral.fit import fit_pairs
from concordct.methods.spectral.self_check import (
    LARGEST_DISTANCE,
    KernelCheck,
    check_kernel,
    check_return,
    check_series,
)
from concordct.methods.spectral.transfer import SpectralModel, SpectralStandardizer
from concordct.methods.standardizer import Mode
from concordct.pipelines.calibrate import calibrate_pairs, pairs_of_paths
from concordct.pipelines.checks import check_scan
from concordct.pipelines.simulate import simulate
from concordct.scanner.frame import Stack
from concordct.scanner.kernels import kernel
from concordct.scanner.nonlinear import shrink_noise
from concordct.signal.signature import Signature, SignatureMeter
from concordct.signal.spectra import cosine_frequencies
from concordct.volumes.find import find_series
from concordct.volumes.scans import one_scan
from concordct.volumes.seeds import SliceSeeds
from concordct.volumes.volume import Volume

SEED = 2026
#: Simulated; the others are made of the sharp one. The last is iterative-like.
SIMULATED = ("Br40", "Bl64")
MADE = ("B30f", "STANDARD", "Br49", "B50f", "Bl57", "LUNG")
ITERATIVE = "Br40\\3"
#: Kernels whose right scans are fed.
RIGHT = ("Br40", "Bl64", "B30f", "B50f")
#: Slices under the lungs: liver, stomach, spleen, vertebrae.
ABDOMEN = Stack(2, 1.0, 1.0, 12.5)
#: Side of a finer lattice over 512 pixels, and of a crop.
FINER, CROP = 640, 300

Images = NDArray[np.float32]
#: [z, y, x] HU and the pixel, mm.
Slices = tuple[Images, float]


def in_kernel(sharp: Slices, name: str) -> Slices:
    """What another kernel makes of the raw data of a Bl64 scan: whole HU."""
    if name == "Bl64":
        return sharp
    images, pixel = sharp
    f = cosine_frequencies((images.shape[1], images.shape[2]), (pixel, pixel))
    # Where the sharp kernel passes less than a hundredth no kernel here passes more.
    ratio = kernel(name).mtf(f) / np.maximum(kernel("Bl64").mtf(f), 1e-2)
    made = [fft.idctn(fft.dctn(image + 1000, norm="ortho") * ratio, norm="ortho") - 1000 for image in images]
    return np.clip(np.rint(np.stack(made)), -1024, 3071).astype(np.float32), pixel


def finer(slices: Slices) -> Slices:
    """The same band on smaller pixels."""
    images, pixel = slices
    made = np.zeros((len(images), FINER, FINER))
    side = images.shape[1]
    for out, image in zip(made, images, strict=True):
        coefficients = np.zeros((FINER, FINER))
        coefficients[:side, :side] = fft.dctn(image + 1000, norm="ortho")
        out[:] = fft.idctn(coefficients, norm="ortho") * FINER / side - 1000
    return np.rint(made).astype(np.float32), pixel * side / FINER


def cropped(slices: Slices) -> Slices:
    """The upper left of the body."""
    images, pixel = slices
    return images[:, 60 : 60 + CROP, 60 : 60 + CROP], pixel


def signature(slices: Slices) -> Signature:
    """What the slices show together."""
    meter = SignatureMeter()
    for image in slices[0]:
        meter.add(image, spacing_mm=(slices[1], slices[1]))
    return meter.signature()


class Patient:
    """The scans of one patient of the cohort."""

    def __init__(self, folder: Path, again: Path | None) -> None:
        read = partial(self._read, folder)
        self.first = {name: read(name) for name in SIMULATED}
        self.again = None if again is None else {name: self._read(again, name) for name in SIMULATED}

    @staticmethod
    def _read(folder: Path, name: str) -> Slices:
        volume = one_scan(folder / f"{name}.nii.gz").read()
        return volume.hu, volume.spacing_mm[2]

    def slices(self, name: str, *, again: bool = False) -> Slices:
        """In a kernel, simulated or made."""
        scans = self.again if again and self.again is not None else self.first
        if name == ITERATIVE:
            images, pixel = scans["Br40"]
            return np.rint(shrink_noise(images, pixel, 3)), pixel
        return scans[name] if name in scans else in_kernel(scans["Bl64"], name)

    def variants(self, name: str) -> dict[str, Slices]:
        """Scans of this patient that are all of one kernel."""
        images, pixel = self.slices(name)
        other, _ = self.slices(name, again=True)
        return {
            "2 slices of 1 mm": (images[:2], pixel),
            "the next 2": (images[2:4], pixel),
            "scanned again": (other[:2], pixel),
            "twice the dose": (np.rint((images[:2] + other[:2]) / 2), pixel),
            "1 slice of 4 mm": (np.rint(images[:4].mean(axis=0, keepdims=True)), pixel),
            "pixels of 0.6 mm": finer((images[:1], pixel)),
            "a crop": cropped((images[1:3], pixel)),
        }


def patients() -> tuple[list[Patient], list[Patient]]:
    """Those that calibrate (training and validation), and those that are fed (test, scanned twice)."""
    manifest, repeats = cohort()
    place, again = manifest.parent, repeats.parent
    folders = [(f"patient-{number:04d}", number > 13) for number in range(1, 26)]
    found = [
        Patient(place / name / "scan-0" / "1mm", again / name / "scan-1" / "1mm" if fed else None)
        for name, fed in folders
    ]
    return found[:13], found[13:]


def abdomens() -> list[Patient]:
    """The test patients below their lungs, by the protocol of their chests; simulated where they are not yet."""
    bellies = [dataclasses.replace(job, stacks=(ABDOMEN,)) for job in jobs() if job.split == "test"]
    place = runs() / "abdomens"
    simulate(bellies, place, file_format="nifti")
    return [Patient(place / job.folder / "1mm", None) for job in bellies]


def refused(checks: Sequence[KernelCheck]) -> str:
    """Refused of all, with the median distance."""
    distances = [check.distance for check in checks if check.distance is not None]
    count = sum(check.status == "failed" for check in checks)
    return f"{count}/{len(checks)} ({np.median(distances):.1f})" if distances else "not measured"


def interval(count: int, total: int) -> str:
    """Clopper and Pearson's 95 % interval of a share (doi:10.1093/biomet/26.4.404), in per cent."""
    low = 0.0 if count == 0 else float(beta.ppf(0.025, count, total - count + 1))
    high = 1.0 if count == total else float(beta.ppf(0.975, count + 1, total - count))
    return f"{100 * count / total:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def right_simulated(
    references: Mapping[str, list[Signature]], fed: Sequence[Patient], random: np.random.Generator
) -> tuple[str, list[KernelCheck], list[KernelCheck]]:
    """Every scan of the right kernel once, against the slice of a patient drawn for it; last, against all of them."""
    by_variant: dict[str, dict[str, list[KernelCheck]]] = {}
    against_all = []
    for patient in fed:
        for name in RIGHT:
            for variant, slices in patient.variants(name).items():
                scan = signature(slices)
                checks = [check_kernel(scan, one) for one in references[name]]
                by_variant.setdefault(variant, {}).setdefault(name, []).append(
                    checks[int(random.integers(len(checks)))]
                )
                against_all += checks
    rows = [[variant, *(refused(kernels[name]) for name in RIGHT)] for variant, kernels in by_variant.items()]
    everything = [check for kernels in by_variant.values() for checks in kernels.values() for check in checks]
    return table(["simulated scan", *(f"`{name}`" for name in RIGHT)], rows), everything, against_all


def wrong_simulated(references: Mapping[str, list[Signature]], fed: Sequence[Patient]) -> tuple[str, int, int]:
    """Two slices of every patient in every kernel, against all slices that calibrate; wrong ones found, of all."""
    names = (*SIMULATED, *MADE, ITERATIVE)
    scans = {name: [signature((p.slices(name)[0][:2], p.slices(name)[1])) for p in fed] for name in names}
    rows, count, total = [], 0, 0
    for calibrated in (*RIGHT, ITERATIVE):
        row = [f"`{calibrated}`"]
        for name in names:
            checks = [check_kernel(scan, one) for scan in scans[name] for one in references[calibrated]]
            text = refused(checks)
            if name != calibrated:
                count, total = count + sum(check.status == "failed" for check in checks), total + len(checks)
            row.append(f"**{text}**" if name == calibrated else text)
        rows.append(row)
    return table(["calibrated from", *(f"`{name}`" for name in names)], rows), count, total


def other_anatomy(references: Mapping[str, list[Signature]], fed: Sequence[Patient]) -> str:
    """Bellies against the chests that calibrate, and against the chests of the very patients, both ways."""
    bellies = abdomens()
    names = (*RIGHT, "LUNG")
    scans = {name: [signature(one.slices(name)) for one in bellies] for name in names}
    rows = []
    for calibrated in RIGHT:
        row = [f"`{calibrated}`"]
        for name in names:
            text = refused([check_kernel(scan, one) for scan in scans[name] for one in references[calibrated]])
            row.append(f"**{text}**" if name == calibrated else text)
        chests = [signature((p.slices(calibrated)[0][:2], p.slices(calibrated)[1])) for p in fed]
        pairs = list(zip(scans[calibrated], chests, strict=True))
        row += [refused([check_kernel(a, b) for a, b in pairs]), refused([check_kernel(b, a) for a, b in pairs])]
        rows.append(row)
    own = ["belly against one's own chest", "chest against one's own belly"]
    return table(["calibrated from chests", *(f"belly in `{name}`" for name in names), *own], rows)


def real_scans(data: Path) -> dict[str, dict[str, list[Slices]]]:
    """Real scans by origin and kernel, cut into pieces of one to three slices."""

    def pieces(place: str, count: int) -> list[Slices]:
        volume = find_series(data / place).series[0].read()
        starts = range(0, volume.shape[0] - count + 1, count)
        return [(volume.hu[k : k + count], volume.spacing_mm[2]) for k in starts]

    mayo = mayo_pairs(data)
    return {
        "chest": {"B40f": pieces("chest_B40f", 2)},
        "Mayo abdomen": {k: [(one[k].hu, one[k].spacing_mm[2]) for one in mayo] for k in ("smooth", "sharp")},
        "Philips head": {k: pieces(f"philips_head_phantom/{k}_1mm", 2) for k in ("UB", "YA")},
        "Philips head again, 1 mm": {"UB": pieces("philips_thickness/UB_1mm", 3)},
        "Philips head again, 5 mm": {"UB": pieces("philips_thickness/UB_5mm", 1)},
        "Canon lung phantom": {
            k: [*pieces(f"canon_lung_phantom/{k}_2", 2), *pieces(f"canon_lung_phantom/{k}_3", 2)] for k in ("DLR", "IR")
        },
        "Canon chest phantom": {k: pieces(f"canon_chest_phantom/{k}", 1) for k in ("FC51", "FC13")},
    }


def real(data: Path, random: np.random.Generator) -> tuple[str, list[KernelCheck]]:
    """Right kernels: every piece once, against another piece drawn for it. Wrong ones: every piece against all."""
    rows, everything = [], []
    for name, by_kernel in real_scans(data).items():
        found = {k: [signature(one) for one in pieces] for k, pieces in by_kernel.items()}
        for calibrated, own in found.items():
            right = []
            for at, scan in enumerate(own):
                other = int(random.integers(len(own) - 1))
                right.append(check_kernel(scan, own[other + (other >= at)]))
            everything += right
            wrong = [
                f"{fed} {refused([check_kernel(scan, one) for scan in scans for one in own])}"
                for fed, scans in found.items()
                if fed != calibrated
            ]
            rows.append([name, calibrated, refused(right), "; ".join(wrong)])
    return table(["scan", "calibrated from", "the same kernel", "another kernel"], rows), everything


def fed_back(references: Mapping[str, list[Signature]], calibrate: Sequence[Patient], fed: Sequence[Patient]) -> str:
    """What a calibration made of a scan, fed back to it."""
    lines = []
    for source, target in (("Br40", "Bl64"), ("Bl64", "Br40")):
        for mode in ("sample", "mean"):
            checks = []
            for number in range(3):
                model, scan = _model(calibrate[number], source, target), slab(fed[number].slices(source))
                once = SpectralStandardizer(model, mode)(scan, generator=SliceSeeds(0, "again"))  # type: ignore[arg-type]
                images = np.clip(np.rint(once.hu), -1024, 3071)
                checks.append(check_kernel(signature((images, scan.spacing_mm[2])), references[source][number]))
            lines.append(f"`{source}` to `{target}` `{mode}` {refused(checks)}")
    return "; ".join(lines)


def slab(slices: Slices, count: int = 2) -> Volume:
    """The first slices as a volume, 1 mm apart."""
    images, pixel = slices
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = 1.0, pixel, pixel, 1.0
    return Volume(images[:count].astype(np.float32), affine, slice_thickness_mm=1.0)


def _model(patient: Patient, source: str, target: str) -> SpectralModel:
    pair = (slab(patient.slices(source), 1), slab(patient.slices(target), 1))
    return fit_pairs(partial(iter, (pair,)))


def returned(calibrate: Sequence[Patient], fed: Sequence[Patient], data: Path | None) -> str:
    """Calibrated, standardized and taken back, in both modes."""
    rows = []
    cases = {f"`{a}` to `{b}`, simulated": (_model(calibrate[0], a, b), slab(fed[0].slices(a)))
             for a, b in (("Br40", "Bl64"), ("Bl64", "Br40"))}  # fmt: skip
    if data is not None:
        pairs = mayo_pairs(data)
        for a, b in (("smooth", "sharp"), ("sharp", "smooth")):
            cases[f"Mayo {a} to {b}"] = (fit_pairs(partial(iter, ((pairs[0][a], pairs[0][b]),))), pairs[4][a])
    modes: tuple[Mode, ...] = ("mean", "sample")
    for name, (model, scan) in cases.items():
        for mode in modes:
            output = SpectralStandardizer(model, mode)(scan, generator=SliceSeeds(0, name))
            check = check_series(model, Signature(None, None, None, 1.0, 0, 0), [check_return(model, scan, output, index=0)])  # fmt: skip  # noqa: E501
            rows.append([name, mode, f"{check.difference_hu:.2f}", f"{check.ratio or 0:.2f}", f"{check.allowed:.1f}"])
    if data is not None:
        phantom = data / "canon_lung_phantom"
        for a, b in (("DLR", "IR"), ("IR", "DLR")):
            with tempfile.TemporaryDirectory() as scratch:
                calibrate_pairs(pairs_of_paths(phantom / f"{a}_2", phantom / f"{b}_2"), Path(scratch) / "model")
                loaded = load_model(Path(scratch) / "model")
            for mode in modes:
                found = check_scan(one_scan(phantom / f"{a}_3"), loaded.standardizer(mode=mode), seed=1)
                assert found is not None
                verdict = "**failed**" if found.failed else ""
                rows.append([f"Canon lung phantom {a} to {b}, concord, scan 3 {verdict}", mode,
                             f"{found.difference_hu:.2f}", f"{found.ratio or 0:.2f}", f"{found.allowed:.1f}"])  # fmt: skip  # noqa: E501
    return table(["calibrated", "mode", "difference, HU", "of the scan's noise", "allowed"], rows)


def main() -> None:
    """Measure and write the page."""
    random = np.random.default_rng(SEED)
    calibrate, fed = patients()
    references = {
        name: [signature((p.slices(name)[0][:1], p.slices(name)[1])) for p in calibrate] for name in (*RIGHT, ITERATIVE)
    }
    simulated, checks, against_all = right_simulated(references, fed, random)
    count = sum(check.status == "failed" for check in checks)
    data = data_folder()
    shown, real_checks = ("Real scans were not at hand.", []) if data is None else real(data, random)
    real_count = sum(check.status == "failed" for check in real_checks)
    all_count = sum(check.status == "failed" for check in against_all)
    wrong, found, fed_wrong = wrong_simulated(references, fed)
    total, failed = len(checks) + len(real_checks), count + real_count
    origins = f"{len(fed)} simulated patients ({count} of {len(checks)}) and five real objects ({real_count} of "
    origins += f"{len(real_checks)})"
    curves = ", ".join(f"`{name}` {kernel(name).mtf50_lp_cm:g}" for name in (*SIMULATED, *MADE))
    body = f"""## Scans of the right kernel that are refused

{failed} of {total} scans: {interval(failed, total)}, 95 % interval as if all were independent; they come from
{origins}. Each scan is held once against one calibration, a single
slice of another patient (real: another piece of the same object), drawn at random. Refused of all, median distance in
brackets; allowed is {LARGEST_DISTANCE:g}. The thresholds were set with these patients and objects in view, right and
wrong kernels, so that this is no blind test. Every simulated scan against each of the {len(calibrate)} calibrations:
{all_count} of {len(against_all)} refused, {100 * all_count / len(against_all):.1f} %.

{simulated}

{shown}

## Another anatomy

Two slices under the lungs of the same {len(fed)} patients, against single slices of the {len(calibrate)} chests of
other patients. No real kernel is at hand in two anatomies.

{other_anatomy(references, fed)}

## Wrong kernels that are found

{len(calibrate)} calibrations from one slice each, two slices of each of {len(fed)} other patients. MTF50:
{curves} lp/cm.

{wrong}

Found of all wrong ones: {found} of {fed_wrong}.

A model's own results, fed back: {fed_back(references, calibrate, fed)}.

## Results taken back

The result through the inverse transfer below the frequency where the coherence falls under 0.9, minus the scan.

{returned(calibrate, fed, data)}
"""
    write_section("self-check", "make bench-self-check", body, seed=f"{SEED}")


if __name__ == "__main__":
    main()
