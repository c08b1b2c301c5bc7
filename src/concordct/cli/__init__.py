"""The command line: every verb a thin call into pipelines, with its example in `--help`.

Results go to standard output, progress and errors to standard error. Exit codes: 0 all done, 1 some scans failed,
2 nothing could be done (one line says what was found and what was expected), 3 all done and some scans failed their
self-check, 130 interrupted.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from types import FrameType

# Before NumPy is loaded: our matrices are small, and BLAS threads on them double the processor time for nothing.
os.environ["OPENBLAS_NUM_THREADS"] = os.environ.get("OPENBLAS_NUM_THREADS", "1")
# Before torch is loaded: where other work shares the cores, threads that spin while they wait for each other take two
# to three times the processor time of the work itself (benchmarks/followup_speed.py).
os.environ["OMP_WAIT_POLICY"] = os.environ.get("OMP_WAIT_POLICY", "PASSIVE")

from concordct.cli import common

# Their import hangs the verbs into the application, in the order in which --help lists them.
# isort: off
from concordct.cli import inspecting
from concordct.cli import standardizing
from concordct.cli import training
from concordct.cli import measuring
from concordct.cli import endpoints
from concordct.cli import harmonizing
from concordct.cli import cohorts
from concordct.cli import followup
from concordct.cli import serving
# isort: on

__all__ = ["main"]

VERBS = (inspecting, standardizing, training, measuring, endpoints, harmonizing, cohorts, followup, serving)


def _terminated(number: int, frame: FrameType | None) -> None:
    # As an exception, so that what was built aside is cleared.
    raise SystemExit(128 + number)


class _Interrupted(SystemExit):
    """Ctrl-C, as an exception that clears what was built aside and ends the program."""


def _interrupted(number: int, frame: FrameType | None) -> None:
    raise _Interrupted(128 + number)


def main() -> None:
    """Run the command line; whatever goes wrong becomes one line and exit code 2."""
    signal.signal(signal.SIGTERM, _terminated)
    signal.signal(signal.SIGINT, _interrupted)
    for stream in (sys.stdout, sys.stderr):
        # Names of files need not be UTF-8, and a terminal need not be either.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with common.only_named(sys.argv[1:]):
            common.app()
    except _Interrupted:
        common.warn("interrupted", "what was finished stands; the same command goes on where it stopped")
        raise
    except BrokenPipeError:
        # Whoever read the output has gone; so does what would be flushed at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(128 + signal.SIGPIPE)
    except Exception as error:
        common.fail(error)
        sys.exit(common.REFUSED)
