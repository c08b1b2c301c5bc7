"""A chest with emphysema of known volume, coronary calcium of known mass and nodules of known size.

Emphysema is drawn as holes, balls of nearly air whose sizes follow a power law, wholly inside the lungs and apart from
each other; calcium as capsules on the surface of the heart. What is known of them follows from their shapes alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from concordct.errors import ConcordctError
from concordct.scanner.body import ChestParameters
from concordct.scanner.chest import Chest
from concordct.scanner.frame import Frame
from concordct.scanner.nodules import Nodule
from concordct.scanner.patients import sample_parameters
from concordct.scanner.shapes import Floats, blend, tube_coverage

#: HU of what is left inside a hole.
HOLE_HU = -982.0
#: HU above water of a mg/ml of hydroxyapatite at 120 kVp; the reciprocal of the calcium mass's calibration factor.
HU_PER_MG_ML = 1.25
#: Radii of holes, mm, and the power law that they are drawn from (density of r^-power).
HOLE_MM, HOLE_POWER = (1.4, 9.0), 2.6
#: Distance that holes, nodules and the lungs' edge keep, mm.
APART_MM = 1.2
#: Axes of plaques lie so far outside the chambers, in the fat around them, mm.
PLAQUE_DEPTH_MM = (0.8, 3.2)
#: The heart's mask reaches so far beyond the chambers and keeps so far from bone and cartilage, whose blur is wide, mm.
HEART_MM, BONE_MM = 8.0, 3.5
#: Radius of the spine with its discs, mm.
SPINE_MM = 21.5
#: What plaques keep from the edge of the heart's mask and from each other, mm.
PLAQUE_APART_MM = 0.5
#: Tries of 4,000 points for a plaque.
MOST_TRIES = 200


@dataclass(frozen=True)
class Hole:
    """A ball of destroyed lung: (z, y, x) and radius, mm."""

    centre_mm: tuple[float, float, float]
    radius_mm: float

    @property
    def volume_ml(self) -> float:
        """ml."""
        return float(4 / 3 * np.pi * self.radius_mm**3 / 1000)


@dataclass(frozen=True)
class Plaque:
    """A capsule of calcium: ends (z, y, x) and radius, mm, and its hydroxyapatite, mg/ml."""

    start_mm: tuple[float, float, float]
    end_mm: tuple[float, float, float]
    radius_mm: float
    mg_per_ml: float

    @property
    def volume_ml(self) -> float:
        """ml."""
        length = float(np.linalg.norm(np.subtract(self.end_mm, self.start_mm)))
        return float(np.pi * self.radius_mm**2 * (length + 4 / 3 * self.radius_mm) / 1000)

    @property
    def mass_mg(self) -> float:
        """mg of hydroxyapatite."""
        return self.mg_per_ml * self.volume_ml


@dataclass(frozen=True, kw_only=True)
class SmokersChest(Chest):
    """A chest with holes in its lungs and plaques on its heart."""

    holes: tuple[Hole, ...] = ()
    plaques: tuple[Plaque, ...] = ()

    def _lungs(
        self, hu: NDArray[np.float32], z: float, polar: dict[str, Floats], frame: Frame, lung: Floats, share: Floats
    ) -> None:
        super()._lungs(hu, z, polar, frame, lung, share)
        near = [hole for hole in self.holes if abs(hole.centre_mm[0] - z) < hole.radius_mm + frame.pixel_mm]
        if near:
            balls = np.array([(*hole.centre_mm, *hole.centre_mm, hole.radius_mm, hole.radius_mm) for hole in near])
            blend(hu, tube_coverage(balls, z, frame.y_mm, frame.x_mm), HOLE_HU)

    def _heart_and_vessels(
        self,
        hu: NDArray[np.float32],
        z: float,
        polar: dict[str, Floats],
        pixel: float,
        organs: dict[str, Floats],
        middle: Floats,
        fine: Floats,
    ) -> None:
        super()._heart_and_vessels(hu, z, polar, pixel, organs, middle, fine)
        y_mm, x_mm = polar["y"][:, 0], polar["x"][0]
        for plaque in self.plaques:
            segment = np.array([(*plaque.start_mm, *plaque.end_mm, plaque.radius_mm, plaque.radius_mm)])
            blend(hu, tube_coverage(segment, z, y_mm, x_mm), HU_PER_MG_ML * plaque.mg_per_ml)

    def masks(self, z_mm: Floats, frame: Frame) -> dict[str, NDArray[np.bool_]]:
        """As for every chest; "emphysema" (the holes), and "heart": its chambers and the fat around, without bone."""
        masks = super().masks(z_mm, frame)
        holes, heart = np.zeros_like(masks["lungs"]), np.zeros_like(masks["lungs"])
        for index, z in enumerate(z_mm):
            polar = self.body.polar(float(z), frame)
            for hole in self.holes:
                across2 = hole.radius_mm**2 - (z - hole.centre_mm[0]) ** 2
                if across2 > 0:
                    holes[index] |= (polar["y"] - hole.centre_mm[1]) ** 2 + (
                        polar["x"] - hole.centre_mm[2]
                    ) ** 2 < across2
            heart[index] = self._around_the_heart(float(z), polar, frame) & ~masks["lungs"][index]
        masks["emphysema"], masks["heart"] = holes, heart
        return masks

    def _around_the_heart(self, z: float, polar: dict[str, Floats], frame: Frame) -> NDArray[np.bool_]:
        y, x = polar["y"], polar["x"]
        near = np.minimum.reduce(self._mediastinum.chambers(np.float32(z), y, x)) < HEART_MM
        bones, cartilage, _ = self._skeleton.distances(z, polar, frame)
        spine = np.hypot(x, y - float(self.body.spine_y(z))) - SPINE_MM
        clear = np.minimum(np.minimum(bones, cartilage), spine) > BONE_MM
        return np.asarray(near & clear & (self._mediastinum.diaphragm(y, x) < z))

    def heart_distance(self, points: Floats) -> NDArray[np.float64]:
        """Signed distance of points [point, (z, y, x)] to the heart's chambers, mm; infinite under the diaphragm."""
        z, y, x = np.asarray(points, dtype=np.float64).T
        distance = np.minimum.reduce(self._mediastinum.chambers(z, y, x))
        return np.where(self._mediastinum.diaphragm(y, x) < z - 3.0, distance, np.inf)


