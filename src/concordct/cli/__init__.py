"""The command line: every verb a thin call into pipelines, with its example in `--help`.

Results go to standard output, progress and errors to standard error. Exit codes: 0 all done, 1 some scans failed,
2 nothing could be done (one line says what was found and what was expected), 130 interrupted.
"""

from __future__ import annotations

import sys

from rich.markup import escape

from concordct.cli import cohorts, common, standardizing, training
from concordct.errors import ConcordctError

__all__ = ["main"]

#: Modules whose import hangs their verbs into the application.
VERBS = (standardizing, cohorts, training)


def main() -> None:
    """Run the command line; what concordct refuses becomes one line and exit code 2."""
    try:
        common.app()
    except ConcordctError as error:
        line = escape(" ".join(str(error).split()))
        common.errors.print(f"error: {line}", style="red", soft_wrap=True, highlight=False)
        sys.exit(common.REFUSED)
