"""Standardizing scans: what is resumed, what is refused, what a record says."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray

from concordct.errors import ConcordctError
from concordct.judging.case import one_case
from concordct.methods.models import load_model
from concordct.pipelines.calibrate import calibrate_pairs, pairs_of_paths
from concordct.pipelines.evaluate import evaluate
from concordct.pipelines.standardize import Record, Settings, plan, run
from concordct.training.bundle import Bundle, load_bundle, save_bundle
from concordct.volumes.files import open_volume_file, write_volume_file
from concordct.volumes.new_series import SimulatedScan, write_new_series
from concordct.volumes.scans import find_scans
from synthetic import pair, volume

MEAN = Settings(mode="mean")


@pytest.fixture(scope="module")
def exam(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """exam/Br40 and exam/Bl64: six slices in two kernels."""
    root = tmp_path_factory.mktemp("exam")
    for kernel, hu in zip(("Br40", "Bl64"), pair(seed=3, size=96), strict=True):
        scan = SimulatedScan("Nobody", "scan", f"Chest {kernel}", 1, 120.0, 100.0)
        write_new_series(volume(hu, kernel=kernel), root / kernel, scan)
    return root


@pytest.fixture(scope="module")
def model(exam: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "br40-to-bl64"
    calibrate_pairs(pairs_of_paths(exam / "Br40", exam / "Bl64"), path, method="spectral")
    return path


def standardize(source: Path, model: Path, output: Path, settings: Settings = MEAN) -> tuple[Record, ...]:
    loaded = load_model(model)
    return run(plan(source, output, loaded, settings), loaded, output, settings)


@pytest.mark.parametrize("damage", ["missing", "cut short"])
def test_a_damaged_result_is_not_called_done(damage: str, exam: Path, model: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert standardize(exam / "Br40", model, output)[0].status == "done"
    victim = output / "0002.dcm"
    if damage == "missing":
        victim.unlink()
    else:
        victim.write_bytes(victim.read_bytes()[:500])
    record = standardize(exam / "Br40", model, output)[0]
    assert record.status == "failed"
    assert "0002.dcm" in str(record.reason)
    again = Settings(mode="mean", overwrite=True)
    assert standardize(exam / "Br40", model, output, again)[0].status == "done"
    assert pydicom.dcmread(victim).pixel_array.shape == (96, 96)


def test_a_volume_that_was_removed_is_made_again(exam: Path, model: Path, tmp_path: Path) -> None:
    source, output = tmp_path / "ct.nii.gz", tmp_path / "out.nii.gz"
    write_volume_file(source, volume(pair(seed=3, size=96)[0]))
    first = standardize(source, model, output)[0]
    before = open_volume_file(output).read().hu
    output.unlink()
    assert standardize(source, model, output)[0] == first
    assert np.array_equal(open_volume_file(output).read().hu, before)


def test_a_slice_that_cannot_be_used_is_named(exam: Path, model: Path, tmp_path: Path) -> None:
    source = tmp_path / "in"
    shutil.copytree(exam / "Br40", source)
    last = sorted(source.glob("*.dcm"))[-1]
    last.write_bytes(last.read_bytes()[:40])
    record = standardize(source, model, tmp_path / "out")[0]
    assert record.status == "done"
    assert "not used in its folder: 1 x not a DICOM file" in record.notes


def test_a_scan_that_fails_while_it_is_written_leaves_nothing_and_changes_nothing(
    exam: Path, model: Path, tmp_path: Path
) -> None:
    source, output = tmp_path / "in", tmp_path / "out.nii.gz"
    shutil.copytree(exam / "Br40", source)
    last = sorted(source.glob("*.dcm"))[-1]
    whole = last.read_bytes()
    last.write_bytes(whole[:-300])
    assert standardize(source, model, output)[0].status == "failed"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]

    last.write_bytes(whole)
    assert standardize(source, model, output)[0].status == "done"
    before = {path.name: path.read_bytes() for path in tmp_path.glob("out*")}
    last.write_bytes(whole[:-300])
    assert standardize(source, model, output, Settings(mode="mean", overwrite=True))[0].status == "failed"
    assert {path.name: path.read_bytes() for path in tmp_path.glob("out*")} == before


def test_a_broken_volume_fails_beside_a_whole_one(exam: Path, model: Path, tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    write_volume_file(source / "good.nii.gz", volume(pair(seed=3, size=96)[0]))
    (source / "bad.nii.gz").write_bytes(b"no volume")
    records = {record.input: record for record in standardize(source, model, output)}
    assert {name: record.status for name, record in records.items()} == {"good.nii.gz": "done", "bad.nii.gz": "failed"}
    assert records["bad.nii.gz"].reason
    assert len((output / "standardize.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("kind", ["labels", "stored values without rescale", "scaled to 1"])
def test_a_volume_that_holds_no_hu_is_refused(kind: str, model: Path, tmp_path: Path) -> None:
    hu = pair(seed=3, size=96)[0]
    values = {
        "labels": (hu > 0).astype(np.uint8),
        "stored values without rescale": np.clip(hu + 1024, 0, 4095).astype(np.uint16),
        "scaled to 1": (np.clip(hu, -1000, 1000) / 1000).astype(np.float32),
    }[kind]
    source = tmp_path / "a.nrrd"
    sitk.WriteImage(sitk.GetImageFromArray(values), str(source))
    record = standardize(source, model, tmp_path / "b.nrrd")[0]
    assert record.status == "failed"
    assert "expected HU" in str(record.reason)
    assert not (tmp_path / "b.nrrd").exists()
    allowed = Settings(mode="mean", allow=frozenset({"units"}))
    assert standardize(source, model, tmp_path / "b.nrrd", allowed)[0].status == "done"
    assert json.loads((tmp_path / "b.nrrd.json").read_text())["derivation"]["settings"]["allowed"] == ["units"]


def test_dicom_without_its_intercept_is_refused(exam: Path, model: Path, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for path in (exam / "Br40").glob("*.dcm"):
        dataset = pydicom.dcmread(path)
        stored = np.clip(dataset.pixel_array + float(dataset.RescaleIntercept) + 1024, 0, 4095)
        dataset.PixelData = stored.astype("<u2").tobytes()
        dataset.PixelRepresentation, dataset.RescaleIntercept = 0, 0
        dataset.save_as(source / path.name)
    record = standardize(source, model, tmp_path / "out")[0]
    assert record.status == "failed"
    assert "expected HU" in str(record.reason)


def test_what_was_standardized_is_not_standardized_again(exam: Path, model: Path, tmp_path: Path) -> None:
    # A model of unnamed kernels converts from any; its own results are none.
    unnamed = tmp_path / "unnamed"
    for name, hu in zip(("a.nii", "b.nii"), pair(seed=3, size=96), strict=True):
        write_volume_file(tmp_path / name, volume(hu))
    calibrate_pairs(pairs_of_paths(tmp_path / "a.nii", tmp_path / "b.nii"), unnamed, method="spectral")
    standardize(exam / "Br40", unnamed, tmp_path / "once")
    with pytest.raises(ConcordctError, match="standardized by concordct already"):
        standardize(tmp_path / "once", unnamed, tmp_path / "twice")


@pytest.mark.parametrize("output", ["out", "out.nii.gz"])
def test_a_source_rewritten_since_is_noticed_and_a_copy_of_it_is_not(
    exam: Path, model: Path, tmp_path: Path, output: str
) -> None:
    shutil.copytree(exam / "Br40", tmp_path / "in")
    (before,) = standardize(tmp_path / "in", model, tmp_path / output)
    slices = sorted((tmp_path / "in").glob("*.dcm"))
    os.utime(slices[0])  # as by a copy: newer, and the same
    (again,) = standardize(tmp_path / "in", model, tmp_path / output)
    assert (again.status, again.stood, again.pixels_sha256) == ("done", True, before.pixels_sha256)
    dataset = pydicom.dcmread(slices[0])
    dataset.PixelData = np.roll(dataset.pixel_array, 3, axis=0).tobytes()
    dataset.save_as(slices[0])
    (other,) = standardize(tmp_path / "in", model, tmp_path / output)
    assert other.status == "failed"
    assert "its source was rewritten since" in str(other.reason)


def test_finer_pixels_than_calibrated_are_noted(model: Path, tmp_path: Path) -> None:
    source = tmp_path / "a.nii"
    write_volume_file(source, volume(pair(seed=3, size=96)[0], pixel_mm=0.4))
    notes = standardize(source, model, tmp_path / "b.nii")[0].notes
    assert any("pixels of 0.4 mm, calibrated at 0.8 mm" in note for note in notes)


def _edit(model: Path, copy: Path, name: str, value: Any) -> None:
    """A copy of a model with one tensor or one number changed and the checksum made to fit."""
    bundle = load_bundle(model)
    tensors, metadata = dict(bundle.tensors), json.loads(json.dumps(dict(bundle.metadata)))
    if name in tensors:
        tensors[name] = value(tensors[name].copy())
    else:
        *path, last = name.split(".")
        place = metadata
        for part in path:
            place = place[part]
        place[last] = value
    save_bundle(Bundle(tensors, metadata), copy, card="edited")


def _nan_at_7(array: NDArray[Any]) -> NDArray[Any]:
    array.flat[7] = np.nan
    return array


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("transfer", _nan_at_7),
        ("single", _nan_at_7),
        ("noise_nps_mm2", _nan_at_7),
        ("single", lambda array: array[:5]),
        ("transfer", lambda array: array[0]),
        ("transfer", lambda array: 2 * array),
        ("frequency_lp_cm", lambda array: array[::-1].copy()),
        ("info", []),
        ("slice_spacing_mm", 0),
        ("slice_spacing_mm", "x"),
        ("noise.gain", "x"),
        ("noise.gain", "NaN"),
        ("noise.exponent", 99),
        ("noise.z_correlation", 0.9),
    ],
)
def test_a_model_with_impossible_numbers_is_refused(name: str, value: Any, model: Path, tmp_path: Path) -> None:
    load_model(model)
    _edit(model, tmp_path / "edited", name, value)
    with pytest.raises(ConcordctError, match="expected") as refused:
        load_model(tmp_path / "edited")
    assert "edited" in str(refused.value)


def test_a_rois_file_of_another_place_is_refused(exam: Path, model: Path, tmp_path: Path) -> None:
    standardize(exam / "Br40", model, tmp_path / "out")
    source = find_scans(exam / "Br40").scans[0]
    labels = np.zeros(source.shape, np.float32)
    labels[:, 30:60, 30:60] = 1
    here, there = source.read(), source.read()
    there.affine[0, 3] += 0.3 * source.spacing_mm[2]
    for name, place in (("here", here), ("there", there)):
        write_volume_file(tmp_path / f"{name}.nii.gz", place.with_hu(labels))
    paths = (exam / "Br40", tmp_path / "out", exam / "Bl64")
    with pytest.raises(ConcordctError, match="another geometry"):
        evaluate(one_case(*paths, tmp_path / "there.nii.gz"), tmp_path / "report")
    assert not (tmp_path / "report").exists()
    results = evaluate(one_case(*paths, tmp_path / "here.nii.gz"), tmp_path / "report")
    assert results["image_quality"]["region"] == "inside the given masks"
    assert not any("equals the source" in warning for warning in results["warnings"])


def test_a_scan_judged_against_itself_is_pointed_out(exam: Path, tmp_path: Path) -> None:
    results = evaluate(one_case(exam / "Br40", exam / "Br40", exam / "Bl64", None), tmp_path / "report")
    assert any("standardized scan equals the source" in warning for warning in results["warnings"])


def test_a_part_of_the_path_that_is_a_file_is_named(exam: Path, model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    record = standardize(exam / "Br40", model, tmp_path / "file" / "out")[0]
    assert record.status == "failed"
    assert "a part of the path is not a folder" in str(record.reason)


def test_overwriting_spares_what_no_run_made(exam: Path, model: Path, tmp_path: Path) -> None:
    kept = tmp_path / "data" / "kept.txt"
    kept.parent.mkdir()
    kept.write_text("not ours")
    record = standardize(exam / "Br40", model, kept.parent, Settings(mode="mean", overwrite=True))[0]
    assert record.status == "failed"
    assert "no earlier run made it" in str(record.reason)
    with pytest.raises(ConcordctError, match="no earlier run made it"):
        calibrate_pairs(pairs_of_paths(exam / "Br40", exam / "Bl64"), kept.parent, method="spectral", overwrite=True)
    assert kept.read_text() == "not ours"


def test_a_scan_is_no_pair_with_itself(exam: Path, tmp_path: Path) -> None:
    with pytest.raises(ConcordctError, match="found the same twice"):
        calibrate_pairs(pairs_of_paths(exam / "Br40", exam / "Br40"), tmp_path / "model")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_workers_end_with_a_killed_run(tmp_path: Path) -> None:
    program = tmp_path / "pool.py"
    program.write_text(
        "import os, sys, time\n"
        "from concordct.volumes.workers import worker_pool\n"
        "if __name__ == '__main__':\n"
        "    with worker_pool(1) as pool:\n"
        "        print(pool.submit(os.getpid).result(), flush=True)\n"
        "        time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        worker = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        process.wait()
        for _ in range(100):
            try:
                os.kill(worker, 0)
                state = Path(f"/proc/{worker}/stat").read_text().rsplit(")", 1)[1].split()[0]
            except (ProcessLookupError, FileNotFoundError):
                break
            if state == "Z":
                break
            time.sleep(0.1)
        else:
            pytest.fail("the worker outlived its run")
