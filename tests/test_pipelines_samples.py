"""Self-checks and samples on the way through `standardize`: what is written, what is refused, what stays the same."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pydicom
import pytest

from concordct.errors import ConcordctError
from concordct.judging.case import one_case
from concordct.methods import slabs
from concordct.methods.models import load_model
from concordct.methods.spectral.transfer import SpectralModel, SpectralStandardizer
from concordct.pipelines import samples
from concordct.pipelines.calibrate import calibrate_pairs, pairs_of_paths
from concordct.pipelines.evaluate import evaluate
from concordct.pipelines.samples import beside
from concordct.pipelines.standardize import Record, Settings, plan, run
from concordct.signal.body import body_mask
from concordct.signal.spectra import to_cosines
from concordct.volumes import scans
from concordct.volumes.files import open_volume_file, write_volume_file
from concordct.volumes.new_series import SimulatedScan, write_new_series
from synthetic import pair, volume

SIZE = 224


@pytest.fixture(scope="module")
def exams(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Br40 and Bl64 of one subject to calibrate from; of another, and Bl64 that claims to be Br40."""
    root = tmp_path_factory.mktemp("exams")
    first, second = (pair(seed=seed, size=SIZE, slices=3, noise_hu=100.0) for seed in (3, 8))
    for name, kernel, hu in (
        ("first-Br40", "Br40", first[0]),
        ("first-Bl64", "Bl64", first[1]),
        ("right", "Br40", second[0]),
        ("mislabelled", "Br40", second[1]),
    ):
        scan = SimulatedScan("Nobody", name.split("-")[0], f"Chest {kernel}", 1, 120.0, 100.0)
        write_new_series(volume(hu, kernel=kernel), root / name, scan)
    return root


