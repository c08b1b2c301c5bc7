"""What every feature carries: its IBSI name and id, and the name that PyRadiomics gives it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Definition:
    """One feature.

    Attributes
    ----------
    tag : short name in IBSI's reference tables (`cm_contrast`), or an own one where IBSI has none.
    ibsi : IBSI id (`ACUI`), None where the feature is not IBSI's.
    pyradiomics : PyRadiomics' name of the same quantity (`Contrast`), None where it has none.

    References
    ----------
    Zwanenburg et al. 2020, doi:10.1148/radiol.2020191145, and the reference manual arXiv:1612.07003.
    van Griethuysen et al. 2017, doi:10.1158/0008-5472.CAN-17-0339.
    """

    tag: str
    ibsi: str | None
    pyradiomics: str | None = None


def definitions(text: str) -> tuple[Definition, ...]:
    """Definitions from lines `tag ibsi pyradiomics`, with `-` for what is missing."""
    rows = [line.split() for line in text.strip().splitlines()]
    return tuple(
        Definition(tag, None if ibsi == "-" else ibsi, None if name == "-" else name) for tag, ibsi, name in rows
    )
