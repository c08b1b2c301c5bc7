"""Histogram matching, the papers' classical rival: one monotone map from the source's HU to the target's.

Gonzalez & Woods, as scikit-image's `match_histograms` does it; the histograms are those of the training pairs, since
the target of a new scan is not known. It changes how often a value occurs and nothing of the texture's frequencies.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from concordct.errors import ConcordctError
from concordct.methods.method import Method
from concordct.methods.standardizer import Mode
from concordct.training.bundle import Bundle
from concordct.volumes.seeds import SliceSeeds
from concordct.volumes.volume import Volume

if TYPE_CHECKING:
    from concordct.methods.network import TrainingData
    from concordct.training.engine import Run

METHOD = "histogram"


@dataclass(frozen=True, eq=False)
class HistogramStandardizer:
    """A look-up table of whole HU.

    Attributes
    ----------
    source_hu, target_hu : [n], ascending, the same share of all training voxels below both. Beyond the table the offset
        of its ends stays.
    """

    source_hu: NDArray[np.float64]
    target_hu: NDArray[np.float64]

    @property
    def context_slices(self) -> int:
        """Slices needed on either side of a slab."""
        return 0

    @property
    def settings(self) -> dict[str, Any]:
        """What determines the output beside model and seed."""
        return {"method": METHOD}

    def __call__(self, volume: Volume, *, generator: SliceSeeds) -> Volume:
        """[z, y, x] HU in, [z, y, x] HU out; nothing is drawn."""
        inside = np.clip(volume.hu, self.source_hu[0], self.source_hu[-1])
        return volume.with_hu(np.interp(inside, self.source_hu, self.target_hu) + (volume.hu - inside))

    def to_bundle(self, info: Mapping[str, Any]) -> Bundle:
        """The table as tensors, the rest as JSON."""
        tensors = {"source_hu": self.source_hu, "target_hu": self.target_hu}
        return Bundle(tensors, {"method": METHOD, "info": dict(info)})


def fit_histogram(pairs: Iterable[tuple[NDArray[np.int16], NDArray[np.int16]]]) -> HistogramStandardizer:
    """Match the cumulative histograms of all sources and all targets.

    Parameters
    ----------
    pairs : whole HU, any shape.
    """
    counts = np.zeros((2, 65536), np.int64)
    for pair in pairs:
        for row, image in zip(counts, pair, strict=True):
            row += np.bincount(np.asarray(image).ravel().astype(np.int64) + 32768, minlength=65536)
    if not counts.any(axis=1).all():
        raise ConcordctError("expected voxels in source and target to match histograms of, found none")
    below = counts.cumsum(axis=1) / counts.sum(axis=1, keepdims=True)
    values = np.arange(-32768.0, 32768.0)
    seen_source, seen_target = counts[0] > 0, counts[1] > 0
    # As scikit-image: the target's value at the source's share of voxels at or below.
    matched = np.interp(below[0][seen_source], below[1][seen_target], values[seen_target])
    return HistogramStandardizer(values[seen_source], matched)


def load(bundle: Bundle, mode: Mode) -> HistogramStandardizer:
    """The table that `to_bundle` wrote, which draws nothing in either mode.

    Raises
    ------
    ConcordctError : a bundle of another method, or one that lacks a part.
    """
    if bundle.method != METHOD:
        raise ConcordctError(f"expected a model of method {METHOD!r}, found {bundle.method!r}")
    try:
        return HistogramStandardizer(bundle.tensors["source_hu"], bundle.tensors["target_hu"])
    except KeyError as error:
        raise ConcordctError(f"expected a whole {METHOD} model, found one without {error}") from error


def fit(data: TrainingData, recipe: None, run: Run) -> Bundle:
    """Match the histograms of all training pairs; there is no recipe."""
    pairs = ((images.source, images.target) for images in data.pairs if images.target is not None)
    return fit_histogram(pairs).to_bundle(data.info)


ENTRY = Method("Histogram matching", load, fit)
