"""Method concord on real pairs: calibrated on one slice or three, judged on others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.flagship_cohorts import FOLDER, calibrate
from benchmarks.real_pairs import mayo_pairs, rmse, texture_of
from benchmarks.results import data_folder, table, write_section
from concordct.agreement.texture import Texture
from concordct.judging.stages import stored
from concordct.methods.concord.bundle import METHOD as CONCORD
from concordct.methods.models import Model, load_model
from concordct.methods.standardizer import Mode
from concordct.signal.body import body_mask
from concordct.signal.spectra import noise_power, power_ratio
from concordct.volumes.files import write_volume_file
from concordct.volumes.find import find_series
from concordct.volumes.scans import one_scan
from concordct.volumes.seeds import SliceSeeds
from concordct.volumes.volume import BODY_ABOVE_HU, Volume

SEEDS = (0, 1, 2)
TEXTURES = ("glcm", "glrlm", "glszm", "gldm", "ngtdm")
#: Narrow patches fit into parts of the body; bands of a tenth of a cycle a pixel.
PATCH, BAND = 16, 0.1

Hu = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Real:
    """One direction of a real pair.

    Attributes
    ----------
    calibration : slabs (source, target); the first alone is the one-slice calibration.
    judged : source slabs, each a scan of its own, with as many targets.
    material : [z, y, x] where HU and noise are judged, the judged slabs one after the other.
    """

    name: str
    calibration: list[tuple[Volume, Volume]]
    judged: list[tuple[Volume, Volume]]
    material: Mask

    @property
    def truth(self) -> Hu:
        """[z, y, x] of the judged targets."""
        return np.concatenate([target.hu for _, target in self.judged])

    @property
    def before(self) -> Hu:
        """[z, y, x] of the judged sources."""
        return np.concatenate([source.hu for source, _ in self.judged])


def mayo(data: Path) -> list[Real]:
    """Both directions of the abdomen: three slices to calibrate on, two to judge."""
    pairs = mayo_pairs(data)
    found = []
    for source, target in (("smooth", "sharp"), ("sharp", "smooth")):
        both = [(one[source], one[target]) for one in pairs]
        body = body_mask(np.concatenate([one.hu for one, _ in both[3:]]))
        found.append(Real(f"Mayo abdomen, {source} to {target}", both[:3], both[3:], body))
    return found


def philips(data: Path) -> list[Real]:
    """Both directions of the head phantom: slices 0-2 to calibrate on, 6-11 to judge."""
    scans = {name: find_series(data / f"philips_head_phantom/{name}_1mm").series[0].read() for name in ("UB", "YA")}
    material = scans["UB"].hu[6:] > BODY_ABOVE_HU
    found = []
    for source, target in (("YA", "UB"), ("UB", "YA")):
        cut = [(scans[source].slab(z, z + 1), scans[target].slab(z, z + 1)) for z in range(3)]
        judged = [(scans[source].slab(6, 12), scans[target].slab(6, 12))]
        found.append(Real(f"Philips head phantom, {source} to {target}", cut, judged, material))
    return found


def calibrated(method: str, real: Real, slices: int) -> Path:
    """A model calibrated on the first slices, through files as a user would."""
    name = real.name.lower().replace(" ", "-").replace(",", "")
    place = FOLDER / "calibration" / "real" / name
    pairs = []
    for index, pair in enumerate(real.calibration[:slices]):
        files = [place / f"{index}-{side}.nii.gz" for side in ("source", "target")]
        for file, volume in zip(files, pair, strict=True):
            if not file.exists():
                place.mkdir(parents=True, exist_ok=True)
                write_volume_file(file, [volume])
        pairs.append((one_scan(files[0]), one_scan(files[1])))
    return calibrate(method, pairs, FOLDER / "models" / "real" / f"{name}-{slices}")


def standardized(model: Model, mode: Mode, real: Real, seed: int) -> Hu:
    """[z, y, x] of the judged slabs."""
    work = model.standardizer(mode=mode)
    made = [work(source, generator=SliceSeeds(seed, f"slab {index}")) for index, (source, _) in enumerate(real.judged)]
    kept = zip(made, real.judged, strict=True)
    return np.concatenate([stored(out.hu, source.hu, out.reach_hu) for out, (source, _) in kept])


def parts_of(body: Mask) -> dict[str, Mask]:
    """The body's front and back half, its rim of 30 pixels and what is left, [z, y, x] each."""
    from scipy import ndimage

    front, rim = np.zeros_like(body), np.zeros_like(body)
    for z, inside in enumerate(body):
        rows = np.nonzero(inside)[0]
        if rows.size:
            front[z] = inside & (np.arange(inside.shape[0]) < np.median(rows))[:, None]
            rim[z] = inside & (ndimage.distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1] < 30)
    return {"whole": body, "front half": front, "back half": body & ~front, "rim": rim, "core": body & ~rim}


