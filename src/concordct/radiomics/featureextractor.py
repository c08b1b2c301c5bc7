"""PyRadiomics' call signature over this package's features.

    from concordct.radiomics import featureextractor
    extractor = featureextractor.RadiomicsFeatureExtractor("Params.yaml")
    result = extractor.execute("image.nrrd", "mask.nrrd")

Names, order and values of the columns are those of PyRadiomics 3.0.1 (van Griethuysen 2017,
doi:10.1158/0008-5472.CAN-17-0339), which does not install on current Python. `docs/from-pyradiomics.md` lists what
differs, most of all that maps voxel by voxel are not made.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from concordct import __version__
from concordct.errors import ConcordctError
from concordct.radiomics.definitions.pyradiomics import CLASSES
from concordct.radiomics.extract import extract
from concordct.radiomics.filters.image_types import IMAGE_TYPES
from concordct.radiomics.parameters import from_parameters
from concordct.volumes.given import read_yaml
from concordct.volumes.masks import read_values
from concordct.volumes.volume import Volume

#: An image and its mask may differ so much in spacing, origin and direction; PyRadiomics' own default of ITK.
GEOMETRY_TOLERANCE = 1e-6
#: PyRadiomics' defaults that are reported and choose the mask.
DEFAULTS: dict[str, Any] = {"label": 1, "label_channel": 0, "additionalInfo": True, "correctMask": False,
                            "geometryTolerance": None, "binWidth": 25}  # fmt: skip

File = str | Path | sitk.Image


class RadiomicsFeatureExtractor:
    """Features of one label of a mask, under a PyRadiomics parameter file.

    Parameters
    ----------
    params : a parameter file (YAML or JSON), or a map of the same sections; PyRadiomics' defaults without.
    settings : override those of the file, as PyRadiomics names them (`binWidth=25`, `label=2`).

    Attributes
    ----------
    settings, enabledImagetypes, enabledFeatures : as in PyRadiomics; they may be changed before `execute`.

    Raises
    ------
    ConcordctError : an unreadable file, or an unknown section, setting, class, feature or image type.
    """

    def __init__(self, params: str | Path | Mapping[str, Any] | None = None, **settings: Any) -> None:
        self.settings: dict[str, Any] = dict(DEFAULTS)
        self.enabledImagetypes: dict[str, dict[str, Any]] = {"Original": {}}
        self.enabledFeatures: dict[str, list[str]] = {}
        self.enableAllFeatures()
        if isinstance(params, Mapping):
            self._apply(params, "the given parameters")
        elif params is not None:
            self.loadParams(params)
        self.settings.update(settings)
        self._chosen()  # what is unknown is refused here and not at the first image

    def loadParams(self, paramsFile: str | Path) -> None:
        """Settings, image types and feature classes of a parameter file in place of the present ones."""
        path = Path(paramsFile)
        try:
            found = read_yaml(path)
        except OSError as error:
            raise ConcordctError(f"cannot read parameters from {path}: {error.strerror}") from None
        self._apply(found or {}, str(path))

    def loadJSONParams(self, JSON_configuration: str) -> None:
        """`loadParams` from a JSON text."""
        try:
            found = json.loads(JSON_configuration)
        except ValueError as error:
            raise ConcordctError(f"expected parameters as JSON, found none: {error}") from error
        self._apply(found, "the JSON parameters")

    def _apply(self, found: Mapping[str, Any], origin: str) -> None:
        from_parameters(found, origin=origin)
        self.settings = {**DEFAULTS, **(found.get("setting") or {})}
        if found.get("imageType"):
            self.enabledImagetypes = {name: dict(own or {}) for name, own in found["imageType"].items()}
        else:
            self.enabledImagetypes = {"Original": {}}
        if found.get("featureClass"):
            self.enabledFeatures = {name: list(members or []) for name, members in found["featureClass"].items()}
        else:
            self.enableAllFeatures()

    def addProvenance(self, provenance_on: bool = True) -> None:
        """Whether `execute` reports image, mask and settings before the features."""
        self.settings["additionalInfo"] = bool(provenance_on)

    def enableAllImageTypes(self) -> None:
        """Every image type, with the custom settings that are there already."""
        for name in IMAGE_TYPES:
            self.enabledImagetypes.setdefault(name, {})

    def disableAllImageTypes(self) -> None:
        """No image type at all."""
        self.enabledImagetypes = {}

    def enableImageTypeByName(
        self, imageType: str, enabled: bool = True, customArgs: Mapping[str, Any] | None = None
    ) -> None:
        """One image type on, with settings of its own, or off."""
        if imageType not in IMAGE_TYPES:
            raise ConcordctError(f"no image type {imageType}; known: {', '.join(IMAGE_TYPES)}")
        if enabled:
            self.enabledImagetypes[imageType] = dict(customArgs or {})
        else:
            self.enabledImagetypes.pop(imageType, None)

    def enableImageTypes(self, **enabledImagetypes: Mapping[str, Any] | None) -> None:
        """These image types with their settings, and no other."""
        self.disableAllImageTypes()
        for name, own in enabledImagetypes.items():
            self.enableImageTypeByName(name, True, own)

    def enableAllFeatures(self) -> None:
        """Every class but the shape of slices, which PyRadiomics leaves off as well."""
        self.enabledFeatures = {name: [] for name in CLASSES if name != "shape2D"}

    def disableAllFeatures(self) -> None:
        """No class at all."""
        self.enabledFeatures = {}

    def enableFeatureClassByName(self, featureClass: str, enabled: bool = True) -> None:
        """One class on, with all of its features, or off."""
        if featureClass not in CLASSES:
            raise ConcordctError(f"no feature class {featureClass}; known: {', '.join(CLASSES)}")
        if enabled:
            self.enabledFeatures[featureClass] = []
        else:
            self.enabledFeatures.pop(featureClass, None)

    def enableFeaturesByName(self, **enabledFeatures: list[str] | None) -> None:
        """Features of classes by their names."""
        for name, members in enabledFeatures.items():
            self.enableFeatureClassByName(name)
            self.enabledFeatures[name] = list(members or [])

    def execute(
        self,
        imageFilepath: File,
        maskFilepath: File,
        label: int | None = None,
        label_channel: int | None = None,
        voxelBased: bool = False,
    ) -> OrderedDict[str, Any]:
        """Features of one label.

        Parameters
        ----------
        imageFilepath, maskFilepath : paths, or SimpleITK images on one grid.
        label : of the mask; the setting `label` (1) when None.
        label_channel : of a mask with several channels; the setting when None.
        voxelBased : maps of features are not made here.

        Returns
        -------
        "diagnostics_..." entries (unless `additionalInfo` is off), then "IMAGETYPE_CLASS_FEATURE" -> float.

        Raises
        ------
        ConcordctError : unreadable files, an image and mask of different geometry, a label that is not there, an ROI
            smaller than the settings allow, maps voxel by voxel.
        """
        if voxelBased:
            raise ConcordctError("expected features of an ROI, found voxelBased: maps voxel by voxel are not made here")
        image, mask = _read(imageFilepath, "image"), _read(maskFilepath, "mask")
        value = int(self.settings["label"] if label is None else label)
        if mask.GetNumberOfComponentsPerPixel() > 1:
            channel = int(self.settings["label_channel"] if label_channel is None else label_channel)
            mask = sitk.VectorIndexSelectionCast(mask, channel)
        # PyRadiomics' own type of masks; its hash is told below
        mask = self._on_the_grid(image, sitk.Cast(mask, sitk.sitkUInt32))
        labels = (sitk.GetArrayFromImage(mask) == value).astype(np.int32)
        if not labels.any():
            there = sorted({int(one) for one in np.unique(sitk.GetArrayViewFromImage(mask))} - {0})
            raise ConcordctError(f"no label {value} in the mask; it holds {', '.join(map(str, there)) or 'no label'}")
        volume = Volume(sitk.GetArrayFromImage(image).astype(np.float32), affine_of(image))
        table = extract(volume, labels, self._chosen())
        values = table.values[0]
        if table.names and np.isnan(values).all():
            raise ConcordctError(f"label {value} is smaller than minimumROIDimensions or minimumROISize allow")
        found: OrderedDict[str, Any] = OrderedDict()
        if self.settings["additionalInfo"]:
            found.update(self._diagnostics(image, mask, labels))
        found.update((name, float(number)) for name, number in zip(table.names, values, strict=True))
        return found

    def _chosen(self) -> Any:
        sections = {
            "setting": self.settings,
            "imageType": self.enabledImagetypes,
            "featureClass": self.enabledFeatures,
        }
        if not self.enabledImagetypes or not self.enabledFeatures:
            raise ConcordctError("expected an image type and a feature class, found none enabled")
        return from_parameters(sections, origin="the extractor's settings")

    def _on_the_grid(self, image: sitk.Image, mask: sitk.Image) -> sitk.Image:
        """The mask, resampled onto the image where `correctMask` says so.

        Raises
        ------
        ConcordctError : another geometry and no `correctMask`.
        """
        tolerance = float(self.settings.get("geometryTolerance") or GEOMETRY_TOLERANCE)
        same = image.GetSize() == mask.GetSize() and all(
            np.allclose(getattr(image, name)(), getattr(mask, name)(), rtol=0, atol=tolerance)
            for name in ("GetSpacing", "GetOrigin", "GetDirection")
        )
        if same:
            return mask
        if not self.settings.get("correctMask"):
            raise ConcordctError(
                f"the mask has another geometry than the image: size {mask.GetSize()} and spacing {mask.GetSpacing()}, "
                f"expected {image.GetSize()} and {image.GetSpacing()} (correctMask resamples it)"
            )
        return sitk.Resample(mask, image, sitk.Transform(), sitk.sitkNearestNeighbor, 0, mask.GetPixelID())

    def _diagnostics(self, image: sitk.Image, mask: sitk.Image, labels: np.ndarray[Any, Any]) -> dict[str, Any]:
        """What PyRadiomics reports before the features; indices are its (x, y, z)."""
        places = np.argwhere(labels)
        low, high = places.min(axis=0), places.max(axis=0)
        middle = places.mean(axis=0)[::-1]
        pixels = sitk.GetArrayViewFromImage(image)
        # A copy: a view would outlive the image that it looks into.
        regions = sitk.GetArrayFromImage(
            sitk.ConnectedComponent(sitk.GetImageFromArray(labels.astype(np.uint8)), True)
        ).max()
        prefix, of = "diagnostics_Image-original", "diagnostics_Mask-original"
        return {
            "diagnostics_Versions_concordct": __version__,
            "diagnostics_Versions_Numpy": np.__version__,
            "diagnostics_Versions_SimpleITK": sitk.Version().VersionString(),
            "diagnostics_Configuration_Settings": dict(self.settings),
            "diagnostics_Configuration_EnabledImageTypes": dict(self.enabledImagetypes),
            f"{prefix}_Hash": sitk.Hash(image),
            f"{prefix}_Dimensionality": "3D",
            f"{prefix}_Spacing": image.GetSpacing(),
            f"{prefix}_Size": image.GetSize(),
            f"{prefix}_Mean": float(np.mean(pixels, dtype=np.float64)),
            f"{prefix}_Minimum": float(pixels.min()),
            f"{prefix}_Maximum": float(pixels.max()),
            f"{of}_Hash": sitk.Hash(mask),
            f"{of}_Spacing": mask.GetSpacing(),
            f"{of}_Size": mask.GetSize(),
            f"{of}_BoundingBox": (*(int(v) for v in low[::-1]), *(int(v) for v in (high - low + 1)[::-1])),
            f"{of}_VoxelNum": len(places),
            f"{of}_VolumeNum": int(regions),
            f"{of}_CenterOfMassIndex": tuple(float(v) for v in middle),
            f"{of}_CenterOfMass": image.TransformContinuousIndexToPhysicalPoint([float(v) for v in middle]),
        }


def affine_of(image: sitk.Image) -> np.ndarray[Any, np.dtype[np.float64]]:
    """[4, 4] index (z, y, x, 1) of a SimpleITK image to LPS mm."""
    affine = np.eye(4)
    affine[:3, :3] = (np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing()))[:, ::-1]
    affine[:3, 3] = image.GetOrigin()
    return affine


def _image_of(values: np.ndarray[Any, Any], affine: np.ndarray[Any, np.dtype[np.float64]]) -> sitk.Image:
    """The inverse of `affine_of`, with its voxels [z, y, x]."""
    image = sitk.GetImageFromArray(values)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing(tuple(float(one) for one in spacing[::-1]))
    image.SetDirection(tuple((affine[:3, :3] / spacing)[:, ::-1].ravel()))
    image.SetOrigin(tuple(float(one) for one in affine[:3, 3]))
    return image


def _read(given: File, what: str) -> sitk.Image:
    image = given if isinstance(given, sitk.Image) else _image_of(*read_values(Path(given)))
    if image.GetDimension() == 2:
        image = sitk.JoinSeries(image)
    if image.GetDimension() != 3:
        raise ConcordctError(f"expected an {what} with three axes, found {image.GetDimension()}")
    return image


def setVerbosity(level: int) -> None:
    """Does nothing: the package logs nothing. Here so that scripts written for PyRadiomics run."""
