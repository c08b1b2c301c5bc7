"""Find the CT series under any path: headers only, no trust in names, extensions or instance numbers.

>>> found = find_series("exam/")            # doctest: +SKIP
>>> found.series[0].check()                 # refuses gaps, tilt, ... and names the positions
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from concordct.errors import ConcordctError
from concordct.volumes.decode import open_dataset, stored_slice
from concordct.volumes.geometry import (
    DUPLICATE_TOLERANCE_MM,
    Problem,
    named,
    slice_normal,
    stack_affine,
    stack_step,
)
from concordct.volumes.headers import SliceHeader, slice_headers
from concordct.volumes.series import Series, SliceRef

#: Orientations within this (any cosine) and pixel spacings within this ratio are one stack: header rounding.
SAME_ORIENTATION = 1e-3
SAME_SPACING = 1e-4
#: Radiologists' guidelines stop at 10:1 to 15:1 for CT (ESR 2011, doi:10.1007/s13244-011-0071-x); texture goes first.
MAX_LOSSY_RATIO = 15.0

#: Called with (files done, files in all).
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class SetAside:
    """A file that is no slice of a CT series, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Found:
    """What lies under a path: series ordered by their first file, and the files set aside."""

    series: tuple[Series, ...]
    set_aside: tuple[SetAside, ...]


def find_series(path: str | Path, *, progress: Progress | None = None) -> Found:
    """Find every CT series under a file or folder.

    Parameters
    ----------
    path : a file, or a folder that is searched to its depths. Names that start with a dot are ignored.
    progress : called after each header with (files done, files in all).

    Returns
    -------
    Found; empty `series` when there is none.

    Raises
    ------
    ConcordctError : the path does not exist or cannot be read.
    """
    path = Path(path)
    set_aside: list[SetAside] = []
    files = _files(path, set_aside)
    headers: list[SliceHeader] = []
    for index, file in enumerate(files):
        try:
            headers.extend(slice_headers(file))
        except ConcordctError as error:
            set_aside.append(SetAside(file, str(error).removesuffix(f": {file}")))
        if progress is not None:
            progress(index + 1, len(files))
    by_uid: dict[str, list[SliceHeader]] = {}
    for header in headers:
        by_uid.setdefault(header.series_uid, []).append(header)
    series = [stack for group in by_uid.values() for stack in _stacks(group)]
    return Found(tuple(series), tuple(set_aside))


