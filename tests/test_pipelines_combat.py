"""ComBat trained, saved, applied: new subjects of known sites, and a site that training has not seen."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from concordct.agreement.combat import fit_combat
from concordct.cli.common import app
from concordct.errors import ConcordctError
from concordct.pipelines.combat import apply_combat, read_combat, train_combat
from concordct.radiomics.table import FeatureRows, read_rows, write_rows

NAMES = tuple(f"original_glcm_F{k}" for k in range(12))
SHIFT = {"a": 0.0, "b": 3.0, "c": -5.0}
GAIN = {"a": 1.0, "b": 1.6, "c": 0.6}


def write(folder: Path, stem: str, sites: str, seed: int) -> tuple[Path, Path, np.ndarray, np.ndarray]:
    """Features of subjects of some sites, their table, and the values without the sites' effects."""
    generator = np.random.default_rng(seed)
    age = generator.uniform(40, 80, len(sites))
    noise = generator.normal(0, 1, (len(sites), 12))
    law = np.arange(12) + 0.1 * age[:, None]
    values = np.array([row + GAIN[s] * own + SHIFT[s] for s, row, own in zip(sites, law, noise, strict=True)])
    keys = tuple((f"{stem}{k}", "1") for k in range(len(sites)))
    path = folder / f"{stem}.csv"
    write_rows(path, FeatureRows(keys, tuple(k for k, _ in keys), NAMES, ("glcm",) * 12, values))
    table = folder / f"{stem}-sites.csv"
    with table.open("w", newline="") as stream:
        out = csv.writer(stream)
        out.writerow(("image", "site", "age"))
        out.writerows((key, s, a) for (key, _), s, a in zip(keys, sites, age, strict=True))
    return path, table, values, age


def test_saved_and_applied_is_what_was_fitted(tmp_path: Path) -> None:
    features, sites, values, age = write(tmp_path, "train", "ab" * 30, 0)
    train_combat(features, sites, tmp_path / "combat.json")
    assert apply_combat(tmp_path / "combat.json", features, sites, tmp_path / "out.csv") == ()
    wanted = fit_combat(values, list("ab" * 30), age[:, None]).apply(values, list("ab" * 30), age[:, None])
    np.testing.assert_allclose(read_rows(tmp_path / "out.csv").values, wanted, rtol=1e-9)


def test_an_unseen_site_comes_to_the_others(tmp_path: Path) -> None:
    features, sites, _, _ = write(tmp_path, "train", "ab" * 40, 0)
    arguments = ["combat", "train", str(features), "--sites", str(sites), "-o", str(tmp_path / "combat.json")]
    assert CliRunner().invoke(app, [*arguments, "--reference", "a"]).exit_code == 0
    before = read_combat(tmp_path / "combat.json").combat
    new, new_sites, raw, new_age = write(tmp_path, "new", "c" * 60, 1)
    arguments = ["combat", "apply", str(tmp_path / "combat.json"), str(new), "--sites", str(new_sites), "-o"]
    found = CliRunner().invoke(app, [*arguments, str(tmp_path / "out.csv")])
    assert found.exit_code == 0
    assert "unseen site: c" in found.output
    # Against the reference's own law: mean k + 0.1 age, spread 1.
    expected = np.arange(12) + 0.1 * new_age[:, None]
    residual = read_rows(tmp_path / "out.csv").values - expected
    assert np.abs(residual.mean(axis=0)).max() < 0.5
    assert np.abs((raw - expected).mean(axis=0)).min() > 3
    assert residual.std(axis=0).mean() == pytest.approx(1.0, abs=0.15)
    after = read_combat(tmp_path / "combat.json").combat
    np.testing.assert_array_equal(before.gamma, after.gamma)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    features, sites, _, _ = write(tmp_path, "train", "ab" * 10, 0)
    train_combat(features, sites, tmp_path / "combat.json")
    one, one_sites, _, _ = write(tmp_path, "one", "abc", 2)
    with pytest.raises(ConcordctError, match="batch c: expected two subjects"):
        apply_combat(tmp_path / "combat.json", one, one_sites, tmp_path / "out.csv")
    with pytest.raises(ConcordctError, match="expected a site for image one0"):
        apply_combat(tmp_path / "combat.json", one, sites, tmp_path / "out.csv")
    (tmp_path / "bad.json").write_text(json.dumps({"features": ["x"]}))
    with pytest.raises(ConcordctError, match="expected a trained ComBat"):
        read_combat(tmp_path / "bad.json")
    assert not (tmp_path / "out.csv").exists()
