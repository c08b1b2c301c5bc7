"""The named presets, each with its whole list of columns in a file beside its settings.

`pyradiomics-default`, `pyradiomics-1401` (a reconstruction), `ibex-1401` (a reconstruction), `ibsi` (IBSI's CT
configuration C). The counts of the two 1,401 are from LTDiff++ and DiffusionCT, which print no list.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import yaml

from concordct.errors import ConcordctError
from concordct.radiomics.definitions.ibex import Ibex
from concordct.radiomics.definitions.ibsi import Ibsi
from concordct.radiomics.definitions.ibsi_reference import CONFIGURATIONS
from concordct.radiomics.definitions.pyradiomics import PyRadiomics
from concordct.radiomics.parameters import from_parameters, read_parameters

#: Names of the presets.
PRESETS = ("pyradiomics-default", "pyradiomics-1401", "ibex-1401", "ibsi")


def preset(name: str) -> PyRadiomics | Ibsi | Ibex:
    """The settings of a preset.

    Raises
    ------
    ConcordctError : when there is no such preset.
    """
    if name == "ibsi":
        return CONFIGURATIONS["C"]
    if name == "ibex-1401":
        return Ibex(bin_width=25.0)
    if name in PRESETS:
        text = (resources.files(__package__) / "presets" / f"{name}.yaml").read_text(encoding="utf-8")
        return from_parameters(yaml.safe_load(text), origin=f"preset {name}")
    raise ConcordctError(f"no preset {name}; known: {', '.join(PRESETS)}")


def preset_names(name: str) -> tuple[str, ...]:
    """The columns of a preset, as its file lists them."""
    if name not in PRESETS:
        raise ConcordctError(f"no preset {name}; known: {', '.join(PRESETS)}")
    text = (resources.files(__package__) / "presets" / f"{name}.txt").read_text(encoding="utf-8")
    return tuple(text.split())


def settings_for(name_or_file: str) -> PyRadiomics | Ibsi | Ibex:
    """A preset by its name, or a PyRadiomics parameter file by its path (.yaml, .yml, .json)."""
    if name_or_file in PRESETS:
        return preset(name_or_file)
    if Path(name_or_file).suffix.lower() in (".yaml", ".yml", ".json"):
        return read_parameters(Path(name_or_file))
    raise ConcordctError(
        f"{name_or_file} is neither a preset ({', '.join(PRESETS)}) nor a PyRadiomics parameter file (.yaml, .json)"
    )
