"""The whole way on the command line: scans on disk, a model, standardized scans, a report; and what is refused."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from concordct.cli.common import hinted
from concordct.volumes.files import write_volume_file
from concordct.volumes.find import find_series
from concordct.volumes.manifest import PairRow, write_manifest
from concordct.volumes.new_series import SimulatedScan, write_new_series
from synthetic import PIXEL_MM, pair, volume

SUBJECTS = ("alpha", "beta", "gamma")


def run(*words: str | Path, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """concordct in a process of its own, as a user calls it."""
    command = [sys.executable, "-c", "from concordct.cli import main; main()", *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment, check=False)


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by relative path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="session")
def exams(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """exams/<subject>/<kernel>/*.dcm: three subjects, each scanned once and reconstructed with two kernels."""
    root = tmp_path_factory.mktemp("data") / "exams"
    for number, subject in enumerate(SUBJECTS):
        for series, (kernel, hu) in enumerate(zip(("Br40", "Bl64"), pair(seed=40 + number, size=160), strict=True)):
            scan = SimulatedScan(f"Secret{number}", f"scan-{number}", f"Chest {kernel}", series + 1, 120.0, 100.0)
            write_new_series(volume(hu, kernel=kernel), root / subject / kernel, scan)
    return root


@pytest.fixture(scope="session")
def model(exams: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "br40-to-bl64"
    found = run("calibrate", exams / "alpha" / "Br40", exams / "alpha" / "Bl64", "-o", path)
    assert found.returncode == 0, found.stderr
    assert "Br40 to Bl64" in found.stdout
    assert "lp/cm" in found.stdout
    return path


def test_help_shows_an_example_for_every_verb() -> None:
    verbs = ("inspect", "calibrate", "standardize", "evaluate", "demo", "features", "agree", "rois", "ibsi", "simulate")
    top = run("--help").stdout
    for verb in verbs:
        assert verb in top
        assert f"concordct {verb}" in run(verb, "--help").stdout
    assert "concordct cohort folder" in run("cohort", "folder", "--help").stdout
    assert "concordct cohort idc" in run("cohort", "idc", "--help").stdout
    assert run("--version").stdout.startswith("concordct ")


def test_inspect_lists_the_series(exams: Path) -> None:
    found = json.loads(run("inspect", exams, "--json").stdout)
    assert {(scan["path"], scan["kernel"]) for scan in found["scans"]} == {
        (f"{subject}/{kernel}", kernel) for subject in SUBJECTS for kernel in ("Br40", "Bl64")
    }
    assert all(scan["shape"] == [6, 160, 160] and not scan["problems"] for scan in found["scans"])
    assert "Bl64" in run("inspect", exams).stdout


def test_one_series_from_scan_to_report(exams: Path, model: Path, tmp_path: Path) -> None:
    source, target = (exams / "beta" / kernel for kernel in ("Br40", "Bl64"))
    done = run("standardize", source, "-m", model, "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    kinds = {path.suffix for path in (tmp_path / "out").iterdir()}
    assert kinds == {".dcm", ".json"}
    (series,) = find_series(tmp_path / "out").series
    assert series.shape == (6, 160, 160)
    found = run(
        "evaluate", "--source", source, "--standardized", tmp_path / "out", "--target", target,
        "-o", tmp_path / "report", "-m", model, "--origin", "simulated",
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    results = json.loads((tmp_path / "report" / "results.json").read_text())
    by_class = {row["class"]: row for row in results["agreement"]["per_class"]}
    assert by_class["glcm"]["standardized_ccc_mean"] > by_class["glcm"]["source_ccc_mean"] + 0.2
    assert results["provenance"]["simulated_or_real"] == "simulated"
    assert len(results["nps"]["bands"]) == 10
    assert (tmp_path / "report" / "report.html").stat().st_size < 15_000_000
    # The mean has less HU error than a sample; both say what they are.
    mean = run("standardize", source, "-m", model, "-o", tmp_path / "mean", "--mode", "mean")
    assert mean.returncode == 0
    record = json.loads((tmp_path / "mean" / "derivation.json").read_text())
    assert record["derivation"]["settings"]["mode"] == "mean"
    target_hu, mean_hu, sample_hu = (
        find_series(folder).series[0].read().hu for folder in (target, tmp_path / "mean", tmp_path / "out")
    )
    assert np.std(mean_hu - target_hu) < np.std(sample_hu - target_hu)


def test_a_scan_of_the_wrong_kernel_is_found_out_without_a_target(exams: Path, model: Path, tmp_path: Path) -> None:
    found = run("standardize", exams / "beta" / "Br40", "-m", model, "-o", tmp_path / "right", "--samples", "2")
    assert found.returncode == 0, found.stderr
    assert "self-check: scan of the calibrated kernel" in found.stdout
    assert "self-check: taken back" in found.stdout
    assert "beside it: right-mean" in found.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"right", "right-mean", "right-uncertainty"}
    # Sharp images in a file that names no kernel.
    sharp = tmp_path / "sharp.nrrd"
    write_volume_file(sharp, find_series(exams / "beta" / "Bl64").series[0].read())
    warned = run("standardize", sharp, "-m", model, "-o", tmp_path / "warned.nrrd")
    assert warned.returncode == 3
    assert "advice: compare kernel" in warned.stderr
    assert "self-check failed: scan not of the calibrated kernel" in warned.stderr
    refused = run("standardize", sharp, "-m", model, "-o", tmp_path / "refused.nrrd", "--check", "refuse")
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "self-check failed" in refused.stderr
    assert not list(tmp_path.glob("refused*"))


def test_a_tree_keeps_its_shape_and_resumes(exams: Path, model: Path, tmp_path: Path) -> None:
    done = run("standardize", exams, "-m", model, "-o", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(r["input"], r["status"]) for r in records if r["status"] == "done"] == [
        (f"{subject}/Br40", "done") for subject in SUBJECTS
    ]
    skipped = [r for r in records if r["status"] == "skipped"]
    assert {r["input"] for r in skipped} == {f"{subject}/Bl64" for subject in SUBJECTS}
    assert all("kernel Bl64" in r["reason"] for r in skipped)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["alpha", "beta", "gamma", "standardize.jsonl"]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.dcm")}
    again = run("standardize", exams, "-m", model, "-o", tmp_path / "out", "--json")
    assert again.stdout == done.stdout
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.dcm")}
    # Two processes make the same bytes as one.
    assert run("standardize", exams, "-m", model, "-o", tmp_path / "two", "-j", "2").returncode == 0
    assert digests(tmp_path / "two") == digests(tmp_path / "out")
    # Another seed is another result: it is refused, not mixed in, unless the user says so.
    other = run("standardize", exams, "-m", model, "-o", tmp_path / "out", "--seed", "5")
    assert other.returncode == 1
    assert "--overwrite" in other.stderr
    assert digests(tmp_path / "two") == {
        **digests(tmp_path / "out"),
        "standardize.jsonl": digests(tmp_path / "two")["standardize.jsonl"],
    }
    assert run("standardize", exams, "-m", model, "-o", tmp_path / "out", "--seed", "5", "--overwrite").returncode == 0
    assert digests(tmp_path / "two") != digests(tmp_path / "out")


def test_a_killed_batch_ends_as_an_undisturbed_one(exams: Path, model: Path, tmp_path: Path) -> None:
    words = ["standardize", str(exams), "-m", str(model), "-o"]
    assert run(*words, tmp_path / "whole").returncode == 0
    command = [sys.executable, "-c", "from concordct.cli import main; main()", *words, str(tmp_path / "killed")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if any((tmp_path / "killed").glob("*/Br40/derivation.json")):
            break
        time.sleep(0.005)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert run(*words, tmp_path / "killed").returncode == 0
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")


