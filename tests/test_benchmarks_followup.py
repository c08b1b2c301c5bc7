"""The benchmark's own arithmetic, and its whole way on tiny subjects: pieces that resume, one table at the end."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch

from concordct.pipelines.followup_data import Prepared
from concordct.progression import catalogue, ciresdiff_recipes
from concordct.progression.lung_function import LungFunction
from concordct.training.bundle import Bundle
from concordct.training.engine import Paused
from test_progression_ciresdiff import TINY, subject
from test_progression_rivals import recipe_of

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import followup as benchmark
from benchmarks import (
    followup_chain,
    followup_models,
    followup_page,
    followup_picture,
    followup_search,
    followup_subjects,
    followup_tables,
    followup_why,
)
from benchmarks.results import lines_in


def prepared(count: int) -> list[Prepared]:
    """Every other subject's lungs get denser, and its gas transfer says so."""
    found = []
    for number in range(count):
        data = subject(number, change_hu=200.0 * (number % 2), size=32)
        tests = LungFunction(dlco_percent=60.0 - 20 * (number % 2))
        label = ("stable", "progressive")[number % 2]
        found.append(Prepared(data.name, data, label, 52.0, tests, {}, False))
    return found


def test_every_subject_is_tested_once_and_both_labels_are_in_every_fold() -> None:
    subjects = prepared(10)
    parts = benchmark.folds(subjects)
    assert sorted(i for part in parts for i in part) == list(range(10))
    assert all({subjects[i].label for i in part} == {"stable", "progressive"} for part in parts)


def test_the_linear_trend_finds_a_trend() -> None:
    subjects = [one for one in prepared(8) if one.label == "progressive"]
    found = benchmark.Trend(subjects[:3]).predict(subjects[3])
    lungs = subjects[3].data.lungs
    change = (found - subjects[3].data.initial)[lungs]
    assert change.mean() == pytest.approx(200, abs=10)
    better = benchmark.measure(subjects[3], found), benchmark.measure(subjects[3], np.float32(subjects[3].data.initial))
    assert better[0]["psnr"] > better[1]["psnr"] + 10


def test_a_learning_rate_is_chosen_on_subjects_of_neither_tested_fold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subjects = prepared(20)
    parts = benchmark.folds(subjects)
    used: set[str] = set()

    def fitted(train: list[Prepared], name: str, steps: int, rate: float, run: object) -> float:
        used.update(one.subject for one in train)
        assert steps == 100
        tried.append((name, rate))
        return rate

    def judged(some: list[Prepared], rate: float) -> list[float]:
        assert not used & {one.subject for one in some}
        seen.update(one.subject for one in some)
        return [-abs(rate - 4e-3)] * len(some)

    seen: set[str] = set()
    tried: list[tuple[str, float]] = []
    monkeypatch.setattr(followup_search, "fit", fitted)
    monkeypatch.setattr(followup_search, "opened", lambda name, bundle, mode: bundle)
    monkeypatch.setattr(followup_search, "gains", judged)
    assert followup_search.search(tmp_path, "SAGAN", subjects, parts, None, lambda: False) == 4e-3
    # A row that varies another takes that one's rate, and searches nothing.
    tried.clear()
    assert followup_search.search(tmp_path, "DM", subjects, parts, None, lambda: False) == 4e-3
    assert tried == [("DM", rate) for rate in (5e-4, 1e-3, 2e-3, 4e-3)]
    assert followup_search.search(tmp_path, "DM, x_0 itself", subjects, parts, None, lambda: False) == 4e-3
    assert len(tried) == 4
    assert not (used | seen) & {subjects[i].subject for fold in (0, 1) for i in parts[fold]}
    # Patients who disagree about a small gain leave the recipe's rate, 0.002.
    path = followup_search.place_of_search(tmp_path, "DM")
    found = json.loads(path.read_text())
    found["tried"][3]["gains"] = [one + (0.1, -0.09)[i % 2] for i, one in enumerate(found["tried"][2]["gains"])]
    found["tried"][3]["gain"] = float(np.mean(found["tried"][3]["gains"]))
    doubtful = tmp_path / "doubtful"
    followup_search.place_of_search(doubtful, "DM").parent.mkdir(parents=True)
    followup_search.place_of_search(doubtful, "DM").write_text(json.dumps(found))
    assert followup_search.chosen(doubtful, "DM") == 2e-3
    assert [row[2] for row in followup_search.rate_rows(tmp_path)] == ["0.004"] * 2


