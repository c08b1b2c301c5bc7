"""Samples as wide as they should be: the local gain of every band is drawn, as far as it is not known.

A sampler is right about what it knows where two samples agree as one sample and the target do (for a posterior the two
pairs have one law). Power that is raised, a law of the level, a transfer are each taken as known, and are not: in
squares of 28 pixels the target's power in a band lies off a sample's by more than two samples lie apart. The difference
of the two covariances of log power, measured on held-out slices, is what has to be drawn: one smooth Gaussian field for
each band, seeded by slice, with the bands' correlations and the reach that squares of three sizes tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from concordct.errors import ConcordctError
from concordct.methods.concord.adaptive import BANDS, box_around, lattice
from concordct.signal.body import material_mask
from concordct.signal.spectra import detail_from_cosines, to_cosines
from concordct.volumes.seeds import SliceSeeds
from concordct.volumes.volume import Volume

Image = NDArray[np.float32]

#: Edges of the squares in which power is compared, pixels; the second one is that of which the covariance is kept.
SQUARES, KEPT = (14, 28, 56), 1
#: Fewer squares than this tell nothing; HU2 below which power does not count.
FEWEST, LEAST_HU2 = 12, 0.01
#: Reaches that are tried, pixels: standard deviations of the Gaussian that white noise is smoothed by.
REACHES = (5.0, 7.0, 10.0, 14.0, 20.0, 28.0, 40.0)
#: Points of white noise in a reach; its Gaussian is cut off after so many reaches.
POINTS, CUT = 2.0, 3.0
#: No gain is drawn beyond this, natural logarithm.
MOST = 0.7
#: Width of the fade inside the body's rim, pixels: the step from air is no texture.
RIM = 3.0


@dataclass(frozen=True, eq=False)
class Width:
    """What of the local gain is not known.

    Attributes
    ----------
    mixing : [BANDS, BANDS], independent fields of deviation 1 to logarithms of each band's gain.
    reach_mm : of the fields. pixel_mm : of the calibration; the bands are physical.
    """

    mixing: NDArray[np.float64]
    reach_mm: float
    pixel_mm: float

    def to_tensors(self) -> dict[str, NDArray[np.float64]]:
        """Arrays by name."""
        return {"mixing": self.mixing, "scalars": np.array([self.reach_mm, self.pixel_mm])}

    @staticmethod
    def from_tensors(tensors: Mapping[str, NDArray[np.float64]]) -> Width:
        """The inverse of `to_tensors`.

        Raises
        ------
        ConcordctError : something lacks, does not fit or is no number.
        """
        mixing, scalars = (np.asarray(tensors.get(name, np.zeros(0)), np.float64) for name in ("mixing", "scalars"))
        if mixing.shape != (BANDS, BANDS) or scalars.shape != (2,) or not np.isfinite(mixing).all():
            raise ConcordctError(f"expected a width of {BANDS} bands, found {mixing.shape} and {scalars.shape}")
        if not np.isfinite(scalars).all() or scalars.min() <= 0:
            raise ConcordctError(f"expected a reach and a pixel above 0 mm, found {scalars.tolist()}")
        return Width(mixing, float(scalars[0]), float(scalars[1]))

    def times(self, factor: float) -> Width:
        """The same with fields that deviate by so many times as much."""
        return replace(self, mixing=self.mixing * factor)

    def drawn(self, made: Image, source: Volume, *, generator: SliceSeeds) -> Image:
        """[z, y, x] HU of a sample with its local gains drawn.

        Parameters
        ----------
        made : [z, y, x] HU, the finished sample of `source`.
        generator : that of the sample; its noise is the same with and without.
        """
        seeds, spacing = SliceSeeds(generator.seed, f"{generator.key}/width"), source.spacing_mm[1:]
        hu = made.copy()
        for index, body in enumerate(material_mask(source.hu, spacing)):
            hu[index] += self.written(hu[index], body, spacing, seeds.at(source.first_slice + index))
        return hu

    def written(
        self, made: Image, body: NDArray[np.bool_], spacing_mm: tuple[float, float], generator: np.random.Generator
    ) -> Image:
        """What is added to a finished sample, HU.

        Parameters
        ----------
        made : [y, x] HU. body : [y, x] bool; nothing is added outside.
        generator : of this slice, and of nothing else.
        """
        found = np.zeros_like(made)
        if not body.any():
            return found
        white = self._white(made.shape, spacing_mm, generator)
        box = box_around(body)
        cut = made[box]
        _, weights = lattice((cut.shape[0], cut.shape[1]), spacing_mm, self.pixel_mm)
        coefficients = to_cosines(cut)
        smooth = [self._smooth(n, d)[part] for n, d, part in zip(made.shape, spacing_mm, box, strict=True)]
        fields = np.tensordot(self.mixing.astype(np.float32), white, 1)
        inner = np.clip(2 * ndimage.gaussian_filter(body[box].astype(np.float32), RIM) - 1, 0, 1)
        added = np.zeros_like(cut)
        for weight, white_of_band in zip(weights, fields, strict=True):
            log_gain = np.clip(smooth[0] @ white_of_band @ smooth[1].T, -MOST, MOST)
            added += np.expm1(log_gain) * detail_from_cosines(coefficients * weight)
        found[box] = inner * added
        return found

    def _white(
        self, shape: tuple[int, ...], spacing_mm: tuple[float, float], generator: np.random.Generator
    ) -> NDArray[np.float32]:
        points = [self._centres(n, d).size for n, d in zip(shape, spacing_mm, strict=True)]
        return generator.standard_normal((BANDS, *points), dtype=np.float32)

    def _centres(self, count: int, pixel_mm: float) -> NDArray[np.float64]:
        """Where white noise lies along an axis, mm, to beyond both ends of a slice."""
        step, beyond = self.reach_mm / POINTS, CUT * self.reach_mm
        return np.arange(-beyond, count * pixel_mm + beyond + step, step)

    def _smooth(self, count: int, pixel_mm: float) -> NDArray[np.float32]:
        """[pixel, point] weights that make a field of deviation 1 of white noise."""
        apart = np.arange(count)[:, None] * pixel_mm - self._centres(count, pixel_mm)
        weights = np.exp(-0.5 * (apart / self.reach_mm) ** 2)
        return (weights / np.sqrt(np.sum(weights**2, axis=1, keepdims=True))).astype(np.float32)


def measured(
    samples: tuple[NDArray[np.float32], NDArray[np.float32]],
    target: NDArray[np.float32],
    mask: NDArray[np.bool_],
    spacing_mm: tuple[float, float],
) -> Width | None:
    """By how much the local power of two samples lies nearer to each other than to the target.

    Parameters
    ----------
    samples, target : [z, y, x] HU of the same slices. mask : [z, y, x] bool, what counts.

    Returns
    -------
    None where there are too few squares, or samples are as wide as they should be.
    """
    pixel_mm = max(spacing_mm)
    excess = []
    for edge in SQUARES:
        truth, one, other = (_log_power(hu, mask, spacing_mm, edge) for hu in (target, *samples))
        if truth.shape[1] < FEWEST:
            break
        excess.append(np.cov(truth - one) - np.cov(one - other))
    if len(excess) <= KEPT:
        return None
    total = np.array([np.maximum(np.diag(part), 0).sum() for part in excess])

    def kept(reach: float) -> NDArray[np.float64]:
        return np.array([_kept(reach, edge) for edge in SQUARES[: len(excess)]])

    def misfit(reach: float) -> float:
        shares = kept(reach)
        return float(np.sum((total - shares * (shares @ total) / (shares @ shares)) ** 2))

    reach = min(REACHES, key=misfit)
    # A logarithm of power is two of a gain.
    values, vectors = np.linalg.eigh(excess[KEPT] / (4 * kept(reach)[KEPT]))
    if values.max() <= 0:
        return None
    return Width(vectors * np.sqrt(np.maximum(values, 0)), reach * pixel_mm, pixel_mm)


def _kept(reach: float, edge: int) -> float:
    """Share of a field's variance that its mean over a square of this edge has."""
    at = np.arange(edge)
    return float(np.exp(-((at[:, None] - at) ** 2) / (4 * reach**2)).mean() ** 2)


def _log_power(
    hu: NDArray[np.float32], mask: NDArray[np.bool_], spacing_mm: tuple[float, float], edge: int
) -> NDArray[np.float64]:
    """[band, square] logarithm of the power in squares that lie wholly inside a mask."""
    found = []
    for image, inside in zip(hu, mask, strict=True):
        _, weights = lattice((image.shape[0], image.shape[1]), spacing_mm, max(spacing_mm))
        coefficients = to_cosines(image)
        whole = _squares(inside.astype(np.float32), edge) > 1 - 1e-4
        bands = [detail_from_cosines(coefficients * weight) for weight in weights]
        found.append(np.array([np.log(_squares(band * band, edge)[whole] + LEAST_HU2) for band in bands], np.float64))
    return np.concatenate(found, axis=1)


def _squares(image: Image, edge: int) -> NDArray[np.float32]:
    rows, columns = (n // edge for n in image.shape)
    cut = image[: rows * edge, : columns * edge]
    return np.asarray(cut.reshape(rows, edge, columns, edge).mean(axis=(1, 3)))
