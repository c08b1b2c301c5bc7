"""Endpoints of simulated smokers before and after conversion, against the target and against what is known.

python -m benchmarks.endpoints          # scans the smokers first (ten minutes of one core, resumes), then two minutes
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from benchmarks.endpoints_cohort import (
    CALIBRATE,
    EMPHYSEMA,
    FOLDER,
    FRAME,
    PAIRS,
    PLAQUES,
    SLICES,
    SMOKERS,
    Scanned,
    read,
    smokers,
    thick,
)
from benchmarks.endpoints_real import real_section
from benchmarks.endpoints_why import why
from benchmarks.results import ROOT, table
from concordct.agreement.bland_altman import Agreement, agreement_of
from concordct.agreement.classes import class_changes
from concordct.endpoints.catalogue import ENDPOINTS
from concordct.endpoints.masks import EndpointMasks, measured
from concordct.judging.provenance import provenance
from concordct.judging.stages import standardized, standardizer_for
from concordct.methods.models import Model, load_model
from concordct.pipelines.calibrate import METHODS, calibrate_pairs
from concordct.report.bland_altman import write_bland_altman
from concordct.volumes.files import write_volume_file
from concordct.volumes.place import atomic_file
from concordct.volumes.scans import one_scan
from concordct.volumes.volume import Volume

PAGE, FIGURES = ROOT / "docs" / "results" / "endpoints.md", ROOT / "docs" / "figures"
THICKNESSES = (1, 3)
MODES: tuple[Literal["mean", "sample"], ...] = ("mean", "sample")
STAGES = ("source", *MODES, "target")
#: What is reported: column, its title, decimals.
SHOWN = (
    ("laa950_lungs_percent", "LAA-950, %", 2),
    ("perc15_lungs_hu", "Perc15, HU", 1),
    ("density_lungs_hu", "mean lung density, HU", 1),
    ("clusters_slope_d", "slope D", 2),
    ("high_attenuation_percent", "high attenuation, %", 2),
    ("agatston", "Agatston", 1),
    ("calcium_mass_mg", "calcium mass, mg", 1),
    ("nodule_volume_ml", "nodule volume, ml", 3),
    ("noise_level_hu", "noise, HU", 1),
)
CLASSES = (("laa950_lungs_percent", "LAA-950 above 5 %"), ("agatston", "Agatston category"))
#: (pair, thickness) -> stage -> smoker -> column -> value; a nodule has the column's name with its number.
Values = dict[tuple[str, int], dict[str, dict[str, dict[str, float]]]]


def measure_all(everyone: Sequence[Scanned]) -> Values:
    """Every stage of every pair and thickness, kept in `runs/endpoints/values.json`."""
    path = FOLDER / "values.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    for thickness in THICKNESSES:
        cohort = [thick(one, thickness) for one in everyone]
        for source, target in PAIRS:
            key = f"{source} to {target}|{thickness}"
            if key in kept:
                continue
            print(f"{source} to {target}, {thickness} mm", file=sys.stderr, flush=True)
            model = calibrated(cohort[:CALIBRATE], source, target, thickness)
            kept[key] = judged(cohort[CALIBRATE:], model, source, target)
            with atomic_file(path, overwrite=True) as aside:
                aside.write_text(json.dumps(kept))
    return {(name.split("|")[0], int(name.split("|")[1])): found for name, found in kept.items()}


def calibrated(cohort: Sequence[Scanned], source: str, target: str, thickness: int) -> Model:
    """The default method, calibrated on the first smokers as a user would."""
    place = FOLDER / "calibration" / f"{source}-{target}-{thickness}"
    pairs = []
    for one in cohort:
        paths = [place / one.name / f"{name}.nii.gz" for name in (source, target)]
        for path, name in zip(paths, (source, target), strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_volume_file(path, one.images[name], overwrite=True)
        pairs.append((one_scan(paths[0]), one_scan(paths[1])))
    calibrate_pairs(pairs, place / "model", method=METHODS[0], overwrite=True)
    return load_model(place / "model")


def judged(cohort: Sequence[Scanned], model: Model, source: str, target: str) -> dict[str, dict[str, dict[str, float]]]:
    """Stage -> smoker -> column -> value; the masks are those of the drawing, one for all stages."""
    found: dict[str, dict[str, dict[str, float]]] = {stage: {} for stage in (*STAGES, "object", "known")}
    place = FOLDER / "aside"
    for one in cohort:
        path = place / f"{one.name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_volume_file(path, one.images[source], overwrite=True)
        scan = one_scan(path)
        volume = one.images[source]
        images = {"source": volume, "target": one.images[target], "object": one.object}
        for mode in MODES:
            images[mode] = standardized(scan, volume, standardizer_for(scan, model, mode=mode))
        masks = EndpointMasks({"lungs": one.lungs, "mediastinum": one.heart}, False)
        for stage, image in images.items():
            found[stage][one.name] = numbers(image, masks, one)
        found["known"][one.name] = {
            "laa950_lungs_percent": one.emphysema_percent,
            "calcium_mass_mg": one.calcium_mass_mg,
            **{f"nodule_volume_ml {k}": ml for k, ml in enumerate(one.nodule_ml, start=1)},
        }
    shutil.rmtree(place, ignore_errors=True)
    return found


def numbers(image: Volume, masks: EndpointMasks, one: Scanned) -> dict[str, float]:
    """Every endpoint of one image."""
    found: dict[str, float] = {}
    for endpoint in ENDPOINTS.values():
        if endpoint.needs != "region":
            found |= measured(endpoint, image, masks)
            continue
        for label in range(1, int(one.nodules.max()) + 1):
            values = endpoint.measure(image, (one.nodules == label).astype(np.uint8))
            found |= {f"{name} {label}": value for name, value in values.items()}
    return {name: value for name, value in found.items() if np.isfinite(value)}


def lists(
    found: Mapping[str, Mapping[str, Mapping[str, float]]], stage: str, reference: str, column: str
) -> tuple[list[float], list[float], list[str]]:
    """Values of a stage, of the reference, and whose they are; nodules are several of one smoker."""
    values, wanted, who = [], [], []
    for name, of in found[reference].items():
        for key, value in of.items():
            if key.rsplit(" ", 1)[0] == column and key in found[stage][name]:
                values.append(found[stage][name][key])
                wanted.append(value)
                who.append(name)
    return values, wanted, who


def agreement(
    found: Mapping[str, Mapping[str, Mapping[str, float]]], stage: str, reference: str, column: str
) -> Agreement | None:
    """Agreement of a stage with a reference; None where nobody has both."""
    values, wanted, who = lists(found, stage, reference, column)
    return agreement_of(values, wanted, who, generator=np.random.default_rng(0)) if values else None


def cell(one: Agreement | None, decimals: int) -> str:
    """Bias and limits of agreement."""
    if one is None:
        return "-"
    limits = "" if np.isnan(one.low) else f" ({one.low:.{decimals}f} to {one.high:.{decimals}f})"
    return f"{one.bias:.{decimals}f}{limits}"


def ccc_cell(one: Agreement | None) -> str:
    """CCC with its interval."""
    if one is None or np.isnan(one.ccc):
        return "-"
    return f"{one.ccc:.3f} ({one.ccc_interval[0]:.2f} to {one.ccc_interval[1]:.2f})"


def against_target(values: Values) -> str:
    """Bias, limits and CCC of every endpoint before and after."""
    parts = []
    for thickness in THICKNESSES:
        for source, target in PAIRS:
            found = values[f"{source} to {target}", thickness]
            rows = []
            for column, title, decimals in SHOWN:
                stages = [agreement(found, stage, "target", column) for stage in STAGES[:3]]
                rows.append([title, *(cell(one, decimals) for one in stages), *(ccc_cell(one) for one in stages)])
            header = ["", "bias before", "`mean`", "`sample`", "CCC before", "`mean`", "`sample`"]
            parts.append(f"### {source} to {target}, slices of {thickness} mm\n\n{table(header, rows)}")
    return "\n\n".join(parts)


def against_truth(values: Values) -> str:
    """Bias against what is known, of all stages and of the object itself."""
    header = ["pair", "mm", "", "source", "`mean`", "`sample`", "target", "the object itself"]
    rows = []
    for thickness in THICKNESSES:
        for source, target in PAIRS:
            found = values[f"{source} to {target}", thickness]
            for column, title, decimals in SHOWN:
                stages = [agreement(found, stage, "known", column) for stage in (*STAGES, "object")]
                if any(one is not None for one in stages):
                    rows.append(
                        [f"{source} to {target}", f"{thickness}", title, *(cell(one, decimals) for one in stages)]
                    )
    return table(header, rows)


def class_table(values: Values) -> str:
    """Share of smokers whose clinical class differs from the target's."""
    cuts = {column.name: column.cuts for endpoint in ENDPOINTS.values() for column in endpoint.columns}
    header = ["pair", "mm", "class", "before", "`mean`", "`sample`"]
    rows = []
    for thickness in THICKNESSES:
        for source, target in PAIRS:
            found = values[f"{source} to {target}", thickness]
            for column, title in CLASSES:
                cells = []
                for stage in STAGES[:3]:
                    seen, wanted, _ = lists(found, stage, "target", column)
                    changes = class_changes(seen, wanted, cuts[column])
                    cells.append(f"{round(changes.changed * changes.patients)} of {changes.patients}")
                rows.append([f"{source} to {target}", f"{thickness}", title, *cells])
    return table(header, rows)


