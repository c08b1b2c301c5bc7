"""DICOM files made to harm: bounded time and memory, one line, nothing else stops."""

from __future__ import annotations

import io
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.sequence import Sequence

from concordct.errors import ConcordctError
from concordct.volumes.derivation import Derivation
from concordct.volumes.derived import write_derived_series
from concordct.volumes.elements import MAX_DEPTH, structure_fault
from concordct.volumes.find import find_series
from volumes_slices import slice_dataset, write_slice, write_stack

EVEN = [0.0, 3.0, 6.0, 9.0]


def nested(depth: int, *, undefined: bool) -> bytes:
    """Sequences of sequences, Explicit VR Little Endian."""
    inner = b""
    for _ in range(depth):
        if undefined:
            inner = b"\x40\0\x75\x02SQ\0\0" + b"\xff" * 4 + b"\xfe\xff\0\xe0" + b"\xff" * 4 + inner
        else:
            item = b"\xfe\xff\0\xe0" + len(inner).to_bytes(4, "little") + inner
            inner = b"\x40\0\x75\x02SQ\0\0" + len(item).to_bytes(4, "little") + item
    return inner


@pytest.mark.parametrize("undefined", [True, False])
def test_deep_sequences_are_refused_before_they_are_parsed(tmp_path: Path, undefined: bool) -> None:
    write_stack(tmp_path, EVEN)
    content = (tmp_path / "001").read_bytes()
    place = content.index(b"\xe0\x7f\x10\0OW")
    (tmp_path / "deep").write_bytes(content[:place] + nested(2000, undefined=undefined) + content[place:])
    found = find_series(tmp_path)
    assert found.series[0].shape[0] == 4
    assert [item.reason.split(",")[0] for item in found.set_aside] == [f"sequences nested more than {MAX_DEPTH} deep"]


def test_sequences_as_deep_as_allowed_are_written_again(tmp_path: Path) -> None:
    dataset = slice_dataset()
    inner = Dataset()
    inner.CodeMeaning = "deepest"
    for _ in range(MAX_DEPTH):
        outer = Dataset()
        outer.RequestAttributesSequence = Sequence([inner])
        inner = outer
    dataset.RequestAttributesSequence = inner.RequestAttributesSequence
    (tmp_path / "in").mkdir()
    dataset.save_as(tmp_path / "in" / "a", enforce_file_format=True)
    (series,) = find_series(tmp_path / "in").series
    written = write_derived_series(series, [series.read()], tmp_path / "out", Derivation("none", "0" * 64, None))
    assert b"deepest" in written.paths[0].read_bytes()


def test_an_element_longer_than_its_file_by_gigabytes(tmp_path: Path) -> None:
    path = write_slice(tmp_path / "a")
    content = path.read_bytes()
    place = content.index(b"\xe0\x7f\x10\0OW")
    path.write_bytes(content[:place] + b"\x50\0\x10\0OB\0\0\xf0\xff\xff\xff" + content[place:])
    start = 144 + int.from_bytes(content[140:144], "little")
    with open(path, "rb") as file:
        file.seek(start)
        assert structure_fault(file, path.stat().st_size) is not None


@pytest.mark.parametrize("where", [1e12, -1e12, 1e300, 7e5])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_a_stray_position_is_named_in_bounded_time(tmp_path: Path, where: float, count: int) -> None:
    write_stack(tmp_path, EVEN[:count])
    write_slice(tmp_path / "stray", z=99.0, ImagePositionPatient=[-10, -20, f"{where:g}"])
    begun = time.process_time()
    (series,) = find_series(tmp_path).series
    assert time.process_time() - begun < 10
    (problem,) = [one for one in series.problems if one.code == "stray"]
    assert f"{where:.6g}" in problem.message
    with pytest.raises(ConcordctError, match="cannot allow stray"):
        series.read(allow={"stray"})


def test_thousands_of_orientations_in_one_series(tmp_path: Path) -> None:
    for index in range(240):
        angle = index * np.pi / 240
        row = [f"{v:.8f}" for v in (np.cos(angle), np.sin(angle), 0, -np.sin(angle), np.cos(angle), 0)]
        write_slice(tmp_path / str(index), z=index, hu=np.zeros((4, 4)), ImageOrientationPatient=row)
    found = find_series(tmp_path)
    assert not found.series
    assert len(found.set_aside) == 240
    assert "stacks of other orientation" in found.set_aside[0].reason


def test_damaged_lossless_jpeg_with_a_decoders_warning_is_refused(shared_data: Path, tmp_path: Path) -> None:
    """A piece of the entropy-coded data is gone: libjpeg warns "premature end of data segment" and fills in."""
    dataset = pydicom.dcmread(shared_data / "hostile" / "nema_wg04" / "CT1_JPLL")
    data = get_frame(dataset.PixelData, 0, number_of_frames=1)
    place = len(data) // 2
    dataset.PixelData = encapsulate([data[:place] + data[place + 4000 : -2] + b"\xff\xd9"])
    dataset.save_as(tmp_path / "a")
    (series,) = find_series(tmp_path / "a").series
    with pytest.raises(ConcordctError, match=r"cannot decode pixels in JPEG Lossless.*the decoder complains"):
        series.read()


@pytest.mark.parametrize("name", ["CT1_JLSL", "CT1_JPLL", "CT1_J2KR"])
def test_mutilated_codestreams_never_end_the_process(shared_data: Path, tmp_path: Path, name: str) -> None:
    dataset = pydicom.dcmread(shared_data / "hostile" / "nema_wg04" / name)
    data = get_frame(dataset.PixelData, 0, number_of_frames=1)
    random = np.random.default_rng(7)
    for _ in range(6):
        broken = bytearray(data)
        for place in random.integers(2, len(data) - 2, 40):
            broken[place] = random.integers(256)
        dataset.PixelData = encapsulate([bytes(broken)])
        buffer = io.BytesIO()
        dataset.save_as(buffer)
        (tmp_path / "a").write_bytes(buffer.getvalue())
        for series in find_series(tmp_path / "a").series:
            with suppress(ConcordctError):
                series.read()
