"""What is fuzzed: undamaged files of each kind, what reads them, and what the reading is compared with."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parents[1]))

from fuzz_dicom import read_dicom
from fuzz_dicom import seeds as dicom_seeds
from test_masks import AFFINE, FRAME, LABELS, SHAPE, segmentation, structures

from concordct.errors import ConcordctError
from concordct.radiomics.parameters import read_parameters
from concordct.training.bundle import Bundle, load_bundle, save_bundle
from concordct.volumes.files import open_volume_file, write_volume_file
from concordct.volumes.guard import guarded
from concordct.volumes.manifest import COLUMNS, read_manifest
from concordct.volumes.masks import read_regions, write_labels
from concordct.volumes.volume import Volume

#: float32 headers hold a metre to 0.1 um; damaged ones may hold larger numbers.
SAME = {"rtol": 1e-5, "atol": 1e-3}
RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


class Wrong(Exception):
    """Read, but otherwise than the reference reads it."""


@dataclass(frozen=True)
class Target:
    """A kind of file.

    Attributes
    ----------
    name : of the target.
    seeds : variants, each {file name: content}; the first file is what is read.
    read : reads a path and compares; ConcordctError where it is refused.
    reads_file : whether the path is the first file, else the folder.
    """

    name: str
    seeds: dict[str, dict[str, bytes]]
    read: Callable[[Path], None]
    reads_file: bool = True


def _volumes() -> dict[str, dict[str, bytes]]:
    """Every format, as we write it and as others do, deflated and raw, attached and detached."""
    hu = np.random.default_rng(5).integers(-1000, 1500, (5, 12, 14)).astype(np.float32)
    affine = np.array([[0, 0.05, 0.7, -80], [0, 0.7, -0.05, -90], [2.5, 0, 0, 40], [0, 0, 0, 1.0]])
    seeds: dict[str, dict[str, bytes]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for ending in (".nii", ".nii.gz", ".nrrd", ".mha", ".mhd"):
            write_volume_file(folder / ending[1:] / f"a{ending}", Volume(hu, affine))
        for kind in ("nrrd", "nhdr", "mha", "mhd"):
            image = sitk.GetImageFromArray(hu.astype(np.float32 if kind == "mhd" else np.int16))
            image.SetSpacing((0.7, 0.7, 2.5))
            place = folder / f"itk-{kind}"
            place.mkdir()
            sitk.WriteImage(image, str(place / f"a.{kind}"), kind == "nhdr")
        for kind, ending in ((nibabel.Nifti1Image, ".nii.gz"), (nibabel.Nifti2Image, ".nii")):
            place = folder / kind.__name__
            place.mkdir()
            own = kind(hu.T.astype(np.int16), RAS @ affine[:, [2, 1, 0, 3]])
            own.set_qform(np.diag([1.0, 2, 3, 1]), 1)
            own.header.set_slope_inter(2, -10)
            nibabel.save(own, place / f"a{ending}")
        for place in sorted(folder.iterdir()):
            files = sorted(
                place.iterdir(), key=lambda one: one.suffix in (".zraw", ".raw", ".gz") and "nii" not in one.name
            )
            seeds[place.name] = {one.name: one.read_bytes() for one in files}
    return seeds


def _only(seeds: dict[str, dict[str, bytes]], *endings: str) -> dict[str, dict[str, bytes]]:
    return {name: files for name, files in seeds.items() if next(iter(files)).endswith(endings)}


def read_volume(path: Path) -> None:
    """HU and the map to millimetres, against nibabel (NIfTI) and SimpleITK (the rest)."""
    file = open_volume_file(path)
    hu = file.read(allow={"tilt"}) and file.stored_hu(0, file.shape[0])
    affine = file.affine[:, [2, 1, 0, 3]]
    turned = file.axial()
    if not np.isclose(float(turned.stored_hu(0, turned.shape[0]).sum(dtype=np.float64)), hu.sum(dtype=np.float64)):
        raise Wrong("turned voxels are other voxels")
    reference = _by_nibabel(path) if ".nii" in path.name else _by_itk(path)
    if reference is None:
        return
    expected, place = reference
    if place is not None and not np.allclose(affine, place, **SAME):
        raise Wrong(f"lies elsewhere: {np.abs(affine - place).max():g}")
    if expected.shape != hu.shape or not np.allclose(hu, expected, **SAME):
        raise Wrong("other HU")


def _by_nibabel(path: Path) -> tuple[NDArray[Any], NDArray[np.float64] | None] | None:
    try:
        image = nibabel.load(path)
        data = np.asarray(image.dataobj, dtype=np.float64)
        data = data.reshape(data.shape[:3]).T.astype(np.float32)
        coded = int(image.header["sform_code"]) > 0 or int(image.header["qform_code"]) > 0
        return data, RAS @ image.affine if coded else None
    except Exception:
        return None


def _by_itk(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]] | None:
    """As SimpleITK reads it, in the worker process: damaged headers crash ITK."""
    try:
        found = guarded(by_itk, b"", path=path, file=str(path)).array
    except ConcordctError:
        return None
    shape = [int(size) for size in found[16:19]]
    return found[19:].reshape(shape).astype(np.float32), found[:16].reshape(4, 4)


def by_itk(data: bytes, *, file: str) -> NDArray[np.float64]:
    """Affine, shape and voxels in one row."""
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    image = sitk.ReadImage(file)
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    values = sitk.GetArrayFromImage(image)
    return np.concatenate([affine.ravel(), values.shape, values.ravel()], dtype=np.float64)


def _masks() -> dict[str, dict[str, bytes]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for ending in (".nii.gz", ".nrrd", ".mha"):
            write_labels(folder / f"m{ending}", LABELS, AFFINE)
        structures(folder / "rtstruct.dcm")
        segmentation(folder / "seg.dcm")
        return {one.name: {one.name: one.read_bytes()} for one in sorted(folder.iterdir())}


def read_mask(path: Path) -> None:
    """Labels, against the voxels that nibabel or SimpleITK count; of DICOM ROIs only that nothing else happens."""
    found = read_regions(path, affine=AFFINE, shape=SHAPE, frame_of_reference_uid=FRAME)
    for one in found:
        if not one.name.isprintable() or not one.inside.any():
            raise Wrong("an ROI without voxels or printable name")
    if path.suffix == ".dcm":
        return
    reference = _by_nibabel(path) if ".nii" in path.name else _by_itk(path)
    if reference is None:
        return
    counted = {int(label): int((reference[0] == label).sum()) for label in np.unique(reference[0]) if label > 0}
    if counted != {one.number: int(one.inside.sum()) for one in found}:
        raise Wrong("other labels")


def _bundles() -> dict[str, dict[str, bytes]]:
    with tempfile.TemporaryDirectory() as name:
        place = Path(name) / "model"
        metadata = {"method": "spectral", "info": {"kernels": ["B40f", "B70f"], "pixel_mm": [0.7]}}
        save_bundle(Bundle(tensors={"gain": np.arange(6.0)}, metadata=metadata), place, card="# Card\n")
        files = [one for one in sorted(place.rglob("*")) if one.is_file()]
        return {"bundle": {one.relative_to(place).as_posix(): one.read_bytes() for one in files}}


def _manifests() -> dict[str, dict[str, bytes]]:
    rows = [",".join(COLUMNS), "a,s1,train,x.nii,x.nii,B40f,B70f,3,", "b,s2,test,x.nii,,,,,x.nii"]
    return {"manifest": {"pairs.csv": ("\n".join(rows) + "\n").encode(), "x.nii": b""}}


def _parameters() -> dict[str, dict[str, bytes]]:
    text = "imageType:\n  Original: {}\nfeatureClass:\n  glcm: [Contrast, Idm]\n  firstorder: []\nsetting:\n"
    text += "  binWidth: 25\n  label: 1\n  resampledPixelSpacing: [1, 1, 1]\n"
    aliases = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefg", "bcdefgh", strict=True))
    return {"plain": {"p.yaml": text.encode()}, "aliases": {"p.yaml": (aliases + text).encode()}}


def _quietly(read: Callable[[Path], Any], path: Path) -> None:
    read(path)


_VOLUMES = _volumes()

#: In turn; another kind of file is added here.
TARGETS: list[Target] = [
    Target("nifti", _only(_VOLUMES, ".nii", ".nii.gz"), read_volume),
    Target("nrrd", _only(_VOLUMES, ".nrrd", ".nhdr"), read_volume),
    Target("metaimage", _only(_VOLUMES, ".mha", ".mhd"), read_volume),
    Target("mask", _masks(), read_mask),
    Target("bundle", _bundles(), partial(_quietly, load_bundle), reads_file=False),
    Target("manifest", _manifests(), partial(_quietly, read_manifest)),
    Target("dicom", dicom_seeds(), read_dicom, reads_file=False),
    Target("yaml", _parameters(), partial(_quietly, read_parameters)),
]

__all__ = ["TARGETS", "ConcordctError", "Target", "Wrong"]
