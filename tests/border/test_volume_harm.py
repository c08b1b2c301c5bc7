"""Volume files made to harm, or headers that leave out what counts: one line, quickly, and nothing followed."""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from concordct.errors import ConcordctError
from concordct.volumes.files import open_volume_file, refuse_uneven, write_volume_file
from concordct.volumes.find import find_series
from concordct.volumes.given import read_json, read_yaml
from concordct.volumes.manifest import read_manifest
from concordct.volumes.scans import find_scans
from concordct.volumes.volume import Volume
from volumes_slices import write_stack

HU = np.random.default_rng(4).integers(-1000, 1000, (3, 6, 7)).astype("<i2")
MHA = """ObjectType = Image
NDims = 3
BinaryData = True
BinaryDataByteOrderMSB = False
CompressedData = False
TransformMatrix = 1 0 0 0 1 0 0 0 1
Offset = 0 0 0
ElementSpacing = 0.7 0.7 3
DimSize = 7 6 3
ElementType = MET_SHORT
ElementDataFile = LOCAL
"""
NRRD = """NRRD0004
type: short
dimension: 3
space: left-posterior-superior
sizes: 7 6 3
space directions: (0.7,0,0) (0,0.7,0) (0,0,3)
endian: little
encoding: raw
space origin: (0,0,0)
"""


def mha(path: Path, old: str = "", new: str = "", data: bytes = HU.tobytes()) -> Path:
    assert old in MHA
    path.write_bytes(MHA.replace(old, new, 1).encode() + data)
    return path


def nrrd(path: Path, old: str = "", new: str = "", data: bytes = HU.tobytes()) -> Path:
    assert old in NRRD
    path.write_bytes(NRRD.replace(old, new, 1).encode() + b"\n" + data)
    return path


def refused(path: Path, match: str) -> None:
    with pytest.raises(ConcordctError, match=match) as caught:
        open_volume_file(path).read()
    assert str(caught.value).isprintable()


def test_the_headers_as_they_stand_are_read(tmp_path: Path) -> None:
    for path in (mha(tmp_path / "a.mha"), nrrd(tmp_path / "a.nrrd")):
        assert np.array_equal(open_volume_file(path).stored_hu(0, 3), HU)
        assert open_volume_file(path).spacing_mm == (3, 0.7, 0.7)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("Offset = 0 0 0\n", "", "expected Offset in the header, found none"),
        ("ElementSpacing = 0.7 0.7 3\n", "", "expected ElementSpacing in the header, found none"),
        ("0.7 0.7 3", "0.7 0.7", "expected 3 finite numbers in ElementSpacing"),
        ("0.7 0.7 3", "0.7 0.7 0", "expected a positive ElementSpacing"),
        ("0.7 0.7 3", "0.7 0.7 nan", "expected 3 finite numbers"),
        ("1 0 0 0 1 0", "1 0 0 1 0 0", "span no space"),
        ("1 0 0 0 1 0", "2 0 0 0 1 0", "expected unit vectors in TransformMatrix"),
        ("NDims = 3", "NDims = 83", "83 dimensions, expected 3"),
        ("DimSize = 7 6 3", "DimSize = 70000 60000 3000", "voxels, expected 1 to"),
        ("DimSize = 7 6 3", "DimSize = 7 6 4", "truncated: "),
        ("MET_SHORT", "MET_SHORT_ARRAY", "expected one integer or float as ElementType"),
        ("LOCAL", "LIST", "a list of files"),
        ("LOCAL", "slice%03d.raw 1 3 1", "a list of files"),
        ("CompressedData = False", "CompressedData = True\nCompressedDataSize = 252", "are damaged"),
        ("NDims = 3", "NDims = 3\nNDims = 3", "stands twice"),
        ("NDims = 3", "NDims = 3\nDistanceUnits = um", "expected DistanceUnits mm, found um"),
        ("NDims = 3", "NDims = 3\nModality = MET_MOD_MR", "expected Modality MET_MOD_CT, found MET_MOD_MR"),
        ("Offset = 0 0 0", "Offset = 0 0 0" + "0" * 150_000, "a header line of more than 65536 bytes"),
    ],
)
def test_metaimage_headers(tmp_path: Path, old: str, new: str, says: str) -> None:
    refused(mha(tmp_path / "a.mha", old, new), says)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("space origin: (0,0,0)\n", "", "expected space origin in the header, found none"),
        ("space: left-posterior-superior\n", "", "expected space in the header, found none"),
        ("space directions: (0.7,0,0) (0,0.7,0) (0,0,3)", "spacings: 0.7 0.7 3", "expected space directions"),
        ("(0,0.7,0)", "(0,0.7)", "expected 3 finite numbers in space directions"),
        ("endian: little\n", "", "expected endian in the header"),
        ("encoding: raw", "encoding: bzip2", "expected encoding raw or gzip, found bzip2"),
        ("encoding: raw", "encoding: gzip", "are damaged"),
        ("dimension: 3", "dimension: 999999999", "dimensions, expected 3"),
        ("type: short", "type: block", "expected an integer or float type"),
        ("space origin", "x" * 141_000, "a header line of more than 65536 bytes"),
        ("dimension: 3", "dimension: 3\n" + "#\n" * 600_000, "a header of more than 1048576 bytes"),
    ],
)
def test_nrrd_headers(tmp_path: Path, old: str, new: str, says: str) -> None:
    refused(nrrd(tmp_path / "a.nrrd", old, new), says)


