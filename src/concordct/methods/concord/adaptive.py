"""Iterative and deep-learning reconstruction: one transfer for flat tissue, another for edges.

Such reconstructions shrink noise and keep edges. Between two of them noise follows noise at a coherence above 0.9, but
with a gain that is up to three times that of edges, so that one linear transfer is wrong for both. Here the calibrated
transfer H serves edges; flat tissue has a transfer of its own, N, measured in the quietest patches. In each band of the
image (differences of Gaussians, which reach little beyond their width: wider filters carry an edge into flat tissue)
the result is

    H A + w (N - H) A + n,

with a share w and a power of what is left over, n, for every pixel. A small network reads both from how much there is
in each band nearby, next to how much is usual in the slice; it is fitted at calibration, to the pixels of the
calibration slices, by Gaussian likelihood. How much of n is drawn, held-out slices say (`fit.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from concordct.errors import ConcordctError
from concordct.methods.concord.perceptron import Perceptron
from concordct.methods.concord.texture_level import local_rms
from concordct.signal.spectra import MM_PER_CM, detail_from_cosines, detail_to_cosines, to_cosines
from concordct.volumes.volume import AIR_HU

Image = NDArray[np.float32]

#: Standard deviations of the Gaussians between bands, calibrated pixels.
WIDTHS = (0.5, 0.7, 1.0, 1.45, 2.1, 3.0)
BANDS = len(WIDTHS)
#: Neighbourhood in which a band's strength is read: so many of the band's widths, at least this, pixels.
NEAR_WIDTHS, NEAREST = 1.5, 1.5
#: Bands whose strength is also read in a wider neighbourhood, its width in pixels, and those whose noise level is.
WIDE, WIDE_PIXELS, LEVELS = (1, 3, 5), 5.0, (0, 3)
#: So many bands need every pixel to tell their strength.
FINE_BANDS = 3
#: Noise is drawn in so many bands, from the finest: the others have next to none left over.
DRAWN_BANDS = 4
#: What is drawn may be this much of what the network says, which underestimates what it was trained on.
MOST_DRAWN = 2.0
#: A band's usual strength is that which this share of the body stays below: flat tissue.
USUAL = 0.25
#: Strengths below this do not occur, HU; keeps logarithms safe.
LEAST_HU = 0.05
#: HU of the blurred source that the network is told, and its units: all, and what lies between air and lung.
BLUR, HU_UNIT, LUNG_UNIT, LUNG_TOP = 1.5, 300.0, 200.0, 3.0
FEATURES = BANDS + len(WIDE) + len(LEVELS) + 3
#: Air kept around the body, pixels; edges of what is cut out are multiples of this.
MARGIN, MULTIPLE = 12, 16
#: Limits of what the network may say: share w, and the logarithm of the power left over in units of the strength.
SHARES, LOG_POWERS = (-1.0, 2.0), (-12.0, 4.0)


@dataclass(frozen=True, eq=False)
class Adaptive:
    """What a calibration says of edges and flat tissue.

    Attributes
    ----------
    frequency_lp_cm : [f], from 0.
    extra : [f], (N - H) / H.
    left : [f], amplitude of what flat tissue leaves over; only its shape counts.
    pixel_mm : of the calibration; the bands are physical.
    drawn : [DRAWN_BANDS], share of the power left over that is drawn in each of the finest bands, 0 to `MOST_DRAWN`.
    network : `FEATURES` to w and log power for each band.
    centre, spread, low, high : [FEATURES], mean and deviation of the features, and the range met at calibration.
    """

    frequency_lp_cm: NDArray[np.float64]
    extra: NDArray[np.float64]
    left: NDArray[np.float64]
    pixel_mm: float
    drawn: NDArray[np.float64]
    network: Perceptron
    centre: Image
    spread: Image
    low: Image
    high: Image

    @property
    def draws(self) -> bool:
        """Whether anything is drawn at all."""
        return bool(self.drawn.any())

    def to_tensors(self) -> dict[str, NDArray[np.float64]]:
        """Arrays by name."""
        names = ("frequency_lp_cm", "extra", "left", "drawn", "centre", "spread", "low", "high")
        found = {name: np.asarray(getattr(self, name), np.float64) for name in names}
        return {**found, **self.network.to_tensors(), "scalars": np.array([self.pixel_mm])}

    @staticmethod
    def from_tensors(tensors: Mapping[str, NDArray[np.float64]]) -> Adaptive:
        """The inverse of `to_tensors`.

        Raises
        ------
        ConcordctError : something lacks, does not fit or is no number.
        """
        try:
            pixel_mm = float(tensors["scalars"][0])
            # Models of before version 0.3 hold one share for all bands.
            drawn = tensors.get("drawn", np.full(DRAWN_BANDS, tensors["scalars"][-1]))
            network = Perceptron.from_tensors(tensors)
            frequency, extra, left = (np.asarray(tensors[n], np.float64) for n in ("frequency_lp_cm", "extra", "left"))
            centre, spread, low, high = (tensors[n].astype(np.float32) for n in ("centre", "spread", "low", "high"))
        except (KeyError, ValueError, IndexError) as error:
            raise ConcordctError(f"expected a whole adaptive transfer, found one without {error}") from error
        fits = network.fits(FEATURES, 2 * BANDS)
        fits &= frequency.shape == extra.shape == left.shape and frequency.size > 1
        fits &= all(one.shape == (FEATURES,) for one in (centre, spread, low, high)) and pixel_mm > 0
        fits &= drawn.shape == (DRAWN_BANDS,) and bool(np.all((drawn >= 0) & (drawn <= MOST_DRAWN)))
        if not fits or not all(np.isfinite(one).all() for one in tensors.values()):
            raise ConcordctError("expected an adaptive transfer of finite numbers that fit, found others")
        return Adaptive(frequency, extra, left, pixel_mm, drawn, network, centre, spread, low, high)

    def written(
        self, made: Image, source: Image, body: NDArray[np.bool_], spacing_mm: tuple[float, float], white: Image | None
    ) -> Image:
        """What is added to a transferred slice, HU.

        Parameters
        ----------
        made, source : [y, x] HU, after and before the transfer. body : [y, x] bool.
        white : [y, x] white cosine coefficients to draw from; None draws nothing.
        """
        return self.both(made, source, body, spacing_mm, white)[0]

    def both(
        self, made: Image, source: Image, body: NDArray[np.bool_], spacing_mm: tuple[float, float], white: Image | None
    ) -> tuple[Image, Image]:
        """As `written`, with and without what is drawn."""
        found = np.zeros_like(made)
        if not body.any():
            return found, found
        box = box_around(body)
        near = Near(made[box], source[box], body[box], spacing_mm, self.pixel_mm)
        said = self.network((np.clip(near.features, self.low, self.high) - self.centre) / self.spread)
        maps = np.zeros((2 * BANDS, *near.half.shape), np.float32)
        maps[:, near.half] = said.T
        maps[:BANDS] = np.clip(maps[:BANDS], *SHARES)
        flat = near.bands(near.made_cosines * self.on_grid(self.extra, near.frequency))
        added = np.zeros_like(near.made)
        for share, band in zip(_doubled(maps[:BANDS]), flat, strict=True):
            added += share * band
        quiet = found
        if white is not None and self.draws:
            quiet = np.zeros_like(made)
            quiet[box] = np.where(near.body, added, 0)
            kept = slice(0, DRAWN_BANDS)
            share = self.drawn.astype(np.float32)[:, None, None]
            power = np.exp(np.clip(maps[BANDS:][kept], *LOG_POWERS)) * (share * near.half)
            noise, unit = self._noise(white, spacing_mm)
            drawn = near.bands(detail_to_cosines(noise[box]), DRAWN_BANDS)
            deviation = _doubled(near.strengths[kept] * np.sqrt(power))
            for scale, band, one in zip(deviation, drawn, unit[kept], strict=True):
                added += scale * (band / one)
        found[box] = np.where(near.body, added, 0)
        return found, quiet

    def on_grid(self, curve: NDArray[np.float64], frequency_lp_cm: Image) -> Image:
        """A curve at every coefficient of a slice."""
        return np.interp(frequency_lp_cm, self.frequency_lp_cm, curve).astype(np.float32)

    def _noise(self, white: Image, spacing_mm: tuple[float, float]) -> tuple[Image, NDArray[np.float32]]:
        """Noise of the spectrum left over, and its deviation in every band."""
        amplitude, unit = _amplitude(self, (white.shape[0], white.shape[1]), spacing_mm)
        return detail_from_cosines(white * amplitude), unit


@lru_cache(maxsize=4)
def _amplitude(adaptive: Adaptive, shape: tuple[int, int], spacing_mm: tuple[float, float]) -> tuple[Image, Image]:
    frequency, weights = lattice(shape, spacing_mm, adaptive.pixel_mm)
    amplitude = adaptive.on_grid(adaptive.left, frequency)
    unit = [float(np.sqrt(np.mean((amplitude * weight) ** 2, dtype=np.float64))) for weight in weights]
    return amplitude, np.maximum(np.array(unit, np.float32), np.float32(1e-6))


@lru_cache(maxsize=8)
def lattice(
    shape: tuple[int, int], spacing_mm: tuple[float, float], pixel_mm: float
) -> tuple[Image, tuple[Image, ...]]:
    """Frequency of every coefficient, lp/cm, and the weights of the bands, from fine to coarse."""
    axes = [np.arange(n) / (2 * n * d) * MM_PER_CM for n, d in zip(shape, spacing_mm, strict=True)]
    passed = [np.ones(shape, np.float32)]
    for width in WIDTHS:
        rows, columns = (np.exp(-2 * (np.pi * width * pixel_mm * axis / MM_PER_CM) ** 2) for axis in axes)
        passed.append(np.outer(rows, columns).astype(np.float32))
    bands = tuple(fine - coarse for fine, coarse in pairwise(passed))
    return np.hypot(axes[0][:, None], axes[1][None]).astype(np.float32), bands


class Near:
    """A slice cut to its body, with its bands and what the network reads of them, on every other pixel.

    Attributes
    ----------
    made, body : [y, x], cut out; edges are even.
    frequency, made_cosines : [y, x] of what is cut out.
    half : [y / 2, x / 2] bool, where there is body.
    strengths : [band, y / 2, x / 2] local root mean square, HU. strength : [band], that of flat tissue.
    features : [n, FEATURES] of the pixels of `half`.
    """

    def __init__(
        self,
        made: Image,
        source: Image,
        body: NDArray[np.bool_],
        spacing_mm: tuple[float, float],
        pixel_mm: float,
    ) -> None:
        self.made, self.body = made, body
        self.frequency, self._weights = lattice((made.shape[0], made.shape[1]), spacing_mm, pixel_mm)
        self.made_cosines = to_cosines(made)
        self.half = body[::2, ::2]
        scale = [pixel_mm / d for d in spacing_mm]

        def smooth(image: Image, pixels: float) -> Image:
            sigma = [pixels * one / 2 for one in scale]
            return np.asarray(ndimage.gaussian_filter(image, sigma, mode="nearest", truncate=3.0))

        squares = [_halved(band * band) for band in self.bands(self.made_cosines, FINE_BANDS)]
        squares += [band * band for band in self._coarse_bands()]
        self.strengths = np.stack(
            [
                np.sqrt(np.maximum(smooth(one, max(NEAREST, NEAR_WIDTHS * width)), 0)) + np.float32(LEAST_HU)
                for one, width in zip(squares, WIDTHS, strict=True)
            ]
        )
        seen = self.strengths[:, self.half]
        self.strength = np.quantile(seen, USUAL, axis=1).astype(np.float32)
        usual = np.log(self.strength)
        wide = [np.sqrt(np.maximum(smooth(squares[b], WIDE_PIXELS), 0))[self.half] for b in WIDE]
        twice = (2 * spacing_mm[0], 2 * spacing_mm[1])
        level = [local_rms(np.sqrt(squares[b]), self.half, spacing_mm=twice)[self.half] for b in LEVELS]
        blurred = smooth(_halved(source), BLUR)
        steep = np.hypot(*np.gradient(blurred))[self.half]
        hu = blurred[self.half]
        columns = [
            *(np.log(seen) - usual[:, None]),
            *(np.log(one + LEAST_HU) - usual[b] for one, b in zip(wide, WIDE, strict=True)),
            *(np.log(one + LEAST_HU) - usual[b] for one, b in zip(level, LEVELS, strict=True)),
            hu / HU_UNIT,
            np.clip((hu - AIR_HU) / LUNG_UNIT, 0, LUNG_TOP),
            np.log(steep + self.strength[LEVELS[1]]) - usual[LEVELS[1]],
        ]
        self.features = np.stack(columns, axis=1).astype(np.float32)

    def bands(self, coefficients: Image, count: int = BANDS) -> list[Image]:
        """The bands of an image of this size, or the finest of them."""
        return [detail_from_cosines(coefficients * weight) for weight in self._weights[:count]]

    def _coarse_bands(self) -> list[Image]:
        """The others of the transferred slice, on every other pixel: what they lose by that is next to nothing."""
        rows, columns = (n // 2 for n in self.made.shape)
        kept = np.s_[:rows, :columns]
        scale = np.float32(0.5)  # of orthonormal transforms of half the edge
        return [detail_from_cosines(self.made_cosines[kept] * w[kept] * scale) for w in self._weights[FINE_BANDS:]]


def box_around(body: NDArray[np.bool_]) -> tuple[slice, slice]:
    """What holds the body with a margin, where the slice has it; edges even, and few sizes."""
    found = []
    for axis in (0, 1):
        at = np.flatnonzero(body.any(axis=1 - axis))
        count = body.shape[axis] - body.shape[axis] % 2
        start = max(0, int(at[0]) - MARGIN) // 2 * 2
        length = min(-(-(int(at[-1]) + MARGIN + 1 - start) // MULTIPLE) * MULTIPLE, count)
        start = max(0, min(start, count - length))
        found.append(slice(start, start + length))
    return found[0], found[1]


def _halved(image: Image) -> Image:
    """Means of two by two pixels."""
    rows = image[::2] + image[1::2]
    return (rows[:, ::2] + rows[:, 1::2]) * np.float32(0.25)


def _doubled(maps: Image) -> Image:
    """[k, y, x] to [k, 2 y, 2 x], linear between the centres of the pixels."""
    for axis in (1, 2):
        near = np.moveaxis(maps, axis, -1)
        quarter = np.diff(near, axis=-1) * np.float32(0.25)
        both = np.repeat(near, 2, axis=-1)
        both[..., 2::2] -= quarter
        both[..., 1:-1:2] += quarter
        maps = np.moveaxis(both, -1, axis)
    return maps
