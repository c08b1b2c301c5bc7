"""What an evaluation found, as JSON, as curves and as lines of a table."""

from __future__ import annotations

import math
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from concordct import __version__
from concordct.methods.models import Model
from concordct.pipelines.agreement import agreement_results, number, reproducibility_curves
from concordct.report.charts import Curve
from concordct.report.tables import NPS_TOLERANCE
from concordct.signal.quality import Quality
from concordct.signal.spectra import MM_PER_CM, NoisePower, Rings, power_ratio

STAGES = ("source", "standardized")
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


def _mean(values: Sequence[float], weights: Sequence[float]) -> float | None:
    return number(float(np.average(values, weights=weights)))


def provenance() -> dict[str, Any]:
    """Software, commit and machine, for every file of results."""
    here = Path(__file__).resolve().parent
    git = ["git", "-C", str(here)]
    commit = None
    try:
        top = subprocess.run(
            [*git, "rev-parse", "--show-toplevel"], capture_output=True, text=True, timeout=5, check=True
        )
        if Path(top.stdout.strip()).resolve() in here.parents:
            head = subprocess.run(
                [*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, timeout=5, check=True
            )
            commit = head.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        pass  # an installed package has no commit
    return {
        "software": f"concordct {__version__}",
        "commit": commit,
        "machine": f"{_processor()}, {os.cpu_count()} cores, Python {platform.python_version()}",
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


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


def _pooled(powers: Sequence[NoisePower]) -> NoisePower:
    return NoisePower(
        powers[0].edges_cycles_per_pixel, powers[0].cells, np.concatenate([p.nps_hu2_mm2 for p in powers])
    )


def nps_results(found: Gathered, warnings: list[str]) -> dict[str, Any]:
    """Noise power by band, with the ratio to the target's and its standard error; bands far off add a warning."""
    pooled = {stage: _pooled(powers) for stage, powers in found.noise.items()}
    ratio, error = power_ratio(pooled["standardized"], pooled["target"])
    before, _ = power_ratio(pooled["source"], pooled["target"])
    edges = pooled["target"].edges_cycles_per_pixel
    bands = []
    for i, (low, high) in enumerate(pairwise(edges)):
        band = {stage: number(power.mean[i]) for stage, power in pooled.items()}
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
    return {"unit": "cycles/pixel", "patches": len(pooled["target"].nps_hu2_mm2), "bands": bands}


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


def curves(found: Gathered, model: Model | None) -> list[Curve]:
    """The charts of the report: transfer and coherence of the model, noise power, and what reached the target."""
    rings = found.rings
    assert rings is not None
    markers: list[tuple[float, str]] = []

    def chart(
        title: str,
        y_label: str,
        series: list[tuple[str, Any, Any]],
        *,
        log_y: bool = False,
        y_range: tuple[float, float] | None = None,
    ) -> Curve:
        return Curve(
            title,
            "lp/cm",
            y_label,
            series,
            x2_label="cycles/pixel",
            x2_per_x=found.pixel_mm / MM_PER_CM,
            log_y=log_y,
            y_range=y_range,
            markers=markers,
        )

    drawn = []
    spectral = None if model is None else model.calibration()
    if spectral is not None:
        f = spectral.frequency_lp_cm
        markers = [(spectral.limits.half_lp_cm, "half known"), (spectral.limits.gone_lp_cm, "gone")]
        drawn.append(chart("Transfer H(f)", "target / source", [("transfer", f, spectral.single)]))
        coherence = [("coherence", f, spectral.coherence)]
        drawn.append(chart("Coherence in the calibration", "coherence", coherence, y_range=(0.0, 1.0)))
    if found.noise:
        pooled = {stage: _pooled(powers) for stage, powers in found.noise.items()}
        edges = pooled["target"].edges_cycles_per_pixel
        middle = 0.5 * (edges[1:] + edges[:-1]) * MM_PER_CM / found.pixel_mm
        lines = [(stage, middle, power.mean) for stage, power in pooled.items()]
        drawn.append(chart("Noise power spectrum", "HU² mm²", lines, log_y=True))
    f, sums = rings.centres_lp_cm, found.spectra
    tiny = 1e-9 * sums["tt"].max()
    passed = [
        ("source", f, sums["st"] / np.maximum(sums["tt"], tiny)),
        ("standardized", f, sums["yt"] / np.maximum(sums["tt"], tiny)),
    ]
    drawn.append(chart("Signal passed, relative to the target", "Re⟨Y T*⟩ / ⟨|T|²⟩", passed))
    coherent = [
        ("source", f, sums["st"] ** 2 / np.maximum(sums["ss"] * sums["tt"], tiny**2)),
        ("standardized", f, sums["yt"] ** 2 / np.maximum(sums["yy"] * sums["tt"], tiny**2)),
    ]
    drawn.append(chart("Coherence with the target", "coherence", coherent, y_range=(0.0, 1.0)))
    if found.features:
        drawn += reproducibility_curves(matched(found), found.classes)
    return drawn


def summary_rows(results: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(what, before, after) for a table on a terminal."""
    before, after = (results["image_quality"][stage] for stage in STAGES)
    rows = []
    for key, label, digits in (
        ("rmse_hu", "RMSE, HU", 2),
        ("mae_hu", "MAE, HU", 2),
        ("psnr_db", "PSNR, dB", 2),
        ("ssim", "SSIM", 4),
    ):
        rows.append((label, _shown(before[key], digits), _shown(after[key], digits)))
    for row in results.get("agreement", {}).get("per_class", []):
        for key, label in (("ccc_mean", "CCC"), ("re_share", "share with RE < 0.15")):
            shown = [_shown(row[f"{stage}_{key}"], 3) for stage in STAGES]
            rows.append((f"{row['class']}: {label}", shown[0], shown[1]))
    return rows


def _shown(value: float | None, digits: int) -> str:
    return "n/a" if value is None else f"{value:.{digits}f}"
