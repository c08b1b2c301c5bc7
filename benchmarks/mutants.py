"""Do the tests notice? A seeded sample of small faults in methods/, diffusion/, agreement/ and judging/, one at a time.

python -m benchmarks.mutants                   # 300 mutants; resumes
python -m benchmarks.mutants --minutes 9       # one piece
python -m benchmarks.mutants --again           # the survivors once more, after tests were written
python -m benchmarks.mutants --fresh 2         # 60 others, drawn by that seed after tests were written
python -m benchmarks.mutants --show            # what survived

A mutant is one changed operator, comparison, number or condition, or one call left out. The tests that run its line run
on it (`benchmarks.mutants_tests`); it is killed when one fails or time is up. Recipes and raised messages are left
alone: what a recipe says is no behaviour that a test could know. The page `docs/results/mutants.md` counts them, lists
the survivors, and says why each is one (`benchmarks/mutants_survivors.csv`, where a mutant that cannot change what the
program does is marked as equivalent).
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
from benchmarks.mutants_tests import KEPT, PACKAGE, ROOT, cover, judge, sound, warm_up
from benchmarks.papers_cohort import runs
from benchmarks.results import RESULTS, table
from benchmarks.self_check import interval
from concordct.judging.provenance import provenance

SEED, COUNT = 0, 300
#: Seeds of fresh samples, and the mutants of each, none of which is in another sample; less than so many say little.
FRESH_SEEDS, FRESH, FEW = (1, 2), 60, 20
#: What is changed, and the test files that know it.
ROOMS: dict[str, tuple[str, ...]] = {
    "agreement": ("test_agreement_*",),
    "diffusion": ("test_diffusion*", "test_methods_phases"),
    "judging": ("test_judging*", "test_pipelines_compare", "test_report_evaluation"),
    "methods/paired": ("test_methods_phases", "test_methods_learned", "test_methods_rivals"),
    "methods/network": ("test_methods_learned", "test_methods_shipped"),
    "methods/slabs": ("test_methods_learned", "test_pipelines_samples"),
    "methods/models": ("test_methods_learned", "test_methods_shipped"),
    "methods/spectral": ("test_methods_s*", "test_methods_thickness", "test_methods_reference", "test_methods_kept"),
    "methods/concord": (
        "test_methods_concord*", "test_methods_texture_level", "test_methods_lacking_power", "test_methods_kept",
    ),
}  # fmt: skip
PAGE = RESULTS / "mutants.md"
#: Why a survivor survives: key, whether it is equivalent, why.
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


def fresh(seed: int, lines: list[dict[str, Any]]) -> list[tuple[str, Mutant]]:
    """A further sample of the code as it is, without what was judged for another one."""
    known = {mutant.key for _, mutant in sample(COUNT, SEED)}
    known |= {line["key"] for line in lines if line.get("sample", SEED) != seed}
    return [one for one in sample(COUNT, seed) if one[1].key not in known][:FRESH]


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def _where(room: str, mutant: Mutant) -> dict[str, Any]:
    """What a line keeps of a fresh sample's mutant: the code will change, and what was judged stays on the page."""
    return {"room": room, "where": f"{mutant.file}:{mutant.first}", "kind": mutant.kind, "code": mutant.code}


