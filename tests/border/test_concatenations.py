"""Enhanced CT in several objects (PS3.3 C.7.6.16): parts of a concatenation, and objects that are none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import FileDataset
from pydicom.sequence import Sequence as Items

from concordct.errors import ConcordctError
from concordct.volumes.derivation import Derivation
from concordct.volumes.derived import write_derived_series
from concordct.volumes.dicom_file import open_dataset
from concordct.volumes.find import Found, find_series
from concordct.volumes.headers import header_from_json, header_to_json, slice_headers
from volumes_slices import disc_hu, enhanced_dataset


def part(first: int, frames: int, **tags: Any) -> FileDataset:
    """Frames of one enhanced CT from `first` on, as an object of its own."""
    dataset = enhanced_dataset(first + frames)
    dataset.NumberOfFrames = frames
    dataset.PerFrameFunctionalGroupsSequence = Items(list(dataset.PerFrameFunctionalGroupsSequence)[first:])
    dataset.PixelData = dataset.PixelData[first * 4608 :]
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.5.{first}"
    for name, value in tags.items():
        setattr(dataset, name, value)
    return dataset


def concatenated(folder: Path, numbers: Sequence[int], total: int | None = 3, **tags: Any) -> Found:
    """Some of three parts of 3, 2 and 3 frames, as their numbers stand there."""
    folder.mkdir(parents=True, exist_ok=True)
    for place, number in enumerate(numbers):
        first, frames = ((0, 3), (3, 2), (5, 3))[number - 1]
        stated = {"ConcatenationUID": "1.2.3.6", "InConcatenationNumber": number} | tags
        dataset = part(first, frames, **{"ConcatenationFrameOffsetNumber": first} | stated)
        if total is not None:
            dataset.InConcatenationTotalNumber = total
        dataset.save_as(folder / str(place), enforce_file_format=True)
    return find_series(folder)


@pytest.mark.parametrize("numbers", [(1, 2, 3), (3, 1, 2), (2, 1, 2, 3)])
@pytest.mark.parametrize("total", [3, None])
def test_all_parts_are_one_stack_in_any_order(tmp_path: Path, numbers: tuple[int, ...], total: int | None) -> None:
    (series,) = concatenated(tmp_path / "in", numbers, total).series
    twice = len(numbers) > 3
    assert [problem.code for problem in series.problems] == ["duplicate"] * twice
    volume = series.read(allow={"duplicate"})
    assert np.array_equal(volume.hu, np.stack([disc_hu(3.0 * k) for k in range(7, -1, -1)]).astype(np.float32))
    derivation = Derivation("none", "0" * 64, None)
    allow = frozenset({"duplicate"})
    written = write_derived_series(series, [volume], tmp_path / "out", derivation, allow=allow).paths
    assert [int(open_dataset(path).InstanceNumber) for path in written] == list(range(8, 0, -1))


@pytest.mark.parametrize(
    ("numbers", "total", "said"),
    [
        ((1, 2), 3, "part 3 missing of a concatenation of 3 objects"),
        ((2, 3), 3, "part 1 missing of a concatenation of 3 objects"),
        ((2,), 3, "part 1, 3 missing of a concatenation of 3 objects"),
        ((3, 2), None, "part 1 missing of a concatenation of 3 objects"),
        ((1, 3), None, "part 2 missing"),
    ],
)
def test_a_missing_part_is_a_gap(tmp_path: Path, numbers: tuple[int, ...], total: int | None, said: str) -> None:
    (series,) = concatenated(tmp_path, numbers, total).series
    with pytest.raises(ConcordctError, match=rf"{said}.*\[gap\]"):
        series.check()
    series.check({"gap"})


def test_frames_missing_between_parts_are_a_gap(tmp_path: Path) -> None:
    for number, (first, frames) in enumerate(((0, 3), (3, 2)), start=1):
        stated = {"ConcatenationUID": "1.2.3.6", "InConcatenationNumber": number}
        offset = first + (number == 2)
        dataset = part(first, frames, ConcatenationFrameOffsetNumber=offset, **stated)
        dataset.save_as(tmp_path / str(number), enforce_file_format=True)
    with pytest.raises(ConcordctError, match=r"part 2 of a concatenation begins after 4 frames, expected 3 .*\[gap\]"):
        find_series(tmp_path).series[0].check()


@pytest.mark.parametrize(
    "tags",
    [{"InConcatenationNumber": 0}, {"InConcatenationNumber": None}, {"ConcatenationFrameOffsetNumber": None}],
)
def test_a_part_of_no_known_place_is_set_aside(tmp_path: Path, tags: dict[str, Any]) -> None:
    found = concatenated(tmp_path, (1,), **tags)
    assert "expected its number from 1 and its frame offset" in found.set_aside[0].reason


@pytest.mark.parametrize("uids", [("1.2.3.6", "1.2.3.7"), (None, None)])
@pytest.mark.parametrize("shift", [0.0, 1.5])
def test_two_objects_on_or_between_each_others_slices_are_parted(tmp_path: Path, uids: tuple, shift: float) -> None:
    for number, uid in enumerate(uids):
        dataset = part(0, 4, SOPInstanceUID=f"1.2.3.5.{number + 8}")
        for place, item in enumerate(dataset.PerFrameFunctionalGroupsSequence):
            item.PlanePositionSequence[0].ImagePositionPatient = [-10, -20, -3.0 * place + number * shift]
        if uid is not None:
            dataset.ConcatenationUID, dataset.InConcatenationNumber = uid, 1
            dataset.ConcatenationFrameOffsetNumber = 0
        dataset.save_as(tmp_path / str(number), enforce_file_format=True)
    found = find_series(tmp_path).series
    assert [(series.shape[0], round(series.spacing_mm[0], 6)) for series in found] == [(4, 3), (4, 3)]
    with pytest.raises(ConcordctError, match=r"2 acquisitions \(SOPInstanceUID.*\[acquisition\]"):
        found[0].check()


def test_a_header_of_a_part_comes_back_from_json(tmp_path: Path) -> None:
    concatenated(tmp_path, (2,))
    (one, _) = slice_headers(tmp_path / "0")
    assert one.part is not None
    assert header_from_json(one.path, one.stamp, header_to_json(one)) == one
