"""Cosine transforms through PyTorch: SciPy's, and HU of the flagship within 0.01; the script for a card, dry."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from benchmarks import gpu_speed
from scipy import fft

from concordct.errors import ConcordctError
from concordct.methods.models import load_model
from concordct.pipelines.calibrate import calibrate_pairs, pairs_of_paths
from concordct.pipelines.standardize import Settings, plan, run
from concordct.signal import torch_cosines
from concordct.signal.spectra import detail_to_cosines, transforms_on
from concordct.volumes.files import write_volume_file
from concordct.volumes.seeds import SliceSeeds
from learning import pair


@pytest.mark.parametrize("shape", [(8, 8), (7, 9), (1, 4), (96, 65), (512, 512)])
def test_transforms_are_scipy_s(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).normal(0, 500, shape).astype(np.float32)
    wanted = fft.dctn(image, type=2, norm="ortho")
    np.testing.assert_allclose(torch_cosines.dctn(image, "cpu"), wanted, atol=2e-3)
    np.testing.assert_allclose(torch_cosines.idctn(wanted, "cpu"), image, atol=2e-3)


def test_the_flagship_gives_the_same_hu_and_says_what_it_ran_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, volume in zip(("soft", "sharp"), pair(0, size=128), strict=True):
        write_volume_file(tmp_path / f"{name}.nii.gz", volume)
    calibrate_pairs(pairs_of_paths(tmp_path / "soft.nii.gz", tmp_path / "sharp.nii.gz"), tmp_path / "model")
    model = load_model(tmp_path / "model")
    work, volume = model.standardizer(mode="sample"), pair(3, size=128)[0]
    wanted = work(volume, generator=SliceSeeds(1, "x")).hu
    calls: list[str] = []
    original = torch_cosines.dctn
    monkeypatch.setattr(torch_cosines, "dctn", lambda image, device: (calls.append(device), original(image, device))[1])
    with transforms_on("cpu"):
        found = work(volume, generator=SliceSeeds(1, "x")).hu
    assert set(calls) == {"cpu"}
    assert not np.array_equal(found, wanted)
    # The transfer of this pair amplifies more than that of any scanner; single precision in SciPy is what differs.
    apart = np.abs(found - wanted)
    assert float(np.percentile(apart, 99.9)) < 0.01
    assert float(apart.max()) < 0.02
    settings = Settings(check="off", device="cpu")
    output = tmp_path / "out.nii.gz"
    (record,) = run(plan(tmp_path / "soft.nii.gz", output, model, settings), model, output, settings)
    assert record.status == "done"
    assert '"device": "cpu"' in output.with_name("out.nii.gz.json").read_text()
    assert calls[-1] == "cpu"
    calls.clear()
    detail_to_cosines(volume.hu[0])
    assert calls == []


def test_a_card_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConcordctError, match="expected a card for device cuda, found none"), transforms_on("cuda"):
        pass


def test_the_measurement_for_a_card_runs_dry(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_speed", "--device", "cpu", "--matrix", "64", "--slices", "2"])
    gpu_speed.main()
    said = capsys.readouterr().out
    assert "PyTorch on the processor" in said
    assert float(said.split("Largest difference ")[1].split()[0]) < 0.02
