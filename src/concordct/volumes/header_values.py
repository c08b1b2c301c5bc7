"""Values of a DICOM header as numbers and words, or why they are none; pydicom decodes them when they are asked for."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from concordct.errors import ConcordctError
from concordct.volumes.attributes import attribute
from concordct.volumes.dicom_file import plain


def needed_numbers(dataset: Dataset, keyword: str, count: int, path: Path) -> tuple[float, ...]:
    """The finite numbers of an attribute, as many as expected; also of one that came as text ("0.8\\0.7").

    Raises
    ------
    ConcordctError : missing, empty, of another count, or no numbers ("0,8", "3mm", nan). The text is not quoted.
    """
    values = _values(dataset, keyword)
    if values is not None and len(values) == count:
        return tuple(values)
    found = "no numbers" if values is None else _counted(len(values)) if values else "nothing"
    raise ConcordctError(f"expected {keyword} of {_counted(count)}, found {found}: {path}")


def _counted(count: int) -> str:
    return f"{count} number{'s' if count != 1 else ''}"


def _values(dataset: Dataset, keyword: str) -> list[float] | None:
    """Numbers, none where the attribute is missing or empty; None for what is no list of finite numbers."""
    try:
        value = attribute(dataset, keyword)
        if value is None or value == "":
            return []
        if isinstance(value, str):
            value = value.split("\\")
        values = value if isinstance(value, (list, MultiValue)) else [value]
        found = [float(one) for one in values if "_" not in str(one)]  # Python reads 1_0 as 10
        if len(found) != len(values):
            return None
    except (ValueError, TypeError, OverflowError):
        return None
    return found if all(map(math.isfinite, found)) else None


def one_number(dataset: Dataset, keyword: str) -> float | None:
    """One finite number; None for what is none, text included."""
    values = _values(dataset, keyword) or []
    return values[0] if len(values) == 1 else None


def positive(dataset: Dataset, keyword: str) -> float | None:
    """One positive number; None for what is none."""
    value = one_number(dataset, keyword)
    return value if value is not None and value > 0 else None


def greatest(dataset: Dataset, keyword: str) -> float | None:
    """Greatest of one or several numbers: successive compressions each add theirs."""
    return max((value for value in _values(dataset, keyword) or [] if value > 0), default=None)


def whole(dataset: Dataset, keyword: str) -> int | None:
    """A whole number, also one written "7.0"; None for what is none."""
    value = one_number(dataset, keyword)
    return int(value) if value is not None and value == int(value) else None


def joined(value: Any) -> str | None:
    """One or several words, joined by a backslash; None where there are none."""
    if value is None:
        return None
    values = [value] if isinstance(value, str) or not hasattr(value, "__iter__") else list(value)
    return "\\".join(plain(one) for one in values) or None
