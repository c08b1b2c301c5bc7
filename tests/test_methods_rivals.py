"""The papers' rivals: who moves, what each loss says, resuming, overfitting, and no target at work."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from concordct.errors import ConcordctError
from concordct.methods import catalogue
from concordct.methods.models import load_model
from concordct.methods.network import Recipe, TrainingData, to_unit
from concordct.methods.paired import choe, ganai, pix2pix, radiomicgan, stan_ct
from concordct.methods.translation import GAME, Translation
from concordct.methods.unpaired import cvh_ct, cyclegan, multipath, uda
from concordct.nets.discriminators import Judge, judge_loss, verdict_loss
from concordct.nets.translators import Generator, Translator
from concordct.nets.vgg import Vgg, gram
from concordct.training.data import strangers
from concordct.training.engine import Paused, Phase, Run
from concordct.training.game import Copies, Replay
from concordct.training.players import seat
from concordct.volumes.seeds import SliceSeeds
from learning import awaken, images, pair

UNET = Translator("unet", 4, 2, "pixel", residual=True)
RESNET = Translator("resnet", 8, 1, "pixel", halvings=0, fold=2, residual=True, outer=3)
JUDGE = Judge(4, 1, "INSTANCE")
CONFIGS: dict[ModuleType, Any] = {
    choe: choe.Config(8, layers=3),
    pix2pix: pix2pix.Config(UNET, JUDGE),
    ganai: ganai.Config(UNET, JUDGE, longest=2),
    stan_ct: stan_ct.Config(UNET, JUDGE),
    radiomicgan: radiomicgan.Config((4, 4), "none", JUDGE, residual=True),
    cyclegan: cyclegan.Config(RESNET, JUDGE),
    cvh_ct: cvh_ct.Config(dataclasses.replace(RESNET, attention=True), JUDGE, 32, vgg=(4, 4)),
    uda: uda.Config(RESNET, JUDGE),
    multipath: multipath.Config(RESNET, JUDGE),
}
UNPAIRED = (cyclegan, cvh_ct)
every = pytest.mark.parametrize("method", CONFIGS, ids=lambda module: module.METHOD)
#: A step of a tenth on the networks' scale, HU.
TENTH = 135.0


def recipe_of(method: ModuleType, **phase: Any) -> Recipe:
    given = {"steps": 6, "batch": 4, "learning_rate": 1e-3, "warmup": 2, "every": 4, **phase}
    return dataclasses.replace(
        method.RECIPES["small"], config=CONFIGS[method], patch=32, phases=((GAME, Phase(**given)),)
    )


def data_of(folder: Path) -> TrainingData:
    """Sharp to soft, which a network of three layers can learn."""
    stored = [dataclasses.replace(one, source=one.target, target=one.source) for one in images(folder)]
    return TrainingData(stored, [], {"source_kernels": ["sharp"], "target_kernels": ["soft"]})


def silent(judge: nn.Module) -> nn.Module:
    """A judge whose every verdict is the logit 0."""
    for one in judge.parameters():
        nn.init.zeros_(one)
    return judge


def flat(hu: float, channels: int = 1) -> Tensor:
    return torch.full((2, channels, 32, 32), hu)


@every
def test_the_catalogue_knows_it_with_three_recipes(method: ModuleType) -> None:
    entry = catalogue.method(method.METHOD)
    assert entry is method.ENTRY
    assert set(entry.recipes) == {"paper", "gpu", "small"}


@every
def test_gradients_reach_every_weight_of_who_moves_and_none_of_the_others(method: ModuleType) -> None:
    config = CONFIGS[method]
    made = {
        choe: lambda: choe.Regression(Translation(choe.SixLayers(config)), config),
        pix2pix: lambda: pix2pix.Game(Translation(Generator(UNET)), config),
        ganai: lambda: ganai.Game(Translation(Generator(UNET)), config),
        stan_ct: lambda: stan_ct.Game(Translation(Generator(UNET)), config),
        radiomicgan: lambda: radiomicgan.Game(Translation(radiomicgan.Twofold(config)), config, 6),
        cyclegan: lambda: cyclegan.Cycle(Translation(Generator(RESNET)), Translation(Generator(RESNET)), config, 32),
        cvh_ct: lambda: cvh_ct.Game(
            *(Translation(Generator(config.generator)) for _ in range(2)), config, Vgg(config.vgg), 32
        ),
        uda: lambda: uda.Game(Translation(Generator(RESNET)), config),
        multipath: lambda: multipath.Game(Translation(multipath.Paths(config)), config, 32),
    }
    torch.manual_seed(0)
    task = made[method]()
    awaken(task)
    table = seat(task, 1e-3)
    channels = 2 if method in (ganai, uda, multipath) else 1
    source, target = (torch.randn(4, channels, 32, 32) * 300 - 200 for _ in range(2))
    for mover in table.movers:
        if method is ganai:
            task.judging.fill_(mover.player.name == "judges")
        turn = () if method is choe else (mover.player.name,)
        with table.turn(mover):
            losses = task(source, target, (1, 2, 3, 4), *turn)
            losses["loss"].backward()
        for key, one in table.parameters.items():
            if key in mover.parameters:
                assert one.grad is not None, key
                assert one.grad.abs().sum() > 0 or key.endswith(("bias", "key.weight")), key
                one.grad = None
            else:
                assert one.grad is None, key


def test_losses_of_verdicts_by_hand() -> None:
    zero, half = torch.zeros(3), torch.full((3,), 0.5)
    assert float(verdict_loss(zero, True, "log")) == pytest.approx(math.log(2))
    assert float(verdict_loss(half, True, "squares")) == pytest.approx(0.25)
    assert float(verdict_loss(half, False, "squares")) == pytest.approx(0.25)
    assert float(judge_loss(torch.ones(3), half, "squares")) == pytest.approx(0.125)
    assert float(judge_loss(zero, zero, "log")) == pytest.approx(math.log(2))


def test_pix2pix_by_hand() -> None:
    """A generator that starts as the identity, a judge that knows nothing: ln 2 + 100 * 0.1."""
    game = pix2pix.Game(Translation(Generator(UNET)), CONFIGS[pix2pix])
    silent(game.judge)
    losses = game(flat(0), flat(TENTH), (1, 2), "generator")
    assert float(losses["loss"]) == pytest.approx(math.log(2) + 10, rel=1e-5)
    assert float(game(flat(0), flat(TENTH), (1, 2), "judge")["loss"]) == pytest.approx(math.log(2))


def test_stan_ct_by_hand() -> None:
    game = stan_ct.Game(Translation(Generator(UNET)), CONFIGS[stan_ct])
    silent(game.judge)
    same = game(flat(0), flat(0), (1, 2), "generator")
    assert float(same["loss"]) == pytest.approx(math.log(2))  # its encoder sees the same in both
    apart = {name: float(one) for name, one in game(flat(0), flat(TENTH), (1, 2), "generator").items()}
    assert apart["latent"] > 0
    config = CONFIGS[stan_ct]
    parts = apart["fooled"] + config.latent * apart["latent"] + config.l1 * apart["l1"]
    assert apart["loss"] == pytest.approx(parts, rel=1e-5)
    # Features that are all 0 lie no distance apart: the whole margin is missing.
    assert float(game(flat(0), flat(TENTH), (1, 2), "judge")["loss"]) == pytest.approx(math.log(2) + 1)
    one, other = [torch.zeros(2, 2), torch.zeros(4)], [torch.full((2, 2), 0.25), torch.full((4,), 5.0)]
    assert float(stan_ct.feature_loss(one, other)) == pytest.approx((0.75 + 0) / 2)


def test_cyclegan_by_hand() -> None:
    """Both generators add 0.1: the cycle returns 0.2 off, the identity 0.1; verdicts of 0 cost 1 each."""
    config = CONFIGS[cyclegan]
    game = cyclegan.Cycle(Translation(Generator(RESNET)), Translation(Generator(RESNET)), config, 32)
    silent(game.judges)
    for system in game.system.values():
        nn.init.constant_(system.generator.net.last.bias, 0.1)
    losses = game(flat(0), flat(100), (1, 2), "generator")
    assert {key: round(float(one), 5) for key, one in losses.items()} == {
        "loss": round(2 + 10 * 0.4 + 5 * 0.2, 5),
        "fooled": 2.0,
        "cycle": 0.4,
        "identity": 0.2,
    }
    assert float(game(flat(0), flat(100), (1, 2), "judges")["loss"]) == pytest.approx(2 * 0.5)


def test_gram_and_the_domain_loss_by_hand() -> None:
    features = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]])  # two channels of two places
    assert gram(features).tolist() == [[2.5, 5.5], [5.5, 12.5]]
    game = cvh_ct.Game(
        *(Translation(Generator(RESNET)) for _ in range(2)), CONFIGS[cvh_ct], Vgg((4, 4)), 32
    )  # identities
    assert float(game.more(flat(0.1), flat(0.1))["domain"]) == 0
    assert float(game.more(flat(0.1), flat(0.3))["domain"]) > 0


def test_uda_by_hand() -> None:
    """Pair 0.1 apart, generator the identity, judges silent: 1 + 100 * 0.1 + 1 * 1 + 5 * 0."""
    game = uda.Game(Translation(Generator(RESNET)), CONFIGS[uda])
    silent(game.judges)
    assert float(game(flat(0, 2), flat(TENTH, 2), (1, 2), "generator")["loss"]) == pytest.approx(12, rel=1e-5)
    assert float(game(flat(0, 2), flat(TENTH, 2), (1, 2), "judges")["loss"]) == pytest.approx(1.0)


def test_multipath_by_hand() -> None:
    """Every path the identity: the pair is 0.1 off in both directions, cycle and identity are 0."""
    game = multipath.Game(Translation(multipath.Paths(CONFIGS[multipath])), CONFIGS[multipath], 32)
    silent(game.judges)
    losses = game(flat(0, 2), flat(TENTH, 2), (1, 2), "generator")
    parts = {key: round(float(one), 5) for key, one in losses.items() if key not in ("loss", "latent")}
    assert parts == {"fooled": 2.0, "l1": 0.2, "cycle": 0.0, "identity": 0.0}
    assert float(losses["loss"]) == pytest.approx(2 + 10 * 0.2 + float(losses["latent"]), rel=1e-5)


def test_ganai_changes_turns_by_its_rules() -> None:
    """A judge that tells all apart ends its phase; judges that are fooled end the generator's; else `longest` does."""
    config = dataclasses.replace(CONFIGS[ganai], longest=1000, replay=0.0)
    game = ganai.Game(Translation(Generator(UNET)), config)
    silent(game.judges)
    given = (flat(0, 2), flat(TENTH, 2), (1, 2))
    assert game(*given, "judges") == {}  # the generator begins
    assert float(game(*given, "generator")["loss"]) == pytest.approx(math.log(2) + 10, rel=1e-5)
    assert not game.judging  # verdicts of 0.5 fool nobody
    for judge in (game.judges.paired, game.judges.alone):
        nn.init.constant_(judge.net.final_conv.conv.bias, 4.0)  # everything is real with 0.98
    game(*given, "generator")
    assert game.judging
    assert game.older.held == 1
    assert game(*given, "generator") == {}
    game(*given, "judges")
    assert game.judging  # made images seem real, so the judges' phase goes on
    short = ganai.Game(Translation(Generator(UNET)), dataclasses.replace(config, longest=1))
    short(*given, "generator")
    assert short.judging


