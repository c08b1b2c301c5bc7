"""Full and read-only disks, a read-only container, sources that vanish or change, two runs into one output: part of
`benchmarks.crash`.

The full disk and the read-only place are file systems in memory, mounted by the forked run over its output in a
namespace of its own, which takes Linux and the right to make one; without it the page says so. In the container nothing
can be written but the output: no home, no folder for temporary files, no cache of numba or matplotlib; its runs start
Python anew, since what is loaded already asks for none of these.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import resource
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.crash_runs import LIMIT_SECONDS, VERBS, contents, ended, final, forked, visible

#: What a disturbance was, runs, what came of it, and a note on each that did not pass.
Row = tuple[str, int, str, list[str]]
#: mount(2) and unshare(2).
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC = 1, 32, 4096, 16384
CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
#: Verbs that run twice at once.
TWICE = ("standardize", "calibrate", "features", "rois")
#: Bytes of the small file system, and of the longest file.
DISKS, LONGEST = (8_192, 65_536), (2_000, 20_000)


def disks(place: Path, verbs: Sequence[str]) -> Iterator[Row]:
    """Files that may not grow, full and read-only disks, a place that is none: each verb once in each."""
    wanted = {name: _undisturbed(place, VERBS[name]) for name in verbs}
    for size in LONGEST:
        yield _every_verb(place, f"a file may have {size:,} bytes", wanted, lambda size=size: _longest(size))
    for size in DISKS:
        yield _every_verb(place, f"full disk of {size:,} bytes", wanted, lambda size=size: _mounted(place, size))
    yield _every_verb(place, "read-only disk", wanted, lambda: _mounted(place, None))
    yield _every_verb(place, "a place that is none", wanted, None)


def _undisturbed(place: Path, words: str) -> dict[str, str]:
    _fresh(place)
    code = ended(forked(place, words.replace("OUT", "out/result")), LIMIT_SECONDS)
    if code != 0:
        raise SystemExit(f"{words}: expected exit code 0, found {code}: {(place / 'said').read_text()[-500:]}")
    return visible(contents(place / "out"))


def _fresh(place: Path) -> None:
    shutil.rmtree(place / "out", ignore_errors=True)
    (place / "out").mkdir()


def _longest(size: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    # What the run says is a file too; the shortest is longer than that.
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def _mounted(place: Path, size: int | None) -> None:
    """A small file system over `out`; read-only where no size is given. OSError where the system forbids it."""
    libc = _own_namespace()
    flags, options = (MS_RDONLY, b"") if size is None else (0, b"size=%d" % size)
    if libc.mount(b"none", os.fsencode(place / "out"), b"tmpfs", flags, options):
        raise OSError(ctypes.get_errno(), "no file system of its own")


def _own_namespace() -> ctypes.CDLL:
    """Mounts of this process alone; OSError where the system forbids it."""
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "no namespace of its own")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    return libc


def container(place: Path, verbs: Sequence[str]) -> Iterator[Row]:
    """Nothing can be written but the output: each verb once, done as ever or refused in words."""
    refused = done = 0
    notes = []
    for name in verbs:
        wanted = _undisturbed(place, VERBS[name])
        _fresh(place)
        code = ended(_contained(place, VERBS[name].replace("OUT", "out/result")), LIMIT_SECONDS)
        said = (place / "said").read_text(errors="replace")
        left = visible(contents(place / "out"))
        torn = [one for one, digest in left.items() if final(one) and wanted.get(one) != digest]
        done += code == 0
        refused += code in (1, 2)
        if code not in (0, 1, 2) or torn or (code == 0 and left != wanted) or "Traceback" in said or "fault" in said:
            notes.append(f"{name}: exit {code}, torn {torn[:3]}, whole {left == wanted}, {said[-250:]}")
    came = f"{done} done whole, {refused} refused in words, {len(notes)} otherwise"
    yield "a read-only container, its output alone can be written", len(verbs), came, notes


def _contained(place: Path, words: str) -> int:
    """A run of Python anew among mounts that are read-only but for `out`; its process id."""
    child = os.fork()
    if child:
        return child
    try:
        os.setsid()
        said = os.open(place / "said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1)
        os.dup2(said, 2)
        libc, out = _own_namespace(), os.fsencode(place / "out")
        mounts = sorted({line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}, key=len)
        if libc.mount(out, out, None, MS_BIND | MS_REC, None):
            raise OSError(ctypes.get_errno(), "no mount of its own")
        for mount in mounts:  # below /proc, /sys and /dev lie no files; what may not be changed is so already
            if not mount.startswith(("/proc", "/sys")) and mount != "/dev":
                libc.mount(None, os.fsencode(mount), None, MS_REMOUNT | MS_BIND | MS_RDONLY, None)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("XDG", "MPL", "NUMBA"))}
        os.chdir(place)
        os.execve(sys.executable, [sys.executable, "-m", "concordct.cli", *words.split()], kept | {"HOME": "/none"})
    except OSError as error:
        print(f"Traceback: {error}", flush=True)
    finally:
        os._exit(70)


def _every_verb(place: Path, what: str, wanted: dict[str, dict[str, str]], prepare: Callable[[], None] | None) -> Row:
    """Each verb once: done, or refused in words; never a traceback, nor half a result under its final name."""
    refused = done = 0
    notes = []
    stood = place / "stood.json"

    def finish() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.getrlimit(resource.RLIMIT_FSIZE)[1],) * 2)
        stood.write_text(json.dumps(visible(contents(place / "out"))))

    for name in wanted:
        words = VERBS[name]
        _fresh(place)
        stood.unlink(missing_ok=True)
        output = "/proc/none/result" if prepare is None else "out/result"
        code = ended(forked(place, words.replace("OUT", output), prepare=prepare, finish=finish), LIMIT_SECONDS)
        said = (place / "said").read_text(errors="replace")
        left = json.loads(stood.read_text()) if stood.exists() else {}
        torn = [one for one, digest in left.items() if final(one) and wanted[name].get(one) != digest]
        done += code == 0
        refused += code in (1, 2)
        whole = code != 0 or left == wanted[name]
        if code not in (0, 1, 2) or torn or not whole or "Traceback" in said or "fault of the program" in said:
            notes.append(f"{name}: exit {code}, torn {torn[:3]}, whole {whole}, {said[-250:]}")
    return what, len(wanted), f"{done} done whole, {refused} refused in words, {len(notes)} otherwise", notes


def meddled(place: Path, verbs: Sequence[str], turns: int = 20) -> Iterator[Row]:
    """Sources removed or rewritten during a run: refused, or the result of what stood there; never a mixture."""
    draw, notes, done, refused = random.Random(5), [], 0, 0
    command = VERBS["standardize"].replace("OUT", "out/result").replace(" in ", " copy ")
    copy = place / "copy"

    def fresh() -> list[Path]:
        _fresh(place)
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(place / "in", copy)
        return sorted(copy.rglob("*.dcm"))

    def spoil(files: list[Path], turn: int) -> None:
        """Odd turns remove files, even ones rewrite them: every one, every second or every third."""
        for one in files[:: 1 + turn % 3]:
            if turn % 2:
                one.unlink()
            else:
                one.write_bytes(one.read_bytes()[:-64] + bytes(64))

    begun = time.monotonic()
    wanted = _result(place, command, fresh)
    took = time.monotonic() - begun
    # What was spoilt before the run looked at it is another scan, whole in itself.
    spoilt = {turn: _result(place, command, lambda turn=turn: spoil(fresh(), turn)) for turn in range(6)}
    for turn in range(turns):
        files = fresh()
        child = forked(place, command)

        def meddle(wait: float = draw.uniform(0, took), turn: int = turn, files: list[Path] = files) -> None:
            time.sleep(wait)
            spoil(files, turn)

        thread = threading.Thread(target=meddle)
        thread.start()
        code = ended(child, LIMIT_SECONDS)
        thread.join()
        said = (place / "said").read_text(errors="replace")
        left = visible(contents(place / "out"))
        done += code == 0
        refused += code in (1, 2)
        own = wanted, spoilt[turn % 6]
        mixed = [one for one in {Path(name).parent for name in left} if not any(_as_in(one, left, of) for of in own)]
        if code not in (0, 1, 2) or "Traceback" in said or mixed:
            notes.append(f"turn {turn}: exit {code}, neither the one nor the other {mixed[:3]}, {said[-200:]}")
    came = f"{done} done, {refused} refused in words, {len(notes)} otherwise"
    yield "sources that vanish or change meanwhile", turns, came, notes


def _result(place: Path, command: str, prepare: Callable[[], object]) -> dict[str, str]:
    prepare()
    ended(forked(place, command), LIMIT_SECONDS)
    return visible(contents(place / "out"))


def _as_in(folder: Path, left: dict[str, str], wanted: dict[str, str]) -> bool:
    """Whether the slices that stand in a folder are all those of `wanted`."""
    names = [one for one in left if Path(one).parent == folder and one.endswith(".dcm")]
    return all(wanted.get(one) == left[one] for one in names)


def twice(place: Path, verbs: Sequence[str]) -> Iterator[Row]:
    """Two runs into one output at once: what one run leaves stands there in the end."""
    notes, runs = [], 0
    for name in TWICE:
        wanted = _undisturbed(place, VERBS[name])
        command = VERBS[name].replace("OUT", "out/result")
        for _ in range(3):
            _fresh(place)
            both = [forked(place, command), forked(place, command)]
            codes = sorted(-9 if code is None else code for code in (ended(one, LIMIT_SECONDS) for one in both))
            same = visible(contents(place / "out")) == wanted
            runs += 1
            if codes[0] != 0 or codes[1] not in (0, 1, 2) or not same:
                notes.append(
                    f"{name}: exits {codes}, same {same}, {(place / 'said').read_text(errors='replace')[-200:]}"
                )
    came = f"{runs - len(notes)} whole and as one run leaves it, {len(notes)} otherwise"
    yield "two runs into one output at once", runs, came, notes


#: By the word of the command line that asks for them.
DISTURBANCES = {"disks": disks, "container": container, "meddled": meddled, "twice": twice}
