"""Calibrates a `SpectralModel` from pairs: the same scan in the source and in the target kernel.

Two passes over the pairs, one slab in memory at a time. The first sums auto- and cross-spectra over rings of equal
physical frequency and solves for the transfer; the second measures what the transfer leaves over, as noise.
`docs/equations.md` has the derivation; the transfer is Wiener's (1949), ring by ring.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from concordct.errors import ConcordctError
from concordct.methods.spectral.inside import faded
from concordct.methods.spectral.transfer import (
    LEVEL_RANGE,
    REACH,
    Limits,
    NoiseModel,
    SpectralModel,
    SpectralStandardizer,
    local_deviation,
    noise_level,
    require_axial,
)
from concordct.signal.body import material_mask, patch_corners
from concordct.signal.signature import SignatureMeter
from concordct.signal.spectra import Rings, cosine_frequencies, detail_to_cosines, noise_power, to_cosines
from concordct.volumes.ct_range import Reach, reached
from concordct.volumes.seeds import SliceSeeds
from concordct.volumes.volume import AIR_HU, Volume

#: Yields matching slabs (source, target); called once for each pass, so a caller can read from disk.
Pairs = Callable[[], Iterable[tuple[Volume, Volume]]]

#: Rings out to the corner of the Nyquist square: about 0.0044 cycles/pixel each, finer than any kernel's features.
RING_COUNT = 160
#: The neighbours' tap is kept when it lowers what one slice leaves unexplained by more than this share.
NEIGHBOUR_GAIN = 0.02
#: Coherence at which half of the target's power follows from the source, and below which the rest is noise.
HALF, GONE = 0.5, 0.1
#: Noise is sampled in full where the coherence is below the second value and not at all above the first: what the
#: source knows is left alone (sampling everywhere cost 0.003 of GLCM agreement, sharp to soft, and won nothing).
KNOWN, UNKNOWN = 0.99, 0.90
#: Probe bands tried, as shares of the frequency at which the coherence falls to a half.
PROBE_SHARES = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1)
PROBE_WIDTH_SHARE = 0.08
#: Patch that noise levels are compared in, pixels, and how many patches the law needs.
PATCH, FEWEST_PATCHES = 16, 20
#: Cutting and masking the residual spills power into rings that hold none; there the spectrum of whole slices, scaled
#: to the same sum, is the limit, with this much room.
LEAKAGE = 1.5
#: Where the model's `info` holds what the source kernel leaves in its scans (`features/signature.py`), by which a scan
#: of another kernel is found out. One slice of each slab in so many is measured.
SIGNATURE, SIGNATURE_STEP = "source_signature", 4
#: 12-bit CT cuts off here, HU: what reaches it is metal, and no filter leads from one cut image to another. This much
#: around it is left out of the spectra, and as much again fades, mm.
METAL_HU, METAL_MARGIN_MM = 3000.0, 10.0
#: A transfer of the inside of the body is kept when it lowers the error in the body of a held-out slice by this share;
#: so many slices tell.
INSIDE_GAIN, PROBED = 0.02, 4
#: The residual is cut at this many local standard deviations, so that edges do not count as noise.
RESIDUAL_CUT = 4.0


@dataclass
class _Sums:
    """Ring sums of one set of slices: source S, neighbours N = S(-1) + S(+1), target T."""

    ss: NDArray[np.float64]
    sn: NDArray[np.float64]
    nn: NDArray[np.float64]
    st: NDArray[np.float64]
    nt: NDArray[np.float64]
    tt: NDArray[np.float64]
    slices: int = 0

    @staticmethod
    def zero(count: int) -> _Sums:
        ss, sn, nn, st, nt, tt = np.zeros((6, count))
        return _Sums(ss, sn, nn, st, nt, tt)

    def single(self) -> NDArray[np.float64]:
        """H(f) = Re<T S*> / <|S|^2>."""
        return self.st / np.maximum(self.ss, 1e-12)

    def with_neighbours(self) -> NDArray[np.float64]:
        """[2, f]: the two taps that solve the normal equations of T = H_0 S + H_1 N in each ring."""
        normal = np.stack([np.stack([self.ss, self.sn], -1), np.stack([self.sn, self.nn], -1)], -2)  # [f, 2, 2]
        normal += 1e-6 * np.eye(2) * np.trace(normal, axis1=1, axis2=2)[:, None, None] + 1e-12 * np.eye(2)
        taps = np.linalg.solve(normal, np.stack([self.st, self.nt], -1)[..., None])[..., 0].T
        return np.asarray(taps, dtype=np.float64)

    def residual(self, taps: NDArray[np.float64]) -> NDArray[np.float64]:
        """[f] power of T - H_0 S - H_1 N."""
        a, b = taps
        explained = 2 * (a * self.st + b * self.nt) - (a * a * self.ss + 2 * a * b * self.sn + b * b * self.nn)
        return np.maximum(self.tt - explained, 0)


def fit_pairs(pairs: Pairs, *, info: dict[str, Any] | None = None) -> SpectralModel:
    """Calibrate from one or many pairs.

    Parameters
    ----------
    pairs : yields slabs (source, target) of equal geometry, [z, y, x] HU; consecutive slices inside a slab. Neighbours
        are judged on the slabs whose slices lie as far apart as the first one's.
    info : JSON that the model carries (kernels, scanners); counts and pixel size are added.

    Returns
    -------
    SpectralModel, with `noise` None when the body is too small to measure noise in.

    Raises
    ------
    ConcordctError : no pairs, slices that are not axial, or images without content.
    """
    model, rings, left_over = _transfer(pairs, info or {})
    return _with_noise(_with_inside(model, pairs), pairs, rings, left_over=left_over)


def _transfer(
    pairs: Pairs, info: dict[str, Any], gone_lp_cm: float | None = None
) -> tuple[SpectralModel, Rings, NDArray[np.float64]]:
    """A model without noise, its rings, and the power that it leaves over in each.

    Parameters
    ----------
    gone_lp_cm : where the information is gone; None to find it.
    """
    rings, everything, inner, first, reach = _sum_spectra(pairs)
    single = everything.single()
    taps = np.stack([single, np.zeros_like(single)])
    if inner.slices >= 3:
        both = inner.with_neighbours()
        alone = inner.residual(np.stack([inner.single(), np.zeros_like(single)])).sum()
        if inner.residual(both).sum() < (1 - NEIGHBOUR_GAIN) * alone:
            taps = both
    sums = inner if np.any(taps[1]) else everything
    coherence = np.clip(1 - sums.residual(taps) / np.maximum(sums.tt, 1e-12), 0, 1)
    half, gone = (falls_below(rings.centres_lp_cm, coherence, at) for at in (HALF, GONE))
    # H(0) = 1, and nothing passes where the information is gone.
    keep = rings.centres_lp_cm < (gone if gone_lp_cm is None else gone_lp_cm)
    frequency = np.concatenate([[0.0], rings.centres_lp_cm])
    transfer = np.stack([from_zero(1 - 2 * taps[1, 0], taps[0] * keep), from_zero(taps[1, 0], taps[1] * keep)])
    model = SpectralModel(
        frequency_lp_cm=frequency,
        transfer=transfer,
        single=from_zero(1.0, single * keep),
        slice_spacing_mm=first.spacing_mm[0],
        coherence=from_zero(coherence[0], coherence),
        noise=None,
        limits=Limits(half, gone, None),
        info={
            **info,
            "slices": everything.slices,
            "pixel_mm": [round(d, 6) for d in first.spacing_mm[1:]],
            "slice_spacing_mm": first.spacing_mm[0],
            "slice_thickness_mm": first.slice_thickness_mm,
            **({} if reach is None else {REACH: list(reach)}),
        },
        relative_error=from_zero(0.0, _relative_error(rings, first, coherence, everything.slices)),
    )
    return model, rings, sums.residual(taps)


def _with_inside(model: SpectralModel, pairs: Pairs) -> SpectralModel:
    """With a transfer of its own for the inside of the body, where that serves a held-out slice better.

    The first slices are fitted with and without a fade, all but the last of them; a single one is judged on itself:
    some hundred numbers against as many thousand pixels.
    """
    few: list[tuple[Volume, Volume]] = []
    for source, target in pairs():
        few += [(source.slab(z, z + 1), target.slab(z, z + 1)) for z in range(source.shape[0])]
        if len(few) >= PROBED:
            break
    few = few[:PROBED]
    source, target = few[-1]
    body = material_mask(source.hu, source.spacing_mm[1:])
    if not body.any():
        return model
    fitted = few[:-1] or few
    plain = _transfer(lambda: fitted, {})[0]
    gone = model.limits.gone_lp_cm
    tried = replace(plain, inner=_inner(_transfer(lambda: (faded(*pair) for pair in fitted), {}, gone)[0]))
    errors = [
        np.mean((SpectralStandardizer(one, "mean")(source, generator=SliceSeeds(0, "")).hu - target.hu)[body] ** 2)
        for one in (plain, tried)
    ]
    if errors[1] > (1 - INSIDE_GAIN) ** 2 * errors[0]:
        return model
    return replace(model, inner=_inner(_transfer(lambda: (faded(*pair) for pair in pairs()), {}, gone)[0], model))


def _inner(fitted: SpectralModel, whole: SpectralModel | None = None) -> NDArray[np.float64]:
    """[3, f], see `SpectralModel.inner`. whole : of which it becomes the inside: either uses neighbours, or neither."""
    alone = whole is None or whole.uses_neighbours == fitted.uses_neighbours
    taps = fitted.transfer if alone else np.stack([fitted.single, np.zeros_like(fitted.single)])
    return np.concatenate([taps, fitted.single[None]])


def from_zero(at_zero: float, curve: NDArray[np.float64]) -> NDArray[np.float64]:
    """A curve over rings with its value at frequency 0 in front."""
    return np.concatenate([[at_zero], curve])


def _sum_spectra(pairs: Pairs) -> tuple[Rings, _Sums, _Sums, Volume, Reach | None]:
    rings: Rings | None = None
    reach: Reach | None = None
    for source, target in pairs():
        require_axial(source)
        reach = reached(target.hu, reach)
        if source.shape != target.shape:
            raise ConcordctError(f"expected a target of shape {source.shape}, found {target.shape}")
        if rings is None:
            rings, first = Rings.covering(source.spacing_mm[1:], RING_COUNT), source
            everything, inner = _Sums.zero(RING_COUNT), _Sums.zero(RING_COUNT)
        ring = rings.index(cosine_frequencies(source.shape[1:], source.spacing_mm[1:]))
        same_distance = bool(np.isclose(source.spacing_mm[0], first.spacing_mm[0], rtol=1e-3))
        window: list[NDArray[np.float32]] = []
        pending: NDArray[np.float32] | None = None  # target coefficients of the middle of the window
        for source_image, target_image in zip(source.hu, target.hu, strict=True):
            s, t = (to_cosines(one) for one in _off_metal(source_image, target_image, source.spacing_mm[1:]))
            _add(everything, rings, ring, s, None, t)
            window = [*window[-2:], s]
            if same_distance and len(window) == 3 and pending is not None:
                _add(inner, rings, ring, window[1], window[0] + window[2], pending)
            pending = t
    if rings is None:
        raise ConcordctError("expected at least one pair to calibrate from, found none")
    if everything.ss[1:].sum() <= 0 or everything.tt[1:].sum() <= 0:
        raise ConcordctError("expected images with content to calibrate from, found constant ones")
    return rings, everything, inner, first, reach


def _off_metal(
    source: NDArray[np.float32], target: NDArray[np.float32], spacing_mm: tuple[float, float]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Both images with air in place of metal and what is near it, [y, x] HU each."""
    metal = np.maximum(source, target) >= METAL_HU
    if not metal.any():
        return source, target
    away_mm = ndimage.distance_transform_edt(~metal, sampling=spacing_mm)
    shown = 0.5 - 0.5 * np.cos(np.pi * np.clip(away_mm / METAL_MARGIN_MM - 1, 0, 1))
    left, right = (((one - AIR_HU) * shown + AIR_HU).astype(np.float32) for one in (source, target))
    return left, right


