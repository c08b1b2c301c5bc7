"""CIResDiff's rivals: shapes and gradients, losses by hand, resuming, overfitting, and that no follow-up is seen."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn

from concordct.errors import ConcordctError
from concordct.nets.discriminators import Judge
from concordct.nets.unet_sagan import LAST_GAIN, UNet3d
from concordct.progression import catalogue, cdiff, ciresdiff_recipes, pix2pix3d, resvit, sagan, transunet
from concordct.progression.ciresdiff import HIGH_HU, LOW_HU, CohortData
from concordct.progression.patches3d import Followup
from concordct.progression.translation3d import Game, Recipe, chosen_slices, masked_rmse
from concordct.training.engine import Paused, Phase, Run
from concordct.training.players import seat
from concordct.volumes.seeds import SliceSeeds
from learning import awaken

JUDGE = Judge(4, 1, "INSTANCE")
NETS: dict[str, dict[str, Any]] = {
    "pix2pix3d": {"widths": (8, 8), "normed": False, "residual": True},
    "sagan": {"widths": (8, 8), "normed": False, "spectral": True, "attention": True, "residual": True},
    "transunet": {"widths": (8, 8), "width": 8, "depth": 1, "heads": 2},
    "resvit": {"width": 4, "blocks": 2, "attend": (0,), "words": 8, "depth": 1, "heads": 2},
}
GAMES = {"pix2pix3d": pix2pix3d, "sagan": sagan, "transunet": transunet, "resvit": resvit}
every = pytest.mark.parametrize("name", [*GAMES, "cdiff"])
games = pytest.mark.parametrize("name", GAMES)
SEEDS = SliceSeeds(3, "scan")
#: A step of a tenth on the networks' scale, HU.
TENTH = 0.1 * (HIGH_HU - LOW_HU) / 2


def subject(seed: int, *, change_hu: float = 120.0, size: int = 28) -> Followup:
    """Two lungs in a chest that become denser everywhere."""
    generator = np.random.default_rng(seed)
    z, y, x = np.indices((size, size, size)) / size - 0.5
    lungs = ((np.abs(x) - 0.22) / 0.16) ** 2 + (y / 0.36) ** 2 + (z / 0.42) ** 2 < 1
    anatomy = np.where(lungs, -850.0, 40.0) + 60 * ndimage.gaussian_filter(generator.standard_normal(lungs.shape), 1.5)
    later = anatomy + change_hu * lungs
    scans = [one.round().astype(np.int16) for one in (anatomy, later)]
    return Followup(f"s{seed}", *scans, ndimage.binary_dilation(lungs, iterations=2), lungs, "no tests")


def recipe_of(name: str, **phase: Any) -> Recipe:
    given = {"steps": 5, "batch": 2, "learning_rate": 1e-3, "warmup": 2, "every": 4, **phase}
    small = catalogue.method(name).recipes["small"]
    if name == "cdiff":
        config: Any = dataclasses.replace(small.config, widths=(8, 8), steps=20, sampling_steps=2)
    else:
        config = dataclasses.replace(small.config, net=NETS[name], judge=JUDGE)
    return dataclasses.replace(small, config=config, patch=16, overlap=8, game=Phase(**given))


def cohort(**given: Any) -> CohortData:
    return CohortData([subject(0, **given), subject(1, **given)], {})


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    recipe = recipe_of(name)
    net = GAMES[name].build(recipe.config, recipe.patch)
    assert isinstance(net, nn.Module)
    return net


@pytest.mark.parametrize("recipe", ["paper", "gpu", "small"])
def test_every_rival_works_on_the_grid_of_ciresdiff(recipe: str) -> None:
    ours = ciresdiff_recipes.RECIPES[recipe]
    for name in catalogue.CATALOGUE:
        found = catalogue.method(name).recipes[recipe]
        assert (found.spacing_mm, found.patch) == (ours.spacing_mm, ours.patch), name
        assert found.patch % found.overlap == 0, name
        if recipe != "paper" and name != "ciresdiff":
            assert (found.game.steps, found.game.batch) == (ours.diffusion.steps, ours.diffusion.batch), name


@games
def test_shapes_and_gradients(name: str) -> None:
    torch.manual_seed(0)
    game = Game(network(name), recipe_of(name).config)
    awaken(game)
    table = seat(game, 1e-3)
    source = torch.stack([torch.randn(2, 16, 16, 16) * 100 - 800, torch.ones(2, 16, 16, 16)], dim=1)
    target = torch.randn(2, 1, 16, 16, 16) * 100 - 700
    for mover in table.movers:
        with table.turn(mover):
            game(source, target, (1, 2), mover.player.name)["loss"].backward()
        for key, one in table.parameters.items():
            if key not in mover.parameters:
                assert one.grad is None, key
            elif not key.endswith("bias"):
                assert one.grad is not None and one.grad.abs().sum() > 0, key  # noqa: PT018
            one.grad = None
    image = torch.randn(2, 1, 16, 16) if game.config.flat else torch.randn(2, 1, 16, 16, 16)
    assert game.system(image).shape == image.shape


def _flat(hu: float) -> Tensor:
    return torch.full((2, 1, 16, 16, 16), hu)


def test_losses_by_hand() -> None:
    """Identity against a judge of no opinion, 0.1 apart: each paper's weights add up."""
    half = torch.zeros(2, 1, 16, 16, 16)
    half[..., :8] = 1
    source = torch.cat([_flat(-800.0), half], dim=1)
    wanted = {
        "pix2pix3d": math.log(2) + 100 * 0.05,
        "sagan": math.log(2) + 200 * 0.05 + 200 * 0.1 + 20 * 0,
        "transunet": 1 + 100 * 0.05,
        "resvit": 1 + 100 * 0.05,
    }
    for name, expected in wanted.items():
        game = Game(network(name), recipe_of(name).config)
        for one in game.judge.parameters():
            nn.init.zeros_(one)
        found = game(source, _flat(-800.0 + TENTH), (1, 2), "generator")
        assert float(found["loss"].detach()) == pytest.approx(expected, rel=1e-4), name
    made, region = torch.tensor([1.0, 3.0, 9.0]), torch.tensor([1.0, 1.0, 0.0])
    assert float(masked_rmse(made, torch.zeros(3), region)) == pytest.approx(math.sqrt(5), rel=1e-6)