def bars(values: Values) -> str:
    """What was asked for, against what came out."""
    rows = []
    asked = (
        ("laa950_lungs_percent", "LAA-950: bias at most 0.3 points", lambda one: abs(one.bias) <= 0.3, 2),
        ("perc15_lungs_hu", "Perc15: bias at most 2 HU", lambda one: abs(one.bias) <= 2.0, 1),
        ("agatston", "Agatston: CCC at least 0.97", lambda one: one.ccc >= 0.97, 3),
    )
    for column, title, met, decimals in asked:
        for mode in MODES:
            cells = []
            for thickness in THICKNESSES:
                for source, target in PAIRS:
                    one = agreement(values[f"{source} to {target}", thickness], mode, "target", column)
                    assert one is not None
                    number = one.ccc if column == "agatston" else one.bias
                    cells.append(f"{number:.{decimals}f}{'' if met(one) else ' **no**'}")
            rows.append([title, f"`{mode}`", *cells])
    header = ["", "mode", *(f"{source} to {target}, {t} mm" for t in THICKNESSES for source, target in PAIRS)]
    return table(header, rows)


def noise_score(values: Values) -> str:
    """What the smoker without a plaque scores toward the sharp kernel: noise alone."""
    source, target = PAIRS[-1]
    found = values[f"{source} to {target}", THICKNESSES[-1]]
    name = next(name for name, known in found["known"].items() if known["calcium_mass_mg"] == 0.0)
    scores = {stage: found[stage][name]["agatston"] for stage in (*STAGES, "object")}
    said = ", ".join(
        f"{scores[stage]:.0f} {where}"
        for stage, where in (
            ("target", "on the target"),
            ("sample", "in `sample`"),
            ("mean", "in `mean`"),
            ("source", "on the source"),
            ("object", "on the object itself"),
        )
    )
    return (
        f"Toward {target} the Agatston score is largely noise: the smoker without a plaque scores {said}. `mean` is "
        "nearer to the truth there and further from the target; calcium is to be scored on the smooth kernel."
    )


