"""What is held of a volume in two bytes a voxel comes back as it was."""

import numpy as np
import pytest

from concordct.judging.held import Held
from concordct.volumes.volume import AIR_HU, Volume

AFFINE = np.array([[0, 0, 0.7, -80], [0, 0.7, 0, -90], [2.5, 0, 0, 40], [0, 0, 0, 1.0]])


@pytest.mark.parametrize(("step", "dtype"), [(1.0, np.int16), (0.5, np.float32), (40.0, np.float32)])
def test_hu_geometry_and_padding_come_back(step, dtype):
    hu = (np.random.default_rng(2).integers(-1024, 3071, (3, 7, 9)) * step).astype(np.float32)
    padding = np.zeros(hu.shape, bool)
    padding[:, 0, :5] = True
    hu[padding] = AIR_HU
    held = Held.of(Volume(hu, AFFINE, padding, 2.5, "B40f"))
    assert held.values.dtype == dtype
    assert np.array_equal(held.volume().hu, hu)
    assert np.array_equal(np.stack(list(held)), hu)
    assert np.array_equal(held.padding, padding)
    assert (held.shape, held.volume().kernel, held.spacing_mm) == (hu.shape, "B40f", (2.5, 0.7, 0.7))
    assert np.array_equal(held.affine, AFFINE)
    assert np.array_equal(held.whole_hu(), np.rint(hu).astype(np.int32).astype(np.int16))
