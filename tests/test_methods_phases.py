"""What each phase of LTDiff++ and DiffusionCT trains, and on what: where a wrong sign or name would hide."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from concordct.methods.network import seeded, to_unit
from concordct.methods.paired import ddpm, diffusionct, ltdiffpp
from concordct.methods.paired.conditional import _draws
from concordct.methods.paired.texture import detail, energy_loss, level_loss, relative_loss
from concordct.training.data import Patches
from concordct.training.engine import Phase, Run
from learning import CHAIN, QUICK, awaken, data, recipes

SEEDS = (1, 3, 5, 7)


def _patches(size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """Source and target that differ, HU."""
    generator = torch.Generator().manual_seed(0)
    source = 60 * torch.randn(4, 1, size, size, generator=generator)
    return source, source + 80 * torch.randn(4, 1, size, size, generator=generator)


def _ltdiffpp(**changes: object) -> ltdiffpp.LTDiffPlusPlus:
    config = dataclasses.replace(recipes()["ltdiffpp"].config, **changes)
    system = seeded(lambda: ltdiffpp.LTDiffPlusPlus(config), 0)
    awaken(system)
    assert isinstance(system, ltdiffpp.LTDiffPlusPlus)
    return system


class Spy(torch.nn.Module):
    """In the network's place: keeps what it was shown."""

    def forward(self, x, time, condition):
        self.condition = condition
        return [torch.zeros_like(one) for one in x]


@pytest.mark.parametrize("name", ["ltdiffpp", "integration", "diffusionct", "ddpm"])
def test_training_conditions_on_the_source_and_never_on_the_target(name: str) -> None:
    source, target = _patches(64 if name == "diffusionct" else 32)
    if name == "ddpm":
        system = ddpm.ImageDDPM(recipes()["ddpm"].config)
        task, encode = ddpm._Diffusion(system), lambda image: [image]
    elif name == "diffusionct":
        system = diffusionct.DiffusionCT(recipes()["diffusionct"].config)
        task, encode = diffusionct._Diffusion(system), lambda image: system.autoencoder.encode(image)[0]
    else:
        system = _ltdiffpp()
        task = (ltdiffpp._Integration if name == "integration" else ltdiffpp._Diffusion)(system)
        encode = lambda image: system.codec.encode(image)[0]  # noqa: E731
    system.diffusion.net = Spy()
    task(source, target, SEEDS)
    of_source, of_target = encode(to_unit(source)), encode(to_unit(target))
    # The network may be shown the source's detail beside it.
    shown = [one[:, : other.shape[1]] for one, other in zip(system.diffusion.net.condition, of_source, strict=True)]
    assert all(torch.equal(one, other) for one, other in zip(shown, of_source, strict=True))
    assert not any(torch.equal(one, other) for one, other in zip(shown, of_target, strict=True))


def test_the_printed_loss_of_phase_3_has_all_its_terms() -> None:
    source, target = _patches()
    losses = {}
    for weight in (1.0, 3.0):
        task = ltdiffpp._Integration(_ltdiffpp(decoder_weight=weight))
        losses[weight] = {key: float(value.detach()) for key, value in task(source, target, SEEDS).items()}
    one, three = losses[1.0], losses[3.0]
    assert one["latent"] > 0.01
    assert one["decoded"] > 0.01
    assert one["loss"] == pytest.approx(one["square"] + one["latent"] + one["decoded"], rel=1e-5)
    assert three["loss"] - one["loss"] == pytest.approx(2 * one["decoded"], rel=1e-4)


