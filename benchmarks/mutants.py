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
from benchmarks.mutants_tests import PACKAGE, ROOT, cover, judge, sound, warm_up
from benchmarks.papers_cohort import runs
from benchmarks.results import RESULTS, table
from concordct.judging.provenance import provenance

SEED, COUNT = 0, 300
#: What is changed, and the test files that know it.
ROOMS: dict[str, tuple[str, ...]] = {
    "agreement": ("test_agreement_*",),
    "diffusion": ("test_diffusion*", "test_methods_phases"),
    "judging": ("test_judging*", "test_pipelines_compare", "test_report_evaluation"),
    "methods/paired": ("test_methods_phases", "test_methods_learned", "test_methods_rivals"),
    "methods/network": ("test_methods_learned", "test_methods_shipped"),
    "methods/slabs": ("test_methods_learned", "test_pipelines_samples"),
    "methods/models": ("test_methods_learned", "test_methods_shipped"),
    "methods/spectral": ("test_methods_s*", "test_methods_thickness"),
    "methods/concord": ("test_methods_concord*", "test_methods_texture_level", "test_methods_lacking_power"),
}
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


def _tests(room: str) -> list[str]:
    return sorted(f"tests/{one.name}" for name in ROOMS[room] for one in (ROOT / "tests").glob(f"{name}.py"))


def _covered(folder: Path, room: str) -> Path:
    return folder / f"{room.replace('/', '-')}.json"


def _waits(before: dict[str, Any] | None, *, again: bool) -> bool:
    return before is None or (again and before["outcome"] != "killed")


def main() -> None:
    """Judge the mutants that have not been judged yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, help="stop after this long; the same call goes on")
    parser.add_argument("--rooms", nargs="*", choices=list(ROOMS), default=list(ROOMS), help="these alone")
    parser.add_argument("--again", action="store_true", help="judge the survivors once more, lines covered anew")
    parser.add_argument("--show", action="store_true", help="write the page and judge nothing")
    parser.add_argument("--cover", choices=list(ROOMS), help="only find out which tests run which lines of a room")
    given = parser.parse_args()
    until = None if given.minutes is None else time.monotonic() + 60 * given.minutes
    folder = runs() / "mutants"
    if given.cover:
        cover(_tests(given.cover), given.cover, _covered(folder, given.cover))
        return
    results = folder / "judged.jsonl"
    drawn, known = sample(COUNT, SEED), _known(results)
    if not given.show:
        warm_up()
        with tempfile.TemporaryDirectory() as aside:
            shutil.copytree(PACKAGE, Path(aside) / "concordct")
            for room in given.rooms:
                own = [mutant for where, mutant in drawn if where == room]
                waiting = [one for one in own if _waits(known.get(one.key), again=given.again)]
                if not waiting or (until is not None and time.monotonic() > until):
                    continue
                place = _covered(folder, room)
                if given.again or not place.exists():
                    # Apart, so that the forks begin without our own modules.
                    command = [sys.executable, "-m", "benchmarks.mutants", "--cover", room]
                    subprocess.run(command, cwd=ROOT, check=True)
                covered = json.loads(place.read_text(encoding="utf-8"))
                sound(waiting[0], covered, Path(aside))
                for mutant in waiting:
                    if until is not None and time.monotonic() > until:
                        break
                    made = judge(mutant, covered, Path(aside))
                    known[mutant.key] = made
                    with results.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(made) + "\n")
                    where = f"{mutant.file}:{mutant.first} {mutant.kind}"
                    print(f"{made['outcome']}: {where} {made['tests']} tests {made['seconds']} s", flush=True)
    _page(drawn, known)


if __name__ == "__main__":
    main()
