"""Usual interstitial pneumonia in a digital chest: what idiopathic pulmonary fibrosis looks like on CT.

A susceptibility is defined everywhere in the lungs: high under the pleura, at the base, at the back, and patchy.
Disease is where it passes a cut, and the cut is set so that a stated share of the lungs is diseased; a lower cut is a
later day of the same disease, whose front has moved and whose old parts have turned into honeycombs. Proportions were
set by eye against the pattern's description (Raghu 2018, doi:10.1164/rccm.201807-1255ST); they are no measurement of
anybody.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from concordct.scanner.cells import sheet_cover, wall_distance
from concordct.scanner.chest import REACH_MM, Chest
from concordct.scanner.frame import Frame
from concordct.scanner.shapes import Floats, blend, chain, lattice_noise, tube_coverage, tube_plane

#: Lattice on which the share of diseased lung is counted, mm; a few thousand points settle it within 0.01.
COARSE_MM = 6.0
#: Width of the front, and how far above the cut lungs have turned into honeycombs, in units of the susceptibility.
FRONT, HONEYCOMB = 0.22, 0.62


@dataclass(frozen=True)
class Fibrosis:
    """How the disease looks. Lengths in mm, densities in HU.

    Attributes
    ----------
    extent : share of the lungs' volume that is diseased, 0 to 0.8.
    reach_mm : depth under the pleura over which susceptibility falls by 1.
    basal, posterior, patches : weights of height, of the back, and of chance.
    glass_hu : ground-glass opacity between the lines.
    lines_mm, lines_hu : width of the reticulation's meshes, density of its lines.
    cysts_mm : width of a honeycomb's cysts.
    bronchi : traction bronchi that can open as the disease reaches them.
    """

    extent: float
    reach_mm: float
    basal: float
    posterior: float
    patches: float
    glass_hu: float
    lines_mm: float
    lines_hu: float
    cysts_mm: float
    bronchi: int


@dataclass(frozen=True, kw_only=True)
class FibroticChest(Chest):
    """A chest whose lungs are scarred."""

    fibrosis: Fibrosis

    def at_extent(self, extent: float) -> FibroticChest:
        """The same chest on another day of the disease."""
        other = replace(self, fibrosis=replace(self.fibrosis, extent=extent))
        # Trees, wall and susceptibility know nothing of the extent, and they take a second to make.
        other.__dict__.update(body=self.body, _trees=self._trees, _coarse=self._coarse)
        return other

    def _depth(self, z: float, polar: dict[str, Floats]) -> Floats:
        """Depth under the pleura of ribs and diaphragm, mm; the mediastinal side does not count."""
        dome = self._mediastinum.diaphragm(polar["y"], polar["x"])
        return -np.maximum(polar["rho"] - polar["cage"] + 2.2, (dome - z) * 0.7)

    def _susceptibility(self, z: float, polar: dict[str, Floats], frame: Frame) -> NDArray[np.float32]:
        p, f = self.parameters, self.fibrosis
        coarse = lattice_noise(z, frame.y_mm, frame.x_mm, cell_mm=31.0, seed=p.seed * 31 + 40)
        fine = lattice_noise(z, frame.y_mm, frame.x_mm, cell_mm=11.0, seed=p.seed * 31 + 41)
        back = np.clip(polar["y"] / p.cage_depth_mm, -1.0, 1.0)
        value = (
            f.basal * (1.0 - z / p.height_mm)
            + f.posterior * back
            + f.patches * (0.8 * coarse + 0.5 * fine)
            - np.maximum(self._depth(z, polar), 0.0) / f.reach_mm
        )
        return value.astype(np.float32)

    def lung_plane(self, z: float, frame: Frame) -> tuple[dict[str, Floats], Floats]:
        """(polar coordinates, [y, x] signed distance into the lungs, negative inside) of a plane."""
        polar = self.body.polar(z, frame)
        y, x = polar["y"], polar["x"]
        organs = [
            tube_plane(tubes, z, frame.y_mm, frame.x_mm, reach_mm=REACH_MM) - 3.0
            for tubes in self._mediastinum.organs.values()
        ]
        envelope = self._mediastinum.envelope(np.float32(z), y, x, organs)
        cage = polar["rho"] - polar["cage"] + 2.2
        return polar, np.maximum(np.maximum(cage, -envelope), (self._mediastinum.diaphragm(y, x) - z) * 0.7)

    @cached_property
    def _coarse(self) -> tuple[Floats, Frame, NDArray[np.float32], NDArray[np.bool_]]:
        """(z, frame, susceptibility, lungs) on the coarse lattice."""
        p = self.parameters
        z_mm = np.arange(COARSE_MM / 2, p.height_mm, COARSE_MM)
        half = (p.cage_depth_mm + 30.0, p.cage_width_mm + 6.0)
        frame = Frame((int(2 * half[0] / COARSE_MM), int(2 * half[1] / COARSE_MM)), COARSE_MM)
        values, lungs = [], []
        for z in z_mm:
            polar, lung = self.lung_plane(float(z), frame)
            values.append(self._susceptibility(float(z), polar, frame))
            lungs.append(lung < 0)
        return z_mm, frame, np.stack(values), np.stack(lungs)

    @cached_property
    def cut(self) -> float:
        """The susceptibility above which `fibrosis.extent` of the lungs lies."""
        _, _, values, lungs = self._coarse
        return float(np.quantile(values[lungs], 1.0 - self.fibrosis.extent))

    @cached_property
    def _bronchi(self) -> Floats:
        """Beaded tubes of the traction bronchi that the disease has opened, [segment, 8]."""
        p, f = self.parameters, self.fibrosis
        z_mm, frame, values, lungs = self._coarse
        generator = np.random.default_rng((p.seed, 7))
        places = np.argwhere(lungs & (values > np.quantile(values[lungs], 0.6)))
        starts = places[generator.choice(len(places), min(f.bronchi, len(places)), replace=False)]
        spine = float(self.body.spine_y(0.6 * p.height_mm))
        tubes = [np.empty((0, 8))]
        for iz, iy, ix in starts:
            start = np.array([z_mm[iz], frame.y_mm[iy], frame.x_mm[ix]])
            root = np.array([0.555 * p.height_mm, spine - 30.0, np.copysign(47.0 * p.cage_width_mm / 128.0, start[2])])
            way = root - start
            length = float(np.linalg.norm(way))
            steps = np.linspace(0.0, min(generator.uniform(18.0, 38.0), 0.7 * length), 9)[:, None]
            points = start + steps * way / max(length, 1e-6) + generator.normal(0.0, 1.1, (9, 3))
            beads = generator.uniform(0.9, 2.4, 9) * np.linspace(0.8, 1.15, 9)
            at = (points[:4] - (z_mm[0], frame.y_mm[0], frame.x_mm[0])) / COARSE_MM
            reached = float(map_coordinates(values, at.T, order=1, mode="nearest").mean()) - self.cut
            opened = np.clip(reached / 0.5 + 0.3, 0.0, 1.0)
            if opened > 0.25:
                tubes.append(chain(points, beads * opened))
        return np.concatenate(tubes)

    def _lungs(
        self, hu: NDArray[np.float32], z: float, polar: dict[str, Floats], frame: Frame, lung: Floats, share: Floats
    ) -> None:
        super()._lungs(hu, z, polar, frame, lung, share)
        if not share.any() or self.fibrosis.extent <= 0:
            return
        f, pixel, seed = self.fibrosis, frame.pixel_mm, self.parameters.seed * 31
        above = self._susceptibility(z, polar, frame) - self.cut
        diseased = np.clip(above / FRONT + 0.5, 0.0, 1.0) * share
        cystic = np.clip((above - HONEYCOMB) / FRONT + 0.5, 0.0, 1.0) * share
        inside = diseased > 0
        grain = lattice_noise(z, frame.y_mm, frame.x_mm, cell_mm=3.1, seed=seed + 42)
        # Disease is added to the lung: vessels and bronchi that are denser already stay.
        blend(hu, 0.85 * diseased, np.maximum(hu, f.glass_hu + 45.0 * grain))
        # Lines thicken from the front towards the old disease.
        walls = wall_distance(z, frame.y_mm, frame.x_mm, inside, cell_mm=f.lines_mm, seed=seed + 43)
        lines = np.maximum(sheet_cover(walls, 1.0, pixel), sheet_cover(walls, 1.8, pixel) * np.clip(above, 0.0, 1.0))
        blend(hu, lines * diseased, np.maximum(hu, f.lines_hu))
        bronchi = self._bronchi
        if len(bronchi):
            wall = bronchi.copy()
            wall[:, 6:8] += 1.0
            blend(hu, tube_coverage(wall, z, frame.y_mm, frame.x_mm) * share, -90.0)
            blend(hu, tube_coverage(bronchi, z, frame.y_mm, frame.x_mm) * share, -965.0)
        cysts = wall_distance(z, frame.y_mm, frame.x_mm, cystic > 0, cell_mm=f.cysts_mm, seed=seed + 44)
        septa = sheet_cover(cysts, 1.3, pixel)
        blend(hu, cystic, -930.0 + (-40.0 + 930.0) * septa)
        # The visceral pleura thickens over the disease.
        rind = sheet_cover(lung + 0.4, 0.8, pixel) * diseased
        blend(hu, rind, np.maximum(hu, -60.0))

    def masks(self, z_mm: Floats, frame: Frame) -> dict[str, NDArray[np.bool_]]:
        """ "lungs", "right lung", "left lung", "fibrosis" and the "honeycombing" in it, [z, y, x]."""
        names = ("lungs", "right lung", "left lung", "fibrosis", "honeycombing")
        masks = {name: np.zeros((len(z_mm), *frame.shape), dtype=bool) for name in names}
        p = self.parameters
        for index, z in enumerate(z_mm):
            polar, lung = self.lung_plane(float(z), frame)
            inside = lung < 0
            # The mediastinum's thin front junction runs a little left of the middle, see `Mediastinum.envelope`.
            back = float(self.body.spine_y(float(z)))
            share = np.clip((polar["y"] + p.cage_depth_mm) / (back + p.cage_depth_mm), 0.0, 1.0)
            left = np.broadcast_to(polar["x"] > 5.0 * (1.0 - share), inside.shape)
            above = self._susceptibility(float(z), polar, frame) - self.cut
            masks["lungs"][index] = inside
            masks["right lung"][index], masks["left lung"][index] = inside & ~left, inside & left
            masks["fibrosis"][index] = inside & (above > 0)
            masks["honeycombing"][index] = inside & (above > HONEYCOMB)
        return masks