def test_a_series_that_fails_never_stops_the_others(exams: Path, model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "exams"
    shutil.copytree(exams, broken)
    victim = sorted((broken / "beta" / "Br40").glob("*.dcm"))[2]
    victim.write_bytes(victim.read_bytes()[:-5000])
    gap = sorted((broken / "gamma" / "Br40").glob("*.dcm"))[3]
    gap.unlink()
    done = run("standardize", broken, "-m", model, "-o", tmp_path / "out", "--json")
    assert done.returncode == 1
    records = {r["input"]: r for r in map(json.loads, done.stdout.splitlines())}
    assert records["alpha/Br40"]["status"] == "done"
    assert records["beta/Br40"]["status"] == "failed"
    assert records["gamma/Br40"]["status"] == "failed"
    assert "[gap]" in records["gamma/Br40"]["reason"]
    assert not (tmp_path / "out" / "beta").exists() or not any((tmp_path / "out" / "beta").iterdir())
    allowed = run("standardize", broken / "gamma" / "Br40", "-m", model, "-o", tmp_path / "gap", "--allow", "gap")
    assert allowed.returncode == 0, allowed.stderr
    assert "allowed: gap" in allowed.stderr
    assert json.loads((tmp_path / "gap" / "derivation.json").read_text())["allowed"][0]["code"] == "gap"


def test_a_volume_file_becomes_a_volume_file(model: Path, tmp_path: Path) -> None:
    a, _ = pair(seed=50, slices=3)
    image = sitk.GetImageFromArray(a.astype(np.int16))
    image.SetSpacing((PIXEL_MM, PIXEL_MM, 3.0))
    image.SetOrigin((-50.0, -60.0, 120.0))
    sitk.WriteImage(image, str(tmp_path / "scan.nii.gz"))
    for name in ("out.nii.gz", "out.nrrd", "out.mha"):
        done = run("standardize", tmp_path / "scan.nii.gz", "-m", model, "-o", tmp_path / name)
        assert done.returncode == 0, done.stderr
        out = sitk.ReadImage(str(tmp_path / name))
        assert out.GetSpacing() == pytest.approx(image.GetSpacing())
        assert out.GetOrigin() == pytest.approx(image.GetOrigin())
    one, other = (sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / n))) for n in ("out.nii.gz", "out.mha"))
    np.testing.assert_array_equal(one, other)
    record = json.loads((tmp_path / "out.mha.json").read_text())
    assert record["derivation"]["settings"]["seed"] == 0
    before = (tmp_path / "out.mha").stat().st_mtime_ns
    assert run("standardize", tmp_path / "scan.nii.gz", "-m", model, "-o", tmp_path / "out.mha").returncode == 0
    assert (tmp_path / "out.mha").stat().st_mtime_ns == before
    # Somebody else's file is never replaced.
    (tmp_path / "theirs.mha").write_bytes(b"precious")
    refused = run("standardize", tmp_path / "scan.nii.gz", "-m", model, "-o", tmp_path / "theirs.mha")
    assert refused.returncode == 2
    assert (tmp_path / "theirs.mha").read_bytes() == b"precious"