class _Judged:
    """A sample's outcomes, a line each, with the reasons of those that survived."""

    def __init__(self, lines: list[dict[str, Any]]) -> None:
        self.all, self.reasons = lines, {}
        if REASONS.exists():
            with REASONS.open(encoding="utf-8", newline="") as file:
                self.reasons = {row["key"]: row for row in csv.DictReader(file)}

    def equivalent(self, line: dict[str, Any]) -> bool:
        return self.reasons.get(line["key"], {}).get("equivalent") == "yes"

    def killed(self) -> int:
        return sum(line["outcome"] == "killed" for line in self.all)

    def row(self, room: str) -> list[str]:
        """Room, mutants, killed, share, equivalent, share of the others, killed by kept values alone."""
        own = [line for line in self.all if room in (line["room"], "all")]
        killed = [line for line in own if line["outcome"] == "killed"]
        same = sum(self.equivalent(line) for line in own if line["outcome"] != "killed")
        kept = sum(line.get("by", "").startswith(KEPT) for line in killed)
        others = f"{len(killed) / (len(own) - same):.0%}" if len(own) > same else ""
        return [room, str(len(own)), str(len(killed)), f"{len(killed) / len(own):.0%}", str(same), others, str(kept)]

    def rows(self) -> list[list[str]]:
        return [self.row(room) for room in (*ROOMS, "all") if any(room in (line["room"], "all") for line in self.all)]

    def survivors(self) -> list[list[str]]:
        found = []
        for line in self.all:
            if line["outcome"] == "killed":
                continue
            reason = self.reasons.get(line["key"], {})
            why = reason.get("why") or ("no test runs it" if line["outcome"] != "survived" else "not looked at")
            code, same = f"`{line['code'].replace('|', '/')}`", "yes" if self.equivalent(line) else ""
            found.append([line["where"], line["kind"], code, line["key"], same, why])
        return sorted(found)


