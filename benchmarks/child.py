"""One command measured from outside: the clock, processor time and peak memory, of all processes that it starts.

A small process starts it and adopts what the command leaves behind, such as the process that its workers fork from:
the peak that the system tells of a child begins at its parent's memory, and processor time comes from whoever waits.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

#: What stands before the command line of concordct where nothing else is asked for.
PROGRAM = "from concordct.cli import main; main()"
_SMALL = """
import ctypes, json, os, sys, time
try:
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
except Exception:
    pass
begun = time.perf_counter()
child = os.fork()
if child == 0:
    os.dup2(2, 1)
    os.execv(sys.argv[1], sys.argv[1:])
code, wall, cpu, peak = None, 0.0, 0.0, 0.0
while True:
    try:
        pid, status, usage = os.wait4(-1, 0)
    except ChildProcessError:
        break
    if pid == child:
        code, wall = os.waitstatus_to_exitcode(status), time.perf_counter() - begun
    cpu, peak = cpu + usage.ru_utime + usage.ru_stime, max(peak, usage.ru_maxrss / 1024)
print(json.dumps([code, wall, cpu, peak]))
"""


@dataclass(frozen=True)
class Measured:
    """What a command took.

    Attributes
    ----------
    code : its exit code.
    wall_s : seconds by the clock until it ended.
    cpu_s : processor seconds of it and of its workers.
    peak_mib : of the largest of its processes.
    said : what it wrote to standard output and error.
    """

    code: int
    wall_s: float
    cpu_s: float
    peak_mib: float
    said: str


def measured(
    line: Sequence[str | Path],
    *,
    threads: int = 1,
    one_core: bool = False,
    environment: Mapping[str, str] | None = None,
    prepare: Callable[[], None] | None = None,
) -> Measured:
    """Run a program, named by its path.

    Parameters
    ----------
    threads : of its arithmetic.
    one_core : whether it may use one core alone.
    environment : what is added to that of this process.
    prepare : called in the new process before the program.
    """

    def begin() -> None:
        if one_core and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        if prepare is not None:
            prepare()

    whole = {**os.environ, "OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": "1", **(environment or {})}
    whole.pop("PYTHONDONTWRITEBYTECODE", None)  # as installed, where modules are compiled already
    done = subprocess.run(
        [sys.executable, "-c", _SMALL, *map(str, line)],
        env=whole,
        preexec_fn=begin,
        capture_output=True,
        text=True,
        check=True,
    )
    code, wall, cpu, peak = json.loads(done.stdout.splitlines()[-1])
    return Measured(code, wall, cpu, peak, done.stderr)


def concordct(
    *words: str | Path,
    before: str = "",
    threads: int = 1,
    one_core: bool = False,
    prepare: Callable[[], None] | None = None,
) -> Measured:
    """One concordct command; `before` is Python that runs first in its process."""
    program = f"{before}\n{PROGRAM}"
    return measured([sys.executable, "-c", program, *words], threads=threads, one_core=one_core, prepare=prepare)


def succeeded(*words: str | Path, before: str = "", threads: int = 1, one_core: bool = False) -> Measured:
    """As `concordct`, and the benchmark ends where the command fails."""
    found = concordct(*words, before=before, threads=threads, one_core=one_core)
    if found.code:
        raise SystemExit(f"{' '.join(map(str, words))} ended with {found.code}: {found.said[-500:]}")
    return found
