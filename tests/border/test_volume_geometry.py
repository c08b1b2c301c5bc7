"""Any affine in, the same map from voxels to millimetres out, against nibabel and SimpleITK."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from concordct.errors import ConcordctError
from concordct.volumes.files import ENDINGS, open_volume_file, write_volume_file
from concordct.volumes.masks import read_regions, write_labels
from concordct.volumes.volume import Volume

RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
#: float32 holds a metre to 0.06 um; a corner adds a few of those up.
EXACT_MM = 2e-3
VOXELS = np.random.default_rng(3).integers(-1000, 1000, (4, 5, 6)).astype(np.int16)  # [i, j, k] as nibabel counts

angles = st.floats(-3.1, 3.1)


@st.composite
def affines(draw: st.DrawFn, shear: float = 0.3) -> NDArray[np.float64]:
    """RAS affines: any rotation, flips, an order of axes, spacing, a shear up to a gantry's tilt, an origin."""
    a, b, c = draw(angles), draw(angles) / 2, draw(angles)
    turn = np.eye(3)
    for angle, (p, q) in zip((a, b, c), ((0, 1), (1, 2), (0, 2)), strict=True):
        one = np.eye(3)
        one[[p, q], [p, q]], one[p, q], one[q, p] = np.cos(angle), -np.sin(angle), np.sin(angle)
        turn = turn @ one
    turn = turn[:, draw(st.permutations(range(3)))] * draw(st.tuples(*[st.sampled_from((-1, 1))] * 3))
    sheared = np.eye(3)
    sheared[:2, 2] = draw(st.floats(-shear, shear)), draw(st.sampled_from((0.0, 1e-4)))
    affine = np.eye(4)
    affine[:3, :3] = turn @ sheared * draw(st.tuples(*[st.floats(0.2, 8)] * 3))
    affine[:3, 3] = draw(st.tuples(*[st.floats(-800, 800)] * 3))
    return affine


