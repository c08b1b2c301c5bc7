"""A few hundred mutations of each kind of file, in a process of its own; `make fuzz` runs an hour of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FUZZ = Path(__file__).with_name("fuzz.py")


def test_mutated_files_are_refused_in_one_line_or_read_as_the_reference_reads_them() -> None:
    found = subprocess.run(
        [sys.executable, str(FUZZ), "--mutations", "400", "--minutes", "0.5", "--seed", "20"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert found.returncode == 0, (found.stdout + found.stderr)[-3000:]
    assert "| nifti |" in found.stdout
