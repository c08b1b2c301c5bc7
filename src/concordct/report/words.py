"""Words that more than one page needs."""

from __future__ import annotations

from typing import Any


def counted(number: Any, what: str) -> str:
    """So many of something, in words: 1 slice, 2 slices."""
    return f"{number} {what}{'' if number == 1 else 's'}"
