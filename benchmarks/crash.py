"""Kill runs, fill disks, take sources away: what stands afterwards, and does the same command then end as ever?

    .venv/bin/python -m benchmarks.crash            (make crash; some minutes; writes docs/results/crash.md)

Every verb that writes is run undisturbed first, then killed with SIGKILL at random moments (seeded) and run again. A
kill is passed when nothing that stood before is gone, the final name holds nothing or all of it, no process is left and
the second run ends with the bytes of the undisturbed one and without hidden leftovers. Runs are forked from a process
that has loaded everything, so that kills fall into the work and not into imports.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from concordct.cli import main as command_line
from concordct.volumes.manifest import PairRow, write_manifest
from concordct.volumes.new_series import SimulatedScan, write_new_series
from concordct.volumes.volume import Volume

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "results" / "crash.md"
SIDE, SLICES = 64, 4
#: A forked run that takes longer hangs.
LIMIT_SECONDS = 300

#: Verb and its words; OUT is where it writes, beside the inputs.
VERBS = {
    "calibrate": "calibrate in/a/soft in/a/sharp -o OUT",
    "standardize": "standardize in -m model --any-kernel --mode mean --check off -o OUT",
    "standardize -j 2": "standardize in -m model --any-kernel --mode mean --check off --workers 2 -o OUT",
    "standardize, NIfTI": "standardize in/a/soft -m model --mode mean -o OUT/a.nii.gz",
    "features": "features in/a/soft -p pyradiomics-default --roi rois.nii.gz -o OUT/f.csv",
    "features -j 2": "features --pairs pairs.csv -p pyradiomics-default --workers 2 -o OUT/f.csv",
    "rois": "rois in/a/soft --size 12 -o OUT/rois.nii.gz",
    "agree": "agree soft.csv sharp.csv --repeats 50 -o OUT",
    "evaluate": "evaluate --source in/a/soft --standardized in/a/sharp --target in/a/sharp -o OUT",
    "simulate": "simulate phantom --kernel Br40 --kernel Bl64 --slice-thickness 1 --slices 1 --matrix 32 -o OUT",
    "cohort": "cohort folder in --kernel B30f --kernel B70f -o OUT",
    "train": "train ltdiffpp pairs.csv --recipe small --most-steps 2 -o OUT",
}


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


def inputs(place: Path) -> None:
    """Two patients with two kernels each, a manifest, ROIs, features and a model."""
    y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    body = np.where(np.hypot(y, x) < 0.4 * SIDE, 40.0, -990.0)
    affine = np.eye(4)[[2, 1, 0, 3]] * (3.0, 0.8, 0.8, 1.0)  # z, y, x to LPS
    rows = []
    for subject in "ab":
        noise = np.random.default_rng(ord(subject)).normal(0, 40, (SLICES, SIDE, SIDE))
        soft = (noise + np.roll(noise, 1, 1) + np.roll(noise, 1, 2)) / 3
        for number, (name, kernel, values) in enumerate((("soft", "B30f", soft), ("sharp", "B70f", noise)), 1):
            hu = np.clip(np.rint(body + values), -1024, 3071).astype(np.float32)
            volume = Volume(hu=hu, affine=affine, slice_thickness_mm=3.0, kernel=kernel)
            scan = SimulatedScan(f"crash-{subject}", f"scan-{subject}", name, number, 120.0, 100.0)
            write_new_series(volume, place / "in" / subject / name, scan)
        source, target = place / "in" / subject / "soft", place / "in" / subject / "sharp"
        rows.append(PairRow(pair=subject, subject=subject, split="train", source=source, target=target))
    write_manifest(place / "pairs.csv", rows)
    for words in (
        "calibrate in/a/soft in/a/sharp -o model",
        "rois in/a/soft --size 12 -o rois.nii.gz",
        "features in/a/soft -p pyradiomics-default --roi rois.nii.gz --name a -o soft.csv",
        "features in/a/sharp -p pyradiomics-default --roi rois.nii.gz --name a -o sharp.csv",
    ):
        code = here(place, words)
        if code:
            sys.exit(f"{words}: expected exit code 0, found {code}")


def here(place: Path, words: str) -> int:
    """The command line in this process."""
    before, arguments = Path.cwd(), sys.argv
    os.chdir(place)
    sys.argv = ["concordct", *words.split()]
    try:
        command_line()
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        os.chdir(before)
        sys.argv = arguments
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
    return 0


def forked(place: Path, words: str, *, prepare: Callable[[], None] | None = None) -> int:
    """A forked run in a session of its own; its process id. What it says goes to `said` beside the inputs."""
    child = os.fork()
    if child:
        return child
    os.setsid()
    said = os.open(place / "said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    code = 70
    try:
        if prepare is not None:
            prepare()
        code = here(place, words)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(child: int, seconds: float) -> int | None:
    """Exit code of a run, negative for a signal; None when it still goes on after that time."""
    until = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= until:
            return None
        time.sleep(0.002)


def left_over(session: int) -> bool:
    """Whether a process of that session is there ten seconds later; those found are ended."""
    for _ in range(100):
        alive = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = path.read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(fields[3]) == session and fields[0] not in "ZX":
                alive.append(int(path.parent.name))
        if not alive:
            return False
        time.sleep(0.1)
    for one in alive:
        os.kill(one, signal.SIGKILL)
    return True


def contents(place: Path) -> dict[str, str]:
    """SHA-256 of every file by its path; hidden ones are leftovers."""
    return {
        path.relative_to(place).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(place.rglob("*"))
        if path.is_file()
    }


def visible(found: dict[str, str]) -> dict[str, str]:
    """Without what is hidden."""
    return {name: digest for name, digest in found.items() if not any(part[0] == "." for part in name.split("/"))}


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
        tally.torn += same and any(wanted[0].get(one) != digest for one, digest in half.items() if _final(name, one))
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


def _final(name: str, path: str) -> bool:
    """Whether a file is a result; records that claim a name for a run change until its end, as a training's do."""
    return path.endswith((".dcm", ".nii.gz", ".csv", ".html")) and name != "train"


