"""Kernels: MTF50 and MTF10 are what they say, refusals name the allowed range."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from concordct.errors import ConcordctError
from concordct.scanner.acquisition import Acquisition
from concordct.scanner.frame import Frame
from concordct.scanner.kernels import KERNELS, kernel
from concordct.scanner.reconstruction import aliases, check_kernel


@pytest.mark.parametrize("name", sorted(KERNELS))
def test_mtf_passes_through_its_own_figures(name: str) -> None:
    one = KERNELS[name]
    # The cosine roll-off begins 6% before the cut-off, beyond MTF10 for every preset.
    np.testing.assert_allclose(one.mtf(np.array([0.0, one.mtf50_lp_cm, one.mtf10_lp_cm])), [1.0, 0.5, 0.1], atol=1e-6)
    assert one.mtf(np.array([one.cutoff_lp_cm, 2 * one.cutoff_lp_cm])).max() == 0.0


def test_edge_boost_lifts_the_middle() -> None:
    plain = dataclasses.replace(KERNELS["LUNG"], edge_boost=0.0)
    f = np.array([2.0, 3.0])
    assert (KERNELS["LUNG"].mtf(f) > plain.mtf(f) + 0.1).all()


def test_sharp_kernels_rank_above_soft_ones() -> None:
    f = np.array([6.0])
    order = [KERNELS[name].mtf(f)[0] for name in ("B20f", "B30f", "B40f", "B50f", "B60f", "B70f", "B80f")]
    assert order == sorted(order)


def test_iterative_strength_is_part_of_the_name() -> None:
    one = kernel("Br40\\3")
    assert (one.name, one.iterative, one.mtf50_lp_cm) == ("Br40\\3", 3, KERNELS["Br40"].mtf50_lp_cm)
    with pytest.raises(ConcordctError, match="allowed are 1 to 5"):
        kernel("Br40\\9")


def test_unknown_kernel_names_the_known() -> None:
    with pytest.raises(ConcordctError, match=r"unknown kernel 'Br41'; known are .*Br40"):
        kernel("Br41")


def test_contradicting_figures_are_refused() -> None:
    with pytest.raises(ConcordctError, match="MTF50 < MTF10 < cut-off"):
        dataclasses.replace(KERNELS["Br40"], mtf10_lp_cm=3.0)
    with pytest.raises(ConcordctError, match="exponent"):
        dataclasses.replace(KERNELS["Br40"], mtf50_lp_cm=6.5)


def test_kernel_beyond_the_detector_is_refused_beyond_the_pixel_it_aliases() -> None:
    coarse = Acquisition(channel_mm=1.2)
    with pytest.raises(ConcordctError, match=r"at most 8\.33 lp/cm is allowed"):
        check_kernel(KERNELS["Bl64"], coarse)
    assert aliases(KERNELS["Bl64"], Frame((512, 512), 0.75))
    assert not aliases(KERNELS["Br40"], Frame((512, 512), 0.5))
