"""What a newcomer meets in the first hour: layouts, exports with both kernels in one folder, words on the terminal."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from concordct import cli
from concordct.errors import ConcordctError
from concordct.methods.models import load_model
from concordct.pipelines.calibrate import calibrate_pairs, pairs_of_folder, pairs_of_manifest, pairs_of_paths
from concordct.pipelines.cohort import cohort_folder
from concordct.pipelines.features import jobs_of_manifest
from concordct.pipelines.standardize import Settings, plan, run
from concordct.volumes.files import write_volume_file
from concordct.volumes.manifest import PairRow, read_manifest, write_manifest
from concordct.volumes.new_series import SimulatedScan, write_new_series
from concordct.volumes.scans import LABEL_MAP, find_scans
from synthetic import pair, volume

SUBJECTS = ("alpha", "beta")
SIZE = 160


@pytest.fixture(scope="module")
def exams(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """exams/<subject>/<kernel>: two subjects, each scanned once and reconstructed with two kernels."""
    root = tmp_path_factory.mktemp("hour") / "exams"
    for number, subject in enumerate(SUBJECTS):
        for series, (kernel, hu) in enumerate(zip(("Br40", "Bl64"), pair(seed=40 + number, size=SIZE), strict=True)):
            scan = SimulatedScan(f"Secret{number}", f"scan-{number}", f"Chest {kernel}", series + 1, 120.0, 100.0)
            write_new_series(volume(hu, kernel=kernel), root / subject / kernel, scan)
    return root


@pytest.fixture(scope="module")
def model(exams: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hour-model") / "br40-to-bl64"
    calibrate_pairs(pairs_of_paths(exams / "alpha" / "Br40", exams / "alpha" / "Bl64"), path, method="spectral")
    return path


@pytest.fixture
def flat(exams: Path, tmp_path: Path) -> Path:
    """Both kernels of both subjects in one folder, as an archive exports them."""
    folder = tmp_path / "flat"
    folder.mkdir()
    for number, path in enumerate(sorted(exams.rglob("*.dcm"))):
        shutil.copyfile(path, folder / f"IM{number:05d}")
    return folder


def invoke(*words: object) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of the command line in this process."""
    found = CliRunner().invoke(cli.common.app, [str(word) for word in words])
    if isinstance(found.exception, ConcordctError):
        return 2, found.stdout, str(found.exception)
    return found.exit_code, found.stdout, found.stderr


def standardized(source: Path, model: Path, output: Path) -> set[str]:
    """Folders that a run leaves below its output."""
    loaded, settings = load_model(model), Settings(mode="mean", check="off")
    run(plan(source, output, loaded, settings), loaded, output, settings)
    return {path.parent.relative_to(output).as_posix() for path in output.rglob("*.dcm")}


def test_the_layout_does_not_depend_on_how_many_series_there_are(exams: Path, model: Path, tmp_path: Path) -> None:
    incoming = tmp_path / "incoming"
    shutil.copytree(exams / "alpha" / "Br40", incoming / "exam")
    assert standardized(incoming, model, tmp_path / "one") == {"exam"}
    shutil.copytree(exams / "beta" / "Br40", incoming / "other")
    assert standardized(incoming, model, tmp_path / "two") == {"exam", "other"}
    # A folder of slices is the series itself.
    assert standardized(incoming / "exam", model, tmp_path / "series") == {"."}
    write_volume_file(tmp_path / "files" / "ct.nii.gz", volume(pair(seed=3, size=96)[0]))
    loaded, settings = load_model(model), Settings(mode="mean", check="off")
    run(plan(tmp_path / "files", tmp_path / "made", loaded, settings), loaded, tmp_path / "made", settings)
    assert (tmp_path / "made" / "ct.nii.gz").is_file()