def disturbed(place: Path, say: Callable[[str], None]) -> list[tuple[str, int, str]]:
    """Full and read-only disks, sources that vanish or change, two runs into one output: (what, runs, what came)."""
    rows = []
    out = place / "out"

    def limit(size: int) -> Callable[[], None]:
        def prepare() -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

        return prepare

    lines = wrong = runs = 0
    for name, words in VERBS.items():
        for size in (300, 5_000):
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            code = ended(forked(place, words.replace("OUT", "out/result"), prepare=limit(size)), LIMIT_SECONDS)
            runs += 1
            said = (place / "said").read_text()
            wrong += code not in (0, 1, 2) or "Traceback" in said
            lines += code in (1, 2)
            if code not in (0, 1, 2) or "Traceback" in said:
                say(f"full disk, {name}, {size} bytes: exit {code}, {said[-200:]}")
    rows.append(("full disk (files end at 300 and 5,000 bytes)", runs, f"{lines} refused in words, {wrong} otherwise"))

    lines = wrong = 0
    for name, words in VERBS.items():
        code = ended(forked(place, words.replace("OUT", "/proc/none/result")), LIMIT_SECONDS)
        said = (place / "said").read_text()
        bad = code not in (1, 2) or "Traceback" in said or "fault of the program" in said
        wrong += bad
        lines += not bad
        if bad:
            say(f"read-only, {name}: exit {code}, {said[-200:]}")
    rows.append(("a place that cannot be written", len(VERBS), f"{lines} refused in words, {wrong} otherwise"))

    draw, command = random.Random(5), VERBS["standardize"].replace("OUT", "out/result").replace(" in ", " copy ")
    shutil.rmtree(place / "copy", ignore_errors=True)
    shutil.copytree(place / "in", place / "copy")
    shutil.rmtree(out, ignore_errors=True)
    begun = time.monotonic()
    ended(forked(place, command), LIMIT_SECONDS)
    took, wanted = time.monotonic() - begun, visible(contents(out))
    done = refused = wrong = 0
    for turn in range(20):
        shutil.rmtree(place / "copy")
        shutil.copytree(place / "in", place / "copy")
        shutil.rmtree(out, ignore_errors=True)
        files = sorted((place / "copy").rglob("*.dcm"))
        child = forked(place, command)

        def meddle(wait: float = draw.uniform(0, took), turn: int = turn, files: list[Path] = files) -> None:
            time.sleep(wait)
            for one in files[:: 1 + turn % 3]:
                if turn % 2:
                    one.unlink()
                else:
                    one.write_bytes(one.read_bytes()[:-64] + bytes(64))

        thread = threading.Thread(target=meddle)
        thread.start()
        code = ended(child, LIMIT_SECONDS)
        thread.join()
        said = (place / "said").read_text()
        whole = all(wanted.get(one) == digest for one, digest in visible(contents(out)).items() if one.endswith(".dcm"))
        done += code == 0
        refused += code in (1, 2)
        if code not in (0, 1, 2) or "Traceback" in said or not (whole or turn % 2 == 0):
            wrong += 1
            say(f"meddled, turn {turn}: exit {code}, whole {whole}, {said[-200:]}")
    rows.append(
        ("sources that vanish or change meanwhile", 20, f"{done} done, {refused} refused in words, {wrong} wrong")
    )

    done = wrong = 0
    for name in ("standardize", "calibrate", "features", "simulate"):
        command = VERBS[name].replace("OUT", "out/result")
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        if ended(forked(place, command), LIMIT_SECONDS) != 0:
            sys.exit(f"{name}: expected exit code 0")
        wanted = visible(contents(out))
        for _ in range(3):
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            both = [forked(place, command), forked(place, command)]
            codes = sorted(code if code is not None else -9 for code in (ended(one, LIMIT_SECONDS) for one in both))
            good = codes[0] == 0 and codes[1] in (0, 1, 2) and visible(contents(out)) == wanted
            done += good
            wrong += not good
            if not good:
                say(f"two runs, {name}: exits {codes}, same {visible(contents(out)) == wanted}")
    rows.append(("two runs into one output at once", 12, f"{done} whole and as one run leaves it, {wrong} otherwise"))
    return rows


