"""Functions compiled by numba and kept for the next run; where nothing can be written they are compiled every time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., object])


def compiled(function: Function) -> Function:
    """numba's `njit`, without the interpreter's lock; a read-only package in a read-only home cannot keep its work."""
    try:
        return cast(Function, numba.njit(cache=True, nogil=True)(function))
    except RuntimeError:
        return cast(Function, numba.njit(nogil=True)(function))
