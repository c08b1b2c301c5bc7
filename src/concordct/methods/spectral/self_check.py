"""Two questions that need no target: is the scan of the calibrated kernel, and does the result keep what the scan knew?

The first compares what the kernel leaves in a scan (`features/signature.py`) with what calibration recorded of its
source scans, in units of how far scans of one kernel differ among themselves. The second takes the result back through
the inverse transfer, in the band where the source is known to hold the target, and asks for the input within its noise.
Both serve any method that holds a `SpectralModel`. `docs/equations.md` has the formulas.

    kernel = check_kernel(meter.signature(), source_signature(model))
    returned = check_return(model, source, output, index=1)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from concordct.methods.spectral.fit import SIGNATURE, falls_below
from concordct.methods.spectral.transfer import SpectralModel, SpectralStandardizer
from concordct.signal.body import material_mask
from concordct.signal.signature import EDGE_LP_CM, RING_LP_CM, RINGS, Signature, SignatureMeter, ring_centres_lp_cm
from concordct.signal.spectra import MM_PER_CM, cosine_frequencies, detail_from_cosines, detail_to_cosines
from concordct.volumes.seeds import SliceSeeds
from concordct.volumes.volume import Volume

Status = Literal["passed", "failed", "not recorded", "not measured"]

#: How far two scans of one kernel lie apart, as standard deviations over pairs of scans of the virtual scanner: one
#: calibrated slice against other patients, doses, pixels and thicknesses. Sharpness and noise as natural logarithms.
SHARPNESS_SPREAD, NOISE_SPREAD, TAIL_SPREAD = 0.06, 0.055, 0.005
#: Likewise the rise of log power beyond level and anatomy, and where pixels differ by more than `SAME_PIXEL`.
SLOPE_SPREAD, SLOPE_SPREAD_PIXELS, SAME_PIXEL = 0.12, 0.2, 1.1
#: Where noise was measured on both sides, edges count less: a surface oblique to the slice, hair and clothing blur it.
ANATOMY_SPREAD = 0.075
#: Noise whose shape and tails lie within this many spreads is of one kernel, and edges alone count at most this much
#: against it: they lie in anatomy then.
ALIKE, MOST_BY_EDGES = 1.6, 2.5
#: A scan further away than this is of another kernel.
LARGEST_DISTANCE = 4.0
#: Edges are compared from here to this share of the coarser pixels' Nyquist frequency; beyond, pixels and not kernels
#: decide.
EDGE_FROM_LP_CM, EDGE_TO_NYQUIST = 0.4, 0.7
#: Likewise noise; below, anatomy decides.
NOISE_FROM_LP_CM, NOISE_TO_NYQUIST = 2.0, 0.8
#: A kernel's change shows best as a rise toward the pixels' end: to this share of Nyquist where pixels are alike, from
#: where anatomy of known fall can be told from it. Given as the rise of log power between two frequencies.
SLOPE_FROM_LP_CM, SLOPE_TO_NYQUIST, SLOPE_BETWEEN_LP_CM = 1.5, 0.95, (2.0, 5.0)
#: Rings at least: three shapes are fitted. Rounding to whole HU, of variance 1 / 12, tells doses and not kernels: a
#: ring counts where it holds this many times its power.
FEWEST_SLOPE_RINGS, ABOVE_ROUNDING = 5, 4.0
#: Ratios of sharpness that are tried, as natural logarithms.
SHARPNESS_TRIED = np.arange(-0.7, 0.701, 0.01)
#: Anatomy in quiet patches falls off with about this power of frequency; a scan may hold more or less of it than the
#: calibrated one (1 + b f^-3, b in (lp/cm)^3), but a spectrum may not fall below this share of itself for it.
ANATOMY_POWER, ANATOMY_FLOOR = 3.0, 0.15
#: On scans of one kernel b stays below 9; more would pass a softer kernel's noise for anatomy.
ANATOMY_TRIED = np.concatenate([-np.geomspace(10, 0.5, 20), [0], np.geomspace(0.5, 10, 20)])
#: Rings hold few frequencies of a patch, and which ones depends on the pixels: neighbours are averaged.
RING_WEIGHTS = np.array([0.25, 0.5, 0.25])

#: The source is asked for where this share of the target follows from it.
COHERENT = 0.9
#: Gains below this are not undone in full: rounding to whole HU would be blown up with them.
LEAST_GAIN = 0.02
#: The result, taken back, may differ from the scan by this many times the scan's own noise, or by this many times what
#: it differs on the scan that was calibrated on, where wide pixels fold noise that the source does not hold.
LARGEST_RETURN, RETURN_MARGIN = 1.0, 1.5
#: Where the model's `info` holds the latter, in units of the scan's noise.
OWN_RETURN = "own_return"


@dataclass(frozen=True)
class KernelCheck:
    """The scan's signature against the calibrated one.

    Attributes
    ----------
    status : "not recorded" for models without a reference, "not measured" where scan or reference show neither edges
        nor noise.
    sharpness : edges of the scan over the calibrated ones, as a ratio of frequencies; None where either is unknown.
    noise_deviation : root mean square deviation of the noise spectrum's shape, natural logarithm of power.
    noise_slope : what the scan's noise rises more than the calibrated one from 2 to 5 lp/cm, natural logarithm.
    tail_difference : difference of `Signature.tail`.
    distance : all of it in units of the spread among scans of one kernel.
    """

    status: Status
    sharpness: float | None = None
    noise_deviation: float | None = None
    tail_difference: float | None = None
    distance: float | None = None
    noise_slope: float | None = None


@dataclass(frozen=True)
class Return:
    """A slice of the result, taken back.

    Attributes
    ----------
    slice_index : in the series.
    difference_hu : root mean square over the body of the result, taken back, minus the scan, in the coherent band, HU.
    noise_hu : the scan's own noise in that band, HU; None where it could not be measured.
    """

    slice_index: int
    difference_hu: float
    noise_hu: float | None

    @property
    def ratio(self) -> float | None:
        """Difference over noise."""
        return None if not self.noise_hu else self.difference_hu / self.noise_hu


@dataclass(frozen=True)
class SelfCheck:
    """What a series' check found.

    Attributes
    ----------
    kernel : the first question.
    returned : the second, slice by slice; empty where no band is coherent.
    band_lp_cm : end of the coherent band; 0 where there is none.
    allowed : largest ratio of difference to noise.
    """

    kernel: KernelCheck
    returned: tuple[Return, ...]
    band_lp_cm: float
    allowed: float = LARGEST_RETURN

    @property
    def ratio(self) -> float | None:
        """Difference over noise of the series: root mean squares over the slices whose noise is known."""
        known = [(one.difference_hu, one.noise_hu) for one in self.returned if one.noise_hu]
        if not known:
            return None
        difference, noise = (float(np.sqrt(np.mean(np.square(values)))) for values in zip(*known, strict=True))
        return difference / noise

    @property
    def difference_hu(self) -> float | None:
        """Root mean square difference of the series, HU."""
        return float(np.sqrt(np.mean([one.difference_hu**2 for one in self.returned]))) if self.returned else None

    @property
    def return_status(self) -> Status:
        """Status of the second question."""
        ratio = self.ratio
        return "not measured" if ratio is None else "failed" if ratio > self.allowed else "passed"

    @property
    def failed(self) -> bool:
        """Whether either question was answered with no."""
        return "failed" in (self.kernel.status, self.return_status)

    def lines(self) -> tuple[str, ...]:
        """What was found, in plain words, one line for each question."""
        return (_kernel_line(self.kernel), self._return_line())

    def problems(self) -> tuple[str, ...]:
        """The lines of what failed."""
        statuses = (self.kernel.status, self.return_status)
        return tuple(line for line, status in zip(self.lines(), statuses, strict=True) if status == "failed")

    def _return_line(self) -> str:
        if self.difference_hu is None:
            return "result not taken back: the calibrated kernels share no band"
        text = f"taken back, the result differs by {self.difference_hu:.2f} HU below {self.band_lp_cm:.1f} lp/cm"
        return text + (
            "" if self.ratio is None else f", {self.ratio:.2f} of the scan's noise, allowed {self.allowed:.2g}"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values, rounded."""
        kernel = self.kernel
        return {
            "failed": self.failed,
            "lines": list(self.lines()),
            "problems": list(self.problems()),
            "kernel": {
                "status": kernel.status,
                "distance": _rounded(kernel.distance),
                "distance_allowed": LARGEST_DISTANCE,
                "sharpness": _rounded(kernel.sharpness),
                "noise_deviation": _rounded(kernel.noise_deviation),
                "noise_slope": _rounded(kernel.noise_slope),
                "tail_difference": _rounded(kernel.tail_difference, 4),
            },
            "returned": {
                "status": self.return_status,
                "band_lp_cm": _rounded(self.band_lp_cm),
                "difference_hu": _rounded(self.difference_hu),
                "ratio_to_noise": _rounded(self.ratio),
                "ratio_allowed": _rounded(self.allowed),
                "slices": [
                    {
                        "slice": one.slice_index,
                        "difference_hu": _rounded(one.difference_hu),
                        "noise_hu": _rounded(one.noise_hu),
                        "ratio_to_noise": _rounded(one.ratio),
                    }
                    for one in self.returned
                ],
            },
        }