def _write(rows: list[str], others: list[tuple[str, int, str]], notes: list[str], seed: int, seconds: float) -> None:
    """The page, after every verb: a run that is stopped leaves what it has found."""
    page = (
        "# Runs that are killed or disturbed\n\nWritten by `make crash` (`benchmarks/crash.py`) on simulated discs of "
    )
    page += f"{SLICES} slices, {SIDE} x {SIDE}; seed {seed}, {seconds / 60:.0f} minutes so far.\n\n"
    page += "SIGKILL at a random moment, then the same command again:\n\n"
    page += "| verb | seconds | kills | run was over | inputs changed | final name torn | processes left | second run "
    page += "failed | other bytes | leftovers |\n|---|---|---|---|---|---|---|---|---|---|\n" + "\n".join(rows) + "\n\n"
    page += "| disturbance | runs | what came of it |\n|---|---|---|\n"
    page += "".join(f"| {what} | {runs} | {came} |\n" for what, runs, came in others)
    if notes:
        page += "\nWhat did not pass:\n\n" + "".join(f"- {' '.join(note.split())[:300]}\n" for note in notes)
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page)


def main() -> None:
    """Run it all and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="over all verbs")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    multiprocessing.set_start_method("spawn", force=True)
    draw, begun = random.Random(arguments.seed), time.monotonic()
    # Runs with workers of their own, and trainings, take several times as long as the others.
    shares = {name: 0.4 if "-j" in name or name in ("train", "simulate") else 1.0 for name in VERBS}
    notes: list[str] = []

    def say(text: str) -> None:
        notes.append(text)
        print(text, flush=True)

    rows, total = [], Tally()
    with tempfile.TemporaryDirectory(prefix="concordct-crash-") as folder:
        place = Path(folder)
        inputs(place)
        for name, words in VERBS.items():
            left = sum(shares[one] for one in list(VERBS)[len(rows) :])
            kills = round((arguments.kills - total.kills) * shares[name] / left)
            tally, same = killed(place, name, words, kills, draw)
            total.kills += tally.kills
            other = str(tally.other) if same else "not reproducible"
            found = (tally.kills, tally.ended, tally.lost, tally.torn, tally.orphans, tally.failed, other)
            rows.append(f"| {name} | {min(tally.seconds):.1f} | {' | '.join(map(str, found))} | {tally.leftovers} |")
            print(rows[-1], flush=True)
            if not tally.passed:
                say(f"{name}: {tally}")
            _write(rows, [], notes, arguments.seed, time.monotonic() - begun)
        others = disturbed(place, say)
    _write(rows, others, notes, arguments.seed, time.monotonic() - begun)
    print(f"{PAGE.relative_to(ROOT)}: {total.kills} kills, {len(notes)} that did not pass")


if __name__ == "__main__":
    main()