def _add(
    sums: _Sums,
    rings: Rings,
    ring: NDArray[np.intp],
    s: NDArray[np.float32],
    n: NDArray[np.float32] | None,
    t: NDArray[np.float32],
) -> None:
    sums.slices += 1
    sums.ss += rings.sum(ring, s * s)
    sums.st += rings.sum(ring, s * t)
    sums.tt += rings.sum(ring, t * t)
    if n is not None:
        sums.sn += rings.sum(ring, s * n)
        sums.nn += rings.sum(ring, n * n)
        sums.nt += rings.sum(ring, n * t)


def falls_below(frequency: NDArray[np.float64], coherence: NDArray[np.float64], at: float) -> float:
    """The first frequency at which the coherence (median of five rings) is below a value; the last if it never is."""
    below = np.flatnonzero(ndimage.median_filter(coherence, 5, mode="nearest") < at)
    return float(frequency[below[0] if len(below) else -1])


def _relative_error(rings: Rings, first: Volume, coherence: NDArray[np.float64], slices: int) -> NDArray[np.float64]:
    """Standard error of H over H: sqrt((1 - coherence) / (n coherence)), Bendat and Piersol, Random Data, eq. 9.90."""
    ring = rings.index(cosine_frequencies(first.shape[1:], first.spacing_mm[1:]))
    n = np.maximum(rings.sum(ring, np.ones(ring.size)), 1) * slices
    return np.sqrt((1 - coherence) / (n * np.maximum(coherence, 1e-3)))


