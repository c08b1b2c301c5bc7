"""Real pairs of deep-learning and iterative reconstruction, each beside a real repeat of its target; linear pairs too.

python -m benchmarks.nonlinear          # writes its page of docs/results; needs ../shared/data
python -m benchmarks.nonlinear 0 3      # these parts alone, kept in runs/nonlinear until the page is written

Canon lung phantom: two scans of one protocol, each reconstructed twice. Scan 2 calibrates, scan 3 is judged;
choices were made on slices of scan 2 that were held out. The phantom did not move between the scans, so that the target
of scan 2 is a repeat of the target of scan 3.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.papers_cohort import cohort
from benchmarks.real_pairs import mayo_pairs, rmse, texture_of
from benchmarks.results import ROOT, data_folder, table, write_section
from concordct.judging.stages import stored
from concordct.methods.concord.adaptive import Adaptive
from concordct.methods.concord.chosen import TEXTURES, chosen
from concordct.methods.concord.fit import fit_concord, held_out
from concordct.methods.concord.learned import LEAST_EXPLAINED, Cohort, fit_learned
from concordct.methods.concord.standardizer import ConcordStandardizer
from concordct.methods.spectral.fit import fit_pairs
from concordct.pipelines.calibrate import pairs_of_manifest
from concordct.scanner.nonlinear import shrink_noise
from concordct.signal.body import body_mask
from concordct.signal.spectra import noise_power
from concordct.volumes.find import find_series
from concordct.volumes.seeds import SliceSeeds
from concordct.volumes.volume import Volume

SEEDS = (0, 1, 2)
#: Slices of each simulated patient, and strength of the iterative-like step.
SLICES, STRENGTH = 4, 5
#: Patches of noise power, pixels, and its bands, cycles/pixel.
PATCH, BAND = 32, 0.1

Hu = NDArray[np.float32]
Slabs = list[tuple[Volume, Volume]]


@dataclass(frozen=True, eq=False)
class Conversion:
    """One direction of a real pair.

    Attributes
    ----------
    calibration, judged : slabs (source, target). repeat : target again from another scan, [z, y, x]; None without.
    """

    name: str
    calibration: Slabs
    judged: Slabs
    repeat: Hu | None


def canon(data: Path) -> list[Conversion]:
    """Both directions of the lung phantom, scan 2 to scan 3."""
    scans = {
        name: find_series(data / "canon_lung_phantom" / name).series[0].read()
        for name in ("DLR_2", "IR_2", "DLR_3", "IR_3")
    }
    return [
        Conversion(
            f"Canon lung phantom, {source} to {target}",
            [(scans[f"{source}_2"], scans[f"{target}_2"])],
            [(scans[f"{source}_3"], scans[f"{target}_3"])],
            scans[f"{target}_2"].hu,
        )
        for source, target in (("DLR", "IR"), ("IR", "DLR"))
    ]


def linear(data: Path) -> list[Conversion]:
    """Mayo's abdomen, three slices to calibrate on; the chest phantom, one."""
    mayo = mayo_pairs(data)
    found = []
    for source, target in (("smooth", "sharp"), ("sharp", "smooth")):
        both = [(one[source], one[target]) for one in mayo]
        found.append(Conversion(f"Mayo abdomen, {source} to {target}", both[:3], both[3:], None))
    chest = {name: find_series(data / "canon_chest_phantom" / name).series[0].read() for name in ("FC51", "FC13")}
    for source, target in (("FC51", "FC13"), ("FC13", "FC51")):
        slabs = [(chest[source].slab(z, z + 1), chest[target].slab(z, z + 1)) for z in (0, 1)]
        found.append(Conversion(f"Canon chest phantom, {source} to {target}", slabs[:1], slabs[1:], None))
    return found


