"""Scanners brought to one reference: a phantom in several conditions, fetched as ct4harmonization's scans are.

Part of `benchmarks.idc`. Each condition (scanner, dose, reconstruction) is measured as it is and after `--to` a
reference, every scan by itself; what is compared is one condition with another, over the regions of the masks.
"""

from __future__ import annotations

import csv
import dataclasses
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray

from benchmarks.archive_server import BUCKET, put_series, s3_server, write_table
from benchmarks.idc_archive import index_row
from benchmarks.papers_cohort import runs
from benchmarks.results import table
from concordct.agreement.concordance import ccc_per_feature, mean_by_class
from concordct.errors import ConcordctError
from concordct.judging.stages import stored
from concordct.methods.spectral.reference import load_reference
from concordct.methods.spectral.refined import bring
from concordct.methods.spectral.transfer import SpectralStandardizer
from concordct.pipelines import archive
from concordct.pipelines.archive_series import LEAST_SLICES, Wanted
from concordct.pipelines.features import FeatureJob, extract_features
from concordct.pipelines.rois import draw_rois
from concordct.pipelines.simulate import simulate
from concordct.radiomics.table import read_rows
from concordct.scanner.acquisition import Acquisition
from concordct.scanner.cohorts import SimulationJob
from concordct.scanner.frame import Stack
from concordct.scanner.recipes import FRAME
from concordct.volumes.files import write_volume_file
from concordct.volumes.manifest import read_manifest
from concordct.volumes.masks import read_regions, to_labels
from concordct.volumes.new_series import SimulatedScan, write_new_series
from concordct.volumes.scans import one_scan
from concordct.volumes.seeds import SliceSeeds

Array = NDArray[np.float64]

#: Simulated conditions: the scanner's letter, dose as the descriptions write it, mAs, kernels.
CONDITIONS = (("A1", "10mGy", 100.0, ("Br40", "Bl64")), ("B1", "5mGy", 50.0, ("STANDARD", "LUNG")))
REPEATS, SLICES = 2, 6
REFERENCES = ("soft", "sharp")
SIZE, PER_RANGE = 28, 6
PRESET = "pyradiomics-default"
COLLECTION = "ct4harmonization_multicentric"
FOUND = "as they are"