@dataclass
class _Patches:
    """What the second pass collects from patches inside the body."""

    residual: list[float]
    structure: list[float]
    level: list[list[float]]  # [patch, probe], over the slice's own level
    own: list[list[float]]  # [patch, probe], the slice's own level


def _with_noise(model: SpectralModel, pairs: Pairs, rings: Rings, *, left_over: NDArray[np.float64]) -> SpectralModel:
    """Add the noise model: law of the local level, then the spectrum of the residual divided by that level.

    Parameters
    ----------
    left_over : [ring], summed power of the residual over whole slices.
    """
    probes = [max(share * model.limits.half_lp_cm, 2 * rings.width_lp_cm) for share in PROBE_SHARES]
    widths = [max(PROBE_WIDTH_SHARE * model.limits.half_lp_cm, rings.width_lp_cm) for _ in probes]
    found = _Patches([], [], [], [])
    meter = SignatureMeter()
    for source, _, residual, body in _residuals(model, pairs):
        _collect(found, source, residual, body, list(zip(probes, widths, strict=True)))
        for image in source.hu[::SIGNATURE_STEP]:
            meter.add(image, spacing_mm=source.spacing_mm[1:])
    model = replace(model, info={**model.info, SIGNATURE: meter.signature().to_json()})
    if len(found.residual) < FEWEST_PATCHES:
        return _replace(
            model,
            None,
            None,
            note=f"noise not measured: {len(found.residual)} patches of body, {FEWEST_PATCHES} needed",
        )
    structure = np.array(found.structure)
    flat = structure <= np.median(structure)
    residual_sd = np.array(found.residual)[flat]
    best: tuple[float, float, float, int] | None = None
    for probe in range(len(probes)):
        relative, own = (np.array(values)[flat, probe] for values in (found.level, found.own))
        x, y = np.log(relative), np.log(np.maximum(residual_sd / own, 1e-6))
        slope = float(np.clip(np.cov(x, y)[0, 1] / max(np.var(x, ddof=1), 1e-9), 0, 1.5))
        law = own * np.clip(relative, *LEVEL_RANGE) ** slope
        gain = float(np.sqrt(np.sum(residual_sd**2) / np.sum(law**2)))
        misfit = float(np.std(np.log(np.maximum(residual_sd, 1e-6)) - np.log(gain * law)))
        if best is None or misfit < best[0]:
            best = (misfit, gain, slope, probe)
    assert best is not None
    misfit, gain, exponent, probe = best
    noise = NoiseModel(np.zeros_like(model.frequency_lp_cm), gain, exponent, probes[probe], widths[probe], 0.0)
    nps, cells, correlation, share = _residual_spectrum(model, noise, pairs, rings)
    unknown = np.clip((KNOWN - model.coherence[1:]) / (KNOWN - UNKNOWN), 0, 1)
    scale = float(np.sum(nps * cells * unknown)) / max(float(np.sum(left_over * unknown)), 1e-12)
    nps = unknown * np.minimum(nps, LEAKAGE * scale * left_over / np.maximum(cells, 1e-12))
    noise = NoiseModel(from_zero(0.0, nps), gain, exponent, probes[probe], widths[probe], correlation)
    return _replace(model, noise, share, note=None, misfit=misfit, patches=int(flat.sum()))


