"""The benchmark's model: recipe `gpu` as it is, though it was trained on small patches for two steps."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from concordct.progression import ciresdiff_recipes
from concordct.progression.ciresdiff_predict import load
from concordct.training.bundle import load_bundle

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import followup_speed as speed

pytest.importorskip("transformers")


def test_the_model_is_recipe_gpu(tmp_path: Path) -> None:
    predictor = load(load_bundle(speed.model_of(tmp_path)))
    recipe = ciresdiff_recipes.RECIPES["gpu"]
    for name in ("spacing_mm", "patch", "overlap"):
        assert getattr(predictor, name) == getattr(recipe, name)
    assert predictor.steps == recipe.sampling_steps
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


def test_the_section_adds_up() -> None:
    rows = [{"stage": "reading", "clock": 2.0, "cpu": 1.0}, {"stage": "predicting", "clock": 100.0, "cpu": 150.0}]
    said = speed.text({"rows": rows, "peak_mib": 1779.0, "load": 2.0, "nice": 0})
    assert "| **all** | **102** | **151** |" in said
    assert "Peak memory: 1779 MiB" in said
