"""A stranger's method: one Python file becomes a row like any other."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from concordct.methods import catalogue

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import papers_rivals

SOURCE = Path(papers_rivals.__file__).parents[1] / "src" / "concordct" / "methods" / "paired" / "choe.py"


def test_a_file_becomes_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Theirs under another name: known to the catalogue, with its own settings, until the process ends."""
    for mapping in (catalogue.CATALOGUE, papers_rivals.RIVALS):
        monkeypatch.setitem(mapping, "mine", None)  # what is put there is taken away again
    file = tmp_path / "mine.py"
    file.write_text(
        SOURCE.read_text().replace('METHOD = "choe"', 'METHOD = "mine"') + 'GRID = ({"learning_rate": 1e-3},)\n'
    )
    entry, grid = papers_rivals.stranger(file)
    assert catalogue.method("mine") is entry
    assert grid == ({"learning_rate": 1e-3},)
    recipe = papers_rivals.set_recipe(entry.recipes["small"], {**grid[0], "square": False}, 7)
    assert (recipe.phase("game").steps, recipe.phase("game").learning_rate, recipe.config.square) == (7, 1e-3, False)
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(SystemExit, match="expected ENTRY"):
        papers_rivals.stranger(tmp_path / "empty.py")