def test_a_model_of_another_rate_is_told_and_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("monai")
    monkeypatch.setitem(catalogue.method("transunet").recipes, "small", recipe_of("transunet"))
    place, train = tmp_path / "fold-0", prepared(2)

    def trained(rate: float | None) -> float:
        path = followup_search.train_row(place, train, "TransUNet", 2, rate, lambda: False)
        assert not list(place.glob("*again*"))
        return float(followup_search.rate_of(path))

    usual = trained(None)
    made = followup_models.stored(place, "TransUNet")
    made.parent.mkdir()
    made.write_bytes(b"")
    beside = followup_models.stored(place, "SAGAN")
    beside.write_bytes(b"")
    (place / "diagnosis.json").write_text('{"TransUNet": [0.5], "SAGAN": [0.5]}')
    assert trained(None) == trained(usual) == usual
    assert made.exists()
    assert followup_search.others(place, ["TransUNet"], 2) == []

    # The search chose another rate.
    monkeypatch.setattr(followup_search, "chosen", lambda folder, name: 3 * usual)
    assert followup_search.others(place, ["TransUNet"], 2) == ["TransUNet (fold 0)"]
    assert trained(3 * usual) == pytest.approx(3 * usual)
    assert not made.exists()
    assert beside.exists()
    assert (place / "diagnosis.json").read_text() == '{"SAGAN": [0.5]}'
    assert followup_search.others(place, ["TransUNet"], 2) == []


def test_a_model_of_before_a_setting_had_a_name_is_told(tmp_path: Path) -> None:
    said = followup_models.said_of("cDiff", None, None)
    config = {name: value for name, value in said["config"].items() if name not in ("centre", "spread")}
    now, before = (Bundle({}, {"recipe": said["phases"], "config": one}) for one in (said["config"], config))
    assert not followup_models.made_otherwise("cDiff", now, None, None)
    assert followup_models.made_otherwise("cDiff", before, None, None)


def test_a_decoder_without_its_finest_state_is_blind_to_it_and_stays_so() -> None:
    config = recipe_of("transunet").config
    net = followup_why.without_finest(config, 16)
    with torch.no_grad():
        net.head.weight.normal_()
    image = torch.randn(1, 1, 16, 16)
    out = net(image)
    out.sum().backward()
    fine = config.net["widths"][0]
    slope = net.up[-1][0].weight.grad
    assert slope is not None
    assert float(slope[:, -fine:].abs().max()) == 0.0
    assert float(slope[:, :-fine].abs().max()) > 0.0
    assert float(net.up[-1][0].weight.detach()[:, -fine:].abs().max()) == 0.0


def test_half_of_the_error_is_six_decibels_and_outside_counts_nothing() -> None:
    initial, wanted, region = torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2)
    region[..., 1] = 0
    made = torch.tensor([[0.5, 9.0], [0.5, 9.0]]).reshape(1, 1, 2, 2)
    assert followup_why.gain(made, (initial, wanted, region)) == pytest.approx(6.02, abs=0.01)


def test_the_picture_has_every_method_and_follows_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("monai")
    monkeypatch.setitem(catalogue.method("transunet").recipes, "small", recipe_of("transunet"))
    place, subjects = tmp_path / "fold-0", prepared(4)
    one = followup_picture.typical(subjects, [False, True, False, False])
    assert one is subjects[3]  # the progressive one who was never looked at

    def slices(rate: float) -> dict[str, np.ndarray]:
        followup_search.train_row(place, subjects[:2], "TransUNet", 2, rate, lambda: False)
        return followup_picture.made_slices(place, ["TransUNet", "SAGAN"], subjects[:2], one)

    first = slices(1e-3)
    assert list(first) == ["first scan", "linear trend", "TransUNet"]
    again = slices(0.5)
    assert not np.array_equal(first["TransUNet"], again["TransUNet"])
    path = tmp_path / "picture.png"
    followup_picture.draw(one, first, path)
    sizes = matplotlib.image.imread(path).shape
    followup_picture.draw(one, {**first, **{str(number): one.data.followup[0] for number in range(6)}}, path)
    assert matplotlib.image.imread(path).shape[0] > 1.5 * sizes[0]  # a second band


def test_checkpoints_of_another_rate_are_not_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("monai")
    monkeypatch.setitem(catalogue.method("transunet").recipes, "small", recipe_of("transunet"))
    place, train = tmp_path / "fold-0", prepared(2)
    with pytest.raises(Paused):
        followup_search.train_row(place, train, "TransUNet", 3, 1e-3, lambda: True)
    followup_search.train_row(place, train, "TransUNet", 3, 2e-3, lambda: False)
    rates = [line["rate"] for line in lines_in(place / "TransUNet.run") if line["phase"] == "game"]
    assert len(rates) == 3
    straight = tmp_path / "fold-1"
    followup_search.train_row(straight, train, "TransUNet", 3, 2e-3, lambda: False)
    assert rates == [line["rate"] for line in lines_in(straight / "TransUNet.run") if line["phase"] == "game"]