def smoker_parameters(generator: np.random.Generator) -> ChestParameters:
    """An adult without contrast medium whose lungs are dense enough between the holes to hold no other emphysema."""
    drawn = sample_parameters(generator)
    return replace(
        drawn,
        emphysema=0.0,
        blood_hu=float(generator.uniform(36, 48)),
        lung_hu=float(generator.uniform(-872, -835)),
        texture_hu=min(drawn.texture_hu, 14.0),
    )


def digital_smoker(
    number: int,
    *,
    seed: int,
    z_mm: tuple[float, float],
    emphysema_ml: float,
    plaques: int,
    nodules: int = 2,
) -> SmokersChest:
    """Patient `number` of the smokers that a seed stands for.

    Parameters
    ----------
    z_mm : (low, high) heights between which the middles of holes, and plaques and nodules wholly, lie.
    emphysema_ml : volume of the holes, met within the last one.
    plaques, nodules : their numbers.
    """
    generator = np.random.default_rng((seed, number, 4))
    body = SmokersChest(f"smoker-{number:04d}", smoker_parameters(generator))
    p = body.parameters
    low, high = z_mm
    box = ((low, -p.cage_depth_mm, -p.cage_width_mm), (high, p.cage_depth_mm + 25.0, p.cage_width_mm))
    body = replace(body, nodules=tuple(_nodules(body, nodules, box, generator)))
    taken = [(*nodule.centre_mm, 1.3 * nodule.radius_mm) for nodule in body.nodules]
    body = replace(body, holes=tuple(_holes(body, emphysema_ml, box, taken, generator)))
    return replace(body, plaques=tuple(_plaques(body, plaques, (low, high), generator)))


Box = tuple[tuple[float, float, float], tuple[float, float, float]]


def _nodules(body: SmokersChest, count: int, box: Box, generator: np.random.Generator) -> Iterable[Nodule]:
    found: list[Nodule] = []
    while len(found) < count:
        room = 0.5 * (box[1][0] - box[0][0]) - 1.0
        radius = float(np.clip(generator.lognormal(np.log(4.5), 0.3), 2.5, min(8.0, room)))
        points = generator.uniform(*box, (400, 3))
        points[:, 0] = generator.uniform(box[0][0] + radius, box[1][0] - radius)
        fits = body.lung_depth(points) > radius + 4.0
        for nodule in found:
            fits &= np.linalg.norm(points - nodule.centre_mm, axis=1) > radius + nodule.radius_mm + 12.0
        if not fits.any():
            continue
        z, y, x = (float(value) for value in points[np.flatnonzero(fits)[0]])
        found.append(
            Nodule(
                name=f"nodule-{len(found) + 1}",
                kind="solid",
                centre_mm=(z, y, x),
                radius_mm=radius,
                hu=float(generator.uniform(0, 60)),
                glass_hu=-600.0,
                lobation=0.05,
                spicules=0,
                texture_hu=8.0,
                texture_mm=2.0,
                seed=int(generator.integers(1, 2**31)),
            )
        )
    return found


