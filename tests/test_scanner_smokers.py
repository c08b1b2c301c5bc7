"""Smokers: the heart's mask holds calcium and no bone, and calcium's mass is that of the shapes."""

from __future__ import annotations

import numpy as np
import pytest

from concordct.scanner.frame import Frame
from concordct.scanner.smokers import digital_smoker

FRAME = Frame((220, 280), 1.0, (-20.0, 0.0))


def test_dense_material_in_the_heart_is_the_plaques_alone() -> None:
    body = digital_smoker(2, seed=41, z_mm=(117.0, 120.0), emphysema_ml=0.05, plaques=2, nodules=0)
    z = np.arange(117.25, 120.0, 0.5)
    hu, heart = body.draw(z, FRAME), body.masks(z, FRAME)["heart"]
    assert heart.sum() > 10000
    dense = heart & (hu >= 130)
    mass_mg = 0.8 * float(hu[dense].sum()) * 0.5 / 1000
    known = sum(plaque.mass_mg for plaque in body.plaques)
    assert len(body.plaques) == 2
    assert mass_mg == pytest.approx(known, rel=0.2)
    # Bone lies right behind the mask: without its margin it would be in it.
    assert (hu >= 300).any()
