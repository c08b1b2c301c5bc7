"""Did it work? Source, standardized and target side by side: HU error, noise power, agreement of radiomic features.

Writes `results.json` and one offline HTML file. The target is read here and nowhere else.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from concordct.errors import ConcordctError
from concordct.methods.models import Model
from concordct.methods.slabs import standardized_slabs
from concordct.methods.standardizer import Mode
from concordct.pipelines.records import recorded_check
from concordct.pipelines.results import (
    STAGES,
    Gathered,
    bias_results,
    case_results,
    curves,
    features_results,
    nps_results,
    provenance,
    quality_results,
    signal_results,
)
from concordct.radiomics.definitions.pyradiomics import PyRadiomics
from concordct.radiomics.extract import Settings, extract
from concordct.radiomics.presets import settings_for
from concordct.radiomics.regions.rois import grid_rois
from concordct.report.evaluation import Stack, write_evaluation_report
from concordct.signal.body import body_mask
from concordct.signal.quality import bias_by_range, compare_images
from concordct.signal.spectra import Rings, cosine_frequencies, noise_power, to_cosines
from concordct.volumes.ct_range import ct_range
from concordct.volumes.masks import read_regions, to_labels
from concordct.volumes.pairing import SAME_POSITION_MM
from concordct.volumes.place import atomic_directory
from concordct.volumes.scans import Scan, evenly_spaced, one_scan, paired_scans
from concordct.volumes.volume import Volume

#: Span of HU that PSNR and SSIM refer to: the 12 bits of a CT image.
DATA_RANGE_HU = 4096.0
#: ROIs without a mask: squares of this many pixels, at most so many in each pair, on evenly spread slices.
ROI_PIXELS, MOST_ROIS = 28, 600
#: Patches that noise power is measured in, pixels; the smaller where the body holds none of the larger.
NPS_PATCHES = (32, 16)
#: Textures of 2D ROIs at PyRadiomics' default bin width for CT; the classes that do not depend on shape.
FEATURES = PyRadiomics(
    classes=dict.fromkeys(("firstorder", "glcm", "glrlm", "glszm", "gldm", "ngtdm"), ()),
    bin_width=25.0,
    force_2d=True,
)


@dataclass(frozen=True, eq=False)
class Case:
    """One scan to judge.

    Attributes
    ----------
    subject : pseudonym; intervals are over subjects.
    standardized : a scan, or None to standardize the source now with the model.
    mask : ROIs on the same grid, as `features.masks.read_regions` reads them: labels in a volume file, DICOM SEG or
        RTSTRUCT. None for a grid over the body.
    """

    subject: str
    source: Scan
    standardized: Scan | None
    target: Scan
    mask: Path | None = None


#: Called with (cases done, cases in all).
Progress = Callable[[int, int], None]


def evaluate(
    cases: Sequence[Case],
    output: Path,
    *,
    model: Model | None = None,
    mode: Mode = "sample",
    seed: int = 0,
    preset: str | None = None,
    origin: str = "",
    allow: frozenset[str] = frozenset(),
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Judge standardized scans against their targets and write the report.

    Parameters
    ----------
    model : needed where a case has no standardized scan; its curves are shown.
    mode, seed : how such a case is standardized.
    preset : features to compare, a name of `features.presets` or a PyRadiomics parameter file; None for 2D textures.
    origin : what was simulated and what was real, in words, for the report.
    allow : geometry problems that may pass.

    Returns
    -------
    What `results.json` holds.

    Raises
    ------
    ConcordctError : no case, volumes that do not match, a mask that does not fit, an output that exists.
    """
    if not cases:
        raise ConcordctError("expected at least one case to evaluate, found none")
    settings = FEATURES if preset is None else settings_for(preset)
    gathered = Gathered()
    warnings: list[str] = []
    shown: tuple[Volume, ...] = ()
    for index, case in enumerate(cases):
        volumes = _volumes(case, model, mode, seed, allow)
        _gather(gathered, case, volumes, settings, warnings)
        shown = shown or volumes
        if progress is not None:
            progress(index + 1, len(cases))
    results = _results(gathered, cases, warnings, model=model, mode=mode, seed=seed, preset=preset, origin=origin)
    positions = [float(shown[0].affine[2, 3] + i * shown[0].affine[2, 0]) for i in range(shown[0].shape[0])]
    with atomic_directory(output, overwrite=overwrite, ours="results.json") as aside:
        (aside / "results.json").write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
        write_evaluation_report(
            aside / "report.html",
            results=results,
            stacks=[
                Stack(name, np.rint(volume.hu).astype(np.int16))
                for name, volume in zip((*STAGES, "target"), shown, strict=True)
            ],
            spacing_mm=shown[0].spacing_mm,
            slice_positions_mm=positions,
            curves=curves(gathered, model),
            title=_title(cases[0]),
            affine=shown[0].affine,
        )
    return results


