"""The charts of a report: what `judging` gathered, as curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from concordct.agreement import concordance
from concordct.judging.signals import Gathered, matched, pooled
from concordct.methods.models import Model
from concordct.report.charts import Curve
from concordct.signal.signature import ANATOMY_LP_CM
from concordct.signal.spectra import MM_PER_CM

Array = NDArray[np.float64]
#: What patches of a patient hold besides noise.
ANATOMY_NOTE = (
    f"Measured in patches of the body: below about {ANATOMY_LP_CM:g} lp/cm it is more anatomy than noise. All curves "
    "show the same anatomy, so they can be compared with each other all the same."
)

#: Thresholds of relative error that the curve of DiffusionCT's Fig. 4 is drawn at.
THRESHOLDS = np.linspace(0.0, 1.0, 101)


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
        markers = [(spectral.limits.half_lp_cm, "coherence 0.5"), (spectral.limits.gone_lp_cm, "cut-off")]
        drawn.append(chart("Transfer H(f)", "target / source", [("transfer", f, spectral.single)]))
        coherence = [("coherence", f, spectral.coherence)]
        drawn.append(chart("Coherence in the calibration", "coherence", coherence, y_range=(0.0, 1.0)))
    if found.noise:
        by_stage = {stage: pooled(powers) for stage, powers in found.noise.items()}
        edges = by_stage["target"].edges_cycles_per_pixel
        middle = 0.5 * (edges[1:] + edges[:-1]) * MM_PER_CM / found.pixel_mm
        lines = [(stage, middle, power.mean) for stage, power in by_stage.items()]
        drawn.append(replace(chart("Noise power spectrum", "HU² mm²", lines, log_y=True), note=ANATOMY_NOTE))
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


def reproducibility_curves(matched: Mapping[str, Array], classes: Sequence[str]) -> list[Curve]:
    """DiffusionCT's Fig. 4, one chart for each class; arguments as for `judging.features.agreement_results`."""
    stages = [stage for stage in ("source", "standardized") if stage in matched]
    of = np.array(classes)
    errors = {stage: concordance.relative_error(matched[stage], matched["target"]) for stage in stages}
    return [
        Curve(
            title=f"Reproducible features: {name}",
            x_label="threshold of the relative error",
            y_label="share of features (median over ROIs)",
            series=[
                (stage, THRESHOLDS, concordance.reproducibility_curve(errors[stage][:, of == name], THRESHOLDS))
                for stage in stages
            ],
            markers=((concordance.REPRODUCIBLE, f"{concordance.REPRODUCIBLE:g}"),),
            y_range=(0.0, 1.0),
        )
        for name in dict.fromkeys(classes)
    ]