def judged(one: Conversion) -> tuple[str, list[str], list[list[str]]]:
    """What was chosen, in words; header; rows."""
    began = time.process_time()
    model = fit_pairs(lambda: one.calibration)
    transport, adaptive = fit_concord(model, lambda: one.calibration)
    seconds = time.process_time() - began
    truth = np.concatenate([target.hu for _, target in one.judged])
    body = body_mask(truth)
    texture = texture_of(one.judged[0][1], truth, body)
    wanted = noise_power(truth, body, spacing_mm=(1.0, 1.0), patch=PATCH, band_width=BAND).nps_hu2_mm2.sum(axis=0)

    def run(work: ConcordStandardizer, seed: int) -> Hu:
        made = [work(s, generator=SliceSeeds(seed, f"slab {i}")) for i, (s, _) in enumerate(one.judged)]
        kept = zip(made, one.judged, strict=True)
        return np.concatenate([stored(out.hu, source.hu, out.reach_hu) for out, (source, _) in kept])

    def row(name: str, outs: list[Hu]) -> list[str]:
        found = [texture.ccc(out) for out in outs]
        cells = [f"{np.mean([ccc[c] for ccc in found]):.3f}" for c in TEXTURES]
        power = noise_power(outs[0], body, spacing_mm=(1.0, 1.0), patch=PATCH, band_width=BAND).nps_hu2_mm2
        return [
            name,
            *cells,
            f"{np.mean([rmse(out, truth, body) for out in outs]):.1f}",
            *(f"{ratio:.2f}" for ratio in power.sum(axis=0) / wanted),
        ]

    mean = ConcordStandardizer(model, transport, "mean", adaptive=adaptive)
    learned, explained = fit_learned(
        lambda: (("one patient", pair) for pair in one.calibration), lambda v: mean(v, generator=SliceSeeds(0, ""))
    )
    rows = [row("input", [np.concatenate([source.hu for source, _ in one.judged])])]
    if one.repeat is not None:
        rows.append(row("a real repeat of the target", [one.repeat]))
    works: list[tuple[str, Adaptive | None]] = [("transport", None)]
    if adaptive is not None:
        works.append(("adaptive", adaptive))
    for name, part in works:
        rows.append(row(f"{name}, mean", [run(ConcordStandardizer(model, transport, "mean", adaptive=part), 0)]))
        work = ConcordStandardizer(model, transport, adaptive=part)
        outs = [run(work, seed) for seed in SEEDS]
        rows.append(row(f"{name}, sample", outs))
    # Width: two samples against each other, as sample and target would agree were the model right about what it knows.
    pair = texture.agreement(texture.features(outs[0]), texture.features(outs[1]))
    rows.append(["two samples of the last", *(f"{pair[c]:.3f}" for c in TEXTURES), *[""] * (1 + len(wanted))])
    began = time.process_time()
    for source, _ in one.judged:
        work(source, generator=SliceSeeds(0, "time"))
    each = (time.process_time() - began) / len(truth)
    kept = "transport kept"
    if adaptive is not None:
        shares = ", ".join(f"{share:.0%}" for share in adaptive.drawn)
        kept = f"adaptive; of what is left over drawn, from the finest band: {shares}"
    if adaptive is not None and transport is not None and learned is not None:
        again = chosen(model, transport, adaptive, held_out(lambda: one.calibration), learned)
        work = ConcordStandardizer(model, transport, "mean", adaptive=again, learned=learned)
        rows.append(row("adaptive and learned, mean", [run(work, 0)]))
        work = replace(work, mode="sample")
        rows.append(row("adaptive and learned, sample", [run(work, seed) for seed in SEEDS]))
    kept += f"; learned residual: {said(explained, used=learned is not None and adaptive is not None)}"
    words = f"{kept}; calibration {seconds:.0f} s, `sample` {each:.2f} s a slice of one core"
    header = ["", *TEXTURES, "RMSE, HU", *(f"to {BAND * (b + 1):.1f}" for b in range(len(wanted)))]
    return words, header, rows


