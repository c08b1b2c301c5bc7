"""A zip archive read as the tree that it holds, under limits: archives come from outside and may be made to harm."""

from __future__ import annotations

import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from concordct.errors import ConcordctError
from concordct.volumes.remote import sent, staged, url_of

#: Files in an archive at most: a large study has ten thousand.
MOST_FILES = 200_000
#: Bytes in all at most, and how many times larger than the archive: CT shrinks to a third, text to a twentieth.
MOST_BYTES, LARGEST_RATIO = 64 * 2**30, 100
#: Small archives may hold more than that ratio says, bytes.
ALWAYS_BYTES = 64 * 2**20


@contextmanager
def as_tree(path: Path) -> Iterator[Path]:
    """The path itself; of a zip archive, or a URL of object storage, a temporary copy, removed afterwards.

    Raises
    ------
    ConcordctError : a damaged or encrypted archive, one beyond the limits, or one whose names lead out of it; what
        `remote.staged` raises.
    """
    url = url_of(path)
    if url is not None:
        with staged(url) as place, as_tree(place) as tree:
            yield tree
        return
    if path.suffix.lower() != ".zip" or not path.is_file():
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="concordct-zip-") as folder:
        _extract(path, Path(folder))
        yield Path(folder)


@contextmanager
def as_output(path: Path, *, source: Path) -> Iterator[Path]:
    """Where to write: the path itself, or for a URL of object storage a temporary place that is sent at the end.

    Raises
    ------
    ConcordctError : a URL that is that of the source, holds it or lies inside it; what `remote.sent` raises.
    """
    url, given = url_of(path), url_of(source)
    if url is None:
        yield path
        return
    if given is not None and (f"{url}/".startswith(f"{given}/") or f"{given}/".startswith(f"{url}/")):
        raise ConcordctError(f"{url}: expected an output apart from the input {given}")
    with sent(url) as place:
        yield place


def _extract(path: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [one for one in archive.infolist() if not one.is_dir()]
            _check(path, members)
            allowed = max(ALWAYS_BYTES, min(MOST_BYTES, LARGEST_RATIO * path.stat().st_size))
            for member in members:
                place = folder / PurePosixPath(member.filename)
                place.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, place.open("xb") as target:
                    # Sizes in an archive may lie, so what comes out is counted.
                    while piece := source.read(2**20):
                        allowed -= len(piece)
                        if allowed < 0:
                            raise ConcordctError(f"{path}: expected at most {LARGEST_RATIO} times its size, found more")
                        target.write(piece)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, EOFError, ValueError) as error:
        raise ConcordctError(f"{path}: expected a whole zip archive, found {type(error).__name__}") from None
    except zlib.error:
        raise ConcordctError(f"{path}: expected a whole zip archive, found damaged data") from None
    except RuntimeError:
        raise ConcordctError(f"{path}: expected an archive without a password, found an encrypted one") from None
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise ConcordctError(f"{path}: cannot be unpacked: {error.strerror or type(error).__name__}") from None


def _check(path: Path, members: list[zipfile.ZipInfo]) -> None:
    if len(members) > MOST_FILES:
        raise ConcordctError(f"{path}: expected at most {MOST_FILES} files, found {len(members)}")
    if not members:
        raise ConcordctError(f"{path}: expected files in the archive, found none")
    if len({member.filename for member in members}) < len(members):
        raise ConcordctError(f"{path}: expected one file for each name, found a name twice")
    for member in members:
        parts = PurePosixPath(member.filename.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts or ":" in member.filename:
            raise ConcordctError(f"{path}: expected names inside the archive, found one that leads out of it")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise ConcordctError(f"{path}: expected files, found a link")
