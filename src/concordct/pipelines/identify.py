"""Which kernel does a scan look like? Its edges and its noise against the kernels that the virtual scanner knows.

The header may not name the kernel, or name it wrongly. What is measured is what `signal/signature.py` measures on
patients; what it is compared with are the transfer functions of `scanner/kernels.py`, of which most are representative
and not measured. So the answer says how sharp a scan is and whose kernels are as sharp, and is no proof of a name.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from concordct.methods.spectral.self_check import (
    EDGE_FROM_LP_CM,
    EDGE_TO_NYQUIST,
    NOISE_FROM_LP_CM,
    NOISE_SPREAD,
    NOISE_TO_NYQUIST,
    SHARPNESS_SPREAD,
)
from concordct.scanner.kernels import KERNELS, Kernel
from concordct.signal.signature import EDGE_LP_CM, Signature, SignatureMeter, ring_centres_lp_cm
from concordct.signal.spectra import MM_PER_CM
from concordct.volumes.scans import Scan

#: Slices that are measured, evenly spread over the inside of a scan.
SLICES = 5
#: Kernels that are named.
NEAREST = 3
#: Where a kernel passes less than this, its noise is below what rounding leaves.
LEAST_MTF = 0.02


@dataclass(frozen=True)
class Likeness:
    """A kernel, and how far a scan is from it: edges and noise, in units of the spread among scans of one kernel."""

    kernel: str
    distance: float


def identify(scan: Scan, *, allow: Collection[str] = frozenset()) -> tuple[Likeness, ...]:
    """The kernels that a scan is nearest to.

    Returns
    -------
    The nearest first, at most `NEAREST`; empty where neither edges nor noise could be measured.

    Raises
    ------
    ConcordctError : slices that cannot be read.
    """
    meter = SignatureMeter()
    places = np.linspace(0, scan.shape[0] - 1, SLICES + 2).round().astype(int)[1:-1]
    for index in sorted({int(place) for place in places}):
        volume = scan.read(index, index + 1, allow=allow)
        meter.add(volume.hu[0], spacing_mm=volume.spacing_mm[1:])
    signature = meter.signature()
    found = [Likeness(name, distance) for name, one in KERNELS.items() if (distance := _distance(signature, one))]
    return tuple(sorted(found, key=lambda one: one.distance)[:NEAREST])


def _distance(found: Signature, kernel: Kernel) -> float | None:
    nyquist = MM_PER_CM / (2 * max(found.pixel_mm, 1e-3))
    terms = []
    if found.edge is not None:
        band = (EDGE_LP_CM > EDGE_FROM_LP_CM) & (EDGE_TO_NYQUIST * nyquist >= EDGE_LP_CM)
        terms.append(np.sqrt(np.mean((found.edge[band] - kernel.mtf(EDGE_LP_CM[band])) ** 2)) / SHARPNESS_SPREAD)
    if found.noise_hu2_mm2 is not None:
        f = ring_centres_lp_cm()
        mtf = kernel.mtf(f)
        band = (f >= NOISE_FROM_LP_CM) & (f <= NOISE_TO_NYQUIST * nyquist) & (mtf > LEAST_MTF)
        band &= np.nan_to_num(found.noise_hu2_mm2) > 0
        if band.sum() > 2:
            # White projections make noise of power f mtf^2 (Riederer et al. 1978, doi:10.1088/0031-9155/23/3/007).
            ratio = found.noise_hu2_mm2[band] / (f[band] * mtf[band] ** 2)
            terms.append(float(np.std(np.log(ratio))) / NOISE_SPREAD)
    return round(float(np.sqrt(np.mean(np.square(terms)))), 2) if terms else None
