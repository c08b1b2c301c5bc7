"""Object storage: a prefix read as the tree that it holds, and a tree written under a prefix (`s3://bucket/prefix`).

What is read is staged in a temporary folder, so every reader sees plain files; what is written is made there, verified
as ever, and only then sent, each object compared with the file that it came from. Other stores that fsspec knows
(`gs://`, `az://`) go the same way. Where it lies and who may read it is the client's affair: AWS_ENDPOINT_URL,
AWS_PROFILE and the like.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from concordct.errors import ConcordctError

#: A path that was a URL: pathlib makes one slash of two.
_URL = re.compile(r"([a-z][a-z0-9+]+):/{1,2}([^/].*)")
#: Bytes read at once where an object is compared.
_PIECE = 2**22


def url_of(path: Path) -> str | None:
    """The URL that a path of the command line was; None for a path of this machine."""
    found = _URL.fullmatch(path.as_posix())
    return None if found is None or path.exists() else f"{found[1]}://{found[2].rstrip('/')}"


@contextmanager
def staged(url: str) -> Iterator[Path]:
    """A temporary folder or file with what lies under a URL, removed afterwards.

    Raises
    ------
    ConcordctError : nothing there, no permission, no such store, or names that lead out of the folder.
    """
    with tempfile.TemporaryDirectory(prefix="concordct-remote-") as folder:
        place = Path(folder) / PurePosixPath(url).name
        if not _fetch(url, place):
            raise ConcordctError(f"{url}: expected an object or a prefix with objects, found none")
        yield place


@contextmanager
def sent(url: str) -> Iterator[Path]:
    """A temporary place to write to, which already holds what stands under the URL; sent when the block ends well.

    What is sent is what was written or changed in the block, records (.json, .jsonl) after everything else, and each
    object is compared with its file. What stood is not deleted. A block that fails sends nothing.

    Raises
    ------
    ConcordctError : no permission, no such store, or an object that does not hold what was sent.
    """
    with tempfile.TemporaryDirectory(prefix="concordct-remote-") as folder:
        place = Path(folder) / PurePosixPath(url).name
        _fetch(url, place)
        before = {path: _digest(path) for path in _files(place)}
        yield place
        changed = [path for path in _files(place) if before.get(path) != _digest(path)]
        with _store(url) as store:
            for path in sorted(changed, key=lambda path: (path.suffix in (".json", ".jsonl"), path)):
                key = url if path == place else f"{url}/{path.relative_to(place).as_posix()}"
                store.put_file(str(path), key)
                if _remote_digest(store, key) != _digest(path):
                    raise ConcordctError(f"{key}: expected what was sent, found other bytes")


@contextmanager
def _store(url: str) -> Iterator[Any]:
    """The file system behind a URL; what it raises, in one line."""
    import fsspec

    try:
        store, _ = fsspec.core.url_to_fs(url)
        store.invalidate_cache()
        yield store
    except ImportError as error:
        scheme = url.split("://")[0]
        raise ConcordctError(f"{url}: expected a client for {scheme}, found none ({error.name or error})") from None
    except PermissionError:
        raise ConcordctError(f"{url}: no permission, or no credentials") from None
    except FileNotFoundError:
        raise ConcordctError(f"{url}: expected a bucket of this name, found none") from None
    except (OSError, ValueError) as error:
        raise ConcordctError(f"{url}: {type(error).__name__} while talking to the store") from None


def _fetch(url: str, place: Path) -> bool:
    """Copy what lies under a URL to `place`; whether there is anything."""
    with _store(url) as store:
        try:
            found = store.find(url, detail=True)
        except FileNotFoundError:
            return False
        root = store._strip_protocol(url)
        for key in sorted(found):
            inside = key.removeprefix(root).strip("/")
            if key.endswith("/") or found[key].get("type") == "directory":
                continue  # what consoles make of an empty folder
            if inside.startswith("/") or ".." in PurePosixPath(inside).parts or "\0" in inside:
                raise ConcordctError(f"{url}: expected names below it, found one that leads out of it")
            target = place / inside if inside else place
            target.parent.mkdir(parents=True, exist_ok=True)
            store.get_file(key, str(target))
            if target.stat().st_size != found[key]["size"]:
                raise ConcordctError(f"{url}: expected {found[key]['size']} bytes of an object, found fewer or more")
        return bool(_files(place))


def _files(place: Path) -> list[Path]:
    """Files below a place, or itself; hidden ones are work of a moment and stay here."""
    if place.is_file():
        return [place]
    found = (path for path in place.rglob("*") if path.is_file())
    return sorted(path for path in found if not any(part[0] == "." for part in path.relative_to(place).parts))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remote_digest(store: Any, key: str) -> str:
    found = hashlib.sha256()
    with store.open(key, "rb", block_size=_PIECE) as file:
        while piece := file.read(_PIECE):
            found.update(piece)
    return found.hexdigest()
