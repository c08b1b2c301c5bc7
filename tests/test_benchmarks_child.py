"""What a benchmark says of a command: its exit code, its words, and the memory of what it leaves behind."""

from __future__ import annotations

import sys

from benchmarks.child import measured

#: Starts a process of 200 MB, and ends before it does.
LEAVES = """
import subprocess, sys
subprocess.Popen([sys.executable, "-c", "import time; held = b'x' * 200_000_000; time.sleep(0.2)"])
print("gone")
sys.exit(3)
"""


def test_what_a_command_leaves_behind_is_counted_and_this_process_is_not() -> None:
    held = b"x" * 150_000_000  # a child's peak as the system tells it would begin here
    small = measured([sys.executable, "-c", "print('small')"])
    assert (small.code, small.said.strip()) == (0, "small")
    assert small.peak_mib < 100 < len(held) / 2**20
    left = measured([sys.executable, "-c", LEAVES])
    assert (left.code, left.said.strip()) == (3, "gone")
    assert 190 < left.peak_mib < 300
