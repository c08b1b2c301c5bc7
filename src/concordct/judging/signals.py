"""HU error, noise power, and how much of the signal reached the target: gathered case by case, then stated."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from concordct.errors import ConcordctError
from concordct.judging.features import agreement_results, number
from concordct.judging.held import Held
from concordct.judging.stages import STAGES, TARGET
from concordct.radiomics.extract import Settings, extract
from concordct.signal.body import body_mask
from concordct.signal.quality import Quality, bias_by_range, compare_images
from concordct.signal.signature import ANATOMY_LP_CM
from concordct.signal.spectra import NoisePower, Rings, cosine_frequencies, noise_power, power_ratio, to_cosines

#: Span of HU that PSNR and SSIM refer to: the 12 bits of a CT image.
DATA_RANGE_HU = 4096.0
#: Patches that noise power is measured in, pixels; the smaller where the body holds none of the larger.
NPS_PATCHES = (32, 16)
#: Deviation of a ratio of noise powers from 1 above which a band is marked.
NPS_TOLERANCE = 0.15
#: Rings that spectra are summed over, out to the corner of the Nyquist square.
RINGS = 128
#: Seed of the bootstrap over subjects.
BOOTSTRAP_SEED = 0


@dataclass
class Gathered:
    """What the cases add up to, stage by stage ("source", "standardized", and "target" where it has the quantity).

    Attributes
    ----------
    quality, bias : one entry for each case.
    features : [roi, feature] for each case; empty where no ROI fits.
    roi_subjects : [roi] over all cases.
    noise : noise power of patches, for each case.
    spectra : ring sums "tt", "ss", "st", "yy", "yt" of source S, standardized Y and target T.
    """

    quality: dict[str, list[Quality]] = field(default_factory=lambda: {stage: [] for stage in STAGES})
    bias: dict[str, list[list[tuple[tuple[float, float], float, int]]]] = field(
        default_factory=lambda: {stage: [] for stage in STAGES}
    )
    features: dict[str, list[NDArray[np.float64]]] = field(default_factory=dict)
    roi_subjects: list[str] = field(default_factory=list)
    names: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    noise: dict[str, list[NoisePower]] = field(default_factory=dict)
    spectra: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    rings: Rings | None = None
    pixel_mm: float = 0.0

    def add(self, other: Gathered) -> None:
        """Add what further cases add up to; ring sums must be over the same rings.

        Raises
        ------
        ConcordctError : they are over other rings.
        """
        if self.rings is None:
            self.rings, self.pixel_mm = other.rings, other.pixel_mm
        elif other.rings != self.rings:
            raise ConcordctError(f"expected sums over the rings {self.rings}, found {other.rings}")
        for stage in STAGES:
            self.quality[stage] += other.quality[stage]
            self.bias[stage] += other.bias[stage]
        for stage, values in other.features.items():
            self.features.setdefault(stage, []).extend(values)
        for stage, powers in other.noise.items():
            self.noise.setdefault(stage, []).extend(powers)
        self.roi_subjects += other.roi_subjects
        self.names, self.classes = self.names or other.names, self.classes or other.classes
        for name, sums in other.spectra.items():
            self.spectra[name] = self.spectra[name] + sums if name in self.spectra else sums


def _mean(values: Sequence[float], weights: Sequence[float]) -> float | None:
    return number(float(np.average(values, weights=weights)))


def gather(
    stages: Mapping[str, Held],
    *,
    subject: str,
    region: NDArray[np.bool_],
    rois: NDArray[np.integer[Any]] | None,
    settings: Settings,
    rings: Rings,
) -> tuple[Gathered, list[str]]:
    """What one case is.

    Parameters
    ----------
    stages : volumes of every stage and of the target.
    region : [z, y, x] bool, where HU are compared. rois : [z, y, x] 1 ... n for features; None where none fits.
    settings : of the features.
    rings : of the spectra; cases that are added up share them.

    Returns
    -------
    The case, and what the reader should know of it.
    """
    found = Gathered(rings=rings, pixel_mm=stages["source"].spacing_mm[2])
    source, target = stages["source"], stages[TARGET]
    warnings = [
        f"the {name} equals the source, voxel for voxel"
        for name, stage in (("standardized scan", "standardized"), ("target", TARGET))
        if np.array_equal(stages[stage].values, source.values)
    ]
    in_plane = source.spacing_mm[1:]
    for stage in STAGES:
        found.quality[stage].append(compare_images(stages[stage], target, region, data_range_hu=DATA_RANGE_HU))
        found.bias[stage].append(bias_by_range(stages[stage], target, region))
    if rois is not None:
        for stage, held in stages.items():
            table = extract(held.volume(), rois, settings)
            found.features.setdefault(stage, []).append(table.values)
            found.names, found.classes = table.names, table.classes
        found.roi_subjects += [subject] * len(table.rois)
    body = body_mask(source)
    for patch in NPS_PATCHES:
        powers = {stage: noise_power(held, body, spacing_mm=in_plane, patch=patch) for stage, held in stages.items()}
        if len(powers["source"].nps_hu2_mm2):
            for stage, power in powers.items():
                found.noise.setdefault(stage, []).append(power)
            break
    found.spectra = _spectra(rings, [stages[stage] for stage in (*STAGES, TARGET)])
    return found, warnings


def rings_of(spacing_mm: tuple[float, float, float]) -> Rings:
    """Rings for pixels of a (z, y, x) spacing."""
    return Rings.covering(spacing_mm[1:], RINGS)


def _spectra(rings: Rings, volumes: Sequence[Held]) -> dict[str, NDArray[np.float64]]:
    """Ring sums for the signal transfer and the coherence of source and standardized with the target."""
    ring = rings.index(cosine_frequencies(volumes[0].shape[1:], volumes[0].spacing_mm[1:]))
    sums = {name: np.zeros(rings.count) for name in ("tt", "ss", "st", "yy", "yt")}
    for s, y, t in zip(*volumes, strict=True):
        a, b, c = to_cosines(s), to_cosines(y), to_cosines(t)
        for name, product in (("tt", c * c), ("ss", a * a), ("st", a * c), ("yy", b * b), ("yt", b * c)):
            sums[name] = sums[name] + rings.sum(ring, product)
    return sums


def quality_results(found: Gathered, region: str) -> dict[str, Any]:
    """Image quality of source and standardized against the target, over all voxels of all cases."""
    data_range = found.quality["source"][0].data_range_hu
    quality: dict[str, Any] = {"data_range_hu": data_range, "region": region}
    for stage, each in found.quality.items():
        weights = [one.voxels for one in each]
        rmse = math.sqrt(float(np.average([one.rmse_hu**2 for one in each], weights=weights)))
        quality[stage] = {
            "rmse_hu": rmse,
            "mae_hu": _mean([one.mae_hu for one in each], weights),
            "bias_hu": _mean([one.bias_hu for one in each], weights),
            "psnr_db": number(20 * math.log10(data_range / rmse)) if rmse > 0 else None,
            "ssim": _mean([one.ssim for one in each], weights),
        }
    return quality


def case_results(found: Gathered, subjects: Sequence[str]) -> list[dict[str, Any]]:
    """Image quality of each case by itself."""
    return [
        {
            "subject": subject,
            **{
                stage: {name: number(value) for name, value in asdict(found.quality[stage][index]).items()}
                for stage in STAGES
            },
        }
        for index, subject in enumerate(subjects)
    ]


def bias_results(found: Gathered) -> list[dict[str, Any]]:
    """Mean HU error by HU range of the target."""
    rows = []
    for index, ((low, high), _, _) in enumerate(found.bias["source"][0]):
        voxels = [case[index][2] for case in found.bias["source"]]
        if not sum(voxels):
            continue
        row: dict[str, Any] = {"range": f"[{low:g}, {high:g})", "voxels": sum(voxels)}
        for stage in STAGES:
            values = [case[index][1] if case[index][2] else 0.0 for case in found.bias[stage]]
            row[stage] = _mean(values, voxels)
        rows.append(row)
    return rows


def features_results(found: Gathered, *, settings: str) -> dict[str, Any]:
    """Agreement of features with the target, by class and by feature."""
    results = agreement_results(
        matched(found), names=found.names, classes=found.classes, subjects=found.roi_subjects, seed=BOOTSTRAP_SEED
    )
    return {"settings": settings, **results}


def matched(found: Gathered) -> dict[str, NDArray[np.float64]]:
    """[roi, feature] by stage, over all cases."""
    return {stage: np.concatenate(values) for stage, values in found.features.items()}


def pooled(powers: Sequence[NoisePower]) -> NoisePower:
    """All patches of several cases together."""
    return NoisePower(
        powers[0].edges_cycles_per_pixel, powers[0].cells, np.concatenate([p.nps_hu2_mm2 for p in powers])
    )


def nps_results(found: Gathered) -> tuple[dict[str, Any], list[str]]:
    """Noise power by band, with the ratio to the target's and its standard error; and a warning for a band far off."""
    warnings = []
    by_stage = {stage: pooled(powers) for stage, powers in found.noise.items()}
    ratio, error = power_ratio(by_stage["standardized"], by_stage["target"])
    before, _ = power_ratio(by_stage["source"], by_stage["target"])
    edges = by_stage["target"].edges_cycles_per_pixel
    bands = []
    for i, (low, high) in enumerate(pairwise(edges)):
        band = {stage: number(power.mean[i]) for stage, power in by_stage.items()}
        bands.append(
            {
                "low": round(float(low), 3),
                "high": round(float(high), 3),
                **band,
                "ratio": number(ratio[i]),
                "error": number(error[i]),
                "source_ratio": number(before[i]),
            }
        )
        if abs(ratio[i] - 1) > NPS_TOLERANCE:
            warnings.append(f"noise power is {ratio[i]:.2f} of the target's at {low:.2f} to {high:.2f} cycles/pixel")
    results = {
        "unit": "cycles/pixel",
        "patches": len(by_stage["target"].nps_hu2_mm2),
        "anatomy_below_lp_cm": ANATOMY_LP_CM,
        "bands": bands,
    }
    return results, warnings


def signal_results(found: Gathered) -> list[dict[str, Any]]:
    """What reached the target, band by band of 1 lp/cm: Re<Y T*> / <|T|^2> and the coherence."""
    rings, sums = found.rings, found.spectra
    assert rings is not None
    rows = []
    for low in range(int(rings.centres_lp_cm[-1]) + 1):
        band = (rings.centres_lp_cm >= low) & (rings.centres_lp_cm < low + 1)
        tt, ss, st, yy, yt = (float(sums[name][band].sum()) for name in ("tt", "ss", "st", "yy", "yt"))
        row: dict[str, Any] = {"low_lp_cm": low, "high_lp_cm": low + 1}
        for stage, own, cross in (("source", ss, st), ("standardized", yy, yt)):
            row[f"{stage}_passed"] = number(cross / tt) if tt > 0 else None
            row[f"{stage}_coherence"] = number(cross**2 / (own * tt)) if own > 0 and tt > 0 else None
        rows.append(row)
    return rows
