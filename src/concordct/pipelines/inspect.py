"""What lies under a path, in plain data: scans with their geometry and problems, and why files were set aside."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from concordct.errors import ConcordctError
from concordct.pipelines.identify import identify
from concordct.volumes.acquired import acquired
from concordct.volumes.find import Progress
from concordct.volumes.scans import Scan, find_scans, scan_path
from concordct.volumes.series import ALLOWABLE


def describe(path: Path, *, kernels: bool = False, progress: Progress | None = None) -> dict[str, Any]:
    """Describe every scan under a path.

    Parameters
    ----------
    kernels : measure which kernel each scan looks like, too; that reads a few slices of each.
    progress : called with (files read, files in all).

    Returns
    -------
    {"scans": [...], "set_aside": {reason: count}}; numbers in mm, nothing that identifies a patient beyond the path.

    Raises
    ------
    ConcordctError : the path does not exist or holds no file.
    """
    found = find_scans(path, progress=progress)
    if not found.scans and not found.set_aside:
        raise ConcordctError(f"{path}: expected CT scans, found no file")
    return {
        "scans": [_scan(scan, path, kernels) for scan in found.scans],
        "set_aside": dict(Counter(item.reason for item in found.set_aside).most_common()),
    }


def _likenesses(scan: Scan) -> list[dict[str, Any]]:
    try:
        return [asdict(one) for one in identify(scan, allow={problem.code for problem in scan.problems} & ALLOWABLE)]
    except ConcordctError:
        return []


def _scan(scan: Scan, root: Path, kernels: bool) -> dict[str, Any]:
    where = scan_path(scan)
    return {
        "path": where.relative_to(root).as_posix() if root.is_dir() else where.name,
        "kernel": scan.kernel,
        **({"looks_like": _likenesses(scan)} if kernels else {}),
        **acquired(scan),
        "shape": list(scan.shape),
        "spacing_mm": list(scan.spacing_mm),
        "slice_thickness_mm": scan.slice_thickness_mm,
        "problems": [
            {"code": problem.code, "message": problem.message, "positions_mm": list(problem.positions_mm)}
            for problem in scan.problems
        ],
        "notes": list(scan.notes),
    }
