"""The adaptive transfer: found where noise and edges differ, left alone where one transfer serves both."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from concordct.errors import ConcordctError
from concordct.methods.concord import fit
from concordct.methods.concord.adaptive import (
    FINE_BANDS,
    LEAST_HU,
    WIDTHS,
    Adaptive,
    Near,
    _doubled,
    _halved,
    box_around,
)
from concordct.methods.concord.bundle import parts, to_bundle
from concordct.methods.concord.chosen import off
from concordct.methods.concord.perceptron import begun, trained
from concordct.methods.concord.standardizer import ConcordStandardizer
from concordct.methods.spectral.fit import fit_pairs
from concordct.methods.spectral.transfer import SpectralModel, SpectralStandardizer
from concordct.signal.body import material_mask
from concordct.volumes.seeds import SliceSeeds
from concordct.volumes.volume import Volume
from synthetic import denoised, filtered, frequency, volume

SEEDS = SliceSeeds(0, "test")
SIZE = 192


@pytest.fixture(scope="module", autouse=True)
def shorter() -> Iterator[None]:
    """A training that is enough for these bodies."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit, "STEPS", 500)
        patch.setattr(fit, "PIXELS", 20_000)
        yield


@pytest.fixture(scope="module")
def adapted() -> tuple[SpectralModel, Adaptive]:
    pairs = [denoised(1)]
    model = fit_pairs(lambda: pairs)
    adaptive = fit.fit_adaptive(model, lambda: pairs)
    assert adaptive is not None
    return model, adaptive


def flat_and_steep(target: Volume) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    body = material_mask(target.hu, (0.75, 0.75))
    steep = np.stack([ndimage.maximum_filter(ndimage.gaussian_gradient_magnitude(one, 1.0), 7) for one in target.hu])
    return body & (steep < 20), body & (steep > 100)


def test_noise_is_lowered_and_edges_stay(adapted: tuple[SpectralModel, Adaptive]) -> None:
    source, target = denoised(2)
    model, adaptive = adapted
    before = SpectralStandardizer(model, "mean")(source, generator=SEEDS).hu
    after = ConcordStandardizer(model, None, "mean", adaptive=adaptive)(source, generator=SEEDS).hu
    flat, steep = flat_and_steep(target)
    for place, least in ((flat, 0.5), (steep, 1.0)):
        errors = [float(np.sqrt(np.mean((one - target.hu)[place] ** 2))) for one in (before, after)]
        assert errors[1] < least * errors[0]


def test_it_is_chosen_for_such_a_pair_and_not_for_a_linear_one() -> None:
    source, target = denoised(1)
    f = frequency(SIZE, 0.75)
    linear = volume(np.rint(np.stack([filtered(one, np.exp(-((f / 5.0) ** 2))) for one in source.hu])), pixel_mm=0.75)
    chosen = []
    for pair in ((source, target), (source, linear)):
        pairs = [pair]
        model = fit_pairs(lambda p=pairs: p)
        chosen.append(fit.fit_concord(model, lambda p=pairs: p)[1])
    assert chosen[0] is not None
    assert chosen[1] is None


def test_same_seed_same_bytes_whatever_the_slab(adapted: tuple[SpectralModel, Adaptive]) -> None:
    model, adaptive = adapted
    source, _ = denoised(3)
    work = ConcordStandardizer(model, None, adaptive=replace(adaptive, drawn=np.ones(4)))
    whole = work(source, generator=SEEDS).hu
    one = replace(source, hu=source.hu[1:2], first_slice=1)
    if not work.context_slices:
        assert work(one, generator=SEEDS).hu.tobytes() == whole[1:2].tobytes()
    assert not np.array_equal(work(source, generator=SliceSeeds(1, "test")).hu, whole)
    mean = replace(work, mode="mean")(source, generator=SEEDS).hu
    silent = replace(work, adaptive=replace(adaptive, drawn=np.zeros(4)))(source, generator=SEEDS).hu
    assert mean.tobytes() == silent.tobytes()


def test_air_comes_back_and_nothing_is_drawn_outside_the_body(adapted: tuple[SpectralModel, Adaptive]) -> None:
    model, adaptive = adapted
    work = ConcordStandardizer(model, None, adaptive=replace(adaptive, drawn=np.ones(4)))
    empty = volume(np.full((1, 64, 64), -1000.0), pixel_mm=0.75)
    np.testing.assert_allclose(work(empty, generator=SEEDS).hu, -1000, atol=0.01)
    source, _ = denoised(4)
    outside = ~material_mask(source.hu, (0.75, 0.75))
    base = SpectralStandardizer(model, "mean")(source, generator=SEEDS).hu
    assert np.array_equal(work(source, generator=SEEDS).hu[outside], base[outside])


def test_a_box_holds_the_body_and_is_even() -> None:
    for shape, body in (((65, 91), np.s_[3:60, 40:91]), ((64, 64), np.s_[0:64, 0:64]), ((90, 33), np.s_[40:42, 5:6])):
        mask = np.zeros(shape, bool)
        mask[body] = True
        box = box_around(mask)
        assert all((one.stop - one.start) % 2 == 0 and one.stop <= n for one, n in zip(box, shape, strict=True))
        lost = mask.copy()
        lost[box] = False
        # An odd edge may cost the last row or column.
        assert lost.sum() <= max(shape)


