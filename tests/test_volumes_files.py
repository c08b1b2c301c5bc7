"""NIfTI, NRRD and MetaImage: geometry against bytes written by hand, exact round trips, one-line refusals."""

from __future__ import annotations

import gzip
import hashlib
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from concordct.errors import ConcordctError
from concordct.volumes.files import ENDINGS, open_volume_file, write_volume_file
from concordct.volumes.find import find_series
from concordct.volumes.volume import AIR_HU, Volume
from volumes_slices import write_stack


def nifti(
    data: np.ndarray,
    *,
    datatype: int = 4,
    bitpix: int = 16,
    dims: tuple[int, ...] | None = None,
    ras: np.ndarray | None = None,
    slope: float = 1.0,
    inter: float = 0.0,
) -> bytes:
    """A NIfTI-1 file by the layout of nifti1.h: 348 bytes of header, 4 of extension, data in x, y, z order."""
    shape = dims if dims is not None else data.shape[::-1]
    dim = (len(shape), *shape, *([1] * (7 - len(shape))))
    ras = np.array([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]) if ras is None else ras
    zooms = np.linalg.norm(ras[:, :3], axis=0)
    header = struct.pack("<i10s18sihcB", 348, b"", b"", 0, 0, b"r", 0)
    header += struct.pack("<8h", *dim)
    header += struct.pack("<3f4h", 0, 0, 0, 0, datatype, bitpix, 0)
    header += struct.pack("<8f", 1, *zooms, 1, 0, 0, 0)
    header += struct.pack("<3fhBB4f2i", 352, slope, inter, 0, 0, 2, 0, 0, 0, 0, 0, 0)
    header += struct.pack("<80s24s2h", b"", b"", 0, 1)  # qform 0, sform 1
    header += struct.pack("<6f", *([0.0] * 6))
    header += struct.pack("<12f", *ras.ravel())
    header += struct.pack("<16s4s", b"", b"n+1\0")
    assert len(header) == 348
    return header + b"\0\0\0\0" + data.tobytes()


RNG = np.random.default_rng(11)
HU = RNG.integers(-1000, 1500, (3, 4, 5)).astype("<i2")


def make(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content) if path.name.endswith(".gz") else content)
    return path


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_nifti_ras_by_hand_becomes_lps(tmp_path: Path, ending: str) -> None:
    ras = np.array([[0.7, 0, 0, 11], [0, 0.8, 0, -22], [0, 0, 2.5, 33]])
    file = open_volume_file(make(tmp_path / f"a{ending}", nifti(HU, ras=ras)))
    assert file.shape == (3, 4, 5)
    assert file.spacing_mm == pytest.approx((2.5, 0.8, 0.7))
    for z, y, x in [(0, 0, 0), (2, 3, 4), (1, 0, 2)]:
        right, anterior, superior = ras @ [x, y, z, 1]
        assert file.affine @ [z, y, x, 1] == pytest.approx([-right, -anterior, superior, 1], abs=1e-5)
        assert file.read().hu[z, y, x] == HU[z, y, x]


def test_oblique_nifti_by_hand(tmp_path: Path) -> None:
    angle = np.radians(20)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    ras = np.column_stack([turn * [0.9, 0.9, 3.0], [5, 6, 7]])
    file = open_volume_file(make(tmp_path / "a.nii", nifti(HU, ras=ras)))
    expected = ras @ [4, 2, 1, 1] * [-1, -1, 1]
    assert file.affine @ [1, 2, 4, 1] == pytest.approx([*expected, 1], abs=1e-4)
    write_volume_file(tmp_path / "b.nii", file.read())
    assert open_volume_file(tmp_path / "b.nii").affine == pytest.approx(file.affine, abs=1e-4)


def test_nifti_rescale_is_applied(tmp_path: Path) -> None:
    file = open_volume_file(make(tmp_path / "a.nii", nifti(HU, slope=0.5, inter=-100)))
    assert file.read().hu == pytest.approx(HU * 0.5 - 100)


