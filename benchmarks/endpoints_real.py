"""Endpoints on the real pairs that hold lung-like and calcium-like material: two phantoms, so differences alone."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from benchmarks.results import data_folder, table
from concordct.endpoints.catalogue import ENDPOINTS
from concordct.judging.stages import standardized, standardizer_for
from concordct.methods.models import load_model
from concordct.pipelines.calibrate import METHODS, calibrate_pairs
from concordct.signal.body import body_mask
from concordct.volumes.files import write_volume_file
from concordct.volumes.scans import Scan, one_scan
from concordct.volumes.volume import Volume

#: Calibrated on the first slices, judged on the others, after benchmarks/real_pairs.py.
FIRST = 6
LUNG = (
    ("emphysema", "laa950_lungs_percent", "LAA-950, %", 2),
    ("emphysema", "perc15_lungs_hu", "Perc15, HU", 1),
    ("density", "density_lungs_hu", "mean density, HU", 1),
    ("fibrosis", "high_attenuation_percent", "high attenuation, %", 2),
)
BONE = (
    ("calcium", "calcium_volume_ml", "volume from 130 HU, ml", 2),
    ("calcium", "calcium_mass_mg", "mass, mg", 0),
    ("nodules", "nodule_diameter_mm", "diameter of the largest insert at half contrast, mm", 2),
)


def cavities(volume: Volume) -> NDArray[np.uint8]:
    """The printed phantom's two lungs: what is not dense inside the body, its vessels closed in, walls left out."""
    body = body_mask(volume.hu)
    dense = ndimage.gaussian_filter(volume.hu, (0, 1.5, 1.5)) > -300.0
    disc = np.hypot(*np.mgrid[-14:15, -14:15]) <= 14
    found = np.zeros(volume.shape, np.uint8)
    for z, (inside, solid) in enumerate(zip(body, dense, strict=True)):
        hollow = ndimage.binary_closing(np.pad(inside & ~solid, 20), disc)[20:-20, 20:-20] & inside
        labels, count = ndimage.label(ndimage.binary_erosion(hollow, iterations=4))
        sizes = np.bincount(labels.ravel(), minlength=count + 1)
        for label in np.argsort(sizes[1:])[::-1][:2] + 1:
            found[z][labels == label] = 1 if ndimage.center_of_mass(labels == label)[1] < inside.shape[1] / 2 else 2
    return found


def real_section() -> str:
    """The page's last section; says so where the data are missing."""
    data = data_folder()
    if data is None:
        return "## Real pairs\n\nNot run: the real scans were not there."
    with tempfile.TemporaryDirectory() as folder:
        return "## Real pairs (real)\n\n" + "\n\n".join(
            [printed_lungs(data, Path(folder)), head_phantom(data, Path(folder))]
        )


def printed_lungs(data: Path, aside: Path) -> str:
    """Non-linear reconstruction: calibrated on one scan of the phantom, judged on another."""
    place = data / "canon_lung_phantom"
    scans = {name: one_scan(place / name) for name in ("DLR_2", "IR_2", "DLR_3", "IR_3")}
    mask = cavities(scans["IR_3"].read())
    rows = []
    for source, target in (("DLR", "IR"), ("IR", "DLR")):
        stages = converted(scans[f"{source}_2"], scans[f"{target}_2"], scans[f"{source}_3"], aside / f"lung-{source}")
        wanted = scans[f"{target}_3"].read()
        stages["repeat"] = scans[f"{target}_2"].read()
        for name, column, title, decimals in LUNG:
            measure = ENDPOINTS[name].measure
            goal = measure(wanted, mask)[column]
            cells = [f"{measure(image, mask)[column] - goal:+.{decimals}f}" for image in stages.values()]
            rows.append([f"{source} to {target}", title, f"{goal:.{decimals}f}", *cells])
    head = ["pair", "", "target", "source", "`mean`", "`sample`", "a real repeat of the target"]
    return (
        "Printed lung phantom (Canon, deep-learning and iterative reconstruction), 8 slices of 2 mm: calibrated on\n"
        "one scan, judged on another of the same phantom. Its lungs are vessels in air: the endpoints are those of a\n"
        "lung, the numbers are not. Differences to the target; one phantom, so no intervals.\n\n" + table(head, rows)
    )


def head_phantom(data: Path, aside: Path) -> str:
    """Calcium-like: a skull of plastic and its inserts, two kernels."""
    whole = {name: one_scan(data / "philips_head_phantom" / f"{name}_1mm").read() for name in ("UB", "YA")}
    parts: dict[str, tuple[Scan, Scan]] = {}
    for name, volume in whole.items():
        files = [aside / f"{name}-{k}.nii.gz" for k in (1, 2)]
        for path, part in zip(files, (volume.slab(0, FIRST), volume.slab(FIRST, volume.shape[0])), strict=True):
            write_volume_file(path, part)
        parts[name] = (one_scan(files[0]), one_scan(files[1]))
    judged = whole["UB"].slab(FIRST, whole["UB"].shape[0])
    body = body_mask(judged.hu).astype(np.uint8)
    labels, _ = ndimage.label(ndimage.binary_erosion((judged.hu > -400) & (judged.hu < 400), iterations=2))
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    insert = (labels == sizes.argmax()).astype(np.uint8)
    rows = []
    for source, target in (("YA", "UB"), ("UB", "YA")):
        stages = converted(parts[source][0], parts[target][0], parts[source][1], aside / f"head-{source}")
        wanted = parts[target][1].read()
        for name, column, title, decimals in BONE:
            mask = insert if name == "nodules" else body
            measure = ENDPOINTS[name].measure
            goal = measure(wanted, mask)[column]
            cells = [f"{measure(image, mask)[column] - goal:+.{decimals}f}" for image in stages.values()]
            rows.append([f"{source} to {target}", title, f"{goal:.{decimals}f}", *cells])
    head = ["pair", "", "target", "source", "`mean`", "`sample`"]
    return (
        "Philips head phantom, 1 mm: calibrated on slices 0 to 5, judged on 6 to 11. The skull stands for calcium,\n"
        "an insert for a nodule. Differences to the target; one phantom.\n\n" + table(head, rows)
    )


def converted(source: Scan, target: Scan, judged: Scan, place: Path) -> dict[str, Volume]:
    """The judged scan as it is and in both modes of the default method."""
    calibrate_pairs([(source, target)], place, method=METHODS[0])
    model, volume = load_model(place), judged.read()
    return {
        "source": volume,
        "mean": standardized(judged, volume, standardizer_for(judged, model, mode="mean")),
        "sample": standardized(judged, volume, standardizer_for(judged, model, mode="sample")),
    }
