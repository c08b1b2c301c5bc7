"""One reference condition for scans of any kernel, without pairs: each scan's own resolution and noise are measured.

Both come from the scan itself (`signal/signature.py`): the response of the surface between skin and air, and the noise
power of quiet tissue. What leads to the reference is the ratio of the two responses; where they are known badly, at
high frequencies, the ratio of the noise spectra's *shapes* says it better, since a linear kernel passes noise as it
passes edges. One smooth curve is fitted to both, each by its error. What the scan's kernel destroyed is filled with
noise of the reference's power in mode `sample`; nothing else can be done, and such scans are marked.

    reference = load_reference("soft")
    model = model_to(reference, measure(slices))
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from concordct.errors import ConcordctError
from concordct.methods.spectral.fit import GONE, HALF, PROBE_WIDTH_SHARE, falls_below
from concordct.methods.spectral.transfer import Limits, NoiseModel, SpectralModel
from concordct.signal.signature import EDGE_LP_CM, RINGS, Signature, SignatureMeter, ring_centres_lp_cm
from concordct.signal.spectra import MM_PER_CM
from concordct.volumes.given import read_json
from concordct.volumes.volume import Volume

METHOD = "reference"
#: Where those lie that come with the package.
SHIPPED = Path(__file__).resolve().parents[1] / "references"
#: Edges say something where the response is above this; its error is at least this share, and this of full contrast.
LEAST_RESPONSE, EDGE_ERROR, EDGE_FLOOR = 0.08, 0.04, 0.015
#: Noise: from above anatomy to below where pixels fold, and the error of a ring's log amplitude.
NOISE_FROM_LP_CM, NOISE_TO_NYQUIST, NOISE_ERROR = 2.0, 0.85, 0.06
#: Terms of the smooth curve, even in frequency, and what keeps them small.
TERMS, RIDGE = 4, 0.05
#: A patient's surface may be blurred by hair, cloth or slope, which noise does not show: its usual size, cm^2.
SURFACE_BLUR = 0.05
#: Rounding to whole HU leaves noise of this variance, HU^2.
ROUNDING_HU2 = 1 / 12
#: Nothing is amplified more than this: what is weaker is filled with noise.
LARGEST_GAIN = 8.0
#: Exponent of the local noise law, which no unpaired data shows; real pairs gave 0.3 to 0.5.
EXPONENT = 0.4
#: A result has its own noise alone where this share of it is known.
KNOWN = 0.97
#: The scan's own noise is looked at, for its local level, at this share of the frequency where information ends, and
#: within this share of what the pixels hold.
PROBE_SHARE, PROBE_TO_NYQUIST = 0.8, 0.6
#: Frequencies of the model, lp/cm.
FREQUENCY_LP_CM = np.arange(0.0, 16.01, 0.1)


@dataclass(frozen=True, eq=False)
class Reference:
    """A named condition.

    Attributes
    ----------
    name : short. note : where it comes from.
    response : [EDGE_LP_CM], response of the sharpest surfaces, 1 at 0.
    noise_hu2_mm2 : [RINGS], noise power in quiet tissue, HU^2 mm^2; NaN where unknown.
    """

    name: str
    note: str
    response: NDArray[np.float64]
    noise_hu2_mm2: NDArray[np.float64]

    @property
    def mtf50_lp_cm(self) -> float:
        """Where the response falls to a half, lp/cm."""
        return half_at(self.response)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "name": self.name,
            "note": self.note,
            "frequency_lp_cm": EDGE_LP_CM.tolist(),
            "mtf": [round(float(v), 4) for v in self.response],
            "noise_frequency_lp_cm": ring_centres_lp_cm().tolist(),
            "noise_hu2_mm2": [round(float(v), 3) if np.isfinite(v) else None for v in self.noise_hu2_mm2],
        }

    @staticmethod
    def from_json(found: Mapping[str, Any]) -> Reference:
        """What `to_json` wrote, or any file with the same fields on frequencies of its own.

        Raises
        ------
        ConcordctError : a field is missing or no curve.
        """
        try:
            f, mtf = (np.array(found[name], np.float64) for name in ("frequency_lp_cm", "mtf"))
            g, power = (
                np.array([np.nan if v is None else float(v) for v in found[name]])
                for name in ("noise_frequency_lp_cm", "noise_hu2_mm2")
            )
            name, note = str(found["name"]), str(found.get("note", ""))
        except (KeyError, TypeError, ValueError) as error:
            raise ConcordctError(f"expected a reference with MTF and noise power, found one without {error}") from error
        known = np.isfinite(power)
        sound = f.ndim == 1 and f.shape == mtf.shape and g.shape == power.shape and f.size > 2 and known.sum() > 2
        if not sound or f[0] != 0 or np.any(np.diff(f) <= 0) or np.any(np.diff(g) <= 0) or not np.isclose(mtf[0], 1):
            raise ConcordctError("expected curves over ascending frequencies and an MTF of 1 at 0, found others")
        if np.any(mtf < 0) or np.any(power[known] < 0) or not np.isfinite(mtf).all():
            raise ConcordctError("expected an MTF and a noise power that are nowhere negative, found others")
        at = ring_centres_lp_cm()
        noise = np.where(at <= g[known][-1], np.interp(at, g[known], power[known]), np.nan)
        return Reference(name, note, np.interp(EDGE_LP_CM, f, mtf, right=0.0), noise)


def shipped() -> tuple[str, ...]:
    """Names of the references that come with the package."""
    return tuple(sorted(path.stem for path in SHIPPED.glob("*.json")))


def load_reference(given: str) -> Reference:
    """A reference by name, or from a file.

    Raises
    ------
    ConcordctError : neither, or a damaged file.
    """
    path = Path(given)
    if not path.is_file():
        path = SHIPPED / f"{given}.json"
        if given not in shipped():
            raise ConcordctError(f"expected a file or a reference of {', '.join(shipped())}, found {given!r}")
    try:
        found = read_json(path)
    except OSError as error:
        raise ConcordctError(f"{path}: expected a reference, found no readable file ({error.strerror})") from error
    if not isinstance(found, dict):
        raise ConcordctError(f"{path}: expected an object, found {type(found).__name__}")
    try:
        return Reference.from_json(found)
    except ConcordctError as error:
        raise ConcordctError(f"{path}: {error}") from error


@dataclass(frozen=True, eq=False)
class Condition:
    """What was measured on a scan.

    Attributes
    ----------
    signature : edges and noise. error : relative standard error of the frequency at which the response falls to a half.
    """

    signature: Signature
    error: float | None

    @property
    def mtf50_lp_cm(self) -> float | None:
        """None where no surface could be used."""
        return None if self.signature.edge is None else half_at(self.signature.edge)


def measure(slices: Iterable[Volume]) -> Condition:
    """Resolution and noise of a scan, from some of its slices.

    Raises
    ------
    ConcordctError : no surface between material and air that could be used.
    """
    meter = SignatureMeter()
    for volume in slices:
        for image in volume.hu:
            meter.add(image, spacing_mm=volume.spacing_mm[1:])
    signature = meter.signature()
    if signature.edge is None:
        raise ConcordctError("expected surfaces between body and air to measure resolution at, found too few")
    return Condition(signature, meter.half_error())


def model_to(
    reference: Reference,
    condition: Condition,
    *,
    correction: NDArray[np.float64] | None = None,
    louder: float | None = None,
    drawn: float = 1.0,
) -> SpectralModel:
    """What leads from a scan's condition to the reference; `refined.py` finds the rest on results.

    Parameters
    ----------
    correction : [FREQUENCY_LP_CM], natural logarithm of a gain on top of what the condition says.
    louder : amplitude of a result's noise over the reference's; None to follow it from the condition.
    drawn : factor on the variance of drawn noise.
    """
    signature, f = condition.signature, FREQUENCY_LP_CM
    assert signature.edge is not None
    nyquist = MM_PER_CM / (2 * signature.pixel_mm)
    fitted = gain_between(signature, reference)
    log_gain = fitted.log_gain if correction is None else fitted.log_gain + correction
    rounding = ROUNDING_HU2 * signature.pixel_mm**2
    own = _on(signature.noise_hu2_mm2, f)
    wanted = _on(reference.noise_hu2_mm2, f)
    gain = np.minimum(np.exp(np.minimum(log_gain, 5.0)), LARGEST_GAIN)
    # Known is what stands above the rounding of the scan, by its noise or, without, by its response.
    if own is not None:
        coherence = np.clip(1 - 2 * rounding / np.maximum(own, 1e-9), 0, 1)
        coherence[f < NOISE_FROM_LP_CM] = 1.0
    else:
        response = np.interp(f, EDGE_LP_CM, signature.edge, right=0.0)
        coherence = response**2 / (response**2 + EDGE_FLOOR**2)
    coherence *= np.minimum(1.0, (LARGEST_GAIN / np.exp(np.minimum(log_gain, 12.0))) ** 2)
    coherence = np.minimum.accumulate(coherence)
    half, gone = (falls_below(f, coherence, at) for at in (HALF, GONE))
    transfer = np.where(f < gone, gain * coherence, 0.0)
    transfer[0] = 1.0
    noise = None
    if own is not None and wanted is not None:
        ends = min(falls_below(f, coherence, KNOWN), NOISE_TO_NYQUIST * nyquist)
        if louder is None:
            known = (f >= NOISE_FROM_LP_CM) & (f < ends) & (wanted > 0)
            louder = amplitude_over(np.maximum(transfer**2 * own, 1e-9)[known], wanted[known])
        if louder is not None:
            probe = min(PROBE_SHARE * half, PROBE_TO_NYQUIST * nyquist)
            noise = _missing(own, wanted, transfer, probe, louder, drawn)
    unblurred = signature.edge * np.exp(np.minimum((fitted.blur_cm2 or 0.0) * EDGE_LP_CM**2, 10.0))
    reached = half_at(np.interp(EDGE_LP_CM, f, transfer) * unblurred)
    below = reached < (1 - 0.05) * reference.mtf50_lp_cm
    said = _said(reference, condition, reached, louder, below=below)
    return SpectralModel.in_plane(
        f,
        transfer,
        coherence=coherence,
        noise=noise,
        limits=Limits(half, gone, None),
        info={
            "unpaired": True,
            "reference": reference.name,
            "mtf50_lp_cm": _rounded(condition.mtf50_lp_cm),
            "mtf50_error": _rounded(condition.error, 3),
            "mtf50_reached_lp_cm": _rounded(reached),
            "mtf50_reference_lp_cm": _rounded(reference.mtf50_lp_cm),
            "below_reference": bool(below),
            "noise_over_reference": _rounded(louder),
            "edges_against_noise": _rounded(fitted.misfit, 3),
            "surface_blur_cm2": _rounded(fitted.blur_cm2, 3),
            "caution": said,
            "target_kernels": [f"reference {reference.name}"],
            "source_kernels": [],
        },
    )


@dataclass(frozen=True, eq=False)
class Gain:
    """ln of the gain on `FREQUENCY_LP_CM`; what edges and noise disagree by, ln; blur of surfaces, cm^2.

    The last two are None where noise was not measured.
    """

    log_gain: NDArray[np.float64]
    misfit: float | None
    blur_cm2: float | None


def gain_between(
    signature: Signature,
    reference: Reference,
    *,
    noise_to_nyquist: float = NOISE_TO_NYQUIST,
    blur_cm2: float = 0.0,
) -> Gain:
    """The gain that leads from what slices show to a reference, by edges and the shape of noise.

    Parameters
    ----------
    noise_to_nyquist : share of what the pixels hold up to which noise is asked.
    blur_cm2 : of surfaces, as far as it is known.

    Raises
    ------
    ConcordctError : neither can be compared.
    """
    assert signature.edge is not None
    nyquist = MM_PER_CM / (2 * signature.pixel_mm)
    own, wanted = signature.edge, reference.response
    band = (EDGE_LP_CM > 0.3) & (0.9 * nyquist > EDGE_LP_CM) & (np.minimum(own, wanted) > LEAST_RESPONSE)
    band &= np.minimum.accumulate(np.minimum(own, wanted) > LEAST_RESPONSE)
    rows = [EDGE_LP_CM[band]]
    values = [np.log(wanted[band] / own[band])]
    errors = [np.hypot(EDGE_ERROR, EDGE_FLOOR / own[band])]
    constant = [np.zeros(int(band.sum()))]
    noise = signature.noise_hu2_mm2
    if noise is not None:
        f = ring_centres_lp_cm()
        rounding = ROUNDING_HU2 * signature.pixel_mm**2
        with np.errstate(invalid="ignore"):
            known = (f >= NOISE_FROM_LP_CM) & (f <= noise_to_nyquist * nyquist)
            known &= (noise > 4 * rounding) & (reference.noise_hu2_mm2 > 0)
        if known.sum() >= 4:
            rows.append(f[known])
            values.append(0.5 * np.log(reference.noise_hu2_mm2[known] / (noise[known] - rounding)))
            errors.append(np.full(int(known.sum()), NOISE_ERROR))
            constant.append(np.ones(int(known.sum())))
    f, y, error, one = (np.concatenate(part) for part in (rows, values, errors, constant))
    if not f.size:
        raise ConcordctError("expected edges or noise that the reference's can be compared with, found neither")
    scale = max(float(f.max()), 1.0)
    x = (f / scale) ** 2
    # ln gain = sum a_k f^2k; noise has an unknown dose; surfaces may be blurred by exp(-b f^2), b >= 0.
    basis = np.stack([*(x**k for k in range(1, TERMS + 1)), one, (1 - one) * f**2], axis=1)
    weighted = (basis / error[:, None] ** 2).T
    ridge = np.diag([*[RIDGE] * TERMS, 1e-6, SURFACE_BLUR**-2])
    before = np.array([*[0.0] * (TERMS + 1), blur_cm2])
    found = np.linalg.solve(weighted @ basis + ridge, weighted @ y + ridge @ before)
    if found[-1] < 0 or not one.any():
        ridge[-1, -1] = 1e12
        found = np.linalg.solve(weighted @ basis + ridge, weighted @ y)
    left = y - basis @ found
    # Beyond what was measured the curve goes on level.
    t = np.minimum(FREQUENCY_LP_CM, scale) / scale
    curve = np.stack([t ** (2 * k) for k in range(1, TERMS + 1)], axis=1) @ found[:TERMS]
    dosed = bool(one.any())
    return Gain(curve, float(np.std(left)) if dosed else None, float(max(found[-1], 0.0)) if dosed else None)


def amplitude_over(power: NDArray[np.float64], wanted: NDArray[np.float64]) -> float | None:
    """Amplitude of noise over the reference's, geometric mean of frequencies at which both are known."""
    return float(np.exp(0.5 * np.mean(np.log(power / wanted)))) if power.size else None


