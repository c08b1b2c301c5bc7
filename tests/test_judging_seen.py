"""Judging a scan that the calibration saw, a scan of another kernel, a result in the place of a target."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from concordct.errors import ConcordctError
from concordct.judging.case import Case, Pair
from concordct.judging.regions import body_grid, roi_edge
from concordct.judging.seen import CALIBRATED_ON, check_kernels, check_roles, is_result, seen_in_calibration
from concordct.methods.models import Model, load_model
from concordct.pipelines.calibrate import calibrate_pairs, pairs_of_paths
from concordct.pipelines.compare import compare
from concordct.pipelines.evaluate import evaluate
from concordct.pipelines.standardize import Settings, plan, run
from concordct.training.bundle import save_bundle
from concordct.volumes.files import write_volume_file
from concordct.volumes.identity import Identity, identity
from concordct.volumes.manifest import PairRow, write_manifest
from concordct.volumes.new_series import SimulatedScan, write_new_series
from concordct.volumes.scans import one_scan
from synthetic import pair, volume


@pytest.fixture(scope="module")
def exams(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two exams in two kernels, and the first six of eight slices of one as an exam of its own."""
    root = tmp_path_factory.mktemp("seen")
    for number, name in enumerate(("alpha", "beta")):
        for series, (kernel, hu) in enumerate(zip(("Br40", "Bl64"), pair(seed=number, size=96, slices=8), strict=True)):
            scan = SimulatedScan(name, f"scan-{number}", f"Chest {kernel}", series + 1, 120.0, 100.0)
            write_new_series(volume(hu, kernel=kernel), root / name / kernel, scan)
    for kernel in ("Br40", "Bl64"):
        for part, files in (("first", slice(0, 6)), ("rest", slice(6, 8))):
            (root / part / kernel).mkdir(parents=True)
            for path in sorted((root / "alpha" / kernel).glob("*.dcm"))[files]:
                shutil.copyfile(path, root / part / kernel / path.name)
    return root


