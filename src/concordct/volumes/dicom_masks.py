"""ROIs from DICOM Segmentation and RT Structure Set objects, placed on the grid of an image.

Sources: DICOM PS3.3 C.8.20 (Segmentation), C.8.8.5 and C.8.8.6 (Structure Set, ROI Contour). No message quotes a
header but for a segment's or ROI's own name, and that as one printable line.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import UID

from concordct.errors import ConcordctError
from concordct.volumes.codestreams import decode_codestream, extended_offsets, frame_codestream
from concordct.volumes.concatenation import part_of
from concordct.volumes.dicom_file import number_of_frames, open_dataset, plain, quiet_dicom
from concordct.volumes.elements import start_of_dataset, structure_fault
from concordct.volumes.formats.layout import open_regular
from concordct.volumes.region import GRID_TOLERANCE, Region, region

#: A contour's plane may lie this far from a slice, in slices; further away nobody knows which slice was meant.
PLANE_TOLERANCE = 0.25
#: A contour may leave the image by half a voxel: outlines follow the voxels' outer edges.
EDGE_TOLERANCE = 0.51
#: From so many contours on, even steps of two slices or more are no chance.
LEAST_SKIPPED = 3
#: Pixels of one frame of a segmentation, as of one slice.
MAX_FRAME_PIXELS = 4096 * 4096

#: Types of contours (PS3.3 C.8.8.6.1), those that enclose an area first.
_ENCLOSING = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
_NOT_ENCLOSING = ("POINT", "OPEN_PLANAR", "OPEN_NONPLANAR")

Shape = tuple[int, int, int]


def read_dicom_regions(
    path: Path, *, affine: NDArray[np.float64], shape: Shape, frame_of_reference_uid: str | None = None
) -> tuple[Region, ...]:
    """The ROIs of a SEG or RTSTRUCT; as `masks.read_regions`.

    Raises
    ------
    ConcordctError : neither of the two, broken or cut short, of another frame of reference, without a voxel, or not on
        the image's grid.
    """
    with quiet_dicom():
        _refuse_cut(path)
    try:
        dataset = open_dataset(path, pixels=True)
    except ConcordctError as error:
        if "not a DICOM file" in str(error):
            raise ConcordctError(f"{path} is neither a volume file nor DICOM") from None
        raise
    try:
        with quiet_dicom():
            modality = str(dataset.get("Modality", ""))
            if modality not in ("SEG", "RTSTRUCT"):
                said = modality if modality.isalnum() and len(modality) <= 16 else "none"
                raise ConcordctError(f"ROIs come from SEG or RTSTRUCT, found modality {said} in {path}")
            _refuse_other_frame(dataset, frame_of_reference_uid, path)
            if modality == "SEG":
                return _read_seg(dataset, path, affine, shape)
            _refuse_other_frame_of_roi(dataset, frame_of_reference_uid, path)
            return _read_rtstruct(dataset, path, affine, shape)
    except ConcordctError:
        raise
    except Exception as error:
        # pydicom converts values when they are asked for, and the text of its errors quotes them.
        raise ConcordctError(f"broken or cut short ({type(error).__name__} in its header): {path}") from None


def _refuse_cut(path: Path) -> None:
    """A parser takes a file that ends inside an element as one that holds less: fewer contours, a smaller ROI."""
    with open_regular(path) as (file, stamp):
        start, syntax = start_of_dataset(file.read(4096))
        if not UID(syntax).is_transfer_syntax or UID(syntax).is_deflated:
            return  # deflated data have an end of their own
        file.seek(start)
        fault = structure_fault(file, stamp[2], big_endian=not UID(syntax).is_little_endian, whole=True)
    if fault is not None:
        raise ConcordctError(f"{fault}: {path}")


def _refuse_other_frame(dataset: Dataset, expected: str | None, path: Path) -> None:
    """Positions count within a frame of reference alone (PS3.3 C.7.4.1)."""
    if expected is None:
        return
    found = {str(item.FrameOfReferenceUID) for item in dataset.get("ReferencedFrameOfReferenceSequence") or []
             if item.get("FrameOfReferenceUID")}  # fmt: skip
    found |= {str(item.ReferencedFrameOfReferenceUID) for item in dataset.get("StructureSetROISequence") or []
              if item.get("ReferencedFrameOfReferenceUID")}  # fmt: skip
    if dataset.get("FrameOfReferenceUID"):
        found.add(str(dataset.FrameOfReferenceUID))
    if found and expected not in found:
        raise ConcordctError(f"ROIs of another frame of reference than the image's, expected the same: {path}")


def _refuse_other_frame_of_roi(dataset: Dataset, expected: str | None, path: Path) -> None:
    """A structure set may hold ROIs of several frames of reference (PS3.3 C.8.8.5): planning CT and MR."""
    for item in dataset.get("StructureSetROISequence") or []:
        frame = item.get("ReferencedFrameOfReferenceUID")
        if expected is not None and frame and frame != expected:
            name = plain(item.get("ROIName", "")) or plain(item.get("ROINumber", ""))
            said = f"ROI {name} is of another frame of reference than the image, expected the same"
            raise ConcordctError(f"{said}: {path}")


def _numbered(items: Any, number: str, name: str, path: Path) -> dict[int, str]:
    """Names of segments or ROIs by their numbers, each of which stands once."""
    found: dict[int, str] = {}
    for item in items:
        key = int(item[number].value)
        if key in found:
            raise ConcordctError(f"{number} {key} stands twice, expected one for each: {path}")
        found[key] = plain(item.get(name, ""))
    return found


def _read_seg(dataset: FileDataset, path: Path, affine: NDArray[np.float64], shape: Shape) -> tuple[Region, ...]:
    segments = _sequence(dataset, "SegmentSequence", "segments", path)
    names = _numbered(segments, "SegmentNumber", "SegmentLabel", path)
    kind = str(dataset.get("SegmentationType", "BINARY"))
    if kind not in ("BINARY", "FRACTIONAL", "LABELMAP"):
        raise ConcordctError(f"segmentation of unknown type, expected BINARY, FRACTIONAL or LABELMAP: {path}")
    frames = number_of_frames(dataset, path)
    part = part_of(dataset, frames, path)
    if part is not None and (part.total, part.number) != (1, 1):
        raise ConcordctError(
            f"part {part.number} of a concatenation, expected a whole segmentation in one file: {path}"
        )
    groups = _sequence(dataset, "PerFrameFunctionalGroupsSequence", "frames", path)
    if len(groups) != frames:
        raise ConcordctError(f"{frames} frames with positions for {len(groups)}, expected one each: {path}")
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [None])[0]
    full = _full_value(dataset, kind, path)
    background = int(
        dataset.get("PixelPaddingValue") or 0
    )  # of a label map, whether it is described as a segment or not
    found: dict[int, list[NDArray[np.int32]]] = {}
    for frame, own in zip(_frames(dataset, frames, path), groups, strict=True):
        position = _floats(_group(own, shared, "PlanePositionSequence", path).ImagePositionPatient, 3)
        along = _floats(_group(own, shared, "PlaneOrientationSequence", path).ImageOrientationPatient, 6)
        measures = _group(own, shared, "PixelMeasuresSequence", path)
        spacing = _floats(measures.PixelSpacing, 2)
        _refuse_other_pixels(along, spacing, affine, path)
        if kind == "LABELMAP":
            parts = {int(number): frame == number for number in np.unique(frame) if number != background}
        else:
            if frame.max() > full:
                raise ConcordctError(f"pixels of {frame.max()} in a segmentation, expected at most {full}: {path}")
            number = int(_group(own, shared, "SegmentIdentificationSequence", path).ReferencedSegmentNumber)
            parts = {number: frame > full / 2}
        unknown = sorted(set(parts) - set(names))
        if unknown:
            raise ConcordctError(f"a frame of segment {unknown[0]}, which is not among the segments: {path}")
        for number, inside in parts.items():
            rows, columns = np.nonzero(inside)
            if not len(rows):
                continue
            # PS3.3 C.7.6.2.1.1: columns run along the first cosine, rows along the second
            points = position + np.outer(columns * spacing[1], along[:3]) + np.outer(rows * spacing[0], along[3:])
            found.setdefault(number, []).append(_grid_index(points, affine, shape, path))
    if not found:
        raise ConcordctError(f"the segmentation is empty: no pixel set in {path}")
    regions = []
    for number, parts_of in sorted(found.items()):
        index, name = np.concatenate(parts_of), names[number] or str(number)
        _refuse_skipped(np.unique(index[:, 0]).tolist(), f"pixels of segment {name}", path)
        regions.append(_region(number, name, index, shape))
    return tuple(regions)


def _full_value(dataset: FileDataset, kind: str, path: Path) -> int:
    """The pixel value that is wholly inside (PS3.3 C.8.20.2): without it nobody knows which half is meant."""
    if kind != "FRACTIONAL":
        return 1
    full = int(dataset.get("MaximumFractionalValue") or 0)
    if full < 1:
        raise ConcordctError(f"fractions of a segmentation without MaximumFractionalValue, expected 1 or more: {path}")
    return full


def _refuse_other_pixels(
    along: NDArray[np.float64], spacing: NDArray[np.float64], affine: NDArray[np.float64], path: Path
) -> None:
    """Pixels three times as large have their centres on the grid, too: each would be taken for one voxel of it."""
    back = np.linalg.inv(affine)[:3, :3]
    for step in (along[:3] * spacing[1], along[3:] * spacing[0]):
        voxels = float(np.abs(back @ step).max())
        if abs(voxels - 1) > GRID_TOLERANCE:
            said = f"its pixels are {np.linalg.norm(step):.4g} mm apart, {voxels:.4g} voxels of the image"
            raise ConcordctError(f"the mask has another geometry than the image: {said}, in {path}")


def _region(number: int, name: str, index: NDArray[np.int32], shape: Shape) -> Region:
    low, high = index.min(axis=0), index.max(axis=0)
    inside = np.zeros(high - low + 1, bool)
    inside[tuple((index - low).T)] = True
    z, y, x = (slice(int(start), int(last) + 1) for start, last in zip(low, high, strict=True))
    return Region(number, name, (z, y, x), inside, shape)


def _frames(dataset: FileDataset, frames: int, path: Path) -> Iterator[NDArray[Any]]:
    """Frames [row, column] one after the other."""
    rows, columns = int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0)
    bits = int(dataset.get("BitsAllocated") or 0)
    if rows < 1 or columns < 1 or rows * columns > MAX_FRAME_PIXELS:
        raise ConcordctError(f"{rows} x {columns} pixels, expected 1 to {MAX_FRAME_PIXELS} in all: {path}")
    if bits not in (1, 8, 16) or int(dataset.get("SamplesPerPixel", 1)) != 1:
        raise ConcordctError(f"{bits} bits for a pixel of a segmentation, expected 1, 8 or 16: {path}")
    if "PixelData" not in dataset:
        raise ConcordctError(f"no pixel data: {path}")
    syntax, count = UID(dataset.file_meta.get("TransferSyntaxUID", "")), rows * columns
    if syntax.is_encapsulated:
        options: dict[str, Any] = {
            "rows": rows, "columns": columns, "bits_allocated": bits, "number_of_frames": 1, "samples_per_pixel": 1,
            "bits_stored": int(dataset.get("BitsStored", bits)), "photometric_interpretation": "MONOCHROME2",
            "pixel_representation": 0, "pixel_keyword": "PixelData",
        }  # fmt: skip
        for index in range(frames):
            extended = extended_offsets(dataset, path)
            coded = frame_codestream(dataset.PixelData, index, frames, path=path, extended=extended)
            array = decode_codestream(coded, syntax=syntax, options=options, path=path)
            if array.shape != (rows, columns):
                raise ConcordctError(f"frame {index} decodes to another size than {rows} x {columns}: {path}")
            yield array
        return
    data = dataset.PixelData
    expected, one = (frames * count * bits + 7) // 8, (count * bits + 7) // 8
    if len(data) < expected:
        raise ConcordctError(f"truncated: {len(data)} bytes of pixel data, expected {expected}: {path}")
    if len(data) - expected > one:
        raise ConcordctError(f"{len(data)} bytes of pixel data, expected {expected} by the header: {path}")
    if not syntax.is_little_endian and bits <= 8 and dataset["PixelData"].VR == "OW":  # PS3.5 (2013) 7.3: words
        data = np.frombuffer(data[: len(data) // 2 * 2], ">u2").astype("<u2").tobytes()
    order = "<" if syntax.is_little_endian else ">"
    for index in range(frames):
        if bits == 1:  # frames follow each other bit by bit, PS3.5 8.1.1
            first, last = index * count, (index + 1) * count
            packed = np.frombuffer(data, np.uint8, (last + 7) // 8 - first // 8, first // 8)
            flat: NDArray[Any] = np.unpackbits(packed, bitorder="little")[first % 8 : first % 8 + count]
        else:
            flat = np.frombuffer(data, f"{order}u{bits // 8}", count, index * count * bits // 8)
        yield flat.reshape(rows, columns)


def _read_rtstruct(dataset: FileDataset, path: Path, affine: NDArray[np.float64], shape: Shape) -> tuple[Region, ...]:
    known = _sequence(dataset, "StructureSetROISequence", "ROIs", path)
    names = _numbered(known, "ROINumber", "ROIName", path)
    contours = _sequence(dataset, "ROIContourSequence", "contours", path)
    _numbered(contours, "ReferencedROINumber", "ROIDisplayColor", path)
    back = np.linalg.inv(affine)
    regions = []
    for item in contours:
        number = int(item.ReferencedROINumber)
        name = names.get(number) or str(number)
        outlines: dict[int, list[tuple[bool, NDArray[np.float64]]]] = {}  # of each slice
        for kind, values in _contours(item, name, path):
            if kind not in _ENCLOSING or len(values) < 9:  # a point or a line, which encloses nothing
                continue
            index = values.reshape(-1, 3) @ back[:3, :3].T + back[:3, 3]
            z = round(float(index[:, 0].mean()))
            off = float(np.abs(index[:, 0] - z).max())
            if off > PLANE_TOLERANCE:
                raise ConcordctError(
                    f"a contour of ROI {name} lies {off:.2f} slices from the nearest slice, "
                    f"expected at most {PLANE_TOLERANCE}, in {path}"
                )
            if not 0 <= z < shape[0]:
                raise ConcordctError(f"ROI {name} reaches outside the image (slice {z}) in {path}")
            beyond = float(max(-index[:, 1:].min(), (index[:, 1:] - np.array(shape[1:]) + 1).max()))
            if beyond > EDGE_TOLERANCE:
                raise ConcordctError(f"ROI {name} reaches {beyond:.1f} voxels outside the image in {path}")
            outlines.setdefault(z, []).append((kind == "CLOSEDPLANAR_XOR", index[:, 1:]))
        _refuse_skipped(sorted(outlines), f"contours of ROI {name}", path)
        mask = np.zeros(shape, bool)
        for z, of in outlines.items():
            mask[z] = _combined([(exclusive, _filled(outline, shape)) for exclusive, outline in of])
        if mask.any():
            regions.append(region(number, name, mask))
    if not regions:
        raise ConcordctError(f"the structure set is empty: no closed contour covers a voxel in {path}")
    return tuple(regions)


def _contours(item: Dataset, name: str, path: Path) -> list[tuple[str, NDArray[np.float64]]]:
    """The geometric type and the coordinates of each contour of an ROI; one that is not of one making is refused."""
    found = []
    for contour in item.get("ContourSequence") or []:
        kind = str(contour.get("ContourGeometricType") or "CLOSED_PLANAR").strip().upper()
        if kind not in _ENCLOSING and kind not in _NOT_ENCLOSING:
            expected = ", ".join((*_ENCLOSING, *_NOT_ENCLOSING))
            raise ConcordctError(f"a contour of ROI {name} of unknown type, expected {expected}: {path}")
        try:
            values = _floats(contour.ContourData, None)
            shift = _floats(contour.get("ContourOffsetVector") or [0.0], None)
        except (ValueError, TypeError, AttributeError):
            raise ConcordctError(f"a contour of ROI {name}, expected numbers for its points: {path}") from None
        count = int(contour.get("NumberOfContourPoints") or len(values) // 3)
        if len(values) != 3 * count or count < 1:
            raise ConcordctError(f"a contour of ROI {name} has {len(values)} numbers for {count} points: {path}")
        if shift.any():
            raise ConcordctError(f"a contour of ROI {name} with a ContourOffsetVector, expected none: {path}")
        found.append((kind, values))
    kinds = {kind for kind, values in found if len(values) >= 9}
    if kinds & set(_ENCLOSING) and len(kinds) > 1:
        # PS3.3 C.8.8.6: with CLOSEDPLANAR_XOR all are; and a slice whose contour is not closed would be left out.
        raise ConcordctError(f"ROI {name} has contours of {' and '.join(sorted(kinds))}, expected one type: {path}")
    return found


def _refuse_skipped(slices: list[int], what: str, path: Path) -> None:
    """ROIs drawn on every second slice, for a program to fill in between, are none of these slices alone."""
    steps = {after - one for one, after in pairwise(slices)}
    if len(slices) >= LEAST_SKIPPED and len(steps) == 1 and (step := steps.pop()) > 1:
        raise ConcordctError(f"{what} on every {step} slices alone, expected some on each slice that it covers: {path}")


def _filled(outline: NDArray[np.float64], shape: Shape) -> NDArray[np.bool_]:
    from skimage.draw import polygon

    plane = np.zeros(shape[1:], bool)
    plane[polygon(outline[:, 0], outline[:, 1], shape[1:])] = True
    return plane


def _combined(planes: list[tuple[bool, NDArray[np.bool_]]]) -> NDArray[np.bool_]:
    """[y, x] of one slice from its filled contours, (whether CLOSEDPLANAR_XOR, pixels inside).

    What an odd number of CLOSEDPLANAR_XOR contours covers is inside (PS3.3 C.8.8.6). The inside of a CLOSED_PLANAR
    contour is inside; but one that lies wholly within another is the hole of a ring, as planning systems write it, and
    one that stands twice counts once.
    """
    result = np.zeros_like(planes[0][1])
    for exclusive, plane in planes:
        if exclusive:
            result ^= plane
    closed = sorted((plane for exclusive, plane in planes if not exclusive), key=np.count_nonzero, reverse=True)
    for place, plane in enumerate(closed):
        if any(np.array_equal(plane, other) for other in closed[:place]):
            continue
        if np.any(plane & ~result):
            result |= plane
        else:
            result &= ~plane
    return result


def _sequence(dataset: Dataset, keyword: str, what: str, path: Path) -> Any:
    found = dataset.get(keyword)
    if not found:
        raise ConcordctError(f"no {what}, expected {keyword} (is the file cut short?): {path}")
    return found


def _group(own: Dataset, shared: Dataset | None, name: str, path: Path) -> Dataset:
    """A functional group, the frame's own before the shared one."""
    for where in (own, shared):
        if where is not None and where.get(name):
            if len(where[name].value) > 1:
                raise ConcordctError(f"{name} of several items for a frame, expected one: {path}")
            item: Dataset = where[name].value[0]
            return item
    raise ConcordctError(f"the segmentation has a frame without {name}: {path}")


def _floats(values: Any, count: int | None) -> NDArray[np.float64]:
    """Numbers of a header as an array; ValueError, which `read_dicom_regions` puts in words, where they are not."""
    found = np.array(values, float).ravel()
    if count not in (None, len(found)) or not np.isfinite(found).all():
        raise ValueError
    return found


def _grid_index(
    points: NDArray[np.float64], affine: NDArray[np.float64], shape: Shape, path: Path
) -> NDArray[np.int32]:
    """[point, 3] indices (z, y, x) of points (LPS mm) that lie on the image's grid."""
    back = np.linalg.inv(affine)
    place = points @ back[:3, :3].T + back[:3, 3]
    rounded = np.round(place)
    off = float(np.abs(place - rounded).max())
    if not off <= GRID_TOLERANCE:
        raise ConcordctError(
            f"the mask has another geometry than the image: a voxel lies {off:.2f} voxels off its grid, expected at "
            f"most {GRID_TOLERANCE}, in {path}"
        )
    outside = int(((rounded < 0) | (rounded >= np.array(shape))).any(axis=1).sum())
    if outside:
        raise ConcordctError(f"{outside} of {len(rounded)} voxels of the mask lie outside the image, in {path}")
    return rounded.astype(np.int32)
