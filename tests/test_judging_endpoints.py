"""Endpoints in the verdict: bias and classes against a target, what changed without one, programs downstream."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from concordct.cli.common import app
from concordct.errors import ConcordctError
from concordct.judging.endpoints import endpoint_rows, endpoints_of, masks_for
from concordct.pipelines.calibrate import calibrate_pairs, pairs_of_manifest
from concordct.pipelines.compare import compare
from concordct.pipelines.programs import compared, program
from concordct.volumes.manifest import read_manifest, write_manifest
from concordct.volumes.volume import Volume
from learning import cohort
from test_pipelines_measure import SPACING_MM, chest, write


def volume(hu: np.ndarray) -> Volume:
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2] = SPACING_MM
    affine[3, 3] = 1.0
    return Volume(hu.astype(np.float32), affine, slice_thickness_mm=3.0)


def test_rows_hold_bias_and_changed_classes() -> None:
    hu = chest()
    lungs = np.isin(hu, (-850.0, -985.0))
    moved = np.where(lungs & (hu == -850.0), -960.0, hu)
    masks = masks_for(volume(hu))
    cases = [
        {"source": endpoints_of(volume(hu), masks), "standardized": endpoints_of(volume(moved), masks),
         "target": endpoints_of(volume(hu), masks)}
    ] * 3  # fmt: skip
    rows = {row["name"]: row for row in endpoint_rows(cases, ["a", "b", "c"], target="target")}
    low = rows["laa950_lungs_percent"]
    assert low["stages"]["source"]["bias"] == 0
    assert low["stages"]["source"]["changed"] == 0
    before = 100 * (hu == -985).sum() / lungs.sum()
    assert low["stages"]["standardized"]["bias"] == pytest.approx(100 - before, abs=6)
    assert low["stages"]["standardized"]["changed"] == (1.0 if before < 5 else 0.0)
    assert "laa950_right_percent" in rows


def test_what_is_no_chest_has_noise_alone() -> None:
    hu = np.where(np.hypot(*np.mgrid[-64:64, -64:64]) < 50, 40.0, -1000.0)[None].repeat(4, 0)
    masks = masks_for(volume(hu))
    found = endpoints_of(volume(hu + np.random.default_rng(0).normal(0, 9, hu.shape)), masks)
    assert masks.of("lungs") is None
    assert found["laa950_lungs_percent"] is None
    assert found["noise_level_hu"] is not None


def test_without_a_target_a_changed_class_is_warned_of(tmp_path: Path) -> None:
    hu = chest()
    one, other = write(tmp_path / "a.nii.gz", hu), write(tmp_path / "b.nii.gz", np.where(hu == 450.0, 60.0, hu))
    arguments = ["evaluate", "--reference", "none", "--source", str(one), "--standardized", str(other)]
    found = CliRunner().invoke(app, [*arguments, "-o", str(tmp_path / "out")])
    assert found.exit_code == 0, found.output
    assert "clinical class changed: a.nii.gz: Agatston score from" in found.output
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    rows = {row["name"]: row for row in results["endpoints"]}
    assert rows["agatston"]["standardized"] == 0
    assert rows["laa950_lungs_percent"]["change"] == 0
    assert (tmp_path / "out" / "endpoints.csv").read_text().startswith("name,unit,source,standardized,change\n")


#: A program that a user has: reads NIfTI, prints what share of the scan is dense and how rough it is.
PROGRAM = """
import json, sys
import numpy as np
import SimpleITK as sitk
image = sitk.ReadImage(sys.argv[1])
hu = sitk.GetArrayFromImage(image)
if len(sys.argv) > 2:
    labels = sitk.GetImageFromArray((np.abs(np.diff(hu, axis=2, append=hu[..., -1:])) > 25).astype(np.uint8))
    labels.CopyInformation(image)
    sitk.WriteImage(labels, sys.argv[2])
rough = np.abs(np.diff(hu[:, 12:-12, 12:-12], axis=2)).mean()
print(json.dumps({"rough": float(rough), "dense": float((hu > 0).mean())}))
"""


@pytest.mark.slow
def test_programs_are_asked_on_source_output_and_target(tmp_path: Path) -> None:
    manifest = cohort(tmp_path / "cohort", 4)
    rows = read_manifest(manifest)
    rows = (*rows[:2], *(row.model_copy(update={"split": "test"}) for row in rows[2:]))
    write_manifest(manifest, rows, overwrite=True)
    calibrate_pairs(pairs_of_manifest(manifest), tmp_path / "model", method="spectral")
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "few.yaml").write_text("featureClass:\n  firstorder: [Mean, Kurtosis]\n")
    call = f"{sys.executable} {tmp_path / 'program.py'} {{input}}"
    results = compare(
        manifest,
        {"spectral": tmp_path / "model"},
        tmp_path / "out",
        preset=str(tmp_path / "few.yaml"),
        endpoints=True,
        downstream=(call, call + " {output.nii.gz}"),
    )
    numbers, labels = results["downstream"]
    rough = next(row for row in numbers["rows"] if row["name"] == "rough")
    assert rough["after"] < 0.5 * rough["before"]
    assert rough["gain"] == pytest.approx(rough["before"] - rough["after"], rel=1e-4)
    assert labels["rows"][0]["name"] == "Dice of label 1"
    assert labels["rows"][0]["gain"] > 0
    assert any(row["name"] == "noise_level_hu" for row in results["endpoints"])
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Downstream" in page
    assert "Endpoints against the target" in page


def test_dice_of_labels_against_the_references() -> None:
    a, b = np.zeros((1, 2, 4), int), np.zeros((1, 2, 4), int)
    a[0, 0], b[0, 0, :2], b[0, 1, 0] = 1, 1, 2
    names, values = compared([a, b], volume(np.zeros((1, 2, 4))))
    assert names == ("Dice of label 1", "Dice of label 2")
    assert values == [[pytest.approx(2 * 2 / 6), 0.0], [1.0, 1.0]]


def test_a_program_that_fails_is_named(tmp_path: Path) -> None:
    scan = volume(np.zeros((2, 8, 8)))
    with pytest.raises(ConcordctError, match="ended with 3: gone"):
        program(f"{sys.executable} -c \"import sys; sys.stderr.write('gone'); sys.exit(3)\" {{input}}")(scan)
    with pytest.raises(ConcordctError, match="numbers as JSON"):
        program(f"{sys.executable} -c \"print('hello')\" {{input}}")(scan)
    with pytest.raises(ConcordctError, match="Python function"):
        program("no_such_module:score")
    with pytest.raises(ConcordctError, match=r"with \{input\} or module:function"):
        program("sybil2")
