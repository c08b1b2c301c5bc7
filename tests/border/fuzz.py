"""Seeded mutations of every kind of file that is read: refused in one line, or read as the reference reads it.

    python tests/border/fuzz.py --mutations 10000 --results docs/results/fuzz.md
    python tests/border/fuzz.py --mutations 10000 --results docs/results/fuzz.md --only dicom
    python tests/border/fuzz.py --case nifti/123 --keep /tmp/case        # one mutation again, by its number

A failure is an exception other than a ConcordctError, a message of several lines, more than 20 s of processor time,
more than 2 GB, a crash, or other HU, geometry or labels than the reference (pydicom, nibabel, SimpleITK) reads. A
target is a name, its undamaged files and what reads them; it is added to `TARGETS` (`fuzz_targets.py`). With `--only`
and `--results` the page is written as it goes, and the same command goes on where the page says that it stopped.
"""

from __future__ import annotations

import argparse
import gzip
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from fuzz_targets import TARGETS, Target, Wrong

from concordct.errors import ConcordctError

#: Of processor time; of the clock eight times as much, for machines that are busy otherwise.
SECONDS, BYTES = 20, 2 * 2**30
#: Numbers that programs stumble over.
INTEGERS = (0, 1, -1, 2, 127, 128, 255, 256, 32767, -32768, 65535, 2**31 - 1, -(2**31), 2**32 - 1)
WORDS = (b"0", b"-1", b"1e308", b"nan", b"inf", b"999999999999999999999", b"", b"=", b":", b"%d", b"../x", b"/etc",
         b"LIST", b"\x1b[31m", b"\xff\xfe", b"(1,0,0)", b"none", b"*a", b"&a [*a]", b"{",
         b"[[[[[[[[", b'"', b",")  # fmt: skip


def mutated(data: bytes, random: np.random.Generator) -> bytes:
    """One to four changes: bits, bytes, words, numbers, pieces cut or doubled; half of them near the beginning."""
    out = bytearray(data)
    for _ in range(int(random.integers(1, 5))):
        if not out:
            break
        head = min(len(out), 700)
        at = int(random.integers(head if random.random() < 0.6 else len(out)))
        span = int(random.integers(1, 1 + min(64, len(out) - at)))
        kind = int(random.integers(10))
        if kind <= 2:
            out[at] ^= 1 << int(random.integers(8))
        elif kind == 3:
            out[at : at + span] = random.bytes(span)
        elif kind == 4:
            width = int(random.choice([1, 2, 4, 8]))
            value = int(random.choice(INTEGERS)) % 256**width
            out[at : at + width] = value.to_bytes(width, random.choice(["little", "big"]))
        elif kind == 5:
            del out[int(random.integers(len(out))) :]
        elif kind == 6:
            del out[at : at + span]
        elif kind == 7:
            out[at:at] = out[at : at + span] * int(random.choice([1, 2, 3000]))
        elif kind == 8:
            out[at : at + int(random.integers(3))] = WORDS[int(random.integers(len(WORDS)))]
        else:
            _change_text(out, random)
    return bytes(out)


def _change_text(out: bytearray, random: np.random.Generator) -> None:
    """A number or a whole line of a text header."""
    head = bytes(out[:2000])
    numbers = list(re.finditer(rb"[-+.\d]+", head))
    lines = list(re.finditer(rb"[^\n]*\n", head))
    if numbers and random.random() < 0.6:
        found = numbers[int(random.integers(len(numbers)))]
        out[found.start() : found.end()] = WORDS[int(random.integers(len(WORDS)))]
    elif lines:
        found = lines[int(random.integers(len(lines)))]
        out[found.start() : found.end()] = b"" if random.random() < 0.5 else found.group() * 2


def prepare(target: Target, number: int, seed: int, place: Path) -> Path:
    """Write the files of one case, one of them mutated; the path that is read."""
    random = np.random.default_rng([seed, number, *target.name.encode()])
    names = sorted(target.seeds)
    files = target.seeds[names[int(random.integers(len(names)))]]
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    chosen = sorted(files)[int(random.integers(len(files)))]
    for name, data in files.items():
        written = data
        if name == chosen and name.endswith(".gz") and random.random() < 0.6:
            written = gzip.compress(mutated(gzip.decompress(data), random), mtime=0)
        elif name == chosen:
            written = mutated(data, random)
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(written)
    return place / next(iter(files)) if target.reads_file else place


def run_case(target: Target, path: Path) -> str:
    """ "refused" or "read"; AssertionError or Wrong where it is neither."""
    try:
        target.read(path)
    except ConcordctError as error:
        said = str(error)
        assert said.isprintable(), f"message with line ends or control characters: {said[:200]!r}"
        assert len(said) < 700, f"message of {len(said)} characters"
        assert "nexpected" not in said, said
        return "refused"
    return "read"