def test_it_survives_the_disk(adapted: tuple[SpectralModel, Adaptive]) -> None:
    model, adaptive = adapted
    again = parts(to_bundle(model, None, adaptive))[2]
    assert again is not None
    source, _ = denoised(3)
    hu = [ConcordStandardizer(model, None, adaptive=one)(source, generator=SEEDS).hu for one in (adaptive, again)]
    assert hu[0].tobytes() == hu[1].tobytes()
    tensors = adaptive.to_tensors()
    for name, wrong in (("centre", tensors["centre"][:3]), ("weight_1", tensors["weight_1"] * np.nan)):
        with pytest.raises(ConcordctError, match="adaptive transfer"):
            Adaptive.from_tensors({**tensors, name: wrong})
    with pytest.raises(ConcordctError, match="without"):
        Adaptive.from_tensors({name: one for name, one in tensors.items() if name != "left"})


def test_a_band_is_drawn_alone_and_a_model_of_before_has_one_share(adapted: tuple[SpectralModel, Adaptive]) -> None:
    model, adaptive = adapted
    source, _ = denoised(3)
    made = [
        ConcordStandardizer(model, None, adaptive=replace(adaptive, drawn=np.array(drawn, float)))(
            source, generator=SEEDS
        ).hu
        for drawn in ((0, 0, 0, 0), (1, 0, 0, 0), (0, 0, 0, 1))
    ]
    fine, coarse = (one - made[0] for one in made[1:])
    shares = [float(np.var(ndimage.gaussian_filter(one, (0, 1.5, 1.5))) / np.var(one)) for one in (fine, coarse)]
    assert shares[1] > 5 * shares[0]
    tensors = {name: one for name, one in adaptive.to_tensors().items() if name != "drawn"}
    before = Adaptive.from_tensors({**tensors, "scalars": np.array([adaptive.pixel_mm, 0.5])})
    assert before.drawn.tolist() == [0.5] * 4
    with pytest.raises(ConcordctError, match="adaptive transfer"):
        Adaptive.from_tensors({**tensors, "drawn": np.array([0, 0, 0, 9.0])})


def test_noise_power_is_off_in_its_worst_band_above_the_first() -> None:
    assert off(np.array([9.0, 1.1, 0.8]), np.ones(3)) == pytest.approx(0.2)
    assert off(np.zeros(0), np.zeros(0)) == 0.0


def test_a_perceptron_learns_a_bend_and_its_gradient_is_right() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2000, 1)).astype(np.float32)
    wanted = np.abs(x)
    network = begun((1, 8, 8, 1), np.zeros(1, np.float32), rng)

    def slope(rows: NDArray[np.intp], said: NDArray[np.float32]) -> NDArray[np.float32]:
        return ((said - wanted[rows]) / np.float32(len(rows))).astype(np.float32)

    layers = network.layers(x)
    found = network.gradients(layers, slope(np.arange(2000), layers[-1]))[0][0][0, 0]
    step = np.float32(1e-2)
    losses = []
    for sign in (1, -1):
        network.weights[0][0, 0] += sign * step
        losses.append(0.5 * float(np.mean((network(x) - wanted) ** 2, dtype=np.float64)))
        network.weights[0][0, 0] -= sign * step
    assert found == pytest.approx((losses[0] - losses[1]) / (2 * float(step)), rel=0.05, abs=1e-4)
    done = trained(network, x, slope, steps=400, batch=256, rate=1e-2, generator=rng)
    assert np.sqrt(np.mean((done(x) - wanted) ** 2)) < 0.1


def test_a_box_has_a_margin_of_12_and_an_edge_of_a_multiple_of_16() -> None:
    """24 rows and 2 x 12 are 48; one row more is 49, which 64 holds."""
    for rows, wanted in ((24, slice(88, 136)), (25, slice(88, 152))):
        body = np.zeros((300, 40), bool)
        body[100 : 100 + rows, 20] = True
        assert box_around(body)[0] == wanted


def test_halving_takes_means_and_doubling_is_linear_between_centres() -> None:
    image = np.array([[1, 3, 5, 5], [5, 7, 5, 5]], np.float32)
    assert _halved(image).tolist() == [[4.0, 5.0]]
    found = _doubled(np.array([[[0.0, 4.0, 8.0]]], np.float32))
    assert found.shape == (1, 2, 6)
    assert found[0].tolist() == [[0.0, 1.0, 3.0, 5.0, 7.0, 8.0]] * 2


def test_strength_is_read_in_a_neighbourhood_of_the_band_s_own_width() -> None:
    """Variances add: the strength's map is as wide as the band's energy and its window together.

    A window is 1.5 of the band's widths, at least 1.5 pixels; the map has every other pixel.
    """
    image = np.zeros((128, 128), np.float32)
    image[64, 64] = 1000
    near = Near(image, image, np.ones(image.shape, bool), (1.0, 1.0), 1.0)
    at = np.arange(64) - 32
    energies = [_halved(band * band) for band in near.bands(near.made_cosines, FINE_BANDS)]
    energies += [band * band for band in near._coarse_bands()]
    for one, strength, width in zip(energies, near.strengths, WIDTHS, strict=True):
        energy = one.sum(axis=0)
        seen = ((strength - LEAST_HU) ** 2).sum(axis=0)
        spread = [
            float((row * at**2).sum() / row.sum() - ((row * at).sum() / row.sum()) ** 2) for row in (energy, seen)
        ]
        assert spread[1] - spread[0] == pytest.approx((max(1.5, 1.5 * width) / 2) ** 2, rel=0.15)


def test_the_last_columns_of_a_body_hold_the_last_two_fifths_of_it() -> None:
    body = np.zeros((8, 14), bool)
    body[:, 2:12] = True
    last = fit._last_columns(body)
    assert np.flatnonzero((body & last).any(axis=0)).tolist() == [8, 9, 10, 11]
