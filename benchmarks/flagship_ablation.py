"""What each part of concord is worth: transfer, noise, transport, on the validation cohort and the Mayo pair."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import flagship_real
from benchmarks.flagship_bound import bound_table
from benchmarks.flagship_cohorts import VALIDATION, calibrated, subjects_of
from benchmarks.flagship_judge import CEILING, INPUT, Entry, Judge, cells, noise_ratio, rmse
from benchmarks.flagship_real import TEXTURES, Real
from benchmarks.real_pairs import rmse as root_mean_square
from benchmarks.real_pairs import texture_of
from benchmarks.results import data_folder, table, write_section
from concordct.agreement.texture import Texture
from concordct.methods.concord.bundle import METHOD as CONCORD
from concordct.methods.concord.standardizer import ConcordStandardizer
from concordct.methods.models import load_model
from concordct.methods.standardizer import Mode

SEEDS = (0, 1)
#: Slices calibrated on.
SLICES = 1
#: The direction of a real pair in which variants are compared.
HARD = "smooth to sharp"
#: Row, method, mode.
VARIANTS: tuple[tuple[str, str, Mode], ...] = (
    ("transfer", "spectral", "mean"),
    ("transfer and calibrated noise", "spectral", "sample"),
    ("transfer and transport", CONCORD, "sample"),
)


def run() -> None:
    """Measure and write the section."""
    pair = VALIDATION.pairs[0]
    judge = Judge(VALIDATION.name, subjects_of(VALIDATION, pair)[1:])
    paths = {method: calibrated(method, VALIDATION, pair, SLICES) for method in ("spectral", CONCORD)}
    entries = [Entry(name, paths[method], mode, SEEDS if mode == "sample" else (0,)) for name, method, mode in VARIANTS]
    virtual = [_virtual(judge, entry) for entry in (INPUT, *entries, CEILING)]
    classes = [name for name in virtual[0][1] if name != "all"]
    header = ["", *(f"{name}, lungs" for name in classes), *(f"{name}, soft" for name in classes), "RE < 0.15, lungs"]
    header += ["RE < 0.15, soft", "RMSE, HU", "worst noise ratio"]
    body = (
        "## Ablation of concord\n\n"
        f"Validation cohort ({pair[0]} to {pair[1]}, {VALIDATION.count - 1} subjects\n"
        "that no other table uses) and the Mayo abdomen, calibrated on one slice. CCC per feature, mean of a class,\n"
        f"mean of {len(SEEDS)} seeds; noise ratio: the band (of 0.1 cycles/pixel) whose noise power is furthest from\n"
        " the target's, over body, lungs, rim and spine.\n\n" + table(header, [row for row, _ in virtual])
    )
    slabs = [(one.source.read(), one.target.read()) for one in judge.subjects]
    bounded = {f"{pair[0]} to {pair[1]}": (_at_work(paths[CONCORD]), slabs)}
    data = data_folder()
    if data is not None:
        for real in flagship_real.mayo(data):
            # The easy direction leaves nothing to tell variants apart.
            if real.name.endswith(HARD):
                body += f"\n\n{real.name}, texture:\n\n" + _mayo(real)
            bounded[real.name] = (_at_work(flagship_real.calibrated(CONCORD, real, SLICES)), real.judged)
    body += (
        "\n\nPower beyond the transfer relative to the target's, by band; allowed is 1 - coherence, as calibrated, of\n"
        "it. What is written where the scan knows is noise that tissue lacks there:\n\n"
    ) + bound_table(bounded)
    write_section(
        "flagship-ablation",
        "python -m benchmarks.flagship --part ablation",
        body,
        seed=f"{VALIDATION.seed}, {SEEDS[0]} to {SEEDS[-1]}",
    )


def _at_work(path: Path) -> ConcordStandardizer:
    work = load_model(path).standardizer(mode="sample")
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


def _mayo(real: Real) -> str:
    texture = texture_of(real.judged[0][0], real.truth, real.material)
    rows = [_texture_row("input", [real.before], real, texture)]
    for name, method, mode in VARIANTS:
        model = load_model(flagship_real.calibrated(method, real, SLICES))
        seeds = SEEDS if mode == "sample" else (0,)
        outs = [flagship_real.standardized(model, mode, real, seed) for seed in seeds]
        rows.append(_texture_row(name, outs, real, texture))
    return table(["", "RMSE, HU", *TEXTURES], rows)


def _texture_row(name: str, outs: list[flagship_real.Hu], real: Real, texture: Texture) -> list[str]:
    errors = [root_mean_square(out, real.truth, real.material) for out in outs]
    cccs = [texture.ccc(out) for out in outs]
    return [name, f"{np.mean(errors):.2f}", *(f"{np.mean([ccc[one] for ccc in cccs]):.3f}" for one in TEXTURES)]
