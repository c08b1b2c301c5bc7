"""LTDiff++: a multiscale UNet++ autoencoder, and conditional diffusion of its latents from source to target.

Sadia, Zhang & Chen 2024, arXiv:2410.04000. Three phases: the autoencoder on every image, standard or not; the
diffusion on pairs with the autoencoder frozen; both together. Where the paper is silent or contradicts itself
`docs/equations.md` says what was decided: the target is never a condition; every scale's latent is standardized,
since raw skips carry the source past it; recipe `paper` keeps the paper's one-dimensional latent and raw skips.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from concordct.methods.method import Method
from concordct.methods.network import (
    Draw,
    NetworkStandardizer,
    Recipe,
    TrainingData,
    sample_picture,
    seeded,
    standardizer,
    to_bundle,
    to_unit,
)
from concordct.methods.paired.conditional import (
    SAMPLING,
    Chain,
    ConditionalDiffusion,
    Sampling,
    detail_window,
    residual_spread,
)
from concordct.methods.standardizer import Mode
from concordct.nets.codec import LatentCodec, latent_statistics
from concordct.nets.denoisers import LatentUNet1d, ScalesUNet
from concordct.nets.unetpp import shallow_first
from concordct.training.bundle import Bundle
from concordct.training.data import Patches
from concordct.training.engine import Phase, Run, Team, train_phase

METHOD = "ltdiffpp"

#: Batches that the latents' statistics are taken over.
STATISTICS_BATCHES = 16

Supervision = Literal["regression", "bce_dice"]


@dataclass(frozen=True)
class Config:
    """Networks and losses.

    Attributes
    ----------
    widths, latents, fold, leak, vector, residual, dense : of the codec, see `LatentCodec`.
    chain : of the diffusion.
    denoiser, blocks : widths of the diffusion's network, and residual blocks at each of its scales.
    supervision : "regression" (L1 + L2), or "bce_dice", the printed segmentation loss on intensities in [0, 1].
    deep : weights w_j on every output; without, on the deepest alone.
    decoder_weight : lambda of the printed loss of phase 3.
    tile : edge of the square pieces that a one-dimensional latent needs at inference.
    """

    widths: tuple[int, ...]
    latents: tuple[int, ...]
    chain: Chain
    denoiser: tuple[int, ...]
    blocks: int = 1
    fold: int = 1
    leak: bool = False
    vector: bool = False
    residual: bool = True
    dense: bool = True
    supervision: Supervision = "regression"
    deep: bool = True
    decoder_weight: float = 1.0
    tile: int | None = None


_SMALL = Config(
    widths=(48, 64, 96),
    latents=(16, 8, 8),
    chain=Chain(200, "cosine", "residual"),
    denoiser=(64, 96, 128),
    fold=4,
)

#: The paper: 400 + 400 epochs, Adam at 1e-4; neither widths, T, schedule, latent size nor batch are printed (ours).
#: Phase 3 has no length printed; a tenth of the others.
RECIPES: dict[str, Recipe] = {
    "paper": Recipe(
        config=Config(
            widths=(32, 64, 128, 256, 512),
            latents=(0, 0, 0, 0, 64),
            chain=Chain(1000, "linear", "noise"),
            denoiser=(128, 256, 512),
            leak=True,
            vector=True,
            tile=256,
        ),
        patch=256,
        phases=(
            ("autoencoder", Phase(epochs=400, batch=16)),
            ("diffusion", Phase(epochs=400, batch=16)),
            ("integration", Phase(epochs=40, batch=16)),
        ),
        sampling=Sampling(steps=1000, sampler="ddpm", start="source"),
    ),
    "small": Recipe(
        config=_SMALL,
        patch=64,
        phases=(
            ("autoencoder", Phase(steps=100, batch=8, learning_rate=2e-4, final_rate=0.05, every=100)),
            ("diffusion", Phase(steps=2000, batch=8, learning_rate=1e-3, final_rate=0.05, every=250)),
            ("integration", Phase(steps=200, batch=8, learning_rate=2e-4, final_rate=0.05, every=200)),
        ),
        sampling=Sampling(steps=6),
    ),
    "gpu": Recipe(
        config=replace(_SMALL, widths=(64, 96, 128), denoiser=(128, 192, 256), blocks=2, fold=2, latents=(8, 8, 8)),
        patch=128,
        phases=(
            ("autoencoder", Phase(steps=2000, batch=32, learning_rate=2e-4, final_rate=0.05)),
            ("diffusion", Phase(steps=20000, batch=32, learning_rate=5e-4, final_rate=0.05)),
            ("integration", Phase(steps=2000, batch=32, learning_rate=1e-4, final_rate=0.05)),
        ),
        sampling=Sampling(steps=8),
    ),
}


ABLATIONS = ("skips", "supervision", "integration")


def without(recipe: Recipe, part: str) -> Recipe:
    """The recipe without "skips" (one latent, at the deepest scale), deep "supervision", or phase 3 ("integration").

    Without skips the autoencoder no longer starts as the identity, so it is trained as long as the diffusion.
    """
    config: Config = recipe.config
    if part == "skips":
        latents = (*([0] * (len(config.latents) - 1)), max(config.latents))
        known = dict(recipe.phases)
        longer = replace(known["diffusion"], batch=known["autoencoder"].batch)
        phases = tuple((name, longer if name == "autoencoder" else phase) for name, phase in recipe.phases)
        return replace(recipe, config=replace(config, latents=latents, leak=False, dense=False), phases=phases)
    if part == "supervision":
        return replace(recipe, config=replace(config, deep=False))
    return replace(recipe, phases=tuple((name, phase) for name, phase in recipe.phases if name != "integration"))


class LTDiffPlusPlus(nn.Module):
    """The autoencoder and the diffusion of its latents."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.tile = config, config.tile
        self.codec = LatentCodec(
            config.widths,
            config.latents,
            fold=config.fold,
            leak=config.leak,
            vector=config.vector,
            residual=config.residual,
            dense=config.dense,
        )
        self.divisor = self.codec.divisor
        channels = [config.latents[i] for i in self.codec.scales]
        # The denoiser's scales begin at the finest latent.
        maps = config.latents[self.codec.scales[0] :]
        detail = 0 if config.vector or config.chain.predicts == "noise" else detail_window(config.fold)
        net: nn.Module
        if config.vector:
            net = LatentUNet1d(channels[0], config.denoiser)
        else:
            net = ScalesUNet(maps, config.denoiser, blocks=config.blocks, shown=2 if detail else 1)
        self.diffusion = ConditionalDiffusion(net, config.chain, channels, detail=detail)

    def translate(self, image: Tensor, sampling: Sampling, draw: Draw, *, mean: bool) -> Tensor:
        """A' = D(Z_A'), Z_A' drawn given Z_A = E(A)."""
        source, leaks = self.codec.encode(image)
        found = self.diffusion.mean(source) if mean else self.diffusion.sample(source, sampling, draw)
        return self.codec.decode(found, leaks, depth=sampling.depth or None)[-1]


