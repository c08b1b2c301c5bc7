"""Noise power that an image lacks beside another of the same body, told apart from anatomy.

In tissue the anatomy's power is up to hundreds of times that of noise, and two reconstructions differ in it by a
percent or so, which is more than all the noise. But noise is there whatever the anatomy: over patches, the difference
of power is a part that grows with the anatomy and an intercept, and the intercept is what noise lacks. Patches are
grouped by their structure before a line is laid through the groups, so that the chance of a single patch does not tilt
it (Wald, Ann. Math. Stat. 11:284 (1940), doi:10.1214/aoms/1177731868).

A scanner's noise is not alike everywhere, and quiet tissue may lack what other tissue does not. The less anatomy there
is at a frequency, the better the median group says what lacks: both are weighted by their errors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from concordct.signal.spectra import MM_PER_CM

#: Edge of a patch: small enough to lie inside muscle, liver or fat.
PATCH_MM = 12.0
#: Groups of patches by structure, the share of all patches that they hold, and patches that a group needs.
GROUPS, GROUPED, FEWEST_IN_GROUP = 10, 0.8, 4
#: Power below this frequency is structure, lp/cm.
STRUCTURE_LP_CM = 2.0
#: The transfer may be wrong by about this share of the anatomy's power.
ANATOMY_ERROR = 0.05


@dataclass(frozen=True, eq=False)
class PatchPower:
    """Power of half-overlapping patches by ring, with a Hann taper.

    Attributes
    ----------
    size : edge of a patch, pixels.
    spacing_mm : (y, x), mm.
    """

    size: int
    spacing_mm: tuple[float, float]

    @staticmethod
    def of(spacing_mm: tuple[float, float]) -> PatchPower:
        """Patches of `PATCH_MM` for pixels of this size."""
        return PatchPower(max(8, 2 * round(PATCH_MM / max(spacing_mm) / 2)), spacing_mm)

    def _rings(self) -> tuple[NDArray[np.intp], NDArray[np.float64], NDArray[np.float64]]:
        """Ring of every coefficient, coefficients that it stands for, its frequency in lp/cm, [f] each."""
        n = self.size
        fy, fx = fft.fftfreq(n, self.spacing_mm[0] / MM_PER_CM), fft.rfftfreq(n, self.spacing_mm[1] / MM_PER_CM)
        frequency = np.hypot(fy[:, None], fx[None])
        # Columns 0 and n / 2 of a real transform stand for themselves, every other for its mirror image, too.
        weight = np.full(frequency.shape, 2.0)
        weight[:, [0, -1]] = 1.0
        ring = np.rint(frequency * n * max(self.spacing_mm) / MM_PER_CM).astype(np.intp)
        return ring.ravel(), weight.ravel(), frequency.ravel()

    @property
    def centres_lp_cm(self) -> NDArray[np.float64]:
        """[ring] mean frequency."""
        ring, weight, frequency = self._rings()
        return np.bincount(ring, weight * frequency) / np.bincount(ring, weight)

    def corners(self, body: NDArray[np.bool_]) -> NDArray[np.intp]:
        """[patch, 2] rows and columns of the patches that lie inside the body."""
        step = self.size // 2
        if min(body.shape) < self.size:
            return np.zeros((0, 2), np.intp)
        windows = np.lib.stride_tricks.sliding_window_view(body, (self.size, self.size))[::step, ::step]
        return np.argwhere(windows.all(axis=(2, 3))) * step

    def of_image(self, image: NDArray[np.float32], corners: NDArray[np.intp]) -> NDArray[np.float64]:
        """[patch, ring] mean power, in units of the image, mm2; no rows without corners."""
        ring, weight, _ = self._rings()
        if not len(corners):
            return np.zeros((0, int(ring.max()) + 1))
        windows = np.lib.stride_tricks.sliding_window_view(image, (self.size, self.size))
        taper = np.hanning(self.size + 2)[1:-1]
        taper = np.outer(taper, taper)
        cut = windows[corners[:, 0], corners[:, 1]] * taper
        scale = self.spacing_mm[0] * self.spacing_mm[1] / float(np.sum(taper**2))
        power = (np.abs(fft.rfft2(cut)) ** 2).reshape(len(corners), -1) * (weight * scale)
        sums = [power[:, ring == index].sum(axis=1) for index in range(ring.max() + 1)]
        return np.stack(sums, axis=1) / np.bincount(ring, weight)


@dataclass(frozen=True, eq=False)
class Lacking:
    """What noise lacks, [ring] each, mm2 for a local level of 1.

    Attributes
    ----------
    power, error : intercept and median group together, and the standard error; negative where there is too much.
    quiet_made, quiet_true, quiet_source : power of the two images, and of a third one, in the group of least structure.
    anatomy_share : share of the first image's power that its quiet group does not have.
    """

    power: NDArray[np.float64]
    error: NDArray[np.float64]
    quiet_made: NDArray[np.float64]
    quiet_true: NDArray[np.float64]
    quiet_source: NDArray[np.float64]
    anatomy_share: NDArray[np.float64]


def lacking_power(
    made: NDArray[np.float64],
    true: NDArray[np.float64],
    source: NDArray[np.float64],
    centres_lp_cm: NDArray[np.float64],
) -> Lacking | None:
    """Noise power that `made` lacks beside `true`.

    Parameters
    ----------
    made, true, source : [patch, ring] of the same patches; the last one says where structure is.

    Returns
    -------
    None where there are too few patches to tell.
    """
    structure = source[:, centres_lp_cm < STRUCTURE_LP_CM].sum(axis=1)
    order = np.argsort(structure, kind="stable")
    groups = np.array_split(order[: int(GROUPED * len(order))], GROUPS)
    if len(groups[-1]) < FEWEST_IN_GROUP:
        return None
    a = np.array([made[group].mean(axis=0) for group in groups])  # [group, ring]
    lacks = true - made
    d = np.array([lacks[group].mean(axis=0) for group in groups])
    # Patches overlap by half, so that about every other one is news.
    error = np.array([lacks[group].std(axis=0) / np.sqrt(len(group) / 2) for group in groups])
    error = np.maximum(error, 1e-9 * true.mean(axis=0) + 1e-12)
    found = np.zeros((2, a.shape[1]))
    for ring in range(a.shape[1]):
        line = np.stack([np.ones(GROUPS), a[:, ring]], axis=1) / error[:, [ring]]
        inverse = np.linalg.inv(line.T @ line + np.diag([0.0, ANATOMY_ERROR**-2]))
        fit = inverse @ (line.T @ (d[:, ring] / error[:, ring]))
        # Groups that lie on no line say less than each for itself (Birge, Phys. Rev. 40:207 (1932)).
        misfit = np.sum((line @ fit - d[:, ring] / error[:, ring]) ** 2) / (GROUPS - 2)
        found[:, ring] = fit[0], np.sqrt(inverse[0, 0] * max(misfit, 1.0))
    # Where anatomy is little, the median group says it, too: quiet tissue need not be like the rest.
    seen = np.concatenate(groups)
    average = made[seen].mean(axis=0)
    share = 1 - np.clip(a[0] / np.maximum(average, 1e-12), 0, 1)
    direct = np.median(d, axis=0)
    wrong = np.hypot(lacks[seen].std(axis=0) / np.sqrt(len(seen) / 2), ANATOMY_ERROR * share * average)
    weights = np.stack([found[1], np.maximum(wrong, error.min())]) ** -2.0
    power = (weights * np.stack([found[0], direct])).sum(axis=0) / weights.sum(axis=0)
    quiet = groups[0]
    return Lacking(
        power, weights.sum(axis=0) ** -0.5, a[0], true[quiet].mean(axis=0), source[quiet].mean(axis=0), share
    )
