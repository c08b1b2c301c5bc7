"""What is kept of a batch until all of it is done, image by image: what makes a run resumable."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from concordct import __version__
from concordct.errors import ConcordctError
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


def refuse_standing(output: Path, parts: Path, *, overwrite: bool) -> None:
    """Refuse an output that stands, unless it may be replaced; parts of the run that made it go.

    A run that is killed after its output stands leaves them; those of a run that goes on are newer than any output.

    Raises
    ------
    ConcordctError : the output exists and `overwrite` was not asked for.
    """
    if not output.exists() or overwrite:
        return
    made = output.stat().st_mtime_ns
    if parts.is_dir() and all(one.stat().st_mtime_ns <= made for one in (parts, *parts.iterdir())):
        shutil.rmtree(parts, ignore_errors=True)
    raise ConcordctError(f"output exists and stays as it is (overwrite was not asked for): {output}")


@contextmanager
def joining(output: Path, parts: Path) -> Iterator[None]:
    """Around what makes one output of the parts; then the parts go.

    Raises
    ------
    ConcordctError : parts have gone, since another run into the same output joined them first.
    """
    try:
        yield
    except FileNotFoundError:
        raise ConcordctError(
            f"{output}: expected the parts of this run in {parts.name}, found that another run has joined them"
        ) from None
    shutil.rmtree(parts, ignore_errors=True)
