"""Numbers of the reports by hand: shares, spreads, what passed, where it was measured, and which commit did it."""

from __future__ import annotations

import subprocess
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from concordct.agreement import concordance
from concordct.judging import provenance, regions, signals
from concordct.judging.case import Pair
from concordct.judging.features import add_repeatability, agreement_results
from concordct.judging.held import Held
from concordct.judging.table import table_of_methods
from concordct.signal.quality import Quality
from concordct.signal.spectra import NoisePower
from synthetic import volume

CLASSES = ["a"] * 3 + ["b"] * 3
SUBJECTS = ["x"] * 4 + ["y"] * 4


def _target() -> np.ndarray:
    return np.random.default_rng(0).uniform(5, 6, (8, 6))


def test_the_share_within_15_percent_is_that_of_the_class_itself() -> None:
    target = _target()
    found = target * np.array([1.1, 1.1, 1.1, 1.5, 1.5, 1.1])
    (row,) = table_of_methods({"m": found}, target, CLASSES, SUBJECTS, baseline="m", not_competing=(), seed=0)
    assert [row["classes"][name]["re_share"] for name in ("a", "b")] == [1.0, pytest.approx(1 / 3)]


def test_spread_and_repeats_of_a_class_by_hand() -> None:
    target, generator = _target(), np.random.default_rng(1)
    made = target + 0.1 * generator.standard_normal(target.shape)
    stages = {"source": target + 2.0, "standardized": made, "target": target}
    results = agreement_results(stages, names=tuple("123456"), classes=CLASSES, subjects=SUBJECTS, seed=0, repeats=20)
    for row in results["per_class"]:
        within = concordance.ccc_per_class(made, target, CLASSES)[row["class"]]
        mean = sum(within) / len(within)
        spread = (sum((one - mean) ** 2 for one in within) / (len(within) - 1)) ** 0.5
        assert row["standardized_papers_ccc_sd"] == pytest.approx(spread, rel=1e-4)
    # A repeat that differs by 1 everywhere: deviation 1 / sqrt(2); a source that differs by 2 is twice that.
    add_repeatability(results, stages, [target + 1.0])
    for feature in results["features"]:
        assert feature["repeat_within_sd"] == pytest.approx(0.5**0.5, rel=1e-4)
        assert feature["source_to_repeat"] == pytest.approx(2.0, rel=1e-4)
        assert feature["source_within_repeat"] == 0.0
        assert feature["standardized_within_repeat"] == 1.0


def test_half_the_amplitude_passes_at_full_coherence_in_every_band() -> None:
    hu = np.random.default_rng(2).normal(0, 50, (2, 64, 64)).astype(np.float32) + np.float32(1000)
    held = [Held.of(volume(share * hu - 1000)) for share in (0.25, 0.5, 1.0)]
    found = signals.Gathered(rings=signals.rings_of(held[0].spacing_mm))
    assert found.rings is not None
    found.spectra = signals._spectra(found.rings, held)
    rows = signals.signal_results(found)
    # Out to the corner of the Nyquist square, 6.25 sqrt(2) = 8.8 lp/cm for 0.8 mm.
    assert [row["low_lp_cm"] for row in rows] == list(range(9))
    for row in rows:
        assert row["source_passed"] == pytest.approx(0.25, rel=1e-3)
        assert row["standardized_passed"] == pytest.approx(0.5, rel=1e-3)
        assert row["standardized_coherence"] == pytest.approx(1.0, rel=1e-3)


def test_bands_of_the_noise_meet() -> None:
    edges = np.arange(5) / 16
    power = NoisePower(edges, np.ones(4), np.ones((3, 4)))
    found = signals.Gathered(noise={stage: [power] for stage in ("source", "standardized", "target")})
    bands = signals.nps_results(found)[0]["bands"]
    assert all(one["high"] == other["low"] for one, other in pairwise(bands))
    assert [one["ratio"] for one in bands] == [1.0] * 4


def _body(slices: int) -> Pair:
    hu = np.full((slices, 96, 96), -1000.0)
    hu[:, 8:88, 8:88] = 40
    return Pair(volume(hu), volume(hu), None)


def test_whole_slices_lie_at_a_quarter_a_half_and_three_quarters() -> None:
    whole = regions.paper_regions(_body(9), rois_per_range=1, seed=[0])[regions.WHOLE]
    assert {z: set(np.unique(plane)) - {0} for z, plane in enumerate(whole) if plane.any()} == {2: {1}, 4: {2}, 6: {3}}


@pytest.mark.parametrize(("most", "kept"), [(2, [0]), (12, [0, 2, 5])])
def test_too_many_rois_are_thinned_to_whole_slices_from_the_first_to_the_last(
    most: int, kept: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = _body(6)
    everything = regions.body_grid(pair)[1]
    assert everything is not None
    assert len(np.unique(everything)) - 1 == 24  # four squares of 28 pixels a slice
    monkeypatch.setattr(regions, "MOST_ROIS", most)
    found = regions.body_grid(pair)[1]
    assert found is not None
    assert [z for z, plane in enumerate(found) if plane.any()] == kept


def test_results_name_the_commit_they_were_made_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "src" / "provenance.py"
    place.parent.mkdir()
    place.touch()
    monkeypatch.setattr(provenance, "__file__", str(place))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance.provenance()["commit"] is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *words], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
    commit = provenance.provenance()["commit"]
    assert len(commit) == 12
    assert head.startswith(commit)


def test_errors_of_cases_are_weighted_by_their_voxels() -> None:
    """Squares of 3 HU over one voxel and of 5 HU over three: the root of (9 + 3 x 25) / 4."""
    cases = [Quality(3.0, 2.0, -1.0, 0.0, 0.5, 1000.0, 1), Quality(5.0, 4.0, 3.0, 0.0, 0.9, 1000.0, 3)]
    found = signals.quality_results(signals.Gathered(quality={"source": cases}), "body")["source"]
    assert found["rmse_hu"] == pytest.approx(21**0.5)
    assert (found["mae_hu"], found["bias_hu"], found["ssim"]) == pytest.approx((3.5, 2.0, 0.8))
    assert found["psnr_db"] == pytest.approx(20 * np.log10(1000 / 21**0.5))
