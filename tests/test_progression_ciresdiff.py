"""CIResDiff: patches, blending, what may and may not change a prediction, training that resumes, what it learns."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from concordct.errors import ConcordctError
from concordct.nets.clip import TextConfig
from concordct.progression.ciresdiff import CIResDiff, CohortData, _draws, fit, scale_of, thumbnail
from concordct.progression.ciresdiff_known import TOLD, dense_share, text_direction, told_again
from concordct.progression.ciresdiff_predict import Predictor, load
from concordct.progression.ciresdiff_recipes import ABLATIONS, RECIPES, VARIANTS, Config, Recipe, ablated
from concordct.progression.patches3d import Followup, Patches3d, patch_seed
from concordct.progression.tiling3d import blended, starts, window
from concordct.training.bundle import load_bundle, save_bundle
from concordct.training.engine import Paused, Phase, Run
from concordct.volumes.seeds import SliceSeeds
from learning import awaken

SEEDS = SliceSeeds(3, "scan")
SAID = "Forced vital capacity {} ml. Next scan after 52 weeks."
QUICK = Phase(steps=4, batch=2, learning_rate=2e-3, warmup=2, every=2)
TINY = Recipe(
    config=Config(
        steps=6, widths=(8, 8), attend=(1,), text=TextConfig(8, 1, 2, 24), scan_widths=(4, 4), fold=2, kappa=0.05
    ),
    spacing_mm=3.0,
    patch=16,
    overlap=8,
    contrast=QUICK,
    diffusion=QUICK,
    sampling_steps=2,
)


def subject(seed: int, *, change_hu: float = 0.0, size: int = 28) -> Followup:
    """Two lungs of noise in a chest; the second scan has other noise and, where asked for, denser lungs."""
    generator = np.random.default_rng(seed)
    z, y, x = np.indices((size, size, size)) / size - 0.5
    lungs = ((np.abs(x) - 0.22) / 0.16) ** 2 + (y / 0.36) ** 2 + (z / 0.42) ** 2 < 1
    anatomy = np.where(lungs, -850.0, 40.0) + 60 * ndimage.gaussian_filter(generator.standard_normal(lungs.shape), 1.5)
    noisy = [anatomy + 20 * generator.standard_normal(lungs.shape) for _ in range(2)]
    return Followup(
        f"s{seed}",
        noisy[0].round().astype(np.int16),
        (noisy[1] + change_hu * lungs).round().astype(np.int16),
        ndimage.binary_dilation(lungs, iterations=2),
        lungs,
        SAID.format(2000 + 100 * (seed % 10)),
    )


def predictor(row: str = "DM-R-CIP", *, patch: int = 16, sentences: tuple[str, ...] = (SAID,)) -> Predictor:
    """Random weights, nothing silent."""
    from concordct.nets import clip

    pytest.importorskip("transformers")
    tokenizer = clip.train_tokenizer(sentences)
    config = ablated(TINY, row).config
    text = dataclasses.replace(config.text, vocabulary=clip.vocabulary(tokenizer))
    torch.manual_seed(0)
    system = CIResDiff(dataclasses.replace(config, text=text)).eval().requires_grad_(False)
    awaken(system)
    if system.pair is not None:
        system.set_text_statistics(tokenizer, [SAID.format(ml) for ml in range(1500, 3500, 100)], torch.device("cpu"))
    return Predictor(system, tokenizer, 3.0, patch, 8, 2)


# Patches


def test_everything_about_a_patch_follows_from_its_place() -> None:
    subjects = [subject(0), subject(1), subject(2)]
    patches = Patches3d(subjects, 16, 5)
    many = patches.batch(7, range(12))
    assert many.source.shape == (12, 2, 16, 16, 16)
    one = patches.batch(7, (9,))
    assert one.seeds == many.seeds[9:10]
    assert np.array_equal(one.source[0], many.source[9])
    assert {patches.subject(seed) for seed in many.seeds} == {0, 1, 2}
    for place, (seed, name) in enumerate(zip(many.seeds, many.places, strict=True)):
        chosen = subjects[patches.subject(seed)]
        assert name.startswith(chosen.name)
        corner = [int(n) for n in name.split("(")[1].rstrip(")").split(",")]
        where = tuple(slice(c, c + 16) for c in corner)
        both = [many.target[place, 0], many.target[place, 0, ..., ::-1]]
        assert any(np.array_equal(chosen.followup[where], one) for one in both)
    with pytest.raises(ConcordctError, match="at least 32 voxels each way"):
        Patches3d(subjects, 32, 5)


# Blending


def test_patches_cover_an_axis_on_the_networks_grid() -> None:
    assert starts(40, 16, 8, 4) == (0, 8, 16, 24)
    assert starts(44, 16, 8, 4) == (0, 8, 16, 24, 28)
    assert starts(16, 16, 8, 4) == (0,)
    with pytest.raises(ValueError, match="multiples of 4"):
        starts(42, 16, 8, 4)
    assert window(24, 8).max() == 1.0
    assert window(24, 8).min() > 0


def test_what_is_known_of_each_voxel_alone_is_not_changed_by_blending() -> None:
    volume = torch.randn(32, 24, 28, generator=torch.Generator().manual_seed(0))
    inside = np.zeros(volume.shape, bool)
    inside[:16] = True
    sizes = {"size": 16, "overlap": 8, "divisor": 4, "device": torch.device("cpu")}
    found = blended(lambda cut: cut[0] * 2, (volume,), inside, **sizes)
    assert torch.allclose(found[:24], 2 * volume[:24], atol=1e-5)
    assert not found[32 - 8 :].any()  # only patches without any of the region


# What may change a prediction


def test_one_seed_one_result_and_another_seed_another() -> None:
    at_work, one = predictor(), subject(0)
    hu = one.initial.astype(np.float32)
    found = at_work.predict(hu, one.region, SAID, seeds=SEEDS)
    assert np.array_equal(found, at_work.predict(hu, one.region, SAID, seeds=SEEDS))
    assert not np.array_equal(found, at_work.predict(hu, one.region, SAID, seeds=SliceSeeds(4, "scan")))
    mean = dataclasses.replace(at_work, mode="mean")
    assert np.array_equal(
        mean.predict(hu, one.region, SAID, seeds=SEEDS), mean.predict(hu, one.region, SAID, seeds=SliceSeeds(4, "x"))
    )


@pytest.mark.parametrize("row", list(ABLATIONS))
def test_the_text_matters_where_the_row_says_so(row: str) -> None:
    at_work, one = predictor(row), subject(0)
    hu = one.initial.astype(np.float32)
    said = [at_work.predict(hu, one.region, SAID.format(n), seeds=SEEDS) for n in (2100, 3900)]
    assert np.array_equal(*said) == (not row.endswith("CIP"))


def test_outside_the_region_and_above_the_window_the_scan_stands() -> None:
    one = subject(0)
    hu = one.initial.astype(np.float32)
    hu[14, 14, 4:10] = (600, 1200, 3071, 700, 501, 2000)
    found = predictor().predict(hu, one.region, SAID, seeds=SEEDS)
    assert np.array_equal(found[~one.region], hu[~one.region])
    assert np.array_equal(found[hu > 500], hu[hu > 500])
    assert np.abs(found - hu)[one.lungs].max() > 1
    with pytest.raises(ConcordctError, match="found an empty one"):
        predictor().predict(hu, one.region & False, SAID, seeds=SEEDS)


def test_networks_without_weight_change_nothing_but_by_their_noise() -> None:
    one, at_work = subject(0), predictor()
    silent = CIResDiff(at_work.system.config).eval()
    hu = one.initial.astype(np.float32)
    found = dataclasses.replace(at_work, system=silent, mode="mean").predict(hu, one.region, SAID, seeds=SEEDS)
    assert np.allclose(found, hu, atol=0.01)


@pytest.mark.parametrize("name", list(RECIPES))
def test_patches_of_every_recipe_lie_on_its_networks_grid(name: str) -> None:
    recipe = RECIPES[name]
    divisor = recipe.config.fold * 2 ** (len(recipe.config.widths) - 1)
    assert recipe.patch % divisor == recipe.overlap % divisor == 0
    assert 0 < recipe.overlap < recipe.patch
    assert recipe.sampling_steps <= recipe.config.steps
    assert max(recipe.config.attend) < len(recipe.config.widths)


def test_a_share_of_the_patches_stands_at_the_last_step() -> None:
    """The others have the step, and all the noise, that they would have had."""
    seeds = [patch_seed(1, step, 0) for step in range(400)]
    (some, noise), (every, same) = (_draws(seeds, 15, (2, 2), share) for share in (0.5, 0.0))
    assert torch.equal(noise, same)
    assert set(every.tolist()) == set(range(1, 16))
    moved = some != every
    assert (some[moved] == 15).all()
    assert 0.45 < (some == 15).float().mean() < 0.6
    assert _draws(seeds, 15, (1,), 1.0)[0].unique().tolist() == [15]


def test_intensity_maps() -> None:
    hu = np.array([-1024.0, -900.0, 3000.0])
    region = np.array([False, True, True])
    assert scale_of(hu, region, "fixed") == (-1100.0, 500.0)
    assert scale_of(hu, region, "minmax") == (-900.0, 3000.0)
    assert RECIPES["paper"].config.intensity == "minmax"
    assert RECIPES["small"].config.intensity == "fixed"


def test_what_is_told_again_differs_as_a_second_test_would() -> None:
    said = "Forced vital capacity 2550 ml, 68 percent. Peak flow 410 litres. Gas transfer unknown."
    ways = [told_again(said, way) for way in range(40)]
    assert ways[0] == said
    assert ways == [told_again(said, way) for way in range(40)]
    numbers = np.array([[int(word.strip(".,")) for word in way.split() if word.strip(".,").isdigit()] for way in ways])
    assert numbers.shape == (40, 3)
    assert not (numbers[:, 0] % 50).any()
    assert not (numbers[:, 2] % 10).any()
    assert numbers.std(axis=0) / numbers.mean(axis=0) == pytest.approx(0.03, rel=0.5)
    assert all(way.endswith("Gas transfer unknown.") for way in ways)


def test_the_dense_share_counts_aerated_lung_alone() -> None:
    hu, region = np.full((4, 4, 4), -850), np.ones((4, 4, 4), bool)
    hu[0], hu[1] = -500, 40
    assert dense_share(hu, region) == pytest.approx((1 / 3 - 0.28) / 0.1)
    assert dense_share(np.full((4, 4, 4), 40), region) == 0


def test_the_reading_of_a_text_starts_where_it_goes_with_the_change() -> None:
    changes = np.linspace(-100, 200, 12)
    subjects = [subject(n, change_hu=change, size=16) for n, change in enumerate(changes)]
    components = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    components[:, 2] = torch.from_numpy((changes - 50) / 100)
    found = text_direction(components.repeat_interleave(TOLD, dim=0), subjects)
    assert found.abs().argmax() == 2
    assert found[2] > 0
    assert float((components @ found).std()) == pytest.approx(1, abs=0.1)


def test_a_thumbnail_shows_the_lungs_wherever_they_lie() -> None:
    one = subject(0)
    seen = thumbnail(one.initial, one.region, 3.0)
    moved = thumbnail(np.roll(one.initial, 1, axis=1), np.roll(one.region, 1, axis=1), 3.0)
    assert seen.shape == (32, 32, 32)
    assert np.allclose(seen, moved, atol=0.02)
    assert seen.max() > 0.1


# Training


def _fit(folder: Path, data: CohortData, recipe: Recipe, *, pieces: bool = False) -> object:
    while True:
        try:
            return fit(data, recipe, Run(folder, stop=(lambda: True) if pieces else None))
        except Paused:
            continue


def test_training_resumes_to_the_bit_and_the_model_comes_back_from_disk(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    data = CohortData([subject(0), subject(1)], {"subjects": 2})
    whole = _fit(tmp_path / "a", data, TINY)
    pieces = _fit(tmp_path / "b", data, TINY, pieces=True)
    assert whole.sha256 == pieces.sha256  # type: ignore[attr-defined]
    save_bundle(whole, tmp_path / "model", card="")  # type: ignore[arg-type]
    one = subject(2)
    hu = one.initial.astype(np.float32)
    found = [
        load(bundle).predict(hu, one.region, one.sentence, seeds=SEEDS)
        for bundle in (whole, load_bundle(tmp_path / "model"))  # type: ignore[list-item]
    ]
    assert np.array_equal(*found)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Predictor]:
    """Two rows trained on lungs that all become 250 HU denser."""
    data = CohortData([subject(n, change_hu=250.0) for n in range(3)], {})
    longer = dataclasses.replace(QUICK, steps=100, batch=4, learning_rate=5e-3, every=500, ema=0.95)
    found = {}
    for row in ("DM", "DM-R"):
        recipe = dataclasses.replace(ablated(TINY, row), diffusion=longer, sampling_steps=3)
        found[row] = load(fit(data, recipe, Run(tmp_path_factory.mktemp(row))))
    return found


@pytest.mark.parametrize("row", ["DM", "DM-R"])
def test_a_change_that_all_share_is_learned(row: str, trained: dict[str, Predictor]) -> None:
    one = subject(9, change_hu=250.0)
    hu, truth = one.initial.astype(np.float32), one.followup.astype(np.float32)
    found = trained[row].predict(hu, one.region, one.sentence, seeds=SEEDS)
    errors = [float(np.sqrt(((image - truth)[one.lungs] ** 2).mean())) for image in (found, hu)]
    assert errors[0] < 0.6 * errors[1]


def test_seams_are_below_the_noise(trained: dict[str, Predictor]) -> None:
    """Against one patch that holds the whole scan: what patches add between neighbours, plane by plane."""
    one = subject(8, change_hu=250.0)
    hu = one.initial.astype(np.float32)
    patches = dataclasses.replace(trained["DM-R"], patch=20)
    whole = dataclasses.replace(patches, patch=32)
    found, wanted = (p.predict(hu, one.region, SAID, seeds=SEEDS) for p in (patches, whole))
    assert not np.array_equal(found, wanted)
    for axis in range(3):
        error, inside = (np.moveaxis(a, axis, 0) for a in (found - wanted, one.lungs))
        both = inside[1:] & inside[:-1]
        jumps = [np.sqrt((np.diff(error, axis=0)[i][m] ** 2).mean()) for i, m in enumerate(both) if m.sum() > 40]
        assert len(jumps) > 12
        assert max(jumps) < 20.0  # the scans' noise, HU


def test_rows_of_the_ablation_differ_in_what_they_name_alone(tmp_path: Path) -> None:
    """One parametrization in all rows; a random tower is never trained; without ridge the reading starts anywhere."""
    pytest.importorskip("transformers")
    for recipe in RECIPES.values():
        assert len({ablated(recipe, row).config.onto_initial for row in ABLATIONS}) == 1
        assert not ablated(recipe, "DM, x_0 itself").config.onto_initial
    data = CohortData([subject(number) for number in range(4)], {})
    still = dataclasses.replace(TINY, diffusion=dataclasses.replace(QUICK, learning_rate=0.0))
    readings = {}
    for row in ("DM-R-CIP", *(name for name in VARIANTS if "tower" in name or "ridge" in name)):
        bundle = fit(data, ablated(still, row), Run(tmp_path / row))
        readings[row] = bundle.tensors["net.reading.weight"]
        assert (tmp_path / row / "checkpoints" / "contrast").exists() == ("tower" not in row)
    first, start = readings["DM-R-CIP"], readings["DM-R-CIP, without ridge start"]
    assert not np.array_equal(first[0], start[0])
    assert np.array_equal(first[1:], start[1:])
