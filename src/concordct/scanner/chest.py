"""A digital chest: from recorded parameters to HU planes at any height, one body from slice to slice.

The wall is drawn in polar coordinates around the body's axis (`body.py`), ribs, sternum and vertebrae as bones with
cortex and marrow (`skeleton.py`), the mediastinum as organs in fat (`mediastinum.py`), the lungs as what is
left of the cage above the diaphragm: parenchyma, arteries, veins, airways (`trees.py`), fissures, emphysema, nodules
(`nodules.py`). Proportions were set by eye against chest CTs; they are no measurement of anybody.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from concordct.scanner.body import Body, ChestParameters, angle_bump
from concordct.scanner.frame import Frame
from concordct.scanner.mediastinum import Mediastinum
from concordct.scanner.nodules import Nodule
from concordct.scanner.shapes import (
    Floats,
    blend,
    cover,
    lattice_noise,
    tube_coverage,
    tube_plane,
    tube_points,
)
from concordct.scanner.skeleton import Skeleton
from concordct.scanner.trees import companion, grow_tree

#: How far around an organ its distance is followed, mm.
REACH_MM = 40.0


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

    @cached_property
    def body(self) -> Body:
        """The wall and its plan."""
        return Body(self.parameters)

    @cached_property
    def _skeleton(self) -> Skeleton:
        return Skeleton(self.body)

    @cached_property
    def _mediastinum(self) -> Mediastinum:
        return Mediastinum(self.body)

    def _lung_points(self, points: Floats) -> Floats:
        """Signed distance into the lungs (negative inside) of points [point, (z, y, x)]."""
        z, y, x = points.T
        angle = np.arctan2(x, -y)
        cage = np.hypot(y, x) - self.body.cage_radius(z, angle) + 2.2
        organs = [tube_points(tubes, points) - 3.0 for tubes in self._mediastinum.organs.values()]
        envelope = self._mediastinum.envelope(z, y, x, organs)
        return np.maximum(np.maximum(cage, -envelope), (self._mediastinum.diaphragm(y, x) - z) * 0.7)

    @cached_property
    def _trees(self) -> dict[str, Floats]:
        """Vessels and airways of both lungs, [segment, 8]."""
        p = self.parameters
        generator = np.random.default_rng((p.seed, 3))
        ys = float(self.body.spine_y(0.6 * p.height_mm))
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
            tubes, feeds = grow_tree(root, ends[: p.vessels], end_radius_mm=0.38, wander=0.045, generator=generator)
            vessels.append(tubes)
            airways.append(companion(tubes, feeds, least_feeds=max(p.vessels // 40, 4), calibre=0.8))
            low = root * (0.0, 1.0, 1.0) + (0.47 * p.height_mm, -2.0, 0.0)
            tubes, _ = grow_tree(low, ends[p.vessels :], end_radius_mm=0.38, wander=0.045, generator=generator)
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
            holes = 0.75 * noise(6.1, 5) + 0.6 * noise(3.7, 6) + 0.5 * noise(2.3, 9) + 0.5 * noise(40.0, 7)
            share = np.clip((holes - np.interp(reach, [0.0, 0.1, 0.3, 0.6], [3.2, 1.7, 0.8, 0.1])) / 0.5, 0.0, 1.0)
            hu = hu + share * (-975.0 - hu)
        # Fissures: thin sheets that rise backwards (oblique, both) and lie level (right, front).
        bend = 9.0 * np.sin(x / 37.0 + p.seed) + 4.0 * noise(45.0, 8) + np.where(x < 0, -9.0, 9.0)
        oblique = (z - (0.44 * p.height_mm + 0.95 * (y + 10.0)) + bend) / 1.38
        sheet = np.exp(-((oblique / 0.55) ** 2))
        level = np.where((x < 0) & (oblique > 0), (z - 0.52 * p.height_mm + 0.5 * bend) / 1.0, 99.0)
        return hu + 210.0 * np.maximum(sheet, np.exp(-((level / 0.6) ** 2)))

    def draw(self, z_mm: Floats, frame: Frame) -> NDArray[np.float32]:
        """[z, y, x] HU on planes at the heights given."""
        return np.stack([self._plane(float(z), frame) for z in z_mm])

    def _plane(self, z: float, frame: Frame) -> NDArray[np.float32]:
        p = self.parameters
        polar = self.body.polar(z, frame)
        y, x, rho = polar["y"], polar["x"], polar["rho"]
        pixel = frame.pixel_mm
        noise = lambda cell, k: lattice_noise(z, frame.y_mm, frame.x_mm, cell_mm=cell, seed=p.seed * 31 + k)  # noqa: E731
        coarse, middle, fine = noise(19.0, 20), noise(6.0, 21), noise(2.2, 22)
        hu = np.full(frame.shape, -1000.0, dtype=np.float32)
        if p.table:
            self._couch(hu, y, x, self.body.back_mm, pixel)
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
        dome = self._mediastinum.diaphragm(y, x)
        self._belly(hu, z, polar, pixel, dome, coarse, middle)
        organs = {
            name: tube_plane(tubes, z, frame.y_mm, frame.x_mm, reach_mm=REACH_MM)
            for name, tubes in self._mediastinum.organs.items()
        }
        envelope = self._mediastinum.envelope(np.float32(z), y, x, [d - 3.0 for d in organs.values()])
        inside = np.maximum(rho - polar["cage"] + 1.0, envelope)
        blend(hu, cover(inside, pixel) * cover((dome - z) * 0.7, pixel), -92.0 + 9.0 * middle + 8.0 * fine)
        lung = np.maximum(np.maximum(rho - polar["cage"] + 2.2, -envelope), (dome - z) * 0.7)
        lung_share = cover(lung, pixel)
        self._lungs(hu, z, polar, frame, lung, lung_share)
        self._heart_and_vessels(hu, z, polar, pixel, organs, middle, fine)
        bones, cartilage, canal = self._skeleton.distances(z, polar, frame)
        body = cover(rho - polar["skin"] + 2.0, pixel)
        spine_zone = np.hypot(x, (y - float(self.body.spine_y(z))) * 1.05) - 19.5
        blend(
            hu,
            cover(spine_zone, pixel) * cover(np.abs(y - float(self.body.spine_y(z))) - 13.5, pixel),
            85.0 + 6.0 * fine,
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
        chambers = self._mediastinum.chambers(np.float32(z), polar["y"], polar["x"])
        above = cover((self._mediastinum.diaphragm(polar["y"], polar["x"]) - z) * 0.7 - 2.0, pixel)
        muscle = p.blood_hu if p.blood_hu < 80 else 90.0
        for index, chamber in enumerate(chambers):
            blend(hu, cover(chamber, pixel) * above, muscle + 3.0 + 4.0 * fine)
            thickness = 9.0 if index == 0 else 3.0
            blend(hu, cover(chamber + thickness + 0.5 * middle, pixel) * above, p.blood_hu + 3.0 * fine)
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
        middle = np.exp(-(((u - 0.42) / 0.12) ** 2)) * angle_bump(polar["angle"], 0.72, 0.22)
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

    def masks(self, z_mm: Floats, frame: Frame) -> dict[str, NDArray[np.bool_]]:
        """Each nodule and the lungs (without nodules taken out), [z, y, x]."""
        masks: dict[str, NDArray[np.bool_]] = {
            nodule.name: np.stack([nodule.mask(float(z), frame) for z in z_mm]) for nodule in self.nodules
        }
        lungs = []
        for z in z_mm:
            polar = self.body.polar(float(z), frame)
            y, x = polar["y"], polar["x"]
            organs = [
                tube_plane(tubes, float(z), frame.y_mm, frame.x_mm, reach_mm=REACH_MM) - 3.0
                for tubes in self._mediastinum.organs.values()
            ]
            envelope = self._mediastinum.envelope(np.float32(z), y, x, organs)
            outside = np.maximum(
                np.maximum(polar["rho"] - polar["cage"] + 2.2, -envelope), self._mediastinum.diaphragm(y, x) - z
            )
            lungs.append(outside < 0)
        masks["lungs"] = np.stack(lungs)
        return masks

    def lung_depth(self, points: Floats) -> NDArray[Any]:
        """How deep points [point, (z, y, x)] lie inside the lungs, mm; negative outside."""
        return -self._lung_points(np.asarray(points, dtype=np.float64))