def scans_of_phantom(place: Path) -> list[tuple[Path, str, Path]]:
    """(series, description, mask) of the simulated phantom in every condition, made where they are not there."""
    jobs = [
        SimulationJob(
            "phantom", 1, "scanners", REPEATS * number + repeat,
            Acquisition(mas=mas, row_mm=1.0, field_mm=500.0), FRAME, (Stack(SLICES, 1.0, 1.0, 148.5),), kernels, 11,
        )
        for number, (_, _, mas, kernels) in enumerate(CONDITIONS)
        for repeat in range(REPEATS)
    ]  # fmt: skip
    manifest = simulate(jobs, runs() / "scanners", file_format="nifti").manifest
    assert manifest is not None
    rois = place / "rois.nii.gz"
    found = []
    for row, job in zip(read_manifest(manifest), jobs, strict=True):
        assert row.target is not None
        name, dose, mas, _ = CONDITIONS[job.scan // REPEATS]
        for number, (path, kernel) in enumerate(((row.source, job.kernels[0]), (row.target, job.kernels[1])), start=1):
            place.mkdir(parents=True, exist_ok=True)
            if not rois.exists():
                draw_rois(path, rois, size=SIZE, per_range=PER_RANGE)
            folder = place / f"{job.scan}-{kernel}"
            said = f"{name}_Harmonized_{dose}_{'FBP' if number == 1 else 'SHARP'} - #{job.scan % REPEATS + 1}"
            if not folder.exists():
                volume = dataclasses.replace(one_scan(path).read(), kernel=kernel)
                scan = SimulatedScan("phantom-0001", f"{row.pair}_{kernel}", said, number, 120.0, mas)
                write_new_series(volume, folder, scan)
            mask = place / f"{folder.name}-mask" / "mask.dcm"
            if not mask.exists():
                write_segmentation(rois, folder, mask)
            found.append((folder, said, mask))
    return found


def write_segmentation(labels: Path, series: Path, to: Path) -> None:
    """Labels as the DICOM segmentation of a series."""
    from highdicom.content import AlgorithmIdentificationSequence
    from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentationTypeValues, SegmentDescription
    from pydicom.sr.codedict import codes

    volume = one_scan(series).read()
    regions = to_labels(read_regions(labels, affine=volume.affine, shape=volume.shape))
    images = sorted(
        (pydicom.dcmread(path) for path in series.glob("*.dcm")), key=lambda one: one.ImagePositionPatient[2]
    )
    drawn = AlgorithmIdentificationSequence("ROIs", codes.DCM.ArtificialIntelligence, "1")
    kinds = [
        SegmentDescription(
            number, f"ROI {number}", codes.SCT.Tissue, codes.SCT.Tissue, SegmentAlgorithmTypeValues.AUTOMATIC, drawn
        )
        for number in range(1, int(regions.max()) + 1)
    ]
    made = Segmentation(
        images, regions.astype(np.uint8), SegmentationTypeValues.BINARY, kinds, pydicom.uid.generate_uid(), 9,
        pydicom.uid.generate_uid(), 1, "concordct", "virtual", "1", "1",
    )  # fmt: skip
    to.parent.mkdir(parents=True, exist_ok=True)
    made.save_as(to)


@contextmanager
def scanners_archive(place: Path) -> Iterator[tuple[Path, Path | None, str]]:
    """(idc_index, None, endpoint) of the phantom's scans, described as the collection describes them."""
    found = scans_of_phantom(place)
    rows = []
    with s3_server() as (endpoint, client):
        client.create_bucket(Bucket=BUCKET)
        for folder, said, mask in found:
            for series in (folder, mask.parent):
                put_series(client, f"scanners-{series.name}", series)
                rows.append(index_row(series, COLLECTION, f"scanners-{series.name}", description=said))
        yield write_table(place / "idc_index.parquet", "idc_index", rows), None, endpoint


def fetched(place: Path, count: int | None, tables: tuple[Any, ...], least: int = LEAST_SLICES) -> list[FeatureJob]:
    """The scans with their masks, by name."""
    index, ct_index, endpoint = tables
    selection = archive.select(
        archive.preset_of("ct4harmonization"), Wanted(least_slices=least), count=count, index=index, ct_index=ct_index
    )
    found = archive.fetch_cohort(selection, place, most_gb=200.0, endpoint=endpoint)
    if found.manifest is None:
        raise ConcordctError(f"{place}: expected scans, found none: {found.failures[0][1]}")
    return [FeatureJob(row.pair, row.subject, row.source, row.mask) for row in read_manifest(found.manifest)]


def brought(job: FeatureJob, reference: str, to: Path) -> FeatureJob:
    """A scan brought to a reference by what it shows itself."""
    path = to / reference / f"{job.name}.nii.gz"
    if not path.exists():
        print(f"{reference}: {job.name}", file=sys.stderr, flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        volume = one_scan(job.image).read()
        model = bring(load_reference(reference), [volume])
        work = SpectralStandardizer(model, "mean" if model.noise is None else "sample")
        made = stored(work(volume, generator=SliceSeeds(0, job.name)).hu, volume.hu)
        write_volume_file(path, volume.with_hu(made))
    return dataclasses.replace(job, image=path)


def agreement(features: Path, conditions: Mapping[str, tuple[str, str]]) -> dict[str, dict[str, tuple[float, int]]]:
    """Class -> mean CCC of its features and number of comparisons, between conditions and between repeats.

    Parameters
    ----------
    conditions : image -> (condition, repeat).
    """
    rows = read_rows(features)
    images = np.array([image for image, _ in rows.keys])
    of: dict[str, Array] = {name: rows.values[images == name] for name in dict.fromkeys(images.tolist())}
    found: dict[str, dict[str, list[float]]] = {"conditions": defaultdict(list), "repeats": defaultdict(list)}
    for one, other in combinations(of, 2):
        (a, first), (b, second) = conditions[one], conditions[other]
        if of[one].shape != of[other].shape or (a != b and first != second):
            continue
        ccc = ccc_per_feature(of[one], of[other])
        for name, summary in mean_by_class(ccc, rows.classes).items():
            if name == "shape":  # the masks' own
                continue
            found["repeats" if a == b else "conditions"][name].append(float(summary.mean))
    return {
        kind: {name: (float(np.nanmean(values)), len(values)) for name, values in cells.items()}
        for kind, cells in found.items()
    }


def section(jobs: Sequence[FeatureJob], conditions: Mapping[str, tuple[str, str]], place: Path) -> str:
    """The part of the page: a table of classes."""
    found = {}
    for name in (FOUND, *REFERENCES):
        stage = list(jobs) if name == FOUND else [brought(job, name, place) for job in jobs]
        output = place / f"features-{name.replace(' ', '-')}.csv"
        if not output.exists():
            extract_features(stage, PRESET, output)
        found[name] = agreement(output, conditions)
    classes = list(found[FOUND]["conditions"])
    rows = []
    for name, kinds in found.items():
        said = name if name == FOUND else f"each brought to `{name}`"
        for kind in ("conditions", "repeats"):
            if kinds[kind]:
                title = f"{said}, {kind if kind == 'repeats' else 'between conditions'}"
                rows.append([title, *(f"{kinds[kind][one][0]:.3f}" for one in classes)])
    many = {condition for condition, _ in conditions.values()}
    pairs = found[FOUND]["conditions"][classes[0]][1]
    return (
        f"{len(jobs)} scans in {len(many)} conditions (scanner, dose, reconstruction), {pairs} comparisons of one "
        f"condition with another. Mean CCC of the features of each class (`{PRESET}`) over the masks' regions; every "
        "scan is measured and brought to the reference by itself, without a pair. Below each the repeats of one "
        "condition: what another noise alone leaves.\n\n" + table(["", *classes], rows)
    )


def conditions_of(place: Path) -> dict[str, tuple[str, str]]:
    """Image -> (condition, repeat) as the cohort's table of scans says."""
    with (place / archive.SCANS).open(encoding="utf-8", newline="") as stream:
        return {
            row["image"]: (f"{row['scanner']} {row['dose']} {row['reconstruction']}", row["repeat"])
            for row in csv.DictReader(stream)
        }