def bands(images: dict[str, Hu], truth: Hu, body: Mask) -> str:
    """Noise power relative to the target's, by part of the body."""
    rows = []
    for part, mask in parts_of(body).items():
        wanted = noise_power(truth, mask, spacing_mm=(1.0, 1.0), patch=PATCH, band_width=BAND)
        if not len(wanted.nps_hu2_mm2):
            continue
        for name, hu in images.items():
            power = noise_power(hu, mask, spacing_mm=(1.0, 1.0), patch=PATCH, band_width=BAND)
            ratio, error = power_ratio(power, wanted)
            rows.append([part, name, *(f"{r:.2f} ± {e:.2f}" for r, e in zip(ratio, error, strict=True))])
    header = ["", "", *(f"to {BAND * (band + 1):.1f}" for band in range(round(0.5 / BAND)))]
    return table(header, rows)


def judged(real: Real, rows: Sequence[tuple[str, Path, Mode]], seeds: Sequence[int]) -> str:
    """The table of one direction: HU error, texture where there is tissue, noise by part."""
    truth, before = real.truth, real.before
    tissue = real.name.startswith("Mayo")
    texture = texture_of(real.judged[0][0], truth, real.material) if tissue else None
    lines = [_row("input", [before], truth, real.material, texture)]
    images = {"input": before}
    for name, path, mode in rows:
        model = load_model(path)
        outs = [standardized(model, mode, real, seed) for seed in (seeds if mode == "sample" else [0])]
        lines.append(_row(name, outs, truth, real.material, texture))
        images[name] = outs[0]
    text = table(["", "RMSE, HU", *(f"CCC {one}" for one in TEXTURES if tissue)], lines)
    if tissue:
        text += "\n\nNoise power relative to the target's by band, cycles/pixel, with its standard error:\n\n"
        text += bands({k: v for k, v in images.items() if k != "input" and "3 slices" not in k}, truth, real.material)
    return f"### {real.name}\n\n{text}"


def _row(name: str, outs: list[Hu], truth: Hu, mask: Mask, texture: Texture | None) -> list[str]:
    error = f"{np.mean([rmse(out, truth, mask) for out in outs]):.2f}"
    if texture is None:
        return [name, error]
    cccs = [texture.ccc(out) for out in outs]
    return [name, error, *(_mean([ccc[one] for ccc in cccs]) for one in TEXTURES)]


def _mean(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def run(methods: tuple[str, ...], quick: bool = False) -> None:
    """Measure and write the section; `quick` is one seed, calibrated on one slice."""
    seeds = SEEDS[:1] if quick else SEEDS
    data = data_folder()
    if data is None:
        print("real pairs: no data, skipped", flush=True)
        return
    parts = []
    for real in (*mayo(data), *philips(data)):
        rows: list[tuple[str, Path, Mode]] = []
        for slices in (1,) if quick else (1, 3):
            for method in methods:
                path = calibrated(method, real, slices)
                label = f"{method}, {slices} slice{'s' if slices > 1 else ''}"
                if method != CONCORD:
                    rows.append((f"{label}, mean", path, "mean"))
                rows.append((f"{label}, sample", path, "sample"))
        parts.append(judged(real, rows, seeds))
    body = (
        "## Method concord on real pairs\n\n"
        "Calibrated on the first slice or the first three, each alone,\n"
        "judged on slices 4-5 (Mayo) and 6-11 (Philips); texture over a grid of 28-pixel ROIs in the body, 2D, bin\n"
        f"width 25 HU; `sample` is the mean of {len(seeds)} seed(s) with their range. The head phantom\n"
        "has no tissue. In mode `mean` concord is the spectral transfer.\n\n"
    ) + "\n\n".join(parts)
    write_section("flagship-real", "python -m benchmarks.flagship --part real", body, seed=", ".join(map(str, seeds)))