@pytest.fixture(scope="module")
def model(exams: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tmp_path_factory.mktemp("seen-model") / "m"
    calibrate_pairs(pairs_of_paths(exams / "first" / "Br40", exams / "first" / "Bl64"), path, method="spectral")
    return load_model(path)


def test_how_close_a_judged_scan_is_to_the_calibration(exams: Path, model: Model) -> None:
    info = model.bundle.metadata["info"]

    def seen(name: str):  # type: ignore[no-untyped-def]
        return seen_in_calibration(info, [one_scan(exams / name / kernel) for kernel in ("Br40", "Bl64")])

    whole, rest, other = seen("alpha"), seen("rest"), seen("beta")
    assert (whole.closeness, whole.slices, whole.of, whole.scans) == ("slices", 12, 16, 2)
    assert "in-sample: the model was calibrated on 12 of the 16 judged slices" in whole.said
    assert (rest.closeness, rest.slices) == ("series", 0)
    assert other is None
    assert seen_in_calibration({}, [one_scan(exams / "alpha" / "Br40")]) is None


def test_a_model_holds_no_uid(exams: Path, model: Model) -> None:
    text = json.dumps(model.bundle.metadata["info"])
    scan = one_scan(exams / "first" / "Br40")
    assert scan.uid not in text  # type: ignore[union-attr]
    assert scan.frame_of_reference_uid not in text  # type: ignore[union-attr]
    assert all(ref.sop_instance_uid not in text for ref in scan.slices)  # type: ignore[union-attr]
    kept = Identity.from_json(model.bundle.metadata["info"][CALIBRATED_ON])
    assert kept is not None
    assert identity(scan).slices < kept.slices


def test_results_are_known_whatever_they_were_written_as(exams: Path, model: Model, tmp_path: Path) -> None:
    settings = Settings(mode="mean", check="off")
    source, target = one_scan(exams / "beta" / "Br40"), one_scan(exams / "beta" / "Bl64")
    run(plan(exams / "beta" / "Br40", tmp_path / "out", model, settings), model, tmp_path / "out", settings)
    write_volume_file(tmp_path / "in.nii.gz", source.read())
    run(plan(tmp_path / "in.nii.gz", tmp_path / "o.nii.gz", model, settings), model, tmp_path / "o.nii.gz", settings)
    check_roles(source, target)
    for made in (tmp_path / "out", tmp_path / "o.nii.gz"):
        assert is_result(one_scan(made))
        with pytest.raises(ConcordctError, match="expected as target a scan as the scanner made it"):
            check_roles(source, one_scan(made))
        with pytest.raises(ConcordctError, match="expected as source"):
            check_roles(one_scan(made), target)
    assert not is_result(one_scan(tmp_path / "in.nii.gz"))


def test_scans_of_other_kernels_are_refused(exams: Path, model: Model) -> None:
    soft, sharp = one_scan(exams / "beta" / "Br40"), one_scan(exams / "beta" / "Bl64")
    check_kernels(model, soft, sharp)
    with pytest.raises(ConcordctError, match="kernel Bl64, while the model converts from Br40"):
        check_kernels(model, sharp)
    with pytest.raises(ConcordctError, match="kernel Br40, while the model converts to Bl64"):
        check_kernels(model, soft, soft)


def test_a_report_says_that_it_judges_the_calibration(exams: Path, model: Model, tmp_path: Path) -> None:
    def judged(name: str):  # type: ignore[no-untyped-def]
        source, target = (one_scan(exams / name / kernel) for kernel in ("Br40", "Bl64"))
        return evaluate([Case("one", source, None, target)], tmp_path / name, model=model)

    own, other = judged("first"), judged("beta")
    assert own["in_sample"]["closeness"] == "slices"
    assert own["warnings"][0].startswith("in-sample: the model was calibrated on 12 of the 12 judged slices")
    assert "Judged on scans of the calibration" in (tmp_path / "first" / "report.html").read_text()
    assert other["in_sample"] is None
    assert "Judged" not in (tmp_path / "beta" / "report.html").read_text()
    assert re.match(r"\d+ ROIs: 28 x 28 pixels; 2D, bin width 25 HU", other["agreement"]["settings"])
    assert "8 slices of 1 subject<" in (tmp_path / "beta" / "report.html").read_text()


def test_other_kernels_are_judged_only_when_asked(exams: Path, model: Model, tmp_path: Path) -> None:
    sharp, soft = one_scan(exams / "beta" / "Bl64"), one_scan(exams / "beta" / "Br40")
    with pytest.raises(ConcordctError, match="while the model converts from Br40"):
        evaluate([Case("one", sharp, None, soft)], tmp_path / "out", model=model)
    found = evaluate([Case("one", sharp, None, soft)], tmp_path / "out", model=model, any_kernel=True)
    assert "kernel Bl64, while the model converts from Br40" in found["warnings"]
    row = PairRow(pair="p", subject="s", split="test", source=exams / "beta/Bl64", target=exams / "beta/Br40")
    manifest = write_manifest(tmp_path / "pairs.csv", [row])
    save_bundle(model.bundle, tmp_path / "m", card="")
    with pytest.raises(ConcordctError, match=r"model mine: .*while the model converts from Br40"):
        compare(manifest, {"mine": tmp_path / "m"}, tmp_path / "table")


def test_small_bodies_get_smaller_rois_and_a_note() -> None:
    hu = np.full((2, 64, 64), -1000.0, np.float32)
    hu[:, 20:40, 20:40] = 40.0
    scan = volume(hu)
    _, rois, notes = body_grid(Pair(scan, scan, None))
    assert rois is not None
    assert (roi_edge(rois), int(rois.max())) == (20, 2)
    assert notes == ["ROIs are 20 x 20 pixels, since none of 28 x 28 fits into the body"]
