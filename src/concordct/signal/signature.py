"""What a reconstruction kernel leaves in a scan: its noise spectrum, the tails of its noise, its response to edges.

Measured on patients, without a target and without a phantom. Noise comes from the quietest patches of the body, edges
from the surface between material and air (the skin, as in Sanders, Hurwitz and Samei, Med. Phys. 43:4911 (2016),
doi:10.1118/1.4961984). Slices are pooled before the quietest patches and the sharpest surfaces are chosen, so that
neither anatomy nor a surface oblique to the slice stands for the kernel.

    meter = SignatureMeter()
    meter.add(image, spacing_mm=(0.75, 0.75))
    signature = meter.signature()
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from concordct.signal.body import material_mask
from concordct.signal.spectra import MM_PER_CM, plane_projector
from concordct.volumes.volume import AIR_HU, BODY_ABOVE_HU

#: Rings of the noise spectrum: wide enough for a patch of 12 mm, out to beyond every kernel.
RING_LP_CM, RINGS = 0.5, 32
#: Edge of a noise patch: small enough to lie inside muscle, liver or fat.
PATCH_MM = 12.0
#: Patches of lung and air are left out: mean HU below this.
TISSUE_HU = -300.0
#: A patch is quiet when it holds little power below this frequency, where anatomy outweighs noise; this share of all
#: patches counts, no fewer than so many, and out of so many at least: fewer hold no choice.
ANATOMY_LP_CM, QUIET_SHARE, FEWEST_QUIET, FEWEST_PATCHES = 1.75, 0.1, 24, 96
#: Patches and profiles of a slice at most, evenly thinned: more cost time and tell nothing new.
MOST_PATCHES, MOST_PROFILES = 1200, 900
#: Noise that tails are looked at in: above this frequency, rising over this width.
FINE_LP_CM, FINE_RISE_LP_CM = 2.0, 0.5
#: Quantile over patches: the tails that anatomy adds lower the statistic, so the upper part is the noise's own.
TAIL_QUANTILE = 0.7

#: Frequencies of the edge response.
EDGE_LP_CM = np.arange(0.0, 10.01, 0.25)
#: Profiles across a surface reach this far on either side, in steps of this.
REACH_MM, STEP_MM = 6.0, 0.2
#: Air and foam end here, HU.
AIR_BELOW_HU = -850.0
#: Plateau of the material: where it is read, mm inside the surface, and how far it may vary, as a share of the step.
PLATEAU_MM, PLATEAU_SPREAD = (2.5, 5.5), 0.25
#: HU of materials whose surface counts: fat to plastic and bone.
MATERIAL_HU = (-200.0, 1500.0)
#: Profiles are averaged in tiles of this size, and a tile with fewer does not count.
TILE_MM, FEWEST_PROFILES = 32.0, 8
#: The sharpest tiles are the kernel's own; the rest is oblique, moved or covered.
SHARPEST_SHARE, FEWEST_TILES = 0.25, 4


@dataclass(frozen=True, eq=False)
class Signature:
    """What was measured on some slices of one scan.

    Attributes
    ----------
    noise_hu2_mm2 : [RINGS] noise power spectrum of quiet patches, HU^2 mm^2, in rings of `RING_LP_CM`; NaN where the
        pixels carry nothing. None when there were too few patches.
    tail : mean absolute over root mean square of fine noise (Geary 1936): 0.80 for Gaussian noise, less where a
        non-linear reconstruction shrinks what does not stand out. None as above.
    edge : [EDGE_LP_CM] response of the sharpest surfaces, 1 at frequency 0; None when no surface could be used.
    pixel_mm : the larger side of the coarsest pixel.
    patches, tiles : how many stand behind noise and edge.
    """

    noise_hu2_mm2: NDArray[np.float64] | None
    tail: float | None
    edge: NDArray[np.float64] | None
    pixel_mm: float
    patches: int
    tiles: int

    def to_json(self) -> dict[str, Any]:
        """Plain values, four digits each."""
        noise, edge = self.noise_hu2_mm2, self.edge
        return {
            "noise_hu2_mm2": None if noise is None else [_digits(v) if np.isfinite(v) else None for v in noise],
            "tail": None if self.tail is None else round(self.tail, 4),
            "edge": None if edge is None else [round(float(v), 4) for v in edge],
            "pixel_mm": round(self.pixel_mm, 6),
            "patches": self.patches,
            "tiles": self.tiles,
        }

    @staticmethod
    def from_json(found: Mapping[str, Any]) -> Signature | None:
        """What `to_json` wrote; None for what it never writes."""
        try:
            noise, edge = found["noise_hu2_mm2"], found["edge"]
            signature = Signature(
                None if noise is None else np.array([np.nan if v is None else float(v) for v in noise]),
                None if found["tail"] is None else float(found["tail"]),
                None if edge is None else np.array([float(v) for v in edge]),
                float(found["pixel_mm"]),
                int(found["patches"]),
                int(found["tiles"]),
            )
        except (KeyError, TypeError, ValueError):
            return None
        whole = all(
            curve is None or curve.shape == shape
            for curve, shape in ((signature.noise_hu2_mm2, (RINGS,)), (signature.edge, EDGE_LP_CM.shape))
        )
        return signature if whole and signature.pixel_mm > 0 else None


def _digits(value: float) -> float:
    return float(f"{value:.4g}")


def ring_centres_lp_cm() -> NDArray[np.float64]:
    """[RINGS] centres of the noise spectrum's rings, lp/cm."""
    return np.asarray((np.arange(RINGS) + 0.5) * RING_LP_CM, dtype=np.float64)


