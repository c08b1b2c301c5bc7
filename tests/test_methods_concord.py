"""The flagship: transport has the target's spectrum at little error."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from concordct.errors import ConcordctError
from concordct.methods.concord.bundle import to_bundle
from concordct.methods.concord.standardizer import ConcordStandardizer, load
from concordct.methods.concord.transport import Transport, _area, _fade, _laws, fit_transport
from concordct.methods.spectral.fit import fit_pairs
from concordct.methods.spectral.transfer import SpectralModel, SpectralStandardizer
from concordct.signal.body import material_mask
from concordct.signal.spectra import Rings, noise_power, power_ratio
from concordct.training.bundle import load_bundle, save_bundle
from concordct.volumes.seeds import SliceSeeds
from concordct.volumes.volume import Volume
from synthetic import PIXEL_MM, filtered, frequency, object_hu, pair, soft, volume

SEEDS = SliceSeeds(0, "test")


@pytest.fixture(scope="module")
def pairs() -> tuple[tuple[Volume, Volume], tuple[Volume, Volume]]:
    """Two bodies: one to calibrate on, one to judge on."""
    first, second = pair(seed=1), pair(seed=2)
    return (volume(first[0]), volume(first[1])), (volume(second[0]), volume(second[1]))


@pytest.fixture(scope="module")
def calibrated(pairs: tuple[tuple[Volume, Volume], tuple[Volume, Volume]]) -> tuple[SpectralModel, Transport]:
    model = fit_pairs(lambda: [pairs[0]])
    transport = fit_transport(model, lambda: [pairs[0]])
    assert transport is not None
    return model, transport


def nothing_added(transport: Transport) -> Transport:
    """Without the noise that tissue lacks where edges are known."""
    return replace(transport, added_mm2=0 * transport.added_mm2)


def test_transport_has_the_targets_power_with_less_error_than_noise_has(
    pairs: tuple[tuple[Volume, Volume], tuple[Volume, Volume]], calibrated: tuple[SpectralModel, Transport]
) -> None:
    source, target = pairs[1]
    model, transport = calibrated
    body = material_mask(source.hu, source.spacing_mm[1:])
    moved = ConcordStandardizer(model, transport)(source, generator=SEEDS)
    without = ConcordStandardizer(model, nothing_added(transport))(source, generator=SEEDS)
    noisy = SpectralStandardizer(model, "sample")(source, generator=SEEDS)
    errors = [float(np.sqrt(np.mean((one.hu - target.hu)[body] ** 2))) for one in (without, noisy)]
    assert errors[0] < errors[1]
    powers = [noise_power(one.hu, body, spacing_mm=source.spacing_mm[1:]) for one in (moved, target)]
    ratio, _ = power_ratio(*powers)
    np.testing.assert_allclose(ratio, 1, atol=0.1)


def test_the_gain_is_that_of_an_amplitude() -> None:
    """What the source knows of a band, a share c of the target's power, is raised to all of it: by 1 / sqrt(c)."""
    soft_hu, sharp_hu = pair(seed=1)
    noise = 50 * np.random.default_rng(0).standard_normal(sharp_hu.shape)
    pairs = [(volume(soft_hu), volume(np.rint(sharp_hu + noise)))]
    model = fit_pairs(lambda: pairs)
    transport = fit_transport(model, lambda: pairs)
    assert transport is not None
    middle = (transport.free > 0.99) & (transport.coherence > 0.35) & (transport.coherence < 0.65)
    assert middle.sum() > 10
    assert 0.95 < np.median(transport.gain[middle] * np.sqrt(transport.coherence[middle])) < 1.12


def test_noise_that_tissue_lacks_is_added_where_edges_are_known() -> None:
    """A source whose noise was shrunk inside the body, edges untouched, as iterative reconstruction does."""
    made = [pair(seed=seed, slices=2) for seed in (1, 2)]
    quiet, plain = [], []
    for soft_hu, sharp_hu in made:
        smooth = ndimage.gaussian_filter(soft_hu, (0, 1.5, 1.5))
        detail = soft_hu - smooth
        shrunk = smooth + detail * (1 - 0.6 * np.exp(-((detail / 25) ** 2)))
        quiet.append((volume(np.rint(shrunk)), volume(sharp_hu)))
        plain.append((volume(soft_hu), volume(sharp_hu)))
    shares = []
    for pairs_of_two in (quiet, plain):
        model = fit_pairs(lambda p=pairs_of_two: [p[0]])
        transport = fit_transport(model, lambda p=pairs_of_two: [p[0]])
        assert transport is not None
        shares.append(float(transport.added_mm2.sum() / transport.power_mm2.sum()))
        source, target = pairs_of_two[1]
        body = material_mask(source.hu, source.spacing_mm[1:])
        ratios = []
        for one in (transport, nothing_added(transport)):
            found = ConcordStandardizer(model, one)(source, generator=SEEDS)
            powers = [noise_power(image.hu, body, spacing_mm=source.spacing_mm[1:]) for image in (found, target)]
            ratios.append(power_ratio(*powers)[0])
        assert np.abs(ratios[0] - 1).mean() <= np.abs(ratios[1] - 1).mean() + 0.01
    assert shares[0] > 1.3 * shares[1]


