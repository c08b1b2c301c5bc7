"""Pixels of one slice: what cannot be right is refused in one line before anything large is allocated."""

from __future__ import annotations

import zlib
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless

from concordct.errors import ConcordctError
from concordct.volumes.allowable import ALLOWABLE
from concordct.volumes.decode import MAX_HEADER_BYTES, codestream_size, open_dataset, quiet_dicom
from concordct.volumes.find import find_series
from volumes_slices import SIDE, disc_hu, slice_dataset, write_slice


def read(path: Path) -> np.ndarray:
    found = find_series(path)
    assert found.series, found.set_aside
    return found.series[0].read().hu[0]


def refusal(path: Path) -> str:
    """The one line that says no, when the file is found or when it is read."""
    found = find_series(path)
    if not found.series:
        return found.set_aside[0].reason
    with pytest.raises(ConcordctError) as caught:
        found.series[0].read()
    line = str(caught.value)
    assert "\n" not in line
    assert "SECRET" not in line
    return line


def test_truncated_pixels(tmp_path: Path) -> None:
    path = write_slice(tmp_path / "a", PixelData=disc_hu(0).astype("<i2").tobytes()[:-100])
    assert f"{SIDE * SIDE * 2 - 100} bytes of pixel data, expected {SIDE * SIDE * 2}" in refusal(path)


def test_truncated_file(tmp_path: Path) -> None:
    path = write_slice(tmp_path / "a")
    path.write_bytes(path.read_bytes()[:-1000])
    assert "expected" in refusal(path)


@pytest.mark.parametrize("name", ["CT2_JPLL", "CT2_JLSL", "CT2_J2KR", "CT2_RLE"])
def test_truncated_compressed_pixels(shared_data: Path, tmp_path: Path, name: str) -> None:
    """Decoders fill in what is missing; a cut file, or a cut codestream in a whole file, is refused all the same."""
    source = shared_data / "hostile" / "nema_wg04" / name
    (tmp_path / "a").write_bytes(source.read_bytes()[:-20_000])
    assert "truncated DICOM file" in refusal(tmp_path / "a")
    dataset = pydicom.dcmread(source)
    dataset.PixelData = encapsulate([get_frame(dataset.PixelData, 0, number_of_frames=1)[:-20_000]])
    dataset.save_as(tmp_path / "b")
    assert "RLE" in name or "cut short, no end marker" in refusal(tmp_path / "b")
    assert "RLE" not in name or "cannot decode pixels in RLE" in refusal(tmp_path / "b")


def test_missing_pixels(tmp_path: Path) -> None:
    assert "no pixel data" in refusal(write_slice(tmp_path / "a", PixelData=None))


def test_impossible_sizes(tmp_path: Path) -> None:
    assert "0 x 48 pixels" in refusal(write_slice(tmp_path / "a", Rows=0))
    assert "60000 x 60000 pixels" in refusal(write_slice(tmp_path / "b", Rows=60000, Columns=60000))
    assert "bits allocated 16, stored 12, high bit 15" in refusal(write_slice(tmp_path / "c", BitsStored=12))
    assert "RescaleSlope 0" in refusal(write_slice(tmp_path / "d", RescaleSlope=0, PixelData=b"\0" * 4608))


def test_bits_above_the_stored_ones_are_ignored(tmp_path: Path) -> None:
    stored = (disc_hu(0) + 1024).astype("<u2")
    overlay = np.where(np.arange(SIDE) % 2 == 0, 0x8000, 0).astype("<u2")
    path = write_slice(
        tmp_path / "a", BitsStored=12, HighBit=11, PixelRepresentation=0, PixelData=(stored | overlay).tobytes()
    )
    assert np.array_equal(read(path), disc_hu(0).astype(np.float32))


def test_signed_values_of_twelve_bits(tmp_path: Path) -> None:
    stored = disc_hu(0).astype(np.int64) & 0x0FFF
    path = write_slice(
        tmp_path / "a", BitsStored=12, HighBit=11, RescaleIntercept=0, PixelData=stored.astype("<u2").tobytes()
    )
    assert np.array_equal(read(path), disc_hu(0).astype(np.float32))


def _deflated(path: Path, payload: bytes) -> Path:
    """A deflated file whose dataset inflates to `payload`."""
    dataset = slice_dataset()
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(path, enforce_file_format=True)
    data = path.read_bytes()
    start = 144 + int.from_bytes(data[140:144], "little")
    plain = zlib.decompress(data[start:], -zlib.MAX_WBITS)
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    path.write_bytes(data[:start] + squeeze.compress(plain + payload) + squeeze.flush())
    return path


def test_deflated_reads(tmp_path: Path) -> None:
    path = _deflated(tmp_path / "a", b"")
    assert np.array_equal(read(path), disc_hu(0).astype(np.float32))


def test_deflated_bomb_is_refused_within_bounds(tmp_path: Path) -> None:
    path = _deflated(tmp_path / "bomb", bytes(20 * MAX_HEADER_BYTES))
    assert path.stat().st_size < MAX_HEADER_BYTES / 10
    assert "inflate beyond the" in refusal(path)