def supervised(outputs: Sequence[Tensor], wanted: Tensor, config: Config) -> Tensor:
    """The loss of every output under its weight: LTDiff++'s deep supervision."""
    weights = shallow_first(len(outputs)) if config.deep else (*([0.0] * (len(outputs) - 1)), 1.0)
    total = wanted.new_zeros(())
    for weight, output in zip(weights, outputs, strict=True):
        if not weight:
            continue
        error = output - wanted
        if config.supervision == "regression":
            total = total + weight * (error.square().mean() + 0.1 * error.abs().mean())
        else:
            total = total + weight * bce_dice(output, wanted)
    return total


def bce_dice(output: Tensor, wanted: Tensor) -> Tensor:
    """Zhou 2018, eq. 3, as LTDiff++ prints it: -1/N sum_b (1/2 Y log Y^ + 2 Y Y^ / (Y + Y^)), Y in [0, 1].

    Its logarithm has no (1 - Y) log(1 - Y^) beside it, so it does not determine intensities by itself; nor is it
    least at Y^ = Y. Offered as printed, recommended for nothing.
    """
    y, found = (wanted + 1) / 2, ((output + 1) / 2).clamp(1e-4, 1.0)
    y = y.clamp(0.0, 1.0)
    return -(0.5 * y * found.log() + 2 * y * found / (y + found)).mean()


class AutoencoderTask(nn.Module):
    """Phase 1: D(E(X)) = X for every image."""

    def __init__(self, system: LTDiffPlusPlus) -> None:
        super().__init__()
        self.system = system

    def forward(self, source: Tensor, target: Tensor, seeds: Sequence[int]) -> dict[str, Tensor]:
        """Patches in HU to losses."""
        image = to_unit(source)
        outputs = self.system.codec.decode(*self.system.codec.encode(image))
        return {
            "loss": supervised(outputs, image, self.system.config),
            "square": (outputs[-1] - image).square().mean(),
        }


