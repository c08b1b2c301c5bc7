"""What is kept of a batch until all of it is done, image by image: what makes a run resumable."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from concordct import __version__
from concordct.volumes.files import VolumeFile
from concordct.volumes.scans import Scan


def part_name(facts: Sequence[str]) -> str:
    """A name for a part, by everything that it depends on and this version."""
    return hashlib.sha256(chr(0).join((__version__, *facts)).encode(errors="surrogateescape")).hexdigest()[:32]


def scan_facts(scan: Scan) -> list[str]:
    """What changes when a scan changes: its key, and path, size and time of its files."""
    paths = (scan.path,) if isinstance(scan, VolumeFile) else tuple(one.path for one in scan.slices)
    return [scan.key, *file_facts(paths)]


def file_facts(paths: Sequence[Path]) -> list[str]:
    """Path, size and time of files."""
    found = []
    for path in paths:
        state = path.stat()
        found.append(f"{path.resolve()} {state.st_size} {state.st_mtime_ns}")
    return found