def test_noise_that_the_target_has_not_is_lowered() -> None:
    """A target whose noise was shrunk inside the body, edges untouched."""
    made = [pair(seed=seed, slices=2) for seed in (1, 2)]
    slabs = []
    for soft_hu, sharp_hu in made:
        smooth = ndimage.gaussian_filter(soft_hu, (0, 1.5, 1.5))
        detail = soft_hu - smooth
        shrunk = smooth + detail * (1 - 0.6 * np.exp(-((detail / 25) ** 2)))
        slabs.append((volume(sharp_hu), volume(np.rint(shrunk))))
    model = fit_pairs(lambda: [slabs[0]])
    source, target = slabs[1]
    body = material_mask(source.hu, source.spacing_mm[1:])
    ratios = []
    for work in (
        ConcordStandardizer(model, fit_transport(model, lambda: [slabs[0]])),
        SpectralStandardizer(model, "sample"),
    ):
        found = work(source, generator=SEEDS)
        powers = [noise_power(image.hu, body, spacing_mm=source.spacing_mm[1:]) for image in (found, target)]
        ratios.append(np.abs(np.log(power_ratio(*powers)[0][:6])).mean())
    assert ratios[0] < ratios[1]


def test_same_seed_same_bytes_whatever_the_slab(
    pairs: tuple[tuple[Volume, Volume], tuple[Volume, Volume]], calibrated: tuple[SpectralModel, Transport]
) -> None:
    source = pairs[1][0]
    work = ConcordStandardizer(*calibrated)
    whole = work(source, generator=SEEDS)
    again = work(source, generator=SEEDS)
    assert whole.hu.tobytes() == again.hu.tobytes()
    if work.context_slices == 0:
        one = replace(source, hu=source.hu[1:2], first_slice=source.first_slice + 1)
        assert work(one, generator=SEEDS).hu.tobytes() == whole.hu[1:2].tobytes()
    other = work(source, generator=SliceSeeds(1, "test"))
    assert not np.array_equal(other.hu, whole.hu)


def test_mean_is_the_transfer_and_needs_no_noise_part(
    pairs: tuple[tuple[Volume, Volume], tuple[Volume, Volume]], calibrated: tuple[SpectralModel, Transport]
) -> None:
    model, transport = calibrated
    source = pairs[1][0]
    expected = SpectralStandardizer(model, "mean")(source, generator=SEEDS)
    for one in (transport, None):
        found = ConcordStandardizer(model, one, mode="mean")(source, generator=SEEDS)
        assert found.hu.tobytes() == expected.hu.tobytes()
    with pytest.raises(ConcordctError, match="use mode 'mean'"):
        ConcordStandardizer(replace(model, noise=None), None)


def test_texture_that_was_not_measured_is_the_filters(
    pairs: tuple[tuple[Volume, Volume], tuple[Volume, Volume]], calibrated: tuple[SpectralModel, Transport]
) -> None:
    model, source = calibrated[0], pairs[1][0]
    found = ConcordStandardizer(model, None)(source, generator=SEEDS)
    assert found.hu.tobytes() == SpectralStandardizer(model, "sample")(source, generator=SEEDS).hu.tobytes()


@pytest.mark.parametrize("noise_hu", [30.0, 120.0])
def test_noise_follows_the_dose_of_the_scan(calibrated: tuple[SpectralModel, Transport], noise_hu: float) -> None:
    source, target = (volume(one) for one in pair(seed=5, slices=3, noise_hu=noise_hu))
    body = material_mask(source.hu, source.spacing_mm[1:])
    found = ConcordStandardizer(*calibrated)(source, generator=SEEDS)
    powers = [noise_power(one.hu, body, spacing_mm=source.spacing_mm[1:]) for one in (found, target)]
    np.testing.assert_allclose(power_ratio(*powers)[0], 1, atol=0.2)


