"""Are samples as wide as they should be, and what does it cost? Calibrations of both widths, on the real pairs.

python -m benchmarks.width      # writes its page of docs/results; needs ../shared/data

Where target and source are correlated by gamma, noise raised to the target's power agrees with the target by gamma and
with another sample by 1; noise that follows from the source, with the rest drawn, agrees with either by gamma^2. The
local gain is not known either. Calibrated for honest width both are drawn, as far as a slice that was left out says.
"""

from __future__ import annotations

import time

import numpy as np

from benchmarks.nonlinear import Conversion, canon, linear
from benchmarks.real_pairs import rmse, texture_of
from benchmarks.results import data_folder, table, write_section
from concordct.judging.stages import stored
from concordct.methods.concord.chosen import TEXTURES
from concordct.methods.concord.fit import fit_concord
from concordct.methods.concord.honest import widened
from concordct.methods.concord.standardizer import ConcordStandardizer
from concordct.methods.spectral.fit import fit_pairs
from concordct.signal.body import body_mask
from concordct.volumes.seeds import SliceSeeds

SEEDS = (0, 1)


def rows(one: Conversion) -> list[list[str]]:
    """Agreement of samples with the target and with each other, for each width."""
    model = fit_pairs(lambda: one.calibration)
    transport, adaptive = fit_concord(model, lambda: one.calibration)
    began = time.process_time()
    honest = widened(model, transport, adaptive, lambda: one.calibration)
    seconds = time.process_time() - began
    truth = np.concatenate([target.hu for _, target in one.judged])
    body = body_mask(truth)
    texture = texture_of(one.judged[0][1], truth, body)
    found = []
    for name, parts in (("agreement", (transport, adaptive, None)), ("honest", honest)):
        work = ConcordStandardizer(model, parts[0], adaptive=parts[1], width=parts[2])
        made = []
        for seed in SEEDS:
            outs = [work(source, generator=SliceSeeds(seed, f"slab {i}")) for i, (source, _) in enumerate(one.judged)]
            kept = zip(outs, one.judged, strict=True)
            made.append(np.concatenate([stored(out.hu, source.hu, out.reach_hu) for out, (source, _) in kept]))
        features = [texture.features(hu) for hu in made]
        pairs = [(features[0], texture.target), (features[1], texture.target), (features[0], features[1])]
        means = [texture.agreement(*pair) for pair in pairs]
        target = np.array([(means[0][name] + means[1][name]) / 2 for name in TEXTURES])
        other = np.array([means[2][name] for name in TEXTURES])
        found.append(
            [
                one.name,
                name,
                *(f"{a:.3f} / {b:.3f}" for a, b in zip(target, other, strict=True)),
                f"{max(other - target, key=abs):+.3f}",
                f"{rmse(made[0], truth, body):.1f}",
                "" if name == "agreement" else f"{seconds:.0f}",
            ]
        )
    return found


def main() -> None:
    """Measure and write the page."""
    data = data_folder()
    if data is None:
        raise SystemExit("expected real scans in ../shared/data, found none")
    lines = []
    for one in (*canon(data), *linear(data)):
        lines += rows(one)
        print(*lines[-2:], sep="\n", flush=True)
    body = (
        "## Width of samples (real)\n\n"
        "CCC of a sample with the target / of two samples, by class (28-pixel ROIs, 2D, bin width 25 HU), mean of two\n"
        "seeds; calibrated and judged as on the page of non-linear pairs. Where a sample knows what it says it knows,\n"
        "both are the same. `calibrate` prefers agreement; `calibrate --width honest` draws what is not known, by a\n"
        "calibration slice that was left out. Widest gap: the difference that is largest in any class. Seconds: what\n"
        "honest width adds to a calibration, CPU.\n\n"
        + table(["pair", "width", *TEXTURES, "widest gap", "RMSE of a sample, HU", "seconds more"], lines)
    )
    write_section("width", "make bench-width", body, seed="0 and 1")


if __name__ == "__main__":
    main()
