"""One image and its endpoints: the masks that are found for it, and what a reader of the numbers has to know."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from concordct.endpoints.calcium import THICKNESS_MM, group_of_slices
from concordct.endpoints.catalogue import ENDPOINTS
from concordct.endpoints.endpoint import Endpoint
from concordct.endpoints.masks import EndpointMasks, endpoint_masks, measured
from concordct.errors import ConcordctError
from concordct.judging.stages import standardized, standardizer_for
from concordct.methods.models import load_model
from concordct.methods.standardizer import Mode
from concordct.radiomics.regions.lungs import LUNGS
from concordct.volumes.masks import read_regions
from concordct.volumes.region import Region
from concordct.volumes.scans import Scan, one_scan
from concordct.volumes.volume import Volume


@dataclass(frozen=True)
class MeasureJob:
    """One image to measure.

    Attributes
    ----------
    image, subject, stage : what stands in the columns of these names.
    path : a series folder or a volume file.
    lungs, heart, regions : mask files; None where lungs and heart are found in the image and no region is measured.
    masks_of : image in which lungs and heart are found instead: the partner of a pair, so that both have one mask.
    model : standardizes the image before it is measured; None measures it as it is.
    scan : the image, where its headers were read already; None reads them from `path`.
    """

    image: str
    subject: str
    stage: str
    path: Path
    lungs: Path | None = None
    heart: Path | None = None
    regions: Path | None = None
    masks_of: Path | None = None
    model: Path | None = None
    scan: Scan | None = field(default=None, compare=False, repr=False)

    def found(self) -> Scan:
        """The image.

        Raises
        ------
        ConcordctError : it is not there, or several are.
        """
        return one_scan(self.path) if self.scan is None else self.scan


@dataclass(frozen=True)
class Choice:
    """What is measured.

    Attributes
    ----------
    endpoints : names in `ENDPOINTS`, in order.
    allow : problems of a scan that may pass, see `Series.check`.
    mode : of the standardized image; None takes each endpoint's own.
    seed : of what a standardizer draws.
    """

    endpoints: tuple[str, ...] = tuple(ENDPOINTS)
    allow: frozenset[str] = frozenset()
    mode: Mode | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = [name for name in self.endpoints if name not in ENDPOINTS]
        if unknown or not self.endpoints:
            known = ", ".join(ENDPOINTS)
            raise ConcordctError(f"expected endpoints among {known}, found {', '.join(unknown) or 'none'}")


@dataclass(frozen=True)
class Row:
    """A line of the table: the image's own (region ""), or a region's."""

    region: str
    values: dict[str, float | None]


@dataclass(frozen=True)
class Outcome:
    """What became of one image: "done", "resumed" or "failed" with its reason; its rows and what is to be known."""

    image: str
    status: str
    reason: str = ""
    rows: tuple[Row, ...] = ()
    notes: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)


def measure_job(job: MeasureJob, scan: Scan, choice: Choice, step: Callable[[str, int], None] | None = None) -> Outcome:
    """Measure one image.

    Raises
    ------
    ConcordctError : an image that cannot be read, a mask of another geometry, no lung found.
    """
    tell = step or (lambda what, number: None)
    tell("reading", 0)
    volume = scan.read(allow=choice.allow)
    chosen = [ENDPOINTS[name] for name in choice.endpoints]
    tell("masks", 1)
    masks = masks_of(job, volume, chosen, choice.allow)
    images = images_of(job, scan, volume, choice)
    found: dict[str, float] = {}
    for number, endpoint in enumerate(chosen, start=2):
        tell(endpoint.name, number)
        if endpoint.needs != "region":
            found |= measured(endpoint, images(endpoint), masks)
    rows = [Row("", _plain(found))] if found else []
    regions = [endpoint for endpoint in chosen if endpoint.needs == "region"]
    if job.regions is not None and regions:
        for region in read_regions(job.regions, affine=volume.affine, shape=volume.shape):
            mask = region.mask.astype(np.uint8)
            rows.append(
                Row(
                    _region_name(region), _plain({k: v for e in regions for k, v in e.measure(images(e), mask).items()})
                )
            )
    if not rows:
        raise ConcordctError(f"{job.path}: expected a mask of regions for {choice.endpoints[0]}, found none")
    facts = {
        "kernel": volume.kernel,
        "slice_thickness_mm": volume.slice_thickness_mm,
        "spacing_mm": [round(value, 6) for value in volume.spacing_mm],
        "slices": volume.shape[0],
        "contrast_medium": masks.enhanced,
    }
    return Outcome(job.image, "done", rows=tuple(rows), notes=notes_of(volume, masks, chosen), facts=facts)


def images_of(job: MeasureJob, scan: Scan, volume: Volume, choice: Choice) -> Callable[[Endpoint], Volume]:
    """Which image an endpoint is measured in: the scan itself, or the standardized one in the endpoint's mode."""
    if job.model is None:
        return lambda endpoint: volume
    model = load_model(job.model)
    made: dict[Mode, Volume] = {}

    def image(endpoint: Endpoint) -> Volume:
        mode = choice.mode or endpoint.mode
        if mode not in made:
            made.clear()  # two more volumes of a chest would not fit beside the scan
            work = standardizer_for(scan, model, mode=mode)
            made[mode] = standardized(scan, volume, work, seed=choice.seed, allow=choice.allow)
        return made[mode]

    return image