class SignatureMeter:
    """Collects slices of one scan, or of several in one kernel, and measures them together."""

    def __init__(self) -> None:
        self._power: list[NDArray[np.float64]] = []  # [patch, ring], HU^2 mm^2 summed over frequencies
        self._cells: list[NDArray[np.float64]] = []  # [patch, ring], frequencies behind each sum
        self._anatomy: list[NDArray[np.float64]] = []  # [patch], HU^2 mm^2 below ANATOMY_LP_CM
        self._tail: list[NDArray[np.float64]] = []  # [patch]
        self._edges: list[NDArray[np.float64]] = []  # [tile, t] from 0 in air to 1 in material
        self._pixel_mm = 0.0

    def add(self, image: NDArray[np.float32], *, spacing_mm: tuple[float, float]) -> bool:
        """One slice.

        Parameters
        ----------
        image : [y, x], HU.
        spacing_mm : (y, x), mm.

        Returns
        -------
        Whether there is body in it.
        """
        body = material_mask(image[None], spacing_mm)[0]
        if not body.any():
            return False
        self._pixel_mm = max(self._pixel_mm, *spacing_mm)
        image, body = _around(image, body, spacing_mm)
        self._add_noise(image, body, spacing_mm)
        edges = _surface(image, body, spacing_mm)
        if len(edges):
            self._edges.append(edges)
        return True

    def include(self, other: SignatureMeter) -> None:
        """The slices of another meter, too."""
        for name in ("_power", "_cells", "_anatomy", "_tail", "_edges"):
            getattr(self, name).extend(getattr(other, name))
        self._pixel_mm = max(self._pixel_mm, other._pixel_mm)

    def _add_noise(self, image: NDArray[np.float32], body: NDArray[np.bool_], spacing_mm: tuple[float, float]) -> None:
        size = max(8, 2 * round(PATCH_MM / max(spacing_mm) / 2))
        patches = _patches(image, body, size)
        patches = patches[patches.mean(axis=(1, 2)) > TISSUE_HU]
        patches = patches[:: max(1, int(np.ceil(len(patches) / MOST_PATCHES)))]
        if not len(patches):
            return
        plane = plane_projector(size).astype(np.float32)
        flat = patches.reshape(len(patches), -1)
        flat = flat - (flat @ plane) @ plane.T
        patches = flat.reshape(-1, size, size)
        taper = np.outer(np.hanning(size + 2)[1:-1], np.hanning(size + 2)[1:-1]).astype(np.float32)
        f = np.hypot(
            fft.fftfreq(size, spacing_mm[0] / MM_PER_CM)[:, None], fft.rfftfreq(size, spacing_mm[1] / MM_PER_CM)[None]
        )
        # Columns 0 and size / 2 of a real transform stand for themselves, every other one for its mirror image, too.
        weight = np.full(f.shape, 2.0)
        weight[:, [0, -1]] = 1.0
        nyquist = MM_PER_CM / (2 * max(spacing_mm))
        ring = np.where(f < nyquist, np.minimum((f / RING_LP_CM).astype(np.intp), RINGS), RINGS).ravel()
        scale = spacing_mm[0] * spacing_mm[1] / float(np.sum(taper**2))
        power = (np.abs(fft.rfft2(patches * taper)) ** 2 * (weight * scale)).reshape(len(patches), -1)
        sums = np.zeros((ring.size, RINGS + 1), dtype=np.float32)
        sums[np.arange(ring.size), ring] = 1
        cells = np.bincount(ring, weight.ravel(), RINGS + 1)[:RINGS]
        fine = np.clip((f - FINE_LP_CM) / FINE_RISE_LP_CM, 0, 1).astype(np.float32)
        detail = fft.irfft2(fft.rfft2(patches) * fine, (size, size)).reshape(len(patches), -1)
        deviation = np.maximum(np.sqrt(np.mean(detail**2, axis=1)), 1e-6)
        low = (f < ANATOMY_LP_CM).ravel()
        self._power.append((power.astype(np.float32) @ sums)[:, :RINGS].astype(np.float64))
        self._cells.append(np.broadcast_to(cells, (len(patches), RINGS)))
        self._anatomy.append(power[:, low].sum(axis=1, dtype=np.float64) / float(weight.ravel()[low].sum()))
        self._tail.append(np.mean(np.abs(detail), axis=1, dtype=np.float64) / deviation)

    def half_error(self, draws: int = 40) -> float | None:
        """Relative standard error of the frequency at which the edge response falls to a half: tiles drawn again.

        None where too few surfaces could be used. Errors that all surfaces share (hair, cloth, slope) are not in it.
        """
        if sum(len(one) for one in self._edges) < FEWEST_TILES:
            return None
        edges, random = np.concatenate(self._edges), np.random.default_rng(0)
        found = []
        for _ in range(draws):
            drawn = edges[random.integers(len(edges), size=len(edges))]
            tiles = max(FEWEST_TILES, round(SHARPEST_SHARE * len(drawn)))
            response = _response(np.median(drawn[np.argsort(_widths(drawn), kind="stable")[:tiles]], axis=0))
            below = np.flatnonzero(response < 0.5)
            found.append(EDGE_LP_CM[below[0]] if below.size else EDGE_LP_CM[-1])
        return float(np.std(found) / max(np.mean(found), 1e-6))

    def signature(self) -> Signature:
        """What the slices added so far show."""
        noise, tail, count = None, None, 0
        anatomy = np.concatenate(self._anatomy) if self._anatomy else np.zeros(0)
        if len(anatomy) >= FEWEST_PATCHES:
            count = max(FEWEST_QUIET, int(QUIET_SHARE * len(anatomy)))
            quiet = np.argsort(anatomy, kind="stable")[:count]
            cells = np.concatenate(self._cells)[quiet].sum(axis=0)
            power = np.concatenate(self._power)[quiet].sum(axis=0)
            noise = np.where(cells > 2 * count, power / np.maximum(cells, 1), np.nan)
            tail = float(np.quantile(np.concatenate(self._tail)[quiet], TAIL_QUANTILE))
        edge, tiles = None, 0
        if sum(len(one) for one in self._edges) >= FEWEST_TILES:
            edges = np.concatenate(self._edges)
            tiles = max(FEWEST_TILES, round(SHARPEST_SHARE * len(edges)))
            sharpest = np.argsort(_widths(edges), kind="stable")[:tiles]
            # The median: a seam in padding or clothing is sharper than any kernel.
            edge = _response(np.median(edges[sharpest], axis=0))
        return Signature(noise, tail, edge, self._pixel_mm, count, tiles)