def test_the_printed_latent_loss_is_the_distance_of_the_estimate_from_the_target_s_latent() -> None:
    """A network that finds the noise exactly has an estimate that is Z_B: then the term is gone."""
    source, target = _patches()
    system = _ltdiffpp()
    b = system.codec.encode(to_unit(target))[0]
    system.diffusion.loss = lambda *_: ({"loss": torch.zeros(()), "square": torch.zeros(())}, b)  # type: ignore[method-assign]
    found = ltdiffpp._Integration(system)(source, target, SEEDS)
    assert float(found["latent"]) == 0
    wrong = [one + 0.5 for one in b]
    system.diffusion.loss = lambda *_: ({"loss": torch.zeros(()), "square": torch.zeros(())}, wrong)  # type: ignore[method-assign]
    assert float(ltdiffpp._Integration(system)(source, target, SEEDS)["latent"]) == pytest.approx(0.25, rel=1e-5)


def test_phase_3_with_texture_trains_decoder_and_diffusion_and_weighs_the_energies() -> None:
    source, target = _patches()
    found = {}
    for weight in (0.1, 0.5):
        system = _ltdiffpp(texture=weight, supervision="relative")
        losses = ltdiffpp._Integration(system)(source, target, SEEDS)
        losses["loss"].backward()
        found[weight] = {key: float(value.detach()) for key, value in losses.items()}
        assert system.codec.net.heads[-1].weight.grad.abs().max() > 0
        assert system.codec.out_of["0"].weight.grad.abs().max() > 0
        assert max(float(one.grad.abs().max()) for one in system.diffusion.parameters() if one.grad is not None) > 0
    assert found[0.5]["loss"] - found[0.1]["loss"] == pytest.approx(0.4 * found[0.1]["texture"], rel=1e-3)
    parts = found[0.1]
    whole = parts["square"] + parts["decoded"] + 0.1 * parts["texture"] + parts["level"]
    assert parts["loss"] == pytest.approx(whole, rel=1e-5)


def test_the_level_loss_knows_the_means_around_and_no_texture() -> None:
    wanted = torch.zeros(1, 1, 52, 52)
    assert float(level_loss(wanted + 20 / 1350, wanted)) == pytest.approx(1, rel=1e-5)
    grains = torch.ones(52, 52)
    grains[::2] = -1
    assert float(level_loss(grains[None, None] * 20 / 1350, wanted)) < 0.15


def _moved(fit, system_of, recipe, folder: Path) -> set[str]:
    """Parameters that the whole run changed."""
    before = {name: one.clone() for name, one in seeded(lambda: system_of(recipe.config), 0).state_dict().items()}
    bundle = fit(data(folder / "v"), recipe, Run(folder / "run"))
    after = {name: torch.from_numpy(one.copy()) for name, one in bundle.tensors.items()}
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_phase_1_trains_encoder_and_decoder_and_phase_3_leaves_the_encoder(tmp_path: Path) -> None:
    whole = recipes()["ltdiffpp"]
    nothing = Phase(steps=0, epochs=0)
    phases = dict(whole.phases)
    first = dataclasses.replace(whole, phases=(("autoencoder", phases["autoencoder"]), ("diffusion", nothing)))
    moved = _moved(ltdiffpp.fit, ltdiffpp.LTDiffPlusPlus, first, tmp_path / "a")
    for part in ("net.stem.", "net.nodes.0_0.first", "net.nodes.0_1.first", "into.0.", "out_of.1.", "net.heads.0."):
        assert any(name.startswith(f"codec.{part}") for name in moved), part
    assert not any(name.startswith("diffusion.net.") for name in moved)
    third = dataclasses.replace(
        whole, phases=(("autoencoder", nothing), ("diffusion", nothing), ("integration", QUICK))
    )
    moved = _moved(ltdiffpp.fit, ltdiffpp.LTDiffPlusPlus, third, tmp_path / "b")
    assert any(name.startswith("codec.net.nodes.0_1") for name in moved)
    assert any(name.startswith("diffusion.net.") for name in moved)
    assert not any(name.startswith(("codec.net.stem", "codec.net.nodes.0_0", "codec.into")) for name in moved)