def masks_of(job: MeasureJob, volume: Volume, chosen: Sequence[Endpoint], allow: Collection[str]) -> EndpointMasks:
    """The masks that the endpoints need: from files, else from the image or the partner that a job names."""
    needs = {endpoint.needs for endpoint in chosen}
    if not needs & {"lungs", "mediastinum"}:
        return EndpointMasks({}, None)
    lungs = None if job.lungs is None else _lungs_of(job.lungs, volume)
    heart = None
    if job.heart is not None:
        regions = read_regions(job.heart, affine=volume.affine, shape=volume.shape)
        heart = np.logical_or.reduce([region.mask for region in regions]).astype(np.uint8)
    where = volume
    if job.masks_of not in (None, job.path) and (lungs is None or heart is None):
        assert job.masks_of is not None
        where = one_scan(job.masks_of).read(allow=allow)
        if where.shape != volume.shape or not np.allclose(where.affine, volume.affine, atol=0.01):
            raise ConcordctError(
                f"{job.path}: expected the geometry of {job.masks_of}, {where.shape}, found {volume.shape} or another "
                "position"
            )
    try:
        return endpoint_masks(where, lungs=lungs, heart=heart)
    except ConcordctError as error:
        raise ConcordctError(f"{job.path}: {error}") from error


def _lungs_of(path: Path, volume: Volume) -> NDArray[np.uint8]:
    """Lung labels from a file: 1 right and 2 left, or told apart by the middle where there is one label alone."""
    regions = read_regions(path, affine=volume.affine, shape=volume.shape)
    labels = np.zeros(volume.shape, np.uint8)
    for region in regions:
        side = _side(region)
        if side is None:
            x = volume.affine[0, :3] @ np.moveaxis(np.indices(volume.shape, sparse=False), 0, -1)[region.mask].T
            labels[region.mask] = np.where(x < float(np.median(x)), LUNGS["right"], LUNGS["left"])
        else:
            labels[region.mask] = side
    return labels


def _side(region: Region) -> int | None:
    name = region.name.lower()
    for side, label in LUNGS.items():
        if side in name or (name.isdigit() and int(name) == label):
            return label
    return None


def _region_name(region: Region) -> str:
    return region.name if region.name == str(region.number) else f"{region.name} ({region.number})"


def notes_of(volume: Volume, masks: EndpointMasks, chosen: Sequence[Endpoint]) -> tuple[str, ...]:
    """What a reader of the numbers has to know."""
    names = {endpoint.name for endpoint in chosen}
    notes = []
    if masks.enhanced:
        notes.append(
            "contrast medium in the heart: calcium is not defined, and density endpoints (emphysema, fibrosis, mean "
            "density) do not compare with scans without it"
        )
    if "calcium" in names and group_of_slices(volume) is None:
        thickness = max(volume.slice_thickness_mm or 0.0, volume.spacing_mm[0])
        notes.append(
            f"slices of {thickness:g} mm: the Agatston score needs slices that average to {THICKNESS_MM[0]:g} to "
            f"{THICKNESS_MM[1]:g} mm and is not defined"
        )
    elif "calcium" in names and not masks.enhanced and masks.of("mediastinum") is None:
        notes.append("no region of the heart between two lungs: calcium was not measured")
    lungs = masks.of("lungs")
    if lungs is not None and not ((lungs == 1).any() and (lungs == 2).any()):
        notes.append("one lung only")
    return tuple(notes)


def _plain(values: dict[str, float]) -> dict[str, float | None]:
    return {name: float(value) if math.isfinite(value) else None for name, value in values.items()}
