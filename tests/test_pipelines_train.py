"""Training as a user runs it: pieces that resume, images without partner, what the run leaves, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from concordct.errors import ConcordctError
from concordct.methods.models import load_model
from concordct.pipelines.standardize import Settings, plan, run
from concordct.pipelines.train import train
from concordct.training.checkpoint import LARGEST_FILE
from concordct.volumes.files import open_volume_file, write_volume_file
from learning import cohort, offer, pair, recipes


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(recipes(), monkeypatch.setattr)


def test_pieces_end_where_one_run_ends(tmp_path: Path) -> None:
    manifest = cohort(tmp_path / "cohort")
    whole = train("ltdiffpp", manifest, tmp_path / "whole")
    assert whole.done
    pieces = 0
    while not train("ltdiffpp", manifest, tmp_path / "pieces", minutes=0).done:
        pieces += 1
        assert not (tmp_path / "pieces").exists()
        assert pieces < 40
    assert pieces >= 3
    assert load_model(tmp_path / "whole").sha256 == load_model(tmp_path / "pieces").sha256
    files = list((tmp_path / "whole.run").rglob("*.safetensors"))
    assert files
    assert max(file.stat().st_size for file in files) < LARGEST_FILE + 100_000


def test_images_without_partner_enter_the_first_phase(tmp_path: Path) -> None:
    manifest = cohort(tmp_path / "cohort")
    (tmp_path / "more").mkdir()
    write_volume_file(tmp_path / "more" / "other.nii.gz", pair(77)[0])
    plain, more = tmp_path / "plain", tmp_path / "with-more"
    train("ltdiffpp", manifest, plain)
    train("ltdiffpp", manifest, more, images=tmp_path / "more")
    assert load_model(plain).sha256 != load_model(more).sha256
    (tmp_path / "none").mkdir()
    with pytest.raises(ConcordctError, match="expected CT scans, found none"):
        train("ltdiffpp", manifest, tmp_path / "x", images=tmp_path / "none")


def test_the_run_leaves_a_card_metrics_and_a_model_that_standardizes(tmp_path: Path) -> None:
    manifest = cohort(tmp_path / "cohort")
    train("diffusionct", manifest, tmp_path / "model")
    card = (tmp_path / "model" / "docs" / "README.md").read_text()
    for word in ("2 pairs", "6 slices", "2 subjects", "autoencoder", "diffusion", "Research use"):
        assert word in card
    metadata = json.loads((tmp_path / "model" / "configs" / "metadata.json").read_text())
    assert metadata["info"]["subjects"] == 2
    assert metadata["recipe"]["phases"]["diffusion"]["steps"] == 6
    model, source = load_model(tmp_path / "model"), tmp_path / "cohort" / "source2.nii.gz"
    digests = []
    for name in ("a.nii.gz", "b.nii.gz"):
        planned = plan(source, tmp_path / name, model, Settings(seed=3))
        (record,) = run(planned, model, tmp_path / name, Settings(seed=3))
        assert record.status == "done", record.reason
        digests.append(record.pixels_sha256)
    assert digests[0] == digests[1]
    assert open_volume_file(tmp_path / "a.nii.gz").shape == (3, 64, 64)


def test_steps_start_and_depth_are_settings_that_are_recorded(tmp_path: Path) -> None:
    manifest = cohort(tmp_path / "cohort")
    train("ltdiffpp", manifest, tmp_path / "model")
    model, source = load_model(tmp_path / "model"), tmp_path / "cohort" / "source2.nii.gz"
    digests = {}
    for name, sampling in {
        "plain": {},
        "depth": {"depth": 1},
        "steps": {"steps": 5},
        "start": {"start": "source", "steps": 3},
    }.items():
        settings = Settings(seed=3, sampling=sampling)
        output = tmp_path / f"{name}.nii.gz"
        (record,) = run(plan(source, output, model, settings), model, output, settings)
        assert record.status == "done", record.reason
        digests[name] = record.pixels_sha256
        written = json.loads((tmp_path / f"{name}.nii.gz.json").read_text())["derivation"]["settings"]["sampling"]
        assert {key: written[key] for key in sampling} == sampling
    # The tiny model is of depth 1: pruned to it, it is whole.
    assert digests["plain"] == digests["depth"]
    assert len(set(digests.values())) == 3
    for sampling, text in (
        ({"depth": 2}, "depth of 0 to 1, found 2"),
        ({"steps": 9}, "1 to 8 sampling steps, found 9"),
    ):
        with pytest.raises(ConcordctError, match=text):
            model.standardizer(mode="sample", sampling=sampling)


def test_subjects_of_other_splits_are_not_trained_on(tmp_path: Path) -> None:
    """The test subject's voxels are not even copied."""
    manifest = cohort(tmp_path / "cohort")
    train("unetpp", manifest, tmp_path / "model")
    assert len(list((tmp_path / "model.run" / "voxels").glob("*.npy"))) == 4


def test_another_recipe_or_data_in_the_place_is_refused(tmp_path: Path) -> None:
    manifest = cohort(tmp_path / "cohort")
    assert not train("unetpp", manifest, tmp_path / "model", minutes=0).done
    with pytest.raises(ConcordctError, match="another recipe"):
        train("unetpp", manifest, tmp_path / "model", seed=5)
    with pytest.raises(ConcordctError, match="another data"):
        train("unetpp", manifest, tmp_path / "model", split="test")
    # A source paired with another scan's target is no pair.
    text = manifest.read_text().replace("target0", "target2")
    (manifest.parent / "wrong.csv").write_text(text)
    with pytest.raises(ConcordctError) as found:
        train("unetpp", manifest.parent / "wrong.csv", tmp_path / "other")
    assert "\n" not in str(found.value)