def test_without_deep_supervision_phase_3_trains_the_last_head_alone(tmp_path: Path) -> None:
    whole = recipes()["ltdiffpp"]
    nothing = Phase(steps=0, epochs=0)
    phases = (("autoencoder", nothing), ("diffusion", nothing), ("integration", QUICK))
    config = dataclasses.replace(whole.config, deep=False, widths=(8, 8, 8), latents=(2, 2, 2), denoiser=(8, 8, 8))
    recipe = dataclasses.replace(whole, config=config, phases=phases)
    heads = {one for one in _moved(ltdiffpp.fit, ltdiffpp.LTDiffPlusPlus, recipe, tmp_path) if "net.heads" in one}
    last = len(ltdiffpp.LTDiffPlusPlus(recipe.config).codec.net.heads) - 1
    assert last == 1
    assert heads
    assert all(one.startswith(f"codec.net.heads.{last}.") for one in heads)


def test_diffusionct_as_printed_spends_the_third_phase_s_steps_on_its_two() -> None:
    recipe = diffusionct.RECIPES["small"]
    steps = {name: phase.steps for name, phase in recipe.phases}
    printed = diffusionct._only_printed(recipe)
    assert not printed.config.skips
    assert {name: phase.steps for name, phase in printed.phases} == {
        name: 2 * steps[name] for name in ("autoencoder", "diffusion")
    }


def test_diffusionct_s_integration_moves_the_decoder_alone(tmp_path: Path) -> None:
    recipe = recipes()["diffusionct"]
    config = dataclasses.replace(recipe.config, skips=True, texture=0.3, drop=0.5, resampling="learned", detail=0.03)
    nothing = Phase(steps=0, epochs=0)
    phases = (("autoencoder", nothing), ("diffusion", nothing), ("integration", QUICK))
    recipe = dataclasses.replace(recipe, config=config, phases=phases)
    moved = _moved(diffusionct.fit, diffusionct.DiffusionCT, recipe, tmp_path)
    assert any(name.startswith("autoencoder.up.") for name in moved)
    assert any(name.startswith("autoencoder.from_latent.") for name in moved)
    kept = ("autoencoder.encoder.", "autoencoder.to_latent.", "diffusion.net.")
    assert not any(name.startswith(kept) for name in moved)


def test_dropped_skips_leave_the_image_to_the_latent() -> None:
    """With every skip dropped two images with each other's latents decode to each other."""
    recipe = recipes()["diffusionct"]
    config = dataclasses.replace(recipe.config, skips=True, drop=1.0)
    torch.manual_seed(0)
    system = diffusionct.DiffusionCT(config)
    awaken(system)
    seen = []
    plain = system.autoencoder.decode

    def decode(latents, skips):
        seen.append(skips)
        return plain(latents, skips)

    system.autoencoder.decode = decode  # type: ignore[method-assign]
    source, target = _patches(64)
    diffusionct._Autoencoder(system)(source, target, SEEDS)
    assert all(float(one.abs().max()) == 0 for one in seen[0])
    system.config = dataclasses.replace(config, drop=0.0)
    diffusionct._Autoencoder(system)(source, target, SEEDS)
    assert all(float(one.abs().max()) > 0 for one in seen[1])


def test_deep_supervision_draws_a_depth_and_without_it_the_whole_is_trained() -> None:
    config = dataclasses.replace(recipes()["ltdiffpp"].config, widths=(8, 8, 8), latents=(2, 2, 2), denoiser=(8, 8, 8))
    system = ltdiffpp.LTDiffPlusPlus(config)
    assert {system.depth_of((seed,)) for seed in range(8)} == {1, 2}
    system.config = dataclasses.replace(config, deep=False)
    assert {system.depth_of((seed,)) for seed in range(8)} == {2}
    assert {
        ltdiffpp.LTDiffPlusPlus(dataclasses.replace(config, latents=(0, 0, 2))).depth_of((s,)) for s in range(8)
    } == {2}