def test_pairs_of_a_manifest_calibrate_and_are_judged(exams: Path, tmp_path: Path) -> None:
    rows = [
        PairRow(
            pair=s,
            subject=s,
            split="test" if s == "gamma" else "train",
            source=exams / s / "Br40",
            target=exams / s / "Bl64",
        )
        for s in SUBJECTS
    ]
    write_manifest(tmp_path / "pairs.csv", rows)
    made = run("calibrate", "--pairs", tmp_path / "pairs.csv", "-o", tmp_path / "m", "--json")
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)["slices"] == 12
    judged = run(
        "evaluate",
        "--pairs",
        tmp_path / "pairs.csv",
        "-m",
        tmp_path / "m",
        "-o",
        tmp_path / "r",
        "--split",
        "all",
        "--json",
    )
    assert judged.returncode == 0, judged.stderr
    results = json.loads(judged.stdout)
    assert results["inputs"]["subjects"] == 3
    row = next(r for r in results["agreement"]["per_class"] if r["class"] == "glcm")
    low, high = row["standardized_ccc_interval"]
    assert low <= row["standardized_ccc_mean"] <= high


def test_features_of_a_manifest_are_measured_and_agree(exams: Path, model: Path, tmp_path: Path) -> None:
    found = run("cohort", "folder", exams, "--kernel", "Br40", "--kernel", "Bl64", "-o", tmp_path / "cohort", "--json")
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["pairs"] == 3
    manifest = tmp_path / "cohort" / "pairs.csv"
    assert "Secret" not in manifest.read_text()
    for name, more in (("source", ()), ("target", ("--target",))):
        words = ("features", "--pairs", manifest, "--preset", "pyradiomics-default", "-o", tmp_path / f"{name}.csv")
        done = run(*words, *more)
        assert done.returncode == 0, done.stderr
        assert "3 ROIs of 3 images" in done.stdout
    agreed = run("agree", tmp_path / "source.csv", tmp_path / "target.csv", "-o", tmp_path / "report", "--json")
    assert agreed.returncode == 0, agreed.stderr
    classes = {row["class"]: row for row in json.loads(agreed.stdout)["agreement"]["per_class"]}
    assert classes["shape"]["standardized_ccc_undefined"] == classes["shape"]["features"]  # one box, three times
    assert classes["glcm"]["standardized_ccc_mean"] < 0.9
    drawn = run("rois", exams / "beta" / "Br40", "--size", "12", "--random", "3", "-o", tmp_path / "rois.nii.gz")
    assert drawn.returncode == 0, drawn.stderr
    judged = run(
        "evaluate", "--source", exams / "beta" / "Br40", "--standardized", exams / "beta" / "Br40",
        "--target", exams / "beta" / "Bl64", "--mask", tmp_path / "rois.nii.gz", "-o", tmp_path / "masked", "--json",
    )  # fmt: skip
    assert judged.returncode == 0, judged.stderr
    assert json.loads(judged.stdout)["image_quality"]["region"] == "inside the given masks"


