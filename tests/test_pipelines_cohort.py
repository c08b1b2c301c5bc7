"""Cohorts of real pairs: the archive's index and folders of one's own."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from concordct.errors import ConcordctError
from concordct.judging.case import cases_of_manifest, open_pair
from concordct.pipelines.cohort import cohort_folder, split_of
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


def test_pairs_of_two_frames_are_let_pass_wherever_pairs_are_read(shared_data: Path, tmp_path: Path) -> None:
    kernels = {"source_kernel": "FC51", "target_kernel": "FC13"}
    chest = shared_data / "canon_chest_phantom"
    refused = cohort_folder(chest, **kernels, output=tmp_path / "none")
    assert refused.pairs == 0
    found = cohort_folder(chest, **kernels, output=tmp_path / "out", allow={"frames"})
    assert (found.pairs, found.failures) == (1, ())
    assert found.manifest is not None
    (case,) = cases_of_manifest(found.manifest, split=None)
    with pytest.raises(ConcordctError, match=r"two frames of reference.*\[frames\]"):
        open_pair(case)
    assert open_pair(case, allow={"frames"}).source.shape == (2, 512, 512)


def test_splits_are_by_name_and_near_their_shares() -> None:
    counts = Counter(split_of(f"subject-{k}") for k in range(4000))
    assert split_of("subject-7") == split_of("subject-7")
    for name, share in (("train", 0.7), ("validation", 0.1), ("test", 0.2)):
        assert abs(counts[name] / 4000 - share) < 0.03