def _rounded(value: float | None, digits: int = 2) -> float | None:
    return None if value is None else round(float(value), digits)


def _kernel_line(check: KernelCheck) -> str:
    if check.status == "not recorded":
        return "kernel not checked: the model holds no reference of its source"
    if check.distance is None:
        return "kernel not checked: neither edges nor noise could be measured"
    parts = []
    if check.sharpness is not None:
        parts.append(f"edges {check.sharpness:.2f} times as sharp")
    if check.noise_deviation is not None:
        parts.append(f"noise spectrum off by {check.noise_deviation:.0%}")
    if check.noise_slope is not None:
        parts.append(f"rising {np.exp(check.noise_slope):.2f} times as much")
    if check.tail_difference is not None:
        parts.append(f"noise tails by {check.tail_difference:+.3f}")
    verdict = "of the calibrated kernel" if check.status == "passed" else "not of the calibrated kernel"
    return f"scan {verdict}: {', '.join(parts)}; distance {check.distance:.1f}, allowed {LARGEST_DISTANCE:g}"


def source_signature(model: SpectralModel) -> Signature | None:
    """What calibration recorded of its source scans; None for models of before, and those from tables."""
    recorded = model.info.get(SIGNATURE)
    return None if not isinstance(recorded, dict) else Signature.from_json(recorded)


