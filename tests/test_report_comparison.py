"""The comparison's pictures: a model that misses the target shows where."""

from __future__ import annotations

import io

import numpy as np
import pytest

from concordct.judging.stages import TARGET
from concordct.report.comparison import Panel, image_row


@pytest.mark.parametrize(("error_hu", "red"), [(0, False), (180, True)])
def test_a_difference_to_the_target_is_red(error_hu: int, red: bool) -> None:
    from matplotlib.image import imread

    target = np.zeros((80, 80), np.int16)
    panels = [Panel(TARGET, target), Panel("model", target + np.int16(error_hu))]
    picture = imread(io.BytesIO(image_row(panels, (40, 40), {"model": 0.5})))
    apart = (picture[..., 0] > 0.6) & (picture[..., 2] < 0.3) & (picture[..., 1] < 0.2)
    assert bool(apart.mean() > 0.02) is red
