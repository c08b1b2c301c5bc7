"""Kill runs, fill disks, take sources away: what stands afterwards, and does the same command then end as ever?

    .venv/bin/python -m benchmarks.crash            (make crash; half an hour; writes docs/results/crash.md)
    .venv/bin/python -m benchmarks.crash --only train --kills 4     (rows of the others stay as the page has them)
    .venv/bin/python -m benchmarks.crash --only disks meddled twice

Every verb that writes is run undisturbed first, then killed with SIGKILL at random moments (seeded) and run again. A
kill is passed when nothing that stood before is gone, the final name holds nothing or all of it, no process is left and
the second run ends with the bytes of the undisturbed one (but for a training's log, which tells seconds) and without
hidden leftovers. Runs are forked from a process that has loaded everything, so that kills fall into the work and not
into imports.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.crash_disturbed import DISTURBANCES
from benchmarks.crash_runs import (
    LIMIT_SECONDS,
    SIDE,
    SLICES,
    VERBS,
    contents,
    ended,
    final,
    forked,
    inputs,
    left_over,
    visible,
)

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "results" / "crash.md"


@dataclass
class Tally:
    """What became of the kills of one verb."""

    kills: int = 0
    ended: int = 0  # the run was over before the kill
    lost: int = 0
    torn: int = 0
    orphans: int = 0
    failed: int = 0
    other: int = 0
    leftovers: int = 0
    seconds: list[float] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Nothing lost, torn, left or other."""
        return not (self.lost or self.torn or self.orphans or self.failed or self.other or self.leftovers)


def killed(place: Path, name: str, words: str, kills: int, draw: random.Random) -> tuple[Tally, bool]:
    """Kill a verb again and again; whether its undisturbed runs agree to the byte comes second."""
    tally, out = Tally(), place / "out"
    command = words.replace("OUT", "out/result")
    before = contents(place / "in")

    def fresh() -> None:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()

    wanted: list[dict[str, str]] = []
    for _ in range(2):
        fresh()
        begun = time.monotonic()
        code = ended(forked(place, command), LIMIT_SECONDS)
        tally.seconds.append(time.monotonic() - begun)
        if code != 0:
            sys.exit(f"{name}: expected exit code 0, found {code}: {(place / 'said').read_text()[-500:]}")
        wanted.append(visible(contents(out)))
    same = wanted[0] == wanted[1]
    for _ in range(kills):
        fresh()
        child = forked(place, command)
        code = ended(child, draw.uniform(0, min(tally.seconds)))
        if code is None:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        tally.kills += 1
        tally.ended += code is not None
        tally.orphans += left_over(child)
        tally.lost += contents(place / "in") != before
        half = visible(contents(out))
        # What stands under a final name is what stands there in the end; a tree may hold fewer of them.
        tally.torn += same and any(wanted[0].get(one) != digest for one, digest in half.items() if final(one))
        if same and half == wanted[0]:
            # Whole before the kill: a verb that is not resumed refuses to replace what stands, and rightly.
            tally.ended += code is None
            continue
        code = ended(forked(place, command), LIMIT_SECONDS)
        tally.failed += code != 0
        after = contents(out)
        tally.other += same and code == 0 and visible(after) != wanted[0]
        tally.leftovers += any(part.endswith((".part", ".replaced")) for one in after for part in one.split("/"))
    return tally, same


#: Columns of the page.
KILLS = (
    "| verb | seed | seconds | kills | run was over | inputs changed | final name torn | processes left "
    "| second run failed | other bytes | leftovers |"
)
DISTURBED = "| disturbance | runs | what came of it |"