@pytest.fixture(scope="module")
def model(exams: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "br40-to-bl64"
    calibrate_pairs(pairs_of_paths(exams / "first-Br40", exams / "first-Bl64"), path, method="spectral")
    return path


def standardize(source: Path, model: Path, output: Path, settings: Settings | None = None) -> Record:
    loaded, settings = load_model(model), settings or Settings()
    (record,) = run(plan(source, output, loaded, settings), loaded, output, settings)
    return record


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_record_says_what_the_self_check_found(exams: Path, model: Path, tmp_path: Path) -> None:
    record = standardize(exams / "right", model, tmp_path / "out")
    assert record.self_check is not None
    assert not record.self_check["failed"]
    assert record.self_check["kernel"]["status"] == record.self_check["returned"]["status"] == "passed"
    assert 0 < record.self_check["returned"]["ratio_to_noise"] < 1
    written = json.loads((tmp_path / "out" / "derivation.json").read_text())
    assert written["self_check"] == record.self_check
    # A result that stands is not checked again, and its record is the same line.
    assert standardize(exams / "right", model, tmp_path / "out").line() == record.line()


def test_a_check_changes_no_pixel_and_may_be_left_out(exams: Path, model: Path, tmp_path: Path) -> None:
    on = standardize(exams / "right", model, tmp_path / "on")
    off = standardize(exams / "right", model, tmp_path / "off", Settings(check="off"))
    assert off.self_check is None
    assert on.pixels_sha256 == off.pixels_sha256
    objects = [{n: d for n, d in digests(tmp_path / one).items() if n.endswith(".dcm")} for one in ("on", "off")]
    assert objects[0] == objects[1]


def test_a_scan_of_another_kernel_is_done_with_a_warning(exams: Path, model: Path, tmp_path: Path) -> None:
    record = standardize(exams / "mislabelled", model, tmp_path / "out")
    assert record.status == "done"
    assert record.self_check is not None
    assert record.self_check["failed"]
    assert "not of the calibrated kernel" in record.self_check["problems"][0]


def test_refusing_writes_nothing(exams: Path, model: Path, tmp_path: Path) -> None:
    refuse = Settings(check="refuse")
    record = standardize(exams / "mislabelled", model, tmp_path / "out", refuse)
    assert record.status == "failed"
    assert "self-check failed: scan not of the calibrated kernel" in str(record.reason)
    assert "\n" not in str(record.reason)
    volume_file = write_volume_file(tmp_path / "in.nrrd", scans.one_scan(exams / "mislabelled").read())
    assert standardize(volume_file, model, tmp_path / "out.nrrd", refuse).status == "failed"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.nrrd"]
    assert standardize(exams / "right", model, tmp_path / "right", refuse).status == "done"


@pytest.mark.parametrize("first", ["warn", "off"])
def test_refusing_leaves_what_stands(first: str, exams: Path, model: Path, tmp_path: Path) -> None:
    standardize(exams / "mislabelled", model, tmp_path / "out", Settings(check=first))  # type: ignore[arg-type]
    before = digests(tmp_path)
    for again in (Settings(check="refuse"), Settings(check="refuse", overwrite=True)):
        assert standardize(exams / "mislabelled", model, tmp_path / "out", again).status == "failed"
        assert digests(tmp_path) == before


def test_what_was_standardized_already_is_found_out(exams: Path, model: Path, tmp_path: Path) -> None:
    standardize(exams / "right", model, tmp_path / "once")
    # As a volume file it has lost the name of its kernel.
    again = write_volume_file(tmp_path / "again.nii", scans.one_scan(tmp_path / "once").read())
    record = standardize(again, model, tmp_path / "twice.nii", Settings(check="refuse"))
    assert record.status == "failed"


def test_the_report_shows_the_check_of_a_result(exams: Path, model: Path, tmp_path: Path) -> None:
    # What is mislabelled in one test is the target in this one.
    for name, other, failed in (("right", "mislabelled", 0), ("mislabelled", "right", 1)):
        standardize(exams / name, model, tmp_path / name)
        case = one_case(exams / name, tmp_path / name, exams / other, None)
        results = evaluate(case, tmp_path / f"report-{name}")
        assert (results["self_check"]["scans"], results["self_check"]["failed"]) == (1, failed)
        assert any("not of the calibrated kernel" in text for text in results["warnings"]) == bool(failed)
        assert "self-check" in (tmp_path / f"report-{name}" / "report.html").read_text().lower()
    assert "self_check" not in evaluate(
        one_case(exams / "right", exams / "right", exams / "right", None), tmp_path / "r"
    )


def test_samples_differ_as_the_noise_model_says(exams: Path, model: Path, tmp_path: Path) -> None:
    count = 24
    source = write_volume_file(tmp_path / "in.nrrd", scans.one_scan(exams / "right").read())
    standardize(source, model, tmp_path / "out.nrrd", Settings(samples=count, check="off"))
    standardize(source, model, tmp_path / "alone.nrrd", Settings(mode="mean", check="off"))
    mean, sd, alone, before = (
        open_volume_file(tmp_path / name).read()
        for name in ("out-mean.nrrd", "out-uncertainty.nrrd", "alone.nrrd", "in.nrrd")
    )
    spectral = SpectralStandardizer(SpectralModel.from_bundle(load_model(model).bundle))
    expected = np.stack([spectral.deviation(to_cosines(hu), before, i) for i, hu in enumerate(before.hu)])
    # The spectrum holds less than 1 where it is cut: what the source knows is not drawn.
    amplitude = spectral.amplitude((SIZE, SIZE), before.spacing_mm[1:])
    expected *= np.sqrt(np.mean(amplitude**2))
    body = body_mask(before.hu)
    assert sd.hu[body].mean() == pytest.approx(expected[body].mean(), rel=0.03)
    # Voxel by voxel, a standard deviation of 24 samples scatters by 15 %.
    assert np.std(np.log(sd.hu[body] / expected[body])) < 0.2
    error = (mean.hu - alone.hu)[body]
    assert np.sqrt(np.mean(error**2)) == pytest.approx(sd.hu[body].mean() / np.sqrt(count), rel=0.15)


def test_samples_have_the_same_bytes_whatever_the_slabs(
    exams: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(samples=3)
    record = standardize(exams / "right", model, tmp_path / "a" / "out", settings)
    assert record.beside == ("out-mean", "out-uncertainty")
    for module in (samples, slabs):
        monkeypatch.setattr(module, "SLAB_SLICES", 1)
    standardize(exams / "right", model, tmp_path / "b" / "out", settings)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    standardize(exams / "right", model, tmp_path / "c" / "out")
    assert digests(tmp_path / "a" / "out") == digests(tmp_path / "c" / "out")


def test_series_beside_a_result_say_what_they_are(exams: Path, model: Path, tmp_path: Path) -> None:
    standardize(exams / "right", model, tmp_path / "out", Settings(samples=3))
    found = [pydicom.dcmread(tmp_path / name / "0001.dcm") for name in ("out", "out-mean", "out-uncertainty")]
    assert len({str(one.SeriesInstanceUID) for one in found}) == 3
    assert "mean of 3 samples" in found[1].SeriesDescription
    assert "standard deviation of 3 samples" in found[2].SeriesDescription
    assert "standard deviation of 3 samples" in found[2].DerivationDescription
    assert (found[2].WindowCenter, found[2].WindowWidth) == (50, 100)
    assert found[1].WindowCenter == found[0].WindowCenter
    hu = found[2].pixel_array * found[2].RescaleSlope + found[2].RescaleIntercept
    assert hu.min() >= 0
    assert 5 < hu[SIZE // 2, SIZE // 2] < 200


def test_what_is_missing_beside_a_result_is_made_again(exams: Path, model: Path, tmp_path: Path) -> None:
    settings = Settings(samples=2)
    source = write_volume_file(tmp_path / "in.nii.gz", scans.one_scan(exams / "right").read())
    first = standardize(source, model, tmp_path / "out.nii.gz", settings)
    before = digests(tmp_path)
    for name in ("out-mean.nii.gz", "out.nii.gz"):
        (tmp_path / name).unlink()
        assert standardize(source, model, tmp_path / "out.nii.gz", settings).line() == first.line()
        assert digests(tmp_path) == before
    # A map of other samples stands in the way.
    assert standardize(source, model, tmp_path / "out.nii.gz", Settings(samples=3)).status == "failed"
    assert digests(tmp_path) == before


@pytest.mark.parametrize(
    ("output", "expected"),
    [("a/out", "a/out-mean"), ("ct.nii.gz", "ct-mean.nii.gz"), ("b/ct.v2.nrrd", "b/ct.v2-mean.nrrd")],
)
def test_names_beside_a_result(output: str, expected: str) -> None:
    assert beside(Path(output), "mean").as_posix() == expected


@pytest.mark.parametrize(("count", "mode"), [(1, "sample"), (-2, "sample"), (4, "mean")])
def test_samples_that_are_none_are_refused(count: int, mode: str) -> None:
    with pytest.raises(ConcordctError, match="at least 2 samples in mode 'sample'"):
        Settings(mode=mode, samples=count)  # type: ignore[arg-type]
