"""Pairs of two slice thicknesses: a profile is fitted, and both sides are brought to the target's slices."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from concordct.errors import ConcordctError
from concordct.methods.spectral.thickness import (
    SAME_THICKNESS,
    ProfileFit,
    Stacking,
    line_positions,
    require_one_plane,
)
from concordct.volumes.restacked import Means, restacked
from concordct.volumes.scans import Scan, scan_path

#: Target slices that the profile is fitted on, of each pair, evenly spread.
FITTED = 16

Pair = tuple[Scan, Scan]


def stacked(pairs: Sequence[Pair], *, allow: Collection[str] = frozenset()) -> tuple[tuple[Pair, ...], Stacking | None]:
    """Pairs as a calibration takes them: as they are, or both sides in the target's slices where thicknesses differ.

    Raises
    ------
    ConcordctError : pairs of which some differ in thickness and some do not, or in other ways; other grids in the
        plane; no slice that both sides hold.
    """
    ways = sorted({_way(source, target) for source, target in pairs})
    if ways == ["as they are"]:
        return tuple(pairs), None
    if len(ways) != 1:
        raise ConcordctError(f"expected pairs that all lead from one thickness to another, found {', '.join(ways)}")
    source, target = pairs[0]
    fit = ProfileFit(
        spacing_mm=(source.spacing_mm[0], target.spacing_mm[0]),
        source_mm=nominal_mm(source),
        target_mm=nominal_mm(target),
    )
    for source, target in pairs:
        _add(fit, source, target, allow)
    try:
        stacking = Stacking(fit.profile(), target.spacing_mm[0])
    except ConcordctError as error:
        raise ConcordctError(f"{scan_path(source)}: {error}") from None
    return tuple(_both_sides(stacking, *pair) for pair in pairs), stacking


def nominal_mm(scan: Scan) -> float:
    """Slice thickness, or the distance of the slices where a file does not say."""
    return scan.slice_thickness_mm or scan.spacing_mm[0]


def _way(source: Scan, target: Scan) -> str:
    own, other = nominal_mm(source), nominal_mm(target)
    said = source.slice_thickness_mm is not None and target.slice_thickness_mm is not None
    same_step = np.isclose(source.spacing_mm[0], target.spacing_mm[0], rtol=0.02)
    same_places = source.shape[0] == target.shape[0] and same_step
    if 1 / SAME_THICKNESS <= own / other <= SAME_THICKNESS or (same_places and not said):
        return "as they are"
    return f"slices of {own:g} to slices of {other:g} mm"


def _add(fit: ProfileFit, source: Scan, target: Scan, allow: Collection[str]) -> None:
    try:
        require_one_plane(source, target)
    except ConcordctError as error:
        raise ConcordctError(f"{scan_path(source)} and {scan_path(target)}: {error}") from None
    at, wanted = (line_positions(scan.affine, scan.shape[0]) for scan in (source, target))
    whole = [(k, near) for k, place in enumerate(wanted) if (near := fit.reaches(at, place)) is not None]
    y, x = source.spacing_mm[1:]
    for pick in sorted({round(float(i)) for i in np.linspace(0, len(whole) - 1, min(FITTED, len(whole)))}):
        k, near = whole[pick]
        volume = source.read(int(near[0]), int(near[-1]) + 1, allow=allow)
        image = target.read(k, k + 1, allow=allow).hu[0]
        fit.add(volume.hu, at[near] - wanted[k], image, pixel_mm=(y, x))


def _both_sides(stacking: Stacking, source: Scan, target: Scan) -> Pair:
    at, wanted = (line_positions(scan.affine, scan.shape[0]) for scan in (source, target))
    first_mm = float(wanted[0] - at[0])
    made = stacking.of(source, first_mm=first_mm)
    assert made.means is not None
    skipped = round((made.means.places[0] * source.spacing_mm[0] - first_mm) / stacking.spacing_mm)
    count = min(made.shape[0], target.shape[0] - skipped)
    if count < 1:
        raise ConcordctError(
            f"{scan_path(source)} and {scan_path(target)}: expected slices that both hold wholly, found none"
        )
    kept = range(skipped, skipped + count)
    own = Means(tuple(kept), (np.ones(1),) * count, tuple(float(k) for k in kept), nominal_mm(target))
    if count < made.shape[0]:
        made = stacking.of(source, first_mm=first_mm, count=count)
    # Both sides name one thickness, that of the slices as they now are.
    return made, replace(restacked(target, own), slice_thickness_mm=nominal_mm(target))
