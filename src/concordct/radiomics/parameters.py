"""PyRadiomics parameter files (YAML or JSON), read as they are.

Source: PyRadiomics 3.0.1, `schemas/paramSchema.yaml` and the defaults of `featureextractor.py`. Settings of
voxel-based maps are read and have no meaning here. What is not supported is refused by name, never ignored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from concordct.errors import ConcordctError
from concordct.radiomics.definitions.pyradiomics import CLASSES, PyRadiomics
from concordct.volumes.given import read_yaml

#: Keys of a parameter file -> attributes of `PyRadiomics`.
SETTINGS = {
    "binWidth": "bin_width",
    "binCount": "bin_count",
    "force2D": "force_2d",
    "force2Ddimension": "force_2d_axis",
    "distances": "distances",
    "gldm_a": "gldm_alpha",
    "symmetricalGLCM": "symmetric_glcm",
    "weightingNorm": "weighting",
    "voxelArrayShift": "voxel_array_shift",
    "normalize": "normalize",
    "normalizeScale": "normalize_scale",
    "removeOutliers": "remove_outliers",
    "resampledPixelSpacing": "resampled_spacing_mm",
    "interpolator": "interpolator",
    "padDistance": "pad_distance",
    "preCrop": "pre_crop",
    "resegmentRange": "resegment_range",
    "resegmentMode": "resegment_mode",
    "resegmentShape": "resegment_shape",
    "minimumROIDimensions": "least_dimensions",
    "minimumROISize": "least_voxels",
}

#: Keys of a parameter file -> attributes of `FilterSettings`.
FILTERS = {
    "sigma": "sigma",
    "wavelet": "wavelet",
    "start_level": "start_level",
    "level": "level",
    "gradientUseSpacing": "gradient_use_spacing",
    "lbp2DRadius": "lbp_2d_radius",
    "lbp2DSamples": "lbp_2d_samples",
    "lbp2DMethod": "lbp_2d_method",
    "lbp3DLevels": "lbp_3d_levels",
    "lbp3DIcosphereRadius": "lbp_3d_radius",
    "lbp3DIcosphereSubdivision": "lbp_3d_subdivision",
}

#: What kind of value a key takes, one or a list: whole numbers from a least one, numbers above or at least a bound.
_WHOLE = {
    "binCount": 1, "force2Ddimension": 0, "distances": 1, "gldm_a": 0, "padDistance": 0, "minimumROIDimensions": 0,
    "minimumROISize": 0, "start_level": 0, "level": 1, "lbp2DSamples": 1, "lbp3DLevels": 1,
    "lbp3DIcosphereSubdivision": 0,
}  # fmt: skip
_ABOVE_0 = ("binWidth", "sigma", "lbp2DRadius", "lbp3DIcosphereRadius")
_NUMBERS = ("voxelArrayShift", "normalizeScale", "removeOutliers", "resampledPixelSpacing", "resegmentRange")
_LISTS = ("sigma", "distances", "resampledPixelSpacing", "resegmentRange")

#: Keys that choose the mask or what is reported, not how features are computed: masks come as labels here.
WITHOUT_EFFECT = ("additionalInfo", "label", "label_channel", "geometryTolerance", "correctMask")

#: PyRadiomics' own defaults where they differ from those of `PyRadiomics`.
DEFAULTS: Mapping[str, Any] = {"bin_width": 25.0, "least_dimensions": 2}


def read_parameters(path: Path) -> PyRadiomics:
    """The settings of a PyRadiomics parameter file.

    Raises
    ------
    ConcordctError : unreadable file, unknown section, key, class, feature or image type, or a value of the wrong kind.
    """
    try:
        found = read_yaml(path)
    except OSError as error:
        raise ConcordctError(f"cannot read parameters from {path}: {error.strerror}") from None
    try:
        return from_parameters(found or {}, origin=str(path))
    except (AttributeError, TypeError, ValueError, KeyError) as error:
        raise ConcordctError(
            f"{path}: expected settings as PyRadiomics takes them, found another kind of value"
        ) from error


def from_parameters(found: Mapping[str, Any], *, origin: str) -> PyRadiomics:
    """`read_parameters` from what the file holds; `origin` names it in errors."""
    if not isinstance(found, Mapping):
        raise ConcordctError(f"a parameter file is a map of sections, found {type(found).__name__} in {origin}")
    unknown = set(found) - {"setting", "imageType", "featureClass", "voxelSetting"}
    if unknown:
        raise ConcordctError(f"unknown section {sorted(map(str, unknown))[0]} in {origin}")
    own = _translated(found.get("setting") or {}, origin)
    filters = {key: own.pop(key) for key in list(own) if key in FILTERS.values()}
    settings = {**DEFAULTS, **{key: value for key, value in own.items() if value is not None}}
    if settings.get("bin_count") is not None:
        settings["bin_width"] = None  # PyRadiomics: a bin count wins over the width
    image_types = {
        name: {**filters, **_translated(custom or {}, origin)}
        for name, custom in (found.get("imageType") or {"Original": {}}).items()
    }
    wanted = found.get("featureClass") or dict.fromkeys(CLASSES)
    classes = {str(name): tuple(map(str, members or ())) for name, members in wanted.items()}
    if not settings.get("force_2d") and not found.get("featureClass"):
        classes.pop("shape2D", None)
    try:
        return PyRadiomics(classes=classes, image_types=image_types, **settings)
    except (ConcordctError, TypeError) as error:
        raise ConcordctError(f"{error} in {origin}") from error


def _translated(given: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """Attributes and values of one map of settings."""
    known = {**SETTINGS, **FILTERS}
    found: dict[str, Any] = {}
    for key, value in given.items():
        if key in WITHOUT_EFFECT:
            continue
        if key not in known:
            raise ConcordctError(f"unknown setting {key} in {origin}")
        _check(key, value, origin)
        attribute = known[key]
        if attribute == "resampled_spacing_mm" and value is not None:
            if len(value) != 3:
                raise ConcordctError(f"resampledPixelSpacing takes 3 spacings (x, y, z), found {value} in {origin}")
            found[attribute] = tuple(float(mm) for mm in reversed(value))
        else:
            found[attribute] = tuple(value) if isinstance(value, list) else value
    return found


def _check(key: str, value: Any, origin: str) -> None:
    """Refuse a value of another kind than its key takes; nothing (null) is the default."""
    if value is None or key not in (*_WHOLE, *_ABOVE_0, *_NUMBERS):
        return
    several = key in _LISTS
    if isinstance(value, list | tuple) != several:
        said = "a list" if several else "one value"
        raise ConcordctError(f"expected {said} as {key}, found {value!r:.60} in {origin}")
    for one in value if several else (value,):
        right = isinstance(one, int | float) and not isinstance(one, bool) and math.isfinite(one)
        expected = "numbers"
        if key in _WHOLE:
            right = right and one == int(one) and one >= _WHOLE[key]
            expected = f"whole numbers from {_WHOLE[key]}"
        elif key in _ABOVE_0:
            right, expected = right and one > 0, "numbers above 0"
        if not right:
            # YAML 1.1 takes 1e-3 for text, 1.0e-3 for a number.
            raise ConcordctError(f"expected {expected} as {key}, found {one!r:.60} in {origin}")
