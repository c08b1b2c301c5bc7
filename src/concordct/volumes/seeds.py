"""Randomness that slabs, batches and workers cannot change: one generator for each slice of each series."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class SliceSeeds:
    """Seeds keyed by slice.

    Attributes
    ----------
    seed : the user's seed.
    key : identity of the series (its SeriesInstanceUID, or a digest of a volume file), so that two patients
        standardized with one seed never receive the same noise.
    """

    seed: int
    key: str

    def at(self, slice_index: int) -> np.random.Generator:
        """The generator of one slice, by its index in the whole series; negative indices lie before the first slice."""
        digest = hashlib.sha256(f"{self.seed}\0{self.key}\0{slice_index}".encode()).digest()
        return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