@dataclass
class Page:
    """The page, written after every row: a run that is stopped leaves what it has found.

    Attributes
    ----------
    kills, others : rows by their first cell.
    notes : what did not pass, by the first cell of its row.
    """

    kills: dict[str, str] = field(default_factory=dict)
    others: dict[str, str] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def read(cls) -> Page:
        """What an earlier run of this command wrote."""
        page = cls()
        text = PAGE.read_text() if PAGE.exists() else ""
        if KILLS not in text:
            return page
        for name, row in re.findall(r"(?m)^\| (?!verb|disturbance)([^|]+) (\|.*\|)$", text):
            (page.kills if row.count("|") == KILLS.count("|") - 1 else page.others)[name] = row
        for name, note in re.findall(r"(?m)^- `([^`]+)`: (.*)$", text):
            page.notes.setdefault(name, []).append(note)
        return page

    def say(self, name: str, text: str) -> None:
        """A note on what did not pass."""
        self.notes.setdefault(name, []).append(" ".join(text.split())[:300])
        print(f"{name}: {text}", flush=True)

    def write(self) -> None:
        """To docs/results."""
        lines = [
            "# Runs that are killed or disturbed",
            "",
            f"Written by `make crash` (`benchmarks/crash.py`) on simulated discs of {SLICES} slices, {SIDE} x {SIDE}.",
            "Seconds are of an undisturbed run, on a machine with other work.",
            "",
            "SIGKILL at a random moment, then the same command again:",
            "",
            KILLS,
            "|---" * (KILLS.count("|") - 1) + "|",
            *(f"| {name} {self.kills[name]}" for name in VERBS if name in self.kills),
            "",
            DISTURBED,
            "|---|---|---|",
            *(f"| {name} {row}" for name, row in self.others.items()),
        ]
        if any(self.notes.values()):
            lines += ["", "What did not pass:", ""]
            lines += [f"- `{name}`: {note}" for name, notes in self.notes.items() for note in notes]
        PAGE.parent.mkdir(parents=True, exist_ok=True)
        PAGE.write_text("\n".join(lines) + "\n")


def main() -> None:
    """Run it all, or a part, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="over all verbs that are run")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="+", metavar="PART", help=f"{', '.join((*VERBS, *DISTURBANCES))}")
    parser.add_argument("--disturbed", nargs="+", choices=VERBS, default=list(VERBS), help="verbs that are disturbed")
    arguments = parser.parse_args()
    chosen = [name for name in VERBS if arguments.only is None or name in arguments.only]
    multiprocessing.set_start_method("spawn", force=True)
    # Runs with workers of their own, and trainings, take several times as long as the others.
    shares = {name: 0.4 if "-j" in name or name in ("train", "simulate") else 1.0 for name in VERBS}
    page, failed, left = Page.read(), 0, arguments.kills
    with tempfile.TemporaryDirectory(prefix="concordct-crash-") as folder:
        place = Path(folder)
        inputs(place)
        for number, name in enumerate(chosen):
            kills = round(left * shares[name] / sum(shares[one] for one in chosen[number:]))
            left -= kills
            tally, same = killed(place, name, VERBS[name], kills, random.Random(f"{arguments.seed} {name}"))
            other = str(tally.other) if same else "not reproducible"
            found = (tally.kills, tally.ended, tally.lost, tally.torn, tally.orphans, tally.failed, other)
            cells = (arguments.seed, f"{min(tally.seconds):.1f}", *found, tally.leftovers)
            page.kills[name] = f"| {' | '.join(map(str, cells))} |"
            page.notes.pop(name, None)
            print(name, page.kills[name], flush=True)
            if not tally.passed:
                failed += 1
                page.say(name, str(tally))
            page.write()
        for name in [one for one in DISTURBANCES if arguments.only is None or one in arguments.only]:
            for what, runs, came, notes in DISTURBANCES[name](place, arguments.disturbed):
                page.others[what] = f"| {runs} | {came} |"
                page.notes.pop(what, None)
                print(what, page.others[what], flush=True)
                for note in notes:
                    failed += 1
                    page.say(what, note)
                page.write()
    print(f"{PAGE.relative_to(ROOT)}: {failed} that did not pass")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