def test_label_maps_beside_a_scan_are_set_aside(model: Path, tmp_path: Path) -> None:
    hu = pair(seed=3, size=96)[0]
    for name in ("ct.nii.gz", "nodules.nii.gz", "ct_lungs.nrrd", "tumour-mask.mha", "lungs-ct.nii.gz"):
        write_volume_file(tmp_path / "in" / name, volume(hu if "ct." in name else (hu > 0).astype(float)))
    found = find_scans(tmp_path / "in")
    assert [scan.path.name for scan in found.scans] == ["ct.nii.gz", "lungs-ct.nii.gz"]
    assert {(item.path.name, item.reason) for item in found.set_aside} == {
        (name, LABEL_MAP) for name in ("nodules.nii.gz", "ct_lungs.nrrd", "tumour-mask.mha")
    }
    # Named itself, a file is opened whatever its name.
    assert len(find_scans(tmp_path / "in" / "nodules.nii.gz").scans) == 1
    code, out, _ = invoke("standardize", tmp_path / "in", "-m", model, "-o", tmp_path / "out", "--check", "off")
    assert code == 0
    assert "2 scans: 2 done" in out


def test_a_flat_export_calibrates_by_the_names_of_its_kernels(flat: Path, tmp_path: Path) -> None:
    code, out, err = invoke("calibrate", flat, "--from", "Br40", "--to", "Bl64", "-o", tmp_path / "m", "--json")
    assert code == 0, err
    assert (json.loads(out)["source_kernels"], json.loads(out)["left_out"]) == (["Br40"], [])
    assert load_model(tmp_path / "m").bundle.metadata["info"]["pairs"] == 2
    with pytest.raises(ConcordctError, match="expected series in Br40 and B70f, found Bl64, Br40"):
        pairs_of_folder(flat, source_kernel="Br40", target_kernel="B70f")
    code, _, err = invoke("calibrate", flat, "--from", "Br40", "-o", tmp_path / "n")
    assert (code, "--to KERNEL" in err) == (2, True)


