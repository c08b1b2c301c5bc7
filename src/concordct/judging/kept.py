"""What was measured of a stage, kept on disk so that a killed comparison goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from concordct.radiomics.extract import Settings, extract
from concordct.volumes.place import atomic_file
from concordct.volumes.volume import Volume


@dataclass(frozen=True, eq=False)
class Kept:
    """Features of one stage of one pair.

    Attributes
    ----------
    values : region -> [roi, feature]. classes : [feature].
    image : [y, x] the slice that is shown, HU. cost : of making the stage; empty for scans.
    """

    values: dict[str, NDArray[np.float64]]
    classes: tuple[str, ...]
    image: NDArray[np.int16]
    cost: dict[str, Any]


def measure(
    volume: Volume,
    regions: Mapping[str, NDArray[np.int32]],
    settings: Settings,
    *,
    shown: int,
    cost: Mapping[str, Any],
) -> Kept:
    """Features of every region; `shown` is the slice kept as a picture."""
    tables = {name: extract(volume, labels, settings) for name, labels in regions.items()}
    classes = next(iter(tables.values())).classes
    values = {name: table.values for name, table in tables.items()}
    return Kept(values, tuple(classes), volume.hu[shown].astype(np.int16), dict(cost))


def save(path: Path, kept: Kept) -> None:
    """Write whole or not at all."""
    arrays: dict[str, Any] = {
        "classes": np.array(kept.classes),
        "cost": np.array(json.dumps(kept.cost)),
        "image": kept.image,
        **{f"values {name}": values for name, values in kept.values.items()},
    }
    with atomic_file(path, overwrite=True) as aside, open(aside, "wb") as file:
        np.savez(file, **arrays)


def load(path: Path) -> Kept:
    """What `save` wrote."""
    with np.load(path, allow_pickle=False) as stored:
        values = {name.removeprefix("values "): stored[name] for name in stored.files if name.startswith("values ")}
        classes = tuple(str(name) for name in stored["classes"])
        return Kept(values, classes, np.asarray(stored["image"]), json.loads(str(stored["cost"])))
