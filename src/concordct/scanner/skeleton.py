"""Bones of the chest as signed distances: ribs cut obliquely as the plane meets them, sternum, blades, vertebrae."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from concordct.scanner.body import VERTEBRA_MM, Body
from concordct.scanner.frame import Frame
from concordct.scanner.shapes import Floats, chain, tube_plane


@dataclass(frozen=True)
class Skeleton:
    """The bones within a body."""

    body: Body

    @cached_property
    def _ribs(self) -> tuple[Floats, Floats]:
        """(bone, cartilage) segments."""
        p = self.body.parameters
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
                radius = self.body.cage_radius(z, side * angle) + 4.8
                x, y = side * radius * np.sin(angle), -radius * np.cos(angle)
                head = np.array([[z0 + 3.0, float(self.body.spine_y(z0)) + 4.0, side * 19.0]])
                neck = np.array([[z0 + 1.0, float(self.body.spine_y(z0)) + 13.0, side * 29.0]])
                path = np.concatenate([head, neck, np.column_stack([z, y, x])])
                width = np.concatenate([[4.2, 3.6], np.interp(t, [0, 0.15, 1], [3.9, 3.5, 3.2])])
                bones.append(chain(path, width))
                if rib <= 10:
                    last = path[-1]
                    goal_u = np.interp(rib, [1, 7, 10], [0.93, 0.30, 0.22]) * p.height_mm
                    s = np.linspace(0.0, 1.0, 14)
                    a = end + s * (0.13 - end)
                    zc = last[0] + s * (goal_u - last[0]) * 0.8
                    r = self.body.cage_radius(zc, side * a) + 4.8
                    cartilage.append(chain(np.column_stack([zc, -r * np.cos(a), side * r * np.sin(a)]), 4.0))
            # The collar bone.
            front = float(self.body.cage_radius(p.height_mm * 0.95, 0.0))
            clavicle = np.array(
                [[0.94, -front - 12, 18], [0.98, -front - 8, 60], [1.03, -front + 20, 105], [1.08, -front + 35, 140]]
            )
            bones.append(chain(clavicle * (p.height_mm, 1.0, side), np.array([8.0, 5.0, 5.0, 6.0])))
        return np.concatenate(bones), np.concatenate(cartilage)

    def distances(self, z: float, polar: dict[str, Floats], frame: Frame) -> tuple[Floats, Floats, Floats]:
        """(bones, cartilage, spinal canal) signed distances on a plane."""
        p = self.body.parameters
        y, x = polar["y"], polar["x"]
        bones, cartilage = self._ribs
        far = tube_plane(bones, z, frame.y_mm, frame.x_mm, reach_mm=4.0, stretch=1.75)
        soft = tube_plane(cartilage, z, frame.y_mm, frame.x_mm, reach_mm=4.0, stretch=1.5)
        # Sternum.
        u = z / p.height_mm
        front = -float(self.body.cage_radius(np.array(z), np.array(0.0))) - 9.5
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
        p = self.body.parameters
        yc = float(self.body.spine_y(z))
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
