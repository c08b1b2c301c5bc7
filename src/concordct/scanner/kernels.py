"""Named reconstruction kernels as parametric modulation transfer functions.

A kernel is what the whole scanner does to a small bright object at the nominal focal spot: the reconstruction divides
the geometry's own blur out (`reconstruction.py`), so that MTF50 and MTF10 are what a wire measures. The family is

    K(f) = exp(-(f / c)^p) * (1 + boost * bump(f / peak)),  bump(u) = u^2 exp(1 - u^2),  0 beyond the cut-off,

with c and p solved in closed form from MTF50 and MTF10. Frequencies are in line pairs per cm throughout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from concordct.errors import ConcordctError

#: Share of the cut-off over which a kernel is brought to zero; vendors' kernels end this abruptly.
ROLL_OFF = 0.06
#: Exponents of the fall-off that still resemble a CT kernel; outside, MTF50 and MTF10 contradict each other.
EXPONENT_RANGE = (0.8, 12.0)


@dataclass(frozen=True)
class Kernel:
    """One reconstruction kernel.

    Attributes
    ----------
    name : as the scanner writes it in ConvolutionKernel.
    mtf50_lp_cm, mtf10_lp_cm : frequencies where the MTF falls to 0.5 and to 0.1, lp/cm.
    cutoff_lp_cm : frequency from which the kernel passes nothing, lp/cm.
    edge_boost : height of the edge enhancement relative to the plain fall-off (0 for none).
    boost_peak_lp_cm : frequency at which the edge enhancement peaks, lp/cm.
    family : vendor and series, the unit in which kernels are held back for testing.
    source : where the figures come from, or "representative".
    """

    name: str
    mtf50_lp_cm: float
    mtf10_lp_cm: float
    cutoff_lp_cm: float
    edge_boost: float
    boost_peak_lp_cm: float
    family: str
    source: str

    def __post_init__(self) -> None:
        if not 0 < self.mtf50_lp_cm < self.mtf10_lp_cm < self.cutoff_lp_cm:
            raise ConcordctError(
                f"kernel {self.name}: expected 0 < MTF50 < MTF10 < cut-off, found {self.mtf50_lp_cm}, "
                f"{self.mtf10_lp_cm}, {self.cutoff_lp_cm} lp/cm"
            )
        if not 0 <= self.edge_boost <= 2 or self.boost_peak_lp_cm <= 0:
            raise ConcordctError(
                f"kernel {self.name}: edge boost {self.edge_boost} at {self.boost_peak_lp_cm} lp/cm, "
                "allowed are 0 to 2 at a frequency above 0"
            )
        if not EXPONENT_RANGE[0] <= self._shape()[1] <= EXPONENT_RANGE[1]:
            raise ConcordctError(
                f"kernel {self.name}: MTF50 {self.mtf50_lp_cm} and MTF10 {self.mtf10_lp_cm} lp/cm with this edge boost "
                f"need a fall-off exponent of {self._shape()[1]:.1f}, "
                f"allowed are {EXPONENT_RANGE[0]} to {EXPONENT_RANGE[1]}"
            )

    def _boost(self, f: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
        u2 = (f / self.boost_peak_lp_cm) ** 2
        return 1.0 + self.edge_boost * u2 * np.exp(1.0 - u2)

    def _shape(self) -> tuple[float, float]:
        f50, f10 = self.mtf50_lp_cm, self.mtf10_lp_cm
        boosted = self._boost(np.array([f50, f10]))
        at50, at10 = np.log(boosted / (0.5, 0.1))
        p = float(np.log(at10 / at50) / np.log(f10 / f50))
        return f50 / float(at50) ** (1 / p), p

    def mtf(self, f_lp_cm: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
        """MTF at frequencies of any shape, lp/cm."""
        f = np.abs(np.asarray(f_lp_cm, dtype=np.float64))
        c, p = self._shape()
        roll = np.clip((self.cutoff_lp_cm - f) / (ROLL_OFF * self.cutoff_lp_cm), 0.0, 1.0)
        return np.exp(-((f / c) ** p)) * self._boost(f) * (0.5 - 0.5 * np.cos(np.pi * roll))


def _kernel(
    name: str, family: str, mtf50: float, mtf10: float, cutoff: float, boost: float, peak: float, source: str
) -> tuple[str, Kernel]:
    return name, Kernel(name, mtf50, mtf10, cutoff, boost, peak, family, source)


REPRESENTATIVE = "representative"

KERNELS: dict[str, Kernel] = dict(
    (
        _kernel("Br40", "siemens-br", 4.0, 6.7, 8.6, 0.0, 3.0, REPRESENTATIVE),
        _kernel("Bl64", "siemens-bl", 8.6, 11.6, 14.0, 0.55, 6.0, REPRESENTATIVE),
    )
)


def kernel(name: str) -> Kernel:
    """The preset of that name."""
    if name not in KERNELS:
        raise ConcordctError(f"unknown kernel {name!r}; known are {', '.join(sorted(KERNELS))}")
    return KERNELS[name]
