"""Agreement of texture over a grid of ROIs."""

from __future__ import annotations

import numpy as np
import pytest

from concordct.agreement.texture import ROI, Texture
from concordct.radiomics.definitions.pyradiomics import PyRadiomics
from synthetic import volume

SETTINGS = PyRadiomics(classes={"glcm": ("Contrast",), "firstorder": ("Mean",)}, bin_width=25.0, force_2d=True)


def test_texture_agrees_with_itself_and_less_with_noise_of_another_width() -> None:
    rng = np.random.default_rng(0)
    levels = np.repeat(np.repeat(rng.uniform(10, 60, (3, 3)), ROI, 0), ROI, 1)
    target = volume((levels * rng.normal(size=levels.shape) + 5 * levels)[None])
    texture = Texture.of(target, target.hu, np.ones(target.shape, bool), SETTINGS)
    assert texture is not None
    assert texture.target.shape == (9, 2)
    assert texture.ccc(target.hu) == {"glcm": pytest.approx(1.0), "firstorder": pytest.approx(1.0)}
    wider = texture.ccc(target.hu * np.float32(1.5))
    assert 0 < wider["glcm"] < 0.9
    assert texture.agreement(texture.features(target.hu), texture.target) == texture.ccc(target.hu)


def test_too_few_regions_are_none() -> None:
    one = volume(np.zeros((1, ROI, 2 * ROI)))
    mask = np.ones(one.shape, bool)
    assert Texture.of(one, one.hu, mask, SETTINGS, fewest=2) is not None
    assert Texture.of(one, one.hu, mask, SETTINGS, fewest=3) is None
    assert Texture.of(one, one.hu, np.zeros_like(mask), SETTINGS) is None
