"""Studies: drawn anew from (seed, number), never a named kernel; what is added to a body stays inside it."""

from __future__ import annotations

import numpy as np

from concordct.scanner.acquisition import Acquisition
from concordct.scanner.frame import Frame
from concordct.scanner.kernels import KERNELS
from concordct.scanner.phantom import chest_phantom
from concordct.scanner.studies import Textured, sample_kernel, sample_protocol


def test_protocols_follow_from_the_generator_and_hold_no_named_kernel() -> None:
    named = {(k.mtf50_lp_cm, k.mtf10_lp_cm) for k in KERNELS.values()}
    for number in range(20):
        drawn = [sample_protocol(np.random.default_rng(number), Acquisition()) for _ in range(2)]
        assert drawn[0] == drawn[1]
        sharpness = [kernel.mtf50_lp_cm for kernel in drawn[0].kernels]
        assert sharpness == sorted(sharpness, reverse=True)
        assert not named & {(k.mtf50_lp_cm, k.mtf10_lp_cm) for k in drawn[0].kernels}
        assert all(15 <= mas <= 500 for mas in drawn[0].exposures_mas)


def test_drawn_kernels_are_ones_that_a_detector_can_serve() -> None:
    generator, finest = np.random.default_rng(0), Acquisition(channel_mm=0.6)
    kernels = [sample_kernel(generator, "k") for _ in range(200)]
    assert max(k.mtf10_lp_cm for k in kernels) < finest.nyquist_lp_cm
    iterative = np.mean([k.iterative > 0 for k in kernels])
    assert 0.1 < iterative < 0.3


def test_texture_is_repeatable_and_stays_inside_the_body() -> None:
    frame, z = Frame((96, 128), 3.0), np.array([150.0])
    body = chest_phantom()
    plain = body.draw(z, frame)
    textured = Textured(body, amplitude_hu=20.0, slope=1.5, blobs_per_cm2=1.0, seed=5)
    first, again = textured.draw(z, frame), textured.draw(z, frame)
    assert first.tobytes() == again.tobytes()
    np.testing.assert_array_equal(first[plain <= -950], plain[plain <= -950])
    tissue = plain > 0
    assert np.std((first - plain)[tissue]) > 10
    silent = Textured(body, amplitude_hu=0.0, slope=1.5, blobs_per_cm2=1.0, seed=5)
    assert silent.draw(z, frame).tobytes() == plain.tobytes()
