"""Text in the cells of a CSV file that a spreadsheet must not take for a formula.

Names come from files and headers. Those that begin like a formula are written behind an apostrophe, which spreadsheets
hide and `plain_cell` takes away again.
"""

from __future__ import annotations

_BEGINS = ("=", "+", "-", "@", "\t", "\r")


def safe_cell(text: str) -> str:
    """A text as it is written; numbers are no text. What cannot be printed, or is no UTF-8, is written as an escape."""
    text = "".join(
        one if one.isprintable() or one in _BEGINS else one.encode("unicode_escape", "surrogatepass").decode()
        for one in text
    )
    return f"'{text}" if text.lstrip("'").startswith(_BEGINS) else text


def plain_cell(text: str) -> str:
    """A text as it was before `safe_cell`."""
    return text[1:] if text.startswith("'") and text.lstrip("'").startswith(_BEGINS) else text
