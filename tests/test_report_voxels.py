"""Voxels inside a page: lossless, and the budget decides what is kept."""

import base64
import zlib

import numpy as np
import pytest

from concordct.report.voxels import CROP_MARGIN, body_box, encode_slice, evenly, pack, to_int16


def decode_slice(text: str, height: int, width: int) -> np.ndarray:
    """The inverse of encode_slice, voxel by voxel, written from its description."""
    planes = zlib.decompress(base64.b64decode(text))
    out = np.zeros((height, width), dtype=np.int64)
    for y in range(height):
        for x in range(width):
            at = y * width + x
            folded = planes[at] | planes[height * width + at] << 8
            residual = folded >> 1 if folded % 2 == 0 else -(folded + 1) // 2
            if y and x:
                west, north, corner = out[y, x - 1], out[y - 1, x], out[y - 1, x - 1]
                if corner >= max(west, north):
                    predicted = min(west, north)
                elif corner <= min(west, north):
                    predicted = max(west, north)
                else:
                    predicted = west + north - corner
            else:
                predicted = out[y, x - 1] if x else out[y - 1, x] if y else 0
            out[y, x] = (predicted + residual + 32768) % 65536 - 32768
    return out.astype(np.int16)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (6, 1), (9, 13)])
def test_round_trip_over_the_whole_int16_range(shape):
    rng = np.random.default_rng(1)
    hu = rng.integers(-32768, 32768, shape).astype(np.int16)
    np.testing.assert_array_equal(decode_slice(encode_slice(hu), *shape), hu)


def test_to_int16_rounds_and_stays_in_range():
    np.testing.assert_array_equal(to_int16(np.array([-1000.6, 0.4, 1e9, -1e9])), [-1001, 0, 32767, -32768])


def test_evenly_keeps_the_ends():
    assert evenly(5, 3) == (0, 1, 2)
    assert evenly(3, 101) == (0, 50, 100)
    assert evenly(1, 9) == (4,)
    assert len(set(evenly(57, 300))) == 57


def test_body_box_holds_every_body_voxel_of_every_volume():
    first, second = np.full((2, 3, 60, 80), -1000, dtype=np.int16)
    first[0, 20, 30] = 40
    second[2, 35, 50] = -499
    rows, columns = body_box([first, second])
    assert rows == (20 - CROP_MARGIN, 36 + CROP_MARGIN)
    assert columns == (30 - CROP_MARGIN, 51 + CROP_MARGIN)
    assert body_box([np.full((1, 4, 5), -1000, dtype=np.int16)]) == ((0, 4), (0, 5))


@pytest.fixture
def volume() -> np.ndarray:
    rng = np.random.default_rng(2)
    hu = rng.normal(-1000, 10, (20, 64, 64))
    hu[:, 20:40, 24:44] += 1040
    return hu.astype(np.float32)


def test_everything_is_kept_when_it_fits(volume):
    kept, texts = pack([volume, volume], max_bytes=10_000_000)
    assert kept.slices == tuple(range(20))
    assert not kept.cropped
    assert [len(t) for t in texts] == [20, 20]


def test_too_small_a_budget_crops_first_and_then_thins(volume):
    size = sum(len(text) + 1 for text in pack([volume], max_bytes=10_000_000)[1][0])
    kept, texts = pack([volume], max_bytes=int(0.6 * size))
    assert kept.cropped
    assert kept.slices == tuple(range(20))
    kept, texts = pack([volume], max_bytes=size // 10)
    assert kept.cropped
    assert 1 < len(kept.slices) < 20
    assert kept.slices[0] == 0
    assert kept.slices[-1] == 19
    assert sum(len(text) + 1 for text in texts[0]) <= size // 10
    rows, columns = kept.rows, kept.columns
    decoded = decode_slice(texts[0][1], rows[1] - rows[0], columns[1] - columns[0])
    np.testing.assert_array_equal(decoded, to_int16(volume[kept.slices[1], slice(*rows), slice(*columns)]))


def test_no_room_keeps_nothing(volume):
    kept, texts = pack([volume], max_bytes=100)
    assert kept.slices == ()
    assert texts == [[]]
