"""Named reconstruction kernels as parametric modulation transfer functions.

A kernel is what the whole scanner does to a small bright object at the nominal focal spot: the reconstruction divides
the geometry's own blur out (`reconstruction.py`), so that MTF50 and MTF10 are what a wire measures. The family is

    K(f) = exp(-(f / c)^p) * (1 + boost * bump(f / peak)),  bump(u) = u^2 exp(1 - u^2),  0 beyond the cut-off,

with c and p solved in closed form from MTF50 and MTF10. Frequencies are in line pairs per cm throughout.
"""

from __future__ import annotations

import dataclasses
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
    source : what the figures were ranked by or fitted to, or "representative".
    iterative : strength of the iterative-like step after reconstruction, 0 for plain filtered back projection.
    """

    name: str
    mtf50_lp_cm: float
    mtf10_lp_cm: float
    cutoff_lp_cm: float
    edge_boost: float
    boost_peak_lp_cm: float
    family: str
    source: str
    iterative: int = 0

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


#: Set by eye and by rank within the vendor's series; no published MTF was found for it.
REPRESENTATIVE = "representative"
#: Noise spectra of GE and Siemens kernels compared: Soft ~ B35f, Standard ~ B43f, Chest ~ B41f, Lung ~ B80f.
SOLOMON = "representative, ranked by Solomon et al. 2012, doi:10.1118/1.4752209"
#: Ratio of the two kernels' transfer functions measured on one head phantom (dcm_qa_ct, UB and YA, 1 mm).
UB_YA = "ratio YA/UB fitted to a real pair of series (dcm_qa_ct); absolute level representative"

#: Ratio of D45 to B30 measured on one abdomen (AAPM/Mayo challenge, patient L067).
B30_D45 = "ratio D45/B30 fitted to a real pair of series (AAPM/Mayo); absolute level representative"

# name, family, MTF50, MTF10, cut-off (lp/cm), edge boost, its peak (lp/cm), source
_PRESETS: tuple[tuple[str, str, float, float, float, float, float, str], ...] = (
    ("B20f", "siemens-b", 3.1, 5.4, 7.2, 0.00, 2.5, REPRESENTATIVE),
    ("B30f", "siemens-b", 3.5, 5.9, 7.6, 0.00, 2.5, B30_D45),
    ("B35f", "siemens-b", 3.9, 6.5, 8.4, 0.00, 2.5, SOLOMON),
    ("B40f", "siemens-b", 4.2, 6.9, 8.8, 0.00, 3.0, REPRESENTATIVE),
    ("B50f", "siemens-b", 5.7, 8.5, 10.2, 0.15, 3.5, REPRESENTATIVE),
    ("B60f", "siemens-b", 6.6, 9.6, 11.6, 0.35, 4.0, REPRESENTATIVE),
    ("B70f", "siemens-b", 7.4, 10.6, 12.6, 0.35, 4.5, REPRESENTATIVE),
    ("B80f", "siemens-b", 7.9, 11.2, 13.4, 0.55, 5.0, SOLOMON),
    ("D45f", "siemens-b", 7.2, 10.2, 12.2, 0.00, 4.0, B30_D45),
    ("Br36", "siemens-br", 3.7, 6.2, 8.2, 0.00, 3.0, REPRESENTATIVE),
    ("Br40", "siemens-br", 4.0, 6.7, 8.6, 0.00, 3.0, REPRESENTATIVE),
    ("Br49", "siemens-br", 5.3, 8.0, 9.8, 0.10, 3.5, REPRESENTATIVE),
    ("Bl57", "siemens-br", 6.2, 9.3, 11.2, 0.30, 4.0, REPRESENTATIVE),
    ("Bl64", "siemens-br", 7.6, 10.8, 13.0, 0.35, 4.5, REPRESENTATIVE),
    ("SOFT", "ge", 3.8, 6.4, 8.2, 0.00, 2.5, SOLOMON),
    ("STANDARD", "ge", 4.2, 6.9, 8.6, 0.05, 3.0, SOLOMON),
    ("CHEST", "ge", 4.6, 7.4, 9.2, 0.15, 3.0, SOLOMON),
    ("BONE", "ge", 6.8, 10.2, 12.4, 0.30, 4.5, REPRESENTATIVE),
    ("LUNG", "ge", 7.2, 10.4, 12.6, 0.75, 4.5, SOLOMON),
    ("B", "philips", 3.8, 6.5, 8.4, 0.00, 2.5, REPRESENTATIVE),
    ("C", "philips", 4.6, 7.4, 9.0, 0.05, 3.0, REPRESENTATIVE),
    ("D", "philips", 5.8, 8.8, 10.6, 0.20, 4.0, REPRESENTATIVE),
    ("L", "philips", 6.9, 10.0, 12.0, 0.50, 4.5, REPRESENTATIVE),
    ("UB", "philips", 3.5, 5.75, 7.4, 0.00, 2.5, UB_YA),
    ("YA", "philips", 6.9, 8.9, 9.9, 0.40, 4.5, UB_YA),
    ("FC08", "canon", 3.9, 6.5, 8.4, 0.10, 2.5, REPRESENTATIVE),
    ("FC51", "canon", 6.8, 10.0, 12.0, 0.40, 4.5, REPRESENTATIVE),
)

KERNELS: dict[str, Kernel] = {
    name: Kernel(name, mtf50, mtf10, cutoff, boost, peak, family, source)
    for name, family, mtf50, mtf10, cutoff, boost, peak, source in _PRESETS
}

#: Strengths of the iterative-like step, as vendors number them; written after a backslash ("Br40\\3").
STRENGTHS = range(1, 6)


def kernel(name: str) -> Kernel:
    """The preset of that name; "Br40\\3" is Br40 with an iterative-like step of strength 3."""
    base, _, strength = name.partition("\\")
    if base not in KERNELS:
        raise ConcordctError(f"unknown kernel {base!r}; known are {', '.join(sorted(KERNELS))}")
    if not strength:
        return KERNELS[base]
    if not strength.isdigit() or int(strength) not in STRENGTHS:
        raise ConcordctError(f"kernel {name!r}: strength {strength!r}, allowed are {STRENGTHS[0]} to {STRENGTHS[-1]}")
    return dataclasses.replace(KERNELS[base], name=name, iterative=int(strength))
