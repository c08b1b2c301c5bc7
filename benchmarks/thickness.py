"""Thin slices to thick ones on a real pair: one scan of a head phantom in slices of 1 mm and of 5 mm.

python -m benchmarks.thickness      # writes its section of docs/results.md; needs ../shared/data
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from benchmarks.results import data_folder, table, write_section
from concordct.methods.spectral.thickness import fit_profile, thicken
from concordct.volumes.find import find_series
from concordct.volumes.volume import BODY_ABOVE_HU, Volume

#: Calibrated on the first thick slices, judged on the others.
CALIBRATED = 4
#: Uniform plastic: no pixel within this many is steeper, HU per pixel, and three slices in a row agree, HU.
NEAR, STEEP, ALIKE_HU = 9, 10.0, 60.0


def main() -> None:
    """Measure and write the section."""
    data = data_folder()
    if data is None:
        raise SystemExit("expected real scans in ../shared/data, found none")
    thin, thick = (find_series(data / "philips_thickness" / f"UB_{mm}mm").series[0].read() for mm in (1, 5))
    profile = fit_profile(thin, thick.slab(0, CALIBRATED))
    first = float(thick.affine[2, 3] - thin.affine[2, 3])
    made = thicken(thin, profile, spacing_mm=thick.spacing_mm[0], first_mm=first)
    skipped = round((made.affine[2, 3] - thick.affine[2, 3]) / thick.spacing_mm[0])
    steep = np.stack([ndimage.maximum_filter(ndimage.gaussian_gradient_magnitude(z, 1.5), NEAR) for z in thick.hu])
    rows = []
    for index, image in enumerate(made.hu):
        at = index + skipped
        body = thick.hu[at] > BODY_ABOVE_HU
        rows.append(
            [
                f"{at}",
                "fitted" if at < CALIBRATED else "**held out**",
                f"{_rms((_plain(thin, thick, at) - thick.hu[at])[body]):.2f}",
                f"{_rms((image - thick.hu[at])[body]):.2f}",
                *_uniform(thick, steep, image, at),
            ]
        )
    weights = ", ".join(f"{w:.3f}" for w in profile.density_per_mm[:6])
    body_text = (
        "## Slice thickness: 1 mm to 5 mm (real, Philips head phantom)\n\n"
        f"The profile is fitted on the first {CALIBRATED} thick slices (those that lie wholly in the thin scan);\n"
        f"weights at distances of 0 to 5 mm: {weights}; full width at half maximum\n"
        f"{profile.width_mm:.1f} mm. HU. Uniform plastic: error of the output, noise of the real 5 mm slice (its\n"
        "difference from its neighbours' mean over the root of 1.5, where three slices show the same plastic).\n"
        "`plain` is the mean of the five nearest thin slices.\n\n"
        + table(
            ["slice", "", "RMSE in material, plain", "RMSE in material", "pixels", "error, uniform", "noise, uniform"],
            rows,
        )
        + f"\n\nPlaces of the slices: {made.affine[2, 3]:.2f} to "
        f"{made.affine[2, 3] + (len(made.hu) - 1) * made.spacing_mm[0]:.2f} mm; of the scanner's: "
        f"{thick.affine[2, 3] + skipped * thick.spacing_mm[0]:.2f} to "
        f"{thick.affine[2, 3] + (skipped + len(made.hu) - 1) * thick.spacing_mm[0]:.2f} mm."
    )
    write_section("thickness", "make bench-thickness", body_text, seed="none")


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
