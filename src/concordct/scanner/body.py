"""The body's plan: parameters, and the wall as radii around the body's axis that depend on angle and height."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.ndimage import gaussian_filter1d

from concordct.scanner.frame import Frame
from concordct.scanner.shapes import Floats, Numbers

#: Angles at which the wall's radii are tabulated.
WALL_ANGLES = 720
#: Height of a vertebra with its disc, mm.
VERTEBRA_MM = 23.0


@dataclass(frozen=True)
class ChestParameters:
    """What a chest is drawn from. Lengths in mm, densities in HU; `u` is the height as a share of `height_mm`.

    Attributes
    ----------
    seed : of everything irregular (trees, textures, contours).
    height_mm : from below the diaphragm to the apices.
    cage_width_mm, cage_depth_mm : half axes of the rib cage's inside at its widest.
    fat_mm : thickness of the subcutaneous fat at the side.
    muscle : 1 for an average build.
    breast_mm : how far the breasts stand out (0 for none); glandular : their share of gland.
    heart : size of the heart, 1 for average.
    blood_hu : blood, from 35 (no contrast) to 250.
    lung_hu, gradient_hu : mean density of the lungs and its rise from front to back.
    texture_hu : standard deviation of what no vessel explains.
    emphysema : share of the upper lungs that is destroyed, 0 to 0.5.
    vessels : ends per lung and tree.
    bone_hu : marrow; cortex_hu : cortex.
    kyphosis_mm : depth of the thoracic curve.
    table : whether the couch is in the picture.
    """

    seed: int
    height_mm: float
    cage_width_mm: float
    cage_depth_mm: float
    fat_mm: float
    muscle: float
    breast_mm: float
    glandular: float
    heart: float
    blood_hu: float
    lung_hu: float
    gradient_hu: float
    texture_hu: float
    emphysema: float
    vessels: int
    bone_hu: float
    cortex_hu: float
    kyphosis_mm: float
    table: bool


def angle_bump(angle: Floats, centre: float, width: float) -> Floats:
    """A bump of height 1 on |angle| (0 at the front, pi at the back)."""
    return np.exp(-(((np.abs(angle) - centre) / width) ** 2))


@dataclass(frozen=True)
class Body:
    """Rib cage, muscle and skin around the body's axis, and the line of the spine."""

    parameters: ChestParameters

    @cached_property
    def _profile(self) -> dict[str, PchipInterpolator]:
        u = np.array([-0.2, 0.0, 0.25, 0.45, 0.65, 0.8, 0.9, 0.97, 1.05])
        return {
            "width": PchipInterpolator(u, [1.02, 1.02, 1.0, 0.97, 0.91, 0.8, 0.66, 0.5, 0.2]),
            "depth": PchipInterpolator(u, [1.0, 1.0, 1.0, 0.97, 0.9, 0.78, 0.64, 0.48, 0.2]),
            "shift": PchipInterpolator(u, [0.0, 0.0, 0.0, 2.0, 8.0, 18.0, 27.0, 34.0, 45.0]),
            "shoulder": PchipInterpolator(u, [0.5, 0.6, 0.9, 1.2, 1.6, 2.5, 3.9, 4.9, 5.6]),
        }

    def wall(self, z: float) -> dict[str, Floats]:
        """Radii at `WALL_ANGLES` angles from -pi to pi at one height: cage (inside), muscle (outside), skin."""
        p = self.parameters
        u = z / p.height_mm
        angle = self._angles
        side, front = np.sin(angle), np.cos(angle)
        a = p.cage_width_mm * float(self._profile["width"](u))
        b = p.cage_depth_mm * float(self._profile["depth"](u))
        shift = float(self._profile["shift"](u))
        # The cage's own centre lies `shift` behind the axis; solve for the radius along each angle.
        cage = self._superellipse_radius(side, front, a, b, shift, 2.35)
        cage = cage * (1.0 - 0.045 * angle_bump(angle, 0.0, 0.35) - 0.28 * angle_bump(angle, np.pi, 0.45))
        shoulder = float(self._profile["shoulder"](u))
        muscle = p.muscle * (
            2.0
            + 9.0 * angle_bump(angle, 0.75, 0.38) * min(1.6, 0.3 + 1.4 * max(u - 0.25, 0.0) * 2.0)
            + 13.0 * shoulder * angle_bump(angle, 1.95, 0.42)
            + 9.0 * shoulder * angle_bump(angle, 1.25, 0.4) * max(0.0, min(1.0, (u - 0.45) * 3.0))
            + 20.0 * angle_bump(angle, 2.85, 0.3)
            - 1.5 * angle_bump(angle, np.pi, 0.12)
        )
        # The back of the cage is hidden by the spine; there the wall starts further out.
        outer = cage + 10.5 + muscle
        breast = p.breast_mm * np.exp(-(((u - 0.42) / 0.16) ** 2)) * angle_bump(angle, 0.72, 0.3)
        fat = p.fat_mm * (
            0.55
            + 0.75 * angle_bump(angle, 1.6, 0.55)
            + 0.25 * angle_bump(angle, 2.6, 0.4)
            - 0.25 * angle_bump(angle, 0.0, 0.3)
        )
        generator = np.random.default_rng((p.seed, 11))
        wobble = sum(
            generator.normal(0, 1.6 / k) * np.sin(k * angle + generator.uniform(0, 6.28) + 0.6 * np.sin(5 * u + k))
            for k in range(2, 7)
        )
        cage = cage + 0.5 * wobble
        outer = gaussian_filter1d(outer + wobble, 7, mode="wrap")
        # Muscle ends in folds, skin does not follow them.
        lumps = 1.5 * np.sin(9 * np.abs(angle) + 3 * u) + np.sin(17 * np.abs(angle) - 7 * u)
        skin = gaussian_filter1d(outer + fat + breast, 14, mode="wrap")
        back = np.maximum(0.0, -np.cos(angle))
        skin = np.minimum(skin, (p.cage_depth_mm + 46.0 + p.fat_mm * 0.3) / np.maximum(back, 0.35) ** 0.9)
        skin = gaussian_filter1d(skin, 6, mode="wrap")
        outer = np.minimum(outer + lumps * np.clip(fat / 12.0, 0.2, 1.2), skin - np.clip(0.45 * fat, 3.0, 30.0))
        return {"angle": angle, "cage": cage, "muscle": outer, "skin": skin}

    @cached_property
    def back_mm(self) -> float:
        """How far back the body reaches, mm."""
        walls = [self.wall(u * self.parameters.height_mm) for u in (0.2, 0.4, 0.6)]
        return max(float((-np.cos(wall["angle"]) * wall["skin"]).max()) for wall in walls)

    @staticmethod
    def _superellipse_radius(side: Floats, front: Floats, a: float, b: float, shift: float, power: float) -> Floats:
        """Radius from the axis to a superellipse whose centre lies `shift` behind it, by bisection."""
        low, high = np.zeros_like(side), np.full_like(side, 400.0)
        for _ in range(32):
            middle = 0.5 * (low + high)
            x, y = middle * side, -middle * front
            outside = np.abs(x / a) ** power + np.abs((y - shift) / b) ** power > 1.0
            high, low = np.where(outside, middle, high), np.where(outside, low, middle)
        return 0.5 * (low + high)

    @cached_property
    def _cages(self) -> dict[float, Floats]:
        """Tables of the cage's radius by height, filled as they are asked for."""
        return {}

    @cached_property
    def _angles(self) -> Floats:
        return (np.arange(WALL_ANGLES) + 0.5) / WALL_ANGLES * 2 * np.pi - np.pi

    def cage_radius(self, z: Numbers, angle: Numbers) -> Floats:
        """Radius of the cage's inside at points."""
        flat_z, flat_angle = np.broadcast_arrays(z, angle)
        steps = np.unique(np.round(flat_z / 2.0))
        radius = np.empty(flat_z.shape)
        for step in steps:
            if step not in self._cages:
                wall = self.wall(float(step) * 2.0)
                self._cages[step] = wall["cage"]
            here = np.round(flat_z / 2.0) == step
            radius[here] = np.interp(flat_angle[here], self._angles, self._cages[step], period=2 * np.pi)
        return radius

    def spine_y(self, z: Numbers) -> Floats:
        """Position of the vertebral bodies' middle at heights, mm."""
        p = self.parameters
        u = np.asarray(z) / p.height_mm
        return p.cage_depth_mm * 0.50 + p.kyphosis_mm * np.sin(np.pi * np.clip(u, -0.2, 1.2))

    def polar(self, z: float, frame: Frame) -> dict[str, Floats]:
        y = frame.y_mm[:, None].astype(np.float32)
        x = frame.x_mm[None].astype(np.float32)
        rho = np.hypot(y, x)
        angle = np.arctan2(x, -y)
        wall = self.wall(z)
        position = (angle + np.float32(np.pi)) * np.float32(WALL_ANGLES / (2 * np.pi)) - np.float32(0.5)
        low = np.floor(position).astype(np.int32)
        share = (position - low).astype(np.float32)
        polar: dict[str, Floats] = {"y": y, "x": x, "rho": rho, "angle": angle}
        for name in ("cage", "muscle", "skin"):
            table = wall[name].astype(np.float32)
            near, far = table[low % WALL_ANGLES], table[(low + 1) % WALL_ANGLES]
            polar[name] = near + share * (far - near)
        return polar
