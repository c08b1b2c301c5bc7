"""The static picture: a PNG that shows what it says, the same bytes every time."""

import io

import numpy as np
import pytest

from concordct.errors import ConcordctError
from concordct.report.evaluation import ShownStack
from concordct.report.picture import write_picture

SETTINGS = {"spacing_mm": (3.0, 0.8, 0.8), "slice_index": 1, "window": (0, 2000), "difference_hu": 50}


@pytest.fixture
def stacks() -> list[ShownStack]:
    rng = np.random.default_rng(3)
    source = np.full((3, 80, 96), -1000.0, dtype=np.float32)
    source[:, 20:60, 20:80] = 40
    target = source + rng.normal(0, 10, source.shape).astype(np.float32)
    return [ShownStack("source", source), ShownStack("standardized", source + 30), ShownStack("target", target)]


def read(path) -> np.ndarray:
    from matplotlib.image import imread

    return imread(io.BytesIO(path.read_bytes()))


def test_same_input_same_bytes(tmp_path, stacks):
    write_picture(tmp_path / "a.png", stacks, **SETTINGS)
    write_picture(tmp_path / "b.png", stacks, **SETTINGS)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_one_column_per_stack_and_one_for_the_difference(tmp_path, stacks):
    write_picture(tmp_path / "four.png", stacks, **SETTINGS)
    write_picture(tmp_path / "one.png", stacks[:1], **SETTINGS)
    assert read(tmp_path / "four.png").shape[1] == pytest.approx(4 * read(tmp_path / "one.png").shape[1], rel=0.05)


def test_after_above_target_is_orange(tmp_path, stacks):
    write_picture(tmp_path / "a.png", stacks, region=(30, 30, 20), **SETTINGS)
    image = read(tmp_path / "a.png")
    height, width = image.shape[:2]
    zoomed = image[int(0.7 * height) : int(0.85 * height), int(0.8 * width) : int(0.95 * width), :3]
    red, _, blue = zoomed.mean(axis=(0, 1))
    assert red > 2 * blue


@pytest.mark.parametrize(
    ("change", "message"),
    [({"slice_index": 3}, "expected 0 to 2"), ({"region": (70, 0, 20)}, "leaves the slice of 80 x 96")],
)
def test_outside_is_refused(tmp_path, stacks, change, message):
    with pytest.raises(ConcordctError, match=message):
        write_picture(tmp_path / "a.png", stacks, **{**SETTINGS, **change})
    assert not (tmp_path / "a.png").exists()