def _too_long(number: int, frame: FrameType | None) -> None:
    raise TimeoutError(f"more than {SECONDS} s of processor time, or {8 * SECONDS} s of the clock")


def fuzz(
    mutations: int,
    seconds: float,
    seed: int,
    only: str | None,
    place: Path,
    *,
    first: int = 0,
    report: Callable[[Counter[str], list[str]], None] = lambda counts, failures: None,
) -> tuple[Counter[str], list[str]]:
    """Cases of all targets in turn; counts by target and outcome, and the failures.

    Parameters
    ----------
    mutations, first : the cases from `first` to `mutations`.
    report : called with what is known, every minute.
    """
    targets = [target for target in TARGETS if only in (None, target.name)]
    counts: Counter[str] = Counter()
    failures: list[str] = []
    for kind in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(kind, _too_long)
    told = time.monotonic()
    until = told + seconds
    number = first
    while number < mutations and time.monotonic() < until:
        target = targets[number % len(targets)]
        case = f"{target.name}/{number}"
        path = prepare(target, number, seed, place / "case")
        (place / "running").write_text(case)  # a crash of the process leaves its name here
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.alarm(8 * SECONDS)
        try:
            outcome = run_case(target, path)
        except (Exception, Wrong) as error:
            outcome = "failed"
            failures.append(f"{case}: {type(error).__name__}: {str(error)[:300]}")
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.alarm(0)
        counts[f"{target.name} {outcome}"] += 1
        number += 1
        if time.monotonic() > told + 60:
            report(counts, failures)
            told = time.monotonic()
    return counts, failures


ROW = re.compile(r"(?m)^\| (\w+) \|" + r" *(\d+) \|" * 5 + "$")


def page(counts: Counter[str], failures: list[str], seed: int, seconds: float, before: str = "", *, add: bool) -> str:
    """The results as a page; rows of targets that this run left out are those of the page before.

    `add`: this run goes on with that of the page, whose numbers count too.
    """
    rows = {name: [int(cell) for cell in cells] for name, *cells in ROW.findall(before)}
    for target in TARGETS:
        of = [counts[f"{target.name} {outcome}"] for outcome in ("refused", "read", "failed")]
        if sum(of):
            own = [seed, round(seconds * sum(of) / sum(counts.values())), *of]
            earlier = rows.get(target.name) if add else None
            rows[target.name] = [seed, *(a + b for a, b in zip(own[1:], earlier[1:], strict=True))] if earlier else own
    lines = [
        "# Mutated files",
        "",
        "`python tests/border/fuzz.py`: mutations of small files made for this (simulated). Refused: in one line.",
        "Read: with the HU, geometry or labels that nibabel, SimpleITK or pydicom read, where those read it. Failed:",
        "anything else, more than 20 s or 2 GB included. Seconds are of the clock, on a machine with other work.",
        "",
        "| target | seed | seconds | refused | read | failed |",
        "|---|---|---|---|---|---|",
        *(f"| {one.name} | {' | '.join(map(str, rows[one.name]))} |" for one in TARGETS if one.name in rows),
    ]
    told = [line for line in before.splitlines() if add and line.startswith("- ")]
    return "\n".join([*lines, "", *told, *(f"- {one}" for one in failures[:20])]).rstrip() + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=10**9)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=[target.name for target in TARGETS])
    parser.add_argument("--case", help="target/number of one case")
    parser.add_argument("--keep", type=Path, help="folder for the files of --case")
    parser.add_argument("--results", type=Path, help="page to write; what it says of other targets stays")
    given = parser.parse_args()
    # A warning may quote what a damaged header holds.
    warnings.filterwarnings("error", category=UserWarning)
    # What is there already counts as address space too; 2 GB come on top.
    base = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (base + BYTES, base + BYTES))
    if given.case:
        name, number = given.case.split("/")
        target = next(one for one in TARGETS if one.name == name)
        print(run_case(target, prepare(target, int(number), given.seed, given.keep)))
        return 0
    before = given.results.read_text() if given.results and given.results.exists() else ""
    earlier = next((row for row in ROW.findall(before) if (row[0], row[1]) == (given.only, str(given.seed))), None)
    started = time.monotonic()

    def write(counts: Counter[str], failures: list[str]) -> None:
        text = page(counts, failures, given.seed, time.monotonic() - started, before, add=earlier is not None)
        if given.results:
            given.results.write_text(text)
        print(text, flush=True)

    with tempfile.TemporaryDirectory() as place:
        counts, failures = fuzz(
            given.mutations,
            60 * given.minutes,
            given.seed,
            given.only,
            Path(place),
            first=sum(map(int, earlier[3:])) if earlier else 0,
            report=write if given.only else lambda counts, failures: None,
        )
    write(counts, failures)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
