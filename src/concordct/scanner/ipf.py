"""Patients with idiopathic pulmonary fibrosis, scanned twice, about a year apart or at any interval that is asked for.

Everything about patient `number` follows from (number, seed). How fast the disease grows is drawn first; tests at the
first visit know a part of it that the first scan does not show (`GAS_TRANSFER_PER_GROWTH`), which is what a method that
reads them can gain, and the decline of the tests follows it with noise. These strengths are chosen, not measured: a
result on these patients says what a method can use, not how much the tests of real patients tell.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from concordct.errors import ConcordctError
from concordct.scanner.fibrosis import Fibrosis, FibroticChest
from concordct.scanner.frame import LENGTH_TOLERANCE_MM, Frame, Stack
from concordct.scanner.patients import record, sample_parameters
from concordct.scanner.shapes import Floats
from concordct.volumes.seeds import SliceSeeds
from concordct.volumes.volume import AIR_HU, Volume

TIMES = ("initial", "followup")
#: Growth of the diseased share of the lungs per year from which a patient counts as progressive.
PROGRESSIVE_GROWTH = 0.04
#: Gas transfer at the first visit, per cent of predicted: what the visible extent (0 to 1) takes, what the growth to
#: come takes (per unit of extent per year), and the noise (SD) that hides it.
GAS_TRANSFER_PER_EXTENT, GAS_TRANSFER_PER_GROWTH, GAS_TRANSFER_NOISE = 105.0, 170.0, 5.0
#: The same of forced vital capacity.
CAPACITY_PER_EXTENT, CAPACITY_PER_GROWTH, CAPACITY_NOISE = 85.0, 60.0, 5.0
#: Decline over the interval, per cent of predicted per unit of growth, and its noise (SD).
CAPACITY_DECLINE, CAPACITY_DECLINE_NOISE = 75.0, 2.0
GAS_DECLINE, GAS_DECLINE_NOISE = 95.0, 3.5
#: Share of the lungs' volume lost per unit of growth, which an affine registration can hide.
SHRINKAGE = 0.45
#: Tests other than FVC that were not done.
MISSING = 0.08
#: Slices thicker than this are averaged from several planes, mm; more than three add time and little else.
PLANE_MM, MOST_PLANES = 1.5, 3
#: In-plane grain of the drawn noise, pixels.
NOISE_GRAIN = 0.6


@dataclass(frozen=True)
class Pose:
    """How the body lies and breathes in one scan, against the plan that it is drawn from.

    Attributes
    ----------
    length : of the chest, as a factor of the plan's; deep breath and lost lung volume both change it.
    width : in-plane factor about the back, which the couch holds.
    lift_mm : how far the lower chest is displaced beyond that, a smooth bump that no affine map undoes.
    lean : (y, x) slope of the body's axis against the scanner's, mm per mm.
    shift_mm : (y, x) displacement.
    """

    length: float
    width: float
    lift_mm: float
    lean: tuple[float, float]
    shift_mm: tuple[float, float]


@dataclass(frozen=True)
class IpfScan:
    """The patient at one time, as it can be scanned; see `scan.Subject`."""

    key: str
    chest: FibroticChest
    pose: Pose

    @property
    def height_mm(self) -> float:
        """Extent along z, mm."""
        return self.chest.height_mm * self.pose.length

    @property
    def reach_mm(self) -> tuple[float, float]:
        """(y, x) half extents that hold the body and the couch, mm."""
        return 232.0, 258.0

    def plan(self, z_mm: float, frame: Frame) -> tuple[float, Frame]:
        """Where a plane of the scanner lies in the plan of the body: height, and pixels."""
        pose, height = self.pose, self.chest.height_mm
        z = z_mm / pose.length
        z += pose.lift_mm * float(np.sin(np.pi * np.clip(z / height, 0.0, 1.0)))
        axis = [s + k * (z - height / 2) for s, k in zip(pose.shift_mm, pose.lean, strict=True)]
        back = self.chest.body.back_mm
        y = back + (frame.centre_mm[0] - axis[0] - back) / pose.width
        x = (frame.centre_mm[1] - axis[1]) / pose.width
        return z, Frame(frame.shape, frame.pixel_mm / pose.width, (y, x))

    def draw(self, z_mm: Floats, frame: Frame) -> NDArray[np.float32]:
        """[z, y, x] HU on planes at the heights given."""
        planes = [self.plan(float(z), frame) for z in z_mm]
        return np.concatenate([self.chest.draw(np.array([z]), of_body) for z, of_body in planes])

    def masks(self, z_mm: Floats, frame: Frame) -> dict[str, NDArray[np.bool_]]:
        """ "lungs", "right lung", "left lung", "fibrosis", "honeycombing", each [z, y, x]."""
        planes = [self.plan(float(z), frame) for z in z_mm]
        found = [self.chest.masks(np.array([z]), of_body) for z, of_body in planes]
        return {name: np.concatenate([one[name] for one in found]) for name in found[0]}


@dataclass(frozen=True)
class Tests:
    """Lung function on one day, as a table's cells; None where a test was not done.

    Attributes
    ----------
    weeks : since the first scan.
    fvc_ml, fev1_ml : ml; pef_l_min : l/min; fvc_percent, dlco_percent : per cent of predicted.
    """

    weeks: float
    fvc_ml: float
    fvc_percent: float
    fev1_ml: float | None
    pef_l_min: float | None
    dlco_percent: float | None


@dataclass(frozen=True)
class IpfSubject:
    """A patient: two scans, the tests beside them, and what became of the disease.

    Attributes
    ----------
    number, seed : who it is.
    chest : the body with the disease of the first scan.
    poses : of the two scans.
    weeks : between them.
    growth : of the diseased share of the lungs, per year.
    age_years, sex, smoking : of the person.
    tests : at the first scan, half way, and at the second.
    """

    number: int
    seed: int
    chest: FibroticChest
    poses: tuple[Pose, Pose]
    weeks: float
    growth: float
    age_years: float
    sex: str
    smoking: str
    tests: tuple[Tests, ...]

    @property
    def name(self) -> str:
        """Pseudonym, e.g. "ipf-0007"."""
        return f"ipf-{self.number:04d}"

    @property
    def label(self) -> str:
        """ "progressive" or "stable"."""
        return "progressive" if self.growth >= PROGRESSIVE_GROWTH else "stable"

    @property
    def extents(self) -> tuple[float, float]:
        """Diseased share of the lungs at both scans."""
        first = self.chest.fibrosis.extent
        return first, min(first + self.growth * self.weeks / 52.0, 0.75)

    @cached_property
    def initial(self) -> IpfScan:
        """The first scan."""
        return IpfScan(f"{self.name}-initial", self.chest, self.poses[0])

    @cached_property
    def followup(self) -> IpfScan:
        """The second scan."""
        return IpfScan(f"{self.name}-followup", self.chest.at_extent(self.extents[1]), self.poses[1])

    def scan(self, time: str) -> IpfScan:
        """ "initial" or "followup"."""
        if time not in TIMES:
            raise ConcordctError(f"time {time!r}, expected {' or '.join(TIMES)}")
        return self.initial if time == "initial" else self.followup

    def grid(
        self, time: str, spacing_mm: tuple[float, float, float], shape: tuple[int, int, int] | None = None
    ) -> tuple[Frame, Stack]:
        """Pixels and slices of `draw_volume`; without a shape the whole chest between the arms."""
        depth, across = spacing_mm[0], spacing_mm[1:]
        if abs(across[0] - across[1]) > LENGTH_TOLERANCE_MM:
            raise ConcordctError(f"pixels of {across[0]:g} x {across[1]:g} mm, expected square ones")
        scan = self.scan(time)
        size = shape or (int(scan.height_mm / depth), round(330.0 / across[0]), round(420.0 / across[0]))
        return Frame(size[1:], across[0]), Stack(size[0], depth, depth)

    def draw_volume(
        self,
        time: str,
        spacing_mm: tuple[float, float, float],
        shape: tuple[int, int, int] | None = None,
        *,
        noise_hu: float = 12.0,
    ) -> Volume:
        """HU drawn on a grid without a scanner: seconds instead of minutes, for training.

        Parameters
        ----------
        time : "initial" or "followup".
        spacing_mm : (z, y, x), mm; y and x the same.
        shape : (z, y, x) voxels from the lowest plane up, around the isocentre; None for the whole chest.
        noise_hu : standard deviation of the noise in a voxel, whatever the spacing; keyed by seed, time and slice.
        """
        scan = self.scan(time)
        frame, stack = self.grid(time, spacing_mm, shape)
        parts = min(max(round(spacing_mm[0] / PLANE_MM), 1), MOST_PLANES)
        offsets = ((np.arange(parts) + 0.5) / parts - 0.5) * spacing_mm[0]
        seeds = SliceSeeds(self.seed, scan.key)
        planes = []
        for index, z in enumerate(stack.z_mm):
            plane = scan.draw(z + offsets, frame).mean(axis=0)
            if noise_hu > 0:
                noise = gaussian_filter(seeds.at(index).standard_normal(frame.shape), NOISE_GRAIN)
                plane = plane + (noise_hu / noise.std()) * noise
            planes.append(np.maximum(np.rint(plane), AIR_HU - 24.0))
        return Volume(np.stack(planes).astype(np.float32), stack.affine(frame), slice_thickness_mm=spacing_mm[0])

    def volume_masks(
        self, time: str, spacing_mm: tuple[float, float, float], shape: tuple[int, int, int] | None = None
    ) -> dict[str, NDArray[np.bool_]]:
        """The masks of `IpfScan.masks` on the grid of `draw_volume`."""
        frame, stack = self.grid(time, spacing_mm, shape)
        return self.scan(time).masks(stack.z_mm, frame)

    def record(self) -> dict[str, Any]:
        """Everything that the patient is drawn from, ready for JSON."""
        return {
            **record(self.chest),
            "fibrosis": dataclasses.asdict(self.chest.fibrosis),
            "poses": [dataclasses.asdict(pose) for pose in self.poses],
            "weeks": self.weeks,
            "growth_per_year": self.growth,
            "extents": list(self.extents),
            "label": self.label,
            "person": {"age_years": self.age_years, "sex": self.sex, "smoking": self.smoking},
            "tests": [dataclasses.asdict(tests) for tests in self.tests],
        }


def ipf_subject(number: int, *, seed: int, weeks_between: tuple[float, float] | None = None) -> IpfSubject:
    """Patient `number` of the population that a seed stands for; neighbours do not change it.

    Parameters
    ----------
    weeks_between : shortest and longest interval between the scans, drawn evenly by its logarithm; None for about a
        year (30 to 80 weeks). Body, disease and the first tests are the same either way.
    """
    g = np.random.default_rng((seed, number, 7))
    parameters = sample_parameters(g)
    # Unenhanced, as scans for interstitial lung disease are; emphysema would blur what the extent means.
    parameters = dataclasses.replace(
        parameters, blood_hu=float(g.uniform(36, 48)), emphysema=min(parameters.emphysema, 0.08), vessels=900
    )
    sex = "female" if parameters.glandular > 0 else "male"
    progresses = g.random() < 0.5
    growth = float(
        np.clip(g.normal(0.12, 0.045), 0.02, 0.25) if progresses else np.clip(g.normal(0.01, 0.01), 0, 0.035)
    )
    fibrosis = Fibrosis(
        extent=float(np.clip(g.lognormal(np.log(0.17), 0.45), 0.05, 0.42)),
        reach_mm=float(g.uniform(15.0, 26.0)),
        basal=float(g.uniform(1.4, 2.2)),
        posterior=float(g.uniform(0.15, 0.45)),
        patches=float(g.uniform(0.25, 0.5)),
        glass_hu=float(g.uniform(-690.0, -590.0)),
        lines_mm=float(g.uniform(6.0, 8.5)),
        lines_hu=float(g.uniform(-260.0, -140.0)),
        cysts_mm=float(g.uniform(4.5, 7.0)),
        bronchi=int(g.integers(40, 80)),
    )
    weeks = float(round(np.clip(g.normal(52.0, 7.0), 30.0, 80.0)))
    if weeks_between is not None:
        low, high = weeks_between
        if not 0.0 < low <= high:
            raise ConcordctError(f"{low:g} to {high:g} weeks between scans, expected above 0 and in this order")
        weeks = float(round(np.exp(np.random.default_rng((seed, number, 8)).uniform(np.log(low), np.log(high)))))
    chest = FibroticChest(f"ipf-{number:04d}", parameters, fibrosis=fibrosis)
    lost = SHRINKAGE * growth * weeks / 52.0
    poses = (_pose(g, 0.0), _pose(g, lost))
    age = float(round(np.clip(g.normal(68.0, 7.5), 45.0, 88.0)))
    smoking = str(g.choice(("never", "ex", "current"), p=(0.3, 0.62, 0.08)))
    subject = IpfSubject(number, seed, chest, poses, weeks, growth, age, sex, smoking, ())
    return dataclasses.replace(subject, tests=_tests(subject, g))


def _pose(g: np.random.Generator, lost: float) -> Pose:
    breath = g.normal(0.0, 0.02)
    return Pose(
        length=float((1.0 + 1.3 * breath) * (1.0 - lost) ** 0.6),
        width=float((1.0 + 0.5 * breath) * (1.0 - lost) ** 0.2),
        lift_mm=float(g.normal(0.0, 1.5)),
        lean=(float(g.normal(0.0, 0.02)), float(g.normal(0.0, 0.02))),
        shift_mm=(float(g.normal(0.0, 5.0)), float(g.normal(0.0, 5.0))),
    )


def _tests(subject: IpfSubject, g: np.random.Generator) -> tuple[Tests, ...]:
    """Visits at the first scan, half way and at the second."""
    extent, growth = subject.extents[0], subject.growth
    size = subject.chest.height_mm / 275.0
    # Rounded from GLI's equations (Quanjer 2012, doi:10.1183/09031936.00080312) at average height.
    predicted = size * ((4150.0 if subject.sex == "male" else 2950.0) - 26.0 * (subject.age_years - 65.0))
    capacity = 98.0 - CAPACITY_PER_EXTENT * extent - CAPACITY_PER_GROWTH * growth + g.normal(0.0, CAPACITY_NOISE)
    gas = 92.0 - GAS_TRANSFER_PER_EXTENT * extent - GAS_TRANSFER_PER_GROWTH * growth + g.normal(0.0, GAS_TRANSFER_NOISE)
    first_second, flow = g.normal(0.82, 0.03), g.normal(125.0, 12.0)
    visits = []
    for weeks in (0.0, float(round(subject.weeks / 2)), subject.weeks):
        years = weeks / 52.0
        noise = (0.0, 0.0) if weeks == 0 else (g.normal(0.0, CAPACITY_DECLINE_NOISE), g.normal(0.0, GAS_DECLINE_NOISE))
        percent = float(np.clip(capacity - CAPACITY_DECLINE * growth * years + noise[0], 25.0, 140.0))
        transfer = float(np.clip(gas - GAS_DECLINE * growth * years + noise[1], 12.0, 140.0))
        fvc = predicted * percent / 100.0
        done = g.random(3) >= MISSING
        visits.append(
            Tests(
                weeks=weeks,
                fvc_ml=float(round(fvc)),
                fvc_percent=round(percent, 1),
                fev1_ml=float(round(fvc * min(first_second, 0.95))) if done[0] else None,
                pef_l_min=float(round(fvc / 1000.0 * flow)) if done[1] else None,
                dlco_percent=round(transfer, 1) if done[2] else None,
            )
        )
    return tuple(visits)
