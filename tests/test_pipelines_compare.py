"""The comparison: rows, both definitions of agreement, the ceiling, resuming, and what the page holds."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from concordct.cli import common
from concordct.errors import ConcordctError
from concordct.judging import kept
from concordct.judging.regions import RANDOM, WHOLE
from concordct.methods import catalogue
from concordct.pipelines.compare import CEILING, INPUT, compare
from concordct.pipelines.train import train
from concordct.volumes.files import write_volume_file
from concordct.volumes.manifest import read_manifest, write_manifest
from learning import FITS, cohort, offer, pair, recipes

PRESET = """
imageType:
  Original: {}
featureClass:
  firstorder: [Mean, Variance, Entropy]
  glcm: [Contrast, Correlation, Id]
setting:
  binWidth: 25
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cohort with two test subjects, a histogram model, and the result of comparing."""
    folder = tmp_path_factory.mktemp("compare")
    manifest = cohort(folder / "cohort", 4)
    rows = read_manifest(manifest)
    rows = (*rows[:2], *(row.model_copy(update={"split": "test"}) for row in rows[2:]))
    write_manifest(manifest, rows, overwrite=True)
    (folder / "few.yaml").write_text(PRESET)
    train("histogram", manifest, folder / "h")
    compare(
        manifest,
        {"histogram matching": folder / "h"},
        folder / "out",
        ceiling=manifest,
        preset=str(folder / "few.yaml"),
    )
    return folder


def test_rows_regions_and_both_agreements(made: Path) -> None:
    results = json.loads((made / "out" / "results.json").read_text())
    assert [row["name"] for row in results["table"][RANDOM]] == [INPUT, "histogram matching", CEILING]
    assert results["classes"] == ["firstorder", "glcm"]
    assert results["rois"][WHOLE] == 2 * 3
    assert results["subjects"] == 2
    by_name = {row["name"]: row["classes"] for row in results["table"][RANDOM]}
    # The same scan as its own second scan agrees wholly, in both definitions.
    assert by_name[CEILING]["glcm"]["ccc"] == pytest.approx(1)
    assert by_name[CEILING]["glcm"]["papers_ccc"] == pytest.approx(1)
    assert by_name[INPUT]["glcm"]["ccc"] < 0.9
    assert by_name["histogram matching"]["glcm"]["best"]
    low, high = by_name[INPUT]["glcm"]["interval"]
    assert low <= by_name[INPUT]["glcm"]["ccc"] <= high
    assert by_name[INPUT]["glcm"]["difference_to_input"] == [0, 0]
    cost = results["cost"]["histogram matching"]
    assert cost["seconds_per_slice"] > 0
    assert cost["rows"] == 64


def test_the_page_is_whole_and_offline(made: Path) -> None:
    page = (made / "out" / "report.html").read_text()
    assert "histogram matching" in page
    assert page.count("data:image/png;base64") == 2
    assert "http:" not in page
    assert "https:" not in page
    assert "<b>" in page


def test_a_second_run_takes_what_stands_and_gives_the_same(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(made / "out.run", tmp_path / "again.run")

    def never(*args: object, **options: object) -> None:
        raise AssertionError("features were computed again")

    monkeypatch.setattr(kept, "extract", never)
    compare(
        made / "cohort" / "pairs.csv",
        {"histogram matching": made / "h"},
        tmp_path / "again",
        ceiling=made / "cohort" / "pairs.csv",
        preset=str(made / "few.yaml"),
    )
    assert (tmp_path / "again" / "results.json").read_bytes() == (made / "out" / "results.json").read_bytes()


def test_refusals_are_one_line(made: Path, tmp_path: Path) -> None:
    manifest = made / "cohort" / "pairs.csv"
    with pytest.raises(ConcordctError, match="split 'none'"):
        compare(manifest, {}, tmp_path / "x", split="none")
    with pytest.raises(ConcordctError, match="expected a model folder"):
        compare(manifest, {"a": tmp_path}, tmp_path / "x")
    with pytest.raises(ConcordctError, match="exists"):
        compare(manifest, {}, made / "out")
    # A target of other geometry: the pair is refused with what was found.
    write_volume_file(tmp_path / "other.nii.gz", pair(0, size=48)[1])
    row = read_manifest(manifest)[-1].model_copy(update={"target": tmp_path / "other.nii.gz"})
    broken = write_manifest(tmp_path / "broken.csv", [row])
    with pytest.raises(ConcordctError) as found:
        compare(broken, {}, tmp_path / "x")
    assert "\n" not in str(found.value)


def test_a_place_that_cannot_be_written_is_one_line(made: Path) -> None:
    with pytest.raises(ConcordctError, match="/proc/none"):
        compare(
            made / "cohort" / "pairs.csv",
            {"histogram matching": made / "h"},
            Path("/proc/none/out"),
            preset=str(made / "few.yaml"),
        )


def test_the_verbs(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer({"unetpp": recipes()["unetpp"]}, monkeypatch.setattr)
    manifest, runner = str(made / "cohort" / "pairs.csv"), CliRunner()
    done = runner.invoke(common.app, ["train", "unetpp", manifest, "-o", str(tmp_path / "u"), "--most-steps", "4"])
    assert done.exit_code == 0, done.output
    assert "parameters" in done.output
    args = ["compare", manifest, "-m", f"U={tmp_path / 'u'}", "-o", str(tmp_path / "c"), "--preset"]
    done = runner.invoke(common.app, [*args, str(made / "few.yaml")])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "c" / "report.html").exists()
    with pytest.raises(ConcordctError, match="NAME=PATH"):
        runner.invoke(common.app, ["compare", manifest, "-m", "U", "-o", str(tmp_path / "d")], catch_exceptions=False)


def test_every_method_of_the_catalogue_opens_and_the_verbs_offer_it() -> None:
    for name, place in catalogue.CATALOGUE.items():
        method = catalogue.method(name)
        assert (method.fit is not None) == (place.fitted_by == "train"), name
    shown = CliRunner().invoke(common.app, ["train", "--help"], env={"COLUMNS": "300"}).output
    assert all(name in shown for name in catalogue.names("train"))
    with pytest.raises(ConcordctError, match=r"expected a method of .*ltdiffpp.*, found 'unknown'"):
        catalogue.method("unknown")


def test_recipes_fit_their_systems() -> None:
    """Every recipe builds, its patch and tile are multiples of what its network divides by, and gpu runs are small."""
    builders = {"ltdiffpp": "LTDiffPlusPlus", "diffusionct": "DiffusionCT", "ddpm": "ImageDDPM"}
    by_method = {name: catalogue.method(name).recipes for name in FITS}
    for method, by_name in by_method.items():
        assert {"paper", "small", "gpu"} <= set(by_name)
        for name, recipe in by_name.items():
            if name == "paper" and method == "ddpm":
                continue  # a hundred million weights, built in the same way
            system = getattr(FITS[method], builders.get(method, "Regressor"))(recipe.config)
            assert recipe.patch % system.divisor == 0, (method, name)
            if system.tile is not None:
                assert system.tile == recipe.patch
            stored = json.loads(json.dumps(dataclasses.asdict(recipe.config)))
            again = FITS[method].build(stored)
            assert [p.shape for p in again.parameters()] == [p.shape for p in system.parameters()]
            assert np.isfinite(sum(p.numel() for p in system.parameters()))