def test_the_window_of_radiomicgan_grows_over_half_of_the_steps() -> None:
    config = CONFIGS[radiomicgan]
    game = radiomicgan.Game(Translation(radiomicgan.Twofold(config)), config, 10)
    reach = []
    for _ in range(6):
        reach.append(game.reach)
        game(flat(0), flat(TENTH), (1, 2), "judge")
    assert reach[0] == pytest.approx(128 / 1350)
    assert np.allclose(np.diff(reach), (2 - 128 / 1350) / 5, atol=1e-6)
    assert game.reach == pytest.approx(2.0)
    cut = radiomicgan.windowed(torch.tensor([-1.0, 0.0, 1.0]), torch.tensor(0.1), 0.5)
    assert torch.allclose(cut, torch.tensor([-0.4, 0.0, 0.6]))


def test_frozen_features_take_published_weights_and_refuse_others() -> None:
    vgg = Vgg()
    shapes = {"features.0": (64, 3), "features.2": (64, 64), "features.5": (128, 64), "features.7": (128, 128)}
    given = {f"{name}.weight": torch.randn(*shape, 3, 3) for name, shape in shapes.items()}
    given |= {f"{name}.bias": torch.randn(shape[0]) for name, shape in shapes.items()}
    vgg.load_torchvision(given)
    assert torch.allclose(vgg.layers[0].weight, given["features.0.weight"].sum(dim=1, keepdim=True))
    assert not any(one.requires_grad for one in vgg.parameters())
    with pytest.raises(ValueError, match=r"features\.7\.bias .* found none"):
        vgg.load_torchvision({key: one for key, one in given.items() if key != "features.7.bias"})


