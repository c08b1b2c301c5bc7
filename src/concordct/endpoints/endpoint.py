"""What an endpoint is: a number that a scan is made for, with its name, unit and definition.

An endpoint measures one image under one mask. It knows no file, no pair and no method.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from concordct.errors import ConcordctError
from concordct.volumes.volume import Volume

#: Which mask an endpoint is measured under: both lungs (1 right, 2 left), what lies between them, a labelled region of
#: the caller's (1), or none.
Needs = Literal["lungs", "mediastinum", "region", "nothing"]

Measure = Callable[[Volume, NDArray[np.uint8] | None], dict[str, float]]


@dataclass(frozen=True)
class Column:
    """One number of an endpoint.

    Attributes
    ----------
    name : in tables; ends with its unit (`laa950_percent`).
    unit : as printed ("%", "HU", "ml"); empty for a bare number.
    title : as printed.
    cuts : clinical cut points, ascending: a value above cuts[k] is of class k + 1. Empty where there are none.
    headline : whether short tables show it.
    """

    name: str
    unit: str
    title: str
    cuts: tuple[float, ...] = ()
    headline: bool = False


@dataclass(frozen=True)
class Endpoint:
    """An endpoint and how to measure it.

    Attributes
    ----------
    name : in options and file names ("emphysema").
    title : as printed.
    needs : the mask that `measure` is given, see `Needs`.
    columns : what `measure` returns, in this order.
    mode : which of a standardizer's two images it is measured in: "sample" where noise counts, "mean" where it only
        disturbs; docs/endpoints.md says why.
    measure : (volume, mask) to a number for every column; NaN where it is not defined in this image.
    """

    name: str
    title: str
    needs: Needs
    columns: tuple[Column, ...]
    measure: Measure
    mode: Literal["mean", "sample"] = "sample"


def needed(mask: NDArray[np.uint8] | None, volume: Volume, what: str) -> NDArray[np.uint8]:
    """The mask of an endpoint that cannot do without.

    Raises
    ------
    ConcordctError : no mask, one of another shape, or an empty one.
    """
    if mask is None:
        raise ConcordctError(f"{what} needs a mask, found none")
    if mask.shape != volume.shape:
        raise ConcordctError(f"{what}: expected a mask of shape {volume.shape}, found {mask.shape}")
    if not mask.any():
        raise ConcordctError(f"{what}: expected a mask with voxels in it, found an empty one")
    return mask


def voxel_ml(volume: Volume) -> float:
    """Volume of a voxel, ml."""
    return float(abs(np.linalg.det(volume.affine[:3, :3]))) / 1000.0
