"""Calibrates `concord`: transport for linear pairs, an adaptive transfer where held-out slices say that it serves.

The last slices of the calibration (or the last columns of its only slice) are held out of the adaptive fit, and
whichever serves them best is kept: transport, or the adaptive transfer with a share of what is left over drawn in each
band (`chosen.py`). A pair that is linear gains nothing and keeps its transport.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from concordct.methods.concord.adaptive import BANDS, DRAWN_BANDS, FEATURES, LOG_POWERS, Adaptive, Near, box_around
from concordct.methods.concord.chosen import Held, chosen
from concordct.methods.concord.perceptron import begun, trained
from concordct.methods.concord.transport import Transport, fit_transport
from concordct.methods.spectral.fit import Pairs
from concordct.methods.spectral.transfer import SpectralModel, SpectralStandardizer
from concordct.signal.body import material_mask
from concordct.signal.spectra import MM_PER_CM, detail_to_cosines, plane_projector
from concordct.volumes.seeds import SliceSeeds
from concordct.volumes.volume import Volume

#: Edge of a patch in which flat tissue is measured, pixels: small enough for muscle between two surfaces. The flattest
#: share of them counts, and no fewer.
PATCH, QUIET_SHARE, FEWEST_QUIET = 16, 0.12, 24
#: Blur, pixels, after which a patch's deviation says how flat it is.
FLATNESS_BLUR = 1.5
#: Below the first frequency, cycles/pixel, N is H; it fades in to the second: anatomy is all there is.
FADE = (0.005, 0.03)
#: Where N moves less than this share of flat tissue's noise power, the pair is linear and nothing is fitted.
LEAST_MOVED = 0.01
#: Pixels that are learned from, in all; hidden units, steps, batch, rate and seed of the training.
PIXELS, HIDDEN, STEPS, BATCH, RATE, SEED = 150_000, 20, 2500, 2048, 6e-3, 0
#: A single pixel's derivative is cut at this.
STEEPEST = 20.0
#: Slices held out where there are at least so many; else one, and of a single slice the columns behind this share.
HELD_OUT, MANY, COLUMNS = 2, 4, 0.6

Image = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class _Slice:
    """A transferred slice with its source and target, [y, x] HU, and its body; where it may be learned from."""

    made: Image
    source: Image
    target: Image
    body: NDArray[np.bool_]
    learned: NDArray[np.bool_]
    spacing_mm: tuple[float, float]


def fit_concord(model: SpectralModel, pairs: Pairs) -> tuple[Transport | None, Adaptive | None]:
    """What `concord` adds to a calibrated transfer.

    Parameters
    ----------
    pairs : as for `fit_pairs`.

    Returns
    -------
    Transport, None where texture could not be measured; and an adaptive transfer where it agrees better.
    """
    transport = fit_transport(model, pairs)
    if transport is None:
        return None, None
    adaptive = fit_adaptive(model, pairs)
    return transport, None if adaptive is None else chosen(model, transport, adaptive, held_out(pairs))


def fit_adaptive(model: SpectralModel, pairs: Pairs) -> Adaptive | None:
    """Fit an adaptive transfer to all but the held-out slices; None for linear pairs and too little flat tissue."""
    total, _ = _last(pairs)
    measured = _flat_tissue(model, pairs, total)
    if measured is None:
        return None
    blank = np.zeros(FEATURES, np.float32)
    network = begun((FEATURES, HIDDEN, HIDDEN, 2 * BANDS), np.zeros(2 * BANDS, np.float32), np.random.default_rng(SEED))
    adaptive = Adaptive(*measured, np.zeros(DRAWN_BANDS), network, blank, blank + 1, blank, blank)
    rows: list[tuple[Image, Image, Image, Image]] = []
    random = np.random.default_rng(SEED)
    for one in _slices(model, pairs, total):
        if one.learned.any():
            rows.append(_pixels(adaptive, one, max(1, PIXELS // total), random))
    features, flat, left, strength = (np.concatenate(part) for part in zip(*rows, strict=True))
    centre, spread = features.mean(axis=0), features.std(axis=0) + np.float32(1e-3)
    low, high = np.quantile(features, (0.001, 0.999), axis=0).astype(np.float32)
    unit = (features - centre) / spread
    at_half = np.log(np.mean((left - 0.5 * flat) ** 2, axis=0) / np.mean(strength**2, axis=0) + 1e-4)
    start = np.concatenate([np.full(BANDS, 0.5), at_half])

    def slope(chosen: NDArray[np.intp], said: Image) -> Image:
        # -log p = (log v + 2 log s + e^2 / (v s^2)) / 2 with e = left - w flat, v = exp(said), s the strength.
        share, log_power = said[:, :BANDS], np.clip(said[:, BANDS:], *LOG_POWERS)
        inverse = np.exp(-log_power) / strength[chosen] ** 2
        error = left[chosen] - share * flat[chosen]
        by_share = np.clip(-error * flat[chosen] * inverse, -STEEPEST, STEEPEST)
        by_power = np.clip(0.5 - 0.5 * error**2 * inverse, -STEEPEST, STEEPEST)
        return np.asarray(np.concatenate([by_share, by_power], axis=1) / len(chosen), np.float32)

    network = begun((FEATURES, HIDDEN, HIDDEN, 2 * BANDS), start.astype(np.float32), random)
    network = trained(network, unit, slope, steps=STEPS, batch=BATCH, rate=RATE, generator=random)
    return replace(adaptive, network=network, centre=centre, spread=spread, low=low, high=high)


def _last(pairs: Pairs) -> tuple[int, tuple[Volume, Volume]]:
    """How many slices there are, and the last slab."""
    total, kept = 0, None
    for source, target in pairs():
        total, kept = total + source.shape[0], (source, target)
    assert kept is not None  # a model was fitted to them
    return total, kept


def _held(total: int) -> int:
    """Slices held out, from the end; 0 where columns of the only one are."""
    return HELD_OUT if total >= MANY else min(1, total - 1)


def _slices(model: SpectralModel, pairs: Pairs, total: int) -> Iterator[_Slice]:
    spectral = SpectralStandardizer(model, "mean")
    number = 0
    for source, target in pairs():
        spacing = source.spacing_mm[1:]
        base = spectral(source, generator=SliceSeeds(0, ""))
        for made, before, after in zip(base.hu, source.hu, target.hu, strict=True):
            body = material_mask(before[None], spacing)[0]
            learned = body if number < total - _held(total) else np.zeros_like(body)
            if total == 1 and body.any():
                learned = body & ~_last_columns(body)
            number += 1
            yield _Slice(made, before, after, body, learned, spacing)


def _last_columns(body: NDArray[np.bool_]) -> NDArray[np.bool_]:
    columns = np.cumsum(body.sum(axis=0)) / body.sum()
    return np.broadcast_to(columns > COLUMNS, body.shape)


def _flat_tissue(
    model: SpectralModel, pairs: Pairs, total: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], float] | None:
    """Frequency, (N - H) / H and amplitude left over of the flattest patches, and the pixel; None as above."""
    taper = np.outer(np.hanning(PATCH + 2)[1:-1], np.hanning(PATCH + 2)[1:-1])
    plane = plane_projector(PATCH)
    radius = np.hypot(fft.fftfreq(PATCH)[:, None], fft.fftfreq(PATCH)[None])
    ring = np.rint(radius * PATCH).astype(np.intp).ravel()
    flatness: list[NDArray[np.floating]] = []
    sums: list[NDArray[np.float64]] = []  # [patch, aa / tt / ta, ring]
    pixel = 0.0
    for one in _slices(model, pairs, total):
        step = PATCH // 2
        if min(one.body.shape) < PATCH or not one.learned.any():
            continue
        pixel = pixel or max(one.spacing_mm)
        whole = np.lib.stride_tricks.sliding_window_view(one.learned, (PATCH, PATCH))[::step, ::step].all(axis=(2, 3))
        corners = np.argwhere(whole) * step
        if not len(corners):
            continue
        blurred = ndimage.gaussian_filter(one.made, FLATNESS_BLUR)
        cut = [
            np.lib.stride_tricks.sliding_window_view(image, (PATCH, PATCH))[corners[:, 0], corners[:, 1]]
            for image in (blurred, one.made, one.target)
        ]
        flatness.append(cut[0].std(axis=(1, 2)))
        spectra = []
        for patches in cut[1:]:
            rows = patches.reshape(len(corners), -1).astype(np.float64)
            rows = rows - (rows @ plane) @ plane.T
            spectra.append(fft.fft2(rows.reshape(-1, PATCH, PATCH) * taper).reshape(len(corners), -1))
        a, t = spectra
        powers = (np.abs(a) ** 2, np.abs(t) ** 2, (t * a.conj()).real)
        count = ring.max() + 1
        sums.append(np.stack([np.stack([np.bincount(ring, row, count) for row in p]) for p in powers], axis=1))
    if not sums:
        return None
    order = np.argsort(np.concatenate(flatness), kind="stable")
    kept = max(FEWEST_QUIET, int(QUIET_SHARE * len(order)))
    if len(order) < 2 * FEWEST_QUIET:
        return None
    aa, tt, ta = np.concatenate(sums)[order[:kept]].mean(axis=0)
    moved = float(np.sum((ta - aa) ** 2 / np.maximum(aa, 1e-9)) / max(float(tt.sum()), 1e-9))
    if moved < LEAST_MOVED:
        return None
    aa, tt, ta = (one / np.bincount(ring) for one in (aa, tt, ta))
    at = np.arange(len(aa)) / PATCH  # cycles/pixel
    extra = ta / np.maximum(aa, 1e-9) - 1
    left = np.sqrt(np.maximum(tt - ta**2 / np.maximum(aa, 1e-9), 0))
    # The plane that was taken off holds the lowest rings.
    extra[:2], left[:2] = extra[2], left[2]
    fine = np.unique(np.concatenate([at, np.linspace(0, 2 * FADE[1], 16)]))
    faded = np.clip((fine - FADE[0]) / (FADE[1] - FADE[0]), 0, 1)
    return fine * MM_PER_CM / pixel, faded * np.interp(fine, at, extra), np.interp(fine, at, left), pixel


def _pixels(
    adaptive: Adaptive, one: _Slice, count: int, random: np.random.Generator
) -> tuple[Image, Image, Image, Image]:
    """Features, bands of (N - H) A and of T - H A, and strengths, of some pixels of a slice."""
    box = box_around(one.body)
    near = Near(one.made[box], one.source[box], one.body[box], one.spacing_mm, adaptive.pixel_mm)
    among = np.flatnonzero(one.learned[box][::2, ::2][near.half])
    chosen = random.choice(among, min(count, among.size), replace=False)
    flat = near.bands(near.made_cosines * adaptive.on_grid(adaptive.extra, near.frequency))
    left = near.bands(detail_to_cosines((one.target - one.made)[box]))

    def at(images: Sequence[Image]) -> Image:
        return np.stack([image[::2, ::2][near.half][chosen] for image in images], axis=1)

    return near.features[chosen], at(flat), at(left), near.strengths[:, near.half][:, chosen].T.copy()


def held_out(pairs: Pairs) -> Held:
    """What no adaptive transfer was fitted to."""
    total, (source, target) = _last(pairs)
    kept = min(_held(total), source.shape[0])
    body = material_mask(source.hu, source.spacing_mm[1:])
    return Held(source, target, body[-kept:] if kept else body & _last_columns(body[0]))
