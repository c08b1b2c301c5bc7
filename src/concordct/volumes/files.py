"""CT volumes in NIfTI, NRRD and MetaImage files, in and out, through SimpleITK with their geometry kept.

SimpleITK gives LPS millimetres for every format (NIfTI's RAS is turned at its edge). Nothing is resampled or
reoriented: the first axis of a Volume is the file's slowest axis. Integers come out when whole HU fit.
"""

from __future__ import annotations

import glob
import gzip
import hashlib
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from concordct.errors import ConcordctError
from concordct.volumes.ct_range import ct_range
from concordct.volumes.decode import plain
from concordct.volumes.geometry import Problem, units_problem
from concordct.volumes.padding import find_padding
from concordct.volumes.place import atomic_file, refuse_overlap, writing
from concordct.volumes.series import Series
from concordct.volumes.volume import AIR_HU, Volume

#: Endings that `open_volume_file` and `write_volume_file` know.
ENDINGS = (".nii", ".nii.gz", ".nrrd", ".mha", ".mhd")
#: 8 GiB as float32; larger than any CT, small enough that a forged header cannot exhaust the machine.
MAX_VOXELS = 2**31
#: Two volumes are kept decoded, a source and its target; more would make memory grow with a batch.
_KEPT = 2
_METAIMAGE_HEADER = 2**16
_PIECE = 2**22  # a multiple of every voxel size
_NIFTI_LITTLE = (348).to_bytes(4, "little")
_NIFTI_FLOATS = {16: "f4", 64: "f8"}  # nifti1.h: NIFTI_TYPE_FLOAT32, NIFTI_TYPE_FLOAT64


@dataclass(frozen=True, eq=False)
class VolumeFile:
    """A CT volume in one file, with the surface of a `Series`.

    Attributes
    ----------
    path : the file.
    shape : (z, y, x) voxels.
    affine : [4, 4] index (z, y, x, 1) to LPS mm.
    notes : what a reader should know.
    """

    path: Path
    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    notes: tuple[str, ...] = ()
    kernel: str | None = None
    slice_thickness_mm: float | None = None
    description: str = ""
    problems: tuple[Problem, ...] = ()

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """(z, y, x) distance between voxel centres, mm."""
        z, y, x = (float(np.linalg.norm(self.affine[:3, axis])) for axis in range(3))
        return z, y, x

    @property
    def folder(self) -> Path:
        """The folder that the file lies in."""
        return self.path.parent

    @cached_property
    def key(self) -> str:
        """SHA-256 of the shape and the voxels' HU, whatever format they came in."""
        digest = hashlib.sha256(repr(self.shape).encode())
        for plane in _voxels(self.path):
            digest.update(np.ascontiguousarray(plane, dtype="<f4").tobytes())
        return digest.hexdigest()

    def check(self, allow: Iterable[str] = frozenset()) -> tuple[Problem, ...]:
        """Refuse voxels that cannot be HU; a file says nothing of its unit, and its one grid has no gaps.

        Parameters
        ----------
        allow : "units" lets them pass.

        Returns
        -------
        What was let pass; the caller records it.

        Raises
        ------
        ConcordctError : voxels that cannot be HU, see `units_problem`, or that cannot be read.
        """
        problem = units_problem(_voxels(self.path))
        if problem is None:
            return ()
        if problem.code not in allow:
            raise ConcordctError(f"{problem.message} [{problem.code}]: {self.path}")
        return (problem,)

    def read(self, start: int = 0, stop: int | None = None, *, allow: Iterable[str] = frozenset()) -> Volume:
        """Slices [start, stop) as a Volume; padding is found as in DICOM without a declared padding value."""
        stop = self.shape[0] if stop is None else stop
        hu = self.stored_hu(start, stop)
        padding = np.stack([find_padding(plane) for plane in hu])
        affine = self.affine.copy()
        affine[:3, 3] += start * affine[:3, 0]
        return Volume(
            hu=np.where(padding, np.float32(AIR_HU), hu),
            affine=affine,
            padding=padding if padding.any() else None,
            slice_thickness_mm=self.slice_thickness_mm,
            kernel=self.kernel,
            first_slice=start,
        )

    def stored_hu(self, start: int, stop: int) -> NDArray[np.float32]:
        """[z, y, x] HU of slices [start, stop) as the file holds them, padding included."""
        if not 0 <= start < stop <= self.shape[0]:
            raise ConcordctError(f"slices {start} to {stop} asked of a volume of {self.shape[0]}: {self.path}")
        return _voxels(self.path)[start:stop].astype(np.float32)