def figure(values: Values) -> Path:
    """Bland-Altman pictures of LAA-950 and Agatston for the hardest pair, before and after."""
    source, target = PAIRS[1]
    found = values[f"{source} to {target}", 1]
    panels = []
    for column, title, _ in (SHOWN[0], SHOWN[5]):
        for stage in ("source", "sample" if column == SHOWN[0][0] else "mean"):
            seen, wanted, _ = lists(found, stage, "target", column)
            panels.append((f"{title}: {stage}", np.array(seen), np.array(wanted)))
    return write_bland_altman(FIGURES / "endpoints.png", panels, overwrite=True)


def page(values: Values, reasons: str) -> str:
    """The whole page."""
    made = provenance()
    picture = figure(values)
    return f"""# Endpoints before and after conversion

*`make bench-endpoints`, {made["software"]}, commit {made["commit"]}, {made["machine"]}. Everything but the last section
is simulated. Nothing was tuned on these smokers.*

{SMOKERS} digital smokers (`scanner/smokers.py`): emphysema of about {100 * min(EMPHYSEMA):g} to
{100 * max(EMPHYSEMA):g} % of the lungs as holes of known volume, {min(PLAQUES)} to {max(PLAQUES)} coronary
plaques of known mass, two solid nodules each, 30 to 110 mAs; {SLICES} slices of 1 mm through heart and lungs,
pixels of {FRAME.pixel_mm:g} mm, and the same in slices of 3 mm. {CALIBRATE} calibrate the default method
(`{METHODS[0]}`), the other {SMOKERS - CALIBRATE} are judged. All stages are measured under one mask, that of the
drawing. Bias is the mean of stage minus reference, in parentheses the 95 % limits of agreement; intervals of CCC are
over smokers.

The heart's mask is its chambers and the fat around them, 3.5 mm clear of bone, cartilage and spine; plaques lie wholly
in it, so that what is dense there is calcium alone ("the object itself" has the Agatston score 0 in the smoker without
plaques).

## What was asked for

{bars(values)}

{noise_score(values)}

{reasons}
## Against the target

{against_target(values)}

## Against what is known

Known is the volume of the holes, the mass of the plaques and the volume of the nodules as they were drawn. "The object
itself" is the drawing without blur and noise on the same voxels: what an endpoint is off by definition.

{against_truth(values)}

## Patients whose class differs from the target's

{class_table(values)}

![Bland-Altman](../figures/{picture.name})

{real_section()}
"""


def main() -> None:
    """Scan, measure, write the page."""
    everyone = [read(one) for one in smokers(progress=lambda text: print(text, file=sys.stderr, flush=True))]
    values = measure_all(everyone)
    source, target = PAIRS[-1]
    model = load_model(FOLDER / "calibration" / f"{source}-{target}-1" / "model")
    text = page(values, why(everyone[CALIBRATE:], model, (source, target), FOLDER))
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
