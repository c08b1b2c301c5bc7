"""Do the tests notice? A seeded sample of small faults in methods/, diffusion/, agreement/ and judging/, one at a time.

python -m benchmarks.mutants                   # 300 mutants; resumes
python -m benchmarks.mutants --minutes 9       # one piece
python -m benchmarks.mutants --again           # the survivors once more, after tests were written
python -m benchmarks.mutants --show            # what survived

A mutant is one changed operator, comparison, number or condition, or one call left out. The tests that run its line run
on it (`benchmarks.mutants_tests`); it is killed when one fails or time is up. Recipes and raised messages are left
alone: what a recipe says is no behaviour that a test could know. The page `docs/results/mutants.md` counts them, lists
the survivors, and says why each is one (`benchmarks/mutants_survivors.csv`).
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.mutants_places import Mutant, mutants_of
from benchmarks.mutants_tests import PACKAGE, ROOT, cover, judge, warm_up
from benchmarks.papers_cohort import runs
from benchmarks.results import RESULTS, table
from concordct.judging.provenance import provenance

SEED, COUNT = 0, 300
#: What is changed.
ROOMS = (
    "methods/concord", "methods/spectral", "methods/paired", "methods/network", "methods/slabs", "methods/models",
    "diffusion", "agreement", "judging",
)  # fmt: skip
#: Test files that know these rooms.
TESTS = ("test_methods_*", "test_diffusion*", "test_agreement_*", "test_judging*", "test_pipelines_compare",
         "test_pipelines_train", "test_pipelines_samples", "test_pipelines_consistency", "test_pipelines_combat",
         "test_pipelines_measure", "test_report_evaluation", "test_benchmarks_papers_rivals")  # fmt: skip
PAGE = RESULTS / "mutants.md"
#: Why a survivor survives: key, why.
REASONS = ROOT / "benchmarks" / "mutants_survivors.csv"


def sample(count: int, seed: int) -> list[tuple[str, Mutant]]:
    """Rooms and mutants drawn from all places of all rooms alike, by a hash that knows what stands there, not where."""
    everything = []
    for room in ROOMS:
        path = PACKAGE / room
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]:
            name = file.relative_to(PACKAGE).as_posix()
            everything += [(room, mutant) for mutant in mutants_of(file, name)]
    everything.sort(key=lambda one: hashlib.sha256(f"{seed} {one[1].key}".encode()).hexdigest())
    return everything[:count]


def _known(path: Path) -> dict[str, dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {one["key"]: one for one in map(json.loads, lines)}


def _page(drawn: list[tuple[str, Mutant]], known: dict[str, dict[str, Any]]) -> None:
    reasons = {}
    if REASONS.exists():
        with REASONS.open(encoding="utf-8", newline="") as file:
            reasons = {row["key"]: row["why"] for row in csv.DictReader(file)}
    judged = [(room, mutant, known[mutant.key]["outcome"]) for room, mutant in drawn if mutant.key in known]
    rows, survivors = [], []
    for room in (*ROOMS, "all"):
        own = [one for one in judged if room in (one[0], "all")]
        if own:
            killed = sum(outcome == "killed" for *_, outcome in own)
            rows.append([room, str(len(own)), str(killed), f"{killed / len(own):.0%}"])
    for _, mutant, outcome in judged:
        if outcome != "killed":
            why = reasons.get(mutant.key, "") or ("no test runs it" if outcome != "survived" else "not looked at")
            code = f"`{mutant.code.replace('|', '/')}`"
            survivors.append([f"{mutant.file}:{mutant.first}", mutant.kind, code, mutant.key, why])
    made = provenance()
    body = [
        "# Small faults that the tests notice",
        "",
        f"{len(judged)} of a seeded sample of {COUNT} mutants; one changed operator, number or condition, or one call",
        "left out, each. The tests that run the line run on it, those over five seconds left out.",
        "",
        table(["room", "mutants", "killed", "share"], rows),
        "",
        "## Survivors",
        "",
        table(["where", "change", "line", "key", "why"], survivors),
        "",
        f"*`make mutants`, {made['software']}, commit {made['commit']}, seed {SEED}, {made['machine']}.*",
    ]
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text("\n".join(body) + "\n", encoding="utf-8")
    print(f"{sum(outcome == 'killed' for *_, outcome in judged)} of {len(judged)} killed; {PAGE}")


def main() -> None:
    """Judge the mutants that have not been judged yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, help="stop after this long; the same call goes on")
    parser.add_argument("--again", action="store_true", help="judge the survivors once more, lines covered anew")
    parser.add_argument("--show", action="store_true", help="write the page and judge nothing")
    parser.add_argument("--cover", action="store_true", help="only find out which tests run which lines")
    given = parser.parse_args()
    until = None if given.minutes is None else time.monotonic() + 60 * given.minutes
    folder = runs() / "mutants"
    results, covered_at = folder / "judged.jsonl", folder / "covered.json"
    files = sorted(f"tests/{one.name}" for name in TESTS for one in (ROOT / "tests").glob(f"{name}.py"))
    if given.cover:
        cover(files, ROOMS, covered_at)
        return
    drawn, known = sample(COUNT, SEED), _known(results)
    if not given.show:
        if given.again or not covered_at.exists():
            # Apart, so that the forks begin without our own modules.
            subprocess.run([sys.executable, "-m", "benchmarks.mutants", "--cover"], cwd=ROOT, check=True)
        covered = json.loads(covered_at.read_text(encoding="utf-8"))
        warm_up()
        with tempfile.TemporaryDirectory() as aside:
            shutil.copytree(PACKAGE, Path(aside) / "concordct")
            for _, mutant in drawn:
                before = known.get(mutant.key)
                if before is not None and (before["outcome"] == "killed" or not given.again):
                    continue
                if until is not None and time.monotonic() > until:
                    break
                made = judge(mutant, covered, Path(aside))
                known[mutant.key] = made
                with results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(made) + "\n")
                print(f"{made['outcome']}: {mutant.file}:{mutant.first} {mutant.kind} {made['seconds']} s", flush=True)
    _page(drawn, known)


if __name__ == "__main__":
    main()
