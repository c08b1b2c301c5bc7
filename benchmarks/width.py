"""Are samples as wide as they should be, and what would it cost? On the real linear pairs.

python -m benchmarks.width      # writes its page of docs/results; needs ../shared/data

Where target and source are correlated by gamma, noise raised to the target's power agrees with the target by gamma and
with another sample by 1; noise that follows from the source, with the rest drawn, agrees with either by gamma^2.
"""

from __future__ import annotations

import numpy as np

from benchmarks.nonlinear import Conversion, linear
from benchmarks.real_pairs import Texture, rmse
from benchmarks.results import data_folder, table, write_section
from concordct.agreement import concordance as agreement
from concordct.judging.stages import stored
from concordct.methods.concord.chosen import TEXTURES
from concordct.methods.concord.standardizer import ConcordStandardizer
from concordct.methods.concord.transport import fit_transport
from concordct.methods.spectral.fit import fit_pairs
from concordct.signal.body import body_mask
from concordct.volumes.seeds import SliceSeeds

#: Shares drawn of what could be raised; the first is what `calibrate` makes.
SHARES = (0.0, 0.5, 1.0)
SEEDS = (0, 1)


def rows(one: Conversion) -> list[list[str]]:
    """Agreement of samples with the target and with each other, for each share."""
    model = fit_pairs(lambda: one.calibration)
    truth = np.concatenate([target.hu for _, target in one.judged])
    body = body_mask(truth)
    texture = Texture(one.judged[0][1], truth, body)
    found = []
    for share in SHARES:
        work = ConcordStandardizer(model, fit_transport(model, lambda: one.calibration, drawn_share=share))
        made = []
        for seed in SEEDS:
            outs = [work(source, generator=SliceSeeds(seed, f"slab {i}")) for i, (source, _) in enumerate(one.judged)]
            kept = zip(outs, one.judged, strict=True)
            made.append(np.concatenate([stored(out.hu, source.hu, out.reach_hu) for out, (source, _) in kept]))
        features = [texture.features(hu) for hu in made]
        pairs = [(features[0], texture.target), (features[1], texture.target), (features[0], features[1])]
        means = [agreement.mean_by_class(agreement.ccc_per_feature(*pair), texture.classes) for pair in pairs]
        cells = [
            f"{(means[0][name].mean + means[1][name].mean) / 2:.3f} / {means[2][name].mean:.3f}" for name in TEXTURES
        ]
        found.append([one.name, f"{share:.0%}", *cells, f"{rmse(made[0], truth, body):.1f}"])
    return found


def main() -> None:
    """Measure and write the page."""
    data = data_folder()
    if data is None:
        raise SystemExit("expected real scans in ../shared/data, found none")
    lines = [row for one in linear(data) for row in rows(one)]
    body = (
        "## Width of samples (real, linear pairs)\n\n"
        "CCC of a sample with the target / of two samples, by class (28-pixel ROIs, 2D, bin width 25 HU), mean of two\n"
        "seeds; calibrated and judged as on the page of non-linear pairs. Drawn: share, in powers of gamma, of the\n"
        "noise that could be raised from the source's own and is drawn instead. `calibrate` draws 0 %: the least\n"
        "error, and samples that agree better with each other than with the target.\n\n"
        + table(["pair", "drawn", *TEXTURES, "RMSE of a sample, HU"], lines)
    )
    write_section("width", "make bench-width", body, seed="0 and 1")


if __name__ == "__main__":
    main()
