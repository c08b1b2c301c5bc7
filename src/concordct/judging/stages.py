"""What is judged beside the target: the source, the source standardized, a repeat. One rule says how HU are stored.

The target is seen by none of this.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from concordct.errors import ConcordctError
from concordct.methods.models import Model, Sampling
from concordct.methods.slabs import standardized_slabs
from concordct.methods.standardizer import Mode, Standardizer
from concordct.volumes.ct_range import Reach, ct_range
from concordct.volumes.scans import Scan, evenly_spaced
from concordct.volumes.volume import Volume

#: Names of the stages in results, in order; "target" stands beside them.
STAGES = ("source", "standardized")
TARGET = "target"


def stored(made: NDArray[np.floating], source: NDArray[np.floating], reach: Reach | None = None) -> NDArray[np.float32]:
    """HU as `standardize` writes them: whole, slice by slice inside the range of a CT image or of the source's own.

    Parameters
    ----------
    made, source : [z, y, x], HU.
    reach : of the target kernel, see `Volume.reach_hu`.
    """
    planes = [np.clip(np.rint(new), *ct_range(old, None, reach)) for new, old in zip(made, source, strict=True)]
    return np.stack(planes).astype(np.float32)


def standardized(
    scan: Scan,
    source: Volume,
    standardizer: Standardizer,
    *,
    seed: int = 0,
    allow: Collection[str] = frozenset(),
) -> Volume:
    """A scan through a standardizer, as it would have been stored.

    Parameters
    ----------
    source : the scan's voxels.
    """
    made = np.empty_like(source.hu)
    start = 0
    for slab in standardized_slabs(scan, standardizer, seed=seed, allow=allow):
        part = slice(start, start + len(slab.hu))
        made[part] = stored(slab.hu, source.hu[part], slab.reach_hu)
        start = part.stop
    return source.with_hu(made)


def standardizer_for(
    scan: Scan, model: Model, *, mode: Mode = "sample", sampling: Sampling | None = None
) -> Standardizer:
    """A model at work on a scan: neighbours are used where they are at one distance.

    Raises
    ------
    ConcordctError : a model that makes slices of another thickness, which no voxel of the scan stands beside.
    """
    if model.stacking is not None:
        raise ConcordctError(
            f"{model.name}: expected a model that leaves slices where they are, found one that makes "
            f"{model.stacking.said()}: standardize first, and compare what that wrote"
        )
    return model.standardizer(mode=mode, use_neighbours=evenly_spaced(scan), sampling=sampling)
