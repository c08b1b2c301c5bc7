"""What every method gives: a callable from Volume to Volume. Pipelines, tables and tests know this and no method."""

from __future__ import annotations

from typing import Any, Literal, Protocol

from concordct.volumes.seeds import SliceSeeds
from concordct.volumes.volume import Volume

#: How what the source kernel destroyed is treated: drawn with the right texture, or left at its expectation.
Mode = Literal["sample", "mean"]


class Standardizer(Protocol):
    """Turns a volume of the source kernel into one of the target kernel.

    Works slab by slab: a slab is handed over with `context_slices` further slices on either side where the series has
    them, and only the slab itself is kept. Geometry and padding come back unchanged.
    """

    @property
    def context_slices(self) -> int:
        """Slices needed on either side of the slab."""

    @property
    def settings(self) -> dict[str, Any]:
        """What determines the output beside model and seed; recorded with every result."""

    def __call__(self, volume: Volume, *, generator: SliceSeeds) -> Volume:
        """[z, y, x] HU in, [z, y, x] HU out."""