def one_case(source: Path, standardized: Path, target: Path, mask: Path | None) -> tuple[Case, ...]:
    """The case that three paths and perhaps a mask make."""
    return (Case("one", one_scan(source), one_scan(standardized), one_scan(target), mask),)


def cases_of_manifest(path: Path, *, split: str | None = "test") -> tuple[Case, ...]:
    """The pairs of a manifest, still to be standardized.

    Raises
    ------
    ConcordctError : a bad manifest, or no pair in the split.
    """
    return tuple(Case(p.subject, p.source, None, p.target, p.mask) for p in paired_scans(path, split=split))


def _title(case: Case) -> str:
    source, target = (scan.kernel or "source" for scan in (case.source, case.target))
    return f"{source} standardized to {target}"


def _volumes(case: Case, model: Model | None, mode: Mode, seed: int, allow: frozenset[str]) -> tuple[Volume, ...]:
    source, target = (scan.read(allow=allow) for scan in (case.source, case.target))
    if case.standardized is not None:
        standardized = case.standardized.read(allow=allow)
    elif model is not None:
        standardizer = model.standardizer(mode=mode, use_neighbours=evenly_spaced(case.source))
        slabs = standardized_slabs(case.source, standardizer, seed=seed, allow=allow)
        # As it would have been stored: whole HU inside the range of a CT image.
        planes = (plane for slab in slabs for plane in slab.hu)
        stored = [np.clip(np.rint(new), *ct_range(old, None)) for new, old in zip(planes, source.hu, strict=True)]
        standardized = source.with_hu(np.stack(stored))
    else:
        raise ConcordctError("expected a standardized scan or a model to make it with, found neither")
    for name, volume in (("standardized", standardized), ("target", target)):
        if volume.shape != source.shape:
            raise ConcordctError(f"expected a {name} volume of shape {source.shape}, found {volume.shape}")
        offset = float(np.abs(volume.affine - source.affine).max())
        if offset > SAME_POSITION_MM:
            raise ConcordctError(f"expected a {name} volume in the place of its source, found it {offset:.2f} mm off")
    return source, standardized, target


def _gather(found: Gathered, case: Case, volumes: tuple[Volume, ...], settings: Settings, warnings: list[str]) -> None:
    source, standardized, target = volumes
    for name, volume in (("standardized scan", standardized), ("target", target)):
        if np.array_equal(volume.hu, source.hu):
            warnings.append(f"the {name} equals the source, voxel for voxel")
    region, rois = _regions(case, source, warnings)
    in_plane = source.spacing_mm[1:]
    for stage, volume in zip(STAGES, volumes, strict=False):
        found.quality[stage].append(compare_images(volume.hu, target.hu, region, data_range_hu=DATA_RANGE_HU))
        found.bias[stage].append(bias_by_range(volume.hu, target.hu, region))
    if rois is not None:
        for stage, volume in zip((*STAGES, "target"), volumes, strict=True):
            table = extract(volume, rois, settings)
            found.features.setdefault(stage, []).append(table.values)
            found.names, found.classes = table.names, table.classes
        found.roi_subjects += [case.subject] * len(table.rois)
    body = body_mask(source.hu)
    for patch in NPS_PATCHES:
        powers = [noise_power(volume.hu, body, spacing_mm=in_plane, patch=patch) for volume in volumes]
        if len(powers[0].nps_hu2_mm2):
            for stage, power in zip((*STAGES, "target"), powers, strict=True):
                found.noise.setdefault(stage, []).append(power)
            break
    if found.rings is None:
        found.rings, found.pixel_mm = Rings.covering(in_plane, 128), in_plane[1]
    _add_spectra(found, volumes)


