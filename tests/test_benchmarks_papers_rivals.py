"""A stranger's method: one Python file becomes a row like any other."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from concordct.methods import catalogue
from concordct.volumes.manifest import read_manifest, write_manifest
from learning import cohort

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import papers, papers_measure, papers_rivals

SOURCE = Path(papers_rivals.__file__).parents[1] / "src" / "concordct" / "methods" / "paired" / "choe.py"
EXAMPLE = Path(papers_rivals.__file__).parents[1] / "examples" / "method" / "one_convolution.py"


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


def test_a_stranger_comes_into_the_table_by_one_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The example of the documentation, on tiny pairs: searched, trained, judged beside the input."""
    for mapping in (catalogue.CATALOGUE, papers_rivals.RIVALS):
        monkeypatch.setitem(mapping, EXAMPLE.stem, None)
    few = tmp_path / "few.yaml"
    few.write_text("imageType: {Original: {}}\nfeatureClass: {firstorder: [Mean, Variance]}\nsetting: {binWidth: 25}\n")
    monkeypatch.setenv("CONCORDCT_RUNS", str(tmp_path / "runs"))
    for module in (papers_rivals, papers_measure):
        monkeypatch.setattr(module, "ROIS_PER_RANGE", 1)
        monkeypatch.setattr(module, "PRESET", str(few))
    monkeypatch.setattr(papers_rivals, "MINUTES", 0.005)
    manifest = cohort(tmp_path, 4)
    rows = read_manifest(manifest)
    rows = (*rows[:2], rows[2].model_copy(update={"split": "validation"}), rows[3])
    write_manifest(manifest, rows, overwrite=True)
    monkeypatch.setattr(papers, "cohort", lambda **_: (manifest, None))
    monkeypatch.setattr(sys, "argv", ["papers", "--method", str(EXAMPLE)])
    papers.main()
    said = capsys.readouterr().out
    assert "| one_convolution |" in said
    assert "| input |" in said
    assert "| one_convolution |" in (tmp_path / "runs" / "one_convolution.md").read_text()
    record = json.loads((tmp_path / "runs" / "search" / "one_convolution" / "search.json").read_text())
    assert len(record["settings"]) == 4
