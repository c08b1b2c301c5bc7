"""Pages of docs/results: each study writes its own."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from concordct.judging.provenance import provenance
from concordct.training.engine import METRICS
from concordct.volumes.place import atomic_file

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
#: Titles of the pages.
TITLES = {
    "real-pairs": "Real pairs: filter and seeded noise",
    "flagship-real": "Real pairs: method concord",
    "nonlinear": "Real pairs of deep-learning and iterative reconstruction, beside a real repeat",
    "thickness": "Slice thickness: 1 mm to 5 mm",
    "reference": "One reference for scans of many kernels, without pairs",
    "window": "Transfers fitted inside the body",
    "iterative": "The virtual scanner's iterative-like step beside real reconstructions",
    "flagship-patients": "Simulated patients, Br40 to Bl64",
    "flagship-vendors": "Simulated patients, kernels of other vendors and an iterative-like source",
    "flagship-phantom": "Simulated phantom, 2.5 mm",
    "flagship-ablation": "Ablation of concord",
    "flagship-safety": "Safety: structures lost and invented",
    "flagship-speed": "Speed of concord",
    "speed": "Speed and memory of the filter",
    "speed-beside": "Speed beside what else does it",
    "scale": "From one machine to a cluster",
    "inspect": "inspect on a tree of many files",
    "gpu-speed": "Speed of concord on a card",
    "papers": "The papers' table on the virtual scanner",
    "self-check": "The self-check: wrong kernels found out",
    "install": "What an installation takes",
    "features": "Radiomic features beside PyRadiomics",
    "registration": "Registration lung by lung",
    "followup-shipped": "The follow-up model that ships",
    "followup-200": "Follow-up study before: 200 steps, 112 patients",
    "followup": "Follow-up scans of pulmonary fibrosis",
    "followup-why": "Why ResViT and cDiff stay where they are",
    "followup-speed": "Speed of predict-followup",
}


def data_folder() -> Path | None:
    """Where the real CT lies, as for the tests."""
    places = [Path(os.environ["CONCORDCT_DATA"])] if "CONCORDCT_DATA" in os.environ else []
    return next((place for place in (*places, ROOT.parent / "shared" / "data") if place.is_dir()), None)


def once(path: Path, make: Callable[[], Any]) -> Any:
    """What a JSON file holds, made first where there is none."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        found = make()
        with atomic_file(path) as aside:
            aside.write_text(json.dumps(found), encoding="utf-8")
    return json.loads(path.read_text(encoding="utf-8"))


def write_section(name: str, command: str, body: str, *, seed: str) -> None:
    """Write the page of a study.

    Parameters
    ----------
    name : of the page, a word of `TITLES`, or any other, which is then its title, too.
    command : what regenerates it.
    body : Markdown.
    seed : the seeds used, in words.
    """
    made = provenance()
    origin = f"*`{command}`, {made['software']}, commit {made['commit']}, seed {seed}, {made['machine']}.*"
    title = TITLES.get(name, name.replace("-", " ").capitalize())
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(f"# {title}\n\n{own_title_only(body.strip())}\n\n{origin}\n", encoding="utf-8")


def own_title_only(body: str) -> str:
    """A study's text without a heading that says the page's title again: where it is the only one of its level, what
    stands under it moves up a level.
    """
    headings = re.findall(r"^## .*$", body, re.MULTILINE)
    if len(headings) != 1 or not body.startswith(headings[0]):
        return body
    return re.sub(r"^#(#{2,} )", r"\1", body.removeprefix(headings[0]).strip(), flags=re.MULTILINE)


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def lines_in(run: Path) -> list[dict[str, Any]]:
    """What a training left behind, step by step."""
    path = run / METRICS
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def spent_in(run: Path) -> dict[str, tuple[int, float]]:
    """Steps and processor seconds of each phase of a training."""
    found: dict[str, tuple[int, float]] = {}
    before: dict[str, float] = {}
    for line in lines_in(run):
        phase, now = line["phase"], float(line.get("processor", 0.0))
        # A piece begins to count anew.
        step = now - before.get(phase, 0.0) if now >= before.get(phase, 0.0) else now
        before[phase] = now
        found[phase] = (line["step"], found.get(phase, (0, 0.0))[1] + step)
    return found