def check_kernel(found: Signature, reference: Signature | None) -> KernelCheck:
    """Compare a scan's signature with the calibrated one."""
    if reference is None:
        return KernelCheck("not recorded")
    nyquist = MM_PER_CM / (2 * max(found.pixel_mm, reference.pixel_mm, 1e-3))
    sharpness = _sharpness(found.edge, reference.edge, EDGE_TO_NYQUIST * nyquist)
    noise = _noise_deviation(found.noise_hu2_mm2, reference.noise_hu2_mm2, NOISE_TO_NYQUIST * nyquist)
    tail = None if found.tail is None or reference.tail is None else found.tail - reference.tail
    if sharpness is None and noise is None:
        return KernelCheck("not measured")
    coarser = max(found.pixel_mm, reference.pixel_mm) / max(min(found.pixel_mm, reference.pixel_mm), 1e-3)
    alike = coarser <= SAME_PIXEL
    ends = (SLOPE_TO_NYQUIST if alike else NOISE_TO_NYQUIST) * nyquist
    slope = _noise_slope(found, reference, ends)
    by_noise = (
        0.0 if noise is None else noise / NOISE_SPREAD,
        0.0 if slope is None else slope / (SLOPE_SPREAD if alike else SLOPE_SPREAD_PIXELS),
        0.0 if tail is None else tail / TAIL_SPREAD,
    )
    by_edges = 0.0 if sharpness is None else abs(np.log(sharpness))
    by_edges /= SHARPNESS_SPREAD if noise is None else ANATOMY_SPREAD
    if noise is not None and float(np.linalg.norm(by_noise)) <= ALIKE:
        by_edges = min(by_edges, MOST_BY_EDGES)
    distance = float(np.sqrt(np.sum(np.square((by_edges, *by_noise)))))
    status: Status = "failed" if distance > LARGEST_DISTANCE else "passed"
    return KernelCheck(status, sharpness, noise, tail, distance, slope)


def _sharpness(
    found: NDArray[np.float64] | None, reference: NDArray[np.float64] | None, to_lp_cm: float
) -> float | None:
    """The s for which found(f) is closest to reference(f / s)."""
    band = (EDGE_LP_CM > EDGE_FROM_LP_CM) & (to_lp_cm >= EDGE_LP_CM)
    if found is None or reference is None or not band.any():
        return None
    f = EDGE_LP_CM[band]
    ratios = np.exp(SHARPNESS_TRIED)
    errors = [np.mean((found[band] - np.interp(f / s, EDGE_LP_CM, reference, right=0)) ** 2) for s in ratios]
    return float(ratios[int(np.argmin(errors))])


def _noise_deviation(
    found: NDArray[np.float64] | None, reference: NDArray[np.float64] | None, to_lp_cm: float
) -> float | None:
    """Deviation of two spectra's shapes after the level and the share of anatomy were fitted."""
    if found is None or reference is None:
        return None
    f = ring_centres_lp_cm()
    with np.errstate(invalid="ignore"):
        band = (f >= NOISE_FROM_LP_CM) & (f <= to_lp_cm) & (found > 0) & (reference > 0)
    if band.sum() < 3:
        return None
    ratio = ndimage.convolve1d(np.log(found[band] / reference[band]), RING_WEIGHTS, mode="nearest")
    anatomy = 1 + ANATOMY_TRIED[:, None] * f[band] ** -ANATOMY_POWER  # [b, ring]
    possible = (anatomy > ANATOMY_FLOOR).all(axis=1)
    return float(np.min(np.std(ratio - np.log(anatomy[possible]), axis=1)))


