"""Calibrates for honest width: two samples agree with each other as each agrees with the target.

The last slices are left out; what is drawn of the noise that could be raised, and how far the local gain is drawn
(`width.py`), are those with which held-out samples agree most nearly as they should, in the class that is furthest off.
It costs agreement, since what a sample draws it does not know: `calibrate` does it where it is asked to.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from concordct.agreement.texture import Texture
from concordct.methods.concord.adaptive import Adaptive
from concordct.methods.concord.chosen import Held, texture_of
from concordct.methods.concord.fit import held_out
from concordct.methods.concord.learned import Learned
from concordct.methods.concord.standardizer import ConcordStandardizer
from concordct.methods.concord.transport import Transport, fit_transport
from concordct.methods.concord.width import Width, measured
from concordct.methods.spectral.fit import Pairs, fit_pairs
from concordct.methods.spectral.transfer import SpectralModel
from concordct.signal.body import material_mask
from concordct.volumes.volume import Volume

#: Shares drawn of what could be raised, for linear pairs; of what is left over in the four finest bands, for others.
SHARES: tuple[float, ...] = (0.0, 0.5, 1.0)
DRAWN: tuple[tuple[float, ...], ...] = ((0.5,) * 4, (1.0,) * 4, (2.0,) * 4)
#: Measured width times this is tried: squares tell most of what is not known, not all of it.
FACTORS = (0.0, 0.7, 1.0, 1.25, 1.5, 2.0)
#: Choices that are off by this much more than the least are as good, CCC: the one that agrees best is taken.
AS_GOOD = 0.0025
SEEDS = (0, 1)


@dataclass(frozen=True, eq=False)
class _Tried:
    """One choice: samples with the target, samples with each other, [class] CCC each."""

    share: float | tuple[float, ...]
    width: Width | None
    with_target: NDArray[np.float64]
    with_each_other: NDArray[np.float64]

    @property
    def off(self) -> float:
        return float(np.abs(self.with_each_other - self.with_target).max())


def widened(
    model: SpectralModel,
    transport: Transport | None,
    adaptive: Adaptive | None,
    pairs: Pairs,
    learned: Learned | None = None,
) -> tuple[Transport | None, Adaptive | None, Width | None]:
    """A calibration of `fit_concord` with samples as wide as they should be.

    Parameters
    ----------
    model, transport, adaptive, learned : as calibrated on `pairs`.

    Returns
    -------
    Transport, adaptive transfer and width; as they were, without a width, where texture could not be measured. A single
    slice is measured on itself, which makes it a little too narrow.
    """
    held = held_out(pairs)
    if transport is None:
        return None, adaptive, None
    held, rest = _left_out(held, pairs, whole=adaptive is None)
    texture = texture_of(held)
    if texture is None:
        return transport, adaptive, None
    tried: list[_Tried] = []
    if adaptive is not None:  # it was fitted to the rest alone
        for drawn in DRAWN:
            shares = replace(adaptive, drawn=np.array(drawn))
            work = ConcordStandardizer(model, transport, adaptive=shares, learned=learned)
            tried += _tried(drawn, work, held, texture)
    else:
        apart = model if rest is pairs else fit_pairs(rest)
        for share in SHARES:
            work = ConcordStandardizer(apart, fit_transport(apart, rest, drawn_share=share))
            tried += _tried(share, work, held, texture)
    least = min(one.off for one in tried)
    near = [one for one in tried if one.off <= least + AS_GOOD]
    best = max(near, key=lambda one: one.with_target.mean())
    if isinstance(best.share, tuple):
        assert adaptive is not None
        return transport, replace(adaptive, drawn=np.array(best.share)), best.width
    return fit_transport(model, pairs, drawn_share=best.share), None, best.width


def _left_out(held: Held, pairs: Pairs, *, whole: bool) -> tuple[Held, Pairs]:
    """What is measured on, and the pairs without it; a single slice stays, all of it where nothing was fitted to it."""
    total = sum(source.shape[0] for source, _ in pairs())
    count = len(held.mask)
    if total == 1:
        mask = material_mask(held.source.hu, held.source.spacing_mm[1:]) if whole else held.mask
        return replace(held, mask=mask), pairs

    def rest() -> Iterator[tuple[Volume, Volume]]:
        left = total - count
        for source, target in pairs():
            kept = min(left, source.shape[0])
            left -= kept
            if kept:
                yield source.slab(0, kept), target.slab(0, kept)

    return held, rest


def _tried(
    share: float | tuple[float, ...], work: ConcordStandardizer, held: Held, texture: Texture
) -> Iterator[_Tried]:
    """Each factor of the width that these samples turn out to lack."""
    one, other = (held.made(work, seed) for seed in SEEDS)
    width = measured((one, other), held.target.hu[-len(held.mask) :], held.mask, held.source.spacing_mm[1:])
    for factor in FACTORS if width is not None else FACTORS[:1]:
        drawn = width.times(factor) if width is not None and factor else None
        features = [
            texture.features(hu if drawn is None else held.widened(drawn, hu, seed))
            for seed, hu in zip(SEEDS, (one, other), strict=True)
        ]
        with_target = np.mean([_by_class(texture, part, texture.target) for part in features], axis=0)
        yield _Tried(share, drawn, with_target, _by_class(texture, *features))


def _by_class(texture: Texture, one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.array(list(texture.agreement(one, other).values()))