def test_voxels_are_taken_from_beside_or_below_the_header_alone(tmp_path: Path) -> None:
    (tmp_path / "secret.raw").write_bytes(HU.tobytes())
    inside = tmp_path / "in"
    (inside / "below").mkdir(parents=True)
    (inside / "link.raw").symlink_to(tmp_path / "secret.raw")
    for name in (str(tmp_path / "secret.raw"), "../secret.raw", "below/../../secret.raw", "link.raw"):
        refused(mha(inside / "a.mhd", "LOCAL", name, b""), "beside or below the header")
        refused(nrrd(inside / "a.nhdr", "endian", f"data file: {name}\nendian", b""), "beside or below the header")
    refused(mha(inside / "a.mhd", "LOCAL", "absent.raw", b""), "no file absent.raw beside it")
    (inside / "below" / "v.raw").write_bytes(HU.tobytes())
    assert np.array_equal(open_volume_file(mha(inside / "a.mhd", "LOCAL", "below/v.raw", b"")).stored_hu(0, 3), HU)
    os.mkfifo(inside / "pipe.raw")
    refused(mha(inside / "a.mhd", "LOCAL", "pipe.raw", b""), "expected a regular file, found a named pipe")


def test_every_flipped_bit_of_a_deflated_stream_is_found(tmp_path: Path) -> None:
    raw = zlib.compress(HU.tobytes())
    fields = f"CompressedData = True\nCompressedDataSize = {len(raw)}"
    quiet = 0
    for at in range(8 * len(raw)):
        damaged = bytearray(raw)
        damaged[at // 8] ^= 1 << at % 8
        path = mha(tmp_path / "a.mha", "CompressedData = False", fields, bytes(damaged))
        try:
            assert np.array_equal(open_volume_file(path).stored_hu(0, 3), HU)
            quiet += 1  # bits that fill up the last byte, or hints in the head of the stream
        except ConcordctError:
            pass
    assert quiet < 16


def test_offsets_units_and_forms_of_nifti(tmp_path: Path) -> None:
    path = write_volume_file(tmp_path / "a.nii", Volume(HU.astype(np.float32), np.diag([3, 0.7, 0.7, 1])))
    whole = path.read_bytes()
    for at, value, says in (
        (108, struct.pack("<f", 100), "voxels at byte 100, expected 352"),
        (108, struct.pack("<f", 352.5), "voxels at byte 352.5"),
        (108, struct.pack("<f", 1e9), "voxels at byte"),
        (123, b"\x01", "spatial unit 1, expected 2"),
        (70, struct.pack("<h", 1536), "NIfTI data type 1536"),
        (72, struct.pack("<h", 8), "8 bits per voxel, expected 16"),
        (344, b"ni1\0", "header of a NIfTI pair"),
        (344, b"\0\0\0\0", "no NIfTI magic"),
        (280, struct.pack("<12f", *[0.0] * 12), "voxels of 0 x 0 x 0 mm"),
        (280, struct.pack("<f", np.nan), "no distances"),
        (40, struct.pack("<h", 9), "9 dimensions"),
    ):
        path.write_bytes(whole[:at] + value + whole[at + len(value) :])
        refused(path, says)


def test_a_bomb_is_refused_by_its_size_and_a_pipe_at_once(tmp_path: Path) -> None:
    bomb = gzip.compress(bytes(2**24))
    path = tmp_path / "a.nrrd"
    nrrd(path, "encoding: raw", "encoding: gzip", bomb)
    refused(path, "inflates beyond the 252 bytes")
    nrrd(path, "sizes: 7 6 3\n", "sizes: 1000 1000 2000\n", b"")
    refused(path, "truncated: ")
    os.mkfifo(tmp_path / "b.nii")
    refused(tmp_path / "b.nii", "named pipe")
    for name in ("c.csv", "c.json", "c.yaml"):
        os.mkfifo(tmp_path / name)
    with pytest.raises(ConcordctError, match="expected a regular file"):
        read_manifest(tmp_path / "c.csv")
    for read, name in ((read_json, "c.json"), (read_yaml, "c.yaml")):
        with pytest.raises(OSError, match="expected a regular file"):
            read(tmp_path / name)
    with pytest.raises(ConcordctError, match="found a pipe or a device"):
        find_scans(tmp_path / "c.csv")


def test_yaml_aliases_deep_json_and_long_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for text, says in (
        ("a: &a [x]\nb: [*a, *a]\n", "without aliases"),
        ("[" * 5000, "is no YAML|nesting of at most 64"),
    ):
        path.write_text(text)
        with pytest.raises(ConcordctError, match=says):
            read_yaml(path)
    for text, says in (
        ("[" * 100_000, "nesting"),
        ("[" * 80 + "]" * 80, "nesting of at most 64"),
        ("9" * 9999, "numbers"),
    ):
        path.write_text(text)
        with pytest.raises(ConcordctError, match=says):
            read_json(path)


def test_a_name_that_is_not_utf8_is_read_and_shown(tmp_path: Path) -> None:
    name = os.fsdecode(b"sc\xff\x1b[31man.mha")
    path = mha(tmp_path / name)
    assert np.array_equal(open_volume_file(path).stored_hu(0, 3), HU)
    refused(mha(path, "Offset = 0 0 0\n", ""), r"sc\?\?\[31man\.mha")


def test_a_changed_file_is_not_read_by_its_old_header(tmp_path: Path) -> None:
    file = open_volume_file(mha(tmp_path / "a.mha"))
    mha(tmp_path / "a.mha", "0.7 0.7 3", "0.7 0.7 4")
    with pytest.raises(ConcordctError, match="changed since its header was read"):
        file.read()


@pytest.mark.parametrize("positions", [[0.0, 2.0, 4.0, 8.0], [0.0, 2.0, 4.0, 6.7]])
def test_gaps_and_uneven_steps_are_not_squeezed_into_a_volume_file(tmp_path: Path, positions: list[float]) -> None:
    (series,) = find_series(write_stack(tmp_path / "in", positions)).series
    volume = series.read(allow={"gap", "spacing"})
    with pytest.raises(ConcordctError, match="holds one even grid of slices"):
        write_volume_file(tmp_path / "out.mha", volume, source=series)
    with pytest.raises(ConcordctError, match=r"found .* \[(gap|spacing)\]"):
        refuse_uneven(series, tmp_path / "out.mha")
    assert not (tmp_path / "out.mha").exists()
