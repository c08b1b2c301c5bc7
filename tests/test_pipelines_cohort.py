"""Cohorts of real pairs: the archive's index and folders of one's own."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from concordct.errors import ConcordctError
from concordct.pipelines.cohort import cohort_folder, cohort_idc, find_candidates, split_of
from concordct.volumes.manifest import read_manifest
from concordct.volumes.new_series import SimulatedScan, write_new_series
from concordct.volumes.volume import Volume


def write(folder: Path, kernel: str, subject: str, scan: str, hu: np.ndarray, number: int) -> None:
    affine = np.eye(4)
    affine[:3, :3] = [[0, 0, 2.0], [0, 2.0, 0], [2.0, 0, 0]]
    volume = Volume(hu.astype(np.float32), affine, slice_thickness_mm=2.0, kernel=kernel)
    write_new_series(volume, folder, SimulatedScan(subject, scan, kernel, number, 120.0, 100.0))


@pytest.fixture
def hospital(tmp_path: Path) -> Path:
    """Three people: a pair, a sharp series of another scan under one frame of reference, a lone soft series."""
    generator = np.random.default_rng(1)
    y, x = np.mgrid[:64, :64] - 31.5
    body = np.where(np.hypot(y, x) < 25, 40.0, -1000.0) + np.where(np.hypot(y - 5, x) < 8, 200.0, 0.0)
    stack = np.repeat(body[None], 6, 0)
    grain = np.rint(generator.normal(0, 4, stack.shape))
    folder = tmp_path / "hospital"
    write(folder / "a", "SOFT", "anna", "one", np.clip(stack + np.rint(grain / 2), -1024, None), 1)
    write(folder / "b", "HARD", "anna", "one", np.clip(stack + grain, -1024, None), 2)
    write(folder / "c", "SOFT", "berta", "two", np.clip(stack, -1024, None), 1)
    write(folder / "d", "HARD", "berta", "two", np.roll(np.clip(stack, -1024, None), 9, axis=2), 2)
    write(folder / "e", "SOFT", "carla", "three", np.clip(stack, -1024, None), 1)
    return folder


def test_folder_finds_the_pair_and_lists_what_is_none(hospital: Path, tmp_path: Path) -> None:
    found = cohort_folder(hospital, source_kernel="SOFT", target_kernel="HARD", output=tmp_path / "out")
    assert found.manifest is not None
    (row,) = read_manifest(found.manifest)
    assert (row.source.name, row.target and row.target.name) == ("a", "b")
    assert row.slice_thickness_mm == 2.0
    with open(tmp_path / "out" / "failures.csv", newline="") as file:
        failures = list(csv.DictReader(file))
    assert len(failures) == 2
    assert any("different content" in failure["reason"] for failure in failures)
    assert any("no HARD series" in failure["reason"] for failure in failures)
    everything = (tmp_path / "out" / "pairs.csv").read_text() + (tmp_path / "out" / "failures.csv").read_text()
    assert not any(name in everything for name in ("anna", "berta", "carla"))


def test_folder_names_the_kernels_that_are_there(hospital: Path, tmp_path: Path) -> None:
    with pytest.raises(ConcordctError, match="found HARD, SOFT"):
        cohort_folder(hospital, source_kernel="B30f", target_kernel="HARD", output=tmp_path / "out")


def test_real_pair_is_found(shared_data: Path, tmp_path: Path) -> None:
    found = cohort_folder(
        shared_data / "philips_head_phantom", source_kernel="UB", target_kernel="YA", output=tmp_path / "out"
    )
    assert (found.pairs, found.failures) == (1, ())


def test_splits_are_by_name_and_near_their_shares() -> None:
    counts = Counter(split_of(f"subject-{k}") for k in range(4000))
    assert split_of("subject-7") == split_of("subject-7")
    for name, share in (("train", 0.7), ("validation", 0.1), ("test", 0.2)):
        assert abs(counts[name] / 4000 - share) < 0.03


def test_index_knows_thousands_of_pairs(tmp_path: Path) -> None:
    pytest.importorskip("duckdb")
    pytest.importorskip("idc_index_data")
    pairs = find_candidates("nlst", source_kernel="B30f", target_kernel="B50f")
    assert len(pairs) > 15000
    uids = [uid for pair in pairs for uid in (pair.source, pair.target)]
    assert len(set(uids)) == len(uids)
    assert {pair.licence for pair in pairs} == {"CC BY 4.0"}
    found = cohort_idc("nlst", source_kernel="B30f", target_kernel="B50f", count=100, output=tmp_path)
    assert (found.pairs, found.manifest) == (100, None)
    selection = json.loads((tmp_path / "selection.json").read_text())
    assert selection["pairs"] == len(selection["series"]) == 100
    assert selection["size_mb"] == pytest.approx(sum(pair["size_mb"] for pair in selection["series"]), abs=0.1)


def test_index_refuses_what_it_cannot_serve(tmp_path: Path) -> None:
    with pytest.raises(ConcordctError, match="known are nlst"):
        find_candidates("lidc_idri", source_kernel="B30f", target_kernel="B50f")
    pytest.importorskip("duckdb")
    pytest.importorskip("idc_index_data")
    with pytest.raises(ConcordctError, match="no pairs of Nope"):
        cohort_idc("nlst", source_kernel="Nope", target_kernel="B50f", count=1, output=tmp_path)


def test_any_collection_by_the_archives_table_of_ct_series(tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    data = pytest.importorskip("idc_index_data")
    known = find_candidates("nlst", source_kernel="B30f", target_kernel="B50f")[:3]
    schema = json.loads((Path(data.__file__).parent / "ct_index_schema.json").read_text())
    kinds = {"STRING": "varchar", "FLOAT": "double", "INTEGER": "bigint"}
    columns = [
        f"{one['name']} {kinds[one['type']]}{'[]' if one['mode'] == 'REPEATED' else ''}"
        for one in schema.get("columns", schema.get("schema", []))
    ]
    table = tmp_path / "ct_index.parquet"
    base = duckdb.connect()
    base.execute(f"create table ct ({', '.join(columns)})")
    for place, one in enumerate(known):
        for uid, kernel in ((one.source, "B30f"), (one.target, "B50f")):
            # The last pair's thickness differs: two protocols are no pair.
            thickness = 5.0 if place == 2 and kernel == "B50f" else 2.0
            base.execute(
                "insert into ct (SeriesInstanceUID, ConvolutionKernel, KVP, SliceThickness, PixelSpacing_row_mm, "
                "PixelSpacing_col_mm, Rows, Columns) values (?, ?, 120, ?, 0.7, 0.7, 512, 512)",
                [uid, [kernel], thickness],
            )
    base.execute(f"copy ct to '{table}' (format parquet)")
    found = find_candidates("nlst", source_kernel="B30f", target_kernel="B50f", ct_index=table)
    assert {(one.source, one.target, one.size_mb) for one in found} == {
        (one.source, one.target, one.size_mb) for one in known[:2]
    }
    assert {one.slice_thickness_mm for one in found} == {2.0}
    with pytest.raises(ConcordctError, match=r"expected at most 0\.001 GB"):
        cohort_idc("nlst", source_kernel="B30f", target_kernel="B50f", count=None, output=tmp_path / "out",
                   ct_index=table, most_gb=0.001, download=True)  # fmt: skip
    base.execute(f"copy (select 1 as x) to '{tmp_path / 'other.parquet'}' (format parquet)")
    with pytest.raises(ConcordctError, match="found another table"):
        find_candidates("any", source_kernel="a", target_kernel="b", ct_index=tmp_path / "other.parquet")