@pytest.mark.parametrize("ending", ENDINGS)
def test_real_volumes_round_trip_exactly(shared_data: Path, tmp_path: Path, ending: str) -> None:
    sources = [shared_data / "lung_lowres" / "ct-64-moved.nrrd", shared_data / "ibsi_1" / "ct_phantom_image.nii.gz"]
    sources.append(next((shared_data / "mayo_L067_kernel_pairs").glob("sharp*")))
    for index, path in enumerate(sources):
        file = open_volume_file(path)
        out = write_volume_file(tmp_path / f"{index}{ending}", file.read(), source=file)
        again = open_volume_file(out)
        assert np.array_equal(again.stored_hu(0, file.shape[0]), file.stored_hu(0, file.shape[0]))
        assert again.key == file.key
        # NIfTI stores its affine as float32: one part in ten million of a position of a metre.
        assert again.affine == pytest.approx(file.affine, abs=1e-4 if "nii" in ending else 1e-9)
        assert sitk.ReadImage(str(out)).GetPixelID() == sitk.sitkInt16


@pytest.mark.parametrize("ending", ENDINGS)
def test_same_bytes_twice_and_from_slabs(tmp_path: Path, ending: str) -> None:
    volume = Volume(hu=HU.astype(np.float32), affine=np.diag([2.5, 0.8, 0.7, 1.0]))
    digests = set()
    for folder, slabs in [("a", volume), ("b", volume), ("c", (volume.slab(k, k + 1) for k in range(3)))]:
        path = tmp_path / folder / f"v{ending}"
        write_volume_file(path, slabs)
        parts = sorted(path.parent.iterdir())
        digests.add(hashlib.sha256(b"".join(part.read_bytes() for part in parts)).hexdigest())
    assert len(digests) == 1


@settings(max_examples=25, deadline=None)
@given(
    spacing=st.tuples(*[st.floats(0.2, 10)] * 3),
    origin=st.tuples(*[st.floats(-1000, 1000)] * 3),
    angle=st.floats(-3, 3),
    ending=st.sampled_from(ENDINGS),
)
def test_any_geometry_round_trips(
    tmp_path_factory: pytest.TempPathFactory,
    spacing: tuple[float, ...],
    origin: tuple[float, ...],
    angle: float,
    ending: str,
) -> None:
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn[:, ::-1] * np.array(spacing)
    affine[:3, 3] = origin
    path = tmp_path_factory.mktemp("g") / f"v{ending}"
    write_volume_file(path, Volume(hu=HU.astype(np.float32), affine=affine))
    assert open_volume_file(path).affine == pytest.approx(affine, abs=1e-3 if "nii" in ending else 1e-6)


def test_rounding_and_type(tmp_path: Path) -> None:
    hu = HU.astype(np.float32) + np.float32(0.4)
    volume = Volume(hu=hu, affine=np.eye(4))
    whole = open_volume_file(write_volume_file(tmp_path / "a.mha", volume)).stored_hu(0, 3)
    assert np.array_equal(whole, HU)
    exact = open_volume_file(write_volume_file(tmp_path / "b.mha", volume, whole_hu=False)).stored_hu(0, 3)
    assert np.array_equal(exact, hu)
    hu[0, 0, 0] = 40_000.4
    path = write_volume_file(tmp_path / "c.mha", volume)
    assert sitk.ReadImage(str(path)).GetPixelID() == sitk.sitkFloat32
    assert open_volume_file(path).stored_hu(0, 1)[0, 0, 0] == 40_000


def test_padding_is_found_and_put_back(tmp_path: Path) -> None:
    hu = np.full((2, 32, 32), -3024, dtype="<i2")
    hu[:, 8:24, 8:24] = 30
    hu[0, 16, 16] = -3024
    file = open_volume_file(make(tmp_path / "a.nii", nifti(hu)))
    volume = file.read()
    assert volume.padding is not None
    assert volume.hu[0, 0, 0] == AIR_HU
    assert volume.hu[0, 16, 16] == -3024
    changed = volume.with_hu(volume.hu + 5)
    back = open_volume_file(write_volume_file(tmp_path / "b.nii", changed, source=file)).stored_hu(0, 2)
    assert np.all(back[volume.padding] == -3024)
    assert np.all(back[~volume.padding] == volume.hu[~volume.padding] + 5)
    plain = open_volume_file(write_volume_file(tmp_path / "c.nii", changed)).stored_hu(0, 2)
    assert np.all(plain[volume.padding] == AIR_HU)


