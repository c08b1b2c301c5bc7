"""The self-check: right kernels pass, wrong ones fail, and results that contradict the scan are found out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from concordct.methods.spectral.fit import SIGNATURE, fit_pairs
from concordct.methods.spectral.self_check import (
    OWN_RETURN,
    KernelCheck,
    Return,
    check_kernel,
    check_return,
    check_series,
    coherent_band_lp_cm,
    noise_below_hu,
    source_signature,
)
from concordct.methods.spectral.transfer import Limits, SpectralModel, SpectralStandardizer
from concordct.methods.spectral.unpaired import fit_tables, fit_unpaired
from concordct.scanner.nonlinear import shrink_noise
from concordct.signal.signature import RINGS, Signature, SignatureMeter
from concordct.signal.signature import ring_centres_lp_cm as rings
from concordct.volumes.seeds import SliceSeeds
from concordct.volumes.volume import Volume
from synthetic import PIXEL_MM, pair, volume

SIZE = 288


@pytest.fixture(scope="module")
def model() -> SpectralModel:
    """Calibrated from one slice, soft to sharp."""
    source, target = pair(size=SIZE, slices=1, seed=5, noise_hu=100.0)
    return fit_pairs(lambda: [(volume(source), volume(target))])


def judged(model: SpectralModel, hu: NDArray[np.floating]) -> KernelCheck:
    meter = SignatureMeter()
    for image in hu:
        meter.add(np.asarray(image, np.float32), spacing_mm=(PIXEL_MM, PIXEL_MM))
    return check_kernel(meter.signature(), source_signature(model))


@pytest.mark.parametrize("noise_hu", [60.0, 160.0])
def test_other_subjects_in_the_right_kernel_pass_at_any_dose(model: SpectralModel, noise_hu: float) -> None:
    source, _ = pair(size=SIZE, slices=2, seed=6, noise_hu=noise_hu)
    found = judged(model, source)
    assert found.status == "passed"
    assert found.sharpness == pytest.approx(1, abs=0.06)


@pytest.mark.parametrize("noise_hu", [60.0, 160.0])
def test_the_wrong_kernel_fails(model: SpectralModel, noise_hu: float) -> None:
    _, target = pair(size=SIZE, slices=2, seed=6, noise_hu=noise_hu)
    found = judged(model, target)
    assert found.status == "failed"
    assert found.sharpness is not None
    assert found.sharpness > 1.5


def test_a_nonlinear_reconstruction_of_the_right_kernel_fails(model: SpectralModel) -> None:
    source, _ = pair(size=SIZE, slices=3, seed=6, noise_hu=160.0, rounded=False)
    assert judged(model, source).status == "passed"
    found = judged(model, shrink_noise(source, PIXEL_MM, 5))
    assert found.status == "failed"
    assert found.tail_difference is not None
    assert found.tail_difference < -0.01


@pytest.mark.parametrize("mode", ["sample", "mean"])
def test_what_was_standardized_already_fails(model: SpectralModel, mode: str) -> None:
    source, _ = pair(size=SIZE, slices=2, seed=6, noise_hu=100.0)
    once = SpectralStandardizer(model, mode)(volume(source), generator=SliceSeeds(0, "once"))  # type: ignore[arg-type]
    assert judged(model, once.hu).status == "failed"


def test_edges_alone_and_noise_alone_are_enough() -> None:
    edge = np.exp(-((np.arange(0, 10.01, 0.25) / 4) ** 2))
    sharper = np.exp(-((np.arange(0, 10.01, 0.25) / 5.5) ** 2))
    nps = rings() * np.exp(-2 * (rings() / 4) ** 2)
    both = Signature(nps, 0.8, edge, 0.7, 99, 9)
    assert check_kernel(replace(both, noise_hu2_mm2=None, tail=None), both).status == "passed"
    found = check_kernel(Signature(None, None, sharper, 0.7, 0, 9), both)
    assert (found.status, found.noise_deviation) == ("failed", None)
    assert found.sharpness == pytest.approx(5.5 / 4, rel=0.02)
    other = rings() * np.exp(-2 * (rings() / 8) ** 2)
    assert check_kernel(Signature(100 * nps, 0.8, None, 0.7, 99, 0), both).status == "passed"
    assert check_kernel(Signature(other, 0.8, None, 0.7, 99, 0), both).status == "failed"
    # More anatomy in the quiet patches is not another kernel.
    anatomy = nps * (1 + 20 / rings() ** 3)
    assert check_kernel(Signature(anatomy, 0.8, None, 0.7, 99, 0), both).status == "passed"


def test_edges_alone_tell_no_kernel_where_noise_agrees() -> None:
    """An oblique or clothed surface blurs: the same noise beside sharper edges is other anatomy, other noise is not."""
    edge, sharper = (np.exp(-((np.arange(0, 10.01, 0.25) / width) ** 2)) for width in (3, 3 * 1.57))
    nps = rings() * np.exp(-2 * (rings() / 4) ** 2)
    reference = Signature(nps, 0.8, edge, 0.7, 99, 9)
    found = check_kernel(replace(reference, edge=sharper), reference)
    assert found.sharpness == pytest.approx(1.57, rel=0.02)
    assert found.status == "passed"
    slightly = rings() * np.exp(-2 * (rings() / 4.25) ** 2)
    assert check_kernel(replace(reference, noise_hu2_mm2=slightly), reference).status == "passed"
    assert check_kernel(replace(reference, edge=sharper, noise_hu2_mm2=slightly), reference).status == "failed"


def test_without_a_reference_or_a_measurement_nothing_is_claimed(model: SpectralModel) -> None:
    nothing = Signature(None, None, None, 0.8, 0, 0)
    assert check_kernel(nothing, source_signature(model)).status == "not measured"
    old = replace(model, info={name: value for name, value in model.info.items() if name != SIGNATURE})
    source, _ = pair(size=SIZE, slices=1, seed=6)
    assert judged(old, source).status == "not recorded"
    found = check_series(old, nothing, [])
    assert not found.failed
    assert "no reference" in found.lines()[0]


def test_the_reference_survives_a_bundle(model: SpectralModel) -> None:
    back = source_signature(SpectralModel.from_bundle(model.to_bundle()))
    reference = source_signature(model)
    assert back is not None
    assert reference is not None
    assert back.to_json() == reference.to_json()


def test_cohorts_give_a_reference_and_tables_none() -> None:
    sources, targets = (
        [(str(seed), volume(pair(size=SIZE, slices=1, seed=seed, noise_hu=100.0)[side])) for seed in seeds]
        for side, seeds in ((0, (20, 21)), (1, (22, 23)))
    )
    unpaired = fit_unpaired(lambda: sources, lambda: targets)
    source, target = pair(size=SIZE, slices=2, seed=6, noise_hu=100.0)
    assert judged(unpaired, source).status == "passed"
    assert judged(unpaired, target).status == "failed"
    f = np.linspace(0, 6, 61)
    tables = fit_tables(f, np.exp(-((f / 3) ** 2)), np.exp(-((f / 5) ** 2)))
    assert judged(tables, source).status == "not recorded"


def scan(seed: int = 6) -> Volume:
    return volume(pair(size=SIZE, slices=1, seed=seed, noise_hu=100.0)[0])


def test_the_result_of_a_filter_returns_the_scan(model: SpectralModel) -> None:
    source = scan()
    output = SpectralStandardizer(model, "mean")(source, generator=SliceSeeds(0, "a"))
    found = check_return(model, source, output, index=0)
    assert found is not None
    assert found.ratio is not None
    assert found.difference_hu < 1e-2
    whole = check_return(model, source, output.with_hu(np.rint(output.hu)), index=0)
    assert whole is not None
    assert whole.difference_hu < 0.5


def test_sampled_noise_returns_the_scan_within_its_own(model: SpectralModel) -> None:
    source = scan()
    output = SpectralStandardizer(model, "sample")(source, generator=SliceSeeds(0, "a"))
    found = check_return(model, source, output, index=0)
    assert found is not None
    assert found.ratio is not None
    assert 0.005 < found.ratio < 0.6


def test_a_result_that_contradicts_the_scan_is_found_out(model: SpectralModel) -> None:
    source = scan()
    output = SpectralStandardizer(model, "sample")(source, generator=SliceSeeds(0, "a"))
    y, x = np.mgrid[:SIZE, :SIZE] * PIXEL_MM
    blobs = 120 * np.sin(y / 3) * np.sin(x / 3)
    invented = output.with_hu(output.hu + np.where(source.hu > -300, blobs, 0))
    returned = [check_return(model, source, one, index=0) for one in (output, invented)]
    meter = SignatureMeter()
    meter.add(source.hu[0], spacing_mm=(PIXEL_MM, PIXEL_MM))
    statuses = [check_series(model, meter.signature(), [one]).return_status for one in returned]
    assert statuses == ["passed", "failed"]
    problems = check_series(model, meter.signature(), [returned[1]]).problems()
    assert len(problems) == 1
    assert "differs" in problems[0]


def test_a_scan_may_differ_as_much_as_the_calibrated_one_does(model: SpectralModel) -> None:
    meter = SignatureMeter()
    returned = [Return(0, difference_hu=22.0, noise_hu=10.0)]
    assert check_series(model, meter.signature(), returned).return_status == "failed"
    wide_pixels = replace(model, info={**model.info, OWN_RETURN: 1.6})
    found = check_series(wide_pixels, meter.signature(), returned)
    assert found.return_status == "passed"
    assert "2.20 of the scan's noise, allowed 2.4" in found.lines()[1]
    assert check_series(wide_pixels, meter.signature(), [Return(0, 26.0, 10.0)]).return_status == "failed"


def test_what_lies_beyond_the_coherent_band_is_no_contradiction(model: SpectralModel) -> None:
    source = scan()
    output = SpectralStandardizer(model, "mean")(source, generator=SliceSeeds(0, "a"))
    columns = np.arange(SIZE)
    fine = 200 * np.cos(np.pi * (columns + 0.5) * (SIZE - 3) / SIZE)  # just below the pixels' Nyquist frequency
    assert coherent_band_lp_cm(model) < 5
    found = check_return(model, source, output.with_hu(output.hu + fine[None, None]), index=0)
    assert found is not None
    assert found.difference_hu < 0.05


def test_nothing_is_coherent_where_coherence_fails_from_the_start(model: SpectralModel) -> None:
    assert coherent_band_lp_cm(replace(model, coherence=np.zeros_like(model.coherence))) == 0.0


def test_neighbouring_slices_are_part_of_the_transfer() -> None:
    """A target that mixes slices: taken back with its neighbours a result agrees, without them it does not."""
    source, _ = pair(size=SIZE, slices=8, seed=7, noise_hu=100.0)
    mixed = source.copy()
    mixed[1:-1] = 0.7 * source[1:-1] + 0.15 * (source[:-2] + source[2:])
    model = fit_pairs(lambda: [(volume(source), volume(mixed))])
    assert model.uses_neighbours
    slab = volume(source[2:5])
    output = SpectralStandardizer(model, "mean")(slab, generator=SliceSeeds(0, "a"))
    found = check_return(model, slab, output, index=1)
    alone = check_return(model, slab, output, index=1, use_neighbours=False)
    assert found is not None
    assert alone is not None
    assert found.difference_hu < 0.05 < alone.difference_hu


def test_the_noise_of_a_band_is_the_integral_of_its_spectrum() -> None:
    # A flat spectrum of 4 HU^2 mm^2 below 2 lp/cm (0.2 per mm): sqrt(4 pi 0.2^2).
    nps = np.full(RINGS, 4.0)
    assert noise_below_hu(Signature(nps, 0.8, None, 0.7, 99, 0), 2.0) == pytest.approx(np.sqrt(4 * np.pi * 0.04))
    assert noise_below_hu(Signature(None, None, None, 0.7, 0, 0), 2.0) is None
    assert noise_below_hu(Signature(nps, 0.8, None, 0.7, 99, 0), 0.0) is None


def test_air_is_not_taken_back(model: SpectralModel) -> None:
    air = volume(np.full((1, 64, 64), -1000.0))
    assert check_return(model, air, air, index=0) is None


def test_a_result_is_taken_back_by_the_gain_that_it_was_made_with() -> None:
    """A wave added to the result of a transfer g comes back by g / (g^2 + 0.02^2): 19.2 for 0.05."""
    f = np.linspace(0, 6, 61)
    for gain, wanted in ((0.5, 1.997), (0.05, 17.24)):
        transfer = np.where(f < 0.15, 1.0, gain)
        plain = SpectralModel.in_plane(
            f, transfer, coherence=np.ones_like(f), noise=None, limits=Limits(6.0, 6.0, None), info={}
        )
        source = scan()
        output = SpectralStandardizer(plain, "mean")(source, generator=SliceSeeds(0, "a"))
        wave = np.cos(np.pi * (np.arange(SIZE) + 0.5) * 100 / SIZE)  # of 2.2 lp/cm
        found = check_return(plain, source, output.with_hu(output.hu + wave[None, None]), index=0)
        assert found is not None
        assert found.difference_hu == pytest.approx(wanted * 0.5**0.5, rel=0.02)


def test_a_difference_over_no_noise_has_no_ratio() -> None:
    assert Return(0, 3.0, 1.5).ratio == 2.0
    assert Return(0, 3.0, None).ratio is None
    assert Return(0, 3.0, 0.0).ratio is None


def test_a_rise_toward_the_end_of_the_pixels_tells_kernels_that_the_shape_hardly_does() -> None:
    """As `LUNG` for `B50f`: the deviation alone allows it, the rise does not; rounding is no rise."""
    edge = np.exp(-((np.arange(0, 10.01, 0.25) / 5) ** 2))
    nps = 40 * rings() * np.exp(-2 * (rings() / 5.5) ** 2)
    reference = Signature(nps, 0.8, edge, 0.75, 99, 9)
    found = check_kernel(replace(reference, noise_hu2_mm2=nps * np.exp(0.03 * rings() ** 2)), reference)
    assert found.status == "failed"
    assert found.noise_slope == pytest.approx(0.03 * 21)
    assert found.noise_deviation is not None
    assert found.noise_deviation < 4 * 0.055
    soft = rings() * np.exp(-2 * (rings() / 2.5) ** 2)
    quiet, loud = (Signature(dose * soft + 0.75**2 / 12, 0.8, edge, 0.75, 99, 9) for dose in (10, 30))
    rounded = check_kernel(loud, quiet)
    assert rounded.status == "passed"