def _holes(
    body: SmokersChest, ml: float, box: Box, taken: Sequence[tuple[float, ...]], generator: np.random.Generator
) -> Iterable[Hole]:
    """Balls until their volume is met; each keeps clear of the others, of nodules and of the lungs' edge."""
    found: list[Hole] = []
    places = np.array([one[:3] for one in taken] or np.empty((0, 3)))
    radii = np.array([one[3] for one in taken])
    while ml > 0:
        points = generator.uniform(*box, (4000, 3))
        depth = body.lung_depth(points)
        low, high = (edge ** (1 - HOLE_POWER) for edge in HOLE_MM)
        drawn = (low + generator.random(4000) * (high - low)) ** (1 / (1 - HOLE_POWER))
        for point, room, radius in zip(points, depth, drawn, strict=True):
            if room < radius + APART_MM:
                continue
            if len(places) and (np.linalg.norm(places - point, axis=1) < radii + radius + APART_MM).any():
                continue
            hole = Hole((float(point[0]), float(point[1]), float(point[2])), float(radius))
            found.append(hole)
            places, radii = np.vstack([places, point]), np.append(radii, radius)
            ml -= hole.volume_ml
            if ml <= 0:
                break
    return found


def _plaques(
    body: SmokersChest, count: int, z_mm: tuple[float, float], generator: np.random.Generator
) -> Iterable[Plaque]:
    """Capsules along the heart's surface, in its fat, wholly inside the heart's mask and clear of each other."""
    if not count:
        return []
    p = body.parameters
    depth = _depth_in_the_heart(body, z_mm)
    found: list[Plaque] = []
    taken = np.empty((0, 4))  # [point, (z, y, x, radius)] along the plaques that there are
    for _ in range(MOST_TRIES):
        if len(found) == count:
            return found
        radius = float(generator.uniform(0.6, 1.8))
        low, high = (z_mm[0] + radius, -p.cage_depth_mm, -70.0), (z_mm[1] - radius, 0.2 * p.cage_depth_mm, 90.0)
        points = generator.uniform(low, high, (4000, 3))
        distance = body.heart_distance(points)
        room = radius + PLAQUE_APART_MM
        fits = (distance > PLAQUE_DEPTH_MM[0]) & (distance < PLAQUE_DEPTH_MM[1]) & (depth(points) > room)
        ways = generator.normal(size=(60, 3)) * (0.6, 1.0, 1.0)
        length = generator.uniform(1.5, 9.0)
        if not fits.any():
            continue
        start = points[np.flatnonzero(fits)[0]]
        ends = start + length * ways / np.linalg.norm(ways, axis=1)[:, None]
        ends[:, 0] = np.clip(ends[:, 0], low[0], high[0])
        # The surface is followed as well as a straight piece can.
        end = ends[np.abs(body.heart_distance(ends) - body.heart_distance(start[None])).argmin()]
        axis = start + np.linspace(0.0, 1.0, 12)[:, None] * (end - start)
        apart = np.linalg.norm(axis[:, None] - taken[None, :, :3], axis=2) - taken[:, 3]
        if (depth(axis) < room).any() or (apart < room + 0.5).any():
            continue
        taken = np.vstack([taken, np.column_stack([axis, np.full(len(axis), radius)])])
        found.append(
            Plaque(
                (float(start[0]), float(start[1]), float(start[2])),
                (float(end[0]), float(end[1]), float(end[2])),
                radius,
                float(generator.uniform(180, 600)),
            )
        )
    raise ConcordctError(f"{body.key}: expected room for {count} plaques, found {len(found)}")


def _depth_in_the_heart(body: SmokersChest, z_mm: tuple[float, float]) -> Callable[[Floats], Floats]:
    """How deep points [point, (z, y, x)] lie inside the heart's mask, mm; on a lattice of 1 mm."""
    frame = Frame(tuple(2 * int(half) for half in body.reach_mm), 1.0)  # type: ignore[arg-type]
    z = np.arange(z_mm[0], z_mm[1] + 1.0)
    inside = np.pad(body.masks(z, frame)["heart"], ((1, 1), (0, 0), (0, 0)), mode="edge")
    depth = ndimage.distance_transform_edt(inside) - 0.5
    first = np.array([z[0] - 1.0, frame.y_mm[0], frame.x_mm[0]])
    return lambda points: ndimage.map_coordinates(depth, (points - first).T, order=1, mode="nearest")