def _missing(
    own: NDArray[np.float64],
    wanted: NDArray[np.float64],
    transfer: NDArray[np.float64],
    probe: float,
    louder: float,
    drawn: float,
) -> NoiseModel | None:
    """Noise to add."""
    f = FREQUENCY_LP_CM
    lost = np.maximum(max(louder, 1.0) ** 2 * wanted - transfer**2 * own, 0.0)
    if louder >= 1:
        lost *= f >= NOISE_FROM_LP_CM  # anatomy in quiet tissue is no lack of noise
    f_mm = f / MM_PER_CM
    variance = _integral(2 * np.pi * f_mm * lost, f_mm)
    width = max(PROBE_WIDTH_SHARE * probe, 0.2)
    seen = np.exp(-(((f - probe) / width) ** 2))
    level2 = _integral(2 * np.pi * f_mm * own * seen, f_mm)
    if variance <= 0 or level2 <= 0:
        return None
    return NoiseModel(lost / variance, float(np.sqrt(drawn * variance / level2)), EXPONENT, probe, width, 0.0)


def _integral(values: NDArray[np.float64], at: NDArray[np.float64]) -> float:
    return float(np.sum((values[1:] + values[:-1]) / 2 * np.diff(at)))


def _on(noise: NDArray[np.float64] | None, f: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """A ring spectrum on the model's frequencies; level beyond what is known."""
    if noise is None or not np.isfinite(noise).any():
        return None
    known = np.isfinite(noise)
    return np.asarray(np.interp(f, ring_centres_lp_cm()[:RINGS][known], noise[known]), np.float64)


def half_at(response: NDArray[np.float64]) -> float:
    """Where a response on `EDGE_LP_CM` first falls to a half, lp/cm; the last frequency if it never does."""
    below = np.flatnonzero(response < 0.5)
    if not below.size or below[0] == 0:
        return float(EDGE_LP_CM[-1])
    at = int(below[0])
    return float(np.interp(0.5, response[[at, at - 1]], EDGE_LP_CM[[at, at - 1]]))


def _said(reference: Reference, condition: Condition, reached: float, louder: float | None, *, below: bool) -> str:
    sure = "" if condition.error is None else f" (standard error {condition.error:.0%})"
    text = f"own MTF50 {condition.mtf50_lp_cm:.1f} lp/cm{sure}, reference {reference.mtf50_lp_cm:.1f}"
    text += f", reached {reached:.1f}"
    if below:
        text += ": below the reference's resolution, brought to what is possible"
    if louder is None:
        return text + "; noise not measured, left as it is"
    if louder > 1.1:
        text += f"; {louder:.1f} times the reference's noise, which nothing lowers"
    return text


def _rounded(value: float | None, digits: int = 2) -> float | None:
    return None if value is None else round(float(value), digits)