def _replace(
    model: SpectralModel, noise: NoiseModel | None, share: float | None, *, note: str | None, **extra: Any
) -> SpectralModel:
    info = {**model.info, **{f"noise_{name}": value for name, value in extra.items()}}
    if note:
        info["warnings"] = [*info.get("warnings", []), note]
    limits = Limits(model.limits.half_lp_cm, model.limits.gone_lp_cm, share)
    return replace(model, noise=noise, limits=limits, info=info)


def _residuals(
    model: SpectralModel, pairs: Pairs
) -> Iterator[tuple[Volume, Volume, NDArray[np.float32], NDArray[np.bool_]]]:
    """(source, target, what the transfer leaves over [z, y, x] HU, body [z, y, x])."""
    standardize = SpectralStandardizer(model, mode="mean")
    for source, target in pairs():
        standardized = standardize(source, generator=SliceSeeds(0, ""))
        yield source, target, target.hu - standardized.hu, material_mask(source.hu, source.spacing_mm[1:])


def _collect(
    found: _Patches,
    source: Volume,
    residual: NDArray[np.float32],
    body: NDArray[np.bool_],
    probes: list[tuple[float, float]],
) -> None:
    spacing = source.spacing_mm[1:]
    for image, left, inside in zip(source.hu, residual, body, strict=True):
        corners = patch_corners(inside, PATCH)
        if len(corners) == 0:
            continue
        coefficients = to_cosines(image)
        levels = [
            noise_level(coefficients, spacing_mm=spacing, probe_lp_cm=centre, probe_width_lp_cm=width)
            for centre, width in probes
        ]
        own = [float(np.median(level[inside])) for level in levels]
        anatomy = ndimage.gaussian_filter(image, 2.0)
        for row, column in corners:
            patch = np.s_[row : row + PATCH, column : column + PATCH]
            found.residual.append(float(left[patch].std()))
            found.structure.append(float(anatomy[patch].std()))
            found.level.append(
                [
                    float(np.sqrt(np.mean(level[patch] ** 2))) / max(o, 1e-3)
                    for level, o in zip(levels, own, strict=True)
                ]
            )
            found.own.append([max(o, 1e-3) for o in own])


