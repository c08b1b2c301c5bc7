"""What lies under a path, in plain data: scans with their geometry and problems, and why files were set aside."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from concordct.errors import ConcordctError
from concordct.pipelines.identify import identify
from concordct.volumes.acquired import acquired
from concordct.volumes.files import is_volume_file, open_volume_file
from concordct.volumes.find import Progress, SetAside
from concordct.volumes.index import Group, Index
from concordct.volumes.scans import LABEL_MAP, Scan, is_label_map, scan_path
from concordct.volumes.series import ALLOWABLE
from concordct.volumes.stacks import series_stacks

#: Endings of files that hold the voxels of a header beside them; others are counted and forgotten.
VOXELS_BESIDE = (".raw", ".zraw", ".img", ".gz", ".bin", ".dat")


def describe(
    path: Path, *, kernels: bool = False, index: Path | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Describe every scan under a path, a series at a time, so that memory holds one series whatever the tree.

    Parameters
    ----------
    kernels : measure which kernel each scan looks like, too; that reads a few slices of each.
    index : file that keeps what was read, so that the next look reads only what is new or changed; made where there is
        none. None keeps nothing.
    progress : called with (files read, files in all).

    Returns
    -------
    {"scans": [...], "set_aside": {reason: count}}; numbers in mm, nothing that identifies a patient beyond the path.

    Raises
    ------
    ConcordctError : the path does not exist or holds no file, or the index is something else.
    """
    if is_volume_file(path) and path.is_file():
        return {"scans": [_scan(open_volume_file(path).axial(), path, kernels)], "set_aside": {}}
    series: list[tuple[tuple[str, str], dict[str, Any]]] = []
    reasons: Counter[str] = Counter()
    with Index.opened(index) as kept:
        kept.look(path, progress=progress)
        for group in kept.groups(path):
            said = None if kernels else kept.said(group, path)
            if said is None:
                said = _described(kept, group, path, kernels)
                if not kernels:
                    kept.say(group, path, said)
            for one in said:
                if "set_aside" in one:
                    reasons.update(one["set_aside"])
                else:
                    series.append(((one["first"], one["key"]), one["scan"]))
        volumes, others = _volumes(kept.set_aside(path), path, kernels)
    reasons.update(others)
    if not series and not volumes and not reasons:
        raise ConcordctError(f"{path}: expected CT scans, found no file")
    series.sort(key=lambda one: one[0])
    return {"scans": [*(scan for _, scan in series), *volumes], "set_aside": dict(reasons.most_common())}


def _described(kept: Index, group: Group, root: Path, kernels: bool) -> list[dict[str, Any]]:
    """The stacks of one SeriesInstanceUID, or why its files are set aside."""
    try:
        stacks = series_stacks(kept.headers(group))
    except ConcordctError as error:
        return [{"set_aside": {str(error): len(group.paths)}}]
    return [
        {"first": str(one.slices[0].path), "key": one.key, "scan": _scan(one, Path(os.path.abspath(root)), kernels)}
        for one in stacks
    ]


def _volumes(found: Iterable[SetAside], root: Path, kernels: bool) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Volume files among what holds no CT slice, and the reasons for the rest."""
    scans, reasons = [], Counter[str]()
    beside: dict[Path, str] = {}
    for item in found:
        if not is_volume_file(item.path):
            if item.path.suffix.lower() in VOXELS_BESIDE:
                beside[item.path] = item.reason
            reasons[item.reason] += 1
        elif is_label_map(item.path):
            reasons[LABEL_MAP] += 1
        else:
            try:
                volume = open_volume_file(item.path).axial()
            except ConcordctError as error:
                reasons[str(error)] += 1
                continue
            scans.append((volume.layout.data, _scan(volume, Path(os.path.abspath(root)), kernels)))
    # Voxels beside a header that was read belong to that scan.
    for data, _ in scans:
        if data in beside:
            reasons[beside[data]] -= 1
    return [scan for _, scan in scans], +reasons


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
