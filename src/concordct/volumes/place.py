"""Outputs built aside and moved into place whole: what stands under the final name is always complete.

Work happens in a hidden sibling of the final name, on the same file system, and one rename puts it there. A killed run
leaves only such a sibling; the next run to the same place removes it. Whether a run still works on one is told by a
lock, which the system drops with the process: in a container every run is process 1.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from concordct.errors import ConcordctError

_ASIDE = ".part"
_REPLACED = ".replaced"


@contextmanager
def atomic_directory(path: str | Path, *, overwrite: bool = False, ours: str | None = None) -> Iterator[Path]:
    """Fill a folder aside, then move it to `path` whole.

    Parameters
    ----------
    path : the final folder.
    overwrite : whether an existing folder is replaced; it is removed only after the new one is complete.
    ours : a file that tells our folders from others; without it only an empty folder is replaced.

    Yields
    ------
    The folder to write into. On an exception it is removed and `path` stays as it was.

    Raises
    ------
    ConcordctError : `path` exists and may not be replaced, or the place cannot be written (one line).
    """
    final = _final(path)
    _clear_leftovers(final)
    _refuse_existing(final, overwrite)
    _refuse_foreign(final, ours)
    aside, lock = _make_aside(final)
    try:
        yield aside
        with writing(final):
            _sync_tree(aside)
            _swap(aside, final, overwrite)
    except OSError as error:
        raise _one_line(error, final) from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        os.close(lock)


@contextmanager
def atomic_file(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Write a file aside, then move it to `path` whole; as `atomic_directory`, for one file.

    Yields
    ------
    A path with the final file name in a hidden folder beside `path`.
    """
    final = _final(path)
    if final.is_dir():
        raise ConcordctError(f"a folder stands where a file is to be written: {final}")
    _clear_leftovers(final)
    _refuse_existing(final, overwrite)
    aside, lock = _make_aside(final)
    try:
        yield aside / final.name
        with writing(final):
            _sync_tree(aside)
            _refuse_existing(final, overwrite)
            os.replace(aside / final.name, final)
            sync_folder(final.parent)
    except OSError as error:
        raise _one_line(error, final) from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        os.close(lock)


@contextmanager
def alone(path: str | Path) -> Iterator[None]:
    """Wait until no other run is inside this for the same path, on any machine whose file system locks files.

    The lock goes with the process that holds it; the hidden file beside `path` that carries it goes at the end.
    """
    final = _final(path)
    claim = final.with_name(f".{_stem(final)}.claim")
    with writing(final):
        claim.parent.mkdir(parents=True, exist_ok=True)
        while True:
            handle = os.open(claim, os.O_RDWR | os.O_CREAT, 0o666)
            with suppress(OSError):  # a file system without locks: atomic writes keep each result whole
                fcntl.flock(handle, fcntl.LOCK_EX)
            # Whoever held it before may have removed it: a lock on a file without a name keeps nobody out.
            try:
                if os.path.samestat(os.fstat(handle), os.stat(claim)):
                    break
            except FileNotFoundError:
                pass
            os.close(handle)
    try:
        yield
    finally:
        claim.unlink(missing_ok=True)
        os.close(handle)


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turn any OSError into one line that names `path`: full disk, read-only, no permission."""
    try:
        yield
    except OSError as error:
        raise _one_line(error, Path(path)) from None


def make_folder(folder: Path) -> Path:
    """The folder, made with those above it where they are missing.

    Raises
    ------
    ConcordctError : it cannot be made, in one line.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def refuse_overlap(output: str | Path, inputs: Iterable[Path], *, folder: bool) -> None:
    """Refuse an output that would replace its input or come to lie inside it.

    Parameters
    ----------
    output : what is to be written.
    inputs : files that are read (or folders of them).
    folder : whether the output is a folder. It may not be, hold or lie inside a folder of inputs; a single file may
        lie beside its input but may not be it.
    """
    final = Path(output).resolve()
    places = {place.resolve() for place in inputs}
    if folder:
        places = {place if place.is_dir() else place.parent for place in places}
    for place in places:
        inside = folder and (final.is_relative_to(place) or place.is_relative_to(final))
        if final == place or inside:
            raise ConcordctError(f"output {output} is its input, holds it or lies inside it; expected another place")


def _final(path: str | Path) -> Path:
    final = Path(os.path.abspath(path))
    if not final.name:
        raise ConcordctError(f"cannot write to {path}: not a name that can be replaced")
    return final


