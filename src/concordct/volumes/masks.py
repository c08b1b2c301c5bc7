"""ROIs from files onto the grid of an image: NIfTI/NRRD/MetaImage masks, DICOM SEG and RTSTRUCT.

Nothing is resampled: a mask belongs to the image's grid up to flips, order of axes and whole voxels, or is refused with
what was found. Sources: DICOM PS3.3 C.8.20 (Segmentation), C.8.8.6 (ROI Contour).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from concordct.errors import ConcordctError

#: A mask's voxel may lie this far from the image's, in voxels: writers round spacing and origin.
GRID_TOLERANCE = 0.05
#: A contour's plane may lie this far from a slice, in slices; further away nobody knows which slice was meant.
PLANE_TOLERANCE = 0.25

#: Endings of volume files that SimpleITK reads.
VOLUME_ENDINGS = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")


@dataclass(frozen=True, eq=False)
class Region:
    """One ROI on the image's grid. It keeps its box alone, so that thousands of ROIs take no more memory than a few.

    Attributes
    ----------
    number, name : in the file.
    box : where it lies in the image, a slice for each axis.
    inside : [z, y, x] bool of the box.
    shape : (z, y, x) of the image.
    """

    number: int
    name: str
    box: tuple[slice, slice, slice]
    inside: NDArray[np.bool_]
    shape: tuple[int, int, int]

    @property
    def mask(self) -> NDArray[np.bool_]:
        """[z, y, x] bool of the image, made anew at every call."""
        mask = np.zeros(self.shape, bool)
        mask[self.box] = self.inside
        return mask


def whole_image(shape: tuple[int, int, int], *, number: int = 1, name: str = "image") -> Region:
    """The whole image as one region."""
    z, y, x = (slice(0, size) for size in shape)
    return Region(number, name, (z, y, x), np.ones(shape, bool), shape)


def read_regions(path: Path, *, affine: NDArray[np.float64], shape: tuple[int, int, int]) -> tuple[Region, ...]:
    """The ROIs of any supported file.

    Parameters
    ----------
    path : NIfTI, NRRD or MetaImage labels, DICOM SEG or RTSTRUCT.
    affine : [4, 4] the image's index (z, y, x, 1) -> LPS mm.
    shape : the image's (z, y, x).

    Raises
    ------
    ConcordctError : unreadable or of another kind, no ROI in it, other geometry, or an ROI outside the image.
    """
    if not path.is_file():
        raise ConcordctError(f"no mask file {path}")
    if path.name.lower().endswith(VOLUME_ENDINGS):
        return _read_volume_file(path, affine, shape)
    import pydicom

    try:
        dataset = pydicom.dcmread(path)
    except (OSError, pydicom.errors.InvalidDicomError) as error:
        raise ConcordctError(f"{path} is neither a volume file nor DICOM") from error
    modality = str(dataset.get("Modality", ""))
    if modality == "SEG":
        return _read_seg(dataset, path, affine, shape)
    if modality == "RTSTRUCT":
        return _read_rtstruct(dataset, path, affine, shape)
    raise ConcordctError(f"ROIs come from SEG or RTSTRUCT, found modality {modality or 'none'} in {path}")


def to_labels(regions: tuple[Region, ...]) -> NDArray[np.int32]:
    """[z, y, x] int32 with 1, 2, ... in the order of the regions.

    Raises
    ------
    ConcordctError : when two regions share a voxel; measure them one by one instead.
    """
    labels = np.zeros(regions[0].shape, np.int32)
    for place, region in enumerate(regions, start=1):
        part = labels[region.box]
        taken = part[region.inside]
        if taken.any():
            other = regions[int(taken[taken > 0][0]) - 1]
            raise ConcordctError(f"ROIs {other.name} and {region.name} overlap in {int((taken > 0).sum())} voxels")
        part[region.inside] = place
    return labels


def _read_volume_file(path: Path, affine: NDArray[np.float64], shape: tuple[int, int, int]) -> tuple[Region, ...]:
    import SimpleITK as sitk

    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise ConcordctError(f"cannot read the mask {path}") from error
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise ConcordctError(f"a mask is a volume of single labels, found {image.GetDimension()} axes in {path}")
    values = sitk.GetArrayFromImage(image)
    if not np.equal(values, np.round(values)).all() or values.min() < 0:
        raise ConcordctError(f"a mask holds whole labels from 0, found {values.min():g} to {values.max():g} in {path}")
    own = np.eye(4)
    own[:3, :3] = (np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing()))[:, ::-1]
    own[:3, 3] = image.GetOrigin()
    places = np.argwhere(values > 0)
    if len(places) == 0:
        raise ConcordctError(f"the mask is empty: no voxel above 0 in {path}")
    index = _on_grid(places @ own[:3, :3].T + own[:3, 3], affine, shape, path)
    found = values[tuple(places.T)].astype(np.int64)
    order = np.argsort(found, kind="stable")
    numbers, starts = np.unique(found[order], return_index=True)
    parts = np.split(index[order], starts[1:])
    return tuple(_region(int(label), str(label), part, shape) for label, part in zip(numbers, parts, strict=True))


def _read_seg(  # type: ignore[no-untyped-def]
    dataset, path: Path, affine: NDArray[np.float64], shape: tuple[int, int, int]
) -> tuple[Region, ...]:
    names = {int(item.SegmentNumber): str(item.get("SegmentLabel", "")) for item in dataset.SegmentSequence}
    try:
        frames = np.asarray(dataset.pixel_array)
    except (AttributeError, NotImplementedError, RuntimeError, ValueError) as error:
        raise ConcordctError(f"cannot decode the segmentation {path}: {error}") from error
    frames = frames.reshape(-1, *frames.shape[-2:])
    kind = str(dataset.get("SegmentationType", "BINARY"))
    shared = dataset.get("SharedFunctionalGroupsSequence", [None])[0]
    places: dict[int, list[NDArray[np.int64]]] = {number: [] for number in names}
    for frame, own in zip(frames, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        position = np.array(_group(own, shared, "PlanePositionSequence", path).ImagePositionPatient, float)
        along = np.array(_group(own, shared, "PlaneOrientationSequence", path).ImageOrientationPatient, float)
        spacing = np.array(_group(own, shared, "PixelMeasuresSequence", path).PixelSpacing, float)
        if kind == "LABELMAP":
            parts = {int(number): frame == number for number in np.unique(frame) if int(number) in places}
        else:
            number = int(_group(own, shared, "SegmentIdentificationSequence", path).ReferencedSegmentNumber)
            full = int(dataset.get("MaximumFractionalValue", 1)) if kind == "FRACTIONAL" else 1
            parts = {number: frame > full / 2} if full > 1 else {number: frame > 0}
        for number, inside in parts.items():
            rows, columns = np.nonzero(inside)
            # PS3.3 C.7.6.2.1.1: columns run along the first cosine, rows along the second
            points = position + np.outer(columns * spacing[1], along[:3]) + np.outer(rows * spacing[0], along[3:])
            if len(points):
                places[number].append(_on_grid(points, affine, shape, path))
    regions = [
        _region(number, names[number] or str(number), np.concatenate(found), shape)
        for number, found in places.items()
        if found
    ]
    if not regions:
        raise ConcordctError(f"the segmentation is empty: no pixel set in {path}")
    return tuple(regions)


def _group(own, shared, name: str, path: Path):  # type: ignore[no-untyped-def]
    """A functional group, the frame's own before the shared one."""
    for where in (own, shared):
        if where is not None and name in where:
            return where[name].value[0]
    raise ConcordctError(f"the segmentation has a frame without {name}: {path}")


