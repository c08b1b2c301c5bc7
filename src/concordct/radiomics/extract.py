"""The one way in: a volume, a label for every voxel, settings; out comes a table of features."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from concordct.errors import ConcordctError
from concordct.radiomics.definitions.ibex import Ibex, extract_ibex
from concordct.radiomics.definitions.ibsi import Ibsi, extract_ibsi
from concordct.radiomics.definitions.pyradiomics import PyRadiomics, extract_pyradiomics
from concordct.radiomics.table import FeatureTable
from concordct.volumes.volume import Volume

#: Every label up to the greatest has a box looked for, so that wild numbers would fill the memory.
MOST_LABELS = 1_000_000


#: What to compute and how: one dataclass for each set of definitions.
Settings = PyRadiomics | Ibsi | Ibex


def extract(volume: Volume, labels: NDArray[np.integer[Any]], settings: Settings) -> FeatureTable:
    """Features of all ROIs of one volume.

    Parameters
    ----------
    volume : intensities and geometry.
    labels : [z, y, x] integers on the same grid: 0 outside, one positive number for each ROI.
    settings : what to compute and how; `presets.preset(name)` gives the named ones.

    Returns
    -------
    FeatureTable with one row for each label present, ascending.

    Raises
    ------
    ConcordctError : labels of another shape or type, no ROI at all, a negative label, NaN or infinity anywhere
        (filters would carry them into the ROIs).
    """
    if labels.shape != volume.shape:
        raise ConcordctError(f"labels of shape {labels.shape} do not fit a volume of {volume.shape}")
    if not np.issubdtype(labels.dtype, np.integer):
        raise ConcordctError(f"labels are integers, found {labels.dtype}")
    if labels.min() < 0:
        raise ConcordctError(f"labels are 0 or above, found {int(labels.min())}")
    if labels.max() > MOST_LABELS:
        raise ConcordctError(f"labels go up to {MOST_LABELS}, found {int(labels.max())}; number the ROIs 1, 2, ...")
    if not labels.any():
        raise ConcordctError("the mask is empty: no voxel carries a label above 0")
    if not all(np.isfinite(plane).all() for plane in volume.hu):
        wrong = ~np.isfinite(volume.hu)
        label = int(labels[wrong].max())
        where = f"ROI {label}" if label else "the image, outside every ROI,"
        raise ConcordctError(f"{where} holds {int((wrong & (labels == label)).sum())} voxels that are not finite")
    if isinstance(settings, Ibsi):
        return extract_ibsi(volume, labels, settings)
    if isinstance(settings, Ibex):
        return extract_ibex(volume, labels, settings)
    return extract_pyradiomics(volume, labels, settings)
