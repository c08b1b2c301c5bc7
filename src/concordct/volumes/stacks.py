"""From the slices of one SeriesInstanceUID to its stacks: what belongs together, what stands twice, what is wrong.

Kernels, energies, orientations, sizes, frames of reference and acquisitions that share a UID are stacks of their own,
and each says so.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby, pairwise

import numpy as np

from concordct.errors import ConcordctError
from concordct.volumes.concatenation import Part, missing_parts
from concordct.volumes.decode import open_dataset, stored_slice
from concordct.volumes.geometry import (
    DUPLICATE_TOLERANCE_MM,
    POSITION_TOLERANCE_MM,
    Problem,
    named,
    slice_normal,
    stack_affine,
    stack_step,
)
from concordct.volumes.headers import SliceHeader
from concordct.volumes.series import Series, SliceRef

#: Orientations within this (any cosine) and pixel spacings within this ratio are one stack: header rounding.
SAME_ORIENTATION = 1e-3
SAME_SPACING = 1e-4
#: Spacings of one object that was exported twice: the coarser export may keep three digits.
SAME_SPACING_TWICE = 1e-3
#: Dynamic scans have some dozens of phases; rotating views of one volume have a stack for each view and are none.
MAX_STACKS = 200
#: Radiologists' guidelines stop at 10:1 to 15:1 for CT (ESR 2011, doi:10.1007/s13244-011-0071-x); texture goes first.
MAX_LOSSY_RATIO = 15.0
#: Attributes that may alternate along z only when acquisitions were merged; a time may repeat by chance.
_ALTERNATING = ("AcquisitionNumber", "TemporalPositionIdentifier", "TemporalPositionIndex", "StackID",
                "SOPInstanceUID", "IrradiationEventUID")  # fmt: skip
#: Any other attribute parts a series where so few values change at every second slice or oftener.
FEW_INTERLEAVED = 4
#: A tilt that the header states (degrees), and the cosine of slices that stand upright within a degree.
STATED_TILT_DEG, UPRIGHT = 2.0, 0.9998
#: Slices this many times further apart than SpacingBetweenSlices says: some were lost before.
LOST_FACTOR = 1.9


def series_stacks(headers: Sequence[SliceHeader]) -> list[Series]:
    """The stacks of one SeriesInstanceUID; a UID that holds several says so in each of them.

    Raises
    ------
    ConcordctError : more than `MAX_STACKS`.
    """
    groups: list[list[SliceHeader]] = []
    for header in _one_geometry(_numbered(headers)):
        home = next((group for group in groups if _together(group[0], header)), None)
        if home is not None:
            home.append(header)
        elif len(groups) == MAX_STACKS:
            raise ConcordctError(
                f"one series UID holds more than {MAX_STACKS} stacks of other orientation, size or spacing; expected "
                "the slices of a scan"
            )
        else:
            groups.append([header])
    parts = [part for group in groups for part in _acquisitions(group)]
    first = {(header.path, header.frame): place for place, header in enumerate(headers)}
    parts.sort(key=lambda part: first[part[0][0].path, part[0][0].frame])
    if len(parts) > MAX_STACKS:
        raise ConcordctError(f"one series UID holds {len(parts)} acquisitions, expected at most {MAX_STACKS}")
    incomplete = _incomplete(headers)
    stacks = []
    for number, (group, said) in enumerate(parts, start=1):
        others = [other for k, (other, _) in enumerate(parts, start=1) if k != number]
        suffix = f"#{number}" if others else ""
        lacking = {header.part.uid for header in group if header.part is not None and header.part.uid in incomplete}
        problems = _mixture(group, said, others) + [incomplete[uid] for uid in sorted(lacking)]
        stacks.append(_stack(group, suffix, problems))
    return stacks


def _incomplete(headers: Sequence[SliceHeader]) -> dict[str, Problem]:
    """What is missing of the concatenations of a series, by their UID; their parts may have gone to several stacks."""
    parts: dict[str, set[Part]] = {}
    for header in headers:
        if header.part is not None:
            parts.setdefault(header.part.uid, set()).add(header.part)
    return {uid: problem for uid, found in parts.items() if (problem := missing_parts(found)) is not None}


def _whose(header: SliceHeader) -> tuple[str, str]:
    return header.owner, header.series_number


def _numbered(headers: Sequence[SliceHeader]) -> Sequence[SliceHeader]:
    """The same headers; those without a series number, which may be empty (PS3.3 C.7.3.1), take the one of the rest."""
    stated = {_whose(header) for header in headers if header.series_number}
    if len(stated) != 1:
        return headers
    owner, number = stated.pop()
    return [
        replace(header, series_number=number) if not header.series_number and header.owner == owner else header
        for header in headers
    ]


def _together(one: SliceHeader, other: SliceHeader, *, same_spacing: float = SAME_SPACING) -> bool:
    return (
        (one.rows, one.columns, one.kernel, one.energy, _whose(one), one.frame_of_reference_uid)
        == (other.rows, other.columns, other.kernel, other.energy, _whose(other), other.frame_of_reference_uid)
        and all(abs(a - b) <= SAME_ORIENTATION for a, b in zip(one.orientation, other.orientation, strict=True))
        and all(abs(a - b) <= same_spacing * b for a, b in zip(one.pixel_spacing, other.pixel_spacing, strict=True))
    )


def _one_geometry(headers: Sequence[SliceHeader]) -> list[SliceHeader]:
    """The same headers; an object exported twice with other rounding takes the geometry of its first copy."""
    first: dict[tuple[str, int], SliceHeader] = {}
    found = []
    for header in headers:
        twin = first.setdefault((header.sop_instance_uid, header.frame), header)
        if (
            twin is not header
            and _together(twin, header, same_spacing=SAME_SPACING_TWICE)
            and np.abs(np.subtract(twin.origin, header.origin)).max() <= 2 * POSITION_TOLERANCE_MM
        ):
            header = replace(header, origin=twin.origin, orientation=twin.orientation, pixel_spacing=twin.pixel_spacing)
        found.append(header)
    return found


def _acquisitions(group: list[SliceHeader]) -> list[tuple[list[SliceHeader], str]]:
    """Parts of a group that are acquisitions, phases or temporal positions of their own, and the words for each.

    Two kinds exist: the same positions scanned again, where an attribute must part the slices so that none repeats; and
    acquisitions between each other's slices, where an attribute comes back along z. Scanners number the rotations of
    one step-and-shoot scan, too: each of those stands in one place.
    """
    normal = slice_normal(group[0].orientation)
    single = list({(header.sop_instance_uid, header.frame): header for header in group}.values())
    order = sorted(single, key=lambda header: float(np.dot(header.origin, normal)))
    repeats = _repeats(order, normal)
    for name in dict.fromkeys(name for header in order for name, _ in header.times):
        values = {id(header): dict(header.times).get(name, "") for header in group}
        along = [values[id(header)] for header in order]
        distinct = list(dict.fromkeys(values[id(header)] for header in group))
        if len(distinct) < 2:
            continue
        parts = [[header for header in order if values[id(header)] == value] for value in distinct]
        if repeats > 1:
            few = len(distinct) <= 2 * repeats and (len(order) <= repeats or min(map(len, parts)) > 1)
            parted = few and all(_repeats(part, normal) <= 1 for part in parts)
        else:
            runs = sum(1 for _ in groupby(along))
            back = runs > len(distinct) and 2 * len(distinct) <= len(order)
            woven = len(distinct) <= FEW_INTERLEAVED and 2 * runs >= len(order) and min(map(len, parts)) > 1
            parted = back and (name in _ALTERNATING or woven)
        if parted:
            shown = [value for value in distinct if re.fullmatch(r"[0-9.]{1,8}", value)]
            said = f" {', '.join(shown[:6])}" if len(shown) == len(distinct) else ""
            return [
                (
                    [header for header in group if values[id(header)] == value],
                    f"{len(distinct)} acquisitions ({name}{said})",
                )
                for value in distinct
            ]
    return [(group, "")]


def _repeats(order: Sequence[SliceHeader], normal: np.ndarray) -> int:
    """How many slices at most share one position."""
    positions = np.array([float(np.dot(header.origin, normal)) for header in order])
    new = np.concatenate([[True], np.diff(positions) >= DUPLICATE_TOLERANCE_MM])
    return int(np.bincount(np.cumsum(new)).max())


def _mixture(group: list[SliceHeader], said: str, others: list[list[SliceHeader]]) -> list[Problem]:
    """What other stacks share the UID: other kernels, energies, acquisitions, orientations, sizes and spacings."""
    problems = []
    first = group[0]
    normal = slice_normal(first.orientation)

    def positions(stacks: list[list[SliceHeader]]) -> tuple[float, ...]:
        return tuple(sorted(float(np.dot(h.origin, normal)) for other in stacks for h in other))

    kernels = [other for other in others if other[0].kernel != first.kernel]
    if kernels:
        where = positions(kernels)
        names = ", ".join(sorted({other[0].kernel or "none" for other in kernels}))
        text = f"one series holds kernel {first.kernel or 'none'} and also {names} at {named(where)} mm"
        problems.append(Problem("kernel", text, where))
    energies = [other for other in others if other[0].kernel == first.kernel and other[0].energy != first.energy]
    if energies:
        where = positions(energies)
        names = ", ".join(sorted({other[0].energy or "the plain image" for other in energies}))
        text = f"one series holds {first.energy or 'the plain image'} and also {names} at {named(where)} mm"
        problems.append(Problem("energy", text, where))
    if said:
        problems.append(Problem("acquisition", f"one series holds {said}; each is a stack of its own", ()))
    owners = [other for other in others if _whose(other[0]) != _whose(first)]
    if owners:
        where = positions(owners)
        text = f"one series UID holds slices of another patient, study or series number, at {named(where)} mm"
        problems.append(Problem("mixed", text, where))
    mixed = [
        other
        for other in others
        if (other[0].kernel, other[0].energy, _whose(other[0])) == (first.kernel, first.energy, _whose(first))
        and not _together(first, other[0])
    ]
    if mixed:
        where = positions(mixed)
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
    problems += _compression(kept, normal, notes)
    objects = len({(header.sop_instance_uid, header.frame) for header in kept})
    if objects < len(kept):
        notes.append(f"{len(kept)} slices under {objects} SOP instance UIDs, expected one each")
    if first.energy is not None:
        notes.append(f"not the plain image of the scan: {first.energy}")
    if not suffix:  # phases of one series are numbered through
        notes += _lost(kept, float(np.dot(vector, normal)))
    tilt = abs(first.tilt or 0.0)
    if tilt > STATED_TILT_DEG and np.abs(normal).max() > UPRIGHT and not any(one.code == "tilt" for one in problems):
        notes.append(f"GantryDetectorTilt of {tilt:g} degrees, but the slices stand upright and stack at right angles")
    if len({header.thickness for header in headers}) > 1:
        notes.append("slice thickness is not the same in all slices")
    return Series(
        uid=first.series_uid,
        key=first.series_uid + suffix,
        kernel=first.kernel,
        description=first.description,
        slices=tuple(
            SliceRef(h.path, h.frame, float(np.dot(h.origin, normal)), h.sop_instance_uid, h.origin, h.stamp)
            for h in kept
        ),
        shape=(len(kept), first.rows, first.columns),
        affine=stack_affine(origins[0], vector, first.orientation, first.pixel_spacing),
        slice_thickness_mm=thickness,
        frame_of_reference_uid=first.frame_of_reference_uid,
        energy=first.energy,
        problems=tuple(problems),
        notes=tuple(notes),
    )


def _lost(kept: list[SliceHeader], step: float) -> list[str]:
    """A note where the headers say that slices stood between those that are here: an even rest looks whole."""
    nominal = {header.nominal_spacing for header in kept}
    if len(kept) > 1 and len(nominal) == 1 and (stated := next(iter(nominal))) and step > LOST_FACTOR * stated:
        return [f"slices {step:.4g} mm apart, {stated:.4g} mm by SpacingBetweenSlices: were some lost?"]
    numbers = [header.number for header in kept]
    steps = {abs(after - one) for one, after in pairwise(numbers) if one is not None and after is not None}
    if len(kept) > 2 and None not in numbers and len(steps) == 1 and (every := steps.pop()) > 1:
        return [f"instance numbers in steps of {every}: were the slices between them lost?"]
    return []


def _compression(kept: list[SliceHeader], normal: np.ndarray, notes: list[str]) -> list[Problem]:
    """Lossy compression, noted or too strong, and pixels that no decoder here can read."""
    problems = []
    ratios = sorted({header.lossy_ratio or 0.0 for header in kept if header.lossy})
    if ratios:
        notes.append(f"lossy compression{f' {ratios[-1]:g}:1' if ratios[-1] else ', ratio not stated'}")
    if ratios and ratios[-1] > MAX_LOSSY_RATIO:
        where = tuple(float(np.dot(h.origin, normal)) for h in kept if (h.lossy_ratio or 0.0) > MAX_LOSSY_RATIO)
        text = f"lossy compression {ratios[-1]:g}:1, expected at most {MAX_LOSSY_RATIO:g}:1, at {named(where)} mm"
        problems.append(Problem("lossy", text, where))
    undecodable = sorted({header.undecodable for header in kept if header.undecodable})
    if undecodable:
        where = tuple(float(np.dot(h.origin, normal)) for h in kept if h.undecodable)
        text = f"cannot decode pixels in {', '.join(undecodable)}, no decoder is here, at {named(where)} mm"
        problems.append(Problem("syntax", text, where))
    return problems


def _unique(ordered: Sequence[SliceHeader], normal: np.ndarray) -> tuple[list[SliceHeader], list[Problem]]:
    """One slice for each position, and which positions came twice with the same or with another content."""
    kept: list[SliceHeader] = []
    same: list[float] = []
    different: list[float] = []
    for header in ordered:
        position = float(np.dot(header.origin, normal))
        step = position - float(np.dot(kept[-1].origin, normal)) if kept else np.inf
        if step < 2 * POSITION_TOLERANCE_MM and _same_content(kept[-1], header):
            same.append(position)
        elif step < DUPLICATE_TOLERANCE_MM:
            different.append(position)
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
    """The same voxels in one place, but for the rounding of an export."""
    if np.abs(np.subtract(one.origin, other.origin)).max() > 2 * POSITION_TOLERANCE_MM:
        return False
    try:
        a, b = (stored_slice(open_dataset(h.path, pixels=True), h.frame, h.path).stored_hu() for h in (one, other))
    except ConcordctError:
        return False
    return bool(np.array_equal(a, b))