def _residual_spectrum(
    model: SpectralModel, noise: NoiseModel, pairs: Pairs, rings: Rings
) -> tuple[NDArray[np.float64], NDArray[np.float64], float, float | None]:
    """NPS of the residual at a local deviation of 1 HU, coefficients behind each ring, correlation, lost share."""
    power, cells = np.zeros(RING_COUNT), np.zeros(RING_COUNT)
    lag, square = 0.0, 0.0
    lost, total = 0.0, 0.0
    for source, target, residual, body in _residuals(model, pairs):
        spacing = source.spacing_mm[1:]
        ring = rings.index(cosine_frequencies(source.shape[1:], spacing))
        before: NDArray[np.float32] | None = None
        for image, left, inside in zip(source.hu, residual, body, strict=True):
            if not inside.any():
                before = None
                continue
            level = noise_level(
                to_cosines(image),
                spacing_mm=spacing,
                probe_lp_cm=noise.probe_lp_cm,
                probe_width_lp_cm=noise.probe_width_lp_cm,
            )
            deviation = local_deviation(level, inside, gain=noise.gain, exponent=noise.exponent)
            unit = np.clip(left / np.maximum(deviation, 1e-3), -RESIDUAL_CUT, RESIDUAL_CUT) * inside
            power += rings.sum(ring, detail_to_cosines(unit) ** 2) * spacing[0] * spacing[1]
            cells += rings.sum(ring, np.full(ring.size, inside.mean()))
            if before is not None:
                lag += float(np.sum(unit * before, dtype=np.float64))
                square += float(np.sum(unit * unit, dtype=np.float64))
            before = unit
        patches = noise_power(target.hu, body, spacing_mm=spacing, band_limit=0.75)
        if len(patches.nps_hu2_mm2):
            edges = patches.edges_cycles_per_pixel
            band = np.median(patches.nps_hu2_mm2, axis=0) * patches.cells  # anatomy sits in few patches
            middle_lp_cm = 0.5 * (edges[1:] + edges[:-1]) * 10.0 / spacing[1]
            lost += float(band[middle_lp_cm > model.limits.half_lp_cm].sum())
            total += float(band.sum())
    correlation = float(np.clip(lag / square, 0, 0.5)) if square > 0 else 0.0
    return power / np.maximum(cells, 1e-12), cells, correlation, (lost / total if total > 0 else None)
