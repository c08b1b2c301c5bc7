"""A small archive of simulated patients, stored as the Imaging Data Commons stores NLST: tables and objects.

The patients are those of `benchmarks.papers_cohort`; each pair becomes two DICOM series of one study, described as NLST
describes them, with a row in `idc_index` and one in `ct_index` of the shipped schemas. The server is local.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pydicom

from benchmarks.archive_server import BUCKET, put_series, s3_server, write_table
from benchmarks.papers_cohort import jobs, runs
from concordct.pipelines.simulate import simulate
from concordct.volumes.manifest import read_manifest
from concordct.volumes.new_series import SimulatedScan, write_new_series
from concordct.volumes.scans import one_scan

#: Patients of the cohort that go into the archive, from its first: those of eight slices, which show lung enough.
PATIENTS = 10
KVP, MAS = 120.0, 60.0


def series_of_patients(place: Path) -> list[Path]:
    """The patients' series as DICOM, made where they are not there."""
    folders = []
    manifest = simulate(jobs(), runs() / "cohort", file_format="nifti").manifest
    assert manifest is not None
    for row in read_manifest(manifest)[:PATIENTS]:
        assert row.target is not None
        for number, (path, kernel) in enumerate(
            ((row.source, row.source_kernel), (row.target, row.target_kernel)), start=1
        ):
            folder = place / row.subject / f"{kernel}"
            if not folder.exists():
                volume = dataclasses.replace(one_scan(path).read(), kernel=kernel)
                said = f"0,OPA,SE,SIM,{kernel},384,{row.slice_thickness_mm:g},{KVP:g},{MAS:g},na,na"
                write_new_series(volume, folder, SimulatedScan(row.subject, row.pair, said, number, KVP, MAS))
            folders.append(folder)
    return folders


def first_header(folder: Path) -> pydicom.FileDataset:
    """Of a series' first file."""
    return pydicom.dcmread(sorted(folder.glob("*.dcm"))[0], stop_before_pixels=True)


def index_row(folder: Path, collection: str, prefix: str, *, description: str) -> dict[str, object]:
    """A series as `idc_index` has it."""
    header, files = first_header(folder), list(folder.glob("*.dcm"))
    return {
        "collection_id": collection,
        "PatientID": str(header.PatientID),
        "StudyInstanceUID": str(header.StudyInstanceUID),
        "SeriesInstanceUID": str(header.SeriesInstanceUID),
        "Modality": str(header.Modality),
        "SeriesDescription": description,
        "Manufacturer": "simulated",
        "instanceCount": len(files),
        "series_size_MB": sum(path.stat().st_size for path in files) / 1e6,
        "license_short_name": "simulated",
        "series_aws_url": f"s3://{BUCKET}/{prefix}/*",
    }


@contextmanager
def local_archive(place: Path) -> Iterator[tuple[Path, Path, str]]:
    """(idc_index, ct_index, endpoint) of the local archive while it runs."""
    folders = series_of_patients(place)
    rows, ct = [], []
    with s3_server() as (endpoint, client):
        client.create_bucket(Bucket=BUCKET)
        for folder in folders:
            prefix = f"{folder.parent.name}-{folder.name}"
            put_series(client, prefix, folder)
            header = first_header(folder)
            uid = str(header.SeriesInstanceUID)
            rows.append(index_row(folder, "nlst", prefix, description=str(header.SeriesDescription)))
            ct.append(
                {
                    "SeriesInstanceUID": uid,
                    "ConvolutionKernel": [str(header.ConvolutionKernel)],
                    "SliceThickness": float(header.SliceThickness),
                    "KVP": KVP,
                    "PixelSpacing_row_mm": float(header.PixelSpacing[0]),
                    "PixelSpacing_col_mm": float(header.PixelSpacing[1]),
                    "Rows": int(header.Rows),
                    "Columns": int(header.Columns),
                }
            )
        yield (
            write_table(place / "idc_index.parquet", "idc_index", rows),
            write_table(place / "ct_index.parquet", "ct_index", ct),
            endpoint,
        )