def test_dicom_to_nifti_keeps_values_and_places(tmp_path: Path) -> None:
    series = find_series(write_stack(tmp_path / "in", [0.0, 2.0, 4.0])).series[0]
    path = write_volume_file(tmp_path / "out.nii.gz", series.read(), source=series)
    file = open_volume_file(path)
    assert np.array_equal(file.stored_hu(0, 3), series.stored_hu(0, 3))
    assert file.affine == pytest.approx(series.affine, abs=1e-4)


def test_slab_reads_know_where_they_lie(tmp_path: Path) -> None:
    file = open_volume_file(make(tmp_path / "a.nii", nifti(HU)))
    slab = file.read(1, 3)
    assert slab.first_slice == 1
    assert np.array_equal(slab.hu, HU[1:3])
    assert slab.affine[:3, 3] == pytest.approx(file.affine @ [1, 0, 0, 1] @ np.eye(4, 3))
    with pytest.raises(ConcordctError, match="slices 2 to 9"):
        file.read(2, 9)


def test_rewritten_file_is_read_anew(tmp_path: Path) -> None:
    path = make(tmp_path / "a.nii", nifti(HU))
    first = open_volume_file(path).key
    make(path, nifti(HU + np.int16(1)))
    assert open_volume_file(path).key != first


FLOATS = HU.astype("<f4")
WITH_NAN = FLOATS.copy()
WITH_NAN[1, 2, 3] = np.nan
REFUSED = [
    ("nan", nifti(WITH_NAN, datatype=16, bitpix=32), "1 voxels are NaN or infinite, expected HU"),
    ("complex", nifti(HU.astype("<c8"), datatype=32, bitpix=64), "complex|2 numbers per voxel"),
    ("rgb", nifti(np.zeros((3, 4, 5, 3), "u1"), datatype=128, bitpix=24, dims=(5, 4, 3)), "3 numbers per voxel"),
    ("flat", nifti(HU, dims=(20, 3)), "2 dimensions of 20 x 3, expected 3"),
    ("moving", nifti(HU, dims=(5, 4, 1, 3)), "4 dimensions of 5 x 4 x 1 x 3, expected 3"),
    ("short", nifti(HU)[:-20], "truncated: 452 bytes, expected 472"),
    ("header", nifti(HU)[:200], "cannot read"),
    ("huge", nifti(HU, dims=(30000, 30000, 30000)), "30000 x 30000 x 30000 voxels, expected 1 to 2147483648"),
    ("text", b"this is no image at all, whatever its name says" * 20, "cannot read"),
    ("empty", b"", "cannot read"),
]


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize(("name", "content", "says"), REFUSED, ids=[row[0] for row in REFUSED])
def test_refused_in_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], ending: str, name: str, content: bytes, says: str
) -> None:
    path = make(tmp_path / f"{name}{ending}", content)
    with pytest.raises(ConcordctError, match=says) as caught:
        open_volume_file(path).read()
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_gzip_bomb_costs_no_more_than_its_header_says(tmp_path: Path) -> None:
    path = tmp_path / "bomb.nii.gz"
    with gzip.open(path, "wb") as file:
        file.write(nifti(HU))
        for _ in range(64):
            file.write(bytes(2**22))
    with pytest.raises(ConcordctError, match="inflates beyond the 472 bytes that its header declares"):
        open_volume_file(path).read()
    with gzip.open(path, "wb") as file:
        file.write(nifti(HU, dims=(1000, 1000, 500)))
    with pytest.raises(ConcordctError, match=r"truncated: \d+ bytes, expected 1000000352"):
        open_volume_file(path).read()


def test_truncated_gzip_stream(tmp_path: Path) -> None:
    path = make(tmp_path / "a.nii.gz", nifti(RNG.integers(-1000, 1000, (8, 64, 64)).astype("<i2")))
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ConcordctError, match=r"EOFError|truncated"):
        open_volume_file(path).read()


