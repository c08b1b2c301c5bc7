"""Studies to learn any kernel pair from: random kernels, doses, pixels and bodies, several kernels of each raw data.

Training on named kernels would teach those kernels. A study draws its own; no preset of `kernels.py` is among
them, so presets stay what a test has not seen. Bodies are drawn and projected once and scanned under several protocols,
since most of the time goes into drawing. Two in three bodies get fine structure on top of the chest's own, since
the chest is smoother than tissue.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from concordct.errors import ConcordctError
from concordct.scanner.acquisition import Acquisition, detect, project, to_parallel
from concordct.scanner.frame import Frame
from concordct.scanner.kernels import Kernel
from concordct.scanner.patients import digital_patient
from concordct.scanner.reconstruction import digitize, reconstruct
from concordct.scanner.scan import Subject, drawing_frame

KERNELS = 4
SUBJECTS = 2
SLICES_OF_SUBJECT = 4
PROTOCOLS = 3
#: Image of a study, pixels: a part of the body, so that more bodies fit into the same time.
EDGE = 384
#: Pixel that drawings are fine enough for, mm.
FINEST_MM = 0.6
#: Patients of studies are numbered from here; cohorts count from 1.
FIRST_PATIENT = 50_000


@dataclass(frozen=True)
class Textured:
    """A subject with fine structure added: clutter of small blobs and a field with a power-law spectrum.

    Attributes
    ----------
    amplitude_hu : standard deviation of the field inside tissue, HU; 0 adds nothing at all.
    slope : the field's power falls as f^-slope.
    blobs_per_cm2 : small round things of 0.4 to 3 mm, some of them as dense as bone.
    """

    subject: Subject
    amplitude_hu: float
    slope: float
    blobs_per_cm2: float
    seed: int

    @property
    def key(self) -> str:
        """Identity of the subject."""
        return self.subject.key

    @property
    def height_mm(self) -> float:
        """Extent along z, mm."""
        return self.subject.height_mm

    @property
    def reach_mm(self) -> tuple[float, float]:
        """(y, x) half extents, mm."""
        return self.subject.reach_mm

    def masks(self, z_mm: NDArray[np.float64], frame: Frame) -> dict[str, NDArray[np.bool_]]:
        """The subject's own masks."""
        return self.subject.masks(z_mm, frame)

    def draw(self, z_mm: NDArray[np.float64], frame: Frame) -> NDArray[np.float32]:
        """[z, y, x] HU; what is added changes every 10 mm."""
        hu = self.subject.draw(z_mm, frame)
        if self.amplitude_hu <= 0:
            return hu
        for plane, z in zip(hu, z_mm, strict=True):
            generator = np.random.default_rng((self.seed, int(z // 10.0)))
            inside = plane > -950
            share = np.clip((plane + 1000) / 1000, 0.0, 1.0)
            plane += np.where(inside, share * self._field(generator, frame) + self._blobs(generator, frame), 0)
        return hu

    def _field(self, generator: np.random.Generator, frame: Frame) -> NDArray[np.float32]:
        white = np.fft.rfft2(generator.standard_normal(frame.shape, dtype=np.float32))
        fy, fx = np.fft.fftfreq(frame.shape[0], frame.pixel_mm), np.fft.rfftfreq(frame.shape[1], frame.pixel_mm)
        f = np.maximum(np.hypot(fy[:, None], fx[None]), 0.02)
        field = np.fft.irfft2(white * f ** (-self.slope / 2), frame.shape)
        return np.asarray(field * (self.amplitude_hu / field.std()), np.float32)

    def _blobs(self, generator: np.random.Generator, frame: Frame) -> NDArray[np.float32]:
        added = np.zeros(frame.shape, np.float32)
        area_cm2 = frame.shape[0] * frame.shape[1] * frame.pixel_mm**2 / 100
        for radius_mm in (0.4, 0.8, 1.5, 3.0):
            count = generator.poisson(self.blobs_per_cm2 * area_cm2 / 4)
            points = np.zeros(frame.shape, np.float32)
            rows, columns = (generator.integers(0, n, count) for n in frame.shape)
            points[rows, columns] = generator.choice(
                (-60, -30, 30, 60, 120, 400), count, p=(0.2, 0.2, 0.2, 0.2, 0.1, 0.1)
            )
            sigma = radius_mm / frame.pixel_mm / 1.5
            added += ndimage.gaussian_filter(points, sigma) * np.float32(2 * np.pi * sigma**2)
        return added


@dataclass(frozen=True)
class Protocol:
    """How the bodies of a study are scanned and reconstructed.

    Attributes
    ----------
    acquisition : of the first subject; only the exposure differs for the others.
    exposures_mas : of each subject, mAs.
    pixel_mm : of the images; the slice thickness is the detector row's.
    kernels : drawn for this protocol, the sharpest first.
    """

    acquisition: Acquisition
    exposures_mas: tuple[float, ...]
    pixel_mm: float
    kernels: tuple[Kernel, ...]


def sample_kernel(generator: np.random.Generator, name: str) -> Kernel:
    """A kernel between the softest body and the sharpest lung kernel; one in five has an iterative-like step."""
    while True:
        mtf50 = float(generator.uniform(2.8, 8.2))
        mtf10 = mtf50 + float(generator.uniform(1.2, 3.4))
        try:
            return Kernel(
                name,
                round(mtf50, 3),
                round(mtf10, 3),
                round(mtf10 * float(generator.uniform(1.05, 1.5)), 3),
                round(float(generator.choice((0.0, 0.0, 1.0)) * generator.uniform(0.05, 0.9)), 3),
                round(float(generator.uniform(2.5, 5.0)), 3),
                "drawn",
                "drawn at random",
                int(generator.integers(1, 5)) if generator.random() < 0.2 else 0,
            )
        except ConcordctError:
            continue  # the three figures contradict each other


def sample_protocol(generator: np.random.Generator, geometry: Acquisition) -> Protocol:
    """Draw exposures, voltage, thickness, pixels and kernels."""
    median = 100 * np.exp(0.5 * generator.normal())
    exposures = median * np.exp(0.4 * generator.normal(size=SUBJECTS))
    # Spread over the range, so that pairs reach from next neighbours to the two ends.
    drawn = sorted((sample_kernel(generator, "drawn") for _ in range(2 * KERNELS)), key=lambda k: -k.mtf50_lp_cm)
    return Protocol(
        dataclasses.replace(
            geometry,
            electronic_noise=round(float(generator.uniform(4, 20)), 1),
            row_mm=float(generator.choice((0.75, 1.0, 1.0, 1.5, 2.0, 3.0, 5.0))),
        ),
        tuple(round(float(np.clip(mas, 15, 500)), 1) for mas in exposures),
        round(float(generator.uniform(FINEST_MM, 0.95)), 4),
        tuple(dataclasses.replace(k, name=f"kernel-{i}") for i, k in enumerate(drawn[::2])),
    )


def scan_study(number: int, *, seed: int) -> tuple[tuple[Protocol, ...], NDArray[np.int16]]:
    """Study `number` of the population that a seed stands for.

    Slices are single planes: partial volume smooths anatomy, not noise, and anatomy is the cheaper of the two to learn.

    Returns
    -------
    protocols : `PROTOCOLS` of them.
    images : [protocol, kernel, slice, y, x] int16 HU; the slices of the first subject, then those of the second.
    """
    generator = np.random.default_rng((seed, number, 7))
    geometry = Acquisition(
        kvp=float(generator.choice((80.0, 100.0, 120.0, 120.0, 140.0))),
        focal_spot_mm=float(generator.choice((0.5, 0.7, 0.9, 1.1))),
        channel_mm=float(generator.choice((0.5, 0.55, 0.6))),
        beam_hardening=True,
    )
    protocols = tuple(sample_protocol(generator, geometry) for _ in range(PROTOCOLS))
    images = np.empty((PROTOCOLS, KERNELS, SUBJECTS * SLICES_OF_SUBJECT, EDGE, EDGE), np.int16)
    for index in range(SUBJECTS):
        subject = _subject(FIRST_PATIENT + SUBJECTS * number + index, seed, generator)
        fine = drawing_frame(subject, Frame((EDGE, EDGE), FINEST_MM))
        edges = np.linspace(0.1, 0.9, SLICES_OF_SUBJECT + 1) * subject.height_mm
        heights = generator.uniform(edges[:-1], edges[1:])
        integrals = project(subject.draw(heights, fine), fine, geometry)
        place = slice(index * SLICES_OF_SUBJECT, (index + 1) * SLICES_OF_SUBJECT)
        for which, protocol in enumerate(protocols):
            acquisition = dataclasses.replace(protocol.acquisition, mas=protocol.exposures_mas[index])
            room = max(subject.reach_mm[1] - EDGE * protocol.pixel_mm / 2, 0.0)
            centre = (float(generator.uniform(-20, 20)), float(generator.uniform(-room, room)))
            raw = detect(integrals, acquisition, generator.spawn(SLICES_OF_SUBJECT))
            made = reconstruct(
                to_parallel(raw, acquisition),
                acquisition,
                Frame((EDGE, EDGE), protocol.pixel_mm, centre),
                protocol.kernels,
            )
            for kernel, image in enumerate(made):
                images[which, kernel, place] = np.rint(digitize(image))
    return protocols, images


def _subject(number: int, seed: int, generator: np.random.Generator) -> Textured:
    return Textured(
        digital_patient(number, seed=seed),
        amplitude_hu=float(generator.choice((0.0, 1.0, 1.0)) * generator.uniform(3, 25)),
        slope=float(generator.uniform(0.8, 2.4)),
        blobs_per_cm2=float(generator.choice((0.0, 0.5, 2.0))),
        seed=int(generator.integers(2**31)),
    )