def test_a_pruned_system_neither_encodes_nor_draws_below_its_depth() -> None:
    config = ltdiffpp.Config((8, 8, 8), (2, 2, 2), CHAIN, (8, 8, 8), fold=2, resampling="learned", detail=0.03)
    torch.manual_seed(0)
    system = ltdiffpp.LTDiffPlusPlus(config)
    awaken(system)
    asked = []

    def draw(shape):
        asked.append(shape)
        return torch.zeros(shape)

    from concordct.methods.paired.conditional import Sampling

    image = to_unit(_patches()[0])
    for depth, numbers in ((1, 2 * 16**2 + 2 * 8**2), (2, 2 * 16**2 + 2 * 8**2 + 2 * 4**2)):
        asked.clear()
        system.translate(image, Sampling(steps=2, sampler="ddpm", depth=depth), draw, mean=False)
        assert set(asked) == {(4, numbers)}


def test_the_paper_s_shape_pruned_draws_nothing() -> None:
    config = ltdiffpp.Config((8, 8, 8), (0, 0, 4), CHAIN, (8, 8), leak=True, vector=True, tile=32)
    torch.manual_seed(0)
    system = ltdiffpp.LTDiffPlusPlus(config)
    awaken(system)
    from concordct.methods.paired.conditional import Sampling

    def refuse(shape):
        raise AssertionError("noise was drawn")

    made = system.translate(to_unit(_patches()[0]), Sampling(steps=2, depth=1), refuse, mean=False)
    assert made.shape == (4, 1, 32, 32)


def test_energy_knows_how_much_and_relative_error_knows_where() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = (0.05 * torch.randn(2, 1, 64, 64, generator=generator) for _ in range(2))
    ramp = torch.linspace(-0.5, 0.5, 64)[None, None, None].expand(2, 1, 64, 64)
    assert float(energy_loss(one, one)) == 0
    # Another draw of the same noise differs by the error of its energies alone; half of it by log 4.
    assert float(energy_loss(one, other)) < 0.35
    assert 1.0 < float(energy_loss(0.5 * one, one)) < 1.4
    assert float(energy_loss(one + 0.3, one)) == pytest.approx(0, abs=1e-4)
    assert float(relative_loss(one, one)) == 0
    assert float(relative_loss(other, one)) > 0.5
    # A given error counts more where there is less texture.
    assert float(relative_loss(ramp + 0.02, ramp)) > 2 * float(relative_loss(ramp + one + 0.02, ramp + one))
    assert detail(ramp)[..., 8:-8].abs().max() < 1e-5


def test_paper_recipes_have_nothing_of_ours() -> None:
    """Customary weights, the papers' latents, epochs, rate and optimizer, printed losses; no texture, no detail."""
    for module, epochs in ((ltdiffpp, 400), (diffusionct, 20)):
        recipe = module.RECIPES["paper"]
        config = recipe.config
        assert (config.customary, config.texture, config.detail, config.resampling) == (True, 0.0, 0.0, "pool")
        assert config.chain.predicts == "noise"
        for name, phase in recipe.phases:
            assert phase.optimizer == "adam"
            assert phase.learning_rate == 1e-4
            assert name == "integration" or phase.epochs == epochs
    torch.manual_seed(0)
    system = ltdiffpp.LTDiffPlusPlus(
        dataclasses.replace(ltdiffpp.RECIPES["paper"].config, widths=(4, 4, 4, 4, 4), denoiser=(8, 8, 8))
    )
    assert system.diffusion.net.straight is None
    assert all(bool(one.any()) for name, one in system.named_parameters() if name.endswith("weight"))


