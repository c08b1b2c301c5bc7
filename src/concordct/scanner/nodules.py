"""Nodules and tumours: lobed balls with texture, spicules, a ground-glass rim, and a mask of exactly what was drawn."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from concordct.scanner.frame import Frame
from concordct.scanner.shapes import Floats, blend, cover, lattice_noise, tube_coverage

KINDS = ("solid", "part-solid", "ground-glass")


@dataclass(frozen=True)
class Nodule:
    """One nodule.

    Attributes
    ----------
    name : of its mask.
    kind : "solid", "part-solid" or "ground-glass".
    centre_mm : (z, y, x).
    radius_mm : mean radius.
    hu : mean density of the solid part, or of the glass for a ground-glass nodule.
    glass_hu : density of a part-solid nodule's rim.
    lobation : depth of the lobes as a share of the radius.
    spicules : their number.
    texture_hu, texture_mm : standard deviation and grain of the inner texture.
    seed : of shape and texture.
    """

    name: str
    kind: str
    centre_mm: tuple[float, float, float]
    radius_mm: float
    hu: float
    glass_hu: float
    lobation: float
    spicules: int
    texture_hu: float
    texture_mm: float
    seed: int

    @cached_property
    def _waves(self) -> tuple[Floats, Floats, Floats]:
        generator = np.random.default_rng((self.seed, 1))
        directions = generator.normal(size=(7, 3))
        directions /= np.linalg.norm(directions, axis=1)[:, None]
        return directions, generator.uniform(1.5, 5.5, 7), generator.uniform(0, 2 * np.pi, 7)

    @cached_property
    def _spicules(self) -> Floats:
        generator = np.random.default_rng((self.seed, 2))
        directions = generator.normal(size=(self.spicules, 3))
        directions /= np.linalg.norm(directions, axis=1)[:, None]
        length = self.radius_mm * generator.uniform(1.3, 1.9, self.spicules)[:, None]
        centre = np.array(self.centre_mm)
        wide = min(0.14 * self.radius_mm + 0.35, 1.4)
        ends = np.tile([wide, 0.25], (self.spicules, 1))
        return np.column_stack([centre + 0.7 * self.radius_mm * directions, centre + length * directions, ends])

    def _box(self, z: float, frame: Frame) -> tuple[slice, slice] | None:
        reach = 2.0 * self.radius_mm + 2.0
        if abs(z - self.centre_mm[0]) > reach:
            return None
        ys = np.flatnonzero(np.abs(frame.y_mm - self.centre_mm[1]) <= reach)
        xs = np.flatnonzero(np.abs(frame.x_mm - self.centre_mm[2]) <= reach)
        if ys.size < 2 or xs.size < 2:
            return None
        return slice(ys[0], ys[-1] + 1), slice(xs[0], xs[-1] + 1)

    def _distance(self, z: float, y_mm: Floats, x_mm: Floats) -> Floats:
        dz = z - self.centre_mm[0]
        dy = (y_mm - self.centre_mm[1])[:, None]
        dx = (x_mm - self.centre_mm[2])[None]
        rho = np.sqrt(dz * dz + dy * dy + dx * dx) + 1e-6
        directions, frequency, phase = self._waves
        lobes = np.zeros_like(rho)
        for (wz, wy, wx), f, shift in zip(directions, frequency, phase, strict=True):
            lobes += np.sin(f * (wz * dz + wy * dy + wx * dx) / rho + shift)
        return rho - self.radius_mm * (1.0 + self.lobation * lobes / 2.6)

    def paint(self, hu: NDArray[np.float32], z: float, frame: Frame, lung: Floats) -> None:
        """Draw onto a plane in place, within the lung's share."""
        box = self._box(z, frame)
        if box is None:
            return
        y_mm, x_mm = frame.y_mm[box[0]], frame.x_mm[box[1]]
        distance = self._distance(z, y_mm, x_mm)
        grain = lattice_noise(z, y_mm, x_mm, cell_mm=self.texture_mm, seed=self.seed)
        fine = lattice_noise(z, y_mm, x_mm, cell_mm=max(self.texture_mm / 2.5, 0.8), seed=self.seed + 1)
        texture = self.texture_hu * (0.8 * grain + 0.6 * fine)
        part = hu[box]
        inside = lung[box]
        if self.spicules:
            blend(part, tube_coverage(self._spicules, z, y_mm, x_mm) * inside, -60.0)
        if self.kind == "part-solid":
            blend(part, cover(distance, 1.8) * inside, np.maximum(part, self.glass_hu + texture))
            distance = distance + 0.45 * self.radius_mm
        edge = 1.8 if self.kind == "ground-glass" else max(frame.pixel_mm, 0.5)
        value = self.hu + texture
        blend(part, cover(distance, edge) * inside, np.maximum(part, value) if self.kind == "ground-glass" else value)

    def mask(self, z: float, frame: Frame) -> NDArray[np.bool_]:
        """[y, x] the nodule without its spicules."""
        mask = np.zeros(frame.shape, dtype=bool)
        box = self._box(z, frame)
        if box is not None:
            mask[box] = self._distance(z, frame.y_mm[box[0]], frame.x_mm[box[1]]) <= 0
        return mask
