"""Thin slices to thick ones through the verbs: geometry and headers exact, what does not fit is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from scipy import ndimage

from concordct.errors import ConcordctError
from concordct.methods.models import Model, load_model
from concordct.pipelines.calibrate import calibrate_pairs, pairs_of_paths
from concordct.pipelines.standardize import Settings, plan, run
from concordct.volumes.scans import one_scan
from volumes_slices import write_slice

SIDE, THICK_MM = 96, 4.0
WEIGHTS = np.array([0.05, 0.2, 0.5, 0.2, 0.05])
MEAN = Settings("mean")


def thin_hu(slices: int, seed: int, smooth: float = 1) -> np.ndarray:
    """[z, y, x] a cylinder with blobs that change from slice to slice, 1 mm apart."""
    y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    blobs = ndimage.gaussian_filter(np.random.default_rng(seed).normal(0, 1, (slices, SIDE, SIDE)), (smooth, 2, 2))
    return np.rint(np.where(np.hypot(y, x) < SIDE / 2.4, 50 + 150 * blobs / blobs.std(), -1000))


def write(folder: Path, hu: np.ndarray, places: list[float], thickness: float, uid: str, frame: str = "1.2.3") -> Path:
    for index, (image, z) in enumerate(zip(hu, places, strict=True)):
        write_slice(
            folder / f"{index}.dcm", z=z, hu=image, SeriesInstanceUID=uid, SOPInstanceUID=f"{uid}.{index + 1}",
            SliceThickness=thickness, PixelSpacing=[0.7, 0.7], InstanceNumber=100 - index, FrameOfReferenceUID=frame,
            ImagePositionPatient=[-10.0, -20.0, z], TablePosition=5.0,
        )  # fmt: skip
    return folder


def thick_of(hu: np.ndarray, centres: range) -> np.ndarray:
    return np.stack([np.tensordot(WEIGHTS, hu[c - 2 : c + 3], 1) for c in centres])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    place = tmp_path_factory.mktemp("thickness")
    hu, centres = thin_hu(36, 0), range(6, 30, 4)
    thin = write(place / "thin", hu, [100.0 + z for z in range(36)], 1.0, "1.2.10")
    thick = write(place / "thick", thick_of(hu, centres), [100.0 + c for c in centres], THICK_MM, "1.2.11")
    calibrate_pairs(pairs_of_paths(thin, thick), place / "model", method="spectral")
    return load_model(place / "model")


def test_new_slices_lie_where_they_say_and_hold_what_a_thick_scan_would(model: Model, tmp_path: Path) -> None:
    hu = thin_hu(30, 1)
    source = write(tmp_path / "in", hu, [200.0 + z for z in range(30)], 1.0, "1.2.20")
    (record,) = run(plan(source, tmp_path / "out", model, MEAN), model, tmp_path / "out", MEAN)
    assert record.status == "done", record.reason
    made = one_scan(tmp_path / "out").read()
    assert made.spacing_mm[0] == pytest.approx(4.0)
    assert made.slice_thickness_mm == THICK_MM
    first = round(made.affine[2, 3] - 200)
    wanted = thick_of(hu, range(first, first + 4 * made.shape[0], 4))
    body = wanted > -500
    assert np.sqrt(np.mean((made.hu - wanted)[body] ** 2)) < 0.05 * wanted[body].std()

    objects = [pydicom.dcmread(path) for path in sorted((tmp_path / "out").glob("*.dcm"))]
    numbers = [item.InstanceNumber for item in objects]
    assert numbers == sorted(numbers, reverse=True)  # the source counts downward
    assert min(numbers) == 1
    assert len({item.SOPInstanceUID for item in objects}) == len(objects)
    for index, item in enumerate(objects):
        assert float(item.ImagePositionPatient[2]) == 200 + first + 4 * index == float(item.SliceLocation)
        assert (item.SliceThickness, item.SpacingBetweenSlices) == (4, 4)
        assert "TablePosition" not in item
        named = {one.ReferencedSOPInstanceUID for one in item.SourceImageSequence}
        at = first + 4 * index
        assert {f"1.2.20.{k + 1}" for k in range(at - 2, at + 3)} <= named
        assert {one.SpatialLocationsPreserved for one in item.SourceImageSequence} == {"NO"}
    assert "slices of 4 mm" in objects[0].SeriesDescription
    # A second run finds what stands.
    assert run(plan(source, tmp_path / "out", model, MEAN), model, tmp_path / "out", MEAN)[0].stood

    nifti = tmp_path / "out.nii.gz"
    run(plan(source, nifti, model, MEAN), model, nifti, MEAN)
    again = one_scan(nifti).read()
    np.testing.assert_allclose(again.affine, made.affine, atol=1e-4)
    np.testing.assert_array_equal(again.hu, made.hu)


def test_what_cannot_be_made_is_refused_and_a_tree_goes_on(model: Model, tmp_path: Path) -> None:
    hu = thin_hu(24, 2)
    places = [float(z) for z in range(24)]
    write(tmp_path / "in" / "good", hu, places, 1.0, "1.2.30", "1.1")
    write(tmp_path / "in" / "thick", hu[::4], places[::4], 4.0, "1.2.31", "1.2")
    write(tmp_path / "in" / "short", hu[:4], places[:4], 1.0, "1.2.32", "1.3")
    write(tmp_path / "in" / "gap", np.delete(hu, 9, 0), [z for z in places if z != 9], 1.0, "1.2.33", "1.4")
    records = run(plan(tmp_path / "in", tmp_path / "out", model, MEAN), model, tmp_path / "out", MEAN)
    found = {record.input: (record.status, record.reason or "") for record in records}
    assert found["good"][0] == "done"
    assert found["thick"][0] == "skipped"
    assert "makes slices of 4 mm from slices of 1 mm" in found["thick"][1]
    assert "holds a slice of 4 mm" in found["short"][1]
    assert "[gap]" in found["gap"][1]
    with pytest.raises(ConcordctError, match="slices of 4 mm, while the model"):
        plan(tmp_path / "in" / "thick", tmp_path / "x", model, MEAN)


def test_thick_slices_do_not_become_thin_ones(tmp_path: Path) -> None:
    hu, centres = thin_hu(36, 3, smooth=0.5), range(6, 30, 4)
    thin = write(tmp_path / "thin", hu, [100.0 + z for z in range(36)], 1.0, "1.2.40")
    thick = write(tmp_path / "thick", thick_of(hu, centres), [100.0 + c for c in centres], THICK_MM, "1.2.41")
    with pytest.raises(ConcordctError, match="slices of 4 mm do not hold what slices of 1 mm show"):
        calibrate_pairs(pairs_of_paths(thick, thin), tmp_path / "model", method="spectral")
