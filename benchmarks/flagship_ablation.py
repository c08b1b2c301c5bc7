"""Variants of the flagship on the validation cohort and on the Mayo pair: what each part is worth.

A JSON list of variants, each an object:

    {"name": "5 steps", "sampling": {"steps": 5}}                          the shipped weights
    {"name": "no kernel conditioning", "weights": "runs/ablation/blind"}   other weights, a concord-weights bundle
    {"name": "base only", "method": "spectral", "mode": "mean"}            another method
    {"name": "regression", "weights": ..., "sampling": {"steps": 1, "remainder": "regression"}}

`mode` is "sample" or "mean", both where it is left out; `remainder` is how `concord_variants.SERVED` serves a network.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import flagship_real
from benchmarks.concord_variants import served
from benchmarks.flagship_bound import bound_table
from benchmarks.flagship_cohorts import VALIDATION, calibrated, flagship_code, subjects_of, with_weights
from benchmarks.flagship_judge import CEILING, INPUT, Entry, Judge, cells, noise_ratio, rmse
from benchmarks.flagship_real import TEXTURES, Real
from benchmarks.real_pairs import Texture
from benchmarks.real_pairs import rmse as root_mean_square
from benchmarks.results import data_folder, table, write_section
from concordct.errors import ConcordctError
from concordct.methods.concord.bundle import METHOD as CONCORD
from concordct.methods.concord.bundle import shipped_weights
from concordct.methods.concord.standardizer import STEPS, ConcordStandardizer
from concordct.methods.standardizer import Mode, Standardizer
from concordct.pipelines.models import Model, Sampling, load_model
from concordct.training.bundle import load_bundle

SEEDS = (0, 1)
#: Slices calibrated on.
SLICES = 1
#: The direction of a real pair in which variants are compared.
HARD = "smooth to sharp"
#: Evaluations of the network in the table of the bound.
BOUND_STEPS = 3
#: What is compared where nothing else is asked for.
VARIANTS = Path(__file__).with_name("flagship_variants.json")


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


@dataclass(frozen=True, eq=False)
class Served(Model):
    """A model whose network may be served in another way."""

    def standardizer(
        self, *, mode: Mode, use_neighbours: bool = True, sampling: Sampling | None = None
    ) -> Standardizer:
        """As the base."""
        work = super().standardizer(mode=mode, use_neighbours=use_neighbours, sampling=sampling)
        name = (sampling or {}).get("remainder")
        if name is None:
            return work
        assert isinstance(work, ConcordStandardizer)
        return served(name, work)


def opened(path: Path) -> Served:
    """A model on disk."""
    model = load_model(path)
    return Served(model.name, model.bundle, model.sha256)


class VariantJudge(Judge):
    """A judge of models that are served in other ways, too."""

    def _model(self, entry: Entry) -> Model | None:
        return None if entry.model is None else self._models.setdefault(entry.model, opened(entry.model))


def _model(variant: Variant, base: Path, flagship: Path) -> Path:
    if variant.method != CONCORD:
        return base
    return flagship if variant.weights is None else with_weights(flagship, variant.weights)


def run(variants: Path) -> None:
    """Measure and write the section."""
    listed = read_variants(json.loads(variants.read_text()))
    chosen = [one for one in listed if one.weights is None or one.weights.is_dir()]
    missing = [one.name for one in listed if one not in chosen]
    pair = VALIDATION.pairs[0]
    judge = VariantJudge(VALIDATION.name, subjects_of(VALIDATION, pair)[1:])
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
    older = sorted({one.name for one in chosen if _trained_on(one) != flagship_code()})
    if older:
        body += (
            f"\n\nTrained with an earlier form of transport and level, and judged with this one: {', '.join(older)}."
        )
    if missing:
        body += f"\n\nNot trained when this ran: {', '.join(missing)}."
    slabs = [(one.source.read(), one.target.read()) for one in judge.subjects]
    bounded = {f"{pair[0]} to {pair[1]}": (_with_network(flagship), slabs)}
    data = data_folder()
    if data is not None:
        for real in flagship_real.mayo(data):
            # The easy direction leaves nothing to tell variants apart.
            if real.name.endswith(HARD):
                body += f"\n\n{real.name}, texture:\n\n" + _mayo(real, chosen)
            bounded[real.name] = (_with_network(flagship_real.calibrated(CONCORD, real, SLICES)), real.judged)
    body += (
        "\n\nThe bound. Power beyond the transfer relative to the target's, by band; allowed is 1 - coherence, as\n"
        "calibrated, of it. What is written where the scan knows is noise that tissue lacks there:\n\n"
    ) + bound_table(bounded)
    write_section(
        "flagship-ablation",
        "python -m benchmarks.flagship --part ablation" + (f" --variants {variants}" if variants != VARIANTS else ""),
        body,
        seed=f"{VALIDATION.seed}, {SEEDS[0]} to {SEEDS[-1]}",
    )


def _trained_on(variant: Variant) -> str | None:
    """What `flagship_code` was when the variant's network was trained; of now without a network."""
    if variant.method != CONCORD or not variant.sampling.get("steps", STEPS):
        return flagship_code()
    weights = shipped_weights() if variant.weights is None else load_bundle(variant.weights)
    return dict(weights.metadata["info"]).get("code")


def _with_network(path: Path) -> ConcordStandardizer:
    work = load_model(path).standardizer(mode="sample", sampling={"steps": BOUND_STEPS})
    assert isinstance(work, ConcordStandardizer)
    return work


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
            model = opened(path)
            outs = [flagship_real.standardized(model, mode, real, seed, dict(one.sampling)) for seed in seeds]
            rows.append(_texture_row(name, outs, real, texture))
    return table(["", "RMSE, HU", *TEXTURES], rows)


def _texture_row(name: str, outs: list[flagship_real.Hu], real: Real, texture: Texture) -> list[str]:
    errors = [root_mean_square(out, real.truth, real.material) for out in outs]
    cccs = [texture.ccc(out) for out in outs]
    return [name, f"{np.mean(errors):.2f}", *(f"{np.mean([ccc[one] for ccc in cccs]):.3f}" for one in TEXTURES)]