def test_the_losses_of_the_autoencoder_by_hand() -> None:
    """An error of a half everywhere: 0.5^2 + 0.1 x 0.5 for "regression"; the other two are the losses of their name."""
    wanted = torch.full((1, 1, 16, 16), -0.2)
    output = wanted + 0.5
    config = dataclasses.replace(recipes()["ltdiffpp"].config, deep=False)
    assert float(ltdiffpp.supervised([output], wanted, config)) == pytest.approx(0.30, rel=1e-6)
    relative = dataclasses.replace(config, supervision="relative")
    # No detail is wanted: sqrt(1 + (0.5 / (20 / 1350))^2) - 1.
    assert float(ltdiffpp.supervised([output], wanted, relative)) == pytest.approx((1 + 33.75**2) ** 0.5 - 1, rel=1e-4)
    printed = dataclasses.replace(config, supervision="bce_dice")
    assert float(ltdiffpp.supervised([output], wanted, printed)) == float(ltdiffpp.bce_dice(output, wanted))


def test_local_power_at_a_border_is_that_of_the_pixels_that_are_there() -> None:
    """Stripes of +-1 have a power of 1 everywhere, so that an error costs the same at a border as inside."""
    wanted = torch.ones(1, 1, 40, 40)
    wanted[..., ::2] = -1
    output = wanted.clone()
    inside, border = (float(_of_one(output, wanted, at)) for at in ((20, 20), (0, 20)))
    assert border == pytest.approx(inside, rel=0.02)


def _of_one(output: torch.Tensor, wanted: torch.Tensor, at: tuple[int, int]) -> torch.Tensor:
    wrong = output.clone()
    wrong[0, 0, at[0], at[1]] += 1
    return relative_loss(wrong, wanted)


def test_steps_of_the_diffusion_are_all_of_the_chain() -> None:
    t, noise = _draws(range(300), 8, 5)
    assert set(t.tolist()) == set(range(1, 9))
    assert noise.shape == (300, 5)


def test_latents_are_of_unit_variance_before_they_are_diffused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ltdiffpp, "STATISTICS_BATCHES", 4)
    recipe = recipes()["ltdiffpp"]
    nothing = Phase(steps=0, epochs=0)
    recipe = dataclasses.replace(recipe, phases=(("autoencoder", nothing), ("diffusion", nothing)))
    given = data(tmp_path / "v")
    bundle = ltdiffpp.fit(given, recipe, Run(tmp_path / "run"))
    system = ltdiffpp.LTDiffPlusPlus(recipe.config)
    system.load_state_dict({name: torch.from_numpy(one.copy()) for name, one in bundle.tensors.items()})
    batch = Patches(given.pairs, 32, 0, either=True).batch(0, range(32))
    for latent in system.codec.encode(to_unit(torch.from_numpy(batch.source)))[0]:
        assert float(latent.detach().std(dim=(0, 2, 3)).mean()) == pytest.approx(1, rel=0.25)


def test_a_decoder_that_is_conditioned_on_the_source_has_its_skips_whatever_the_latent_is_of() -> None:
    """Phase 1 codes A or B, phase 3 asks for both: D(E(X); skips of A) = X."""
    config = dataclasses.replace(recipes()["diffusionct"].config, skips=True, conditioned=True, texture=0.3)
    torch.manual_seed(0)
    system = diffusionct.DiffusionCT(config)
    awaken(system)
    source, target = _patches(64)
    a, b = to_unit(source), to_unit(target)
    skips = system.autoencoder.encode(a)[1]
    for seeds, coded in (((2,) * 4, a), ((3,) * 4, b)):
        found = diffusionct._Autoencoder(system)(source, target, seeds)
        again = system.autoencoder.decode(system.autoencoder.encode(coded)[0], skips)[-1]
        assert float(found["square"]) == pytest.approx(float((again - coded).square().mean()), rel=1e-4)
    task = diffusionct._Integration(system, recipes()["diffusionct"].sampling)
    kept = relative_loss(system.autoencoder.decode(system.autoencoder.encode(a)[0], skips)[-1], a)
    both = float(task(source, target, SEEDS)["loss"])
    system.config = dataclasses.replace(config, conditioned=False)
    assert both - float(task(source, target, SEEDS)["loss"]) == pytest.approx(float(kept), rel=1e-3)
