"""The spectral method on the real pairs: HU error, noise power and texture, on slices it was not calibrated on.

python -m benchmarks.real_pairs      # writes its page of docs/results; needs ../shared/data
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.results import data_folder, table, write_section
from concordct.agreement.texture import Texture
from concordct.judging.stages import stored
from concordct.methods.spectral.fit import fit_pairs
from concordct.methods.spectral.transfer import SpectralModel, SpectralStandardizer
from concordct.methods.spectral.unpaired import fit_unpaired
from concordct.pipelines.evaluate import FEATURES
from concordct.signal.body import body_mask
from concordct.signal.spectra import MM_PER_CM, noise_power, power_ratio
from concordct.volumes.files import open_volume_file
from concordct.volumes.find import find_series
from concordct.volumes.seeds import SliceSeeds
from concordct.volumes.volume import BODY_ABOVE_HU, Volume

SEEDS = range(5)
#: A 12-bit CT image holds these HU; both pairs were stored so.
STORED_HU = (-1024, 3071)

Hu = NDArray[np.float32]


def rmse(a: Hu, b: Hu, mask: NDArray[np.bool_]) -> float:
    """Root mean square difference inside a mask, HU."""
    return float(np.sqrt(np.mean((a - b)[mask].astype(np.float64) ** 2)))


def philips(data: Path) -> str:
    """Both directions of the head phantom."""
    scans = {k: find_series(data / f"philips_head_phantom/{k}_1mm").series[0] for k in ("UB", "YA")}
    whole = {k: scan.read() for k, scan in scans.items()}
    material = whole["UB"].hu > BODY_ABOVE_HU
    inner = np.zeros_like(material)
    inner[6:-1] = material[6:-1]
    judged = material.copy()
    judged[:6] = False
    rows = []
    for source, target, aim in (("YA", "UB", 21.0), ("UB", "YA", 54.0)):
        model = fit_pairs(lambda s=source, t=target: [(scans[s].read(0, 6), scans[t].read(0, 6))])
        out = SpectralStandardizer(model, "mean")(whole[source], generator=SliceSeeds(0, "benchmark"))
        alone = SpectralStandardizer(model, "mean", use_neighbours=False)(
            whole[source], generator=SliceSeeds(0, "benchmark")
        )
        truth = whole[target].hu
        pixel = whole[source].spacing_mm[1]
        rows.append(
            [
                f"{source} to {target}",
                f"{rmse(whole[source].hu, truth, judged):.1f}",
                f"**{rmse(stored(out.hu, whole[source].hu), truth, judged):.1f}**",
                f"{rmse(stored(out.hu, whole[source].hu), truth, inner):.1f}",
                f"{rmse(stored(alone.hu, whole[source].hu), truth, judged):.1f}",
                f"{aim:g}",
                f"{model.limits.half_lp_cm:.2f} ({model.limits.half_lp_cm * pixel / MM_PER_CM:.3f})",
            ]
        )
    return (
        "## Philips head phantom (real, Ingenuity CT, 1 mm, iDose in UB)\n\n"
        "RMSE in HU over the head's material (UB above -500 HU), `--mode mean`; calibrated on slices 0-5, judged on\n"
        "6-11. UB mixes neighbouring slices (taps 0.08, 0.84, 0.08), which one slice alone cannot follow; slice 11\n"
        "has no neighbour above and is judged without.\n\n"
        + table(
            [
                "",
                "input",
                "output",
                "output, slices 6-10",
                "without neighbours",
                "aim",
                "limit, lp/cm (cycles/pixel)",
            ],
            rows,
        )
    )


def mayo_pairs(data: Path) -> list[dict[str, Volume]]:
    """The five slices, "smooth" and "sharp" each."""
    folder = data / "mayo_L067_kernel_pairs"
    names = sorted(path.name.split("_")[1] for path in folder.glob("sharp_*.mha"))
    return [{k: open_volume_file(folder / f"{k}_{name}").read() for k in ("smooth", "sharp")} for name in names]


Fit = Callable[[list[dict[str, Volume]], str, str], SpectralModel]


def paired(slices: list[dict[str, Volume]], source: str, target: str) -> SpectralModel:
    """Calibrated from pairs."""
    return fit_pairs(lambda: [(each[source], each[target]) for each in slices])


def unpaired(slices: list[dict[str, Volume]], source: str, target: str) -> SpectralModel:
    """Calibrated from slices 0-1 in one kernel and slice 1-2 in the other, as if they were strangers."""
    return fit_unpaired(
        lambda: [(str(i), slices[i][source]) for i in (0, 1)], lambda: [(str(i), slices[i][target]) for i in (1, 2)]
    )


def standardized(model: SpectralModel, mode: str, judged: Sequence[Volume], seed: int) -> Hu:
    """[z, y, x] of the judged slices, each a scan of its own."""
    work = SpectralStandardizer(model, mode)  # type: ignore[arg-type]
    return np.concatenate(
        [stored(work(one, generator=SliceSeeds(seed, f"slice {i}")).hu, one.hu) for i, one in enumerate(judged)]
    )


def texture_of(volume: Volume, target: Hu, body: NDArray[np.bool_]) -> Texture:
    """Over a grid of ROIs in the body of the judged slices; `volume` is one of them."""
    found = Texture.of(volume, target, body, FEATURES)
    assert found is not None, "no ROI fits into the body"
    return found


def mayo(data: Path) -> str:
    """Both directions of the abdomen, both modes, paired and unpaired."""
    pairs = mayo_pairs(data)
    parts = [
        "## Mayo abdomen L067 (real, Siemens B30 and D45, 3 mm)\n\n"
        "Calibrated on the first three slices, judged on the last two, inside the body (the largest filled region\n"
        "above -500 HU). CCC per feature over a grid of 28-pixel ROIs, averaged by class (2D, bin width 25 HU);\n"
        f"`sample` is the mean of {len(SEEDS)} seeds with their range. The pixel spacing is not recorded.\n"
    ]
    for source, target, aim in (("smooth", "sharp", 17.6), ("sharp", "smooth", 3.6)):
        judged = [each[source] for each in pairs[3:]]
        before = np.concatenate([one.hu for one in judged])
        truth = np.concatenate([each[target].hu for each in pairs[3:]])
        body = body_mask(before)
        texture = texture_of(judged[0], truth, body)
        classes = list(texture.ccc(before))
        rows = [_row("input", [before], truth, body, texture, classes)]
        powers = {"target": truth, "input": before}
        fits: list[tuple[str, Fit, list[dict[str, Volume]]]] = [
            ("", paired, pairs[:3]),
            ("one slice, ", paired, pairs[:1]),
            ("unpaired, ", unpaired, pairs[:3]),
        ]
        for label, fit, slices in fits:
            model = fit(slices, source, target)
            for mode, seeds in (("mean", [0]), ("sample", list(SEEDS))):
                outs = [standardized(model, mode, judged, seed) for seed in seeds]
                rows.append(_row(f"{label}{mode}", outs, truth, body, texture, classes))
                if not label:
                    powers[mode] = outs[0]
        parts.append(
            f"### {source} to {target} (aim: RMSE below {aim:g} HU, `mean`)\n\n"
            + table(["calibration, mode", "RMSE, HU", *(f"CCC {name}" for name in classes)], rows)
            + "\n\nNoise power relative to the target's, by band (patches of 32 pixels in the body), with its\n"
            "standard error:\n\n" + _bands(powers, body)
        )
    return "\n\n".join(parts)


def _row(
    name: str, outs: list[Hu], truth: Hu, body: NDArray[np.bool_], texture: Texture, classes: list[str]
) -> list[str]:
    errors = [rmse(out, truth, body) for out in outs]
    cccs = [texture.ccc(out) for out in outs]

    def shown(values: list[float], digits: int) -> str:
        if len(values) == 1:
            return f"{values[0]:.{digits}f}"
        return f"{np.mean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"

    return [name, shown(errors, 2), *(shown([ccc[one] for ccc in cccs], 3) for one in classes)]


def _bands(images: dict[str, Hu], body: NDArray[np.bool_]) -> str:
    powers = {name: noise_power(hu, body, spacing_mm=(1.0, 1.0)) for name, hu in images.items()}
    edges = powers["target"].edges_cycles_per_pixel
    ratios = {name: power_ratio(power, powers["target"]) for name, power in powers.items() if name != "target"}
    header = ["cycles/pixel", *(f"to {high:.2f}" for high in edges[1:])]
    rows = [[name, *(f"{r:.2f} ± {e:.2f}" for r, e in zip(*each, strict=True))] for name, each in ratios.items()]
    return table(header, rows)


def main() -> None:
    """Measure and write the section."""
    data = data_folder()
    if data is None:
        sys.exit("real CT data not found: set CONCORDCT_DATA or place ../shared/data beside the checkout")
    write_section(
        "real-pairs", "make bench-real-pairs", philips(data) + "\n\n" + mayo(data), seed=f"0 to {len(SEEDS) - 1}"
    )


if __name__ == "__main__":
    main()
