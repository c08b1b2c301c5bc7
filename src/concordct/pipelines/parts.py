"""Work that is done image by image, in processes, and kept until all of it is done: what makes a run resumable."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, as_completed
from pathlib import Path
from typing import TypeVar

from concordct import __version__
from concordct.volumes.files import VolumeFile
from concordct.volumes.scans import Scan
from concordct.volumes.workers import worker_pool

Item = TypeVar("Item")
Result = TypeVar("Result")


def each(work: Callable[[Item], Result], items: Sequence[Item], *, workers: int) -> Iterator[tuple[int, Result]]:
    """`work` of every item with its index, as they come; in this process for one worker or one item.

    Parameters
    ----------
    work : picklable; it must not raise.
    workers : processes, see `worker_pool`.
    """
    if workers <= 1 or len(items) == 1:
        for index, item in enumerate(items):
            yield index, work(item)
        return
    with worker_pool(min(workers, len(items))) as pool:
        waiting: dict[Future[Result], int] = {pool.submit(work, item): index for index, item in enumerate(items)}
        for future in as_completed(waiting):
            yield waiting[future], future.result()


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
