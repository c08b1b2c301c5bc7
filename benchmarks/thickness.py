"""One slice thickness to another on a real pair: one scan of a head phantom in slices of 1 mm and of 5 mm.

python -m benchmarks.thickness      # writes its page of docs/results; needs ../shared/data

`calibrate` sees the first thick slices and the thin ones around them; `standardize` converts the whole scan.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
from scipy import ndimage

from benchmarks.results import data_folder, table, write_section
from concordct.errors import ConcordctError
from concordct.methods.models import Model, load_model
from concordct.methods.slabs import standardized_slabs
from concordct.methods.standardizer import Mode
from concordct.pipelines.calibrate import calibrate_pairs, pairs_of_paths
from concordct.pipelines.stacked_pairs import stacked
from concordct.pipelines.standardize import Settings, plan, run
from concordct.volumes.find import find_series
from concordct.volumes.restacked import Means, restacked
from concordct.volumes.series import Series
from concordct.volumes.volume import BODY_ABOVE_HU, Volume

#: Calibrated on the first thick slices, judged on the others.
CALIBRATED = 4
#: Uniform plastic: no pixel within this many is steeper, HU per pixel, and three slices in a row agree, HU.
NEAR, STEEP, ALIKE_HU = 9, 10.0, 60.0
MODES: tuple[Mode, ...] = ("mean", "sample")
#: Thin slices that are averaged and interpolated back.
THICKER = (2, 3, 5)


def main() -> None:
    """Measure and write the page."""
    data = data_folder()
    if data is None:
        raise SystemExit("expected real scans in ../shared/data, found none")
    thin, thick = (find_series(data / "philips_thickness" / f"UB_{mm}mm").series[0] for mm in (1, 5))
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        held_out_from = thick.slices[CALIBRATED].position_mm - 2.5
        for series, name in ((thin, "thin"), (thick, "thick")):
            _part(series, place / name, held_out_from)
        body = _thickened(thin, thick, place) + _interpolated(thin, thick, place)
    write_section("thickness", "make bench-thickness", body, seed="0")


def _part(series: Series, folder: Path, below_mm: float) -> None:
    """The slices below a place, as a folder of their own."""
    folder.mkdir()
    for ref in series.slices:
        if ref.position_mm < below_mm:
            shutil.copy(ref.path, folder)


def _standardized(source: Series, model: Path, mode: Mode, output: Path) -> Volume:
    loaded, settings = load_model(model), Settings(mode)
    records = run(plan(source.folder, output, loaded, settings), loaded, output, settings)
    assert records[0].status == "done", records[0].reason
    return find_series(output).series[0].read()


def _calibrated(source: Path, target: Path, output: Path) -> Model:
    calibrate_pairs(pairs_of_paths(source, target), output)
    return load_model(output)


def _thickened(thin: Series, thick: Series, place: Path) -> str:
    model = _calibrated(place / "thin", place / "thick", place / "thicken")
    stacking = model.stacking
    assert stacking is not None
    real, fine = thick.read(), thin.read()
    made = {mode: _standardized(thin, place / "thicken", mode, place / f"thick-{mode}") for mode in MODES}
    steep = np.stack([ndimage.maximum_filter(ndimage.gaussian_gradient_magnitude(z, 1.5), NEAR) for z in real.hu])
    # The verb starts where the thin scan first holds a whole slice; judged are the real slices' own places.
    rows = []
    own = {mode: stacking.of(thin, first_mm=float(real.affine[2, 3] - fine.affine[2, 3])) for mode in MODES}
    skipped = round((own["mean"].affine[2, 3] - real.affine[2, 3]) / real.spacing_mm[0])
    for mode in MODES:
        standardizer = model.standardizer(mode=mode)
        images = np.concatenate([slab.hu for slab in standardized_slabs(own[mode], standardizer, seed=0)])
        for index, image in enumerate(images):
            at = index + skipped
            body = real.hu[at] > BODY_ABOVE_HU
            rows.append(
                [
                    mode,
                    f"{at}",
                    "fitted" if at < CALIBRATED else "**held out**",
                    f"{_rms((_plain(fine, real, at) - real.hu[at])[body]):.2f}",
                    f"{_rms((image - real.hu[at])[body]):.2f}",
                    *_uniform(real, steep, image, at),
                ]
            )
    weights = ", ".join(f"{w:.3f}" for w in stacking.profile.density_per_mm[:6])
    first, last = made["mean"].affine[2, 3], made["mean"].affine[2, 3] + 5.0 * (made["mean"].shape[0] - 1)
    return (
        "## 1 mm to 5 mm (real, Philips head phantom)\n\n"
        f"`calibrate` on the first {CALIBRATED} thick slices (those that lie wholly in the thin scan) and thin ones\n"
        f"around them. Profile: weights at distances of 0 to 5 mm: {weights}; full width at half maximum\n"
        f"{stacking.profile.width_mm:.1f} mm. HU. Uniform plastic: error of the output, noise of the real slice (its\n"
        "difference from its neighbours' mean over the root of 1.5, where three slices show the same plastic).\n"
        "`plain` is the mean of the five nearest thin slices.\n\n"
        + table(
            ["mode", "slice", "", "RMSE in material, plain", "RMSE", "pixels", "error, uniform", "noise, uniform"],
            rows,
        )
        + f"\n\n`standardize` writes {made['mean'].shape[0]} slices of 5 mm at {first:.2f} to {last:.2f} mm: those "
        f"that the thin scan, {fine.affine[2, 3]:.2f} to {fine.affine[2, 3] + fine.shape[0] - 1:.2f} mm, holds\n"
        "wholly.\n\n"
    )


def _interpolated(thin: Series, thick: Series, place: Path) -> str:
    try:
        _calibrated(place / "thick", place / "thin", place / "interpolate")
        verdict = "calibrated"
    except ConcordctError as error:
        verdict = str(error).split(": " + str(place))[0]
    rows = []
    whole = thin.read()
    for count in THICKER:
        weights = np.full(count, 1 / count)
        starts = range(0, thin.shape[0] - count + 1, count)
        means = Means(tuple(starts), (weights,) * len(starts), tuple(k + (count - 1) / 2 for k in starts), float(count))
        ((made, _),), stacking = stacked([(restacked(thin, means), thin)])
        assert stacking is not None
        volume = made.read()
        first = round(float(volume.affine[2, 3] - whole.affine[2, 3]))
        real = whole.hu[first : first + len(volume.hu)]
        body = real > BODY_ABOVE_HU
        smooth = [ndimage.gaussian_filter(hu, (0, 3 / 0.45, 3 / 0.45))[body] for hu in (volume.hu, real)]
        rows.append([f"{count}", f"{np.corrcoef(*smooth)[0, 1]:.4f}", f"{_rms((volume.hu - real)[body]):.1f}"])
    return (
        "## Thick to thin: where it ends (the same scan)\n\n"
        f"`calibrate` from 5 mm to 1 mm says: *{verdict}*.\n\n"
        "Slices of 2, 3 and 5 mm, made here as plain means of the real thin ones, without gap or overlap,\n"
        "interpolated back by the fitted weights (fitted and judged on the same slices; a calibration asks for a\n"
        "correlation of 0.99 below 1.5 lp/cm):\n\n"
        + table(["mm", "correlation with the real 1 mm slices", "RMSE in material, HU"], rows)
    )


def _plain(thin: Volume, thick: Volume, at: int) -> np.ndarray:
    z = thick.affine[2, 3] + at * thick.spacing_mm[0] - thin.affine[2, 3]
    nearest = np.argsort(np.abs(np.arange(thin.shape[0]) * thin.spacing_mm[0] - z))[:5]
    return np.asarray(thin.hu[nearest].mean(axis=0))


def _uniform(thick: Volume, steep: np.ndarray, image: np.ndarray, at: int) -> list[str]:
    if not 0 < at < thick.shape[0] - 1:
        return ["", "", ""]
    three = thick.hu[at - 1 : at + 2]
    where = (
        (steep[at - 1 : at + 2] < STEEP).all(axis=0) & (three[1] > BODY_ABOVE_HU) & (np.ptp(three, axis=0) < ALIKE_HU)
    )
    if not where.any():
        return ["0", "", ""]
    noise = (three[1] - (three[0] + three[2]) / 2)[where] / np.sqrt(1.5)
    return [f"{where.sum()}", f"{(image - three[1])[where].std():.2f}", f"{noise.std():.2f}"]


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values.astype(np.float64) ** 2)))


if __name__ == "__main__":
    main()
