"""`measure`: masks found in the image, pairs under one mask, regions, what is undefined, and resuming."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from typer.testing import CliRunner

from concordct.cli.common import app
from concordct.errors import ConcordctError
from concordct.judging.endpoints import class_warnings
from concordct.pipelines import measure
from concordct.pipelines.measure_image import Choice, MeasureJob
from concordct.volumes.manifest import PairRow, write_manifest

SPACING_MM = (3.0, 2.5, 2.5)


def chest(*, blood_hu: float = 42.0, plaque_hu: float = 450.0) -> np.ndarray:
    """A body with two lungs, emphysema in the left one, a heart with a plaque, spine and sternum. Feet first."""
    z, y, x = np.meshgrid(
        *(np.arange(n) * s - (n - 1) * s / 2 for n, s in zip((24, 104, 150), SPACING_MM, strict=True)), indexing="ij"
    )
    hu = np.where((x / 170) ** 2 + (y / 118) ** 2 < 1, -100.0, -1000.0)
    hu[(x / 155) ** 2 + (y / 105) ** 2 < 1] = 50.0
    for side in (-1, 1):
        hu[((x - side * 78) / 58) ** 2 + (y / 88) ** 2 < 1] = -850.0
    hu[(((x - 100) / 16) ** 2 + (y / 30) ** 2 < 1) & (z > 0)] = -985.0
    hu[(x / 45) ** 2 + ((y + 20) / 45) ** 2 < 1] = blood_hu
    hu[(np.hypot(x, y - 80) < 17) | ((np.abs(x) < 18) & (np.abs(y + 96) < 6))] = 300.0
    hu[(np.hypot(x - 20, y + 30) < 5) & (np.abs(z) < 8)] = plaque_hu
    hu[np.sqrt((x + 80) ** 2 + y**2 + z**2) < 9] = 20.0
    return hu


def write(path: Path, hu: np.ndarray, spacing_mm: tuple[float, float, float] = SPACING_MM) -> Path:
    image = sitk.GetImageFromArray(hu.astype(np.int16))
    image.SetSpacing(spacing_mm[::-1])
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))
    return path


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def nodule(hu: np.ndarray) -> np.ndarray:
    mask = np.zeros(hu.shape)
    mask[:, :, :75] = hu[:, :, :75] == 20.0
    return mask


def test_one_image_under_masks_that_are_found_in_it(tmp_path: Path) -> None:
    hu = chest()
    image, mask = write(tmp_path / "chest.nii.gz", hu), write(tmp_path / "mask.nii.gz", nodule(hu))
    found = CliRunner().invoke(app, ["measure", str(image), "--mask", str(mask), "-o", str(tmp_path / "out.csv")])
    assert found.exit_code == 0, found.output
    whole, region = rows(tmp_path / "out.csv")
    lungs = np.isin(hu, (-850.0, -985.0))
    assert float(whole["laa950_lungs_percent"]) == pytest.approx(100 * (hu == -985).sum() / lungs.sum(), rel=0.06)
    assert float(whole["laa950_right_percent"]) == 0.0
    assert float(whole["laa950_upper_percent"]) > float(whole["laa950_lower_percent"]) == 0.0
    plaque = (hu == 450).sum() * np.prod(SPACING_MM) / 1000
    assert float(whole["calcium_volume_ml"]) == pytest.approx(plaque)
    assert float(whole["agatston"]) == pytest.approx(plaque * 1000 / 3 * 4)
    assert (whole["region"], region["region"]) == ("", "1")
    assert float(region["nodule_diameter_mm"]) == pytest.approx(18, abs=1.5)
    assert region["laa950_lungs_percent"] == ""
    told = json.loads((tmp_path / "out.json").read_text())
    assert told["columns"]["perc15_lungs_hu"] == "Perc15, lungs [HU]"
    assert not (tmp_path / ".out.csv.images").exists()


def test_contrast_medium_and_thick_slices_are_said(tmp_path: Path) -> None:
    enhanced = write(tmp_path / "tree" / "a.nii.gz", chest(blood_hu=200.0))
    write(tmp_path / "tree" / "b" / "thick.nii.gz", chest()[::2], (6.0, 2.5, 2.5))
    write(tmp_path / "tree" / "c.nii.gz", np.where(chest() < -500, 30, 40) - 100 * (np.arange(104)[:, None] < 8))
    found = measure.measure_images(measure.jobs_of_path(tmp_path / "tree"), tmp_path / "out.csv")
    by = {outcome.image: outcome for outcome in found}
    assert "contrast medium" in by["a.nii.gz" if "a.nii.gz" in by else "a"].notes[0]
    assert enhanced.exists()
    thick = by["b/thick.nii.gz"]
    assert "Agatston score needs slices" in thick.notes[0]
    assert thick.rows[0].values["agatston"] is None
    assert thick.rows[0].values["laa950_lungs_percent"] is not None
    failed = [one for one in found if one.status == "failed"]
    assert len(failed) == 1
    assert str(tmp_path / "tree" / "c.nii.gz") in failed[0].reason
    assert len(rows(tmp_path / "out.csv")) == 2


def test_a_pair_has_one_mask_and_a_run_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hu = chest()
    noise = np.random.default_rng(0).normal(0, 30, hu.shape)
    source = write(tmp_path / "a" / "source.nii.gz", hu)
    target = write(tmp_path / "a" / "target.nii.gz", hu + noise * (hu > -1000))
    write_manifest(tmp_path / "pairs.csv", [PairRow(pair="p", subject="s", split="test", source=source, target=target)])
    jobs = measure.jobs_of_manifest(tmp_path / "pairs.csv")
    choice = Choice(("density", "emphysema"))
    real = measure.measure_job
    calls: list[str] = []

    def counted(job: MeasureJob, *others: object) -> object:
        if len(calls) == 1:
            raise KeyboardInterrupt
        calls.append(job.stage)
        return real(job, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(measure, "measure_job", counted)
    with pytest.raises(KeyboardInterrupt):
        measure.measure_images(jobs, tmp_path / "out.csv", choice=choice)
    assert not (tmp_path / "out.csv").exists()
    monkeypatch.setattr(measure, "measure_job", real)
    found = measure.measure_images(jobs, tmp_path / "out.csv", choice=choice)
    assert [outcome.status for outcome in found] == ["resumed", "done"]
    first, second = rows(tmp_path / "out.csv")
    assert (first["stage"], second["stage"]) == ("source", "target")
    assert first["volume_lungs_ml"] == second["volume_lungs_ml"]
    assert first["perc15_lungs_hu"] != second["perc15_lungs_hu"]
    with pytest.raises(ConcordctError, match="stays as it is"):
        measure.measure_images(jobs, tmp_path / "out.csv", choice=choice)


def test_what_cannot_be_measured_is_refused_in_one_line(tmp_path: Path) -> None:
    hu = chest()
    image = write(tmp_path / "chest.nii.gz", hu)
    other = write(tmp_path / "mask.nii.gz", nodule(hu)[:, ::2], (3.0, 5.0, 2.6))
    with pytest.raises(ConcordctError, match="another geometry"):
        measure.measure_images(measure.jobs_of_path(image, regions=other), tmp_path / "out.csv")
    empty = write(tmp_path / "air.nii.gz", np.full((8, 32, 32), -1000.0))
    with pytest.raises(ConcordctError, match="no lung found"):
        measure.measure_images(measure.jobs_of_path(empty), tmp_path / "out.csv")
    with pytest.raises(ConcordctError, match="expected endpoints among"):
        Choice(("lungs",))
    with pytest.raises(ConcordctError, match=r"ends in \.csv"):
        measure.measure_images(measure.jobs_of_path(image), tmp_path / "out.txt")
    assert not [*tmp_path.glob("out*"), *tmp_path.glob(".out*")]


def test_a_changed_class_is_named() -> None:
    before = {"laa950_lungs_percent": 7.0, "agatston": 90.0, "perc15_lungs_hu": -950.0}
    after = {"laa950_lungs_percent": 3.0, "agatston": 95.0, "perc15_lungs_hu": -900.0}
    assert class_warnings(before, after) == ["LAA-950, lungs from 7 to 3"]
    said = class_warnings(before, after, name="p1", target=before | {"laa950_lungs_percent": 3.2})
    assert said == ["p1: LAA-950, lungs from 7 to 3, target 3.2"]
