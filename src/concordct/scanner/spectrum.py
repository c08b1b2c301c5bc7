"""Beam hardening: a polychromatic beam through water and bone, and the correction for water that every scanner makes.

Attenuation coefficients are NIST's (Hubbell and Seltzer, NISTIR 5632, doi:10.18434/T4D01F); the spectrum is Kramers'
law behind aluminium, weighted by energy as an energy-integrating detector does.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: keV, and mass attenuation in cm2/g of water, cortical bone (ICRU-44) and aluminium.
_ENERGY = (30.0, 40.0, 50.0, 60.0, 80.0, 100.0, 150.0)
_WATER = (0.3756, 0.2683, 0.2269, 0.2059, 0.1837, 0.1707, 0.1505)
_BONE = (1.331, 0.6655, 0.4242, 0.3148, 0.2229, 0.1855, 0.1480)
_ALUMINIUM = (1.128, 0.5685, 0.3681, 0.2778, 0.2018, 0.1704, 0.1378)
#: Total filtration, as mm of aluminium.
FILTRATION_MM = 8.0
#: Energy at which the subject's HU hold, keV.
REFERENCE_KEV = 70.0
#: Above this HU a voxel's surplus attenuates like bone.
BONE_HU = 120.0
#: Longest water path that the correction is tabulated for, mm.
LONGEST_MM = 700.0


def _coefficient(table: tuple[float, ...], energy: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    return np.exp(np.interp(np.log(energy), np.log(_ENERGY), np.log(table)))


@lru_cache(maxsize=16)
def beam(kvp: float) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """(weight, water, bone) per energy bin: shares of the signal, attenuation relative to `REFERENCE_KEV`."""
    energy = np.linspace(32.0, kvp - 2.0, 12)
    photons = (kvp / energy - 1.0) * np.exp(-_coefficient(_ALUMINIUM, energy) * 2.699 * FILTRATION_MM / 10.0)
    weight = photons * energy
    reference = np.array([REFERENCE_KEV])
    water = _coefficient(_WATER, energy) / _coefficient(_WATER, reference)
    bone = _coefficient(_BONE, energy) / _coefficient(_BONE, reference)
    return weight / weight.sum(), water, bone


def harden(water: NDArray[np.floating[Any]], bone: NDArray[np.floating[Any]], kvp: float) -> NDArray[np.float32]:
    """Polychromatic line integrals from those of water-like and bone-like matter at the reference energy."""
    weight, water_factor, bone_factor = beam(kvp)
    signal = np.zeros(water.shape, dtype=np.float32)
    for w, fw, fb in zip(weight, water_factor, bone_factor, strict=True):
        signal += np.float32(w) * np.exp(-(np.float32(fw) * water + np.float32(fb) * bone))
    return -np.log(np.maximum(signal, np.float32(1e-12)))


def correct_water(integrals: NDArray[np.float32], kvp: float, water_per_mm: float) -> NDArray[np.float32]:
    """Undo what water alone would have hardened."""
    weight, water_factor, _ = beam(kvp)
    true = np.linspace(-0.05, LONGEST_MM * water_per_mm, 4096)
    measured = -np.log((weight * np.exp(-true[:, None] * water_factor)).sum(axis=1))
    return np.interp(integrals, measured, true).astype(np.float32)
