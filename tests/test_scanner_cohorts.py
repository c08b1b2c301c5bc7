"""Cohorts: counts of the recipes, same bytes whatever the workers, resuming, DICOM that the judge accepts."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest

from concordct.errors import ConcordctError
from concordct.pipelines.engines import Local
from concordct.pipelines.simulate import plan_recipe, plan_simulation, simulate
from concordct.scanner.acquisition import Acquisition
from concordct.scanner.cohorts import SimulationJob
from concordct.scanner.frame import Frame, Stack
from concordct.scanner.phantom import chest_phantom
from concordct.scanner.scan import simulate_pair
from concordct.volumes.find import find_series
from concordct.volumes.manifest import read_manifest
from concordct.volumes.new_series import SimulatedScan, write_new_series
from concordct.volumes.pairing import check_pair
from concordct.volumes.volume import Volume

FAST = Acquisition(views=240, channel_mm=1.0, field_mm=460.0, row_mm=2.5, mas=150.0)
KERNELS = ("B30f", "B50f")


def small_jobs(subjects: str = "phantom", count: int = 2) -> tuple[SimulationJob, ...]:
    return plan_simulation(
        subjects,
        kernels=KERNELS,
        slice_thickness_mm=(2.5, 5.0),
        seed=3,
        count=count,
        slices=2,
        matrix=96,
        pixel_mm=4.0,
        acquisition=FAST,
    )


def tree(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cohort")
    simulate(small_jobs(), folder)
    return folder


def test_recipes_have_the_papers_counts() -> None:
    jobs = plan_recipe("ltdiffpp", seed=1)
    patients = [job for job in jobs if job.subject == "patient"]
    assert len(patients) == 70
    assert sum(job.slices for job in patients) == 38048
    phantom = [job for job in jobs if job.subject == "phantom"]
    assert 2 * sum(job.slices for job in phantom) == 5280
    assert {s.thickness_mm for job in phantom for s in job.stacks} == {0.625, 1.25, 3.75, 5.0}
    jobs = plan_recipe("diffusionct", seed=1)
    patients = [job for job in jobs if job.subject == "patient"]
    assert len(patients) == 14
    assert 2 * sum(job.slices for job in patients) == 9886
    train = [job for job in jobs if job.subject == "phantom" and job.split == "train"]
    assert 2 * sum(job.slices for job in train) == 9900
    test = [job for job in jobs if job.split == "test"]
    assert 2 * sum(job.slices for job in test) == 126
    assert {s.thickness_mm for job in test for s in job.stacks} == {5.0}


@pytest.mark.parametrize("name", ["ltdiffpp", "diffusionct", "small"])
def test_recipes_split_by_subject_and_stay_in_the_chest(name: str) -> None:
    jobs = plan_recipe(name, seed=4)
    splits: dict[str, str] = {}
    for job in jobs:
        assert splits.setdefault(job.subject_name, job.split) == job.split
        for stack in job.stacks:
            assert stack.z_mm[0] - stack.thickness_mm / 2 >= -1e-6
    assert len({job.folder for job in jobs}) == len(jobs)


def test_small_recipe_holds_a_kernel_family_back() -> None:
    families = {split: set() for split in ("train", "held-out")}
    for job in plan_recipe("small", seed=1):
        if job.split in families:
            families[job.split] |= set(job.kernels)
    assert not families["train"] & families["held-out"]


def test_cohort_reads_back_as_pairs(cohort: Path) -> None:
    rows = read_manifest(cohort / "pairs.csv")
    assert len(rows) == 4
    series = {one.folder: one for one in find_series(cohort).series}
    for row in rows:
        source, target = series[row.source], series[row.target]
        assert (source.kernel, target.kernel) == KERNELS == (row.source_kernel, row.target_kernel)
        assert not source.problems
        assert source.slice_thickness_mm == row.slice_thickness_mm
        assert check_pair(source, target).correlation > 0.99
        assert row.mask is not None
    text = (cohort / "phantom-0000" / "scan-0" / "scan.json").read_text()
    stored = json.loads(text)
    assert stored["acquisition"]["mas"] == 150.0
    assert stored["kernels"][0]["mtf50_lp_cm"] > 0
    assert str(cohort) not in text


def test_workers_change_no_byte_and_a_killed_run_resumes(cohort: Path, tmp_path: Path) -> None:
    expected = tree(cohort)
    simulate(small_jobs(), tmp_path / "two", engine=Local(2))
    assert tree(tmp_path / "two") == expected
    shutil.copytree(cohort, tmp_path / "killed")
    shutil.rmtree(tmp_path / "killed" / "phantom-0001")
    (tmp_path / "killed" / "pairs.csv").unlink()
    seen = []
    done = simulate(small_jobs(), tmp_path / "killed", progress=lambda k, n: seen.append((k, n)))
    assert (done.made, done.scans) == (1, 2)
    assert seen[0] == (4, 8)
    assert seen[-1] == (8, 8)
    assert tree(tmp_path / "killed") == expected


def test_another_cohort_does_not_mix_in(cohort: Path, tmp_path: Path) -> None:
    with pytest.raises(ConcordctError, match="another cohort"):
        simulate(small_jobs(count=1), cohort)
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(ConcordctError, match="not empty"):
        simulate(small_jobs(count=1), tmp_path)


def test_nifti_cohort_without_partner(tmp_path: Path) -> None:
    jobs = plan_simulation(
        "phantom",
        kernels=("B30f",),
        slice_thickness_mm=(5.0,),
        seed=1,
        slices=1,
        matrix=64,
        pixel_mm=6.0,
        acquisition=FAST,
    )
    result = simulate(jobs, tmp_path, file_format="nifti")
    (row,) = read_manifest(result.manifest)
    assert row.target is None
    assert row.source.name == "B30f.nii.gz"
    assert any("aliases" in text for text in result.warnings)


def test_second_scan_has_other_noise_and_slabs_share_raw_data() -> None:
    body = chest_phantom()
    frame = Frame((96, 96), 4.0)

    def scan(stack: Stack, number: int = 0) -> np.ndarray:
        return simulate_pair(body, FAST, frame=frame, stack=stack, kernels=("B50f",), seed=1, scan=number)["B50f"].hu

    both = scan(Stack(2, 2.5, 2.5, 151.25))
    assert np.array_equal(scan(Stack(1, 2.5, 2.5, 153.75))[0], both[1])
    other = scan(Stack(2, 2.5, 2.5, 151.25), 1)
    difference = (other - both)[:, 40:56, 40:56]
    assert 1.0 < difference.std() < 200.0
    # Averaging in the raw data is, but for rounding, averaging the images of this linear reconstruction.
    thick = scan(Stack(1, 5.0, 5.0, 152.5))[0]
    # Where nothing was clipped at -1024 HU.
    inside = both.min(axis=0) > -900
    assert np.abs(thick - both.mean(axis=0))[inside].max() <= 1.0


def test_series_is_valid_dicom_without_dates(cohort: Path) -> None:
    path = sorted(cohort.rglob("*.dcm"))[0]
    dataset = pydicom.dcmread(path)
    assert dataset.Manufacturer == "concordct virtual scanner"
    assert dataset.StudyDate == ""
    assert dataset.PatientID == "phantom-0000"
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy not installed")
    report = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
    assert "Error" not in report.stderr + report.stdout


def test_new_series_refuses_what_it_cannot_hold(tmp_path: Path) -> None:
    scan = SimulatedScan("phantom-0001", "scan-0", "B30f", 1, 120.0, 100.0)
    hu = np.full((1, 8, 8), 5000.0, dtype=np.float32)
    with pytest.raises(ConcordctError, match="found values from 5000"):
        write_new_series(Volume(hu, np.eye(4)[[2, 1, 0, 3]]), tmp_path / "a", scan)
    assert not (tmp_path / "a").exists()
    volume = Volume(np.zeros((2, 8, 8), dtype=np.float32), np.eye(4)[[2, 1, 0, 3]], kernel="Br40\\3")
    paths = write_new_series(volume, tmp_path / "b", scan)
    assert list(pydicom.dcmread(paths[0]).ConvolutionKernel) == ["Br40", "3"]
    with pytest.raises(ConcordctError):
        write_new_series(volume, tmp_path / "b", scan)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slice_thickness_mm": (-1.0,)}, "above 0 mm"),
        ({"slice_thickness_mm": (1.0, 1.001)}, "share no detector row"),
        ({"kernels": ("Br40", "Br40")}, "different kernels"),
        ({"kernels": ("Nope",)}, "unknown kernel"),
        ({"count": 0}, "at least 1"),
        ({"mas": -20.0}, "allowed 1 to 2000 mAs"),
        ({"kvp": 20.0}, "allowed 70 to 150 kV"),
        ({"geometry": "cone"}, "known are fan, parallel"),
    ],
)
def test_impossible_plans_name_the_range(change: dict, message: str) -> None:
    settings = {"kernels": ("Br40", "Bl64"), "slice_thickness_mm": (1.0,), "seed": 1, "slices": 1}
    with pytest.raises(ConcordctError, match=message):
        plan_simulation("phantom", **{**settings, **change})


def test_slice_thinner_than_the_row_is_refused() -> None:
    with pytest.raises(ConcordctError, match=r"at least 2.5 mm is allowed"):
        simulate_pair(
            chest_phantom(), FAST, frame=Frame((64, 64), 6.0), stack=Stack(1, 1.0, 1.0), kernels=("B30f",), seed=1
        )