def _first_verdicts(lines: list[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """Of a fresh sample, in the order judged."""
    found: dict[str, dict[str, Any]] = {}
    for line in lines:
        if line.get("sample") == seed:
            found.setdefault(line["key"], line)
    return list(found.values())


def _page(lines: list[dict[str, Any]]) -> None:
    known = {line["key"]: line for line in lines}
    drawn = [(room, mutant) for room, mutant in sample(COUNT, SEED) if mutant.key in known]
    first = _Judged([known[mutant.key] | _where(room, mutant) for room, mutant in drawn])
    fresh_ones = {seed: _Judged(_first_verdicts(lines, seed)) for seed in FRESH_SEEDS}
    fresh_ones = {seed: one for seed, one in fresh_ones.items() if len(one.all) >= FEW}
    # Before tests were written nobody asked which test it was.
    keys = {line["key"] for line in first.all}
    before = {line["key"]: line["outcome"] for line in lines if "by" not in line and line["key"] in keys}
    head = ["room", "mutants", "killed", "share", "equivalent", "share of the others", "by kept values alone"]
    made = provenance()
    body = [
        "# Small faults that the tests notice",
        "",
        f"{len(first.all)} of a seeded sample of {COUNT} mutants; one changed operator, number or condition, or",
        "one call left out, each. The tests that run the line run on it, the quickest first, up to 40 seconds of them.",
        "Equivalent mutants cannot change what the program does. Kept values (`tests/test_methods_kept.py`) say that",
        "something changed, not what is right: what nothing else noticed is counted apart. What is not judged has",
        "changed since.",
        "",
        table(head, first.rows()),
        "",
    ]
    if before:
        killed = sum(outcome == "killed" for outcome in before.values())
        body += [
            f"Before the survivors were read and tests written, {len(before)} of this sample had been judged, and",
            f"{killed} ({killed / len(before):.0%}) were killed. The share above is that of a sample which tests were",
            "written for: of other faults they will notice fewer.",
            "",
        ]
    for seed, one in fresh_ones.items():
        body += [
            f"## Fresh sample {seed}",
            "",
            f"{len(one.all)} of {FRESH} others, drawn with another seed and judged in the order drawn, of the code and",
            "the tests as they were then, before tests were written for them: the share to expect of such faults.",
            f"Killed: {interval(one.killed(), len(one.all))}, with its 95 % interval.",
            "",
            table(head, one.rows()),
            "",
        ]
    where = ["where", "change", "line", "key", "equivalent", "why"]
    body += ["## Survivors", "", table(where, first.survivors()), ""]
    for seed, one in fresh_ones.items():
        body += [f"## Survivors of fresh sample {seed}", "", table(where, one.survivors()), ""]
    seeds = f"seeds {', '.join(map(str, (SEED, *fresh_ones)))}"
    body += [f"*`make mutants`, {made['software']}, commit {made['commit']}, {seeds}, {made['machine']}.*"]
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text("\n".join(body) + "\n", encoding="utf-8")
    for one in (first, *fresh_ones.values()):
        if one.all:
            print(", ".join(one.row("all")))
    print(PAGE)


def _tests(room: str) -> list[str]:
    return sorted(f"tests/{one.name}" for name in ROOMS[room] for one in (ROOT / "tests").glob(f"{name}.py"))


def _covered(folder: Path, room: str) -> Path:
    return folder / f"{room.replace('/', '-')}.json"


def _digest(room: str) -> str:
    """Of the tests that know a room."""
    texts = [(ROOT / name).read_bytes() for name in _tests(room)]
    return hashlib.sha256(b"".join(texts)).hexdigest()[:12]


def _waits(before: dict[str, Any] | None, digest: str, *, again: bool) -> bool:
    return before is None or (again and before["outcome"] != "killed" and before.get("tests_are") != digest)


#: Rooms whose tests pass without a mutant.
_SOUND: set[str] = set()


def _by_room(drawn: list[tuple[str, Mutant]]) -> list[tuple[str, list[Mutant]]]:
    return [(room, [mutant for where, mutant in drawn if where == room]) for room in ROOMS]


def _judge_room(
    room: str,
    own: list[Mutant],
    known: dict[str, dict[str, Any]],
    aside: Path,
    until: float | None,
    *,
    again: bool,
    fresh_seed: int | None,
) -> None:
    folder, digest = runs() / "mutants", _digest(room)
    waiting = [one for one in own if _waits(known.get(one.key), digest, again=again)]
    if not waiting or (until is not None and time.monotonic() > until):
        return
    place = _covered(folder, room)
    anew = again or fresh_seed is not None
    if not place.exists() or (anew and json.loads(place.read_text(encoding="utf-8")).get("tests_are") != digest):
        # Apart, so that the forks begin without our own modules.
        subprocess.run([sys.executable, "-m", "benchmarks.mutants", "--cover", room], cwd=ROOT, check=True)
        found = json.loads(place.read_text(encoding="utf-8"))
        place.write_text(json.dumps({**found, "tests_are": digest}), encoding="utf-8")
    covered = json.loads(place.read_text(encoding="utf-8"))
    if room not in _SOUND:
        sound(waiting[0], covered, aside)
        _SOUND.add(room)
    for mutant in waiting:
        if until is not None and time.monotonic() > until:
            break
        made = {**judge(mutant, covered, aside), "tests_are": digest}
        if fresh_seed is not None:
            made |= {"sample": fresh_seed, **_where(room, mutant)}
        known[mutant.key] = made
        with (folder / "judged.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(made) + "\n")
        where = f"{mutant.file}:{mutant.first} {mutant.kind}"
        print(f"{made['outcome']}: {where} {made['tests']} tests {made['seconds']} s {made['by']}", flush=True)


def main() -> None:
    """Judge the mutants that have not been judged yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, help="stop after this long; the same call goes on")
    parser.add_argument("--rooms", nargs="*", choices=list(ROOMS), default=list(ROOMS), help="these alone")
    parser.add_argument("--again", action="store_true", help="judge the survivors once more where tests have changed")
    parser.add_argument("--fresh", type=int, choices=FRESH_SEEDS, help="a fresh sample, by its seed")
    parser.add_argument("--show", action="store_true", help="write the page and judge nothing")
    parser.add_argument("--cover", choices=list(ROOMS), help="only find out which tests run which lines of a room")
    given = parser.parse_args()
    until = None if given.minutes is None else time.monotonic() + 60 * given.minutes
    if given.cover:
        cover(_tests(given.cover), given.cover, _covered(runs() / "mutants", given.cover))
        return
    results = runs() / "mutants" / "judged.jsonl"
    if not given.show:
        lines = _lines(results)
        drawn = fresh(given.fresh, lines) if given.fresh else sample(COUNT, SEED)
        known = {line["key"]: line for line in lines}
        warm_up()
        with tempfile.TemporaryDirectory() as aside:
            shutil.copytree(PACKAGE, Path(aside) / "concordct")
            # The fresh sample in the order drawn, so that a part of it is a sample, too.
            parts = [(room, [mutant]) for room, mutant in drawn] if given.fresh else _by_room(drawn)
            for room, own in parts:
                if room in given.rooms:
                    _judge_room(room, own, known, Path(aside), until, again=given.again, fresh_seed=given.fresh)
    _page(_lines(results))


if __name__ == "__main__":
    main()
