"""Find the CT series under any path: headers only, no trust in names, extensions or instance numbers.

>>> found = find_series("exam/")            # doctest: +SKIP
>>> found.series[0].check()                 # refuses gaps, tilt, ... and names the positions
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from concordct.errors import ConcordctError
from concordct.volumes.headers import SliceHeader, slice_headers
from concordct.volumes.series import Series
from concordct.volumes.stacks import series_stacks

#: Called with (files done, files in all).
Progress = Callable[[int, int], None]
#: Files whose headers are read in one go.
CHUNK = 50


@dataclass(frozen=True)
class SetAside:
    """A file that is no slice of a CT series, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class HeadersRead:
    """What the headers of some files say, in their order."""

    headers: tuple[SliceHeader, ...]
    set_aside: tuple[SetAside, ...]


#: Reads the headers of each of several lists of files, in any process; as many answers in the same order.
Reader = Callable[[Sequence[Sequence[Path]]], Iterable[HeadersRead]]


@dataclass(frozen=True)
class Found:
    """What lies under a path: series ordered by their first file, and the files set aside."""

    series: tuple[Series, ...]
    set_aside: tuple[SetAside, ...]


def find_series(path: str | Path, *, progress: Progress | None = None, reader: Reader | None = None) -> Found:
    """Find every CT series under a file or folder.

    Parameters
    ----------
    path : a file, or a folder that is searched to its depths. Names that start with a dot are ignored.
    progress : called with (files done, files in all).
    reader : who reads the headers; None for this process.

    Returns
    -------
    Found; empty `series` when there is none.

    Raises
    ------
    ConcordctError : the path does not exist or cannot be read.
    """
    path = Path(path)
    everything = list(walk(path))
    set_aside = [one for one in everything if isinstance(one, SetAside)]
    files = [one for one in everything if isinstance(one, Path)]
    headers: list[SliceHeader] = []
    size = 1 if reader is None else CHUNK
    lists = [files[start : start + size] for start in range(0, len(files), size)]
    for index, read in enumerate(map(read_headers, lists) if reader is None else reader(lists)):
        headers.extend(read.headers)
        set_aside.extend(read.set_aside)
        if progress is not None:
            progress(min((index + 1) * size, len(files)), len(files))
    by_uid: dict[str, list[SliceHeader]] = {}
    for header in headers:
        by_uid.setdefault(header.series_uid, []).append(header)
    series: list[Series] = []
    for group in by_uid.values():
        try:
            series += series_stacks(group)
        except ConcordctError as error:
            set_aside += [SetAside(file, str(error)) for file in dict.fromkeys(header.path for header in group)]
    return Found(tuple(series), tuple(set_aside))


def read_headers(files: Sequence[Path]) -> HeadersRead:
    """The slices that files hold, and those that hold none with the reason."""
    headers: list[SliceHeader] = []
    set_aside = []
    for file in files:
        try:
            headers.extend(slice_headers(file))
        except ConcordctError as error:
            set_aside.append(SetAside(file, str(error).removesuffix(f": {file}")))
    return HeadersRead(tuple(headers), tuple(set_aside))


def walk(path: Path) -> Iterator[Path | SetAside]:
    """Every file under a path, folder by folder in order, and what lies there and is no file.

    Raises
    ------
    ConcordctError : the path does not exist or cannot be read.
    """
    if path.is_file():
        yield path
        return
    if not path.is_dir():
        raise ConcordctError(f"{'not a regular file' if path.exists() else 'no such file or folder'}: {path}")

    def refuse(error: OSError) -> None:
        raise ConcordctError(f"cannot read folder {error.filename}: {error.strerror}")

    for root, folders, names in os.walk(path, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in folders:
            if (Path(root) / name).is_symlink():
                yield SetAside(Path(root) / name, "a link to a folder, not followed")
        for file in (Path(root) / name for name in sorted(names) if not name.startswith(".")):
            if file.is_file():
                yield file
            else:
                said = "a link to nothing" if file.is_symlink() else "not a regular file (a pipe, a socket, a device)"
                yield SetAside(file, said)
