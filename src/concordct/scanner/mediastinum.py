"""Heart, great vessels, airways, gullet and the fat between them; the diaphragm below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator

from concordct.scanner.body import Body
from concordct.scanner.shapes import Floats, Numbers, chain, smooth_union


@dataclass(frozen=True)
class Mediastinum:
    """What lies between the lungs of a body."""

    body: Body

    @cached_property
    def _variation(self) -> tuple[float, NDArray[np.float64]]:
        """Calibre of the great vessels and (y, x) shift of the whole, mm."""
        generator = np.random.default_rng((self.body.parameters.seed, 5))
        return float(np.clip(generator.normal(1.0, 0.08), 0.85, 1.2)), generator.normal(0.0, (1.5, 3.0))

    @cached_property
    def organs(self) -> dict[str, Floats]:
        """Tubes of the mediastinum by name, [segment, 8]."""
        p = self.body.parameters
        h, w, d = p.height_mm, p.cage_width_mm / 128.0, p.cage_depth_mm / 103.0
        spine = lambda u: float(self.body.spine_y(u * h))  # noqa: E731

        calibre, shift = self._variation

        def tube(rows: Sequence[tuple[float, ...]]) -> Floats:
            """Rows of (u, y, x, radius); smooth in between."""
            table = np.array(rows)
            knots = np.linspace(0.0, 1.0, len(table))
            fine = PchipInterpolator(knots, table)(np.linspace(0.0, 1.0, 6 * len(table)))
            return chain(fine[:, :3] * (h, d, w) + (0.0, *shift), fine[:, 3] * calibre)

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
        return {
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

    @cached_property
    def _heart(self) -> list[tuple[Floats, Floats, Floats, float]]:
        """Chambers: (centre zyx, half axes, orthonormal axes, extra HU over blood)."""
        p = self.body.parameters
        h, s = p.height_mm, p.heart
        w, d = p.cage_width_mm / 128.0, p.cage_depth_mm / 103.0
        ys = float(self.body.spine_y(0.35 * h))
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
            (
                np.array(c) * (h, d, w) + (0.0, *self._variation[1]),
                np.array(r) * s,
                axes if i != 3 else np.eye(3)[[1, 2, 0]],
                0.0,
            )
            for i, (c, r) in enumerate(rows)
        ]

    def chambers(self, z: Numbers, y: Floats, x: Floats) -> list[Floats]:
        out = []
        for centre, half, axes, _ in self._heart:
            q = [
                (axis[0] * (z - centre[0]) + axis[1] * (y - centre[1]) + axis[2] * (x - centre[2])) / r
                for axis, r in zip(axes, half, strict=True)
            ]
            rho = np.sqrt(q[0] ** 2 + q[1] ** 2 + q[2] ** 2)
            out.append((rho - 1.0) * float(half.min()))
        return out

    def envelope(self, z: Numbers, y: Floats, x: Floats, organs: Sequence[Floats]) -> Floats:
        """Signed distance of the mediastinum's surface from those of its organs, by point or plane."""
        p = self.body.parameters
        heart = smooth_union(self.chambers(z, y, x), 6.0) - 3.5
        spine = np.hypot(x, (y - self.body.spine_y(z)) * 1.05) - 21.5
        # Fat from the sternum to the spine: a thin junction in front that widens backwards around the great vessels.
        u = np.clip(z / p.height_mm, 0.0, 1.0)
        back = self.body.spine_y(z)
        front = -p.cage_depth_mm * (1.0 - 0.25 * u * u)
        share = np.clip((y - front) / (back - front), 0.0, 1.0)
        half = 3.0 + (16.0 + 17.0 * u) * (1.0 - np.exp(-((share / 0.55) ** 2.5)))
        core = np.abs(x - 5.0 * (1.0 - share) - 2.0 * np.sin(y / 19.0)) - half
        core = np.maximum(core, y - back - 8.0)
        return smooth_union([heart, spine, core, *organs], 5.0)

    def diaphragm(self, y: Floats, x: Floats) -> Floats:
        """Height of the diaphragm's surface, mm."""
        p = self.body.parameters
        h, w, d = p.height_mm, p.cage_width_mm, p.cage_depth_mm
        right = 0.235 * h - 95.0 * (((x + 0.50 * w) / w) ** 2 * 1.5 + ((y + 0.05 * d) / d) ** 2 * 0.95)
        left = 0.195 * h - 95.0 * (((x - 0.52 * w) / w) ** 2 * 1.6 + ((y + 0.02 * d) / d) ** 2 * 0.95)
        # The heart rests on the tendon between the domes.
        middle = 0.15 * h - 80.0 * (((x - 6.0) / w) ** 2 * 2.2 + ((y + 0.15 * d) / d) ** 2 * 0.8)
        highest = np.maximum(np.maximum(right, left), middle)
        spread = np.exp((right - highest) / 6.0) + np.exp((left - highest) / 6.0) + np.exp((middle - highest) / 6.0)
        return highest + 6.0 * np.log(spread) + 2.5 * np.sin(x / 23.0 + self.body.parameters.seed) * np.cos(y / 31.0)
