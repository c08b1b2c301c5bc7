"""Geometry of a stack of slices, from ImagePositionPatient and ImageOrientationPatient alone (DICOM PS3.3 C.7.6.2).

Slices are ordered by position along the normal; instance numbers, slice locations and spacings of the header are never
asked. What is wrong comes back as problems that name the positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Scanners round positions to 0.1 mm or finer, so a position errs by up to 0.05 mm.
POSITION_TOLERANCE_MM = 0.06
#: Uneven positions below 2% of the step change no frequency that a filter or a feature sees.
SPACING_TOLERANCE = 0.02
#: Two slices nearer than this are one position.
DUPLICATE_TOLERANCE_MM = 0.01
#: A tilt below this comes from rounded positions; real gantry tilts are whole or half degrees.
TILT_TOLERANCE_DEG = 0.1
#: Direction cosines are written with six digits or more; a larger error means that they are no unit vectors.
COSINE_TOLERANCE = 1e-3
#: Steps beyond this multiple of the median step mean that slices are missing.
GAP_FACTOR = 1.5
#: Noise takes even a crop of bare muscle below -10 HU; the ends are far beyond metal.
LEAST_BELOW_HU, RANGE_HU = -10.0, (-32768.0, 65535.0)
#: A jump over more slices than any scan has is a position that is wrong, not a gap.
MOST_MISSING = 2000
#: Neighbouring slices further apart than this stand outside of any scanner.
STRAY_MM = 5000.0
#: Positions named in one message; a broken series may have hundreds.
NAMED_POSITIONS = 6


@dataclass(frozen=True)
class Problem:
    """What is wrong with a series.

    Attributes
    ----------
    code : "gap", "spacing", "duplicate", "conflict", "tilt", "shift", "stray", "kernel", "energy", "acquisition",
        "mixed", "lossy", "syntax" or "units".
    message : one line.
    positions_mm : the positions concerned, along the normal.
    """

    code: str
    message: str
    positions_mm: tuple[float, ...] = ()


@lru_cache(maxsize=64)
def slice_normal(orientation: tuple[float, ...]) -> NDArray[np.float64]:
    """[3] unit normal of six direction cosines; ValueError when they are not two orthogonal unit vectors."""
    row, column = np.array(orientation[:3], dtype=float), np.array(orientation[3:], dtype=float)
    lengths = np.array([row @ row - 1, column @ column - 1, row @ column])
    if len(orientation) != 6 or not np.all(np.isfinite(lengths)) or np.abs(lengths).max() > COSINE_TOLERANCE:
        raise ValueError("direction cosines are not orthogonal unit vectors")
    normal = np.cross(row, column)
    found = np.asarray(normal / np.linalg.norm(normal), dtype=np.float64)
    found.flags.writeable = False  # the next slice gets the same
    return found


def stack_step(
    origins: NDArray[np.float64], normal: NDArray[np.float64], *, thickness_mm: float
) -> tuple[NDArray[np.float64], tuple[Problem, ...]]:
    """Step from slice to slice of a sorted stack, and what is wrong with it.

    Parameters
    ----------
    origins : [n, 3] LPS mm of the first voxel of each slice, ascending along the normal, no position twice.
    normal : [3] unit normal.
    thickness_mm : stands in for the step of a single slice.

    Returns
    -------
    [3] step in LPS mm (with its shear, when the gantry was tilted), problems.
    """
    positions = origins @ normal
    if len(positions) == 1:
        return normal * thickness_mm, ()
    steps = np.diff(positions)
    median = float(np.median(steps))
    problems: list[Problem] = []

    # A position that is far beyond any scan: with it no grid is worth fitting.
    stray, step = _stray(positions, median)
    if stray.size:
        text = f"stray position at {named(stray)} mm, expected slices within {MOST_MISSING} steps of {step:g} mm"
        return normal * step, (Problem("stray", text, tuple(float(p) for p in stray)),)

    # Missing slices: whole multiples of the median step.
    multiples = np.maximum(np.rint(steps / median), 1)
    wide = np.flatnonzero(steps > GAP_FACTOR * median)
    if wide.size:
        missing = tuple(
            float(positions[i] + (k + 1) * steps[i] / multiples[i])
            for i in wide
            for k in range(max(int(multiples[i]) - 1, 1))
        )
        problems.append(Problem("gap", f"slices missing at {named(missing)} mm (step {median:g} mm)", missing))

    # Everything else has to lie on one even grid.
    index = np.concatenate([[0.0], np.cumsum(multiples)])
    slope, offset = np.polyfit(index, positions, 1)
    tolerance = max(POSITION_TOLERANCE_MM, SPACING_TOLERANCE * median)
    errors = np.abs(positions - (offset + slope * index))
    if errors.max() > tolerance:
        uneven = np.abs(steps - multiples * median) > tolerance
        where = positions[1:][uneven] if uneven.any() else positions[errors > tolerance]
        text = f"spacing is not even: steps of {steps.min():g} to {steps.max():g} mm, positions off by up to"
        text += f" {errors.max():.3g} mm, expected {tolerance:.3g} mm at most; at {named(where)} mm"
        problems.append(Problem("spacing", text, tuple(float(p) for p in where)))

    # Shear: in-plane drift along the stack. What a straight line does not explain is a jump of the field of view.
    in_plane = origins - np.outer(positions, normal)
    coefficients = np.polyfit(positions, in_plane, 1)
    drift = coefficients[0] - (coefficients[0] @ normal) * normal
    jumps = np.linalg.norm(in_plane - np.outer(positions, coefficients[0]) - coefficients[1], axis=1)
    angle = float(np.degrees(np.arctan(np.linalg.norm(drift))))
    total = float(np.linalg.norm(drift) * (positions[-1] - positions[0]))
    tilted = angle > TILT_TOLERANCE_DEG and total > 2 * POSITION_TOLERANCE_MM
    if tilted:
        problems.append(
            Problem("tilt", f"gantry tilt of {angle:.1f} degrees between stacking direction and slice normal")
        )
    shifted = positions[jumps > 2 * POSITION_TOLERANCE_MM]
    if shifted.size:
        text = f"field of view jumps in plane by up to {jumps.max():.3g} mm at {named(shifted)} mm"
        problems.append(Problem("shift", text, tuple(float(p) for p in shifted)))
    return slope * (normal + (drift if tilted else 0.0)), tuple(problems)


def _stray(positions: NDArray[np.float64], median: float) -> tuple[NDArray[np.float64], float]:
    """Positions apart from the largest run without an impossible jump, and the median step of that run."""
    jumps = np.flatnonzero(np.diff(positions) > min(MOST_MISSING * median, STRAY_MM))
    if not jumps.size:
        return np.empty(0), median
    runs = np.split(positions, jumps + 1)
    largest = int(np.argmax([len(run) for run in runs]))
    step = float(np.median(np.diff(runs[largest]))) if len(runs[largest]) > 1 else 1.0
    return np.concatenate([run for k, run in enumerate(runs) if k != largest]), step


def stack_affine(
    origin: NDArray[np.float64],
    step: NDArray[np.float64],
    orientation: tuple[float, ...],
    pixel_spacing_mm: tuple[float, float],
) -> NDArray[np.float64]:
    """[4, 4] affine from index (z, y, x, 1) to LPS mm; pixel spacing is (between rows, between columns)."""
    affine = np.eye(4)
    affine[:3, 0] = step
    # PS3.3 C.7.6.2.1.1: the second triple of cosines points down the rows' index, the first along the columns'.
    affine[:3, 1] = np.array(orientation[3:]) * pixel_spacing_mm[0]
    affine[:3, 2] = np.array(orientation[:3]) * pixel_spacing_mm[1]
    affine[:3, 3] = origin
    return affine


def named(positions: NDArray[np.float64] | tuple[float, ...]) -> str:
    """A few positions for a message: "12, 15, ... (9 in all)"."""
    shown = ", ".join(f"{float(p):.6g}" for p in positions[:NAMED_POSITIONS])
    return shown if len(positions) <= NAMED_POSITIONS else f"{shown}, ... ({len(positions)} in all)"


def units_problem(values: NDArray[Any]) -> Problem | None:
    """Whether values cannot be HU: a mask, an image scaled for a network or a display, stored values without rescale.

    Parameters
    ----------
    values : any shape, without padding.

    Returns
    -------
    None when some value is below `LEAST_BELOW_HU` and all are within `RANGE_HU`, else the problem "units".
    """
    if not values.size:
        return None
    low, high = float(values.min()), float(values.max())
    if low < LEAST_BELOW_HU and low >= RANGE_HU[0] and high <= RANGE_HU[1]:
        return None
    return Problem("units", f"values from {low:g} to {high:g}, expected HU (air near -1000)", ())
