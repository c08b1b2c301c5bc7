"""Which software made results, and on what machine."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from concordct import __version__


def provenance() -> dict[str, Any]:
    """Software, commit and machine, for every file of results."""
    here = Path(__file__).resolve().parent
    git = ["git", "-C", str(here)]
    commit = None
    try:
        top = subprocess.run(
            [*git, "rev-parse", "--show-toplevel"], capture_output=True, text=True, timeout=5, check=True
        )
        if Path(top.stdout.strip()).resolve() in here.parents:
            head = subprocess.run(
                [*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, timeout=5, check=True
            )
            commit = head.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        pass  # an installed package has no commit
    return {
        "software": f"concordct {__version__}",
        "commit": commit,
        "machine": f"{_processor()}, {os.cpu_count()} cores, Python {platform.python_version()}",
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