def fine_pair(seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[z, y, x] soft and very sharp on pixels of half the usual size, inside which both kernels end."""
    size, pixel_mm = 384, PIXEL_MM / 2
    rng, f = np.random.default_rng(seed), frequency(size, pixel_mm)
    raw = np.repeat(np.repeat(object_hu(size // 2, 1, seed), 2, axis=1), 2, axis=2)
    scanned = ndimage.gaussian_filter(raw[0], 1.5) + 1000 + 120 * filtered(rng.standard_normal((size, size)), f / 5.0)
    responses = soft(f), np.exp(-((f / 9.0) ** 6))
    made = [np.rint(filtered(scanned, response) - 1000)[None] for response in responses]
    return made[0], made[1]


def test_pixels_wider_than_the_calibrated_ones_fold_noise_back() -> None:
    """Every other pixel of a fine image is a scan with wide pixels; much of the sharp kernel's noise lies beyond."""
    first, second = fine_pair(1), fine_pair(2)
    slabs = [(volume(first[0], pixel_mm=PIXEL_MM / 2), volume(first[1], pixel_mm=PIXEL_MM / 2))]
    model = fit_pairs(lambda: slabs)
    transport = fit_transport(model, lambda: slabs)
    source, target = (volume(one[:, ::2, ::2]) for one in second)
    body = material_mask(source.hu, source.spacing_mm[1:])
    found, filters = (
        work(source, generator=SEEDS)
        for work in (ConcordStandardizer(model, transport), SpectralStandardizer(model, "sample"))
    )
    wanted = noise_power(target.hu, body, spacing_mm=source.spacing_mm[1:], band_width=0.1)
    off = [
        np.abs(np.log(power_ratio(noise_power(one.hu, body, spacing_mm=(0.8, 0.8), band_width=0.1), wanted)[0]))
        for one in (found, filters)
    ]
    assert off[0].mean() < 0.15
    assert off[0].mean() < 0.5 * off[1].mean()


def test_a_transport_of_before_is_refused(calibrated: tuple[SpectralModel, Transport]) -> None:
    tensors = calibrated[1].to_tensors()
    again = Transport.from_tensors(tensors)
    assert again.laws == calibrated[1].laws
    assert {name: one.tobytes() for name, one in again.to_tensors().items()} == {
        name: one.tobytes() for name, one in tensors.items()
    }
    with pytest.raises(ConcordctError, match="calibrate again"):
        Transport.from_tensors({name: one for name, one in tensors.items() if name != "laws"})
    with pytest.raises(ConcordctError, match="laws of the level"):
        Transport.from_tensors({**tensors, "laws": tensors["laws"][:, :2]})


def test_air_alone_comes_back(calibrated: tuple[SpectralModel, Transport]) -> None:
    empty = volume(np.full((1, 64, 64), -1000.0))
    found = ConcordStandardizer(*calibrated)(empty, generator=SEEDS)
    np.testing.assert_allclose(found.hu, -1000, atol=0.01)


def test_a_model_survives_the_disk(
    tmp_path: Path,
    pairs: tuple[tuple[Volume, Volume], tuple[Volume, Volume]],
    calibrated: tuple[SpectralModel, Transport],
) -> None:
    bundle = to_bundle(*calibrated)
    save_bundle(bundle, tmp_path / "model", card="")
    read = load_bundle(tmp_path / "model")
    source = pairs[1][0]
    before, after = (load(one, "sample")(source, generator=SEEDS) for one in (bundle, read))
    assert before.hu.tobytes() == after.hu.tobytes()
    assert load(bundle, "mean").use_neighbours


def test_slices_without_body_have_a_law_that_changes_nothing(calibrated: tuple[SpectralModel, Transport]) -> None:
    air = volume(np.full((1, 64, 64), -1000.0))
    laws = _laws(calibrated[0], lambda: [(air, air)], 3.0)
    assert [(law.offset, law.slope) for law in laws] == [(0.0, 1.0)] * 6


def test_making_up_for_lacking_noise_fades_in_above_anatomy() -> None:
    assert _fade(np.array([0.0, 0.5, 1.0, 1.5, 4.0])).tolist() == [0, 0, 0.5, 1, 1]


def test_the_pixel_behind_rings_is_that_of_the_scan() -> None:
    assert _area(Rings.covering((0.5, 0.5), 160)) == pytest.approx(0.25, rel=0.02)


def test_a_choice_of_sampling_that_nobody_knows_is_refused(
    tmp_path: Path, calibrated: tuple[SpectralModel, Transport]
) -> None:
    from concordct.methods.models import load_model

    save_bundle(to_bundle(*calibrated), tmp_path / "model", card="")
    with pytest.raises(ConcordctError, match="found steps"):
        load_model(tmp_path / "model").standardizer(mode="sample", sampling={"steps": 2})


def test_without_quiet_tissue_a_sample_is_the_filters(shared_data: Path) -> None:
    """The hollow head phantom: its texture is edges, which must not be raised or taken for missing noise."""
    from concordct.volumes.find import find_series

    scans = [find_series(shared_data / "philips_head_phantom" / f"{k}_1mm").series[0] for k in ("UB", "YA")]
    model = fit_pairs(lambda: [(scans[0].read(2, 3), scans[1].read(2, 3))])
    transport = fit_transport(model, lambda: [(scans[0].read(2, 3), scans[1].read(2, 3))])
    source = scans[0].read(8, 9)
    found = ConcordStandardizer(model, transport)(source, generator=SEEDS)
    expected = SpectralStandardizer(model, "sample")(source, generator=SEEDS)
    assert found.hu.tobytes() == expected.hu.tobytes()
