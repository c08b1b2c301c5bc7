"""Variants of the flagship on the validation cohort and on the Mayo pair: what each part is worth.

A JSON list of variants, each an object:

    {"name": "5 steps", "sampling": {"steps": 5}}                          the shipped weights
    {"name": "no kernel conditioning", "weights": "runs/ablation/blind"}   other weights, a concord-weights bundle
    {"name": "base only", "method": "spectral", "mode": "mean"}            another method

`mode` is "sample" or "mean", both where it is left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import flagship_real
from benchmarks.flagship_cohorts import VALIDATION, calibrated, subjects_of, with_weights
from benchmarks.flagship_judge import CEILING, INPUT, Entry, Judge, cells, noise_ratio, rmse
from benchmarks.flagship_real import TEXTURES, Real
from benchmarks.real_pairs import Texture
from benchmarks.real_pairs import rmse as root_mean_square
from benchmarks.results import data_folder, table, write_section
from concordct.errors import ConcordctError
from concordct.methods.concord_bundle import METHOD as CONCORD
from concordct.methods.spectral import Mode
from concordct.pipelines.models import load_model

SEEDS = (0, 1)
#: Slices calibrated on.
SLICES = 1
#: Without a list, what can be varied with the shipped weights.
DEFAULT: list[dict[str, Any]] = [
    {"name": "base only", "method": "spectral", "mode": "mean"},
    {"name": "base and calibrated noise, no network", "method": "spectral", "mode": "sample"},
    {"name": "base and transport, no network", "mode": "sample", "sampling": {"steps": 0}},
    *({"name": f"{n} step{'s' if n > 1 else ''}", "mode": "sample", "sampling": {"steps": n}} for n in (1, 2, 4, 8)),
    {"name": "without the bound", "mode": "sample", "sampling": {"bound": False}},
]


@dataclass(frozen=True)
class Variant:
    """One row; `weights` None for the shipped ones."""

    name: str
    modes: tuple[Mode, ...]
    method: str = CONCORD
    weights: Path | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)


def read_variants(items: list[dict[str, Any]]) -> list[Variant]:
    """Check and turn a list into variants.

    Raises
    ------
    ConcordctError : an unknown key, or no name.
    """
    found = []
    for item in items:
        unknown = set(item) - {"name", "mode", "method", "weights", "sampling"}
        if unknown or "name" not in item:
            raise ConcordctError(f"expected a variant with a name, found {item.get('name')!r} with {sorted(unknown)}")
        modes: tuple[Mode, ...] = (item["mode"],) if "mode" in item else ("mean", "sample")
        weights = Path(item["weights"]) if item.get("weights") else None
        found.append(Variant(item["name"], modes, item.get("method", CONCORD), weights, item.get("sampling", {})))
    return found


def _model(variant: Variant, base: Path, flagship: Path) -> Path:
    if variant.method != CONCORD:
        return base
    return flagship if variant.weights is None else with_weights(flagship, variant.weights)


def run(variants: Path | None) -> None:
    """Measure and write the section."""
    chosen = read_variants(DEFAULT if variants is None else json.loads(variants.read_text()))
    pair = VALIDATION.pairs[0]
    judge = Judge(VALIDATION.name, subjects_of(VALIDATION, pair)[1:])
    base = calibrated("spectral", VALIDATION, pair, SLICES)
    flagship = calibrated(CONCORD, VALIDATION, pair, SLICES)
    entries = []
    for one in chosen:
        path = _model(one, base, flagship)
        for mode in one.modes:
            name = one.name if len(one.modes) == 1 else f"{one.name}, {mode}"
            entries.append(Entry(name, path, mode, SEEDS if mode == "sample" else (0,), sampling=one.sampling))
    virtual = [_virtual(judge, entry) for entry in (INPUT, *entries, CEILING)]
    classes = [name for name in virtual[0][1] if name != "all"]
    header = ["", *(f"{name}, lungs" for name in classes), *(f"{name}, soft" for name in classes), "RE < 0.15, lungs"]
    header += ["RE < 0.15, soft", "RMSE, HU", "worst noise ratio"]
    body = (
        "## Ablation of the flagship\n\n"
        f"Validation cohort ({pair[0]} to {pair[1]}, {VALIDATION.count - 1} subjects\n"
        "that no other table uses) and the Mayo abdomen, calibrated on one slice. CCC per feature, mean of a class,\n"
        f"mean of {len(SEEDS)} seeds; noise ratio: the band (of 0.1 cycles/pixel) whose noise power is furthest from\n"
        " the target's, over body, lungs, rim and spine.\n\n" + table(header, [row for row, _ in virtual])
    )
    data = data_folder()
    if data is not None:
        for real in flagship_real.mayo(data):
            body += f"\n\n{real.name}, texture:\n\n" + _mayo(real, chosen)
    write_section(
        "flagship-ablation",
        "python -m benchmarks.flagship --part ablation",
        body,
        seed=f"{VALIDATION.seed}, {SEEDS[0]} to {SEEDS[-1]}",
    )


def _virtual(judge: Judge, entry: Entry) -> tuple[list[str], dict[str, Any]]:
    lungs, soft = (cells(judge, entry, region) for region in ("lungs", "soft tissue"))
    names = [name for name in lungs if name != "all"]
    row = [entry.name, *(f"{lungs[name].ccc:.3f}" for name in names), *(f"{soft[name].ccc:.3f}" for name in names)]
    row += [f"{lungs['all'].share:.2f}", f"{soft['all'].share:.2f}", f"{rmse(judge, entry)['body']:.1f}"]
    worst = 1.0
    for place in next(iter(judge.of(entry).values())).power:
        ratio = noise_ratio(judge, entry, place)[0]
        furthest = float(ratio[np.abs(np.log(ratio)).argmax()])
        worst = furthest if abs(np.log(furthest)) > abs(np.log(worst)) else worst
    return [*row, f"{worst:.2f}"], dict(lungs)


def _mayo(real: Real, chosen: list[Variant]) -> str:
    base = flagship_real.calibrated("spectral", real, SLICES)
    flagship = flagship_real.calibrated(CONCORD, real, SLICES)
    texture = Texture(real.judged[0][0], real.truth, real.material)
    rows = [_texture_row("input", [real.before], real, texture)]
    for one in chosen:
        path = _model(one, base, flagship)
        for mode in one.modes:
            name = one.name if len(one.modes) == 1 else f"{one.name}, {mode}"
            seeds = SEEDS if mode == "sample" else (0,)
            model = load_model(path)
            outs = [flagship_real.standardized(model, mode, real, seed, dict(one.sampling)) for seed in seeds]
            rows.append(_texture_row(name, outs, real, texture))
    return table(["", "RMSE, HU", *TEXTURES], rows)


def _texture_row(name: str, outs: list[flagship_real.Hu], real: Real, texture: Texture) -> list[str]:
    errors = [root_mean_square(out, real.truth, real.material) for out in outs]
    cccs = [texture.ccc(out) for out in outs]
    return [name, f"{np.mean(errors):.2f}", *(f"{np.mean([ccc[one] for ccc in cccs]):.3f}" for one in TEXTURES)]
