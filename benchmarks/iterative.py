"""How far the virtual scanner's iterative-like step is from real deep-learning and iterative reconstruction.

python -m benchmarks.iterative      # writes its page of docs/results; needs ../shared/data

Noise is what two scans of one object that did not move differ by, over the root of 2: real, the Canon lung phantom's
scans 2 and 3; simulated, the two scans of a test patient of `benchmarks.papers_cohort`, each with the step applied.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from benchmarks.papers_cohort import cohort
from benchmarks.results import data_folder, table, write_section
from concordct.scanner.nonlinear import shrink_noise
from concordct.signal.body import body_mask
from concordct.volumes.find import find_series
from concordct.volumes.scans import one_scan

#: Test patients and slices of each; strengths of the step.
PATIENTS, SLICES, STRENGTHS = (14, 15, 16), 4, (1, 3, 5)
#: An edge is steeper than this on the mean of both scans, smoothed by 1 mm; near and far from one, mm.
EDGE_HU_MM, NEAR_MM, FAR_MM = 40.0, 2.0, 5.0
#: HU of soft tissue or plastic, of lung or foam, of bone or dense plastic, on the smoothed mean.
SOFT, LUNG, DENSE = (-200.0, 200.0), (-980.0, -600.0), (300.0, 1500.0)
#: Steps that count as weak and strong, HU.
WEAK, STRONG = (60.0, 200.0), (500.0, 1400.0)

Images = NDArray[np.float32]


def row(name: str, first: Images, second: Images, pixel_mm: float) -> list[str]:
    """What two scans of one object show of the noise and the edges of their reconstruction."""
    noise, mean = (first - second) / np.sqrt(2), (first + second) / 2
    sigma = (0, 1 / pixel_mm, 1 / pixel_mm)
    smooth = ndimage.gaussian_filter(mean, sigma)
    body = np.stack([ndimage.binary_erosion(one, iterations=4) for one in body_mask(mean)])
    steep = np.hypot(*np.gradient(smooth, pixel_mm, axis=(1, 2)))
    away = np.stack([ndimage.distance_transform_edt(one < EDGE_HU_MM, sampling=pixel_mm) for one in steep])

    def deviation(where: NDArray[np.bool_]) -> float:
        return float(noise[where].std()) if where.sum() > 500 else float("nan")

    def of(hu: tuple[float, float]) -> NDArray[np.bool_]:
        return np.asarray(body & (smooth > hu[0]) & (smooth < hu[1]))

    far = of(SOFT) & (away > FAR_MM)
    level = deviation(far)
    fine = noise - ndimage.gaussian_filter(noise, sigma)
    tails = [float(np.mean(np.abs(one[far])) / one[far].std()) for one in (noise, fine)]
    width = [_width(mean, smooth, steep, body, pixel_mm, step) for step in (WEAK, STRONG)]
    numbers = [
        level,
        deviation(of(SOFT) & (away < NEAR_MM)) / level,
        deviation(of(LUNG) & (away > FAR_MM)) / level,
        deviation(of(DENSE)) / level,
        float(fine[far].var() / noise[far].var()),
        *tails,
        *width,
        width[0] / width[1],
    ]
    return [name, f"{numbers[0]:.1f}", *("-" if not np.isfinite(v) else f"{v:.3g}" for v in numbers[1:])]


def _width(
    mean: Images,
    smooth: Images,
    steep: NDArray[np.floating],
    body: NDArray[np.bool_],
    pixel_mm: float,
    step: tuple[float, float],
) -> float:
    """Median of height over steepest slope, mm, at ridges of the gradient whose height lies in a range."""
    reach = 2 * round(3 / pixel_mm) + 1
    height = ndimage.maximum_filter(smooth, (1, reach, reach)) - ndimage.minimum_filter(smooth, (1, reach, reach))
    ridge = steep >= ndimage.maximum_filter(steep, (1, reach, reach))
    gentle = ndimage.gaussian_filter(mean, (0, 0.4 / pixel_mm, 0.4 / pixel_mm))
    slope = np.hypot(*np.gradient(gentle, pixel_mm, axis=(1, 2)))
    slope = ndimage.maximum_filter(slope, (1, 3, 3))
    where = ridge & body & (height > step[0]) & (height < step[1])
    return float(np.median(height[where] / slope[where])) if where.sum() > 20 else float("nan")


def main() -> None:
    """Measure and write the page."""
    data = data_folder()
    if data is None:
        raise SystemExit("expected real scans in ../shared/data, found none")
    rows = []
    for name in ("DLR", "IR"):
        scans = [find_series(data / "canon_lung_phantom" / f"{name}_{k}").series[0].read() for k in (2, 3)]
        rows.append(row(f"real {name} (Canon lung phantom)", scans[0].hu, scans[1].hu, scans[0].spacing_mm[2]))
    manifest, repeats = cohort()
    both: list[list[Images]] = [[], []]
    for number in PATIENTS:
        for side, (place, scan) in enumerate(((manifest.parent, 0), (repeats.parent, 1))):
            volume = one_scan(place / f"patient-{number:04d}" / f"scan-{scan}" / "1mm" / "Br40.nii.gz").read()
            both[side].append(volume.hu[:SLICES])
            pixel = volume.spacing_mm[2]
    first, second = (np.concatenate(side) for side in both)
    rows.append(row("simulated `Br40`, filtered back projection", first, second, pixel))
    for strength in STRENGTHS:
        rows.append(
            row(
                f"simulated `Br40`, step {strength}",
                shrink_noise(first, pixel, strength),
                shrink_noise(second, pixel, strength),
                pixel,
            )
        )
    header = [
        "",
        "noise, HU",
        "near edges",
        "in lung or foam",
        "in dense",
        "fine share",
        "tails",
        "tails, fine",
        "weak edges, mm",
        "strong edges, mm",
        "weak over strong",
    ]
    weak, strong = (f"{low:g} to {high:g}" for low, high in (WEAK, STRONG))
    body = f"""## The iterative-like step beside real non-linear reconstruction

Noise: standard deviation in flat soft material more than 5 mm from edges; the next three columns are relative to it
(within 2 mm of edges, in lung or foam, in bone or dense plastic). Fine share: variance above a Gaussian of 1 mm. Tails:
mean absolute over standard deviation (0.798 for Gaussian noise). Edges: height over steepest slope, of steps of
{weak} and of {strong} HU. The real phantom and the simulated patients are other objects, so the rows of one
object are to be compared with each other first.

{table(header, rows)}
"""
    write_section("iterative", "make bench-iterative", body, seed="7")


if __name__ == "__main__":
    main()