def _regions(case: Case, source: Volume, warnings: list[str]) -> tuple[NDArray[np.bool_], NDArray[np.int32] | None]:
    """Where HU are compared, and the ROIs (None where none fits)."""
    if case.mask is not None:
        labels = to_labels(read_regions(case.mask, affine=source.affine, shape=source.shape))
        return labels > 0, labels
    region = body_mask(source.hu)
    if source.padding is not None:
        region &= ~source.padding
    if not region.any():
        raise ConcordctError("expected a body (a region above -500 HU) to compare in, found none; name a --mask")
    try:
        rois = grid_rois(region, size=ROI_PIXELS)
    except ConcordctError as error:
        warnings.append(f"features were not compared: {error}")
        return region, None
    count = int(rois.max())
    if count > MOST_ROIS:
        keep = np.linspace(0, source.shape[0] - 1, max(1, source.shape[0] * MOST_ROIS // count)).round().astype(int)
        thinned = np.zeros_like(rois)
        thinned[keep] = rois[keep]
        rois = thinned
    return region, rois


def _add_spectra(found: Gathered, volumes: tuple[Volume, ...]) -> None:
    """Ring sums for the signal transfer and the coherence of source and standardized with the target."""
    rings = found.rings
    assert rings is not None
    ring = rings.index(cosine_frequencies(volumes[0].shape[1:], volumes[0].spacing_mm[1:]))
    sums = found.spectra or {name: np.zeros(rings.count) for name in ("tt", "ss", "st", "yy", "yt")}
    for s, y, t in zip(*(volume.hu for volume in volumes), strict=True):
        a, b, c = to_cosines(s), to_cosines(y), to_cosines(t)
        for name, product in (("tt", c * c), ("ss", a * a), ("st", a * c), ("yy", b * b), ("yt", b * c)):
            sums[name] = sums[name] + rings.sum(ring, product)
    found.spectra = sums


def _results(
    found: Gathered,
    cases: Sequence[Case],
    warnings: list[str],
    *,
    model: Model | None,
    mode: Mode,
    seed: int,
    preset: str | None,
    origin: str,
) -> dict[str, Any]:
    region = "inside the given masks" if all(case.mask for case in cases) else "inside the body"
    results: dict[str, Any] = {
        "schema": 1,
        "inputs": {
            "cases": len(cases),
            "subjects": len({case.subject for case in cases}),
            "source_kernels": sorted({case.source.kernel for case in cases if case.source.kernel}),
            "target_kernels": sorted({case.target.kernel for case in cases if case.target.kernel}),
            "slices": sum(case.source.shape[0] for case in cases),
        },
        "model": None if model is None else {"method": model.bundle.method, "sha256": model.sha256, "mode": mode},
        "provenance": {**provenance(), "seed": seed, "simulated_or_real": origin},
        "image_quality": quality_results(found, region),
        "cases": case_results(found, [case.subject for case in cases]),
        "bias_by_hu_range": bias_results(found),
    }
    results["signal"] = signal_results(found)
    if found.features:
        rois = "the mask's labels" if all(case.mask for case in cases) else f"{ROI_PIXELS} x {ROI_PIXELS} pixels"
        what = "2D, bin width 25 HU, original image" if preset is None else Path(preset).name
        results["agreement"] = features_results(found, settings=f"ROIs: {rois}; {what}")
    if found.noise:
        results["nps"] = nps_results(found, warnings)
    checks = [recorded_check(case.standardized) for case in cases if case.standardized is not None]
    checked = [check for check in checks if check is not None]
    if checked:
        results["self_check"] = {
            "scans": len(checked),
            "failed": sum(check["failed"] for check in checked),
            "found": [line for check in checked for line in check["lines"]],
        }
        warnings = [*warnings, *("self-check failed: " + "; ".join(c["lines"]) for c in checked if c["failed"])]
    results["warnings"] = [*warnings, *sorted({note for case in cases for note in case.source.notes})]
    return results
