"""Sections of docs/results.md: each benchmark replaces its own and leaves the others alone."""

from __future__ import annotations

import os
import re
from pathlib import Path

from concordct.judging.provenance import provenance

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results.md"
TITLE = "# Results\n\nWritten by the commands named in each section; nothing here is typed by hand.\n"


def data_folder() -> Path | None:
    """Where the real CT lies, as for the tests."""
    places = [Path(os.environ["CONCORDCT_DATA"])] if "CONCORDCT_DATA" in os.environ else []
    return next((place for place in (*places, ROOT.parent / "shared" / "data") if place.is_dir()), None)


def write_section(name: str, command: str, body: str, *, seed: str) -> None:
    """Replace the section between the markers of a name.

    Parameters
    ----------
    name : of the section, a word; sections keep the order in which they first came.
    command : what regenerates it.
    body : Markdown.
    seed : the seeds used, in words.
    """
    made = provenance()
    text = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else TITLE
    origin = f"*`{command}`, {made['software']}, commit {made['commit']}, seed {seed}, {made['machine']}.*"
    section = f"<!-- {name} -->\n{body.strip()}\n\n{origin}\n<!-- /{name} -->\n"
    pattern = re.compile(f"<!-- {name} -->\n.*?<!-- /{name} -->\n", re.DOTALL)
    text = pattern.sub(lambda _: section, text) if pattern.search(text) else f"{text}\n{section}"
    RESULTS.write_text(text, encoding="utf-8")


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
