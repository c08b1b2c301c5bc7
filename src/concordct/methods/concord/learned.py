"""A learned residual, for hospitals that have many pairs: what a neighbourhood tells of what is left over.

An adaptive transfer sees how much there is in each band near a pixel, not how it lies. Over the frequencies at which
between a tenth and nine tenths of the target's power follow from the result so far, a small network regresses what is
left over on the 7 x 7 pixels around, of the source and of the result, in units of the local strength; noise is drawn
for the rest of it. Where it explains less than 2 % of what is left over on patients that it has not seen, there is
none: a linear pair leaves nothing that its slices tell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from concordct.errors import ConcordctError
from concordct.methods.concord.perceptron import Perceptron, begun, trained
from concordct.methods.concord.transport import tissue
from concordct.signal.body import material_mask
from concordct.signal.spectra import Rings, cosine_frequencies, detail_from_cosines, detail_to_cosines
from concordct.volumes.volume import Volume

Image = NDArray[np.float32]
#: Patients' slabs, once through: (patient, (source, target)).
Cohort = Callable[[], Iterator[tuple[str, tuple[Volume, Volume]]]]
#: A volume as it stands without the residual.
Made = Callable[[Volume], Volume]

#: Coherence between which there is something to learn and something to learn from.
LEAST_COHERENCE, MOST_COHERENCE = 0.1, 0.9
RINGS = 64
#: Pixels on either side that the network sees, blur that takes anatomy off them, and neighbourhood of the strength.
REACH, BLUR, NEAR = 3, 2.0, 3.0
#: Strengths below this do not occur, HU. What lies beyond so many of them is cut.
LEAST_HU, MOST_STRENGTHS = 1.0, 8.0
FEATURES = 2 * (2 * REACH + 1) ** 2 + 3
#: HU of the last features.
HU_UNIT = 300.0
#: Pixels that are learned from; hidden units, steps, batch, rate and seed of the training.
PIXELS, HIDDEN, STEPS, BATCH, RATE, SEED = 120_000, 32, 3000, 1024, 3e-3, 0
#: A residual that explains less of what is left over, on patients held out, is none.
LEAST_EXPLAINED = 0.02
#: Share of patients held out, at least one; of a single one its last slices.
HELD_OUT, LAST_SLICES = 0.2, 2
#: Rows of pixels that go through the network together.
ROWS = 32


@dataclass(frozen=True, eq=False)
class Learned:
    """What many pairs tell of what a transfer leaves over.

    Attributes
    ----------
    frequency_lp_cm, share : [f], where it is written, 0 to 1.
    network : `FEATURES` to what is left over, in units of the strength.
    centre, spread : [FEATURES], mean and deviation of the features.
    explained : share of what is left over in these frequencies, on patients held out.
    pixel_mm : of the pairs; scans of other pixels are left alone.
    """

    frequency_lp_cm: NDArray[np.float64]
    share: NDArray[np.float64]
    network: Perceptron
    centre: Image
    spread: Image
    explained: float
    pixel_mm: float

    def written(self, made: Image, source: Image, body: NDArray[np.bool_], spacing_mm: tuple[float, float]) -> Image:
        """[y, x] HU that is added to a result; nothing for pixels of another size, outside the body, without one."""
        if not body.any() or not np.allclose(spacing_mm, self.pixel_mm, rtol=0.05):
            return np.zeros_like(made)
        near = _Near(made, source)
        found = np.zeros_like(made)
        for start in range(0, made.shape[0], ROWS):
            rows, columns = np.nonzero(body[start : start + ROWS])
            if rows.size:
                features = (near.features(rows + start, columns) - self.centre) / self.spread
                found[rows + start, columns] = self.network(features)[:, 0] * near.strength[rows + start, columns]
        return body * self._inside(found, spacing_mm)

    def _inside(self, image: Image, spacing_mm: tuple[float, float]) -> Image:
        frequency = cosine_frequencies((image.shape[0], image.shape[1]), spacing_mm)
        share = np.interp(frequency, self.frequency_lp_cm, self.share).astype(np.float32)
        return detail_from_cosines(detail_to_cosines(image) * share)

    def to_tensors(self) -> dict[str, NDArray[np.float64]]:
        """Arrays by name."""
        found = {name: np.asarray(getattr(self, name), np.float64) for name in _CURVES}
        return {**found, **self.network.to_tensors(), "scalars": np.array([self.explained, self.pixel_mm])}

    @staticmethod
    def from_tensors(tensors: Mapping[str, NDArray[np.float64]]) -> Learned:
        """The inverse of `to_tensors`.

        Raises
        ------
        ConcordctError : something lacks, does not fit or is no number.
        """
        try:
            network = Perceptron.from_tensors(tensors)
            frequency, share, centre, spread = (np.asarray(tensors[name], np.float64) for name in _CURVES)
            explained, pixel_mm = map(float, tensors["scalars"])
        except (KeyError, ValueError) as error:
            raise ConcordctError(f"expected a whole learned residual, found one without {error}") from error
        fits = network.fits(FEATURES, 1)
        fits &= frequency.shape == share.shape and centre.shape == spread.shape == (FEATURES,)
        if not fits or not all(np.isfinite(one).all() for one in tensors.values()) or pixel_mm <= 0:
            raise ConcordctError("expected a learned residual of finite numbers that fit, found others")
        return Learned(frequency, share, network, centre.astype(np.float32), spread.astype(np.float32), explained, pixel_mm)  # fmt: skip  # noqa: E501


_CURVES = ("frequency_lp_cm", "share", "centre", "spread")


class _Near:
    """What the network reads of a slice."""

    def __init__(self, made: Image, source: Image) -> None:
        blurred = [ndimage.gaussian_filter(image, BLUR) for image in (made, source)]
        self._details = [image - smooth for image, smooth in zip((made, source), blurred, strict=True)]
        power = ndimage.gaussian_filter(self._details[0] ** 2, NEAR)
        self.strength = (np.sqrt(np.maximum(power, 0)) + np.float32(LEAST_HU)).astype(np.float32)
        power = ndimage.gaussian_filter(self._details[1] ** 2, NEAR)
        ratio = np.log((np.sqrt(np.maximum(power, 0)) + LEAST_HU) / self.strength)
        self._maps = [np.log(self.strength), ratio, blurred[0] / np.float32(HU_UNIT)]
        self._padded = [np.pad(image, REACH, mode="reflect") for image in self._details]

    def features(self, rows: NDArray[np.intp], columns: NDArray[np.intp]) -> Image:
        """[n, FEATURES] at some pixels."""
        edge = 2 * REACH + 1
        strength = self.strength[rows, columns][:, None]
        found = []
        for image in self._padded:
            windows = np.lib.stride_tricks.sliding_window_view(image, (edge, edge))[rows, columns]
            found.append(np.clip(windows.reshape(rows.size, -1) / strength, -MOST_STRENGTHS, MOST_STRENGTHS))
        found += [image[rows, columns][:, None] for image in self._maps]
        return np.concatenate(found, axis=1).astype(np.float32)


def fit_learned(cohort: Cohort, made: Made) -> tuple[Learned | None, float]:
    """Learn what `made` leaves over.

    Parameters
    ----------
    cohort : patients' slabs, the same each time; of several patients the last fifth is held out.
    made : the conversion so far, without noise that is drawn.

    Returns
    -------
    The residual, None where it explains less than `LEAST_EXPLAINED` of what is left over on what was held out (or the
    frequencies to learn at are none); and what it explains there.
    """
    patients: dict[str, int] = {}
    for patient, (volume, _) in cohort():
        patients[patient] = patients.get(patient, 0) + volume.shape[0]
    count = max(1, round(HELD_OUT * len(patients))) if len(patients) > 1 else 0
    held = set(list(patients)[len(patients) - count :])
    kept = sum(slices for name, slices in patients.items() if name not in held)
    kept -= 0 if held else min(LAST_SLICES, kept - 1)

    def slices(*, learned: bool) -> Iterator[tuple[Image, Image, Image, NDArray[np.bool_], tuple[float, float]]]:
        number = 0
        for patient, (source, target) in cohort():
            spacing = source.spacing_mm[1:]
            if held and (patient not in held) != learned:
                continue
            base = made(source).hu
            for index, body in enumerate(material_mask(source.hu, spacing)):
                number += 1
                if body.any() and (held or (number <= kept) == learned):
                    yield base[index], source.hu[index], target.hu[index], body, spacing

    found = _frequencies(slices(learned=True))
    if found is None:
        return None, 0.0
    frequency, share, pixel_mm = found
    blank = Perceptron((), ())
    none = np.zeros(FEATURES, np.float32)
    learned = Learned(frequency, share, blank, none, none + 1, 0.0, pixel_mm)
    random = np.random.default_rng(SEED)
    features, left = [], []
    for base, source, target, body, spacing in slices(learned=True):
        near = _Near(base, source)
        rows, columns = np.nonzero(body)
        chosen = random.choice(rows.size, min(rows.size, max(1, PIXELS // kept)), replace=False)
        rows, columns = rows[chosen], columns[chosen]
        features.append(near.features(rows, columns))
        left.append(learned._inside((target - base) * body, spacing)[rows, columns] / near.strength[rows, columns])
    x, y = np.concatenate(features), np.concatenate(left)
    y = np.clip(y, -MOST_STRENGTHS, MOST_STRENGTHS)[:, None]
    centre, spread = x.mean(axis=0), x.std(axis=0) + np.float32(1e-3)
    network = begun((FEATURES, HIDDEN, HIDDEN, 1), np.zeros(1, np.float32), random)

    def slope(rows: NDArray[np.intp], said: Image) -> Image:
        return np.asarray((said - y[rows]) / len(rows), np.float32)

    network = trained(network, (x - centre) / spread, slope, steps=STEPS, batch=BATCH, rate=RATE, generator=random)
    learned = Learned(frequency, share, network, centre, spread, 0.0, pixel_mm)
    before = after = 0.0
    for base, source, target, body, spacing in slices(learned=False):
        rest = learned._inside((target - base) * body, spacing)
        before += float(np.sum(rest[body].astype(np.float64) ** 2))
        after += float(np.sum((rest - learned.written(base, source, body, spacing))[body].astype(np.float64) ** 2))
    explained = 1 - after / before if before else 0.0
    if explained < LEAST_EXPLAINED:
        return None, explained
    return Learned(frequency, share, network, centre, spread, explained, pixel_mm), explained


def _frequencies(
    slices: Iterator[tuple[Image, Image, Image, NDArray[np.bool_], tuple[float, float]]],
) -> tuple[NDArray[np.float64], NDArray[np.float64], float] | None:
    """Where there is something to learn: frequencies, share, pixel; None where there is nothing."""
    sums = np.zeros((3, RINGS))
    rings: Rings | None = None
    pixel_mm = 0.0
    for base, _, target, body, spacing in slices:
        rings = rings or Rings.covering(spacing, RINGS)
        pixel_mm = pixel_mm or max(spacing)
        ring = rings.index(cosine_frequencies((base.shape[0], base.shape[1]), spacing))
        a, b = (tissue(image - ndimage.gaussian_filter(image, BLUR), body) for image in (base, target))
        for row, values in zip(sums, (a * a, b * b, a * b), strict=True):
            row += rings.sum(ring, values)
    if rings is None:
        return None
    coherence = sums[2] ** 2 / np.maximum(sums[0] * sums[1], 1e-12)
    share = ((coherence >= LEAST_COHERENCE) & (coherence <= MOST_COHERENCE)).astype(np.float64)
    share = ndimage.uniform_filter1d(share, 3)
    return (rings.centres_lp_cm, share, pixel_mm) if share.any() else None