def test_replay_shows_every_image_first_and_half_old_ones_later() -> None:
    replay, random = Replay(3, (1,)), torch.Generator().manual_seed(0)
    first = torch.arange(3.0)[:, None]
    assert torch.equal(replay.exchange(first, random), first)
    later = torch.arange(100.0, 400.0)[:, None]
    shown = replay.exchange(later, random)
    assert 0.4 < float((shown != later).float().mean()) < 0.6
    assert set(shown.flatten().tolist()) <= {0.0, 1.0, 2.0, *later.flatten().tolist()}


def test_copies_keep_what_a_network_was() -> None:
    net = nn.Linear(1, 1, bias=False)
    copies, one = Copies(net, 2), torch.ones(1, 1)
    for value in (1.0, 2.0, 3.0):
        nn.init.constant_(net.weight, value)
        copies.keep()
    nn.init.constant_(net.weight, 9.0)
    assert [float(copies(place, one)) for place in (-1, -2)] == [3.0, 2.0]
    assert list(copies.parameters()) == []


def test_no_pair_is_seen_from_both_sides(tmp_path: Path) -> None:
    batches = strangers(images(tmp_path, 4), 32, seed=1)
    names = [place.split(" | ") for step in range(20) for place in batches.batch(step, range(4)).places]
    assert {source.split()[0] for source, _ in names} == {"p0", "p2"}
    assert {target.split()[0] for _, target in names} == {"p1", "p3"}
    with pytest.raises(ConcordctError, match="at least two pairs"):
        strangers(images(tmp_path, 1), 32, seed=1)


