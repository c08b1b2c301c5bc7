"""Honest width: what of the local gain is not known is found, drawn, kept and asked for by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from concordct.errors import ConcordctError
from concordct.methods.concord import honest
from concordct.methods.concord.bundle import parts, to_bundle
from concordct.methods.concord.standardizer import ConcordStandardizer
from concordct.methods.concord.transport import fit_transport
from concordct.methods.concord.width import Width, measured
from concordct.methods.spectral.fit import fit_pairs
from concordct.training.bundle import Bundle
from concordct.volumes.seeds import SliceSeeds
from concordct.volumes.volume import Volume
from synthetic import filtered, frequency, volume

SIZE, PIXEL = 256, 0.75
SEEDS = SliceSeeds(0, "test")


def noise(seed: int, slices: int = 3) -> NDArray[np.float32]:
    """White noise of 20 HU."""
    return np.random.default_rng(seed).normal(0, 20, (slices, SIZE, SIZE)).astype(np.float32)


def gained(image: NDArray[np.float32], seed: int, deviation: float, reach: float = 10.0) -> NDArray[np.float32]:
    """Noise of which the logarithm of the local gain deviates."""
    field = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(image.shape), (0, reach, reach))
    return np.asarray(image * np.exp(deviation * field / field.std()), np.float32)


def test_what_is_not_known_of_the_gain_is_found() -> None:
    everywhere = np.ones((3, SIZE, SIZE), bool)
    samples = (noise(1), noise(2))
    found = measured(samples, gained(noise(3), 4, 0.15), everywhere, (PIXEL, PIXEL))
    assert found is not None
    deviations = np.sqrt(np.diag(found.mixing @ found.mixing.T))
    np.testing.assert_allclose(deviations[:3], 0.15, rtol=0.35)
    assert 5 * PIXEL <= found.reach_mm <= 20 * PIXEL
    known = measured(samples, noise(5), everywhere, (PIXEL, PIXEL))
    assert known is None or np.sqrt(np.diag(known.mixing @ known.mixing.T))[:3].max() < 0.06
    assert measured(samples, noise(5), everywhere & (np.arange(SIZE) < 20), (PIXEL, PIXEL)) is None


def test_fields_have_the_width_that_was_measured_whatever_is_cut_out() -> None:
    width = Width(0.1 * np.eye(6), 6.0, PIXEL)
    image = noise(6, 1)[0]
    body = np.zeros((SIZE, SIZE), bool)
    body[20:230, 30:240] = True
    made = [width.written(image, body, (PIXEL, PIXEL), np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert made[0].tobytes() == made[1].tobytes()
    assert not np.array_equal(made[0], made[2])
    assert not made[0][~body].any()
    # Bands hold nearly all of white noise: their gains add up to about that of one band.
    share = made[0][60:190, 60:190].std() / image[60:190, 60:190].std()
    assert 0.05 < share < 0.12
    smaller = body.copy()
    smaller[20:120] = False
    again = width.written(image, smaller, (PIXEL, PIXEL), np.random.default_rng(0))
    np.testing.assert_allclose(again[150:210, 60:210], made[0][150:210, 60:210], atol=0.5)


@pytest.fixture(scope="module")
def pair() -> tuple[Volume, Volume]:
    """A soft scan and its sharp target, whose gain deviates in a way that the scan does not tell."""
    shape = np.hypot(*(np.mgrid[:SIZE, :SIZE] - SIZE / 2)) < 110
    f = frequency(SIZE, PIXEL)
    # Noise of many levels, which source and target share.
    raw = noise(7, 2) * np.linspace(0.4, 3, SIZE, dtype=np.float32)
    source = np.stack([np.where(shape, 40 + filtered(one, np.exp(-((f / 4.0) ** 2))), -1000) for one in raw])
    sharp = gained(np.stack([filtered(one, np.exp(-((f / 6.0) ** 4))) for one in raw]).astype(np.float32), 8, 0.25)
    target = np.where(shape, 40 + sharp, -1000)
    return volume(np.rint(source), pixel_mm=PIXEL), volume(np.rint(target), pixel_mm=PIXEL)


def test_samples_of_an_honest_calibration_differ_as_they_do_from_the_target(
    pair: tuple[Volume, Volume], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(honest, "FACTORS", (0.0, 1.0))
    monkeypatch.setattr(honest, "SHARES", (0.0,))
    pairs = [pair]
    model = fit_pairs(lambda: pairs)
    transport = fit_transport(model, lambda: pairs)
    drawn, adaptive, width = honest.widened(model, transport, None, lambda: pairs)
    assert adaptive is None
    assert drawn is not None
    inside = np.hypot(*(np.mgrid[:SIZE, :SIZE] - SIZE / 2)) < 95
    gaps = []
    for work in (ConcordStandardizer(model, transport), ConcordStandardizer(model, drawn, width=width)):
        one, other = (work(pair[0], generator=SliceSeeds(seed, "test")).hu for seed in (0, 1))
        power = [_log_power(hu, inside) for hu in (one, other, pair[1].hu)]
        gaps.append(np.std(power[0] - power[2]) - np.std(power[0] - power[1]))
    assert gaps[1] < 0.5 * gaps[0]
    mean = ConcordStandardizer(model, drawn, "mean", width=width)(pair[0], generator=SEEDS).hu
    assert mean.tobytes() == ConcordStandardizer(model, transport, "mean")(pair[0], generator=SEEDS).hu.tobytes()


def _log_power(hu: NDArray[np.float32], inside: NDArray[np.bool_]) -> NDArray[np.float64]:
    fine = hu - ndimage.gaussian_filter(hu, (0, 1.5, 1.5))
    power = np.stack([ndimage.uniform_filter(one * one, 28) for one in fine])
    return np.log(power[:, inside][:, ::97]).ravel()


def test_it_survives_the_disk_and_newer_parts_are_refused(pair: tuple[Volume, Volume]) -> None:
    model = fit_pairs(lambda: [pair])
    width = Width(0.1 * np.eye(6), 6.0, PIXEL)
    bundle = to_bundle(model, None, None, width)
    again = parts(bundle)[3]
    assert again is not None
    assert again.mixing.tobytes() == width.mixing.tobytes()
    assert (again.reach_mm, again.pixel_mm) == (6.0, PIXEL)
    assert parts(to_bundle(model, None))[3] is None
    for wrong in ({"mixing": np.eye(5)}, {"scalars": np.array([0.0, 1.0])}, {"mixing": np.eye(6) * np.nan}):
        with pytest.raises(ConcordctError, match="expected a"):
            Width.from_tensors({**width.to_tensors(), **wrong})
    with pytest.raises(ConcordctError, match="a newer one"):
        parts(Bundle({**bundle.tensors, "later/part": np.zeros(1)}, bundle.metadata))


def test_honest_width_is_asked_for_by_name(pair: tuple[Volume, Volume], tmp_path: Path) -> None:
    import concordct

    with pytest.raises(ConcordctError, match="agreement or honest"):
        concordct.calibrate(*pair, width="wide")
    with pytest.raises(ConcordctError, match="of concord alone"):
        concordct.calibrate(*pair, width="honest", method="spectral")
