"""A cohort to a model to a predicted scan: what is written, what it says of itself, what is refused in one line."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from scipy import ndimage
from typer.testing import CliRunner

from concordct import cli
from concordct.errors import ConcordctError
from concordct.methods.models import load_model
from concordct.nets.clip import TextConfig
from concordct.pipelines import followup as pipeline
from concordct.pipelines import followup_verdict as judging
from concordct.pipelines.engines import Share
from concordct.pipelines.followup_batch import VERDICTS, predict_cohort
from concordct.pipelines.followup_data import Prepared, lungs_of, onto, prepare, to_spacing
from concordct.progression import ciresdiff_recipes
from concordct.progression.cohort import FollowupPair, read_cohort, write_cohort
from concordct.progression.diagnosis import ClassifierRecipe
from concordct.progression.lung_function import LungFunction, Visit, write_table
from concordct.progression.patches3d import Followup
from concordct.training.bundle import Bundle
from concordct.training.engine import Phase, Run
from concordct.volumes.files import open_volume_file, write_volume_file
from concordct.volumes.find import find_series
from concordct.volumes.new_series import SimulatedScan, write_new_series
from concordct.volumes.volume import Volume
from pages import DOCS, blocks, commands

pytest.importorskip("transformers")

SPACING = 6.0
#: SyntheticData came into the standard (2023) after Debian's dciodvfy.
NEWER = "(0x0008,0x001c)"
QUICK = Phase(steps=3, batch=2, learning_rate=2e-3, warmup=2, every=1)
TINY = ciresdiff_recipes.Recipe(
    config=ciresdiff_recipes.Config(steps=4, widths=(8, 8), attend=(1,), text=TextConfig(8, 1, 2), scan_widths=(4, 4)),
    spacing_mm=SPACING,
    patch=16,
    overlap=8,
    contrast=QUICK,
    diffusion=QUICK,
    sampling_steps=2,
)
SUBJECTS = ("alpha", "beta")


def chest(seed: int, *, time: int = 0, lungs: int = 2, shape: tuple[int, int, int] = (40, 42, 54)) -> Volume:
    """A body with two lungs full of vessels, 6 mm; at another time with other noise, moved and a little denser."""
    affine = np.diag([SPACING] * 3 + [1.0])[[2, 1, 0, 3]]
    affine[:3, 3] = (-160 + 7 * time, -125 - 4 * time, 20 + 9 * time)
    z, y, x = (SPACING * (np.arange(n) - (n - 1) / 2) for n in shape)
    z, y, x = np.meshgrid(z, y, x, indexing="ij")
    hu = np.where((y / 105) ** 2 + (x / 145) ** 2 < 1, 40.0, -1000.0)
    inside = np.zeros(hu.shape, bool)
    for side in (-1, 1)[:lungs]:
        inside |= ((x - 68 * side) / 46) ** 2 + (y / 72) ** 2 + (z / (98 + 6 * side)) ** 2 < 1
    vessels = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(hu.shape), 0.8)
    hu[inside] = -840 + 300 * vessels[inside] + 60 * time
    hu += np.random.default_rng((seed, time)).normal(0, 8, hu.shape)
    return Volume(np.clip(np.rint(hu), -1024, 3071).astype(np.float32), affine, slice_thickness_mm=SPACING)


def dicom(folder: Path, volume: Volume, patient: str, scan: str = "first") -> Path:
    """A series on disk with the dates that a scanner writes."""
    for path in write_new_series(volume, folder, SimulatedScan(patient, scan, "Chest", 1, 120.0, 90.0)):
        dataset = pydicom.dcmread(path)
        dataset.StudyDate = dataset.AcquisitionDate = "20200102"
        dataset.AcquisitionTime, dataset.AcquisitionDateTime = "101112", "20200102101112"
        dataset.PerformedProcedureStepStartDate = dataset.DateOfLastCalibration = "20200102"
        dataset.PatientBirthDate = "19500102"
        request = pydicom.Dataset()
        request.ScheduledProcedureStepStartDate, request.ScheduledProcedureStepID = "20200102", "1"
        dataset.RequestAttributesSequence = pydicom.Sequence([request])
        dataset.save_as(path)
    return folder


def visit(fvc_ml: float) -> tuple[Visit, ...]:
    return (Visit(0.0, LungFunction(fvc_ml=fvc_ml, age_years=67, sex="male")),)


def tiny(patch: pytest.MonkeyPatch) -> None:
    """Networks of a few thousand weights, and one subject of either label is enough."""
    patch.setitem(ciresdiff_recipes.RECIPES, "small", TINY)
    patch.setattr(judging, "CLASSIFIER", ClassifierRecipe(widths=(4, 4, 8, 8), phase=QUICK))
    patch.setattr(judging, "LEAST_LABELLED", 1)


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny(monkeypatch)


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two subjects scanned twice, one of them in DICOM, and one without a follow-up."""
    root = tmp_path_factory.mktemp("cohort")
    pairs = []
    for number, subject in enumerate(SUBJECTS):
        if number:
            scans = [dicom(root / "exam" / str(t), chest(number, time=t), subject, f"t{t}") for t in (0, 1)]
        else:
            scans = [root / f"{subject}-{t}.nii.gz" for t in (0, 1)]
            for t, path in enumerate(scans):
                write_volume_file(path, chest(number, time=t))
        label = ("stable", "progressive")[number]
        pairs.append(FollowupPair(subject, scans[0], scans[1], 50.0 + number, visit(2500 - 300 * number), label))
    pairs.append(FollowupPair("gamma", pairs[0].initial, None, 52.0, visit(2700)))
    write_table(root / "lung_function.csv", {pair.subject: pair.visits for pair in pairs})
    return write_cohort(root / "cohort.csv", pairs)


