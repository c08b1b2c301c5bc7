"""Simulated smokers for the benchmark of endpoints: emphysema, calcium and nodules of known truth, six kernels.

Each smoker is scanned once, slices of 1 mm through heart and lungs, and reconstructed with every kernel. Slices of 3 mm
are means of three: raw data are averaged after the logarithm and reconstruction is linear, so that both are one. The
scans lie in `runs/endpoints`, made once; two smokers calibrate, the others are judged.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.results import ROOT
from concordct.scanner.acquisition import Acquisition
from concordct.scanner.frame import Frame, Stack
from concordct.scanner.patients import sample_parameters
from concordct.scanner.scan import simulate_pair
from concordct.scanner.smokers import SmokersChest, digital_smoker
from concordct.volumes.place import atomic_file
from concordct.volumes.volume import Volume

FOLDER = ROOT / "runs" / "endpoints"
SEED, SMOKERS, CALIBRATE = 41, 9, 2
FRAME, SLICES = Frame((448, 448), 0.8), 12
#: Source and target. Sharp to soft is what endpoints are converted by; the last is the hard way round.
PAIRS = (("B50f", "B30f"), ("LUNG", "STANDARD"), ("Br40", "Bl64"))
KERNELS = tuple(dict.fromkeys(name for pair in PAIRS for name in pair))
#: Height of the first slice as a share of the chest's, where heart and lungs are both large.
LOW_SHARE = 0.36
#: Emphysema, share of the slices' lungs, and plaques, over the smokers in turn: from next to none to severe.
EMPHYSEMA = (0.05, 0.12, 0.004, 0.01, 0.02, 0.035, 0.05, 0.07, 0.10)
PLAQUES = (6, 12, 0, 1, 2, 3, 5, 7, 9)
#: Lungs in a slice of 1 mm, ml, about.
LUNG_ML_PER_MM = 28.0


@dataclass(frozen=True)
class Smoker:
    """One smoker's scan and truth."""

    number: int

    @property
    def name(self) -> str:
        """Pseudonym."""
        return f"smoker-{self.number:02d}"

    @property
    def low_mm(self) -> float:
        """Lower side of the first slice, on whole slices."""
        parameters = sample_parameters(np.random.default_rng((SEED, self.number, 4)))
        return float(round(LOW_SHARE * parameters.height_mm))

    @property
    def stack(self) -> Stack:
        """The slices of 1 mm."""
        return Stack(SLICES, 1.0, 1.0, self.low_mm + 0.5)

    @cached_property
    def body(self) -> SmokersChest:
        """The chest itself."""
        return digital_smoker(
            self.number,
            seed=SEED,
            z_mm=(self.low_mm, self.low_mm + SLICES),
            emphysema_ml=EMPHYSEMA[self.number] * LUNG_ML_PER_MM * SLICES,
            plaques=PLAQUES[self.number],
        )

    @property
    def mas(self) -> float:
        """Exposure: 30 to 110 mAs, screening to routine."""
        return float(np.random.default_rng((SEED, self.number, 9)).uniform(30.0, 110.0))

    @property
    def place(self) -> Path:
        """Where its scan lies."""
        return FOLDER / f"{self.name}.npz"


@dataclass(frozen=True, eq=False)
class Scanned:
    """What lies on disk of a smoker.

    Attributes
    ----------
    images : kernel -> volume of 1 mm slices.
    object : the object itself on the images' voxels, without blur and noise.
    lungs, heart, nodules : [z, y, x] masks on those voxels; nodules are numbered.
    emphysema_percent : volume of the holes as a share of the lungs', counted on a finer grid.
    calcium_mass_mg, nodule_ml : known from the shapes.
    """

    name: str
    images: dict[str, Volume]
    object: Volume
    lungs: NDArray[np.uint8]
    heart: NDArray[np.uint8]
    nodules: NDArray[np.uint8]
    emphysema_percent: float
    calcium_mass_mg: float
    nodule_ml: tuple[float, ...]


