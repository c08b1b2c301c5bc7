"""What tests of derived series share: a derivation, a standardizer's stand-in, folders compared."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from concordct.volumes.derivation import Derivation
from concordct.volumes.find import find_series
from concordct.volumes.series import Series
from concordct.volumes.volume import Volume

DERIVATION = Derivation("spectral", "5e" * 32, "Bl64", {"mode": "sample", "seed": 7}, sharpens=True)
EVEN = [float(z) for z in range(0, 15, 3)]


def only(path: Path) -> Series:
    (series,) = find_series(path).series
    return series


def sharpened(series: Series, size: int = 3) -> Iterator[Volume]:
    """A stand-in for a Standardizer that changes every voxel and needs no neighbours."""
    for start in range(0, series.shape[0], size):
        slab = series.read(start, min(start + size, series.shape[0]))
        yield slab.with_hu(slab.hu * 1.1 + 3.3)


def same_files(one: Path, other: Path) -> bool:
    names = sorted(path.name for path in one.iterdir())
    return names == sorted(path.name for path in other.iterdir()) and all(
        (one / name).read_bytes() == (other / name).read_bytes() for name in names
    )
