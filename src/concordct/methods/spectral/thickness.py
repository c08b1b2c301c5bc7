"""From one slice thickness to another: the weights of slices, fitted on one scan that was reconstructed with both.

A thick slice is a weighted mean of thin ones. The weights depend on the distance alone; they are found by least squares
on a pair and serve any distance between slices and any position. The same fit with the sides exchanged gives the best
linear interpolation of thin slices between thick ones. It moves slices and makes none thinner: what a thick slice
averaged is not in it, so interpolated slices keep their nominal thickness.

    profile = fit_profile(thin, thick)
    thick_scan = Stacking(profile, spacing_mm=5.0).of(thin_scan)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from concordct.errors import ConcordctError
from concordct.methods.spectral.transfer import require_axial
from concordct.training.bundle import Bundle
from concordct.volumes.restacked import Means, Restacked, restacked
from concordct.volumes.scans import Scan, scan_path
from concordct.volumes.volume import AIR_HU, BODY_ABOVE_HU, Volume

#: Slices of one scan lie on one line, and its planes on one another, within this; headers round to it at the worst, mm.
SAME_PLACE_MM = 0.11
#: Thicknesses within this factor of each other are one.
SAME_THICKNESS = 1.1
#: A profile reaches this many thicknesses of the thick slice to either side; a Gaussian of its width ends before.
REACH = 1.5
#: Interpolation looks at this many slices to either side.
REACH_SLICES = 2.0
#: Thin slices have to lie closer than this share of the thick thickness, or the profile is not sampled.
CLOSEST = 0.5
#: Weights that add up to less than this lack a part of the profile: the slice would reach out of the scan.
WHOLE = 0.995
#: Kernels agree below this Gaussian low pass in the plane, and the profile is fitted there, mm.
LOW_PASS_MM = 0.7
#: Keeps the least squares solvable where slices are alike, as a share of their mean power.
RIDGE = 1e-9
#: A profile edited by hand: its integral is 1 within this.
UNIT = 0.05
#: Where a bundle holds the profile.
TENSORS, METADATA = "stacking/", "stacking"


@dataclass(frozen=True, eq=False)
class SliceProfile:
    """Weight of a source slice in a target slice.

    Attributes
    ----------
    distance_mm : [k] ascending from 0, between the two centres. density_per_mm : [k], linear in between, 0 beyond; its
        integral over both sides is 1.
    source_mm, target_mm : nominal thickness on either side.
    """

    distance_mm: NDArray[np.float64]
    density_per_mm: NDArray[np.float64]
    source_mm: float
    target_mm: float

    @property
    def interpolates(self) -> bool:
        """Whether it leads from thick slices to thin ones, which it cannot make."""
        return self.source_mm > self.target_mm

    @property
    def width_mm(self) -> float:
        """Full width at half of the greatest weight."""
        below = np.flatnonzero(self.density_per_mm < self.density_per_mm.max() / 2)
        at = int(below[0])
        pair = self.density_per_mm[at - 1 : at + 1][::-1]
        return 2 * float(np.interp(self.density_per_mm.max() / 2, pair, self.distance_mm[at - 1 : at + 1][::-1]))

    def weights(self, distance_mm: NDArray[np.floating], spacing_mm: float) -> NDArray[np.float64]:
        """Of source slices so far away and so far apart; their sum is 1 where the whole profile lies in the scan."""
        density = np.interp(np.abs(distance_mm), self.distance_mm, self.density_per_mm, right=0.0)
        return np.asarray(density * spacing_mm, np.float64)


class ProfileFit:
    """Least squares for a profile, one target slice at a time; several scans of one protocol may be added.

    Parameters
    ----------
    spacing_mm : distance of the source slices and of the target slices.
    source_mm, target_mm : nominal thickness on either side.

    Raises
    ------
    ConcordctError : slices too far apart to hold the profile.
    """

    def __init__(self, *, spacing_mm: tuple[float, float], source_mm: float, target_mm: float) -> None:
        self.source_mm, self.target_mm = source_mm, target_mm
        if source_mm < target_mm:
            _require_close(spacing_mm[0], target_mm)
            step, reach = spacing_mm[0], REACH * target_mm
            self._margin_mm = reach
        else:
            step, reach = spacing_mm[1], REACH_SLICES * spacing_mm[0]
            self._margin_mm = spacing_mm[0]  # two slices on either side
        self.knots = np.arange(0, reach + step, step)
        self._step = step
        self._normal, self._right = np.zeros((len(self.knots), len(self.knots))), np.zeros(len(self.knots))

    def reaches(self, at_mm: NDArray[np.float64], place_mm: float) -> NDArray[np.intp] | None:
        """Source slices that a target slice at this place depends on; None where some of them lie out of the scan."""
        ends = at_mm.min() - SAME_PLACE_MM, at_mm.max() + SAME_PLACE_MM
        if place_mm - self._margin_mm < ends[0] or place_mm + self._margin_mm > ends[1]:
            return None
        return np.flatnonzero(np.abs(at_mm - place_mm) < self.knots[-1])

    def add(
        self,
        near: NDArray[np.float32],
        distance_mm: NDArray[np.float64],
        image: NDArray[np.float32],
        *,
        pixel_mm: tuple[float, float],
    ) -> None:
        """[k, y, x] source slices and their distance from the target slice [y, x], HU."""
        sigma = [LOW_PASS_MM / d for d in pixel_mm]
        body = image > BODY_ABOVE_HU
        if not body.any():
            return
        smooth = [(ndimage.gaussian_filter(one, sigma)[body] - AIR_HU).astype(np.float64) for one in (*near, image)]
        # A source slice at distance d counts by linear interpolation between the knots around d.
        share = np.maximum(0, 1 - np.abs(np.abs(distance_mm)[:, None] - self.knots) / self._step)  # [slice, knot]
        columns = share.T @ np.stack(smooth[:-1])  # [knot, pixel]
        self._normal += columns @ columns.T
        self._right += columns @ smooth[-1]

    def profile(self) -> SliceProfile:
        """What was found.

        Raises
        ------
        ConcordctError : no target slice with all of its source slices.
        """
        if not self._normal.any():
            raise ConcordctError(
                f"expected a slice with {self._margin_mm:g} mm of the source scan on either side, found none"
            )
        if self.source_mm > self.target_mm:
            found = np.linalg.lstsq(self._normal, self._right, rcond=1e-9)[0]
        else:
            from scipy import optimize  # a tenth of the time that standardizing a slice takes, and fits alone need it

            # No slice counts for less than nothing: neighbours that look alike would else share out large weights.
            ridge = RIDGE * np.trace(self._normal) / len(self.knots) * np.eye(len(self.knots))
            root = np.linalg.cholesky(self._normal + ridge)
            found = optimize.nnls(root.T, np.linalg.solve(root, self._right))[0]
        density = found / (found[0] + 2 * found[1:].sum()) / self._step
        return SliceProfile(self.knots, density, self.source_mm, self.target_mm)


def fit_profile(source: Volume, target: Volume) -> SliceProfile:
    """The profile that leads from the slices of one reconstruction to those of another of the same scan.

    Parameters
    ----------
    source, target : [z, y, x] HU with their slice thickness, on one grid in the plane.

    Raises
    ------
    ConcordctError : another grid, no thickness, slices too far apart, or no target slice that lies wholly in the scan.
    """
    require_one_plane(source, target)
    if source.slice_thickness_mm is None or target.slice_thickness_mm is None:
        raise ConcordctError("expected slice thicknesses, found a scan without")
    fit = ProfileFit(
        spacing_mm=(source.spacing_mm[0], target.spacing_mm[0]),
        source_mm=source.slice_thickness_mm,
        target_mm=target.slice_thickness_mm,
    )
    at = positions(source)
    y, x = source.spacing_mm[1:]
    for place, image in zip(positions(target), target.hu, strict=True):
        near = fit.reaches(at, place)
        if near is not None:
            fit.add(source.hu[near], at[near] - place, image, pixel_mm=(y, x))
    return fit.profile()


@dataclass(frozen=True, eq=False)
class Stacking:
    """A profile and the distance of the slices that are made with it.

    Attributes
    ----------
    profile : as fitted.
    spacing_mm : of the target.
    """

    profile: SliceProfile
    spacing_mm: float

    def of(self, scan: Scan, *, first_mm: float | None = None, count: int | None = None) -> Restacked:
        """The scan in the target's slices.

        Parameters
        ----------
        scan : axial, of the profile's source thickness or thinner (for interpolation: of its source thickness).
        first_mm : centre of the first new slice, from that of the first one there is; None for the first that the scan
            holds wholly.
        count : at most so many.

        Raises
        ------
        ConcordctError : another thickness, slices that are uneven or too far apart, or a scan that holds no such slice.
        """
        mismatch = self.mismatch(scan)
        if mismatch:
            raise ConcordctError(f"{scan_path(scan)}: {mismatch} [thickness]")
        own, depth = scan.spacing_mm[0], scan.shape[0]
        at = np.arange(depth) * own
        start, step = (0.0, own) if first_mm is None else (first_mm, self.spacing_mm)
        while start <= at[-1] and not self._held(at, start, own):
            start += step
        places = [p for p in np.arange(start, at[-1] + own / 2, self.spacing_mm) if self._held(at, p, own)][:count]
        if not places:
            raise ConcordctError(
                f"{scan_path(scan)}: expected a scan that holds a slice of {self.profile.target_mm:g} mm, found "
                f"{depth * own:g} mm"
            )
        first, weights = [], []
        for place in places:
            whole = self.profile.weights(at - place, own)
            used = np.flatnonzero(whole)
            first.append(int(used[0]))
            weights.append(whole[used[0] : used[-1] + 1] / whole.sum())
        return restacked(
            scan, Means(tuple(first), tuple(weights), tuple(float(p / own) for p in places), self.thickness_mm(scan))
        )

    def thickness_mm(self, scan: Scan) -> float:
        """Nominal thickness of the slices made: interpolated ones stay as thick as they were."""
        own = scan.slice_thickness_mm
        return self.profile.target_mm if not self.profile.interpolates else own or self.profile.source_mm

    def mismatch(self, scan: Scan) -> str | None:
        """Why a scan's slices are not those that the profile leads from; None when they are."""
        profile, own = self.profile, scan.slice_thickness_mm or scan.spacing_mm[0]
        if profile.interpolates:
            if not 1 / SAME_THICKNESS <= own / profile.source_mm <= SAME_THICKNESS:
                return f"slices of {own:g} mm, while the model interpolates between slices of {profile.source_mm:g} mm"
            return None
        if own > SAME_THICKNESS * profile.source_mm:
            return (
                f"slices of {own:g} mm, while the model makes slices of {profile.target_mm:g} mm from slices of "
                f"{profile.source_mm:g} mm or less"
            )
        return None

    def _held(self, at: NDArray[np.floating], place: float, own: float) -> bool:
        """Whether all that a slice depends on lies in the scan."""
        if self.profile.interpolates:
            return bool(at[0] - 1e-6 <= place <= at[-1] + 1e-6)
        _require_close(own, self.profile.target_mm)
        return bool(self.profile.weights(at - place, own).sum() >= WHOLE)

    def said(self) -> str:
        """What is done to slices, in words."""
        profile = self.profile
        if profile.interpolates:
            return (
                f"slices of {profile.source_mm:g} mm interpolated every {self.spacing_mm:g} mm; nothing along z that a "
                f"slice of {profile.source_mm:g} mm averaged comes back"
            )
        return (
            f"slices of {profile.target_mm:g} mm every {self.spacing_mm:g} mm as weighted means of slices of "
            f"{profile.source_mm:g} mm"
        )

    def added_to(self, bundle: Bundle) -> Bundle:
        """The bundle with the profile in it."""
        profile = self.profile
        tensors = {f"{TENSORS}distance_mm": profile.distance_mm, f"{TENSORS}density_per_mm": profile.density_per_mm}
        stacking = {"source_mm": profile.source_mm, "target_mm": profile.target_mm, "spacing_mm": self.spacing_mm}
        return Bundle({**bundle.tensors, **tensors}, {**bundle.metadata, METADATA: stacking})

    @staticmethod
    def of_bundle(bundle: Bundle) -> Stacking | None:
        """The profile of a bundle; None for models that leave slices where they are.

        Raises
        ------
        ConcordctError : a profile that no calibration writes.
        """
        stacking: Mapping[str, Any] | None = bundle.metadata.get(METADATA)
        if stacking is None:
            return None
        try:
            distance, density = (
                np.asarray(bundle.tensors[f"{TENSORS}{n}"], np.float64) for n in ("distance_mm", "density_per_mm")
            )
            numbers = [float(stacking[name]) for name in ("source_mm", "target_mm", "spacing_mm")]
        except (KeyError, TypeError, ValueError) as error:
            raise ConcordctError(f"expected a whole slice profile, found one without {error}") from error
        sound = distance.ndim == 1 and distance.shape == density.shape and distance.size > 1 and min(numbers) > 0
        sound = sound and bool(np.isfinite([*distance, *density, *numbers]).all())
        if not sound or distance[0] != 0 or np.any(np.diff(distance) <= 0):
            raise ConcordctError("expected a slice profile of finite numbers over distances from 0, found others")
        integral = float(np.sum((density[1:] + density[:-1]) * np.diff(distance)))
        if abs(integral - 1) > UNIT:
            raise ConcordctError(f"expected a slice profile whose integral is 1, found {integral:.3g}")
        return Stacking(SliceProfile(distance, density, numbers[0], numbers[1]), numbers[2])


