"""Calibration without pairs: cohorts of other patients, and tables of MTF and NPS."""

from __future__ import annotations

import numpy as np
import pytest

from concordct.errors import ConcordctError
from concordct.methods.spectral.transfer import SpectralModel, SpectralStandardizer
from concordct.methods.spectral.unpaired import fit_tables, fit_unpaired
from concordct.signal.body import body_mask
from concordct.signal.spectra import noise_power, power_ratio
from concordct.volumes.seeds import SliceSeeds
from synthetic import PIXEL_MM, pair, sharp, soft, volume

SEEDS = SliceSeeds(0, "test")


@pytest.fixture(scope="module")
def model() -> SpectralModel:
    sources = [(str(seed), volume(pair(seed=seed, slices=4)[0])) for seed in range(10, 16)]
    targets = [(str(seed), volume(pair(seed=seed, slices=4)[1])) for seed in range(20, 26)]
    return fit_unpaired(lambda: sources, lambda: targets)


def test_the_transfer_is_near_the_truth_and_says_how_sure_it_is(model: SpectralModel) -> None:
    f = model.frequency_lp_cm
    inside = (f > 0.3) & (f < 4.0)
    error = model.single[inside] / (sharp(f[inside]) / soft(f[inside])) - 1
    assert np.median(np.abs(error)) < 0.08
    assert model.relative_error is not None
    assert 0.002 < model.info["transfer_error_median"] < 0.1
    assert model.limits.gone_lp_cm == pytest.approx(5.0, abs=0.3)


def test_it_standardizes_a_patient_of_neither_cohort(model: SpectralModel) -> None:
    a, b = pair(seed=30, slices=4)
    body = body_mask(a)
    out = {
        mode: SpectralStandardizer(model, mode)(volume(a), generator=SEEDS).hu  # type: ignore[arg-type]
        for mode in ("mean", "sample")
    }
    before = np.std((a - b)[body])
    assert np.std((out["mean"] - b)[body]) < 0.85 * before
    powers = {m: noise_power(x, body, spacing_mm=(PIXEL_MM, PIXEL_MM)) for m, x in {**out, "target": b}.items()}
    ratio, _ = power_ratio(powers["sample"], powers["target"])
    assert np.all(np.abs(ratio[1:] - 1) < 0.35)


def test_one_scan_is_no_cohort() -> None:
    a, b = pair(seed=31, slices=2, size=64)
    with pytest.raises(ConcordctError, match="at least 2 scans in the source kernel, found 1"):
        fit_unpaired(lambda: [("a", volume(a)), ("a", volume(a))], lambda: [("b", volume(b)), ("c", volume(b))])
    with pytest.raises(ConcordctError, match="found none"):
        fit_unpaired(list, lambda: [("b", volume(b))])


def test_tables_give_their_ratio() -> None:
    f = np.linspace(0, 8, 81)
    mtf_a, mtf_b = np.exp(-((f / 4) ** 2)), np.exp(-((f / 6) ** 2))
    model = fit_tables(f, mtf_a, mtf_b)
    known = f < 5
    np.testing.assert_allclose(model.single[known], (mtf_b / mtf_a)[known], rtol=0.02)
    # An MTF of 2 % carries half of its information: exp(-(f/4)^2) = 0.02 at 7.9 lp/cm.
    assert model.limits.half_lp_cm == pytest.approx(4 * np.sqrt(-np.log(0.02)), abs=0.2)
    assert model.noise is None


def test_noise_of_tables_restores_the_target_power() -> None:
    f = np.linspace(0, 8.8, 89)
    a, b = pair(seed=32, slices=6, rounded=False)
    ramp = np.maximum(f / 5, 0)
    nps = [(60 * ramp * kernel(f)) ** 2 * PIXEL_MM**2 for kernel in (soft, sharp)]
    model = fit_tables(f, soft(f), sharp(f), nps_source_hu2_mm2=nps[0], nps_target_hu2_mm2=nps[1])
    assert model.noise is not None
    body = body_mask(a)
    out = SpectralStandardizer(model, "sample")(volume(a), generator=SEEDS).hu
    powers = [noise_power(x, body, spacing_mm=(PIXEL_MM, PIXEL_MM)) for x in (out, b)]
    ratio, _ = power_ratio(*powers)
    np.testing.assert_allclose(ratio[1:], 1, atol=0.3)


@pytest.mark.parametrize(
    ("f", "a", "match"),
    [
        ([1.0, 2, 3], [1.0, 0.5, 0.1], "ascend from 0"),
        ([0.0, 2, 1], [1.0, 0.5, 0.1], "ascend from 0"),
        ([0.0, 1, 2], [0.5, 0.5, 0.1], "MTF of 1 at 0"),
        ([0.0, 1, 2], [1.0, -0.5, 0.1], "nowhere below 0"),
        ([0.0, 1], [1.0, 0.5], "at least 3"),
    ],
)
def test_bad_tables_are_refused(f: list[float], a: list[float], match: str) -> None:
    with pytest.raises(ConcordctError, match=match):
        fit_tables(np.array(f), np.array(a), np.array(a))


def test_the_noise_of_tables_by_hand() -> None:
    """A flat source of 3 HU^2 mm^2 behind a probe of width w at h: 2 pi h w sqrt(pi) x 3, f in 1/mm."""
    f = np.linspace(0, 12, 601)
    mtf_a, mtf_b = np.exp(-((f / 2.5) ** 2)), np.exp(-((f / 6) ** 2))
    flat = np.full_like(f, 3.0)
    model = fit_tables(f, mtf_a, mtf_b, nps_source_hu2_mm2=flat, nps_target_hu2_mm2=flat)
    noise = model.noise
    assert noise is not None
    f_mm = f / 10
    assert np.trapezoid(2 * np.pi * f_mm * noise.nps_mm2, f_mm) == pytest.approx(1, rel=1e-3)
    assert not noise.nps_mm2[model.coherence > 0.99].any()
    # Where the source's MTF is nothing all of the target's noise is lost.
    h, w = noise.probe_lp_cm / 10, noise.probe_width_lp_cm / 10
    assert h == pytest.approx(0.25 * np.sqrt(-np.log(0.02)), rel=0.02)
    lost = 3.0 / noise.nps_mm2[-1]
    assert noise.gain**2 == pytest.approx(lost / (2 * np.pi * h * w * np.sqrt(np.pi) * 3.0), rel=0.03)
    double = fit_tables(f, mtf_a, mtf_b, nps_source_hu2_mm2=flat, nps_target_hu2_mm2=2 * flat).noise
    assert double is not None
    assert double.gain == pytest.approx(np.sqrt(2) * noise.gain)
    assert model.single[0] == 1
    assert model.single[1] == pytest.approx(mtf_b[1] / mtf_a[1], rel=1e-3)


def test_a_table_may_fall_from_its_first_frequency_on() -> None:
    f = np.array([0.0, 1.0, 2.0, 3.0])
    model = fit_tables(f, np.array([1.0, 0.5, 0.2, 0.1]), np.array([1.0, 0.75, 0.4, 0.3]))
    np.testing.assert_allclose(model.single[:3], [1, 1.5, 2], rtol=0.02)