class _Diffusion(nn.Module):
    """Phases 2 and 3: the diffusion of Z_B given Z_A; with `integrate`, the printed loss beside it.

    L = ||Z_A' - Z_B||^2 + lambda ||D(Z_A') - B||^2, where Z_A' is the estimate of Z_B at the step drawn.
    """

    def __init__(self, system: LTDiffPlusPlus, *, integrate: bool) -> None:
        super().__init__()
        self.system, self.integrate = system, integrate

    def forward(self, source: Tensor, target: Tensor, seeds: Sequence[int]) -> dict[str, Tensor]:
        """Patches in HU to losses."""
        codec, wanted = self.system.codec, to_unit(target)
        with torch.no_grad():
            (a, leaks), (b, _) = codec.encode(to_unit(source)), codec.encode(wanted)
        losses, estimate = self.system.diffusion.loss(a, b, seeds)
        if not self.integrate:
            return losses
        latent = torch.stack([(one - other).square().mean() for one, other in zip(estimate, b, strict=True)]).mean()
        decoded = supervised(codec.decode(estimate, leaks), wanted, self.system.config)
        total = losses["loss"] + latent + self.system.config.decoder_weight * decoded
        return {**losses, "loss": total, "latent": latent, "decoded": decoded}


def fit(data: TrainingData, recipe: Recipe, run: Run) -> Bundle:
    """Train all phases, each from where it stands."""
    config: Config = recipe.config
    system = seeded(lambda: LTDiffPlusPlus(config), recipe.seed)
    assert isinstance(system, LTDiffPlusPlus)
    every = Patches([*data.pairs, *data.images], recipe.patch, recipe.seed, either=True)
    pairs = Patches(data.pairs, recipe.patch, recipe.seed + 1)

    # Phase 1: all images, whatever their kernel.
    system.requires_grad_(False)
    system.codec.requires_grad_(True)
    if not config.deep:
        for head in system.codec.net.heads[:-1]:
            head.requires_grad_(False)
    phase = dict(recipe.phases)
    train_phase("autoencoder", AutoencoderTask(system), every, phase["autoencoder"], run)
    system.codec.requires_grad_(False)
    with torch.no_grad():
        batches = [_latents(system, every, step, run.team) for step in range(STATISTICS_BATCHES)]
        system.codec.set_statistics(latent_statistics([b for _, b in batches]))
        if config.chain.predicts == "residual":
            paired = [_latents(system, pairs, step, run.team) for step in range(STATISTICS_BATCHES)]
            system.diffusion.set_spread(residual_spread(paired))

    # Phase 2: pairs, the autoencoder frozen.
    system.diffusion.requires_grad_(True)
    task = _Diffusion(system, integrate=False)
    picture = sample_picture(system, pairs, recipe.sampling)
    train_phase("diffusion", task, pairs, phase["diffusion"], run, picture=picture)

    # Phase 3: the decoder learns to use what the diffusion makes; the encoder stays, so that Z_B keeps its meaning.
    if "integration" in phase:
        for name, parameter in system.codec.named_parameters():
            parameter.requires_grad_(_decodes(name) and (config.deep or not name.startswith("net.heads")))
        if not config.deep:
            system.codec.net.heads[-1].requires_grad_(True)
        task = _Diffusion(system, integrate=True)
        train_phase("integration", task, pairs, phase["integration"], run, picture=picture)
    return to_bundle(METHOD, system, recipe, data.info)


def _decodes(name: str) -> bool:
    """Whether a parameter of the codec lies behind the latents."""
    if name.startswith("net.nodes."):
        return name.split(".")[2].split("_")[1] != "0"
    return name.startswith(("out_of.", "after.", "net.heads."))


def _latents(system: LTDiffPlusPlus, patches: Patches, step: int, team: Team) -> tuple[list[Tensor], list[Tensor]]:
    batch = patches.batch(step, range(4))
    source, target = (torch.from_numpy(one).to(team.device) for one in (batch.source, batch.target))
    return tuple([one.cpu() for one in system.codec.encode(to_unit(image))[0]] for image in (source, target))  # type: ignore[return-value]


def build(config: Mapping[str, Any]) -> LTDiffPlusPlus:
    """The system of a stored configuration."""
    fields = dict(config)
    fields["chain"] = Chain(**fields["chain"])
    for name in ("widths", "latents", "denoiser"):
        fields[name] = tuple(fields[name])
    return LTDiffPlusPlus(Config(**fields))


def load(bundle: Bundle, mode: Mode, *, sampling: Mapping[str, Any] | None = None) -> NetworkStandardizer:
    """A stored model as a Standardizer."""
    return standardizer(METHOD, bundle, mode, build, sampling=sampling)


ENTRY = Method(
    "LTDiff++",
    load,
    fit,
    RECIPES,
    ablations={part: partial(without, part=part) for part in ABLATIONS},
    sampling=SAMPLING,
)
