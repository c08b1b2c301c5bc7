"""concordct brings CT scans into concord: the same patient, the same radiomic numbers, whatever the kernel.

import concordct as cc

model = cc.calibrate("exam/Br40", "exam/Bl64")
out = model.standardize("incoming/exam")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from concordct.api import (
        ConcordctError,
        Model,
        Volume,
        calibrate,
        describe,
        evaluate,
        from_numpy,
        inspect,
        load,
        read,
        standardize,
        to_numpy,
        write,
    )

__all__ = [
    "ConcordctError",
    "Model",
    "Volume",
    "__version__",
    "calibrate",
    "describe",
    "evaluate",
    "from_numpy",
    "inspect",
    "load",
    "read",
    "reference",
    "standardize",
    "to_numpy",
    "write",
]


def __getattr__(name: str) -> Any:
    # PEP 562: `import concordct` stays fast, and NumPy and the rest come with the first name that is used.
    if name in __all__:
        return getattr(import_module("concordct.api"), name)
    raise AttributeError(f"module 'concordct' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