def test_a_source_without_a_partner_is_named(exams: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(exams, tree)
    shutil.rmtree(tree / "beta" / "Bl64")
    pairs, failures = pairs_of_folder(tree, source_kernel="Br40", target_kernel="Bl64")
    assert len(pairs) == 1
    assert len(failures) == 1
    assert "beta/Br40: no Bl64 series" in failures[0]


def test_a_manifest_names_the_series_of_a_flat_export(flat: Path, tmp_path: Path) -> None:
    found = cohort_folder(flat, source_kernel="Br40", target_kernel="Bl64", output=tmp_path / "cohort")
    assert found.manifest is not None
    rows = read_manifest(found.manifest)
    assert all(row.source == row.target and row.source_series != row.target_series for row in rows)
    pairs = pairs_of_manifest(found.manifest, split=None)
    assert [(s.kernel, t.kernel) for s, t in pairs] == [("Br40", "Bl64")] * 2
    jobs = jobs_of_manifest(found.manifest, role="target")
    assert {job.series for job in jobs} == {row.target_series for row in rows}


def test_a_split_that_is_empty_says_where_the_pairs_are(exams: Path, tmp_path: Path) -> None:
    row = PairRow(pair="p", subject="s", split="test", source=exams / "alpha/Br40", target=exams / "alpha/Bl64")
    manifest = write_manifest(tmp_path / "pairs.csv", [row])
    code, _, err = invoke("calibrate", "--pairs", manifest, "-o", tmp_path / "m")
    assert code == 2
    assert "found none there but 1 in split test" in err


def test_a_second_run_says_that_the_scans_were_already_there(exams: Path, model: Path, tmp_path: Path) -> None:
    words = ("standardize", exams, "-m", model, "-o", tmp_path / "out", "--mode", "mean")
    code, first, _ = invoke(*words)
    assert "done: alpha/Br40 -> alpha/Br40" in first
    assert "4 scans: 2 done, 2 skipped" in first
    code, second, _ = invoke(*words)
    assert code == 0
    assert "already there: alpha/Br40 -> alpha/Br40" in second
    assert "4 scans: 2 already there, 2 skipped" in second


def test_general_options_stand_before_or_after_the_verb(exams: Path, model: Path, tmp_path: Path) -> None:
    words = ("standardize", exams, "-m", model, "--mode", "mean")
    code, out, err = invoke("--quiet", *words, "-o", tmp_path / "one", "--log", tmp_path / "run.log")
    assert code == 0
    assert err == ""
    assert "done: alpha/Br40" in out
    log = (tmp_path / "run.log").read_text()
    assert "done: alpha/Br40" in log
    assert "Secret" not in log
    assert "skipped" in log  # what a quiet terminal does not show
    code, _, err = invoke(*words, "-o", tmp_path / "two", "--verbose")
    assert "2 scans to standardize" in err


def test_help_shows_no_type_beside_a_switch() -> None:
    for words in (("standardize",), ("cohort", "folder"), ()):
        assert "<bool>" not in invoke(*words, "--help")[1]


#: What no verb of the plain tool may need, tried with these out of reach.
PLAIN = """
import sys
from concordct import cli
from typer.testing import CliRunner
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("numba", "SimpleITK", "skimage", "pywt", "matplotlib", "torch"):
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Missing())
exam, root = sys.argv[1:]
for words in (
    ["inspect", exam, "--identify"],
    ["calibrate", exam, "--from", "Br40", "--to", "Bl64", "-o", root + "/m"],
    ["standardize", exam, "-m", root + "/m", "-o", root + "/out"],
    ["describe", root + "/m"],
    ["cohort", "folder", exam, "--kernel", "Br40", "--kernel", "Bl64", "-o", root + "/cohort"],
):
    found = CliRunner().invoke(cli.common.app, words)
    assert found.exit_code == 0, (words, found.output, found.exception)
"""


def test_the_plain_tool_needs_no_extra(exams: Path, tmp_path: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-c", PLAIN, exams / "alpha", tmp_path], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr


def test_a_folder_without_scans_says_so(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no scan")
    code, out, _ = invoke("inspect", tmp_path)
    assert code == 0
    assert out.startswith("no scan found in ")
    assert "set aside: 1 x not a DICOM file" in out


def test_completion_is_offered() -> None:
    code, out, _ = invoke("--help")
    assert code == 0
    assert "--show-completion" in out


def test_ctrl_c_says_how_to_go_on(model: Path, tmp_path: Path) -> None:
    many = tmp_path / "in"
    scan = volume(pair(seed=3, size=SIZE)[0])
    for number in range(25):
        write_volume_file(many / f"ct-{number:02d}.nrrd", scan)
    command = [sys.executable, "-c", "from concordct.cli import main; main()", "standardize", many, "-m", model]
    process = subprocess.Popen(
        [*map(str, command), "-o", str(tmp_path / "out")], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not any((tmp_path / "out").glob("*.json")):
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.strip().splitlines()[-1].startswith("interrupted: what was finished stands")
    assert "Traceback" not in err


def test_inspect_names_scanner_date_and_the_kernels_that_a_scan_looks_like(shared_data: Path, tmp_path: Path) -> None:
    code, out, _ = invoke("inspect", shared_data / "chest_B40f", "--identify", "--json")
    assert code == 0
    (scan,) = json.loads(out)["scans"]
    assert (scan["kernel"], scan["scanner"]) == ("B40f", "Siemens")
    assert scan["looks_like"][0]["kernel"] in ("B40f", "STANDARD", "FC08")  # within a fifth of each other in MTF50
    assert scan["looks_like"][0]["distance"] < scan["looks_like"][-1]["distance"]
    write_volume_file(tmp_path / "air.nii.gz", volume(np.full((2, 32, 32), -1000.0)))
    code, out, _ = invoke("inspect", tmp_path / "air.nii.gz", "--identify", "--json")
    assert json.loads(out)["scans"][0]["looks_like"] == []


def test_a_zip_is_read_as_the_tree_that_it_holds(exams: Path, model: Path, tmp_path: Path) -> None:
    shutil.make_archive(str(tmp_path / "exams"), "zip", exams)
    words = ("standardize", tmp_path / "exams.zip", "-m", model, "-o", tmp_path / "out", "--mode", "mean")
    code, out, _ = invoke(*words)
    assert code == 0
    assert "done: alpha/Br40 -> alpha/Br40" in out
    assert "already there: beta/Br40" in invoke(*words)[1]
    code, out, _ = invoke("inspect", tmp_path / "exams.zip", "--json")
    assert {scan["path"] for scan in json.loads(out)["scans"]} >= {"alpha/Bl64", "beta/Br40"}
    code, _, err = invoke("calibrate", tmp_path / "exams.zip", "--from", "Br40", "--to", "Bl64", "-o", tmp_path / "m")
    assert code == 0, err
