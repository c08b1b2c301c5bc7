"""Downstream consistency with a small classifier that was really fitted: sharp or soft, by logistic regression."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from concordct.errors import ConcordctError
from concordct.methods.models import load_model
from concordct.pipelines.calibrate import calibrate_pairs, pairs_of_manifest
from concordct.pipelines.consistency import consistency, sybil
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
    calibrate_pairs(pairs_of_manifest(manifest), tmp_path / "model", method="spectral")
    found = consistency(manifest, load_model(tmp_path / "model"), _classifier())
    assert found.source.shape == found.standardized.shape == found.target.shape == (2, 6)
    assert (found.source < 0.5).all()
    assert (found.target > 0.5).all()
    np.testing.assert_allclose(found.before, np.abs(found.source - found.target).mean(axis=0))
    assert (found.after < 0.5 * found.before).all()
    assert (found.gain_interval[0] <= found.gain).all()
    assert (found.gain <= found.gain_interval[1]).all()


def test_wrong_scores_are_refused(manifest: Path, tmp_path: Path) -> None:
    calibrate_pairs(pairs_of_manifest(manifest), tmp_path / "model", method="spectral")
    model = load_model(tmp_path / "model")
    with pytest.raises(ConcordctError, match="finite"):
        consistency(manifest, model, lambda volume: [float("nan")])
    lengths = iter(range(1, 99))
    with pytest.raises(ConcordctError, match="as many scores"):
        consistency(manifest, model, lambda volume: [0.5] * next(lengths))
    with pytest.raises(ConcordctError, match="split 'none'"):
        consistency(manifest, model, lambda volume: [0.5], split="none")


#: Sybil's interface (Serie of DICOM paths; predict to scores by year), with the classifier above inside.
_STAND_IN = """
import numpy as np
import pydicom

class Serie:
    def __init__(self, dicoms):
        read = [pydicom.dcmread(path) for path in dicoms]
        if float(read[0].SliceThickness) > 5:
            raise ValueError("slice thickness is greater\\nthan 5.")
        self.hu = np.stack([one.pixel_array + float(one.RescaleIntercept) for one in read])

class Sybil:
    score = None
    def __init__(self, name):
        assert name == "sybil_ensemble"
    def predict(self, series):
        return type("Prediction", (), {"scores": [Sybil.score(one.hu) for one in series]})
"""


def test_sybil_is_asked_through_dicom(manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through files in Sybil's format the classifier gives the six scores that it gives in memory, or nearly."""
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "sybil.py").write_text(_STAND_IN)
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    monkeypatch.delitem(sys.modules, "sybil", raising=False)
    score = sybil()
    classifier, template = _classifier(), pair(0)[0]
    monkeypatch.setattr(sys.modules["sybil"].Sybil, "score", lambda hu: classifier(template.with_hu(hu)))
    calibrate_pairs(pairs_of_manifest(manifest), tmp_path / "model", method="spectral")
    model = load_model(tmp_path / "model")
    through, direct = consistency(manifest, model, score), consistency(manifest, model, classifier)
    assert through.target.shape == (2, 6)
    np.testing.assert_allclose(through.standardized, direct.standardized, atol=1e-2)
    np.testing.assert_allclose(through.target, direct.target, atol=1e-6)
    thick = template.affine @ np.diag([6.0, 1, 1, 1])
    with pytest.raises(ConcordctError, match=r"Sybil refuses the scan: slice thickness is greater than 5\."):
        score(Volume(template.hu, thick))
    monkeypatch.delitem(sys.modules, "sybil")


def test_without_sybil_one_line_says_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing installed, or the other project of that name."""
    monkeypatch.setitem(sys.modules, "sybil", None)
    with pytest.raises(ConcordctError, match=r"expected Sybil .* pip install git\+https") as found:
        sybil()
    assert "\n" not in str(found.value)
    (tmp_path / "sybil.py").write_text("class Sybil: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "sybil")
    with pytest.raises(ConcordctError, match="found none"):
        sybil()
    monkeypatch.delitem(sys.modules, "sybil", raising=False)