def positions(volume: Volume) -> NDArray[np.float64]:
    """[z] centres of the slices along their normal, mm."""
    return line_positions(volume.affine, volume.shape[0])


def line_positions(affine: NDArray[np.float64], depth: int) -> NDArray[np.float64]:
    """[depth] the same for an affine."""
    spacing = float(np.linalg.norm(affine[:3, 0]))
    return np.asarray(np.arange(depth) * spacing + affine[:3, 0] @ affine[:3, 3] / spacing, np.float64)


def require_one_plane(source: Volume | Scan, target: Volume | Scan) -> None:
    """Two stacks whose slices lie on one grid in the plane, along one line.

    Raises
    ------
    ConcordctError : otherwise, with the distance.
    """
    require_axial(source)
    if source.shape[1:] != target.shape[1:]:
        raise ConcordctError(f"expected slices of {source.shape[1:]}, found {target.shape[1:]}")
    normal = source.affine[:3, 0] / source.spacing_mm[0]
    apart = target.affine[:3, 3] - source.affine[:3, 3]
    beside = float(np.linalg.norm(apart - normal * (normal @ apart)))
    turned = float(np.abs(target.affine[:3, 1:3] - source.affine[:3, 1:3]).max()) * max(source.shape[1:])
    if max(beside, turned) > SAME_PLACE_MM or not np.allclose(
        target.affine[:3, 0] / target.spacing_mm[0], normal, atol=1e-3
    ):
        raise ConcordctError(f"expected slices on one grid, found them {max(beside, turned):.3g} mm apart in the plane")


def _require_close(own: float, target_mm: float) -> None:
    if own > CLOSEST * target_mm:
        raise ConcordctError(f"expected slices at most {CLOSEST * target_mm:g} mm apart, found {own:g} mm")
