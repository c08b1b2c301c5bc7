"""Every method that predicts follow-up scans, by name. To add one: its file with an `ENTRY`, and its line here."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from concordct.errors import ConcordctError

if TYPE_CHECKING:
    from concordct.progression.method import FollowupMethod

#: Modules below `concordct.progression`; the order is that of CIResDiff's Table 2.
CATALOGUE: dict[str, str] = {
    "pix2pix3d": "pix2pix3d",
    "sagan": "sagan",
    "transunet": "transunet",
    "resvit": "resvit",
    "cdiff": "cdiff",
    "ciresdiff": "ciresdiff_predict",
}


def method(name: str) -> FollowupMethod:
    """A method by its name.

    Raises
    ------
    ConcordctError : no such method.
    """
    if name not in CATALOGUE:
        raise ConcordctError(f"expected a method of {', '.join(CATALOGUE)}, found {name!r}")
    found: FollowupMethod = import_module(f"concordct.progression.{CATALOGUE[name]}").ENTRY
    return found