def test_calibration_without_pairs(exams: Path, tmp_path: Path) -> None:
    for kernel in ("Br40", "Bl64"):
        for subject in SUBJECTS:
            shutil.copytree(exams / subject / kernel, tmp_path / kernel / subject)
    made = run("calibrate", tmp_path / "Br40", tmp_path / "Bl64", "--unpaired", "-o", tmp_path / "m", "--json")
    assert made.returncode == 0, made.stderr
    assert 0 < json.loads(made.stdout)["transfer_error_median"] < 0.2
    f = np.linspace(0, 8, 41)
    for name, width in (("soft", 3.0), ("sharp", 6.0)):
        table = "f_lp_cm,mtf\n" + "".join(f"{x},{np.exp(-((x / width) ** 2))}\n" for x in f)
        (tmp_path / f"{name}.csv").write_text(table)
    made = run("calibrate", tmp_path / "soft.csv", tmp_path / "sharp.csv", "--tables", "-o", tmp_path / "t")
    assert made.returncode == 0, made.stderr
    assert "not measured" in made.stdout


def test_names_of_patients_go_nowhere(exams: Path, model: Path, tmp_path: Path) -> None:
    source, target = (exams / "beta" / kernel for kernel in ("Br40", "Bl64"))
    said = [
        run("inspect", exams),
        run("standardize", exams, "-m", model, "-o", tmp_path / "out"),
        run(
            "evaluate",
            "--source",
            source,
            "--standardized",
            tmp_path / "out" / "beta" / "Br40",
            "--target",
            target,
            "-o",
            tmp_path / "r",
        ),
    ]
    texts = [one.stdout + one.stderr for one in said]
    texts += [
        path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.suffix in {".json", ".jsonl", ".html"}
    ]
    texts += [str(path) for path in (tmp_path / "out").rglob("*")]
    assert not any("Secret" in text for text in texts)
    # The patient stays the patient inside the objects.
    derived = pydicom.dcmread(next((tmp_path / "out" / "beta").rglob("*.dcm")))
    assert "Secret1" in str(derived.PatientName)