def test_slices_of_a_patch_stay_together() -> None:
    patch = torch.arange(6.0).reshape(1, 1, 6, 1, 1).expand(2, 1, 6, 4, 4)
    one, other = chosen_slices((patch, patch + 100), (5, 6))
    assert one.shape == (8, 1, 4, 4)
    assert torch.equal(other - one, torch.full_like(one, 100.0))
    assert len(set(one[:4, 0, 0, 0].tolist())) == 4


def test_cdiff_takes_the_noise_back() -> None:
    """x_0 from x_t and the true noise, eq. 15; the estimate is cut at the ends of the scale."""
    system = cdiff.CDiff(dataclasses.replace(recipe_of("cdiff").config, centre=0.0, spread=1.0))
    x0, noise = torch.full((1, 1, 8, 8), 0.3), torch.randn(1, 1, 8, 8)
    step = torch.tensor([7])
    x = cdiff.standard.q_sample(system.schedule, x0, step, noise)
    system.noise = lambda *_: noise  # type: ignore[method-assign]
    assert torch.allclose(system.denoise(x, step / 20, x0), x0, atol=1e-5)
    assert float(system.denoise(x + 9, step / 20, x0).max()) == 1.0

    # In units of a spread the same, and the ends of the scale are in them, too.
    system = cdiff.CDiff(dataclasses.replace(recipe_of("cdiff").config, centre=-0.5, spread=0.5))
    assert torch.allclose(system.from_units(system.to_units(x0)), x0)
    system.noise = lambda *_: noise  # type: ignore[method-assign]
    x = cdiff.standard.q_sample(system.schedule, system.to_units(x0), step, noise)
    assert torch.allclose(system.from_units(system.denoise(x, step / 20, x0)), x0, atol=1e-5)
    found = system.denoise(torch.tensor([-40.0, 40.0]).reshape(2, 1, 1, 1).expand(2, 1, 8, 8), step / 20, x0)
    assert found.flatten(1)[:, 0].tolist() == [-1.0, 3.0]


@every
def test_a_paused_run_goes_on_to_the_bit(name: str, tmp_path: Path) -> None:
    data, recipe, entry = cohort(), recipe_of(name), catalogue.method(name)
    whole = entry.fit(data, recipe, Run(tmp_path / "a"))
    asked = iter(range(9))
    with pytest.raises(Paused):
        entry.fit(data, recipe, Run(tmp_path / "b", stop=lambda: next(asked) == 2))
    assert entry.fit(data, recipe, Run(tmp_path / "b")).sha256 == whole.sha256


@every
def test_a_prediction_needs_the_initial_scan_alone(name: str, tmp_path: Path) -> None:
    """Repeatable; outside the region the scan itself; another follow-up at inference does not exist."""
    entry, one = catalogue.method(name), subject(5)
    bundle = entry.fit(cohort(), recipe_of(name, steps=2), Run(tmp_path))
    made = [
        entry.load(bundle, mode).predict(one.initial, one.region, "said", seeds=SEEDS) for mode in ("mean", "sample")
    ]
    again = entry.load(bundle, "sample").predict(one.initial, one.region, "something else", seeds=SEEDS)
    assert np.array_equal(made[1], again)
    assert np.array_equal(made[0], made[1]) == (name != "cdiff")
    assert np.array_equal(again[~one.region], one.initial[~one.region].astype(np.float32))
    assert np.isfinite(again).all()
    with pytest.raises(ConcordctError, match="expected a region"):
        entry.load(bundle, "mean").predict(one.initial, np.zeros_like(one.region), "", seeds=SEEDS)


@pytest.mark.slow
@every
def test_it_overfits_two_subjects(name: str, tmp_path: Path) -> None:
    """Below half of the change that the initial scan leaves; cDiff, which draws: its own loss halves."""
    recipe = recipe_of(name, steps=150, learning_rate=5e-3, every=150, ema=0.9)
    entry = catalogue.method(name)
    bundle = entry.fit(cohort(), recipe, Run(tmp_path))
    if name == "cdiff":
        losses = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
        assert np.mean(losses[-20:]) < np.mean(losses[:5]) / 2
        return
    one = subject(0)
    made = entry.load(bundle, "mean").predict(one.initial, one.region, "", seeds=SEEDS)
    errors = [np.sqrt(np.square(scan - one.followup)[one.lungs].mean()) for scan in (made, one.initial.astype(float))]
    assert errors[0] < errors[1] / 2


@pytest.mark.parametrize("spectral", [False, True])
def test_features_do_not_fade_before_the_output_of_a_network_without_norms(spectral: bool) -> None:
    """Their size is what it is set to, whatever the levels made of it; a first guess is the source itself."""
    torch.manual_seed(0)
    net, seen = UNet3d((4, 8), normed=False, spectral=spectral, residual=True), []
    net.out.register_forward_hook(lambda layer, given, out: seen.append(given[0].square().mean(dim=1).sqrt()))
    image = 0.15 * torch.randn(1, 1, 8, 8, 8) - 0.7
    assert torch.equal(net(image), image)
    assert seen[0].median().item() == pytest.approx(LAST_GAIN, rel=0.05)