@pytest.fixture(scope="session")
def model(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "m"
    with pytest.MonkeyPatch.context() as patch:
        tiny(patch)
        assert pipeline.train(cohort, path).done
    return path


def ask(model: Path, cohort: Path, output: Path, scan: Path | None = None, **more: object) -> dict[str, object]:
    """Predict beta's follow-up, or what `more` says."""
    asked = {"subject": "beta", "weeks": 52.0} | more
    table = cohort.parent / "lung_function.csv"
    return pipeline.predict(scan or cohort.parent / "exam" / "0", table, model, output, **asked)  # type: ignore[arg-type]


# Preparation


def test_another_grid_and_back() -> None:
    volume = chest(0, shape=(12, 14, 16))
    assert to_spacing(volume, SPACING) is volume
    ramp = dataclasses.replace(volume, hu=np.arange(volume.hu.size, dtype=np.float32).reshape(volume.shape))
    fine = to_spacing(ramp, 4.0)
    assert fine.spacing_mm == pytest.approx((4.0, 4.0, 4.0))
    middle = [(v.affine @ [*((np.array(v.shape) - 1) / 2), 1])[:3] for v in (ramp, fine)]
    assert np.allclose(*middle)
    # A ramp is a ramp on every grid, away from the ends.
    inner = (slice(2, -2),) * 3
    assert np.allclose(onto(fine.hu, fine, ramp)[inner], ramp.hu[inner], rtol=1e-4)
    coarse = to_spacing(ramp, 9.0)
    assert np.allclose(coarse.hu.mean(), ramp.hu.mean(), rtol=0.01)


def test_a_subject_is_registered_once_and_what_that_did_is_kept(cohort: Path, tmp_path: Path) -> None:
    pair = read_cohort(cohort)[0]
    found = prepare(pair, tmp_path, SPACING)
    assert found.record["dice_after"]["both"] > 0.95 > found.record["dice_before"]["both"]
    (page,) = tmp_path.rglob("registration.html")
    assert "Follow-up after 50 weeks" in page.read_text()
    assert pair.subject not in page.read_text()
    assert set(found.record["determinants"]) == {"right", "left"}
    assert 0.9 < found.record["determinants"]["left"] < 1.1
    assert "Forced vital capacity 2500 ml" in found.data.sentence
    assert "50 weeks" in found.data.sentence
    lungs = found.data.lungs
    assert np.abs(np.asarray(found.data.followup, float) - found.data.initial)[lungs].mean() < 100
    stamp = [path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*.npy"))]
    assert prepare(pair, tmp_path, SPACING).record == found.record
    assert [path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*.npy"))] == stamp


# Training


def test_pieces_end_where_one_run_ends(cohort: Path, model: Path, tmp_path: Path) -> None:
    pieces = 0
    while not pipeline.train(cohort, tmp_path / "m", minutes=0).done:
        pieces += 1
        assert not (tmp_path / "m").exists()
        assert pieces < 20
    assert pieces > 4
    assert pipeline.load_bundle(tmp_path / "m").sha256 == pipeline.load_bundle(model).sha256
    card = (tmp_path / "m" / "docs" / "README.md").read_text()
    assert "2 subjects" in card
    assert "real pairs of 1 stable and 1 progressive subjects" in card
    assert "not for diagnosis" in card
    with pytest.raises(ConcordctError, match="another data"):
        pipeline.train(cohort, tmp_path / "m", subjects=["alpha"], overwrite=True)
    assert pipeline.open_predictor(str(model)).spacing_mm == SPACING
    with pytest.raises(ConcordctError, match="found 'ciresdiff'"):
        load_model(model)


# Prediction


def test_a_dicom_scan_gives_a_synthetic_series_that_says_so(cohort: Path, model: Path, tmp_path: Path) -> None:
    summary = ask(model, cohort, tmp_path / "out")
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {"predicted", "change.nii.gz", "summary.json", "report.html"}
    assert json.loads((out / "summary.json").read_text()) == summary
    series = find_series(out / "predicted").series[0]
    source = find_series(cohort.parent / "exam" / "0").series[0]
    one, old = pydicom.dcmread(series.slices[5].path), pydicom.dcmread(source.slices[5].path)
    assert one.SyntheticData == "YES"
    assert list(one.ImageType) == ["DERIVED", "SECONDARY", "AXIAL"]
    # No date but the study's, which every object of a study shares, and the patient's.
    dates = {element.keyword for element in one.iterall() if element.VR in ("DA", "DT", "TM") and element.value}
    assert dates == {"StudyDate", "PatientBirthDate"}
    assert one.RequestAttributesSequence[0].ScheduledProcedureStepID == "1"
    for name in ("SeriesDescription", "DerivationDescription", "ImageComments"):
        assert "not for diagnosis" in one[name].value
    assert "52 weeks" in one.DerivationDescription
    assert one.DerivationCodeSequence[0].CodeMeaning == "Synthetic image, not for diagnosis"
    assert one.FrameOfReferenceUID == old.FrameOfReferenceUID
    assert one.SeriesInstanceUID != old.SeriesInstanceUID
    change = open_volume_file(out / "change.nii.gz").read().hu
    assert np.array_equal(series.read().hu, source.read().hu + change)
    region = ndimage.binary_dilation(lungs_of(source.read()), iterations=3)
    assert change.any()
    assert not change[~region].any()
    if shutil.which("dciodvfy"):
        judged = [_judged(one.slices[5].path) for one in (series, source)]
        said = [{line for line in lines if line.startswith("Error") and NEWER not in line} for lines in judged]
        assert said[0] <= said[1]
    page = (out / "report.html").read_text()
    for word in ("Initial", "Predicted", "not for diagnosis", "52 weeks", "Verdict", "Aerated lung"):
        assert word in page
    for text in (page, json.dumps(summary), str(one.DerivationDescription)):
        assert "beta" not in text
        assert "20200102" not in text


def _judged(path: Path) -> list[str]:
    found = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, errors="replace", check=False)
    return (found.stdout + found.stderr).splitlines()


def test_a_volume_file_gives_a_volume_file_and_one_seed_one_result(cohort: Path, model: Path, tmp_path: Path) -> None:
    scan = cohort.parent / "alpha-0.nii.gz"
    for name in ("a", "b"):
        ask(model, cohort, tmp_path / name, scan, subject="gamma")
    assert (tmp_path / "a" / "predicted.nii.gz").read_bytes() == (tmp_path / "b" / "predicted.nii.gz").read_bytes()
    for name in ("predicted", "change"):
        header = sitk.ReadImage(str(tmp_path / "a" / f"{name}.nii.gz"))
        assert header.GetMetaData("descrip") == "synthetic, not a scan, not for diagnosis"
    summary = ask(model, cohort, tmp_path / "c", scan, subject="gamma", weeks=200.0)
    fibrosis = summary["fibrosis"]
    assert fibrosis["range_hu"] == [-600.0, -250.0]  # type: ignore[index]
    assert 0 <= fibrosis["initial"]["share"] < 1  # type: ignore[index]
    text = " ".join(summary["warnings"])  # type: ignore[arg-type]
    assert "200 weeks lie outside the 50 to 51 weeks" in text
    assert "values of the lung-function tests are unknown" in text


def test_the_verdict_says_what_it_rests_on(cohort: Path, model: Path, tmp_path: Path) -> None:
    summary = ask(model, cohort, tmp_path / "a")
    found = summary["progression"]
    assert found["basis"] == "classifier"  # type: ignore[index]
    assert found["verdict"] == ("progressive" if found["probability"] >= 0.5 else "stable")  # type: ignore[index]
    assert found["subjects"] == {"stable": 1, "progressive": 1}  # type: ignore[index]
    whole = pipeline.load_bundle(model)
    network, classifier = judging.parted(whole)
    assert not any(name.startswith(judging.PREFIX) for name in network.tensors)
    assert classifier is not None
    # The shares are of one outline; a scan as dense as fibrosis everywhere has risen by all that was missing.
    scan, lungs = chest(0), lungs_of(chest(0))
    dense = np.where(lungs, -400.0, scan.hu).astype(np.float32)
    extent = pipeline.fibrosis(scan, lungs, dense)
    assert extent["predicted"]["share"] == 1.0
    assert extent["predicted"]["aerated_ml"] == 0.0
    for second, label in ((dense, "progressive"), (scan.hu, "stable")):
        extent = pipeline.fibrosis(scan, lungs, second)
        plain = judging.verdict(
            scan.hu, second, lungs, spacing_mm=SPACING, fibrosis=extent, weeks=52.0, classifier=None, subjects=None
        )
        assert (plain["verdict"], plain["basis"], plain["probability"]) == (label, "threshold", None)
        assert "not for diagnosis" in plain["said"]
    changes = summary["volume_change_of_training_subjects"]
    assert {name: one["subjects"] for name, one in changes.items()} == {  # type: ignore[attr-defined]
        "all": 2, "stable": 1, "progressive": 1,
    }  # fmt: skip


def test_the_classifier_knows_the_weeks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One change in every patient: what makes the disease progress is in how few weeks it came about."""
    scan, later = chest(0), chest(0).hu + 60
    lungs = lungs_of(scan)
    ready = [
        Prepared(f"s{n}", Followup(f"s{n}", scan.hu, later, lungs, lungs, ""), label, weeks, LungFunction(), {}, False)
        for n, (label, weeks) in enumerate([("progressive", 13.0), ("stable", 130.0)] * 2)
    ]
    phase = Phase(steps=25, batch=2, learning_rate=3e-2, warmup=2, ema=0.5, every=25)
    monkeypatch.setattr(judging, "CLASSIFIER", ClassifierRecipe(widths=(4, 4, 8, 8), phase=phase))
    plain = Bundle({}, {"info": {}})
    made = judging.with_classifier(plain, ready, Run(tmp_path), spacing_mm=SPACING, seed=1)
    _, classifier = judging.parted(made)
    extent = pipeline.fibrosis(scan, lungs, later)
    says = [
        judging.verdict(
            scan.hu, later, lungs, spacing_mm=SPACING, fibrosis=extent, weeks=weeks, classifier=classifier,
            subjects={"stable": 2, "progressive": 2},
        )["verdict"]
        for weeks in (13.0, 130.0)
    ]  # fmt: skip
    assert says == ["progressive", "stable"]
    # A model made before the weeks were told still judges, by the scans alone.
    entry = {name: value for name, value in made.metadata[judging.ENTRY].items() if name != "table"}
    head = f"{judging.PREFIX}head.weight"
    _, older = judging.parted(Bundle({**made.tensors, head: made.tensors[head][:, :-1]}, {judging.ENTRY: entry}))
    assert older is not None
    assert older.table == 0


def test_without_labels_there_is_no_classifier(
    cohort: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judging, "LEAST_LABELLED", 2)
    assert pipeline.train(cohort, tmp_path / "m").done
    plain = pipeline.load_bundle(tmp_path / "m")
    assert judging.parted(plain) == (plain, None)
    # The network is the same with and without.
    rest = judging.parted(pipeline.load_bundle(model))[0]
    assert {name: one.tobytes() for name, one in plain.tensors.items()} == {
        name: one.tobytes() for name, one in rest.tensors.items()
    }
    summary = ask(tmp_path / "m", cohort, tmp_path / "out")
    assert summary["progression"]["basis"] == "threshold"  # type: ignore[index]
    assert "carries no classifier" in (tmp_path / "out" / "report.html").read_text()


def test_a_cohort_is_predicted_share_by_share_and_resumes(cohort: Path, model: Path, tmp_path: Path) -> None:
    table = cohort.parent / "lung_function.csv"
    two = write_cohort(tmp_path / "two.csv", [one for one in read_cohort(cohort) if one.subject != "gamma"])
    ask = partial(predict_cohort, two, model, tmp_path / "out", table=table, steps=1)
    assert [(result.subject, result.status) for result in ask(engine=Share(2, 2))] == [("beta", "done")]
    assert not (tmp_path / "out" / VERDICTS).exists()
    found = ask(engine=Share(1, 2))
    assert [(result.subject, result.status) for result in found] == [("alpha", "done"), ("beta", "resumed")]
    rows = (tmp_path / "out" / VERDICTS).read_text().splitlines()
    assert [row.split(",")[:3] for row in rows[1:]] == [["alpha", "done", "50"], ["beta", "done", "51"]]
    assert {result.status for result in ask()} == {"resumed"}
    with pytest.raises(ConcordctError, match="holds the prediction of another scan, model, setting or version"):
        ask(seed=5)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"subject": "delta"}, r"lung_function.csv: .*no row of the subject asked for"),
        ({"weeks": -3.0}, "-3 weeks between the scans, expected above 0"),
        ({"subject": "alpha"}, "expected a scan whose PatientID is the subject"),
    ],
)
def test_wrong_questions_are_refused(
    more: dict[str, object], said: str, cohort: Path, model: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConcordctError, match=said) as refused:
        ask(model, cohort, tmp_path / "out", **more)
    assert "\n" not in str(refused.value)
    assert "beta" not in str(refused.value).replace(str(cohort.parent), "")
    assert not (tmp_path / "out").exists()


def test_wrong_scans_are_refused(cohort: Path, model: Path, tmp_path: Path) -> None:
    wrong = {"none": chest(5, lungs=0), "one": chest(5, lungs=1)}
    for name, said in (("none", r"none.nii.gz: no lung found"), ("one", r"one.nii.gz: one lung found")):
        write_volume_file(tmp_path / f"{name}.nii.gz", wrong[name])
        with pytest.raises(ConcordctError, match=said):
            ask(model, cohort, tmp_path / "out", tmp_path / f"{name}.nii.gz")
    with pytest.raises(ConcordctError, match="expected one CT series or volume, found 2"):
        ask(model, cohort, tmp_path / "out", cohort.parent / "exam")
    ask(model, cohort, tmp_path / "out", subject="alpha", any_subject=True)
    nameless = dicom(tmp_path / "nameless", chest(1), "")
    ask(model, cohort, tmp_path / "nobody", nameless)


def test_scans_of_two_patients_are_refused_with_their_row(cohort: Path, tmp_path: Path) -> None:
    dicom(tmp_path / "other", chest(7, time=1), "somebody")
    beta = cohort.parent / "exam" / "0"
    by_name = FollowupPair("x", beta, tmp_path / "other", 52.0, ())
    write_cohort(tmp_path / "names.csv", [by_name])
    with pytest.raises(ConcordctError, match=r"names.csv, row 2: .*found two PatientIDs"):
        pipeline.train(tmp_path / "names.csv", tmp_path / "m")
    write_volume_file(tmp_path / "other.nii.gz", chest(7, time=1))
    write_cohort(tmp_path / "voxels.csv", [dataclasses.replace(by_name, followup=tmp_path / "other.nii.gz")])
    with pytest.raises(ConcordctError, match=r"voxels.csv, row 2: after registration .*two patients"):
        pipeline.train(tmp_path / "voxels.csv", tmp_path / "n")


def test_the_command_line_says_one_line(tmp_path: Path) -> None:
    words = ["predict-followup", str(tmp_path), "--lung-function", "t.csv", "--subject", "x", "--weeks", "-1"]
    code = "from concordct.cli import main; main()"
    found = subprocess.run(
        [sys.executable, "-c", code, *words, "-m", "m", "-o", "o"], capture_output=True, text=True, check=False
    )
    assert found.returncode == 2
    assert found.stderr.strip() == "error: -1 weeks between the scans, expected above 0 and at most 1000"


# The documents


@pytest.mark.slow
def test_the_commands_of_the_how_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they stand but for time: one coarse patient, and a network of a few thousand weights is trained."""
    monkeypatch.chdir(tmp_path)
    said = []
    for block in blocks(DOCS / "howto" / "followup.md", "sh"):
        quick = block.replace("-n 40", "-n 1").replace("thickness 3", "thickness 6").replace("pixel-mm 3", "pixel-mm 6")
        for words in commands(quick):
            found = CliRunner().invoke(cli.common.app, words[1:])
            assert found.exit_code == 0, f"{' '.join(words)}\n{found.output}\n{found.exception}"
            said.append(found.output)
    assert len(said) == 5
    summaries = [
        json.loads((tmp_path / name / "summary.json").read_text()) for name in ("prediction", "own-prediction")
    ]
    grids = [summary["grid_mm"] for summary in summaries]
    assert grids == [4.0, SPACING]
    assert "trained on" in str(summaries[0]["warnings"])
    assert "for studies of the method, not for patients' scans" in said[1]
    before, after = (open_volume_file(tmp_path / name).read().hu
                     for name in ("new-patient/ipf-0000/initial.nii.gz", "prediction/predicted.nii.gz"))  # fmt: skip
    # Something is predicted, and nothing wild.
    assert 0 < np.abs(after - before).mean() < 40
