"""Every column that PyRadiomics 3.0.1 has, in its order and to 1e-6, on real ROIs: both run here, nothing is stored."""

import pytest

import parity_pyradiomics
from parity_pyradiomics import compare, digital_phantom, random_chest, tumour

pytestmark = pytest.mark.skipif(
    not (parity_pyradiomics.PYTHON.parents[1] / "installed").exists(),
    reason="no PyRadiomics 3.0.1: `make reference` installs it in .venv/pyradiomics, or says why it cannot",
)

#: 14 of shape, and 93 of each of 20 image types.
COLUMNS = 14 + 20 * 93


def check(case, tmp_path, *, rois):
    found = compare(case, tmp_path)
    assert found.names == found.reference_names
    assert found.values.shape == found.reference.shape == (rois, COLUMNS)
    assert found.far == []


def test_the_digital_phantom(shared_data, tmp_path):
    check(digital_phantom(shared_data), tmp_path, rois=1)


@pytest.mark.parametrize("patient", ["pat_2", "pat_3"])
def test_a_tumour(shared_data, tmp_path, patient):
    check(tumour(shared_data, patient), tmp_path, rois=1)


def test_random_rois_of_a_chest(shared_data, tmp_path):
    check(random_chest(shared_data), tmp_path, rois=20)