def _files(path: Path, set_aside: list[SetAside]) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ConcordctError(f"no such file or folder: {path}")

    def refuse(error: OSError) -> None:
        raise ConcordctError(f"cannot read folder {error.filename}: {error.strerror}")

    files: list[Path] = []
    for root, folders, names in os.walk(path, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        linked = [name for name in folders if (Path(root) / name).is_symlink()]
        set_aside.extend(SetAside(Path(root) / name, "a link to a folder, not followed") for name in linked)
        candidates = (Path(root) / name for name in sorted(names) if not name.startswith("."))
        files.extend(file for file in candidates if file.is_file())
    return files


def _stacks(headers: list[SliceHeader]) -> list[Series]:
    """The stacks of one SeriesInstanceUID; a UID that holds several says so in each of them."""
    groups: list[list[SliceHeader]] = []
    for header in headers:
        home = next((group for group in groups if _together(group[0], header)), None)
        if home is None:
            groups.append([header])
        else:
            home.append(header)
    stacks = []
    for number, group in enumerate(groups, start=1):
        others = [other for k, other in enumerate(groups, start=1) if k != number]
        suffix = f"#{number}" if others else ""
        stacks.append(_stack(group, suffix, _mixture(group, others)))
    return stacks


def _together(one: SliceHeader, other: SliceHeader) -> bool:
    return (
        (one.rows, one.columns, one.kernel, one.frame_of_reference_uid)
        == (other.rows, other.columns, other.kernel, other.frame_of_reference_uid)
        and np.allclose(one.orientation, other.orientation, rtol=0, atol=SAME_ORIENTATION)
        and np.allclose(one.pixel_spacing, other.pixel_spacing, rtol=SAME_SPACING, atol=0)
    )


def _mixture(group: list[SliceHeader], others: list[list[SliceHeader]]) -> list[Problem]:
    """What other stacks share the UID: other kernels, or other orientations, sizes and spacings."""
    problems = []
    first = group[0]
    normal = slice_normal(first.orientation)
    kernels = [other for other in others if other[0].kernel != first.kernel]
    if kernels:
        where = tuple(sorted(float(np.dot(h.origin, normal)) for other in kernels for h in other))
        names = ", ".join(sorted({other[0].kernel or "none" for other in kernels}))
        text = f"one series holds kernel {first.kernel or 'none'} and also {names} at {named(where)} mm"
        problems.append(Problem("kernel", text, where))
    mixed = [other for other in others if other[0].kernel == first.kernel]
    if mixed:
        where = tuple(sorted(float(np.dot(h.origin, normal)) for other in mixed for h in other))
        text = f"one series holds {len(mixed) + 1} stacks of other orientation, size, spacing or frame of reference,"
        text += f" this one {first.rows} x {first.columns}; the rest at {named(where)} mm"
        problems.append(Problem("mixed", text, where))
    return problems


def _stack(headers: list[SliceHeader], suffix: str, problems: list[Problem]) -> Series:
    first = headers[0]
    normal = slice_normal(first.orientation)
    ordered = sorted(headers, key=lambda header: (float(np.dot(header.origin, normal)), str(header.path), header.frame))
    kept, repeated = _unique(ordered, normal)
    problems = problems + repeated
    origins = np.array([header.origin for header in kept])
    notes = sorted({note for header in headers for note in header.notes})
    thickness = kept[0].thickness
    if len(kept) == 1:
        step = thickness or kept[0].nominal_spacing
        if step is None:
            step = 1.0
            notes.append("a single slice without thickness: its z spacing of 1 mm stands for nothing")
        vector, _ = stack_step(origins, normal, thickness_mm=step)
    else:
        vector, found = stack_step(origins, normal, thickness_mm=0.0)
        problems = problems + list(found)
    ratios = sorted({header.lossy_ratio or 0.0 for header in kept if header.lossy})
    if ratios:
        notes.append(f"lossy compression{f' {ratios[-1]:g}:1' if ratios[-1] else ', ratio not stated'}")
    if ratios and ratios[-1] > MAX_LOSSY_RATIO:
        where = tuple(float(np.dot(h.origin, normal)) for h in kept if (h.lossy_ratio or 0.0) > MAX_LOSSY_RATIO)
        text = f"lossy compression {ratios[-1]:g}:1, expected at most {MAX_LOSSY_RATIO:g}:1, at {named(where)} mm"
        problems = [*problems, Problem("lossy", text, where)]
    if len({header.thickness for header in headers}) > 1:
        notes.append("slice thickness is not the same in all slices")
    return Series(
        uid=first.series_uid,
        key=first.series_uid + suffix,
        kernel=first.kernel,
        description=first.description,
        slices=tuple(
            SliceRef(h.path, h.frame, float(np.dot(h.origin, normal)), h.sop_instance_uid, h.origin) for h in kept
        ),
        shape=(len(kept), first.rows, first.columns),
        affine=stack_affine(origins[0], vector, first.orientation, first.pixel_spacing),
        slice_thickness_mm=thickness,
        frame_of_reference_uid=first.frame_of_reference_uid,
        problems=tuple(problems),
        notes=tuple(notes),
    )


def _unique(ordered: Sequence[SliceHeader], normal: np.ndarray) -> tuple[list[SliceHeader], list[Problem]]:
    """One slice for each position, and which positions came twice with the same or with another content."""
    kept: list[SliceHeader] = []
    same: list[float] = []
    different: list[float] = []
    for header in ordered:
        position = float(np.dot(header.origin, normal))
        if kept and position - float(np.dot(kept[-1].origin, normal)) < DUPLICATE_TOLERANCE_MM:
            (same if _same_content(kept[-1], header) else different).append(position)
        else:
            kept.append(header)
    problems = []
    if same:
        text = f"the same slice stands twice at {named(tuple(same))} mm"
        problems.append(Problem("duplicate", text, tuple(same)))
    if different:
        text = f"two different slices at one position, at {named(tuple(different))} mm"
        problems.append(Problem("conflict", text, tuple(different)))
    return kept, problems


def _same_content(one: SliceHeader, other: SliceHeader) -> bool:
    try:
        a, b = (stored_slice(open_dataset(h.path, pixels=True), h.frame, h.path).stored_hu() for h in (one, other))
    except ConcordctError:
        return False
    return bool(np.array_equal(a, b)) and one.origin == other.origin
