"""What a kernel leaves in a scan: known responses, known noise, and when there is nothing to measure."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from concordct.scanner.nonlinear import shrink_noise
from concordct.signal.signature import EDGE_LP_CM, Signature, SignatureMeter, ring_centres_lp_cm
from synthetic import filtered, frequency, sharp, soft

SIZE, PIXEL_MM = 320, 0.7


def disc(size: int = SIZE, pixel_mm: float = PIXEL_MM) -> NDArray[np.float64]:
    """[y, x] a disc of 80 mm of water in air, drawn finely, HU above air."""
    fine = 4
    at = ((np.arange(size * fine) + 0.5) / fine - size / 2) * pixel_mm
    inside = np.hypot(at[:, None], at[None]) < 80
    return 1000.0 * inside.reshape(size, fine, size, fine).mean(axis=(1, 3))


def measured(image: NDArray[np.floating], pixel_mm: float = PIXEL_MM) -> Signature:
    meter = SignatureMeter()
    assert meter.add(np.asarray(image, np.float32), spacing_mm=(pixel_mm, pixel_mm))
    return meter.signature()


@pytest.mark.parametrize(("kernel", "tolerance"), [(soft, 0.03), (sharp, 0.08)])
def test_the_response_to_edges_is_the_kernel(kernel: object, tolerance: float) -> None:
    f = frequency(SIZE, PIXEL_MM)
    found = measured(filtered(disc(), kernel(f)) - 1000)  # type: ignore[operator]
    assert found.edge is not None
    band = EDGE_LP_CM <= 4
    # Drawing on pixels is a filter, too.
    expected = kernel(EDGE_LP_CM) * np.sinc(EDGE_LP_CM / 10 * PIXEL_MM)  # type: ignore[operator]
    assert np.abs(found.edge - expected)[band].max() < tolerance


def test_noise_has_its_known_spectrum() -> None:
    f, sd = frequency(SIZE, PIXEL_MM), 25.0
    noise = np.random.default_rng(0).normal(0, sd, (SIZE, SIZE))
    found = measured(disc() - 1000 + filtered(noise, soft(f)))
    assert found.noise_hu2_mm2 is not None
    assert found.tail is not None
    centres = ring_centres_lp_cm()
    band = (centres > 2) & (centres < 4)
    expected = sd**2 * PIXEL_MM**2 * soft(centres) ** 2
    # The quietest tenth is a little quieter than all, and a ring is as wide as a patch is small.
    assert np.abs(np.log(found.noise_hu2_mm2[band] / expected[band])).max() < 0.35
    assert found.tail == pytest.approx(np.sqrt(2 / np.pi), abs=0.012)


def test_noise_that_was_shrunk_where_it_is_weak_shows_in_its_tails() -> None:
    noise = np.random.default_rng(1).normal(0, 30, (SIZE, SIZE))
    image = disc() - 1000 + filtered(noise, sharp(frequency(SIZE, PIXEL_MM)))
    plain, shrunk = measured(image).tail, measured(shrink_noise(image[None], PIXEL_MM, 3)[0]).tail
    assert plain is not None
    assert shrunk is not None
    assert plain - shrunk > 0.015


def test_what_is_not_there_is_not_measured() -> None:
    meter = SignatureMeter()
    assert not meter.add(np.full((64, 64), -1000, np.float32), spacing_mm=(1.0, 1.0))
    assert meter.signature().noise_hu2_mm2 is None
    assert meter.signature().edge is None
    # A body that fills the field shows noise and no surface.
    noise = np.random.default_rng(2).normal(0, 20, (SIZE, SIZE))
    found = measured(noise)
    assert found.noise_hu2_mm2 is not None
    assert found.edge is None
    # A small insert shows neither.
    insert = np.full((SIZE, SIZE), -1000.0)
    insert[100:120, 100:120] = 0
    assert measured(insert).noise_hu2_mm2 is None


def test_nothing_is_known_beyond_the_pixels() -> None:
    found = measured(np.random.default_rng(3).normal(0, 20, (SIZE, SIZE)), pixel_mm=1.0)
    assert found.noise_hu2_mm2 is not None
    assert np.isfinite(found.noise_hu2_mm2[ring_centres_lp_cm() < 4.7]).sum() >= 8
    assert not np.isfinite(found.noise_hu2_mm2[ring_centres_lp_cm() > 5.3]).any()


def test_json_brings_a_signature_back() -> None:
    noise = np.random.default_rng(4).normal(0, 20, (SIZE, SIZE))
    found = measured(disc() - 1000 + noise)
    back = Signature.from_json(found.to_json())
    assert back is not None
    assert back.edge is not None
    assert found.edge is not None
    assert found.noise_hu2_mm2 is not None
    assert back.noise_hu2_mm2 is not None
    np.testing.assert_allclose(back.edge, found.edge, atol=1e-4)
    np.testing.assert_allclose(back.noise_hu2_mm2, found.noise_hu2_mm2, rtol=1e-3)
    assert (back.tail, back.pixel_mm) == (pytest.approx(found.tail, abs=1e-4), PIXEL_MM)
    for broken in ({}, {**found.to_json(), "edge": [1.0]}, {**found.to_json(), "pixel_mm": "wide"}):
        assert Signature.from_json(broken) is None
