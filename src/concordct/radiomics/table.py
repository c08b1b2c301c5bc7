"""The table that extraction gives back: one row per ROI, one column per feature, and its CSV form."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from concordct.errors import ConcordctError
from concordct.volumes.csv_text import plain_cell, safe_cell
from concordct.volumes.given import open_text
from concordct.volumes.place import atomic_file


@dataclass(frozen=True, eq=False)
class FeatureTable:
    """Features of some ROIs of one image.

    Attributes
    ----------
    names : [feature] column names, as the definitions name them (`original_glcm_Contrast`).
    classes : [feature] the class that each feature belongs to (`glcm`).
    rois : [roi] labels of the ROIs, ascending.
    values : [roi, feature] float64; NaN where a feature is undefined for an ROI.
    """

    names: tuple[str, ...]
    classes: tuple[str, ...]
    rois: tuple[int, ...]
    values: NDArray[np.float64]

    def __post_init__(self) -> None:
        if self.values.shape != (len(self.rois), len(self.names)) or len(self.classes) != len(self.names):
            raise ConcordctError(
                f"a feature table of {len(self.rois)} ROIs and {len(self.names)} names ({len(self.classes)} classes) "
                f"does not fit values of shape {self.values.shape}"
            )
        if len(set(self.names)) != len(self.names):
            twice = next(name for name in self.names if self.names.count(name) > 1)
            raise ConcordctError(f"feature {twice} stands twice in one table")

    def column(self, name: str) -> NDArray[np.float64]:
        """[roi] the values of one feature."""
        if name not in self.names:
            raise ConcordctError(f"no feature {name} among the {len(self.names)} of this table")
        return self.values[:, self.names.index(name)]

    def take(self, columns: list[int]) -> FeatureTable:
        """The columns at the given positions, in the given order."""
        return FeatureTable(
            names=tuple(self.names[index] for index in columns),
            classes=tuple(self.classes[index] for index in columns),
            rois=self.rois,
            values=self.values[:, columns],
        )


def class_of(name: str) -> str:
    """The class that a column name carries: `glcm` of `wavelet-LLH_glcm_Contrast`, `cm` of `cm_contrast_3D_avg`."""
    parts = name.split("_")
    if len(parts) == 3 and parts[1] in PYRADIOMICS_CLASSES:
        return parts[1]
    return parts[0]


#: The class names that stand second in PyRadiomics' column names.
PYRADIOMICS_CLASSES = ("firstorder", "glcm", "glrlm", "glszm", "gldm", "ngtdm", "shape", "shape2D")


@dataclass(frozen=True, eq=False)
class FeatureRows:
    """Rows of a features file: several images, each with its ROIs, under one set of columns.

    Attributes
    ----------
    keys : [row] (image, roi), what identifies a row when two files are compared.
    subjects : [row] what bootstrap intervals resample; the image where no subject is known.
    names, classes : [feature].
    values : [row, feature] float64, NaN where undefined.
    """

    keys: tuple[tuple[str, str], ...]
    subjects: tuple[str, ...]
    names: tuple[str, ...]
    classes: tuple[str, ...]
    values: NDArray[np.float64]


#: Columns before the features in a features file.
KEY_COLUMNS = ("image", "subject", "roi")


def write_rows(path: Path, rows: FeatureRows, *, overwrite: bool = False) -> None:
    """Write a features file (CSV, every value with all its digits), aside first and then moved into place."""
    with atomic_file(path, overwrite=overwrite) as aside, aside.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([*KEY_COLUMNS, *rows.names])
        for (image, roi), subject, values in zip(rows.keys, rows.subjects, rows.values, strict=True):
            writer.writerow([*map(safe_cell, (image, subject, roi)), *(repr(float(value)) for value in values)])


def read_rows(path: Path) -> FeatureRows:
    """Read a features file.

    Raises
    ------
    ConcordctError : when the file is missing, has other key columns, a ragged row, or a value that is not a number.
    """
    try:
        with open_text(path, encoding="utf-8") as stream:
            lines = list(csv.reader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConcordctError(f"cannot read features from {path}: {error}") from error
    if not lines or tuple(lines[0][:3]) != KEY_COLUMNS:
        found = ", ".join(lines[0][:3]) if lines else "nothing"
        raise ConcordctError(f"a features file begins with columns {', '.join(KEY_COLUMNS)}; found {found} in {path}")
    names = tuple(lines[0][3:])
    keys: list[tuple[str, str]] = []
    subjects: list[str] = []
    values = np.empty((len(lines) - 1, len(names)))
    for index, line in enumerate(lines[1:]):
        if len(line) != len(names) + 3:
            raise ConcordctError(f"row {index + 2} of {path} has {len(line)} cells, expected {len(names) + 3}")
        keys.append((plain_cell(line[0]), plain_cell(line[2])))
        subjects.append(plain_cell(line[1]))
        try:
            values[index] = [float(cell) for cell in line[3:]]
        except ValueError as error:
            raise ConcordctError(f"row {index + 2} of {path} holds a cell that is not a number: {error}") from error
    return FeatureRows(tuple(keys), tuple(subjects), names, tuple(class_of(name) for name in names), values)
