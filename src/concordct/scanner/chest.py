"""A digital chest: from recorded parameters to HU planes at any height, one body from slice to slice.

The wall is drawn in polar coordinates around the body's axis (rib cage, muscle, fat, skin as radii that depend on angle
and height), the ribs, sternum and vertebrae as bones with cortex and marrow, the mediastinum as organs within an envelope
of fat, the lungs as what is left of the cage above the diaphragm: parenchyma, arteries, veins, airways, fissures,
emphysema, nodules. Proportions were set by eye against chest CTs and anatomy texts; they are no measurement of anybody.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator
from scipy.ndimage import gaussian_filter1d

from concordct.scanner.frame import Frame
from concordct.scanner.nodules import Nodule
from concordct.scanner.shapes import (
    Floats,
    blend,
    chain,
    cover,
    lattice_noise,
    smooth_union,
    tube_coverage,
    tube_plane,
    tube_points,
)
from concordct.scanner.trees import companion, grow_tree

#: Angles at which the wall's radii are tabulated.
WALL_ANGLES = 720
#: Height of a vertebra with its disc, mm.
VERTEBRA_MM = 23.0
#: How far around an organ its distance is followed, mm.
REACH_MM = 40.0


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


def _angle_bump(angle: Floats, centre: float, width: float) -> Floats:
    """A bump of height 1 on |angle| (0 at the front, pi at the back)."""
    return np.exp(-(((np.abs(angle) - centre) / width) ** 2))


@dataclass(frozen=True)
class Chest:
    """A chest that can be scanned; see `scan.Subject`.

    Attributes
    ----------
    key : identity, e.g. "patient-0007".
    parameters : everything else follows from them.
    nodules : drawn into the lungs, each with a mask.
    """

    key: str
    parameters: ChestParameters
    nodules: tuple[Nodule, ...] = ()

    @property
    def height_mm(self) -> float:
        """Extent along z, mm."""
        return self.parameters.height_mm

    @property
    def reach_mm(self) -> tuple[float, float]:
        """(y, x) half extents that hold the body and the couch, mm."""
        return 205.0, 232.0

    # The wall ------------------------------------------------------------------------------------------------------

    @cached_property
    def _profile(self) -> dict[str, PchipInterpolator]:
        u = np.array([-0.2, 0.0, 0.25, 0.45, 0.65, 0.8, 0.9, 0.97, 1.05])
        return {
            "width": PchipInterpolator(u, [1.02, 1.02, 1.0, 0.97, 0.91, 0.8, 0.66, 0.5, 0.2]),
            "depth": PchipInterpolator(u, [1.0, 1.0, 1.0, 0.97, 0.9, 0.78, 0.64, 0.48, 0.2]),
            "shift": PchipInterpolator(u, [0.0, 0.0, 0.0, 2.0, 8.0, 18.0, 27.0, 34.0, 45.0]),
            "shoulder": PchipInterpolator(u, [0.25, 0.3, 0.5, 0.8, 1.3, 2.1, 2.9, 3.4, 3.8]),
        }

    def _wall(self, z: float) -> dict[str, Floats]:
        """Radii at `WALL_ANGLES` angles from -pi to pi at one height: cage (inside), muscle (outside), skin."""
        p = self.parameters
        u = z / p.height_mm
        angle = (np.arange(WALL_ANGLES) + 0.5) / WALL_ANGLES * 2 * np.pi - np.pi
        side, front = np.sin(angle), np.cos(angle)
        a = p.cage_width_mm * float(self._profile["width"](u))
        b = p.cage_depth_mm * float(self._profile["depth"](u))
        shift = float(self._profile["shift"](u))
        # The cage's own centre lies `shift` behind the axis; solve for the radius along each angle.
        cage = self._superellipse_radius(side, front, a, b, shift, 2.35)
        cage = cage * (1.0 - 0.045 * _angle_bump(angle, 0.0, 0.35) - 0.17 * _angle_bump(angle, np.pi, 0.34))
        shoulder = float(self._profile["shoulder"](u))
        muscle = p.muscle * (
            2.0
            + 9.0 * _angle_bump(angle, 0.75, 0.38) * min(1.6, 0.3 + 1.4 * max(u - 0.25, 0.0) * 2.0)
            + 13.0 * shoulder * _angle_bump(angle, 1.95, 0.42)
            + 9.0 * shoulder * _angle_bump(angle, 1.25, 0.4) * max(0.0, min(1.0, (u - 0.45) * 3.0))
            + 20.0 * _angle_bump(angle, 2.85, 0.3)
            - 1.5 * _angle_bump(angle, np.pi, 0.12)
        )
        # The back of the cage is hidden by the spine; there the wall starts further out.
        outer = cage + 10.5 + muscle
        breast = p.breast_mm * np.exp(-(((u - 0.42) / 0.16) ** 2)) * _angle_bump(angle, 0.72, 0.3)
        fat = p.fat_mm * (
            0.55
            + 0.75 * _angle_bump(angle, 1.6, 0.55)
            + 0.25 * _angle_bump(angle, 2.6, 0.4)
            - 0.25 * _angle_bump(angle, 0.0, 0.3)
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
    def _back_mm(self) -> float:
        """How far back the body reaches, mm."""
        walls = [self._wall(u * self.parameters.height_mm) for u in (0.2, 0.4, 0.6)]
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

    def _cage_radius(self, z: Floats, angle: Floats) -> Floats:
        """Radius of the cage's inside at points."""
        flat_z, flat_angle = np.broadcast_arrays(z, angle)
        steps = np.unique(np.round(flat_z / 2.0))
        radius = np.empty(flat_z.shape)
        for step in steps:
            wall = self._wall(float(step) * 2.0)
            here = np.round(flat_z / 2.0) == step
            radius[here] = np.interp(flat_angle[here], wall["angle"], wall["cage"], period=2 * np.pi)
        return radius

    # Bones ---------------------------------------------------------------------------------------------------------

    def _spine_y(self, z: Floats) -> Floats:
        p = self.parameters
        u = np.asarray(z) / p.height_mm
        return p.cage_depth_mm * 0.50 + p.kyphosis_mm * np.sin(np.pi * np.clip(u, -0.2, 1.2))

    @cached_property
    def _ribs(self) -> tuple[Floats, Floats]:
        """(bone, cartilage) segments."""
        p = self.parameters
        bones, cartilage = [], []
        top = p.height_mm - 2.0
        for side in (-1.0, 1.0):
            for rib in range(1, 13):
                z0 = top - VERTEBRA_MM * (rib - 1) + 4.0
                drop = np.interp(rib, [1, 3, 6, 9, 12], [24.0, 62.0, 92.0, 96.0, 50.0])
                end = np.interp(rib, [1, 2, 5, 7, 9, 10, 11, 12], [0.42, 0.36, 0.42, 0.55, 0.85, 1.1, 1.7, 2.2])
                t = np.linspace(0.0, 1.0, 56)
                angle = 2.74 + t * (end - 2.74)
                z = z0 - drop * (1 - np.cos(np.pi * np.clip(t, 0, 1))) / 2 - 6.0 * t
                radius = self._cage_radius(z, side * angle) + 4.8
                x, y = side * radius * np.sin(angle), -radius * np.cos(angle)
                head = np.array([[z0 + 3.0, float(self._spine_y(z0)) + 4.0, side * 19.0]])
                neck = np.array([[z0 + 1.0, float(self._spine_y(z0)) + 13.0, side * 29.0]])
                path = np.concatenate([head, neck, np.column_stack([z, y, x])])
                width = np.concatenate([[4.2, 3.6], np.interp(t, [0, 0.15, 1], [3.9, 3.5, 3.2])])
                bones.append(chain(path, width))
                if rib <= 10:
                    last = path[-1]
                    goal_u = np.interp(rib, [1, 7, 10], [0.93, 0.30, 0.22]) * p.height_mm
                    s = np.linspace(0.0, 1.0, 14)
                    a = end + s * (0.13 - end)
                    zc = last[0] + s * (goal_u - last[0]) * 0.8
                    r = self._cage_radius(zc, side * a) + 4.8
                    cartilage.append(chain(np.column_stack([zc, -r * np.cos(a), side * r * np.sin(a)]), 4.0))
            # The collar bone.
            r = float(self._cage_radius(np.array(p.height_mm * 0.95), np.array(0.0)))
            clavicle = np.array([[0.94, -r - 12, 18], [0.98, -r - 8, 60], [1.03, -r + 20, 105], [1.08, -r + 35, 140]])
            bones.append(chain(clavicle * (p.height_mm, 1.0, side), [8.0, 5.0, 5.0, 6.0]))
        return np.concatenate(bones), np.concatenate(cartilage)

    def _bone_distance(self, z: float, polar: dict[str, Floats], frame: Frame) -> tuple[Floats, Floats, Floats]:
        """(bones, cartilage, spinal canal) signed distances on a plane."""
        p = self.parameters
        y, x = polar["y"], polar["x"]
        bones, cartilage = self._ribs
        far = tube_plane(bones, z, frame.y_mm, frame.x_mm, reach_mm=4.0, stretch=1.75)
        soft = tube_plane(cartilage, z, frame.y_mm, frame.x_mm, reach_mm=4.0, stretch=1.5)
        # Sternum.
        u = z / p.height_mm
        front = -float(self._cage_radius(np.array(z), np.array(0.0))) - 9.5
        half = float(np.interp(u, [0.2, 0.28, 0.5, 0.78, 0.84, 0.97], [3.0, 15.0, 17.0, 15.0, 24.0, 30.0]))
        if 0.18 < u < 0.985:
            r = np.abs(x / half) ** 3 + np.abs((y - front - 0.004 * x * x) / 6.5) ** 3
            far = np.minimum(far, (np.cbrt(r) - 1.0) * 6.5)
        # Shoulder blade: a curved sheet outside the ribs, thick at its outer border.
        extent = float(np.interp(u, [0.33, 0.45, 0.7, 0.95], [0.0, 0.42, 0.78, 0.72]))
        if extent > 0.02:
            inner = 2.62
            a = np.abs(polar["angle"])
            along = np.clip((inner - a) / extent, 0.0, 1.0)
            off = 17.0 + 6.0 * np.sin(np.pi * along) * 0.4 + 16.0 * along**2.5 + 3.0 * u
            half_thick = 2.1 + 0.9 * np.cos(9 * along) ** 2 + 4.2 * along**6 + 1.2 * (1 - along) ** 8
            miss = np.maximum(np.maximum(a - inner, inner - extent - a), 0.0) * polar["rho"]
            sheet = np.hypot(np.abs(polar["rho"] - polar["cage"] - off), miss) - half_thick
            far = np.minimum(far, sheet)
            if u > 0.7:
                # Its spine: a second, shorter blade that stands off backwards.
                a2 = np.clip((2.45 - a) / (0.55 * extent), 0.0, 1.0)
                miss2 = np.maximum(np.maximum(a - 2.45, 2.45 - 0.55 * extent - a), 0.0) * polar["rho"]
                rise = 8.0 + 22.0 * a2 * min(1.0, (u - 0.7) * 8.0)
                spine = np.hypot(np.abs(polar["rho"] - polar["cage"] - off - rise), miss2) - 2.6
                far = np.minimum(far, spine)
        vertebra, canal = self._vertebra(z, y, x)
        return np.minimum(far, vertebra), soft, canal

    def _vertebra(self, z: float, y: Floats, x: Floats) -> tuple[Floats, Floats]:
        """(bone, canal) signed distances; discs are cut out of the bone."""
        p = self.parameters
        yc = float(self._spine_y(z))
        phase = ((z - p.height_mm) / VERTEBRA_MM) % 1.0 - 0.5  # 0 at the vertebra's waist, +-0.5 in the disc
        lower = float(np.interp(z / p.height_mm, [0, 1], [1.08, 0.82]))
        waist = 1.0 + 0.28 * (phase * phase - 0.12)
        a, b = 17.5 * lower * waist, 13.5 * lower * waist
        r = np.hypot(x / a, (y - yc) / b)
        body = (r - 1.0) * b
        body = np.maximum(body, y - (yc + 10.5 * lower) + 2.0 * np.exp(-((x / 7.0) ** 2)))
        gap = (np.abs(phase) - 0.39) * VERTEBRA_MM
        body = np.maximum(body, gap)
        yk = yc + 18.5 * lower
        canal = (np.hypot(x / 10.0, (y - yk) / 8.3) - 1.0) * 8.3
        arch = np.abs(canal - 3.2) - 2.7
        # Between two vertebrae the nerves leave: the arch is open at the sides in the lower half.
        open_side = 1.0 / (1.0 + np.exp((phase + 0.18) * 40.0))
        arch = np.maximum(arch, 9.0 * open_side - 6.0 - np.maximum(0.0, (y - yk - 4.0)) * 3.0)
        # Bars in the plane: transverse processes in the upper third, the spinous process below its lamina.
        transverse = self._bar(y, np.abs(x), (yk + 2.0, 10.0), (yk + 9.0, 27.0 * lower), 3.2)
        transverse = np.maximum(transverse, (abs(phase - 0.22) - 0.2) * VERTEBRA_MM)
        length = 26.0 - 10.0 * abs(phase)
        spinous = self._bar(y, np.abs(x), (yk + 9.0, 0.0), (yk + 9.0 + length, 0.0), 2.6)
        bone = np.minimum(np.minimum(body, arch), np.minimum(transverse, spinous))
        return np.maximum(bone, -canal), canal

    @staticmethod
    def _bar(y: Floats, x: Floats, start: tuple[float, float], end: tuple[float, float], radius: float) -> Floats:
        dy, dx = end[0] - start[0], end[1] - start[1]
        t = np.clip(((y - start[0]) * dy + (x - start[1]) * dx) / (dy * dy + dx * dx), 0.0, 1.0)
        return np.hypot(y - start[0] - t * dy, x - start[1] - t * dx) - radius

    # Mediastinum ---------------------------------------------------------------------------------------------------

    @cached_property
    def _organs(self) -> dict[str, Floats]:
        """Tubes of the mediastinum by name, [segment, 8]."""
        p = self.parameters
        h, w, d = p.height_mm, p.cage_width_mm / 128.0, p.cage_depth_mm / 103.0
        spine = lambda u: float(self._spine_y(u * h))  # noqa: E731

        def tube(rows: list[tuple[float, float, float, float]]) -> Floats:
            """Rows of (u, y, x, radius); smooth in between."""
            table = np.array(rows)
            knots = np.linspace(0.0, 1.0, len(table))
            fine = PchipInterpolator(knots, table)(np.linspace(0.0, 1.0, 6 * len(table)))
            return chain(fine[:, :3] * (h, d, w), fine[:, 3])

        arch = 0.76
        aorta = [
            (-0.05, spine(0.0) / d - 18, 16, 11.5),
            (0.25, spine(0.25) / d - 14, 21, 12.0),
            (0.5, spine(0.5) / d - 12, 23, 12.5),
            (arch - 0.06, spine(arch) / d - 16, 22, 13.0),
            (arch, spine(arch) / d - 26, 19, 13.5),
            (arch + 0.025, spine(arch) / d - 48, 8, 14.0),
            (arch - 0.02, spine(arch) / d - 70, -8, 15.0),
            (0.62, spine(0.6) / d - 82, -14, 16.0),
            (0.5, spine(0.5) / d - 78, -6, 16.5),
            (0.44, spine(0.45) / d - 70, 4, 15.0),
        ]
        carina = 0.66
        ys = spine(carina) / d
        hilum = 0.56
        organs = {
            "aorta": tube(aorta),
            "cava": np.concatenate(
                [
                    tube(
                        [
                            (0.95, ys - 62, -22, 7),
                            (0.8, ys - 62, -26, 9),
                            (0.6, ys - 62, -32, 10),
                            (0.45, ys - 50, -34, 12),
                        ]
                    ),
                    tube([(-0.05, ys - 40, -22, 13), (0.2, ys - 42, -26, 13), (0.3, ys - 46, -30, 14)]),
                ]
            ),
            "pulmonary": np.concatenate(
                [
                    tube([(0.47, ys - 88, 18, 14), (0.55, ys - 82, 22, 14), (0.6, ys - 66, 20, 13)]),
                    tube(
                        [
                            (0.6, ys - 64, 16, 12),
                            (0.585, ys - 50, -8, 10.5),
                            (0.575, ys - 42, -32, 9.5),
                            (hilum, ys - 34, -48, 8),
                        ]
                    ),
                    tube([(0.6, ys - 62, 22, 12), (0.61, ys - 44, 36, 10.5), (hilum + 0.02, ys - 28, 44, 9)]),
                    # Veins into the left atrium.
                    tube([(0.42, ys - 38, -14, 10), (0.43, ys - 36, -34, 8), (0.46, ys - 32, -46, 6.5)]),
                    tube([(0.43, ys - 34, 14, 10), (0.44, ys - 32, 34, 8), (0.47, ys - 28, 44, 6.5)]),
                ]
            ),
            "branches": np.concatenate(
                [
                    tube([(arch, ys - 62, -4, 8), (0.88, ys - 56, -14, 6.5), (1.05, ys - 48, -26, 5.5)]),
                    tube([(arch, ys - 50, 8, 5), (0.88, ys - 46, 12, 4.2), (1.05, ys - 44, 18, 4)]),
                    tube([(arch, ys - 36, 16, 5.5), (0.88, ys - 32, 22, 5), (1.0, ys - 32, 34, 5)]),
                    tube([(0.97, ys - 66, 40, 6), (0.88, ys - 70, 10, 6.5), (0.82, ys - 66, -20, 7)]),
                ]
            ),
            "airway": np.concatenate(
                [
                    tube([(1.1, ys - 44, 0, 8.6), (0.85, ys - 34, -1, 8.8), (carina, ys - 26, -2, 9.4)]),
                    tube(
                        [
                            (carina, ys - 26, -3, 8.6),
                            (0.615, ys - 25, -20, 7.2),
                            (hilum + 0.02, ys - 24, -36, 5.8),
                            (0.5, ys - 20, -42, 4.6),
                        ]
                    ),
                    tube(
                        [
                            (carina, ys - 26, 1, 8.2),
                            (0.61, ys - 25, 22, 6.4),
                            (hilum - 0.01, ys - 22, 40, 5.4),
                            (0.49, ys - 17, 46, 4.4),
                        ]
                    ),
                ]
            ),
            "oesophagus": tube(
                [
                    (-0.05, ys - 34, 12, 6),
                    (0.3, ys - 20, 7, 6),
                    (0.6, ys - 14, 5, 5.5),
                    (0.85, ys - 18, 6, 5),
                    (1.05, ys - 24, 6, 5),
                ]
            ),
        }
        return organs

    @cached_property
    def _heart(self) -> list[tuple[Floats, Floats, Floats, float]]:
        """Chambers: (centre zyx, half axes, orthonormal axes, extra HU over blood)."""
        p = self.parameters
        h, s = p.height_mm, p.heart
        w, d = p.cage_width_mm / 128.0, p.cage_depth_mm / 103.0
        ys = float(self._spine_y(0.35 * h))
        # The long axis points forwards, to the left and down.
        long = np.array([-0.42, -0.58, 0.70])
        long /= np.linalg.norm(long)
        side = np.cross(long, [1.0, 0.0, 0.0])
        side /= np.linalg.norm(side)
        axes = np.stack([long, side, np.cross(long, side)])
        rows = [
            ((0.31, ys / d - 62, 38), (46, 30, 29)),  # left ventricle
            ((0.30, ys / d - 88, 4), (44, 25, 30)),  # right ventricle
            ((0.37, ys / d - 68, -34), (24, 24, 30)),  # right atrium
            ((0.44, ys / d - 42, 2), (26, 36, 19)),  # left atrium
        ]
        return [
            (np.array(c) * (h, d, w), np.array(r) * s, axes if i != 3 else np.eye(3)[[1, 2, 0]], 0.0)
            for i, (c, r) in enumerate(rows)
        ]

    def _chambers(self, z: Floats, y: Floats, x: Floats) -> list[Floats]:
        out = []
        for centre, half, axes, _ in self._heart:
            q = [
                (axis[0] * (z - centre[0]) + axis[1] * (y - centre[1]) + axis[2] * (x - centre[2])) / r
                for axis, r in zip(axes, half, strict=True)
            ]
            rho = np.sqrt(q[0] ** 2 + q[1] ** 2 + q[2] ** 2)
            out.append((rho - 1.0) * float(half.min()))
        return out

    def _envelope(self, z: Floats, y: Floats, x: Floats, organs: list[Floats]) -> Floats:
        """Signed distance of the mediastinum's surface from those of its organs, by point or plane."""
        p = self.parameters
        heart = smooth_union(self._chambers(z, y, x), 6.0) - 3.5
        spine = np.hypot(x, (y - self._spine_y(z)) * 1.05) - 21.5
        # Fat from the sternum to the spine: a thin junction in front that widens backwards around the great vessels.
        u = np.clip(z / p.height_mm, 0.0, 1.0)
        back = self._spine_y(z)
        front = -p.cage_depth_mm * (1.0 - 0.25 * u * u)
        share = np.clip((y - front) / (back - front), 0.0, 1.0)
        half = 3.0 + (16.0 + 17.0 * u) * (1.0 - np.exp(-((share / 0.55) ** 2.5)))
        core = np.abs(x - 5.0 * (1.0 - share) - 2.0 * np.sin(y / 19.0)) - half
        core = np.maximum(core, y - back)
        return smooth_union([heart, spine, core, *organs], 5.0)

    def _diaphragm(self, y: Floats, x: Floats) -> Floats:
        """Height of the diaphragm's surface, mm."""
        p = self.parameters
        h, w, d = p.height_mm, p.cage_width_mm, p.cage_depth_mm
        right = 0.235 * h - 95.0 * (((x + 0.50 * w) / w) ** 2 * 1.5 + ((y + 0.05 * d) / d) ** 2 * 0.95)
        left = 0.195 * h - 95.0 * (((x - 0.52 * w) / w) ** 2 * 1.6 + ((y + 0.02 * d) / d) ** 2 * 0.95)
        # The heart rests on the tendon between the domes.
        middle = 0.15 * h - 80.0 * (((x - 6.0) / w) ** 2 * 2.2 + ((y + 0.15 * d) / d) ** 2 * 0.8)
        highest = np.maximum(np.maximum(right, left), middle)
        spread = np.exp((right - highest) / 6.0) + np.exp((left - highest) / 6.0) + np.exp((middle - highest) / 6.0)
        return highest + 6.0 * np.log(spread) + 2.5 * np.sin(x / 23.0 + self.parameters.seed) * np.cos(y / 31.0)

    def _lung_points(self, points: Floats) -> Floats:
        """Signed distance into the lungs (negative inside) of points [point, (z, y, x)]."""
        z, y, x = points.T
        angle = np.arctan2(x, -y)
        cage = np.hypot(y, x) - self._cage_radius(z, angle) + 2.2
        organs = [tube_points(tubes, points) - 3.0 for tubes in self._organs.values()]
        envelope = self._envelope(z, y, x, organs)
        return np.maximum(np.maximum(cage, -envelope), (self._diaphragm(y, x) - z) * 0.7)

    # Lungs ---------------------------------------------------------------------------------------------------------

    @cached_property
    def _trees(self) -> dict[str, Floats]:
        """Vessels and airways of both lungs, [segment, 8]."""
        p = self.parameters
        generator = np.random.default_rng((p.seed, 3))
        ys = float(self._spine_y(0.6 * p.height_mm))
        vessels, airways = [], []
        for side in (-1.0, 1.0):
            cloud: list[Floats] = []
            missing = 2 * p.vessels
            while missing > 0:
                points = generator.uniform(
                    (0.0, -p.cage_depth_mm, 0.0), (p.height_mm, p.cage_depth_mm + 25, p.cage_width_mm), (6000, 3)
                ) * (1.0, 1.0, side)
                inside = points[self._lung_points(points) < -generator.uniform(2.0, 9.0, 6000)][:missing]
                cloud.append(inside)
                missing -= len(inside)
            ends = np.concatenate(cloud)
            root = np.array([0.555 * p.height_mm, ys - 30.0, side * 47.0 * p.cage_width_mm / 128.0])
            tubes, feeds = grow_tree(root, ends[: p.vessels], end_radius_mm=0.40, wander=0.045, generator=generator)
            vessels.append(tubes)
            airways.append(companion(tubes, feeds, least_feeds=max(p.vessels // 40, 4), calibre=0.8))
            low = root * (0.0, 1.0, 1.0) + (0.47 * p.height_mm, -2.0, 0.0)
            tubes, _ = grow_tree(low, ends[p.vessels :], end_radius_mm=0.40, wander=0.045, generator=generator)
            vessels.append(tubes)
        return {"vessels": np.concatenate(vessels), "airways": np.concatenate(airways)}

    def _parenchyma(self, z: float, polar: dict[str, Floats], frame: Frame) -> Floats:
        """HU of the lungs without vessels."""
        p = self.parameters
        y, x = polar["y"], polar["x"]
        noise = lambda cell, k: lattice_noise(z, frame.y_mm, frame.x_mm, cell_mm=cell, seed=p.seed * 31 + k)  # noqa: E731
        hu = p.lung_hu + p.gradient_hu * (y / (2 * p.cage_depth_mm))
        hu = hu + p.texture_hu * (
            0.55 * noise(14.0, 1) + 0.55 * noise(5.0, 2) + 0.6 * noise(1.7, 3) + 0.5 * noise(0.9, 4)
        )
        if p.emphysema > 0:
            u = z / p.height_mm
            reach = p.emphysema * (0.35 + 1.3 * np.clip(u, 0, 1))
            holes = noise(7.0, 5) + 0.55 * noise(3.0, 6) + 0.5 * noise(40.0, 7)
            share = np.clip((holes - np.interp(reach, [0.0, 0.1, 0.3, 0.6], [3.2, 1.7, 0.8, 0.1])) / 0.35, 0.0, 1.0)
            hu = hu + share * (-975.0 - hu)
        # Fissures: thin sheets that rise backwards (oblique, both) and lie level (right, front).
        bend = 6.0 * np.sin(x / 37.0 + p.seed) + 3.0 * noise(45.0, 8)
        oblique = (z - (0.44 * p.height_mm + 0.95 * (y + 10.0)) + bend) / 1.38
        sheet = np.exp(-((oblique / 0.55) ** 2))
        level = np.where((x < 0) & (oblique > 0), (z - 0.52 * p.height_mm + 0.5 * bend) / 1.0, 99.0)
        return hu + 210.0 * np.maximum(sheet, np.exp(-((level / 0.6) ** 2)))

    # Drawing -------------------------------------------------------------------------------------------------------

    def draw(self, z_mm: Floats, frame: Frame) -> NDArray[np.float32]:
        """[z, y, x] HU on planes at the heights given."""
        return np.stack([self._plane(float(z), frame) for z in z_mm])

    def _polar(self, z: float, frame: Frame) -> dict[str, Floats]:
        y = frame.y_mm[:, None].astype(np.float32)
        x = frame.x_mm[None].astype(np.float32)
        rho = np.hypot(y, x)
        angle = np.arctan2(x, -y)
        wall = self._wall(z)
        position = (angle + np.float32(np.pi)) * np.float32(WALL_ANGLES / (2 * np.pi)) - np.float32(0.5)
        low = np.floor(position).astype(np.int32)
        share = (position - low).astype(np.float32)
        polar: dict[str, Floats] = {"y": y, "x": x, "rho": rho, "angle": angle}
        for name in ("cage", "muscle", "skin"):
            table = wall[name].astype(np.float32)
            near, far = table[low % WALL_ANGLES], table[(low + 1) % WALL_ANGLES]
            polar[name] = near + share * (far - near)
        return polar

    def _plane(self, z: float, frame: Frame) -> NDArray[np.float32]:
        p = self.parameters
        polar = self._polar(z, frame)
        y, x, rho = polar["y"], polar["x"], polar["rho"]
        pixel = frame.pixel_mm
        noise = lambda cell, k: lattice_noise(z, frame.y_mm, frame.x_mm, cell_mm=cell, seed=p.seed * 31 + k)  # noqa: E731
        coarse, middle, fine = noise(19.0, 20), noise(6.0, 21), noise(2.2, 22)
        hu = np.full(frame.shape, -1000.0, dtype=np.float32)
        if p.table:
            self._couch(hu, y, x, self._back_mm, pixel)
        # Wall: skin, fat with strands, muscle with fat between its bundles.
        blend(hu, cover(rho - polar["skin"], pixel), 15.0)
        fat = -103.0 + 5.0 * coarse + 4.0 * middle
        strands = np.clip(1.0 - np.abs(middle + 0.6 * coarse) / 0.05, 0.0, 1.0) * 30.0
        blend(hu, cover(rho - polar["skin"] + 1.9, pixel), fat + strands)
        if p.breast_mm > 0:
            self._glands(hu, z, polar, pixel, middle + 0.8 * coarse)
        muscle = 56.0 + 5.0 * fine + 4.0 * middle
        # Layers of muscle lie parallel to the ribs, with a little fat between them.
        layer = (rho - polar["cage"] - 10.0) / 12.0 + 0.45 * coarse
        seams = np.clip(1.4 - np.abs(layer - np.round(layer)) * 12.0 / 0.8, 0.0, 1.0) * np.clip(0.5 + coarse, 0.0, 1.0)
        blend(hu, cover(rho - polar["muscle"], pixel), muscle - 110.0 * seams)
        # The cage's inside: fat of the pleura, then diaphragm and belly.
        blend(hu, cover(rho - polar["cage"] - 1.0, pixel), -60.0 + 60.0 * np.clip(middle, -1, 1))
        dome = self._diaphragm(y, x)
        self._belly(hu, z, polar, pixel, dome, coarse, middle)
        organs = {
            name: tube_plane(tubes, z, frame.y_mm, frame.x_mm, reach_mm=REACH_MM)
            for name, tubes in self._organs.items()
        }
        envelope = self._envelope(np.float32(z), y, x, [d - 3.0 for d in organs.values()])
        inside = np.maximum(rho - polar["cage"] + 1.0, envelope)
        blend(hu, cover(inside, pixel) * cover((dome - z) * 0.7, pixel), -92.0 + 9.0 * middle + 8.0 * fine)
        lung = np.maximum(np.maximum(rho - polar["cage"] + 2.2, -envelope), (dome - z) * 0.7)
        lung_share = cover(lung, pixel)
        self._lungs(hu, z, polar, frame, lung, lung_share)
        self._heart_and_vessels(hu, z, polar, pixel, organs, middle, fine)
        bones, cartilage, canal = self._bone_distance(z, polar, frame)
        body = cover(rho - polar["skin"] + 2.0, pixel)
        spine_zone = np.hypot(x, (y - float(self._spine_y(z))) * 1.05) - 19.5
        blend(
            hu, cover(spine_zone, pixel) * cover(np.abs(y - float(self._spine_y(z))) - 13.5, pixel), 85.0 + 6.0 * fine
        )
        blend(hu, cover(canal, pixel), -40.0)
        blend(hu, cover(canal + 2.2, pixel), 14.0)
        blend(hu, cover(canal + 4.0, pixel), 38.0)
        blend(hu, cover(cartilage, pixel) * body, 95.0 + 15.0 * middle)
        trabecular = p.bone_hu + 45.0 * noise(1.5, 23) + 30.0 * noise(4.0, 24)
        blend(hu, cover(bones, pixel) * body, p.cortex_hu)
        blend(hu, cover(bones + 1.25 + 0.25 * middle, pixel) * body, trabecular)
        return hu

    def _lungs(
        self, hu: NDArray[np.float32], z: float, polar: dict[str, Floats], frame: Frame, lung: Floats, share: Floats
    ) -> None:
        p = self.parameters
        if not share.any():
            return
        blend(hu, share, self._parenchyma(z, polar, frame))
        vessels = tube_coverage(self._trees["vessels"], z, frame.y_mm, frame.x_mm)
        blend(hu, vessels * share, p.blood_hu + 5.0)
        airways = self._trees["airways"]
        wall = airways.copy()
        wall[:, 6:8] = wall[:, 6:8] * 1.12 + 0.4
        blend(hu, tube_coverage(wall, z, frame.y_mm, frame.x_mm) * share, -150.0)
        blend(hu, tube_coverage(airways, z, frame.y_mm, frame.x_mm) * share, -985.0)
        for nodule in self.nodules:
            nodule.paint(hu, z, frame, cover(lung + 0.3, frame.pixel_mm))

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
        p = self.parameters
        chambers = self._chambers(np.float32(z), polar["y"], polar["x"])
        above = cover((self._diaphragm(polar["y"], polar["x"]) - z) * 0.7 - 2.0, pixel)
        muscle = p.blood_hu if p.blood_hu < 80 else 90.0
        for index, chamber in enumerate(chambers):
            blend(hu, cover(chamber, pixel) * above, muscle + 3.0 + 4.0 * fine)
            thickness = 9.0 if index == 0 else 3.0
            blend(hu, cover(chamber + thickness + 1.5 * middle, pixel) * above, p.blood_hu + 3.0 * fine)
        for name in ("pulmonary", "cava", "branches", "aorta"):
            extra = -12.0 if name == "cava" and p.blood_hu > 80 else 0.0
            blend(hu, cover(organs[name], pixel) * above, p.blood_hu + extra + 3.0 * fine)
        blend(hu, cover(organs["oesophagus"], pixel) * above, 38.0 + 5.0 * fine)
        blend(hu, cover(organs["oesophagus"] + 4.2, pixel) * above, -500.0)
        blend(hu, cover(organs["airway"] - 1.6, pixel), 20.0)
        blend(hu, cover(organs["airway"], pixel), -995.0)

    def _belly(
        self,
        hu: NDArray[np.float32],
        z: float,
        polar: dict[str, Floats],
        pixel: float,
        dome: Floats,
        coarse: Floats,
        middle: Floats,
    ) -> None:
        """Liver, spleen, stomach and fat under the diaphragm."""
        p = self.parameters
        y, x = polar["y"], polar["x"]
        depth = (z - dome) * 0.7
        below = cover(depth, pixel) * cover(polar["rho"] - polar["cage"] + 1.0, pixel)
        if not below.any():
            return
        blood = max(p.blood_hu - 45.0, 0.0)
        blend(hu, below, -98.0 + 6.0 * coarse)
        edge = np.maximum(polar["rho"] - polar["cage"] + 3.0, depth + 2.5)
        w, d = p.cage_width_mm, p.cage_depth_mm
        liver = np.maximum(edge, x - 0.28 * w + 0.25 * (y + 0.2 * d) + 8.0 * coarse)
        veins = np.clip(1.2 - np.abs(coarse + 0.4 * middle) / 0.12, 0.0, 1.0) * 12.0
        blend(hu, cover(liver, pixel), 58.0 + 0.35 * blood + 3.0 * middle + (veins if blood > 0 else -0.8 * veins))
        spleen = np.maximum(edge, np.hypot((x - 0.72 * w) / 1.0, (y - 0.42 * d) / 1.25) - 40.0)
        blend(hu, cover(spleen, pixel), 50.0 + 0.4 * blood + 3.0 * middle)
        stomach = np.maximum(edge + 2.0, np.hypot((x - 0.42 * w) / 1.1, (y + 0.25 * d) / 0.8) - 42.0)
        blend(hu, cover(stomach, pixel), 35.0)
        blend(hu, cover(stomach + 3.5, pixel), np.where(y < -0.32 * d, -990.0, 18.0 + 8.0 * middle))

    def _glands(
        self, hu: NDArray[np.float32], z: float, polar: dict[str, Floats], pixel: float, texture: Floats
    ) -> None:
        p = self.parameters
        u = z / p.height_mm
        middle = np.exp(-(((u - 0.42) / 0.12) ** 2)) * _angle_bump(polar["angle"], 0.72, 0.22)
        depth = polar["skin"] - polar["rho"]
        room = np.clip(depth / 6.0 - 1.0, 0.0, 1.0) * np.clip((polar["rho"] - polar["muscle"]) / 5.0, 0.0, 1.0)
        share = np.clip((texture + 2.2 * middle * p.glandular + p.glandular - 1.9) * 2.0, 0.0, 1.0) * room * middle
        blend(hu, share, 30.0)

    @staticmethod
    def _couch(hu: NDArray[np.float32], y: Floats, x: Floats, back: float, pixel: float) -> None:
        """A cradle of carbon fibre round foam, with a mattress under the back."""
        sag = back + 9.0 - x * x / 900.0
        width = np.abs(x) - 205.0
        blend(hu, cover(np.maximum(np.abs(y - sag + 4.0) - 4.0, width + 10.0), pixel), -925.0)
        under = back + 9.0 + 34.0 * (1.0 - np.clip(np.abs(x) / 205.0, 0.0, 1.0) ** 4) - x * x / 900.0
        shell = np.maximum(np.maximum(sag - y, y - under), width)
        blend(hu, cover(shell, pixel), -120.0)
        blend(hu, cover(shell + 1.6, pixel), -935.0)

    # Masks ---------------------------------------------------------------------------------------------------------

    def masks(self, z_mm: Floats, frame: Frame) -> dict[str, NDArray[np.bool_]]:
        """Each nodule and the lungs (without nodules taken out), [z, y, x]."""
        masks: dict[str, NDArray[np.bool_]] = {
            nodule.name: np.stack([nodule.mask(float(z), frame) for z in z_mm]) for nodule in self.nodules
        }
        lungs = []
        for z in z_mm:
            polar = self._polar(float(z), frame)
            y, x = polar["y"], polar["x"]
            organs = [
                tube_plane(tubes, float(z), frame.y_mm, frame.x_mm, reach_mm=REACH_MM) - 3.0
                for tubes in self._organs.values()
            ]
            envelope = self._envelope(np.float32(z), y, x, organs)
            outside = np.maximum(np.maximum(polar["rho"] - polar["cage"] + 2.2, -envelope), self._diaphragm(y, x) - z)
            lungs.append(outside < 0)
        masks["lungs"] = np.stack(lungs)
        return masks

    def lung_depth(self, points: Floats) -> NDArray[Any]:
        """How deep points [point, (z, y, x)] lie inside the lungs, mm; negative outside."""
        return -self._lung_points(np.asarray(points, dtype=np.float64))