def _noise_slope(found: Signature, reference: Signature, to_lp_cm: float) -> float | None:
    """Rise of the ratio of two spectra: ln N / N_0 = a + b f^-3 + c f^2, least squares over rings."""
    ours, theirs = found.noise_hu2_mm2, reference.noise_hu2_mm2
    if ours is None or theirs is None:
        return None
    f = ring_centres_lp_cm()
    least = [ABOVE_ROUNDING / 12 * one.pixel_mm**2 for one in (found, reference)]
    with np.errstate(invalid="ignore"):
        band = (f >= SLOPE_FROM_LP_CM) & (f <= to_lp_cm) & (ours > least[0]) & (theirs > least[1])
    if band.sum() < FEWEST_SLOPE_RINGS:
        return None
    shapes = np.stack([np.ones(int(band.sum())), f[band] ** -ANATOMY_POWER, f[band] ** 2], axis=1)
    fitted = np.linalg.lstsq(shapes, np.log(ours[band] / theirs[band]), rcond=None)[0]
    low, high = SLOPE_BETWEEN_LP_CM
    return float(fitted[2] * (high**2 - low**2))


def coherent_band_lp_cm(model: SpectralModel) -> float:
    """Where the coherence first falls below `COHERENT`; 0 when it does so from the start."""
    end = falls_below(model.frequency_lp_cm, model.coherence, COHERENT)
    return end if end > model.frequency_lp_cm[1] else 0.0


def noise_below_hu(signature: Signature, to_lp_cm: float) -> float | None:
    """Standard deviation of a scan's noise below a frequency: the root of its spectrum's integral; None if unknown."""
    nps = signature.noise_hu2_mm2
    if nps is None or to_lp_cm <= 0 or not np.isfinite(nps).any():
        return None
    known = np.flatnonzero(np.isfinite(nps))
    filled = np.where(np.arange(RINGS) <= known[-1], np.interp(np.arange(RINGS), known, nps[known]), 0.0)
    edges = np.minimum(np.arange(RINGS + 1) * RING_LP_CM, to_lp_cm) / MM_PER_CM  # cycles/mm
    return float(np.sqrt(np.sum(filled * np.pi * np.diff(edges**2))))


def check_return(
    model: SpectralModel,
    source: Volume,
    output: Volume,
    *,
    index: int,
    signature: Signature | None = None,
    use_neighbours: bool = True,
) -> Return | None:
    """Take a slice of a result back through the inverse transfer.

    Parameters
    ----------
    source, output : the scan and its result, [z, y, x] of equal geometry, with the slice's neighbours where the series
        has them.
    index : of the slice in `source`.
    signature : of that slice, for its noise; None to measure it here.
    use_neighbours : False for series whose slices are not evenly spaced.

    Returns
    -------
    None where no band is coherent or the slice shows no body.
    """
    spacing, shape = source.spacing_mm[1:], source.shape[1:]
    nyquist = MM_PER_CM / (2 * max(spacing))
    body = material_mask(source.hu[index : index + 1], spacing)[0]
    # Beyond the pixels' Nyquist frequency lie corners of the spectrum alone, whose noise no ring of a patch holds.
    band = min(coherent_band_lp_cm(model), nyquist)
    if band <= 0 or not body.any():
        return None
    # T^-1 y - x = T^-1 (y - T x): neighbours enter T x, and what rounding leaves of x cancels.
    expected = SpectralStandardizer(model, "mean", use_neighbours)(source, generator=SliceSeeds(0, ""))
    difference = output.hu[index] - expected.hu[index]
    frequency = cosine_frequencies((shape[0], shape[1]), spacing)
    gain = np.interp(frequency, model.frequency_lp_cm, model.single)
    inverse = np.where(frequency < band, gain / (gain**2 + LEAST_GAIN**2), 0.0).astype(np.float32)
    back = detail_from_cosines(detail_to_cosines(difference) * inverse)
    if signature is None:
        meter = SignatureMeter()
        meter.add(source.hu[index], spacing_mm=spacing)
        signature = meter.signature()
    return Return(
        source.first_slice + index,
        float(np.sqrt(np.mean(back[body].astype(np.float64) ** 2))),
        noise_below_hu(signature, band),
    )


def check_series(model: SpectralModel, signature: Signature, returned: Sequence[Return | None]) -> SelfCheck:
    """Both questions of a series."""
    own = model.info.get(OWN_RETURN)
    return SelfCheck(
        check_kernel(signature, source_signature(model)),
        tuple(one for one in returned if one is not None),
        min(coherent_band_lp_cm(model), MM_PER_CM / (2 * max(signature.pixel_mm, 1e-3))),
        max(LARGEST_RETURN, RETURN_MARGIN * own) if isinstance(own, int | float) else LARGEST_RETURN,
    )