@every
def test_a_paused_game_goes_on_to_the_bit(method: ModuleType, tmp_path: Path) -> None:
    """Replayed images, older copies and whose turn it is included."""
    stored, recipe = data_of(tmp_path / "v"), recipe_of(method, steps=7)
    whole = method.fit(stored, recipe, Run(tmp_path / "a"))
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked == 5

    with pytest.raises(Paused):
        method.fit(stored, recipe, Run(tmp_path / "b", stop=stop))
    assert method.fit(stored, recipe, Run(tmp_path / "b")).sha256 == whole.sha256


@every
def test_it_stands_for_itself_on_any_slice_and_sees_no_target(method: ModuleType, tmp_path: Path) -> None:
    """Slabs change nothing, sizes are free, and targets that are overwritten after training change no byte."""
    stored = data_of(tmp_path / "v")
    bundle = method.fit(stored, recipe_of(method, steps=2), Run(tmp_path / "r"))
    volume, seeds = pair(5, depth=3, size=72)[1], SliceSeeds(3, "series")
    work = method.ENTRY.open(bundle, "sample", use_neighbours=False, sampling={})
    made = work(volume, generator=seeds).hu
    slabs = [work(volume.slab(*ends), generator=seeds).hu for ends in ((0, 1), (1, 3))]
    assert np.array_equal(made, np.concatenate(slabs))
    assert np.isfinite(made).all()
    for path in (tmp_path / "v").glob("*.npy"):
        np.lib.format.open_memmap(path, mode="r+")[:] = 3071
    again = method.ENTRY.open(bundle, "mean", use_neighbours=False, sampling={})
    assert np.array_equal(made, again(volume, generator=seeds).hu)
    with pytest.raises(ConcordctError, match="sampling options"):
        method.ENTRY.open(bundle, "mean", use_neighbours=False, sampling={"steps": 2})


