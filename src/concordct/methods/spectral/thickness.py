"""Thin slices to thick ones: the profile of a thick slice, fitted on one scan that was reconstructed with both.

A thick slice is a weighted mean of thin ones. The weights depend on the distance alone; they are found by least squares
on a pair and serve any distance between slices and any position. The way back, from thick to thin, is not offered:
what a thick slice averaged is not in it.

    profile = fit_profile(thin, thick)
    standardized = thicken(other, profile, spacing_mm=5.0)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from concordct.errors import ConcordctError
from concordct.methods.spectral.transfer import require_axial
from concordct.volumes.volume import BODY_ABOVE_HU, Volume

#: Slices of one scan lie on one line, and its planes on one another, within this; headers round to it at the worst, mm.
SAME_PLACE_MM = 0.11
#: A profile reaches this many thicknesses of the thick slice to either side; a Gaussian of its width ends before.
REACH = 1.5
#: Thin slices have to lie closer than this share of the thick thickness, or the profile is not sampled.
CLOSEST = 0.5
#: Weights that add up to less than this lack a part of the profile: the slice would reach out of the scan.
WHOLE = 0.98


@dataclass(frozen=True, eq=False)
class SliceProfile:
    """Weight of a thin slice in a thick one.

    Attributes
    ----------
    distance_mm : [k] ascending from 0, between the two centres. density_per_mm : [k], linear in between, 0 beyond; its
        integral over both sides is 1.
    thin_mm, thick_mm : nominal thickness on either side.
    """

    distance_mm: NDArray[np.float64]
    density_per_mm: NDArray[np.float64]
    thin_mm: float
    thick_mm: float

    @property
    def width_mm(self) -> float:
        """Full width at half of the greatest weight."""
        below = np.flatnonzero(self.density_per_mm < self.density_per_mm.max() / 2)
        at = int(below[0])
        pair = self.density_per_mm[at - 1 : at + 1][::-1]
        return 2 * float(np.interp(self.density_per_mm.max() / 2, pair, self.distance_mm[at - 1 : at + 1][::-1]))

    def weights(self, distance_mm: NDArray[np.floating], spacing_mm: float) -> NDArray[np.float64]:
        """Of thin slices so far away and so far apart; their sum is 1 where the whole profile lies in the scan."""
        density = np.interp(np.abs(distance_mm), self.distance_mm, self.density_per_mm, right=0.0)
        return np.asarray(density * spacing_mm, np.float64)


def fit_profile(thin: Volume, thick: Volume) -> SliceProfile:
    """The profile that leads from thin slices to thick ones of the same scan.

    Parameters
    ----------
    thin, thick : [z, y, x] HU with their slice thickness, on one grid in the plane.

    Raises
    ------
    ConcordctError : another grid, no thickness, slices too far apart, or no thick slice that lies wholly in the scan.
    """
    _require_one_grid(thin, thick)
    if thin.slice_thickness_mm is None or thick.slice_thickness_mm is None:
        raise ConcordctError("expected slice thicknesses, found a scan without")
    spacing, reach = thin.spacing_mm[0], REACH * thick.slice_thickness_mm
    if spacing > CLOSEST * thick.slice_thickness_mm:
        raise ConcordctError(
            f"expected thin slices at most {CLOSEST * thick.slice_thickness_mm:g} mm apart, found {spacing:g} mm"
        )
    at, wanted = _positions(thin), _positions(thick)
    knots = np.arange(0, reach + spacing, spacing)
    normal, right = np.zeros((len(knots), len(knots))), np.zeros(len(knots))
    for place, image in zip(wanted, thick.hu, strict=True):
        near = np.flatnonzero(np.abs(at - place) < knots[-1])
        if place - reach < at.min() - SAME_PLACE_MM or place + reach > at.max() + SAME_PLACE_MM:
            continue
        # A thin slice at distance d counts by linear interpolation between the knots around d.
        share = np.maximum(0, 1 - np.abs(np.abs(at[near] - place)[:, None] - knots) / spacing)  # [slice, knot]
        body = image > BODY_ABOVE_HU
        columns = np.tensordot(share.T, thin.hu[near][:, body].astype(np.float64), 1)  # [knot, pixel]
        normal += columns @ columns.T
        right += columns @ image[body]
    if not normal.any():
        raise ConcordctError(f"expected a thick slice with {reach:g} mm of thin ones on either side, found none")
    found = np.linalg.lstsq(normal, right, rcond=1e-9)[0]
    return SliceProfile(
        knots, found / (found[0] + 2 * found[1:].sum()) / spacing, thin.slice_thickness_mm, thick.slice_thickness_mm
    )


def thicken(volume: Volume, profile: SliceProfile, *, spacing_mm: float, first_mm: float | None = None) -> Volume:
    """Thick slices from thin ones.

    Parameters
    ----------
    volume : [z, y, x] HU, axial, of the profile's thin thickness or less, evenly spaced.
    spacing_mm : distance of the thick slices.
    first_mm : centre of the first thick slice, from the centre of the first thin one; None for the first that lies
        wholly in the scan.

    Returns
    -------
    Volume with the slices that lie wholly in the scan, at their own places.

    Raises
    ------
    ConcordctError : slices that are not axial, or too far apart, or a scan that holds no thick slice.
    """
    require_axial(volume)
    own = volume.spacing_mm[0]
    if own > CLOSEST * profile.thick_mm:
        raise ConcordctError(f"expected slices at most {CLOSEST * profile.thick_mm:g} mm apart, found {own:g} mm")
    at = np.arange(volume.shape[0]) * own
    start = 0.0 if first_mm is None else first_mm
    step = own if first_mm is None else spacing_mm
    while start <= at[-1] and profile.weights(at - start, own).sum() < WHOLE:
        start += step
    places = [p for p in np.arange(start, at[-1] + own / 2, spacing_mm) if profile.weights(at - p, own).sum() >= WHOLE]
    if not places:
        raise ConcordctError(
            f"expected a scan that holds a slice of {profile.thick_mm:g} mm, found {volume.shape[0] * own:g} mm"
        )
    weights = np.stack([profile.weights(at - place, own) for place in places])
    weights /= weights.sum(axis=1, keepdims=True)
    hu = np.tensordot(weights.astype(np.float32), volume.hu, 1)
    affine = volume.affine.copy()
    direction = volume.affine[:3, 0] / own
    affine[:3, 0] = direction * spacing_mm
    affine[:3, 3] = volume.affine[:3, 3] + direction * places[0]
    return replace(volume, hu=hu, affine=affine, padding=None, slice_thickness_mm=profile.thick_mm, first_slice=0)


def _positions(volume: Volume) -> NDArray[np.float64]:
    normal = volume.affine[:3, 0] / np.linalg.norm(volume.affine[:3, 0])
    return np.asarray(np.arange(volume.shape[0]) * volume.spacing_mm[0] + normal @ volume.affine[:3, 3], np.float64)


def _require_one_grid(thin: Volume, thick: Volume) -> None:
    require_axial(thin)
    if thin.shape[1:] != thick.shape[1:]:
        raise ConcordctError(f"expected slices of {thin.shape[1:]}, found {thick.shape[1:]}")
    normal = thin.affine[:3, 0] / thin.spacing_mm[0]
    apart = thick.affine[:3, 3] - thin.affine[:3, 3]
    beside = float(np.linalg.norm(apart - normal * (normal @ apart)))
    turned = float(np.abs(thick.affine[:3, 1:3] - thin.affine[:3, 1:3]).max()) * max(thin.shape[1:])
    if max(beside, turned) > SAME_PLACE_MM or not np.allclose(
        thick.affine[:3, 0] / thick.spacing_mm[0], normal, atol=1e-3
    ):
        raise ConcordctError(f"expected slices on one grid, found them {max(beside, turned):.3g} mm apart in the plane")
