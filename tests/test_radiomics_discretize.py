"""Discretization: published edges, and equality with the libraries' own formulas."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from concordct.errors import ConcordctError
from concordct.radiomics.regions import discretize


def test_pyradiomics_documented_example():
    # PyRadiomics' documentation of getBinEdges: 54 to 166 with width 25 has edges 50, 75, ... 175
    values = np.array([54.0, 74.9, 75.0, 100.0, 166.0])
    assert discretize.by_width_from_zero(values, 25.0).tolist() == [1, 1, 2, 3, 5]


@given(arrays(np.float64, st.integers(1, 60), elements=st.floats(-2000, 3000)), st.sampled_from([0.7, 1.0, 7.3, 25.0]))
def test_width_from_zero_equals_digitize_on_the_edges(values, width):
    low = values.min() - values.min() % width
    edges = np.arange(low, values.max() + 2 * width, width)
    assert np.array_equal(discretize.by_width_from_zero(values, width), np.digitize(values, edges))


@given(arrays(np.float64, st.integers(2, 60), elements=st.integers(-1000, 3000)), st.integers(2, 64))
def test_fixed_number_uses_all_its_range(values, count):
    levels = discretize.by_count(values, count)
    assert levels.min() == 1
    assert levels.max() == (count if values.min() < values.max() else 1)


def test_fixed_size_begins_at_the_named_bound():
    assert discretize.by_width(np.array([-500.0, -475.1, -475.0, 400.0]), 25.0, lowest=-500.0).tolist() == [1, 1, 2, 37]
    with pytest.raises(ConcordctError, match="below the first bin"):
        discretize.by_width(np.array([-501.0]), 25.0, lowest=-500.0)


def test_a_width_for_other_intensities_is_refused():
    with pytest.raises(ConcordctError, match="levels"):
        discretize.by_width_from_zero(np.array([0.0, 1e6]), 0.5)
