"""Local level of a slice's noise, measured so that edges, vessels and air do not count.

A mean of squares takes every vessel of the lungs for noise. Here the local variance v is the value at which squares cut
at v / 2 average what Gaussian noise would make of them, a scale after Huber (Ann. Math. Stat. 35:73 (1964),
doi:10.1214/aoms/1177703732): a few pixels may be anything. Only the body counts, so that its rim is not averaged with
air. How the level of one band says that of another, calibration finds on one slice (`LevelLaw`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from concordct.signal.spectra import MM_PER_CM, cosine_frequencies, detail_from_cosines

#: Standard deviation of the neighbourhood, and edge of the blocks that squares are averaged in first, mm. Wider ones
#: average anatomy away, narrower ones follow the noise: 9 mm is between.
NEIGHBOURHOOD_MM, BLOCK_MM = 9.0, 3.5
#: Squares are cut at this share of the variance; E[min(z^2, CUT)] of a standard normal z.
CUT, CUT_SHARE = 0.5, 0.3209
#: Each round lessens what is wrong by a factor of 0.75 or less.
ROUNDS = 10
#: Neighbourhoods with less than this share of a block that counts have no level of their own.
LEAST_COUNT = 1e-3
#: Width over which a level's band rises, lp/cm.
RISE_LP_CM = 0.5
#: The local level is trusted within this range of the slice's own level.
LEVEL_RANGE = (0.2, 4.0)
#: Levels below this do not occur in CT, HU; keeps divisions safe.
LEAST_LEVEL_HU = 1e-2
#: Share of a scan's frequencies that must lie in a band for its level to be measured there, and points along an axis at
#: which that is judged.
LEAST_BAND, LATTICE = 0.1, 64


@dataclass(frozen=True)
class LevelLaw:
    """How the level of what the transfer leaves over follows from that of the transferred slice.

    ln(level) = offset + ln(own) + slope ln(l / own): l is the local level above a frequency, own its median in the
    body.

    Attributes
    ----------
    from_lp_cm : where the band begins.
    offset, slope : of the law.
    misfit : standard deviation of the logarithm on the calibration slices.
    """

    from_lp_cm: float
    offset: float
    slope: float
    misfit: float


def best_law(laws: Sequence[LevelLaw], spacing_mm: tuple[float, float]) -> LevelLaw:
    """The law with the least misfit among those whose band pixels of this size hold; else that of the lowest band."""
    frequency = plane(spacing_mm)
    held = [law for law in laws if np.mean(frequency > law.from_lp_cm) >= LEAST_BAND]
    return min(held or [min(laws, key=lambda law: law.from_lp_cm)], key=lambda law: law.misfit)


def plane(spacing_mm: tuple[float, float]) -> NDArray[np.float64]:
    """[LATTICE, LATTICE] radial frequencies of a quarter of the Nyquist square, lp/cm."""
    fy, fx = (np.linspace(0, MM_PER_CM / (2 * d), LATTICE) for d in spacing_mm)
    return np.hypot(fy[:, None], fx[None])


def band_above(frequency_lp_cm: NDArray[np.floating], from_lp_cm: float) -> NDArray[np.float32]:
    """Weights of a level's band."""
    return np.clip((frequency_lp_cm - from_lp_cm) / RISE_LP_CM, 0, 1).astype(np.float32)


def level_of(
    coefficients: NDArray[np.float32],
    body: NDArray[np.bool_],
    law: LevelLaw,
    *,
    spacing_mm: tuple[float, float],
) -> NDArray[np.float32]:
    """Level of the texture at every pixel of a slice, by a calibrated law.

    Parameters
    ----------
    coefficients : [y, x] of the transferred slice, as `to_cosines` gives them.
    body : [y, x] bool. Outside, the level is what the slice itself shows.
    spacing_mm : (y, x), mm.

    Returns
    -------
    [y, x] float32, HU, at least `LEAST_LEVEL_HU`.
    """
    frequency = _frequencies((coefficients.shape[0], coefficients.shape[1]), spacing_mm)
    noise = detail_from_cosines(coefficients * band_above(frequency, law.from_lp_cm))
    level = local_rms(noise, ~body, spacing_mm=spacing_mm, rounds=0)
    if body.any():
        own, relative = own_and_relative(local_rms(noise, body, spacing_mm=spacing_mm), body)
        level = np.where(body, np.float32(own * np.exp(law.offset)) * relative ** np.float32(law.slope), level)
    return np.maximum(level, np.float32(LEAST_LEVEL_HU))