BAD = {
    "missing": "no such",
    "empty folder": "expected a CT series or volume, found none",
    "text": "expected a CT series or volume, found none",
    "zero bytes": "expected a CT series or volume, found none",
    "truncated": "",
    "no CT": "expected a CT series or volume, found none",
    "NaN": "NaN",
    "vectors": "per voxel",
    "two dimensions": "dimensions",
    "bomb": "",
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_gets_one_clear_line(kind: str, exams: Path, model: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.nii.gz"
    out = tmp_path / "out.nii.gz"
    if kind == "missing":
        bad = tmp_path / "nowhere"
    elif kind in {"empty folder", "text", "zero bytes", "no CT", "truncated"}:
        bad, out = tmp_path / "bad", tmp_path / "out"
        bad.mkdir()
        original = next((exams / "alpha" / "Br40").glob("*.dcm"))
        if kind == "text":
            (bad / "a.txt").write_text("no scan")
        elif kind == "zero bytes":
            (bad / "a.dcm").write_bytes(b"")
        elif kind == "truncated":
            (bad / "a.dcm").write_bytes(original.read_bytes()[:-1000])
        elif kind == "no CT":
            dataset = pydicom.dcmread(original)
            dataset.Modality, dataset.SOPClassUID = "MR", "1.2.840.10008.5.1.4.1.1.4"
            dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
            dataset.save_as(bad / "a.dcm")
    elif kind == "NaN":
        sitk.WriteImage(sitk.GetImageFromArray(np.full((2, 16, 16), np.nan, np.float32)), str(bad))
    elif kind == "vectors":
        sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, 16, 16, 3), np.float32), isVector=True), str(bad))
    elif kind == "two dimensions":
        sitk.WriteImage(sitk.GetImageFromArray(np.zeros((16, 16), np.float32)), str(bad))
    elif kind == "bomb":
        # A NIfTI header of 60000 x 60000 x 60000 voxels over a few bytes.
        sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, 16, 16), np.int16)), str(bad))
        raw = bytearray(gzip.decompress(bad.read_bytes()))
        raw[42:48] = np.array([30000, 30000, 30000], "<i2").tobytes()
        bad.write_bytes(gzip.compress(bytes(raw)))
    found = run("standardize", bad, "-m", model, "-o", out)
    assert found.returncode == 2, found.stdout
    assert "Traceback" not in found.stderr
    assert len(found.stderr.strip().splitlines()) == 1, found.stderr
    assert BAD[kind] in found.stderr
    assert bad.name in found.stderr
    assert not out.exists()


def test_the_output_never_touches_the_input(exams: Path, model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "exam"
    shutil.copytree(exams / "alpha" / "Br40", copy)
    before = digests(copy)
    for out in (copy, copy / "inside", tmp_path):
        refused = run("standardize", copy, "-m", model, "-o", out)
        assert refused.returncode == 2
        assert digests(copy) == before
        assert not list(tmp_path.glob("*.json*"))


def test_a_scan_of_another_kernel_is_found_out(exams: Path, model: Path, tmp_path: Path) -> None:
    wrong = exams / "alpha" / "Bl64"
    refused = run("standardize", wrong, "-m", model, "-o", tmp_path / "out")
    assert refused.returncode == 2
    assert "kernel Bl64, while the model converts from Br40" in refused.stderr
    done = run("standardize", wrong, "-m", model, "-o", tmp_path / "out", "--any-kernel")
    assert done.returncode == 3, done.stderr
    assert "kernel Bl64" in done.stderr


def test_pairs_that_are_none_are_refused(exams: Path, tmp_path: Path) -> None:
    other = run("calibrate", exams / "alpha" / "Br40", exams / "beta" / "Bl64", "-o", tmp_path / "m")
    assert other.returncode == 2
    assert "frames of reference" in other.stderr
    assert not (tmp_path / "m").exists()
    neither = run("calibrate", "-o", tmp_path / "m")
    assert neither.returncode == 2
    nothing = run("standardize", exams / "alpha" / "Br40", "-m", tmp_path, "-o", tmp_path / "out")
    assert nothing.returncode == 2
    assert "expected a model folder" in nothing.stderr


def test_a_full_disk_leaves_nothing_half_written(exams: Path, model: Path, small_disk: Callable[[str], Path]) -> None:
    small = small_disk("200k")
    found = run("standardize", exams / "alpha" / "Br40", "-m", model, "-o", small / "out")
    assert found.returncode == 2
    assert len(found.stderr.strip().splitlines()) == 1
    assert "space" in found.stderr
    assert not any(small.iterdir())


def test_the_command_line_adds_the_option_to_a_refusal() -> None:
    assert hinted("out: holds another result\n[exists]") == "out: holds another result (--overwrite replaces it)"
    assert hinted("a gap of 3 mm [gap]") == "a gap of 3 mm [gap]"