def _refuse_existing(final: Path, overwrite: bool) -> None:
    if not overwrite and os.path.lexists(final):
        raise ConcordctError(f"output exists and stays as it is (overwrite was not asked for): {final}")


def _refuse_foreign(final: Path, ours: str | None) -> None:
    """Overwriting replaces what an earlier run made, never a folder of something else."""
    if ours is None or not os.path.lexists(final) or (final / ours).is_file():
        return
    if not final.is_dir() or any(final.iterdir()):
        raise ConcordctError(f"output exists and no earlier run made it (no {ours} in it), it stays as it is: {final}")


def _make_aside(final: Path) -> tuple[Path, int]:
    """A new sibling of `final`, and the file descriptor that holds its lock."""
    with writing(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{_stem(final)}.{_host()}-{os.getpid()}-"
        while True:
            aside = Path(tempfile.mkdtemp(prefix=prefix, suffix=_ASIDE, dir=final.parent))
            lock = _lock(aside)
            if lock is not None and aside.exists():
                return aside, lock
            # Another run took it for a leftover in the moment before it was locked.
            if lock is not None:
                os.close(lock)


def _clear_leftovers(final: Path) -> None:
    """Remove what killed runs on this machine left beside `final`; give back an output they had moved away."""
    with writing(final):
        for left in sorted(final.parent.glob(f".{_escape(_stem(final))}.{_host()}-*")):
            pid = left.name.rsplit(f".{_host()}-", 1)[1].split("-")[0]
            if not pid.isdigit() or not left.name.endswith((_ASIDE, _REPLACED)):
                continue
            try:
                lock = _lock(left, pid=int(pid))
            except FileNotFoundError:
                continue  # its run has just ended
            if lock is None:
                continue
            try:
                if left.name.endswith(_REPLACED) and not os.path.lexists(final):
                    os.rename(left, final)
                else:
                    shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(lock)


def _lock(place: Path, *, pid: int | None = None) -> int | None:
    """The file descriptor of a folder or file that this process now holds; None while another one does.

    Parameters
    ----------
    pid : of the process that made it: where the file system knows no locks, it is in use while that process lives.
    """
    handle = os.open(place, os.O_RDONLY | os.O_NONBLOCK)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    except OSError:
        if pid is not None and _alive(pid):
            os.close(handle)
            return None
    return handle


def _stem(final: Path) -> str:
    """The final name, cut where the longer name of its sibling would not fit a file system (255 bytes)."""
    name, data = final.name, os.fsencode(final.name)
    return name if len(data) <= 120 else f"{name[:24]}-{hashlib.sha256(data).hexdigest()[:16]}"


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9]", "", socket.gethostname()) or "host"


def _escape(name: str) -> str:
    return re.sub(r"([\[\]*?])", r"[\1]", name)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _swap(aside: Path, final: Path, overwrite: bool) -> None:
    """Put the complete folder under its final name; the old one moves away first and goes last."""
    aside.chmod(0o777 & ~_umask())
    _refuse_existing(final, overwrite)
    if not os.path.lexists(final):
        os.rename(aside, final)
        sync_folder(final.parent)
        return
    old = aside.with_name(aside.name.removesuffix(_ASIDE) + _REPLACED)
    lock = _lock(final) if final.exists() else None
    try:
        os.rename(final, old)
        try:
            os.rename(aside, final)
        except OSError:
            os.rename(old, final)
            raise
        sync_folder(final.parent)
        if old.is_dir() and not old.is_symlink():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.unlink()
    finally:
        if lock is not None:
            os.close(lock)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_tree(folder: Path) -> None:
    for root, _, names in os.walk(folder):
        for name in names:
            with open(Path(root) / name, "rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(root))


def sync_folder(folder: Path) -> None:
    """Have the disk hold what a folder names."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _one_line(error: OSError, path: Path) -> ConcordctError:
    reasons = {
        errno.ENOSPC: "no space left on the device",
        errno.EDQUOT: "disk quota exceeded",
        errno.EFBIG: "file too large for this place",
        errno.EROFS: "read-only file system",
        errno.EACCES: "no permission to write there",
        errno.EPERM: "no permission to write there",
        errno.ENOTDIR: "a part of the path is not a folder",
        errno.EEXIST: "a part of the path is not a folder",
    }
    reason = reasons.get(error.errno or 0, error.strerror or type(error).__name__)
    return ConcordctError(f"cannot write {path}: {reason}")
