"""Cohorts: what is written is read back, OSIC folders are understood, what is wrong is one line."""

import json
import shutil

import numpy as np
import pydicom
import pytest
from typer.testing import CliRunner

from concordct.cli.common import app
from concordct.errors import ConcordctError
from concordct.pipelines.followup_cohort import cohort_osic
from concordct.progression.cohort import FollowupPair, fvc_decline, osic_cohort, read_cohort, write_cohort
from concordct.progression.lung_function import LungFunction, Visit, first_visit, read_table
from concordct.progression.simulated import known_mask, simulate_cohort
from concordct.scanner.ipf import ipf_subject
from concordct.volumes.files import open_volume_file

SPACING = (20.0, 8.0, 8.0)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    return simulate_cohort(tmp_path_factory.mktemp("ipf"), subjects=2, seed=5, spacing_mm=SPACING)


def test_a_simulated_cohort_is_read_back(simulated):
    pairs = read_cohort(simulated)
    assert [pair.subject for pair in pairs] == ["ipf-0000", "ipf-0001"]
    for number, pair in enumerate(pairs):
        subject = ipf_subject(number, seed=5)
        assert (pair.weeks, pair.label) == (subject.weeks, subject.label)
        assert [visit.weeks for visit in pair.visits] == [tests.weeks for tests in subject.tests]
        assert pair.visits[0].values.fvc_percent == subject.tests[0].fvc_percent
        assert pair.followup is not None
        for time, path in (("initial", pair.initial), ("followup", pair.followup)):
            volume = open_volume_file(path).read()
            drawn = subject.draw_volume(time, SPACING)
            np.testing.assert_array_equal(volume.hu, np.maximum(drawn.hu, volume.hu.min()))
            np.testing.assert_allclose(volume.affine, drawn.affine, atol=1e-4)
            masks = subject.volume_masks(time, SPACING)
            np.testing.assert_array_equal(known_mask(path, "lungs") == 1, masks["right lung"])
            np.testing.assert_array_equal(known_mask(path, "fibrosis") == 2, masks["honeycombing"])
    table = read_table(simulated.with_name("lung_function.csv"))
    assert first_visit(table, "ipf-0001").weeks == 0.0


