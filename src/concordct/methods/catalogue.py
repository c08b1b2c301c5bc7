"""Every method, by name. To add one: write its file with an `ENTRY`, and add its line here.

Modules are imported when a method is used, so that the closed-form path needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Literal

from concordct.errors import ConcordctError

if TYPE_CHECKING:
    from concordct.methods.method import Method


@dataclass(frozen=True)
class Place:
    """Where a method is written, below `concordct.methods`, and which verb fits it."""

    module: str
    fitted_by: Literal["calibrate", "train"]


#: The order is that of the papers' tables.
CATALOGUE: dict[str, Place] = {
    "concord": Place("concord.standardizer", "calibrate"),
    "spectral": Place("spectral.transfer", "calibrate"),
    "histogram": Place("paired.histogram", "train"),
    "choe": Place("paired.choe", "train"),
    "pix2pix": Place("paired.pix2pix", "train"),
    "ganai": Place("paired.ganai", "train"),
    "stan-ct": Place("paired.stan_ct", "train"),
    "radiomicgan": Place("paired.radiomicgan", "train"),
    "cyclegan": Place("unpaired.cyclegan", "train"),
    "cvh-ct": Place("unpaired.cvh_ct", "train"),
    "uda": Place("unpaired.uda", "train"),
    "multipath": Place("unpaired.multipath", "train"),
    "encoder-decoder": Place("paired.encoder_decoder", "train"),
    "unetpp": Place("paired.unetpp", "train"),
    "ddpm": Place("paired.ddpm", "train"),
    "diffusionct": Place("paired.diffusionct", "train"),
    "ltdiffpp": Place("paired.ltdiffpp", "train"),
}


#: How wide samples of `concord` are: as near to the target as they come, the default, or as far from each other as from
#: the target, which costs agreement (`methods/concord/honest.py`).
WIDTHS = ("agreement", "honest")


def names(fitted_by: Literal["calibrate", "train"] | None = None) -> tuple[str, ...]:
    """Names of all methods, or of those that one verb fits."""
    return tuple(name for name, place in CATALOGUE.items() if fitted_by in (None, place.fitted_by))


def method(name: str) -> Method:
    """A method by its name.

    Raises
    ------
    ConcordctError : no such method.
    """
    if name not in CATALOGUE:
        raise ConcordctError(f"expected a method of {', '.join(CATALOGUE)}, found {name!r}")
    found: Method = import_module(f"concordct.methods.{CATALOGUE[name].module}").ENTRY
    return found
