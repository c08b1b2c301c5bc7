"""IBSI-1's benchmark: the five configurations and the digital phantom, run against the published reference values.

Source: Zwanenburg et al. 2020, doi:10.1148/radiol.2020191145, supplement; configurations as in its Table E1.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from concordct.errors import ConcordctError
from concordct.radiomics.definitions.ibsi import FAMILIES, Ibsi, extract_ibsi
from concordct.volumes.files import open_volume_file
from concordct.volumes.masks import read_labels
from concordct.volumes.volume import Volume

ALL = tuple(FAMILIES)
PLANAR = ("2D_avg", "2D_comb", "2_5D_avg", "2_5D_comb")
SOLID = ("3D_avg", "3D_comb")

#: The benchmark's settings by name. "digital" is the phantom whose intensities are grey levels already.
CONFIGURATIONS: dict[str, Ibsi] = {
    "digital": Ibsi(ALL, PLANAR + SOLID, bin_width=1.0),
    "A": Ibsi(ALL, PLANAR, bin_width=25.0, range_hu=(-500.0, 400.0)),
    "B": Ibsi(ALL, PLANAR, bin_count=32, resampled_spacing_mm=(0.0, 2.0, 2.0), range_hu=(-500.0, 400.0)),
    "C": Ibsi(
        ALL, SOLID, bin_width=25.0, resampled_spacing_mm=(2.0, 2.0, 2.0), range_hu=(-1000.0, 400.0), ivh_bin_width=2.5
    ),
    "D": Ibsi(ALL, SOLID, bin_count=32, resampled_spacing_mm=(2.0, 2.0, 2.0), outlier_sigma=3.0),
    "E": Ibsi(
        ALL,
        SOLID,
        bin_count=32,
        resampled_spacing_mm=(2.0, 2.0, 2.0),
        order=3,
        range_hu=(-1000.0, 400.0),
        outlier_sigma=3.0,
        ivh_bin_count=1000,
    ),
}

#: Files of the reference tables.
TABLES = {"digital": "ibsi_1_dig_phantom.csv", **{k: f"ibsi_1_chest_config_{k.lower()}.csv" for k in "ABCDE"}}


@dataclass(frozen=True)
class Comparison:
    """One feature of one configuration against its reference."""

    configuration: str
    tag: str
    value: float
    reference: float
    tolerance: float

    @property
    def within(self) -> bool:
        """Within the tolerance, or equal to the reference in the three digits that it is printed with."""
        rounded = float(f"{self.value:.3g}")
        return abs(self.value - self.reference) <= self.tolerance or rounded == self.reference


def run_benchmark(folder: Path, *, configurations: tuple[str, ...] = tuple(CONFIGURATIONS)) -> list[Comparison]:
    """Every reference value that IBSI prints, beside ours.

    Parameters
    ----------
    folder : IBSI-1 data: `digital_phantom_*.nii.gz`, `ct_phantom_*.nii.gz` and `reference_values/`.
    configurations : which of `CONFIGURATIONS`.

    Raises
    ------
    ConcordctError : when a file is missing, or a printed feature has no counterpart here.
    """
    found = []
    for name in configurations:
        phantom = "digital" if name == "digital" else "ct"
        volume, labels = _read(folder / f"{phantom}_phantom_image.nii.gz", folder / f"{phantom}_phantom_mask.nii.gz")
        table = extract_ibsi(volume, labels, CONFIGURATIONS[name])
        ours = dict(zip(table.names, table.values[0], strict=True))
        for tag, reference, tolerance in read_reference(folder / "reference_values" / TABLES[name]):
            if tag not in ours:
                raise ConcordctError(f"IBSI's {tag} of configuration {name} is not computed")
            found.append(Comparison(name, tag, float(ours[tag]), reference, tolerance))
    return found


def read_reference(path: Path) -> list[tuple[str, float, float]]:
    """(tag, reference, tolerance) of the features in a table; image and mask diagnostics and empty cells left out."""
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            rows = [row for row in csv.DictReader(stream, delimiter=";") if row["reference value"]]
    except OSError as error:
        raise ConcordctError(f"cannot read IBSI's reference values from {path}: {error.strerror}") from error
    return [
        (row["tag"], float(row["reference value"]), float(row["tolerance"]))
        for row in rows
        if row["tag"].split("_")[0] in FAMILIES and "_mask_" not in row["tag"]
    ]


def _read(image: Path, mask: Path) -> tuple[Volume, np.ndarray[tuple[int, int, int], np.dtype[np.int32]]]:
    volume, (labels, _) = open_volume_file(image), read_labels(mask)
    # NIfTI keeps the spacing as float32; IBSI's is 0.9765625 x 0.9765625 x 3 mm
    affine = np.diag([*(float(np.float32(mm)) for mm in volume.spacing_mm), 1.0])
    found = Volume(volume.stored_hu(0, volume.shape[0]), affine)
    return found, (labels > 0).astype(np.int32)