def is_volume_file(path: str | Path) -> bool:
    """Whether the name has an ending of `ENDINGS`."""
    return Path(path).name.lower().endswith(ENDINGS)


def open_volume_file(path: str | Path) -> VolumeFile:
    """Open a NIfTI, NRRD or MetaImage file; its header is checked, its voxels are read when they are asked for.

    Raises
    ------
    ConcordctError : missing, unreadable, not three-dimensional, not one number per voxel, or beyond `MAX_VOXELS`.
    """
    path = Path(path)
    if not path.is_file():
        raise ConcordctError(f"no such file: {path}")
    if not is_volume_file(path):
        raise ConcordctError(f"unknown file ending, expected one of {', '.join(ENDINGS)}: {path}")
    reader = _header(path)
    size = [int(n) for n in reader.GetSize()]
    spacing, origin = np.array(reader.GetSpacing()), np.array(reader.GetOrigin())
    direction = np.array(reader.GetDirection()).reshape(len(size), len(size))
    affine = np.eye(4)
    affine[:3, :3] = (direction * spacing)[:, ::-1]
    affine[:3, 3] = origin
    if not np.all(np.isfinite(affine)) or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise ConcordctError(f"the axes of the volume span no space or are not finite: {path}")
    return VolumeFile(path=path, shape=(size[2], size[1], size[0]), affine=affine, notes=_notes(reader, affine))


