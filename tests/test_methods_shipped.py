"""Models that come with the package: opened by name, small enough, and honest about what they know."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from concordct.errors import ConcordctError
from concordct.methods.models import load_model, shipped
from concordct.pipelines.standardize import Settings, plan, run
from concordct.training.bundle import load_bundle, save_bundle
from concordct.volumes.files import open_volume_file, write_volume_file
from learning import pair

NAMES = ("ltdiffpp", "diffusionct", "pix2pix")


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_model_standardizes_by_its_name_and_says_what_it_knows(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    soft, sharp = pair(3, depth=1, size=128)
    source, output = tmp_path / "soft.nii.gz", tmp_path / "out.nii.gz"
    write_volume_file(source, soft)
    model = load_model(Path(name))
    (record,) = run(plan(source, output, model, Settings(seed=1)), model, output, Settings(seed=1))
    assert record.status == "done", record.reason
    assert any("one kernel pair, Br40 to Bl64" in note for note in record.notes)
    assert model.source_kernels == ("Br40",)
    made = open_volume_file(output).read().hu
    inside = np.s_[0, 24:-24, 24:-24]
    rough = [float(np.diff(hu[inside], axis=1).std()) for hu in (soft.hu, made, sharp.hu)]
    # Sharper than the source, without having seen this object's target.
    assert rough[1] > 1.3 * rough[0]
    assert np.abs(made[inside].mean() - soft.hu[inside].mean()) < 40


def test_weights_are_small_and_named() -> None:
    assert set(NAMES) <= set(shipped())
    for path in shipped().values():
        assert (path / "models" / "model.safetensors").stat().st_size < 16_000_000
        assert "medical device" in (path / "docs" / "README.md").read_text()


def test_a_folder_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's own model is never taken for the one that ships."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ltdiffpp").mkdir()
    with pytest.raises(ConcordctError, match="expected a model folder"):
        load_model(Path("ltdiffpp"))


def test_a_model_that_lacks_weights_is_refused_when_it_is_opened(tmp_path: Path) -> None:
    whole = load_bundle(shipped()["pix2pix"])
    lacking = replace(whole, tensors=dict(list(whole.tensors.items())[1:]))
    save_bundle(lacking, tmp_path / "model", card="lacks one")
    with pytest.raises(ConcordctError, match="model: expected"):
        load_model(tmp_path / "model")