def _around(
    image: NDArray[np.float32], body: NDArray[np.bool_], spacing_mm: tuple[float, float]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The part of a slice that holds body, with room for profiles."""
    box = tuple(
        slice(max(0, int(found[0]) - room), int(found[-1]) + room + 1)
        for found, room in (
            (np.flatnonzero(body.any(axis=1 - axis)), int(np.ceil(1.5 * REACH_MM / spacing_mm[axis])))
            for axis in (0, 1)
        )
    )
    return image[box], body[box]


def _patches(image: NDArray[np.float32], body: NDArray[np.bool_], size: int) -> NDArray[np.float32]:
    """[patch, y, x]: squares wholly inside the body, half overlapping; none where the image is smaller than one."""
    if min(image.shape) < size:
        return np.zeros((0, size, size), np.float32)
    windows, inside = (np.lib.stride_tricks.sliding_window_view(array, (size, size)) for array in (image, body))
    step = size // 2
    whole = inside[::step, ::step].all(axis=(2, 3))
    return np.asarray(windows[::step, ::step][whole], dtype=np.float32)


def _steps_mm() -> NDArray[np.float64]:
    return np.asarray(np.arange(-REACH_MM, REACH_MM + STEP_MM / 2, STEP_MM), dtype=np.float64)


def _surface(
    image: NDArray[np.float32], body: NDArray[np.bool_], spacing_mm: tuple[float, float]
) -> NDArray[np.float64]:
    """[tile, t]: mean profiles across surfaces, from 0 in air to 1 in material, half way at t = 0."""
    material = body & (image > BODY_ABOVE_HU)
    border = material & ~ndimage.binary_erosion(material, border_value=1)
    margin = [int(np.ceil(REACH_MM / d)) + 1 for d in spacing_mm]
    inside = np.zeros_like(border)
    inside[margin[0] : -margin[0], margin[1] : -margin[1]] = True
    rows, columns = np.nonzero(border & inside)
    t = _steps_mm()
    none = np.zeros((0, t.size))
    if rows.size < FEWEST_PROFILES:
        return none
    smooth = ndimage.gaussian_filter(image, [1.5 / d for d in spacing_mm])
    # Air a reach further out; a quick look at one pixel spares the profiles through lungs, table and clothing.
    slope = np.stack([np.asarray(g)[rows, columns] for g in np.gradient(smooth, *spacing_mm)])
    slope /= np.maximum(np.hypot(*slope), 1e-6)
    outer = [np.rint(at - 0.75 * REACH_MM * s / d).astype(int) for at, s, d in zip((rows, columns), slope, spacing_mm, strict=True)]  # fmt: skip  # noqa: E501
    open_air = smooth[outer[0], outer[1]] < AIR_BELOW_HU
    kept = np.flatnonzero(open_air)[:: max(1, int(np.ceil(open_air.sum() / MOST_PROFILES)))]
    if kept.size < FEWEST_PROFILES:
        return none
    rows, columns, slope = rows[kept], columns[kept], slope[:, kept]
    places = [at[:, None] + s[:, None] * t / d for at, s, d in zip((rows, columns), slope, spacing_mm, strict=True)]
    spline = ndimage.spline_filter(image, order=3, output=np.float32, mode="nearest")
    profiles = ndimage.map_coordinates(spline, places, order=3, mode="nearest", output=np.float64, prefilter=False)
    profiles = _aligned(profiles, t)
    tile = (rows * spacing_mm[0] // TILE_MM).astype(np.int64) * 1000 + (columns * spacing_mm[1] // TILE_MM).astype(
        np.int64
    )
    found = []
    for one in np.unique(tile):
        members = profiles[(tile == one) & np.isfinite(profiles).all(axis=1)]
        if len(members) >= FEWEST_PROFILES:
            found.append(members.mean(axis=0))
    means = np.array(found).reshape(len(found), t.size)
    air, plateau = means[:, t < -PLATEAU_MM[0]], means[:, (t > PLATEAU_MM[0]) & (t < PLATEAU_MM[1])]
    low, high = np.median(air, axis=1), np.median(plateau, axis=1)
    usable = (air.max(axis=1) < AIR_BELOW_HU) & (high > MATERIAL_HU[0]) & (high < MATERIAL_HU[1])
    usable &= np.ptp(plateau, axis=1) < PLATEAU_SPREAD * (high - AIR_HU)
    low, high = low[usable, None], high[usable, None]
    return np.asarray((means[usable] - low) / (high - low))


def _aligned(profiles: NDArray[np.float64], t: NDArray[np.float64]) -> NDArray[np.float64]:
    """[profile, t] moved so that each is half way between air and material at t = 0; NaN where it never is."""
    low = np.median(profiles[:, t < -PLATEAU_MM[0]], axis=1)
    high = np.median(profiles[:, (t > PLATEAU_MM[0]) & (t < PLATEAU_MM[1])], axis=1)
    half = (low + high)[:, None] / 2
    rises = (profiles[:, :-1] <= half) & (profiles[:, 1:] > half)
    distance = np.where(rises, np.abs(t[:-1] + STEP_MM / 2), np.inf)
    at = distance.argmin(axis=1)
    rows = np.arange(len(profiles))
    before, after = profiles[rows, at], profiles[rows, at + 1]
    shift = t[at] + STEP_MM * (half[:, 0] - before) / np.where(after > before, after - before, 1)
    shift = np.where(distance.min(axis=1) < REACH_MM / 3, shift, np.nan)
    return np.stack([np.interp(t + s, t, profile) for s, profile in zip(shift, profiles, strict=True)])


def _widths(edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """[edge] distance from a quarter to three quarters of the step, mm."""
    t = _steps_mm()
    middle = np.abs(t) <= PLATEAU_MM[0]
    rising = np.maximum.accumulate(edges[:, middle], axis=1)
    return np.array([np.interp(0.75, one, t[middle]) - np.interp(0.25, one, t[middle]) for one in rising])


def _response(edge: NDArray[np.float64]) -> NDArray[np.float64]:
    """[EDGE_LP_CM] modulus of the transform of the edge's derivative, its ends tapered, 1 at frequency 0."""
    t = _steps_mm()
    spread = np.gradient(edge, t) * np.clip((4.5 - np.abs(t)) / 2, 0, 1)
    transform = np.abs(np.exp(-2j * np.pi * np.outer(EDGE_LP_CM / MM_PER_CM, t)) @ spread)
    return np.asarray(transform / max(float(transform[0]), 1e-9), dtype=np.float64)