def said(explained: float, *, used: bool) -> str:
    """What a learned residual explains on what was held out."""
    why = "switched off" if explained < LEAST_EXPLAINED else "not used beside a transport"
    return f"explains {explained:.1%} of what is left over" + ("" if used else f", {why}")


def simulated() -> list[list[str]]:
    """Learned residuals of eight simulated patients, on two more: a linear pair, and the iterative-like step."""
    manifest, _ = cohort()
    pairs = [(s.read(0, SLICES), t.read(0, SLICES)) for s, t in pairs_of_manifest(manifest)]
    shrunk = [replace(s, hu=np.rint(shrink_noise(s.hu, s.spacing_mm[1], STRENGTH))) for s, _ in pairs]
    plain = [s for s, _ in pairs]
    found = []
    for name, slabs in (
        ("Br40 to Bl64, linear", pairs),
        (f"Br40\\{STRENGTH} to Br40", list(zip(shrunk, plain, strict=True))),
        (f"Br40\\{STRENGTH} to Bl64", list(zip(shrunk, [t for _, t in pairs], strict=True))),
    ):
        known = slabs[: len(slabs) - round(len(slabs) / 5)]
        model = fit_pairs(lambda kept=known: kept)
        transport, adaptive = fit_concord(model, lambda kept=known: kept)
        mean = ConcordStandardizer(model, transport, "mean", adaptive=adaptive)
        many: Cohort = lambda all_of=slabs: ((str(i), pair) for i, pair in enumerate(all_of))  # noqa: E731
        learned, explained = fit_learned(many, lambda v, work=mean: work(v, generator=SliceSeeds(0, "")))
        kept = "transport" if adaptive is None else "adaptive"
        found.append([name, kept, said(explained, used=learned is not None and adaptive is not None)])
    return found


def part(one: Conversion) -> str:
    """Markdown of a pair."""
    words, header, rows = judged(one)
    return f"### {one.name}\n\n{words}.\n\n" + table(header, rows)


def simulated_part() -> str:
    """Markdown of the simulated patients."""
    return (
        "### Learned residual on simulated patients\n\n"
        "Eight patients of four slices fit transfer and residual, two more say what it explains. The step shrinks\n"
        "noise as iterative reconstruction does ([how far from it](iterative.md)).\n\n"
        + table(["pair", "kept", "learned residual"], simulated())
    )


def main() -> None:
    """Measure and write the section."""
    data = data_folder()
    if data is None:
        raise SystemExit("expected real scans in ../shared/data, found none")
    wanted = sorted(int(number) for number in sys.argv[1:])
    folder = ROOT / "runs" / "nonlinear"
    folder.mkdir(parents=True, exist_ok=True)
    pairs = (*canon(data), *linear(data))
    parts = []
    for number in range(len(pairs) + 1):
        kept = folder / f"{number}.md"
        if not kept.exists() and (not wanted or number in wanted):
            kept.write_text(part(pairs[number]) if number < len(pairs) else simulated_part())
            print(kept.read_text(), flush=True)
        parts.append(kept)
    if wanted:
        return
    body = (
        "## Deep-learning and iterative reconstruction (real)\n\n"
        "CCC per feature over a grid of 28-pixel ROIs in the body (2D, bin width 25 HU), mean of a class; RMSE in the\n"
        "body; noise power relative to the target's by band, cycles/pixel. `sample`: mean of seeds 0 to 2. Calibrated\n"
        "on the lung phantom's scan 2 (8 slices, two of them held out to choose by), judged on scan 3; one phantom.\n"
        "On the other pairs nothing was chosen. The learned residual is fitted to the calibration slices but the last\n"
        "two, on which it is held to explain at least 2 % of what is left over; a hospital would have many pairs.\n\n"
        + "\n\n".join(kept.read_text() for kept in parts)
    )
    write_section("nonlinear", "make bench-nonlinear", body, seed="0 to 2")
    for kept in parts:
        kept.unlink()


if __name__ == "__main__":
    main()