def scan(smoker: Smoker) -> None:
    """Scan a smoker unless that has been done."""
    if smoker.place.exists():
        return
    body, stack = smoker.body, smoker.stack
    acquisition = Acquisition(mas=smoker.mas, row_mm=1.0)
    images = simulate_pair(body, acquisition, frame=FRAME, stack=stack, kernels=KERNELS, seed=SEED)
    masks = body.masks(stack.z_mm, FRAME)
    # Two planes a slice: the object changes little within half a millimetre.
    planes = (stack.z_mm[:, None] + (-0.25, 0.25)).ravel()
    ideal = body.draw(planes, FRAME).reshape(SLICES, 2, *FRAME.shape).mean(axis=1)
    fine = body.masks(planes, FRAME)
    holes = 100.0 * (fine["emphysema"] & fine["lungs"]).sum() / fine["lungs"].sum()
    nodules = np.zeros((SLICES, *FRAME.shape), np.uint8)
    volumes = []
    voxel_ml = FRAME.pixel_mm**2 / 1000.0
    for label, nodule in enumerate(body.nodules, start=1):
        nodules[masks[nodule.name]] = label
        volumes.append(float(fine[nodule.name].sum()) * voxel_ml / 2)
    smoker.place.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(smoker.place, overwrite=True) as aside, aside.open("wb") as stream:
        np.savez_compressed(
            stream,
            **{f"hu {name}": image.hu.astype(np.int16) for name, image in images.items()},
            object=ideal.astype(np.float32),
            lungs=sides(masks["lungs"]),
            heart=masks["heart"].astype(np.uint8),
            nodules=nodules,
            truth=np.array([holes, sum(plaque.mass_mg for plaque in body.plaques), *volumes]),
        )


def sides(lungs: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """1 right, 2 left, by the body's middle plane; columns run to the patient's left."""
    found = lungs.astype(np.uint8)
    found[..., lungs.shape[2] // 2 :] *= 2
    return found


def read(smoker: Smoker) -> Scanned:
    """A smoker's scan from disk."""
    affine = smoker.stack.affine(FRAME)
    with np.load(smoker.place, allow_pickle=False) as found:
        truth = found["truth"]

        def volume(hu: NDArray[np.float32], kernel: str | None) -> Volume:
            return Volume(hu.astype(np.float32), affine, slice_thickness_mm=1.0, kernel=kernel)

        return Scanned(
            smoker.name,
            {name: volume(found[f"hu {name}"], name) for name in KERNELS},
            volume(found["object"], None),
            found["lungs"],
            found["heart"],
            found["nodules"],
            float(truth[0]),
            float(truth[1]),
            tuple(float(value) for value in truth[2:]),
        )


def thick(one: Scanned, group: int) -> Scanned:
    """The same scan in slices of `group` mm; a voxel is lung, heart or nodule where most of its parts are."""
    if group == 1:
        return one

    def merged(volume: Volume) -> Volume:
        affine = volume.affine.copy()
        affine[:3, 3] += (group - 1) / 2 * affine[:3, 0]
        affine[:3, 0] *= group
        hu = volume.hu.reshape(-1, group, *volume.shape[1:]).mean(axis=1)
        return dataclasses.replace(volume, hu=hu.astype(np.float32), affine=affine, slice_thickness_mm=float(group))

    def most(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.median(labels.reshape(-1, group, *labels.shape[1:]), axis=1).astype(np.uint8)

    return dataclasses.replace(
        one,
        images={name: merged(image) for name, image in one.images.items()},
        object=merged(one.object),
        lungs=most(one.lungs),
        heart=most(one.heart),
        nodules=most(one.nodules),
    )


def smokers(*, progress: Callable[[str], None] | None = None) -> list[Smoker]:
    """Everyone, scanned where that has not been done."""
    found = [Smoker(number) for number in range(SMOKERS)]
    for smoker in found:
        if not smoker.place.exists() and progress is not None:
            progress(f"scanning {smoker.name}")
        scan(smoker)
    return found