@lru_cache(maxsize=4)
def _frequencies(shape: tuple[int, int], spacing_mm: tuple[float, float]) -> NDArray[np.float32]:
    return cosine_frequencies(shape, spacing_mm)


def own_and_relative(level: NDArray[np.float32], body: NDArray[np.bool_]) -> tuple[float, NDArray[np.float32]]:
    """The slice's own level (median in the body), and the local one relative to it, within `LEVEL_RANGE`."""
    own = max(float(np.median(level[body])), LEAST_LEVEL_HU)
    return own, np.clip(level / np.float32(own), *LEVEL_RANGE)


def local_rms(
    image: NDArray[np.float32], mask: NDArray[np.bool_], *, spacing_mm: tuple[float, float], rounds: int = ROUNDS
) -> NDArray[np.float32]:
    """Local root mean square of the noise in an image around 0.

    Parameters
    ----------
    image : [y, x].
    mask : [y, x] bool, the pixels that count.
    spacing_mm : (y, x), mm.
    rounds : of cutting; 0 is the plain root mean square.

    Returns
    -------
    [y, x] float32, in units of the image; 0 where no pixel that counts is near.
    """
    block = tuple(max(1, round(BLOCK_MM / d)) for d in spacing_mm)
    sigma = [NEIGHBOURHOOD_MM / d / b for d, b in zip(spacing_mm, block, strict=True)]
    width = [(0, -n % b) for n, b in zip(image.shape, block, strict=True)]
    power = np.pad(np.where(mask, image * image, np.float32(0)), width)
    count = _averaged(np.pad(mask, width).astype(np.float32), block, sigma)
    safe = np.maximum(count, np.float32(LEAST_COUNT))
    variance = _averaged(power, block, sigma) / safe
    for _ in range(rounds):
        limit = np.repeat(np.repeat(np.float32(CUT) * variance, block[0], axis=0), block[1], axis=1)
        variance = _averaged(np.minimum(power, limit), block, sigma) / (safe * np.float32(CUT_SHARE))
    level = np.sqrt(np.where(count < LEAST_COUNT, np.float32(0), variance))
    for axis in (0, 1):
        level = _stretched(level, image.shape[axis], block[axis], axis)
    return level


def _averaged(values: NDArray[np.float32], block: tuple[int, ...], sigma: list[float]) -> NDArray[np.float32]:
    rows, columns = values.shape[0] // block[0], values.shape[1] // block[1]
    # Rows first: they add up as whole vectors.
    blocks = values.reshape(rows, block[0], -1).mean(axis=1).reshape(rows, columns, block[1]).mean(axis=2)
    return np.maximum(ndimage.gaussian_filter(blocks, sigma, mode="constant", truncate=3.0), np.float32(0))


def _stretched(blocks: NDArray[np.float32], size: int, block: int, axis: int) -> NDArray[np.float32]:
    """Linear between the centres of blocks."""
    at = np.clip((np.arange(size) + 0.5) / block - 0.5, 0, blocks.shape[axis] - 1)
    low = at.astype(np.intp)
    weight = (at - low).astype(np.float32)
    weight = weight[:, None] if axis == 0 else weight[None]
    high = np.minimum(low + 1, blocks.shape[axis] - 1)
    return np.asarray(np.take(blocks, low, axis) * (1 - weight) + np.take(blocks, high, axis) * weight)