def test_who_was_looked_at_before_is_known_by_number() -> None:
    subjects = [
        dataclasses.replace(one, subject=f"ipf-{number:04d}")
        for number, one in zip(range(50, 160, 5), prepared(22), strict=True)
    ]
    seen = followup_subjects.looked_at(subjects)
    assert {"ipf-0050", "ipf-0055"} <= seen
    assert "ipf-0145" not in seen
    before = [one for one in subjects if one.subject < "ipf-0144"]
    assert {before[i].subject for i in benchmark.folds(before)[0]} <= seen


def test_a_difference_comes_with_its_interval() -> None:
    assert followup_tables.against([2.0, 3.0, 4.0], [1.0, 2.0, 3.0], 1) == "+1.0 (+1.0 to +1.0)"


def test_what_is_drawn_stands_beside_the_estimate() -> None:
    row = {"psnr": 20.0, "ssim": 0.5, "rmse": 9.0, "share": 0.2, "true": 0.1}
    every = {"DM": [row] * 2, "DM-R": [row | {"psnr": 21.0}] * 2, "DM, drawn": [row | {"psnr": 15.0, "share": 0.4}] * 2}
    first, second = followup_tables.quality_rows(every, "DM-R")
    assert (first[0], first[1], first[5], first[7]) == ("DM", "20.00 ± 0.00", "15.00 ± 0.00", "30.00")
    assert first[8].startswith("+1.00")
    assert second[5:] == ["", "", "", "", ""]


def test_the_page_names_a_command_that_can_be_typed() -> None:
    aside = ["DM-R-CIP, x_0 itself", "SAGAN"]
    typed = followup_page.command_of(150, brief=True, steps=400, folds=[0], aside=aside)
    assert shlex.split(typed)[3:] == [
        "--subjects", "150", "--brief", "--most-steps", "400", "--folds", "0", "--aside", *aside,
    ]  # fmt: skip


def flat(subjects: list[Prepared]) -> list[Prepared]:
    """Half as many slices, for what is predicted by every method."""
    arrays = ("initial", "followup", "region", "lungs")
    cut = [{name: getattr(one.data, name)[8:24] for name in arrays} for one in subjects]
    return [
        dataclasses.replace(one, data=dataclasses.replace(one.data, **parts))
        for one, parts in zip(subjects, cut, strict=True)
    ]


def test_pieces_come_to_one_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("monai")
    monkeypatch.setitem(ciresdiff_recipes.RECIPES, "small", TINY)
    monkeypatch.setattr(benchmark, "simulate_cohort", lambda folder, **_: folder / "cohort.csv")
    monkeypatch.setattr(benchmark, "usable", lambda *_, **__: flat(prepared(10)))
    monkeypatch.setattr(benchmark, "STEPS", (1, 2))
    monkeypatch.setattr(benchmark, "FEW", 1)
    monkeypatch.setattr(followup_models, "SLICES_TILE", 32)
    monkeypatch.setattr(followup_models, "CDIFF_STEPS", 1)
    monkeypatch.setattr(followup_search, "SEARCHED", ())
    monkeypatch.setattr(followup_search, "JUDGES", 1)
    monkeypatch.setattr(followup_chain, "BATCHES", 1)
    for name in followup_models.RIVALS.values():
        monkeypatch.setitem(catalogue.method(name).recipes, "small", recipe_of(name))
    aside = ["DM-R-CIP, x_0 itself", "SAGAN", "cDiff", "DiffusionCT"]
    words = [
        "followup",
        "--folder",
        str(tmp_path),
        "--folds",
        "0",
        "--most-steps",
        "2",
        "--rehearsal",
        "--aside",
        *aside,
    ]
    monkeypatch.setattr(sys, "argv", [*words, "--minutes", "0"])
    with pytest.raises(SystemExit, match="paused"):
        benchmark.main()
    monkeypatch.setattr(sys, "argv", words)
    benchmark.main()
    said = capsys.readouterr().out
    assert "of 0 of these test subjects results were looked at" in said
    for name in (*benchmark.EVERY, *aside, "real follow-up", "first scan and table alone"):
        assert f"| {name}" in said
    assert "Not trained here: " in said
    assert "ResViT" in said.split("Not trained here: ")[1].splitlines()[0]
    assert re.search(r"\| SAGAN \| 0 \| 8 \| 2 \| \S+ \| \d+\.\d \| \S+ \| \S+ \| [+-]\S+ \(.+?\) \| \d+\.\d \|", said)
    assert "2 simulated test subjects of 1 folds, 1 progressive" in said
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")}
    benchmark.main()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")} == stamps
