"""Downstream consistency with a small classifier that was really fitted: sharp or soft, by logistic regression."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from concordct.errors import ConcordctError
from concordct.pipelines.calibrate import calibrate_pairs, pairs_of_manifest
from concordct.pipelines.consistency import consistency
from concordct.pipelines.models import load_model
from concordct.volumes.manifest import read_manifest, write_manifest
from concordct.volumes.volume import Volume
from learning import cohort, pair


def _roughness(volume: Volume) -> float:
    return float(np.log(np.abs(np.diff(volume.hu[:, 12:-12, 12:-12], axis=2)).mean()))


def _classifier():
    """Six logistic scores, of six slopes, fitted on scans that the cohort does not hold."""
    x = np.array([[_roughness(volume) for volume in pair(seed)] for seed in range(20, 26)])
    middle, width = x.mean(), np.diff(x.mean(axis=0))[0]
    return lambda volume: [1 / (1 + np.exp(-k * (_roughness(volume) - middle) / width)) for k in range(1, 7)]


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = cohort(tmp_path / "cohort", 4)
    rows = read_manifest(path)
    return write_manifest(
        path, [*rows[:2], *(row.model_copy(update={"split": "test"}) for row in rows[2:])], overwrite=True
    )


def test_scores_come_closer_after_standardization(manifest: Path, tmp_path: Path) -> None:
    calibrate_pairs(pairs_of_manifest(manifest), tmp_path / "model")
    found = consistency(manifest, load_model(tmp_path / "model"), _classifier())
    assert found.source.shape == found.standardized.shape == found.target.shape == (2, 6)
    assert (found.source < 0.5).all()
    assert (found.target > 0.5).all()
    np.testing.assert_allclose(found.before, np.abs(found.source - found.target).mean(axis=0))
    assert (found.after < 0.5 * found.before).all()
    assert (found.gain_interval[0] <= found.gain).all()
    assert (found.gain <= found.gain_interval[1]).all()


def test_wrong_scores_are_refused(manifest: Path, tmp_path: Path) -> None:
    calibrate_pairs(pairs_of_manifest(manifest), tmp_path / "model")
    model = load_model(tmp_path / "model")
    with pytest.raises(ConcordctError, match="finite"):
        consistency(manifest, model, lambda volume: [float("nan")])
    lengths = iter(range(1, 99))
    with pytest.raises(ConcordctError, match="as many scores"):
        consistency(manifest, model, lambda volume: [0.5] * next(lengths))
    with pytest.raises(ConcordctError, match="split 'none'"):
        consistency(manifest, model, lambda volume: [0.5], split="none")