@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".mhd"])
def test_truncated_nrrd_and_metaimage(tmp_path: Path, ending: str, capfd: pytest.CaptureFixture[str]) -> None:
    volume = Volume(hu=RNG.integers(-1000, 1000, (8, 64, 64)).astype(np.float32), affine=np.eye(4))
    path = write_volume_file(tmp_path / f"a{ending}", volume)
    data = next(path.parent.glob("*.zraw")) if ending == ".mhd" else path
    data.write_bytes(data.read_bytes()[:-3000])
    with pytest.raises(ConcordctError, match=r"cannot read|truncated"):
        open_volume_file(path).read()


@pytest.mark.parametrize("said", ["83", "2", "4", "", "3x"])
def test_metaimage_of_other_dimensions_never_reaches_metaio(tmp_path: Path, said: str) -> None:
    path = write_volume_file(tmp_path / "a.mha", Volume(hu=HU.astype(np.float32), affine=np.eye(4)))
    path.write_bytes(path.read_bytes().replace(b"NDims = 3", f"NDims = {said}".encode()))
    with pytest.raises(ConcordctError, match=f"{said} dimensions|expected 3|is empty"):
        open_volume_file(path)


def test_header_and_voxels_in_two_files_are_replaced_together(tmp_path: Path) -> None:
    path = tmp_path / "a.mhd"
    first = Volume(hu=HU.astype(np.float32), affine=np.eye(4))
    write_volume_file(path, first)
    old = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    write_volume_file(path, first.with_hu(first.hu + 1), overwrite=True)
    assert len(list(tmp_path.iterdir())) == 2
    assert np.array_equal(open_volume_file(path).read().hu, HU + 1)
    # A run that died after it had placed its voxels: the old header still finds its own.
    for name, content in old.items():
        (tmp_path / name).write_bytes(content)
    assert len(list(tmp_path.iterdir())) == 3
    assert np.array_equal(open_volume_file(path).read().hu, HU)
    write_volume_file(path, first.with_hu(first.hu + 1), overwrite=True)
    assert len(list(tmp_path.iterdir())) == 2


def test_nowhere_and_unknown(tmp_path: Path) -> None:
    with pytest.raises(ConcordctError, match="no such file"):
        open_volume_file(tmp_path / "a.nii")
    make(tmp_path / "a.png", b"x")
    with pytest.raises(ConcordctError, match="unknown file ending"):
        open_volume_file(tmp_path / "a.png")
    with pytest.raises(ConcordctError, match="unknown file ending"):
        write_volume_file(tmp_path / "a.tiff", Volume(hu=FLOATS, affine=np.eye(4)))


def test_writing_refuses_and_keeps_what_stands(tmp_path: Path) -> None:
    file = open_volume_file(make(tmp_path / "a.nii", nifti(HU)))
    before = file.path.read_bytes()
    with pytest.raises(ConcordctError, match="expected another place"):
        write_volume_file(file.path, file.read(), source=file, overwrite=True)
    with pytest.raises(ConcordctError, match="output exists"):
        write_volume_file(file.path, file.read())
    with pytest.raises(ConcordctError, match="not finite"):
        write_volume_file(tmp_path / "b.nii", Volume(hu=WITH_NAN, affine=np.eye(4)))
    with pytest.raises(ConcordctError, match=r"slab at slice 2 .* expected slice 1"):
        write_volume_file(tmp_path / "b.nii", [file.read(0, 1), file.read(2, 3)])
    with pytest.raises(ConcordctError, match="no slices to write"):
        write_volume_file(tmp_path / "b.nii", [])
    assert file.path.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.nii"]
    write_volume_file(file.path, file.read().with_hu(file.read().hu + 1), overwrite=True)
    assert np.array_equal(open_volume_file(file.path).read().hu, HU + 1)


@pytest.mark.parametrize("ending", ENDINGS)
def test_full_disk_is_one_line_and_leaves_nothing(small_disk: Callable[[str], Path], ending: str) -> None:
    disk = small_disk("64k")
    volume = Volume(hu=RNG.integers(-1000, 1000, (8, 128, 128)).astype(np.float32), affine=np.eye(4))
    with pytest.raises(ConcordctError, match="cannot write") as caught:
        write_volume_file(disk / f"a{ending}", volume)
    assert "\n" not in str(caught.value)
    assert list(disk.iterdir()) == []