def test_a_cohort_goes_on_where_it_stopped_and_refuses_another(simulated, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(simulated.parent, folder)
    before = (folder / "ipf-0000" / "initial.nii.gz").stat().st_mtime_ns
    shutil.rmtree(folder / "ipf-0001")
    simulate_cohort(folder, subjects=2, seed=5, spacing_mm=SPACING)
    assert (folder / "ipf-0000" / "initial.nii.gz").stat().st_mtime_ns == before
    for name in ("initial.nii.gz", "followup.nii.gz", "initial_lungs.nii.gz", "subject.json"):
        assert (folder / "ipf-0001" / name).read_bytes() == (simulated.parent / "ipf-0001" / name).read_bytes()
    assert (folder / "cohort.csv").read_bytes() == simulated.read_bytes()
    with pytest.raises(ConcordctError, match="another patient, seed or spacing"):
        simulate_cohort(folder, subjects=1, seed=6, spacing_mm=SPACING)


def write(tmp_path, text):
    (tmp_path / "a.nii.gz").touch()
    path = tmp_path / "cohort.csv"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("subject,initial\na,a.nii.gz\n", "row 1: columns"),
        ("subject,initial,followup,weeks,label\n", "no rows"),
        ("subject,initial,followup,weeks,label\na,,,52,\n", "row 2, column initial: found nothing"),
        ("subject,initial,followup,weeks,label\na,b.nii.gz,,52,\n", "row 2, column initial: no such file"),
        ("subject,initial,followup,weeks,label\na,a.nii.gz,b.nii.gz,52,\n", "row 2, column followup: no such file"),
        ("subject,initial,followup,weeks,label\na,a.nii.gz,,-3,\n", "row 2, column weeks: -3 weeks"),
        ("subject,initial,followup,weeks,label\na,a.nii.gz,,year,\n", "expected a number"),
        ("subject,initial,followup,weeks,label\na,a.nii.gz,,52,worse\n", "expected stable or progressive"),
        ("subject,initial,followup,weeks,label\na,a.nii.gz,,52,\na,a.nii.gz,,52,\n", "row 3: the subject stands"),
        ("subject,initial,followup,weeks,label\na,a.nii.gz,,52\n", "4 values, expected 5"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, word):
    with pytest.raises(ConcordctError, match=word) as caught:
        read_cohort(write(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_without_tests_and_without_a_follow_up(tmp_path):
    (pair,) = read_cohort(write(tmp_path, "subject,initial,followup,weeks,label\na,a.nii.gz,,40,\n"))
    assert pair == FollowupPair("a", tmp_path / "a.nii.gz", None, 40.0, (), None)
    assert read_cohort(write_cohort(tmp_path / "again.csv", [pair])) == (pair,)


def test_decline_of_fvc_is_a_slope():
    visits = [Visit(week, LungFunction(fvc_ml=3000.0 - 6.0 * week)) for week in (-4.0, 0.0, 20.0, 52.0)]
    assert fvc_decline(visits, 52.0) == pytest.approx(6.0 * 52 / 3000.0)
    assert fvc_decline(visits[:1], 52.0) is None
    assert fvc_decline([*visits, Visit(300.0, LungFunction(fvc_ml=900.0))], 52.0) == pytest.approx(6.0 * 52 / 3000.0)


@pytest.fixture
def osic(tmp_path, shared_data):
    """Two patients as OSIC has them, of a few slices each; one with a second series half a year later."""
    slices = sorted((shared_data / "chest_B40f").rglob("*.dcm"))[:4]
    for place, day, uid in (
        ("ID1", "20200101", "1.2.3"),
        ("ID2/a", "20200801", "1.2.4"),
        ("ID2/b", "20200201", "1.2.5"),
    ):
        (tmp_path / "scans" / place).mkdir(parents=True)
        for path in slices:
            dataset = pydicom.dcmread(path)
            dataset.AcquisitionDate = dataset.StudyDate = day
            dataset.SeriesInstanceUID = uid
            dataset.save_as(tmp_path / "scans" / place / path.name)
    (tmp_path / "train.csv").write_text(
        "Patient,Weeks,FVC,Percent,Age,Sex,SmokingStatus\n"
        "ID1,-2,3000,80,70,Male,Ex-smoker\nID1,50,2500,66,70,Male,Ex-smoker\n"
        "ID2,0,2800,75,64,Female,Never smoked\nID2,26,2790,75,64,Female,Never smoked\n"
        "ID3,0,2000,60,60,Male,Currently smokes\n",
        encoding="utf-8",
    )
    return tmp_path


def test_osic_as_users_have_it(osic):
    found = osic_cohort(osic / "scans", osic / "train.csv", progressive_decline=0.1)
    first, second = found.pairs
    assert (found.failures, found.without_scans) == ((), 1)
    assert (first.subject, first.initial, first.followup) == ("ID1", osic / "scans" / "ID1", None)
    assert (first.weeks, first.label) == (50.0, "progressive")
    assert second.initial == osic / "scans" / "ID2" / "b"
    assert second.followup == osic / "scans" / "ID2" / "a"
    assert second.weeks == pytest.approx(26.0)
    assert second.label == "stable"
    assert osic_cohort(osic / "scans", osic / "train.csv").pairs[0].label is None


def test_osic_refusals(osic):
    for path in (osic / "scans" / "ID2" / "b").iterdir():
        dataset = pydicom.dcmread(path)
        del dataset.AcquisitionDate, dataset.StudyDate
        dataset.save_as(path)
    found = osic_cohort(osic / "scans", osic / "train.csv")
    assert [pair.subject for pair in found.pairs] == ["ID1"]
    ((number, reason),) = found.failures
    assert number == 2
    assert "without acquisition dates" in reason
    assert "ID2" not in reason
    with pytest.raises(ConcordctError, match="10 a year, expected a share"):
        osic_cohort(osic / "scans", osic / "train.csv", progressive_decline=10)
    with pytest.raises(ConcordctError, match="no patient of"):
        osic_cohort(osic, osic / "train.csv")
    with pytest.raises(ConcordctError, match="no such folder"):
        osic_cohort(osic / "nowhere", osic / "train.csv")


def test_the_verb_writes_a_cohort_that_training_and_prediction_read(osic, tmp_path):
    (osic / "scans").rename(osic / "train")
    run = CliRunner().invoke(app, ["cohort", "osic", str(osic), "--decline", "0.1", "-o", str(tmp_path / "out")])
    assert run.exit_code == 0, run.output
    assert "2 patients, 1 scanned twice, 1 stable, 1 progressive" in run.output
    # OSIC's visits before the scan survive the way through our own table.
    written = read_cohort(tmp_path / "out" / "cohort.csv")
    direct = osic_cohort(osic / "train", osic / "train.csv", progressive_decline=0.1).pairs
    assert [(p.subject, p.weeks, p.visits, p.label) for p in written] == [
        (p.subject, pytest.approx(p.weeks, rel=1e-5), p.visits, p.label) for p in direct
    ]
    assert written[0].visits[0].weeks == -2.0
    assert written[1].followup.resolve() == (osic / "train" / "ID2" / "a").resolve()
    asked = ["cohort", "osic", str(osic / "train"), "--table", str(osic / "train.csv"), "-o", str(tmp_path / "out")]
    assert isinstance(CliRunner().invoke(app, asked).exception, ConcordctError)
    told = json.loads(CliRunner().invoke(app, [*asked, "--overwrite", "--json"]).output)
    assert told["scanned_twice"] == 1
    assert told["without_scans"] == 1
    assert told["labels"] == {"stable": 0, "progressive": 0}
    with pytest.raises(ConcordctError, match=r"expected train.csv and train/ in"):
        cohort_osic(osic / "train", tmp_path / "other")
