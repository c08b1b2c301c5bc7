"""What concord writes beyond the transfer, band by band, against what the scan does not know.

Remainder: output minus the calibrated transfer of the same scan. In each band its power is to stay below 1 - coherence
(calibrated, of whole slices) of the target's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from benchmarks.results import table
from concordct.methods.concord.standardizer import ConcordStandardizer
from concordct.methods.spectral.fit import KNOWN
from concordct.signal.body import body_mask
from concordct.signal.spectra import cosine_frequencies, detail_from_cosines, detail_to_cosines, to_cosines
from concordct.volumes.seeds import SliceSeeds
from concordct.volumes.volume import Volume

#: Bands, cycles/pixel; the last takes the corners of the spectrum.
BAND, BANDS = 0.1, 6

Pairs = Sequence[tuple[Volume, Volume]]


def bound_table(conversions: Mapping[str, tuple[ConcordStandardizer, Pairs]]) -> str:
    """Rows of every conversion and band.

    Parameters
    ----------
    conversions : name -> a model, and slabs (source, target) that it is judged on.
    """
    body = []
    for name, (work, pairs) in conversions.items():
        powers, known = _measured(work, pairs)
        ratios = powers[1:] / powers[0]
        for band, (allowed, remainder) in enumerate(ratios.T):
            edges = f"{BAND * band:.1f} to {BAND * (band + 1):.1f}" if band < BANDS - 1 else f"over {BAND * band:.1f}"
            body.append([name, edges, *(f"{one:.2g}" for one in (allowed, remainder))])
        body.append([f"{name}, RMS", f"coherence over {KNOWN:g}", "", f"{known:.2f} HU"])
    return table(["", "cycles/pixel", "allowed", "remainder"], body)


def _measured(work: ConcordStandardizer, pairs: Pairs) -> tuple[NDArray[np.float64], float]:
    """[what, band] power of target, bound and remainder, and RMS HU of the last where the scan knows."""
    powers, known, count = np.zeros((3, BANDS)), 0.0, 0
    for index, (source, target) in enumerate(pairs):
        seeds = SliceSeeds(0, f"bound {index}")
        base, full = (one(source, generator=seeds).hu for one in (replace(work, mode="mean"), work))
        shape, spacing = source.shape[1:], source.spacing_mm[1:]
        coherence = np.interp(cosine_frequencies(shape, spacing), work.model.frequency_lp_cm, work.model.coherence)
        band = np.minimum(cosine_frequencies(shape, (10.0, 10.0)) / BAND, BANDS - 1).astype(int).ravel()
        inside = body_mask(source.hu)
        for z in range(len(base)):
            part = detail_to_cosines(full[z] - base[z])
            power = np.square(to_cosines(target.hu[z]), dtype=np.float64)
            rows = (power, (1 - coherence) * power, np.square(part, dtype=np.float64))
            for row, values in enumerate(rows):
                powers[row] += np.bincount(band, values.ravel(), BANDS)
            known += float(
                np.sum(np.square(detail_from_cosines(part * (coherence > KNOWN))[inside[z]], dtype=np.float64))
            )
            count += int(inside[z].sum())
    return powers, float(np.sqrt(known / max(count, 1)))