def far(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Greatest distance of a voxel by two RAS affines over `VOXELS`, mm."""
    index = np.array([[i, j, k, 1] for i in (0, 3) for j in (0, 4) for k in (0, 5)], float)
    return float(np.abs(index @ (one - other).T).max())


def read_by_us(path: Path) -> NDArray[np.float64]:
    """The RAS affine of index (i, j, k) as we read it."""
    affine = open_volume_file(path).affine.copy()
    affine[:3, :3] = affine[:3, 2::-1]
    return RAS @ affine


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sform=affines(), qform=affines(shear=0.0), codes=st.sampled_from([(1, 0), (0, 1), (2, 1), (4, 4), (1, 3)]))
@example(sform=np.diag([-1.0, -1.0, 3.0, 1.0]), qform=np.diag([-1.0, -1.0, 3.0, 1.0]), codes=(1, 1))
def test_nifti_is_read_as_nibabel_reads_it_and_written_back_with_both_forms(
    tmp_path: Path, sform: NDArray[np.float64], qform: NDArray[np.float64], codes: tuple[int, int]
) -> None:
    image = nibabel.Nifti1Image(VOXELS, sform if codes[0] else qform)
    image.set_sform(sform, codes[0])
    image.set_qform(qform, codes[1])
    path, out = tmp_path / "in.nii", tmp_path / "out.nii.gz"
    nibabel.save(image, path)
    best = nibabel.load(path).affine
    assert far(read_by_us(path), best) < EXACT_MM
    for one in (open_volume_file(path), open_volume_file(path).axial()):
        write_volume_file(out, one.read(allow={"tilt"}), source=one, overwrite=True)
        written = nibabel.load(out)
        assert far(written.affine, best) < EXACT_MM
        assert np.array_equal(np.asarray(written.dataobj), VOXELS)
        assert (int(written.header["sform_code"]), int(written.header["qform_code"])) == codes
        if codes[1]:
            assert far(written.get_qform(), nibabel.load(path).get_qform()) < EXACT_MM


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(affine=affines(), ending=st.sampled_from(ENDINGS))
def test_what_is_written_lies_where_the_volume_lay(tmp_path: Path, affine: NDArray[np.float64], ending: str) -> None:
    lps = RAS @ affine
    lps[:3, :3] = lps[:3, 2::-1]
    path = write_volume_file(tmp_path / f"v{ending}", Volume(VOXELS.T.astype(np.float32), lps), overwrite=True)
    assert far(read_by_us(path), affine) < EXACT_MM
    if ".nii" in ending:
        image = nibabel.load(path)
        assert far(image.affine, affine) < EXACT_MM
        if image.header["qform_code"]:  # only where it can hold the geometry
            assert far(image.get_qform(), affine) < 2e-2
    else:
        image = sitk.ReadImage(str(path))
        columns = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
        assert far(RAS @ np.vstack([np.column_stack([columns, image.GetOrigin()]), [0, 0, 0, 1]]), affine) < EXACT_MM
        assert np.array_equal(sitk.GetArrayFromImage(image), VOXELS.T)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    affine=affines(),
    order=st.permutations(range(3)),
    flips=st.tuples(*[st.booleans()] * 3),
    ending=st.sampled_from((".nii", ".nrrd", ".mha")),
)
def test_masks_lie_where_scans_do_whatever_their_storage(
    tmp_path: Path, affine: NDArray[np.float64], order: list[int], flips: tuple[bool, ...], ending: str
) -> None:
    labels = np.zeros((4, 5, 6), np.uint8)
    labels[1:3, 2:4, 1:5] = 1
    labels[3, 4, 5] = 7
    lps = RAS @ affine
    stored, own = labels, lps.copy()
    for axis, flip in enumerate(flips):
        if flip:
            stored = np.flip(stored, axis)
            own[:3, 3] += own[:3, axis] * (labels.shape[axis] - 1)
            own[:3, axis] *= -1
    stored, own[:3, :3] = stored.transpose(order), own[:3, order]
    write_labels(tmp_path / f"m{ending}", np.ascontiguousarray(stored), own, overwrite=True)
    found = read_regions(tmp_path / f"m{ending}", affine=lps, shape=labels.shape)
    assert [one.number for one in found] == [1, 7]
    assert np.array_equal(found[0].mask, labels == 1)
    assert np.array_equal(found[1].mask, labels == 7)


def nifti(path: Path, affine: NDArray[np.float64], **header: object) -> Path:
    image = nibabel.Nifti1Image(VOXELS, affine)
    for name, value in header.items():
        image.header[name] = value
    nibabel.save(image, path)
    return path


@pytest.mark.parametrize("length", [1.00005, 1.0004, 1.001])
def test_a_half_turn_a_little_too_long_is_made_one(tmp_path: Path, length: float) -> None:
    """As nifti1_io.c does; nibabel refuses it, and reads what is written of it."""
    half_turn = np.diag([-0.7, -0.7, 3.0, 1.0])
    image = nibabel.Nifti1Image(VOXELS, half_turn)
    image.set_sform(None, 0)
    image.set_qform(half_turn, 1)
    image.header["quatern_d"] = length
    data = image.header.binaryblock + bytes(4) + VOXELS.tobytes(order="F")
    (tmp_path / "a.nii").write_bytes(data[:108] + np.float32(352).tobytes() + data[112:344] + b"n+1\0" + data[348:])
    if length > 1.0005:
        with pytest.raises(ConcordctError, match="the qform is no rotation"):
            open_volume_file(tmp_path / "a.nii")
        return
    opened = open_volume_file(tmp_path / "a.nii")
    assert far(read_by_us(tmp_path / "a.nii"), half_turn) < 1e-5
    write_volume_file(tmp_path / "b.nii", opened.read(), source=opened)
    assert far(nibabel.load(tmp_path / "b.nii").get_qform(), half_turn) < 1e-5


def test_a_form_without_a_code_does_not_count_and_disagreement_is_noted(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(VOXELS, np.eye(4))
    image.set_sform(np.diag([-1.0, -1.0, 3.0, 1.0]), 2)
    moved = np.diag([-1.0, -1.0, 3.0, 1.0])
    moved[2, 3] = 6
    image.set_qform(moved, 1)
    nibabel.save(image, tmp_path / "a.nii")
    assert open_volume_file(tmp_path / "a.nii").notes[0].startswith("sform and qform place voxels up to 6 mm apart")
    image.set_sform(np.eye(4), 0)
    nibabel.save(image, tmp_path / "b.nii")
    assert far(read_by_us(tmp_path / "b.nii"), moved) < EXACT_MM
    assert not any("apart" in note for note in open_volume_file(tmp_path / "b.nii").notes)


def test_shear_of_rounding_passes_a_gantry_tilt_needs_leave(tmp_path: Path) -> None:
    affine = np.diag([-0.8, -0.8, 3.0, 1.0])
    affine[0, 1] = affine[1, 2] = 1e-4
    assert open_volume_file(nifti(tmp_path / "a.nii", affine)).check({"units"}) == ()
    affine[1, 2] = 3 * np.tan(np.radians(18.5))
    file = open_volume_file(nifti(tmp_path / "b.nii", affine))
    for refused in (file.check, file.read):
        with pytest.raises(ConcordctError, match=r"gantry tilt of 18\.5 degrees .*\[tilt\]"):
            refused()
    assert [problem.code for problem in file.check({"tilt"})] == ["tilt"]
    affine[1, 2], affine[0, 1] = 0, 0.2
    with pytest.raises(ConcordctError, match=r"rows and columns meet at 76\.\d degrees"):
        open_volume_file(nifti(tmp_path / "c.nii", affine)).read()


def test_slope_of_zero_means_no_scaling(tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    nifti(path, np.eye(4))
    raw = bytearray(path.read_bytes())
    raw[112:120] = np.array([0, -1024], "<f4").tobytes()
    path.write_bytes(raw)
    assert np.array_equal(open_volume_file(path).stored_hu(0, 6), VOXELS.T)
    raw[112:120] = np.array([2, -1024], "<f4").tobytes()
    path.write_bytes(raw)
    assert np.array_equal(open_volume_file(path).stored_hu(0, 6), VOXELS.T * 2.0 - 1024)


@pytest.mark.parametrize("order", ["<", ">"])
def test_nifti_2_and_both_byte_orders_are_read(tmp_path: Path, order: str) -> None:
    affine = np.array([[0, -0.7, 0, 5], [-0.7, 0, 0.0, 6], [0, 0, 2.5, 7], [0, 0, 0, 1]])
    for kind, header in ((nibabel.Nifti1Image, nibabel.Nifti1Header), (nibabel.Nifti2Image, nibabel.Nifti2Header)):
        path = tmp_path / f"{kind.__name__}.nii"
        nibabel.save(kind(VOXELS, affine, header(endianness=order)), path)
        assert far(read_by_us(path), affine) < EXACT_MM
        assert np.array_equal(open_volume_file(path).stored_hu(0, 6), VOXELS.T)


@pytest.mark.parametrize("axes", ["PIR", "ASR", "RSA", "LPS", "SAL"])
def test_axial_slices_stored_in_another_order_are_turned_and_turned_back(tmp_path: Path, axes: str) -> None:
    voxels = np.random.default_rng(1).integers(-1000, 1000, (8, 7, 5)).astype(np.int16)
    image = nibabel.Nifti1Image(voxels, np.diag([-0.8, -0.8, 3.0, 1.0]))
    of = nibabel.orientations
    stored = image.as_reoriented(of.ornt_transform(of.io_orientation(image.affine), of.axcodes2ornt(axes)))
    nibabel.save(stored, tmp_path / "in.nii.gz")
    file = open_volume_file(tmp_path / "in.nii.gz").axial()
    assert file.shape == (5, 7, 8)
    assert int(np.argmax(np.abs(file.affine[:3, 0]))) == 2
    again = write_volume_file(tmp_path / "out.nii.gz", [file.read(0, 2), file.read(2, 5)], source=file)
    assert np.array_equal(np.asarray(nibabel.load(again).dataobj), np.asarray(stored.dataobj))
    assert np.allclose(nibabel.load(again).affine, stored.affine)


def test_a_sagittal_reformat_is_left_as_it_is_stored(tmp_path: Path) -> None:
    affine = np.array([[0, 0, 5.0, 0], [-0.8, 0, 0, 0], [0, -0.8, 0, 0], [0, 0, 0, 1]])
    file = open_volume_file(nifti(tmp_path / "a.nii", affine)).axial()
    assert file.shape == (6, 5, 4)
    assert any("not axial" in note for note in file.notes)