@pytest.mark.slow
@every
def test_it_overfits_two_pairs(method: ModuleType, tmp_path: Path) -> None:
    """Below half of the input's error; methods without pairs: the cycle and identity that were spoiled halve."""
    stored = data_of(tmp_path / "v")
    recipe = recipe_of(
        method, steps=240 if method in (ganai, stan_ct, pix2pix) else 120, learning_rate=3e-3, every=120, ema=0.9
    )
    config = recipe.config
    if method in UNPAIRED:
        config = dataclasses.replace(config, generator=dataclasses.replace(config.generator, residual=False))
    if method is multipath:
        config = dataclasses.replace(config, l1=100.0)
    bundle = method.fit(stored, dataclasses.replace(recipe, config=config), Run(tmp_path / "r"))
    if method in UNPAIRED:
        lines = [json.loads(line) for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
        first, last = (np.mean([one["cycle"] + one["identity"] for one in part]) for part in (lines[:5], lines[-5:]))
        assert last < first / 2
        return
    work = method.ENTRY.open(bundle, "mean", use_neighbours=False, sampling={})
    errors = []
    for seed in range(2):
        target, source = pair(seed)
        made = work(source, generator=SliceSeeds(0, "s"))
        errors.append([float(np.square(one.hu - target.hu).mean()) for one in (made, source)])
    ours, unprocessed = np.mean(errors, axis=0)
    assert ours < unprocessed / 4  # of the squared error


def test_units_are_those_of_the_networks() -> None:
    assert float(to_unit(torch.tensor(TENTH)) - to_unit(torch.tensor(0.0))) == pytest.approx(0.1)


@pytest.mark.parametrize("name", ["choe", "pix2pix", "ganai"])
def test_what_ships_works_by_its_name_and_says_what_it_knows(name: str) -> None:
    model = load_model(Path(name))
    assert "one kernel pair" in model.bundle.metadata["info"]["caution"]
    assert (model.source_kernels, model.target_kernels) == (("Br40",), ("Bl64",))
    assert sum(one.nbytes for one in model.bundle.tensors.values()) < 1_000_000
    soft, _ = pair(0, depth=1)
    made = model.standardizer(mode="sample")(soft, generator=SliceSeeds(0, "s")).hu
    rough = [np.abs(np.diff(hu[0, 16:48, 16:48])).mean() for hu in (made, soft.hu)]
    assert rough[0] > 1.1 * rough[1]  # toward a sharp kernel


def test_choe_s_network_begins_with_the_image_itself() -> None:
    image = torch.randn(1, 1, 24, 24)
    assert torch.equal(choe.SixLayers(choe.Config(8, layers=3))(image), image)