def _read_rtstruct(  # type: ignore[no-untyped-def]
    dataset, path: Path, affine: NDArray[np.float64], shape: tuple[int, int, int]
) -> tuple[Region, ...]:
    from skimage.draw import polygon

    names = {int(item.ROINumber): str(item.get("ROIName", "")) for item in dataset.get("StructureSetROISequence", [])}
    back = np.linalg.inv(affine)
    regions = []
    for item in dataset.get("ROIContourSequence", []):
        number = int(item.ReferencedROINumber)
        mask = np.zeros(shape, bool)
        for contour in item.get("ContourSequence", []):
            if str(contour.get("ContourGeometricType", "CLOSED_PLANAR")) not in ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR"):
                continue
            points = np.array(contour.ContourData, float).reshape(-1, 3)
            index = points @ back[:3, :3].T + back[:3, 3]
            z = round(float(index[:, 0].mean()))
            off = float(np.abs(index[:, 0] - z).max())
            if off > PLANE_TOLERANCE:
                raise ConcordctError(
                    f"a contour of ROI {names.get(number, number)} lies {off:.2f} slices from the nearest slice, "
                    f"expected at most {PLANE_TOLERANCE}, in {path}"
                )
            if not 0 <= z < shape[0]:
                raise ConcordctError(f"ROI {names.get(number, number)} reaches outside the image (slice {z}) in {path}")
            rows, columns = polygon(index[:, 1], index[:, 2], shape[1:])
            # Contours of one slice that lie in each other are rings: a hole is what an even number of them covers
            mask[z, rows, columns] ^= True
        if mask.any():
            regions.append(_region(number, names.get(number) or str(number), np.argwhere(mask), shape))
    if not regions:
        raise ConcordctError(f"the structure set is empty: no closed contour covers a voxel in {path}")
    return tuple(regions)


def _on_grid(
    points: NDArray[np.float64], affine: NDArray[np.float64], shape: tuple[int, int, int], path: Path
) -> NDArray[np.int64]:
    """[point, 3] indices (z, y, x) of points (LPS mm) that lie on the image's grid."""
    back = np.linalg.inv(affine)
    place = points @ back[:3, :3].T + back[:3, 3]
    index = np.round(place).astype(np.int64)
    off = float(np.abs(place - index).max())
    if off > GRID_TOLERANCE:
        raise ConcordctError(
            f"the mask has another geometry than the image: a voxel lies {off:.2f} voxels off its grid, expected at "
            f"most {GRID_TOLERANCE}, in {path}"
        )
    outside = int(((index < 0) | (index >= np.array(shape))).any(axis=1).sum())
    if outside:
        raise ConcordctError(f"{outside} of {len(index)} voxels of the mask lie outside the image, in {path}")
    return index


def _region(number: int, name: str, index: NDArray[np.int64], shape: tuple[int, int, int]) -> Region:
    low, high = index.min(axis=0), index.max(axis=0) + 1
    inside = np.zeros(tuple(high - low), bool)
    inside[tuple((index - low).T)] = True
    z, y, x = (slice(int(start), int(stop)) for start, stop in zip(low, high, strict=True))
    return Region(number, name, (z, y, x), inside, shape)