def test_codestream_of_another_size_is_refused_before_decoding(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "hostile" / "cornerstone_testImages"
    for name in ("CT1_J2KR", "CTImage.dcm_JPEGLSLosslessTransferSyntax_1.2.840.10008.1.2.4.80.dcm"):
        dataset = pydicom.dcmread(source / name)
        dataset.Rows, dataset.Columns = 128, 128
        dataset.save_as(tmp_path / name)
        assert "compressed pixels of 512 x 512, header 128 x 128" in refusal(tmp_path / name)


def test_codestream_sizes() -> None:
    jpeg = b"\xff\xd8\xff\xe0\x00\x04ab\xff\xc3\x00\x0b\x10\x02\x00\x01\x80\x01\x01\x11\x00"
    assert codestream_size(jpeg) == (512, 384)
    siz = b"\xff\x4f\xff\x51\x00\x29\x00\x00" + b"".join(v.to_bytes(4, "big") for v in (400, 300, 16, 44)) + b"\0" * 30
    assert codestream_size(siz) == (256, 384)
    assert codestream_size(b"\0" * 64) is None
    assert codestream_size(b"\xff\xd8\xff") is None


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, RLELossless])
def test_broken_codestream(tmp_path: Path, syntax: UID) -> None:
    dataset = slice_dataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate([b"\xff\x4f nothing that decodes, at any rate" * 3])
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(tmp_path / "a", enforce_file_format=True)
    assert "cannot decode pixels in" in refusal(tmp_path / "a")


def test_unknown_syntax(tmp_path: Path) -> None:
    path = write_slice(tmp_path / "a")
    path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.99999.1.2.1\0", 1))
    assert "1.2.840.99999.1.2.1" in refusal(path)


def test_headers_are_read_without_pixels(tmp_path: Path) -> None:
    path = write_slice(tmp_path / "a")
    assert "PixelData" not in open_dataset(path)
    assert list(open_dataset(path, tags=["Modality"]).keys()) == [0x00080060]
    with pytest.raises(ConcordctError, match="cannot read"):
        open_dataset(tmp_path / "none")


def test_declared_padding_written_as_unsigned(tmp_path: Path) -> None:
    hu = disc_hu(0)
    hu[:4], hu[24, 24] = -3024, -3024
    dataset = slice_dataset(hu=hu)
    dataset.add_new("PixelPaddingValue", "US", 63536)  # -2000
    dataset.save_as(tmp_path / "a", enforce_file_format=True)
    volume = find_series(tmp_path / "a").series[0].read()
    # Declared far below air: padding wherever it stands, not only at the border.
    assert volume.padding is not None
    assert np.array_equal(volume.padding[0], hu == -3024)


def test_header_values_cannot_break_the_line(tmp_path: Path) -> None:
    with quiet_dicom():
        line = refusal(write_slice(tmp_path / "a", Modality="C\nT"))
    assert line == "modality of no known name, expected CT"
    kernel = find_series(write_slice(tmp_path / "b", ConvolutionKernel="B\n40")).series[0].kernel
    assert kernel == "B?40"


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutilated_files_are_read_or_refused_in_one_line(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(_whole())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(132, 1400))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(140, len(content)) | st.just(len(content)))]
    path = tmp_path / "a"
    path.write_bytes(content)
    found = find_series(path)
    assert len(found.series) + len(found.set_aside) > 0
    assert not any("\n" in aside.reason for aside in found.set_aside)
    for series in found.series:
        said = "one line"
        try:
            series.read(allow=ALLOWABLE)
        except ConcordctError as error:
            said = str(error)
        assert "\n" not in said


@cache
def _whole() -> bytes:
    buffer = BytesIO()
    slice_dataset().save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def test_slices_decoded_ahead_come_in_their_order_and_a_bad_one_is_told_in_its_turn(tmp_path: Path) -> None:
    """Two compressed series read by turns, each one slice ahead of what was asked for."""
    for number, name in enumerate(("a", "b")):
        for index in range(4):
            dataset = slice_dataset(z=float(index), hu=np.full((SIDE, SIDE), 100.0 * number + index))
            dataset.SeriesInstanceUID = f"2.25.{number + 1}"
            dataset.compress(JPEGLSLossless, generate_instance_uid=False)
            if (name, index) == ("b", 2):
                coded = get_frame(dataset.PixelData, 0, number_of_frames=1)
                dataset.PixelData = encapsulate([coded[:60] + bytes(40) + coded[100:]])
            (tmp_path / name).mkdir(exist_ok=True)
            dataset.save_as(tmp_path / name / f"{index}.dcm")
    a, b = (find_series(tmp_path / name).series[0].stored(0, 4) for name in "ab")
    seen = [next(one).stored_hu().mean() for one in (a, b, b, a)]
    assert seen == [0, 100, 101, 1]
    with pytest.raises(ConcordctError, match=r"2\.dcm"):
        next(b)
    assert [slice_.stored_hu().mean() for slice_ in a] == [2, 3]
