"""Commands of the documents, as their tests read them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page in one language."""
    return [m[3] for m in FENCE.finditer(page.read_text(encoding="utf-8")) if m[2] == language]


def commands(block: str) -> Iterator[list[str]]:
    """The words of each command of a block; a backslash goes on in the next line."""
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            end = [place for place, word in enumerate(words) if word in (">", "|", "&", "&&", "2>&1")]
            yield words[: end[0]] if end else words
