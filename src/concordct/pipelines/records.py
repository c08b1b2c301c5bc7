"""What a run leaves beside its results, and how the next run reads it: done already, damaged, or someone else's."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from concordct import __version__
from concordct.errors import ConcordctError
from concordct.volumes.derivation import Derivation
from concordct.volumes.derived import RECORD, stored_sha256
from concordct.volumes.files import is_volume_file
from concordct.volumes.given import read_json
from concordct.volumes.scans import Scan, scan_path
from concordct.volumes.series import Series, hu_sha256

Status = Literal["done", "skipped", "failed"]


#: Where a record holds the self-check.
SELF_CHECK = "self_check"


@dataclass(frozen=True)
class Record:
    """What became of one scan. Paths are relative to the input and the output, so that two runs agree to the byte.

    `stood` says whether the result stood already; it is of this run and not of the result, so no record on disk has it.
    """

    input: str
    output: str | None
    status: Status
    reason: str | None = None
    slices: int = 0
    clipped_voxels: int = 0
    pixels_sha256: str | None = None
    notes: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    self_check: dict[str, Any] | None = None
    stood: bool = field(default=False, compare=False)

    def line(self) -> str:
        """One line of JSON."""
        values = asdict(self)
        del values["stood"]
        return json.dumps(values, sort_keys=True)


@dataclass(frozen=True)
class ScanJob:
    """One scan, where its result goes, and what was found beside it."""

    scan: Scan
    output: Path
    input_name: str
    output_name: str
    notes: tuple[str, ...] = ()


def done(
    job: ScanJob, clipped: int, digest: str, notes: tuple[str, ...], found: dict[str, Any] | None = None
) -> Record:
    name, depth = job.input_name, job.scan.shape[0]
    return Record(name, job.output_name, "done", None, depth, clipped, digest, notes, self_check=found)


def record_path(job: ScanJob) -> Path:
    if is_volume_file(job.output):
        return job.output.with_name(job.output.name + ".json")
    return job.output / RECORD


def made_from(job: ScanJob, derivation: Derivation) -> dict[str, Any]:
    """What a record must say to be that of this source and this way."""
    return {
        "source": job.scan.key,
        "software": f"concordct {__version__}",
        "derivation": json.loads(derivation.canonical()),
    }


def standing(job: ScanJob, derivation: Derivation, notes: tuple[str, ...]) -> Record | None:
    """The record of a result that stands already, made from this source in this way; None when there is none.

    Raises
    ------
    ConcordctError : something else stands in the place.
    """
    path = record_path(job)
    missing: list[str] = []
    if not path.exists() or not job.output.exists():
        return None
    try:
        found = read_json(path)
        if isinstance(job.scan, Series) and not is_volume_file(job.output):
            slices = [one["source_sop_instance_uid"] for one in found["instances"]]
            missing = [one["file"] for one in found["instances"] if not _whole(job.output / one["file"], job.scan)]
            found["source"] = job.scan.key if slices == [ref.sop_instance_uid for ref in job.scan.slices] else None
        same = all(found[name] == value for name, value in made_from(job, derivation).items())
        digest = found["pixels_sha256"]
        clipped = found.get("clipped_low", 0) + found.get("clipped_high", 0)
        check = found.get(SELF_CHECK)
        read = found.get("source_sha256")
    except (OSError, ConcordctError, ValueError, KeyError, TypeError, AttributeError):
        same = False
    if not same:
        raise ConcordctError(f"{job.output}: holds the result of another source, model, setting or version [exists]")
    if missing:
        raise ConcordctError(
            f"{job.output}: {len(missing)} of {job.scan.shape[0]} slices of the result are missing or cut short, "
            f"{missing[0]} first [exists]"
        )
    if read is not None and isinstance(job.scan, Series) and _rewritten(job.scan, path, read):
        raise ConcordctError(f"{job.output}: its source was rewritten since, expected the slices it is of [exists]")
    return None if digest is None else replace(done(job, clipped, digest, notes, check), stood=True)


def _rewritten(series: Series, record: Path, digest: str) -> bool:
    """Whether slices hold another thing under their UIDs than the record says; a copy is newer and holds the same."""
    written = record.stat().st_mtime_ns
    if not any(path.stat().st_mtime_ns > written for path in {ref.path for ref in series.slices}):
        return False
    of_slices = record.name == RECORD
    return digest != (stored_sha256(series.stored(0, series.shape[0])) if of_slices else hu_sha256(series))


def _whole(path: Path, series: Series) -> bool:
    """Whether a derived slice is there and not cut short; its pixels take at least a byte each."""
    return path.is_file() and path.stat().st_size > series.shape[1] * series.shape[2]


def recorded_check(scan: Scan) -> dict[str, Any] | None:
    """The self-check beside a result of ours; None for every other scan."""
    path = scan.folder / RECORD if isinstance(scan, Series) else scan.path.with_name(scan.path.name + ".json")
    try:
        found = read_json(path)[SELF_CHECK]
        return {"failed": bool(found["failed"]), "lines": [str(line) for line in found["lines"]]}
    except (OSError, ConcordctError, ValueError, KeyError, TypeError):
        return None


def output_names(root: Path, scans: Sequence[Scan]) -> list[str]:
    """A tree of the input's shape; series that share a folder, or lie in the root, get a folder of their own."""
    folders = Counter(scan.folder for scan in scans if isinstance(scan, Series))
    names = []
    for scan in scans:
        relative = scan_path(scan).relative_to(root)
        if isinstance(scan, Series) and (folders[scan.folder] > 1 or scan.folder == root):
            relative = relative / f"series-{hashlib.sha256(scan.key.encode()).hexdigest()[:8]}"
        names.append(relative.as_posix())
    return names
