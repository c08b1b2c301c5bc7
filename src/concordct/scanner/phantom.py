"""The digital chest phantom."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from concordct.scanner.frame import Frame


@dataclass(frozen=True)
class ChestPhantom:
    """A chest with three tumours; `draw` and `masks` at any height."""

    key: str = "phantom"
    height_mm: float = 240.0

    #: (name, (z, y, x) mm, radius mm, HU)
    tumours = (
        ("tumour-1", (12.0, -10.0, -85.0), 14.0, 35.0),
        ("tumour-2", (20.0, 25.0, 80.0), 9.0, -80.0),
        ("tumour-3", (30.0, 30.0, -70.0), 7.0, 90.0),
    )

    def draw(self, z_mm: NDArray[np.float64], frame: Frame) -> NDArray[np.float32]:
        """[z, y, x] HU."""
        y, x = frame.y_mm[:, None], frame.x_mm[None]
        planes = []
        for z in z_mm:
            hu = np.full(frame.shape, -1000.0)

            def fill(cy: float, cx: float, ry: float, rx: float, value: float, hu: NDArray[np.float64] = hu) -> None:
                inside = (1 - np.hypot((y - cy) / ry, (x - cx) / rx)) * min(ry, rx) / frame.pixel_mm + 0.5
                w = np.clip(inside, 0, 1)
                hu += w * (value - hu)

            fill(0, 0, 112, 165, -100)
            fill(0, 0, 100, 150, 45)
            fill(-5, -80, 75, 58, -860)
            fill(-5, 80, 75, 58, -860)
            fill(-20, 20, 45, 55, 40)
            fill(70, 0, 20, 22, 250)
            fill(83, 0, 9, 9, 20)
            generator = np.random.default_rng(7)
            for _ in range(400):
                side = generator.choice((-1, 1))
                cy, cx = generator.uniform(-60, 50), side * generator.uniform(40, 125)
                drift = generator.normal(0, 0.6, 2)
                radius = generator.exponential(0.9) + 0.5
                if np.hypot((cy + 5) / 70, (cx - side * 80) / 53) < 1:
                    fill(cy + drift[0] * (z - 15), cx + drift[1] * (z - 15), radius, radius * 1.3, 30)
            for _, (cz, cy, cx), radius, value in self.tumours:
                if abs(z - cz) < radius:
                    r = float(np.sqrt(radius**2 - (z - cz) ** 2))
                    fill(cy, cx, r, r, value)
            planes.append(hu.astype(np.float32))
        return np.stack(planes)

    def masks(self, z_mm: NDArray[np.float64], frame: Frame) -> dict[str, NDArray[np.bool_]]:
        """Each tumour, [z, y, x]."""
        z, y, x = np.asarray(z_mm)[:, None, None], frame.y_mm[None, :, None], frame.x_mm[None, None]
        return {
            name: (z - cz) ** 2 + (y - cy) ** 2 + (x - cx) ** 2 <= radius**2
            for name, (cz, cy, cx), radius, _ in self.tumours
        }
