"""Does a transfer fitted inside the body alone carry further than one fitted on whole slices? On the real linear pairs.

python -m benchmarks.window      # writes its page of docs/results; needs ../shared/data

Air of a noisy sharp scan is cut off at -1024 HU and no filter leads there. Windowed: both images fade to air over so
many mm inside the body's rim before their spectra are summed. `calibrate` takes such a transfer for the inside of the
body and that of whole slices for its rim, where a held-out slice says that it serves (`methods/spectral/inside.py`).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy import ndimage

from benchmarks.nonlinear import linear
from benchmarks.real_pairs import rmse
from benchmarks.results import data_folder, table, write_section
from concordct.methods.spectral.fit import fit_pairs
from concordct.methods.spectral.transfer import SpectralStandardizer
from concordct.signal.body import body_mask
from concordct.volumes.seeds import SliceSeeds
from concordct.volumes.volume import AIR_HU, Volume

#: Widths of the fade, mm; 0 for whole slices.
FADES_MM = (0.0, 10.0, 25.0)
#: Pixels from the rim that count as inside.
INSIDE = 8


def windowed(volume: Volume, like: Volume, fade_mm: float) -> Volume:
    """The volume, faded to air at the rim of another one's body."""
    if not fade_mm:
        return volume
    body = body_mask(like.hu)
    away = np.stack([ndimage.distance_transform_edt(one, sampling=like.spacing_mm[1:]) for one in body])
    weight = 0.5 - 0.5 * np.cos(np.pi * np.clip(away / fade_mm, 0, 1))
    return volume.with_hu((volume.hu - AIR_HU) * weight + AIR_HU)


def main() -> None:
    """Measure and write the page."""
    data = data_folder()
    if data is None:
        raise SystemExit("expected real scans in ../shared/data, found none")
    rows = []
    for one in linear(data):
        cells: list[list[str]] = [[], []]
        works = []
        for fade in FADES_MM:
            slabs = [(windowed(s, t, fade), windowed(t, t, fade)) for s, t in one.calibration]
            model = replace(fit_pairs(lambda slabs=slabs: slabs), inner=None)  # type: ignore[misc]
            works.append(SpectralStandardizer(model, "mean"))
        calibrated = fit_pairs(lambda: one.calibration)  # noqa: B023 (called here)
        works.append(SpectralStandardizer(calibrated, "mean"))
        for work in works:
            made = np.concatenate([work(s, generator=SliceSeeds(0, "")).hu for s, _ in one.judged])
            truth = np.concatenate([t.hu for _, t in one.judged])
            body = body_mask(truth)
            inside = np.stack([ndimage.binary_erosion(each, iterations=INSIDE) for each in body])
            cells[0].append(f"{rmse(made, truth, body):.2f}")
            cells[1].append(f"{rmse(made, truth, inside):.2f}")
        rows.append([one.name, "two" if calibrated.inner is not None else "one", *cells[0], *cells[1]])
    names = ["whole slices", *(f"fade of {fade:g} mm" for fade in FADES_MM[1:]), "as calibrated"]
    header = ["pair", "transfers", *(f"body: {name}" for name in names), *(f"inside: {name}" for name in names)]
    body_text = (
        "## Transfers fitted on whole slices and inside the body (real, other slices judged)\n\n"
        f"RMSE of mode `mean`, HU, over the body and more than {INSIDE} pixels inside it. As calibrated: one\n"
        "transfer, or two, faded by 10 mm for the inside and of whole slices for the rim, where that lowers the error\n"
        "in the body of a held-out slice of the calibration by 2 % (a single slice is judged on itself).\n\n"
        + table(header, rows)
    )
    write_section("window", "make bench-window", body_text, seed="none")


if __name__ == "__main__":
    main()
