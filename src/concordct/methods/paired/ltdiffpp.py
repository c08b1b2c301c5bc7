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
    Recipe,
    TrainingData,
    encoded,
    loader,
    sample_picture,
    seeded,
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
from concordct.methods.paired.texture import energy_loss, level_loss, relative_loss
from concordct.nets.blocks import customary
from concordct.nets.codec import LatentCodec, latent_statistics
from concordct.nets.denoisers import LatentUNet1d, ScalesUNet
from concordct.nets.unetpp import Resampling, shallow_first
from concordct.training.bundle import Bundle
from concordct.training.data import Patches
from concordct.training.engine import Phase, Run, train_phase

METHOD = "ltdiffpp"

#: Batches that the latents' statistics are taken over.
STATISTICS_BATCHES = 16
#: Spread of texture in the networks' units: 40 HU.
DETAIL = 40.0 / 1350.0

#: Steps of the samples that phase 3 of the small recipes decodes.
INTEGRATION_STEPS = 3

Supervision = Literal["regression", "relative", "bce_dice"]


@dataclass(frozen=True)
class Config:
    """Networks and losses.

    Attributes
    ----------
    widths, latents, fold, leak, vector, residual, dense, resampling, detail, straight : of the codec, see
        `LatentCodec`.
    chain : of the diffusion.
    denoiser, blocks : widths of the diffusion's network, and residual blocks at each of its scales.
    supervision : "regression" (L1 + L2), "relative" (the error in units of the local texture), or "bce_dice", the
        printed segmentation loss on intensities in [0, 1].
    deep : weights w_j on every output, and a random depth in each step of the diffusion; without, the deepest alone.
    decoder_weight : lambda of the printed loss of phase 3.
    texture : above 0, phase 3 trains the decoder on Z_B against B and weighs with this that samples Z_A' decode to
        texture of B's energy; 0 is the printed loss.
    customary : every layer starts from torch's own random weights; without, some start silent or orthogonal.
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
    resampling: Resampling = "pool"
    detail: float = 0.0
    straight: bool = False
    supervision: Supervision = "regression"
    deep: bool = True
    decoder_weight: float = 1.0
    texture: float = 0.0
    customary: bool = False
    tile: int | None = None


#: A learned, compressing autoencoder: 4 of each 16 numbers pass at the finest scale, 12 of 64 and 64 of 256 at the
#: coarser ones, 0.69 latent numbers for each pixel.
_SMALL = Config(
    widths=(40, 64, 96),
    latents=(4, 12, 64),
    chain=Chain(200, "cosine", "residual"),
    denoiser=(48, 72, 96),
    fold=4,
    resampling="learned",
    detail=DETAIL,
    straight=True,
    supervision="relative",
    texture=0.3,
)


def _small(steps: tuple[int, int, int]) -> tuple[tuple[str, Phase], ...]:
    rates = (0.02, 0.01, 0.005)
    phases = zip(("autoencoder", "diffusion", "integration"), steps, rates, strict=True)
    return tuple(
        (name, Phase(steps=count, batch=4, learning_rate=rate, final_rate=0.02, every=200, optimizer="muon"))
        for name, count, rate in phases
    )


#: The paper: 400 + 400 epochs, Adam at 1e-4; neither widths, T, schedule, latent size nor batch are printed (ours).
#: Phase 3 has no length printed; a tenth of the others. `common` is `small` under the budget of all methods.
RECIPES: dict[str, Recipe] = {
    "paper": Recipe(
        config=Config(
            widths=(32, 64, 128, 256, 512),
            latents=(0, 0, 0, 0, 64),
            chain=Chain(1000, "linear", "noise"),
            denoiser=(128, 256, 512),
            leak=True,
            vector=True,
            customary=True,
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
    "small": Recipe(config=_SMALL, patch=64, phases=_small((2200, 1000, 200)), sampling=Sampling(steps=6)),
    "common": Recipe(config=_SMALL, patch=64, phases=_small((700, 560, 110)), sampling=Sampling(steps=6)),
    "gpu": Recipe(
        config=replace(_SMALL, widths=(96, 128, 192), denoiser=(128, 192, 256), blocks=2),
        patch=128,
        phases=tuple(
            (name, replace(phase, steps=steps, batch=32))
            for (name, phase), steps in zip(_small((1, 1, 1)), (20000, 20000, 4000), strict=True)
        ),
        sampling=Sampling(steps=8),
    ),
}


ABLATIONS = ("skips", "supervision", "integration")


def without(recipe: Recipe, part: str) -> Recipe:
    """The recipe without "skips" (one latent, at the deepest scale), deep "supervision", or phase 3 ("integration")."""
    config: Config = recipe.config
    if part == "skips":
        latents = (*([0] * (len(config.latents) - 1)), max(config.latents))
        return replace(recipe, config=replace(config, latents=latents, leak=False, dense=False))
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
            resampling=config.resampling,
            detail=config.detail,
            straight=config.straight,
        )
        self.divisor, self.deepest, self.chain = self.codec.divisor, self.codec.net.depth, config.chain
        channels = [config.latents[i] for i in self.codec.scales]
        # The denoiser's scales begin at the finest latent.
        maps = config.latents[self.codec.scales[0] :]
        detail = 0 if config.vector or config.chain.predicts == "noise" else detail_window(config.fold)
        net: nn.Module
        if config.vector:
            net = LatentUNet1d(channels[0], config.denoiser, straight=not config.customary)
        else:
            shown = 2 if detail else 1
            net = ScalesUNet(maps, config.denoiser, blocks=config.blocks, shown=shown, resampling=config.resampling)
        if config.customary:
            customary(self.codec)
            customary(net)
        self.diffusion = ConditionalDiffusion(net, config.chain, channels, detail=detail)

    def translate(self, image: Tensor, sampling: Sampling, draw: Draw, *, mean: bool) -> Tensor:
        """A' = D(Z_A'), Z_A' drawn given Z_A = E(A); pruned, nothing below the depth is encoded, drawn or decoded."""
        depth = sampling.depth or None
        source, leaks = self.codec.encode(image, depth=depth)
        # The paper's latent lies at the deepest scale alone: pruned, there is nothing to draw.
        if source:
            source = self.diffusion.mean(source) if mean else self.diffusion.sample(source, sampling, draw)
        return self.codec.decode(source, leaks, depth=depth)[-1]

    def depth_of(self, seeds: Sequence[int]) -> int:
        """The depth that a step of phase 2 or 3 trains: the whole for half of all steps, else a pruned one."""
        whole = self.codec.net.depth
        shallow = [depth for depth in range(1, whole) if self.codec.scales_to(depth)]
        if not self.config.deep or not shallow or seeds[0] % 2:
            return whole
        return shallow[seeds[0] // 2 % len(shallow)]


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
        elif config.supervision == "relative":
            total = total + weight * relative_loss(output, wanted)
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
    """Phase 2: the diffusion of Z_B given Z_A, the autoencoder frozen."""

    def __init__(self, system: LTDiffPlusPlus) -> None:
        super().__init__()
        self.system = system

    def forward(self, source: Tensor, target: Tensor, seeds: Sequence[int]) -> dict[str, Tensor]:
        """Patches in HU to losses."""
        depth = self.system.depth_of(seeds)
        with torch.no_grad():
            a, b = (self.system.codec.encode(to_unit(image), depth=depth)[0] for image in (source, target))
        return self.system.diffusion.loss(a, b, seeds)[0]


class _Integration(nn.Module):
    """Phase 3: the diffusion's own loss, and the decoder learns to use what the diffusion makes.

    As printed, L = ||Z_A' - Z_B||^2 + lambda ||D(Z_A') - B||^2, Z_A' the estimate of Z_B at the step drawn. With
    `texture` (ours), lambda (L(D(Z_B), B) + texture (e(D(Z_B), B) + e(D(Z_A'), B)) + l(D(Z_A'), B)), Z_A' a sample, e
    the energies and l the local levels: a pixelwise loss on a sample would take for error what the sample must draw.
    """

    def __init__(self, system: LTDiffPlusPlus) -> None:
        super().__init__()
        self.system = system

    def forward(self, source: Tensor, target: Tensor, seeds: Sequence[int]) -> dict[str, Tensor]:
        """Patches in HU to losses."""
        system, config, wanted = self.system, self.system.config, to_unit(target)
        depth = system.depth_of(seeds)
        with torch.no_grad():
            a, leaks = system.codec.encode(to_unit(source), depth=depth)
            b, _ = system.codec.encode(wanted, depth=depth)
        losses, estimate = system.diffusion.loss(a, b, seeds)
        if not config.texture:
            latent = torch.stack([(one - other).square().mean() for one, other in zip(estimate, b, strict=True)]).mean()
            decoded = supervised(system.codec.decode(estimate, leaks, depth=depth), wanted, config)
            total = losses["loss"] + latent + config.decoder_weight * decoded
            return {**losses, "loss": total, "latent": latent, "decoded": decoded}
        with torch.no_grad():
            made = system.diffusion.sample(a, Sampling(INTEGRATION_STEPS), _seeded_noise(seeds))
        again = system.codec.decode(b, leaks, depth=depth)
        decoded = supervised(again, wanted, config)
        drawn = system.codec.decode(made, leaks, depth=depth)
        texture = torch.stack([energy_loss(one, wanted) for one in (again[-1], drawn[-1])]).sum()
        level = level_loss(drawn[-1], wanted)
        total = losses["loss"] + config.decoder_weight * (decoded + config.texture * texture + level)
        return {**losses, "loss": total, "decoded": decoded, "texture": texture, "level": level}


def _seeded_noise(seeds: Sequence[int]) -> Draw:
    """Noise for each sample from its own seed, another than that of the loss."""
    generators = [torch.Generator().manual_seed(seed ^ 0x5EED) for seed in seeds]
    return lambda shape: torch.stack([torch.randn(shape[1], generator=one) for one in generators])


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
        batches = encoded(system.codec.encode, every, STATISTICS_BATCHES, run.team.device)
        system.codec.set_statistics(latent_statistics([b for _, b in batches]))
        if config.chain.predicts == "residual":
            paired = encoded(system.codec.encode, pairs, STATISTICS_BATCHES, run.team.device)
            system.diffusion.set_spread(residual_spread(paired))

    # Phase 2: pairs, the autoencoder frozen.
    system.diffusion.requires_grad_(True)
    picture = sample_picture(system, pairs, recipe.sampling)
    train_phase("diffusion", _Diffusion(system), pairs, phase["diffusion"], run, picture=picture)

    # Phase 3: the decoder learns to use what the diffusion makes; the encoder stays, so that Z_B keeps its meaning.
    if "integration" in phase:
        for name, parameter in system.codec.named_parameters():
            parameter.requires_grad_(_decodes(name) and (config.deep or not name.startswith("net.heads")))
        if not config.deep:
            system.codec.net.heads[-1].requires_grad_(True)
        train_phase("integration", _Integration(system), pairs, phase["integration"], run, picture=picture)
    return to_bundle(METHOD, system, recipe, data.info)


def _decodes(name: str) -> bool:
    """Whether a parameter of the codec lies behind the latents."""
    if name.startswith("net.nodes."):
        return name.split(".")[2].split("_")[1] != "0"
    return name.startswith(("out_of.", "say.", "after.", "net.heads.", "net.up."))


def build(config: Mapping[str, Any]) -> LTDiffPlusPlus:
    """The system of a stored configuration."""
    fields = dict(config)
    fields["chain"] = Chain(**fields["chain"])
    for name in ("widths", "latents", "denoiser"):
        fields[name] = tuple(fields[name])
    return LTDiffPlusPlus(Config(**fields))


load = loader(METHOD, build)

ENTRY = Method(
    "LTDiff++",
    load,
    fit,
    RECIPES,
    ablations={part: partial(without, part=part) for part in ABLATIONS},
    sampling=SAMPLING,
)