def write_volume_file(
    path: str | Path,
    volumes: Volume | Iterable[Volume],
    *,
    source: VolumeFile | Series | None = None,
    whole_hu: bool = True,
    note: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a Volume, or its slabs in order, to one NIfTI, NRRD or MetaImage file.

    Parameters
    ----------
    path : ending one of `ENDINGS`. A MetaImage header (.mhd) gets its voxels beside it, named by their content.
    volumes : one Volume or consecutive slabs, the first at slice 0 of what is written.
    source : where the volume came from; its padding values come back where the Volume has padding, and HU are held
        to `ct_range`. Without it padding is written as `AIR_HU`.
    whole_hu : round to whole HU, as CT scanners store them; then int16 when all fit, else float32. False writes
        float32 unrounded.
    note : what the header says of the file, at most 79 characters; in NIfTI `descrip`.
    overwrite : whether an existing file is replaced.

    Returns
    -------
    The path.
    """
    path = Path(path)
    if not is_volume_file(path):
        raise ConcordctError(f"unknown file ending, expected one of {', '.join(ENDINGS)}: {path}")
    if source is not None:
        refuse_overlap(path, [source.path] if isinstance(source, VolumeFile) else [], folder=False)
    slabs = [volumes] if isinstance(volumes, Volume) else volumes
    planes: list[NDArray[np.floating[Any]]] = []
    first: Volume | None = None
    following = 0
    for slab in slabs:
        if first is None:
            first, following = slab, slab.first_slice
        if slab.first_slice != following or slab.shape[1:] != first.shape[1:]:
            raise ConcordctError(
                f"slab at slice {slab.first_slice} of {slab.shape[1:]}, expected slice {following} of {first.shape[1:]}"
            )
        following += slab.shape[0]
        planes.append(_written_hu(slab, source, whole_hu, path))
    if first is None:
        raise ConcordctError(f"no slices to write: {path}")
    if whole_hu and all(plane.min() >= -(2**15) and plane.max() < 2**15 for plane in planes):
        planes = [plane.astype(np.int16) for plane in planes]
    image = sitk.GetImageFromArray(np.concatenate(planes))
    planes.clear()
    spacing = first.spacing_mm
    image.SetSpacing(spacing[::-1])
    image.SetOrigin(first.affine[:3, 3].tolist())
    image.SetDirection((first.affine[:3, :3] / np.array(spacing))[:, ::-1].ravel().tolist())
    if note is not None:
        image.SetMetaData("ITK_FileNotes", note)
    _write_image(image, path, overwrite)
    return path


def _written_hu(
    slab: Volume, source: VolumeFile | Series | None, whole_hu: bool, path: Path
) -> NDArray[np.floating[Any]]:
    if not np.isfinite(slab.hu).all():
        raise ConcordctError(f"HU that are not finite at slice {slab.first_slice} and after, nothing written: {path}")
    hu = np.rint(slab.hu) if whole_hu else slab.hu
    if source is None:
        return hu
    original = source.stored_hu(slab.first_slice, slab.first_slice + slab.shape[0])
    padding = np.zeros(hu.shape, bool) if slab.padding is None else slab.padding
    limits = [ct_range(plane, blank) for plane, blank in zip(original, padding, strict=True)]
    clipped = [np.clip(plane, *ends) for plane, ends in zip(hu, limits, strict=True)]
    return np.where(padding, original, np.stack(clipped))


def _write_image(image: sitk.Image, path: Path, overwrite: bool) -> None:
    compress = not path.name.lower().endswith(".nii")
    if path.suffix.lower() != ".mhd":
        with atomic_file(path, overwrite=overwrite) as aside:
            with _itk(path, "write"):
                sitk.WriteImage(image, str(aside), useCompression=compress)
            _check_written(aside, path)
        return
    # Two files cannot be moved as one. The voxels are named by their content and placed first, so that a header, old or
    # new, always finds its own; the old header's voxels go last.
    with atomic_file(path, overwrite=overwrite) as aside, writing(path):
        with _itk(path, "write"):
            sitk.WriteImage(image, str(aside), useCompression=compress)
        voxels = aside.with_suffix(".zraw")
        digest = hashlib.sha256(voxels.read_bytes()).hexdigest()
        placed = path.with_name(f"{path.stem}.{digest[:12]}.zraw")
        header = aside.read_bytes().replace(voxels.name.encode(), placed.name.encode())
        aside.write_bytes(header)
        before = sorted(path.parent.glob(f"{glob.escape(path.stem)}.{'[0-9a-f]' * 12}.zraw"))
        with atomic_file(placed, overwrite=True) as aside_voxels:
            voxels.replace(aside_voxels)
    for old in before:
        if old.name != placed.name:
            old.unlink(missing_ok=True)


def _check_written(aside: Path, path: Path) -> None:
    """ITK's NIfTI writer is silent about a full disk, so what it wrote is read through once."""
    try:
        _check_nifti(aside, _header(aside))
    except ConcordctError:
        raise ConcordctError(f"cannot write {path}: the file came out incomplete, is the disk full?") from None


def _header(path: Path) -> sitk.ImageFileReader:
    _check_metaimage(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    with _itk(path, "read"):
        reader.ReadImageInformation()
    if reader.GetNumberOfComponents() != 1:
        kind = sitk.GetPixelIDValueAsString(reader.GetPixelIDValue())
        raise ConcordctError(f"{reader.GetNumberOfComponents()} numbers per voxel ({kind}), expected one: {path}")
    if "complex" in sitk.GetPixelIDValueAsString(reader.GetPixelIDValue()).lower():
        raise ConcordctError(f"complex voxels, expected real HU: {path}")
    size = reader.GetSize()
    if len(size) != 3:
        raise ConcordctError(f"{len(size)} dimensions of {' x '.join(map(str, size))}, expected 3: {path}")
    if not 0 < int(np.prod([float(n) for n in size])) <= MAX_VOXELS:
        raise ConcordctError(f"{' x '.join(map(str, size))} voxels, expected 1 to {MAX_VOXELS} in all: {path}")
    return reader


def _check_metaimage(path: Path) -> None:
    """MetaIO holds ten dimensions and writes over its own memory when a header names more."""
    if path.suffix.lower() not in (".mha", ".mhd"):
        return
    try:
        with open(path, "rb") as file:
            said = re.search(rb"^\s*NDims\s*=\s*(\S*)", file.read(_METAIMAGE_HEADER), re.MULTILINE)
    except OSError as error:
        raise ConcordctError(f"cannot read {path}: {error.strerror}") from None
    if said is None or said.group(1) != b"3":
        found = plain(said.group(1).decode("ascii", "replace"), 16) if said else "no"
        raise ConcordctError(f"{found} dimensions, expected 3: {path}")


def _voxels(path: Path) -> NDArray[Any]:
    stat = path.stat()
    return _load(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=_KEPT)
def _load(path: Path, changed: int, size: int) -> NDArray[Any]:
    """The voxels of a file as stored, checked for completeness and finiteness; keyed so that a new file is read."""
    reader = _header(path)
    _check_nifti(path, reader)
    with _itk(path, "read"):
        array = sitk.GetArrayFromImage(reader.Execute())
    if array.dtype.kind == "f":
        wrong = int(array.size - np.count_nonzero(np.isfinite(array)))
        if wrong:
            raise ConcordctError(f"{wrong} voxels are NaN or infinite, expected HU: {path}")
    if array.dtype.itemsize > 4:
        array = array.astype(np.float32)
    array.setflags(write=False)
    return array


def _check_nifti(path: Path, reader: sitk.ImageFileReader) -> None:
    """ITK fills what is missing in a NIfTI file, and NaN, with zeros; so the bytes are looked at here, in pieces."""
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        return
    bits, code = int(reader.GetMetaData("bitpix")), int(reader.GetMetaData("datatype"))
    offset = int(float(reader.GetMetaData("vox_offset")))
    expected = offset + int(np.prod([float(n) for n in reader.GetSize()])) * bits // 8
    found = wrong = 0
    try:
        with gzip.open(path) if path.name.lower().endswith(".gz") else open(path, "rb") as file:
            head = file.read(offset)
            found = len(head)
            order = "<" if head[:4] == _NIFTI_LITTLE else ">"
            while found < expected and (chunk := file.read(min(_PIECE, expected - found))):
                found += len(chunk)
                if code in _NIFTI_FLOATS:
                    whole = len(chunk) - len(chunk) % (bits // 8)
                    values = np.frombuffer(chunk[:whole], order + _NIFTI_FLOATS[code])
                    wrong += values.size - int(np.count_nonzero(np.isfinite(values)))
    except (OSError, EOFError, zlib.error) as error:
        raise ConcordctError(f"cannot read {path}: {type(error).__name__} after {found} bytes") from None
    if found < expected:
        raise ConcordctError(f"truncated: {found} bytes, expected {expected}: {path}")
    if wrong:
        raise ConcordctError(f"{wrong} voxels are NaN or infinite, expected HU: {path}")


def _notes(reader: sitk.ImageFileReader, affine: NDArray[np.float64]) -> tuple[str, ...]:
    notes = []
    codes = [reader.GetMetaData(key) for key in ("qform_code", "sform_code") if reader.HasMetaDataKey(key)]
    if codes and all(code.strip() == "0" for code in codes):
        notes.append("NIfTI without qform and sform: its orientation is a guess of the format")
    if int(np.argmax(np.abs(affine[:3, 0]))) != 2:
        notes.append("slices are not axial: the slowest axis of the file does not run head to foot")
    return tuple(notes)


@contextmanager
def _itk(path: Path, verb: str) -> Iterator[None]:
    """One line for whatever ITK throws, and none of its warnings on standard error."""
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[-1].split("): ")[-1].removeprefix("Error: ") if lines else type(error).__name__
        raise ConcordctError(f"cannot {verb} {path}: {reason.replace(str(path), 'file')}") from None
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)
