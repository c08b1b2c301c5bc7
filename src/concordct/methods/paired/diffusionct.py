"""DiffusionCT: a ResNet-18 autoencoder with a one-dimensional latent, and a conditional latent DDPM.

Selim et al. 2023, arXiv:2301.08815. Two phases: the autoencoder on every image (L2 and an anatomic loss), then a 1-D
U-Net that predicts the noise in Z_B given Z_A (mean square and L1). At inference Z_A' is drawn given Z_A and
decoded. The text names an "anatomic loss" without a formula: here it is the L1 difference of the images' gradients,
which weighs edges.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from concordct.errors import ConcordctError
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
from concordct.methods.paired.conditional import SAMPLING, Chain, ConditionalDiffusion, Sampling, residual_spread
from concordct.methods.paired.texture import energy_loss, level_loss, relative_loss
from concordct.nets.blocks import customary
from concordct.nets.codec import latent_statistics
from concordct.nets.denoisers import LatentUNet1d
from concordct.nets.resnet import WIDTHS, ResNetAutoencoder
from concordct.nets.unetpp import Resampling
from concordct.training.bundle import Bundle
from concordct.training.data import Patches
from concordct.training.engine import Phase, Run, train_phase

METHOD = "diffusionct"

#: Batches that the latents' statistics are taken over.
STATISTICS_BATCHES = 16
#: Spread of texture in the networks' units: 40 HU.
DETAIL = 40.0 / 1350.0


@dataclass(frozen=True)
class Config:
    """Networks and losses.

    Attributes
    ----------
    channels : of the latent; with a tile of 256 it has 64 positions.
    chain : of the diffusion. denoiser : widths of the 1-D U-Net.
    widths, skips, resampling, detail : of the autoencoder, see `ResNetAutoencoder`.
    anatomic : weight of the anatomic loss beside L2.
    drop : share of the patches of phase 1 whose skips are zeros, so that the latent must carry the image.
    conditioned : the decoder has the skips of A whichever image the latent is of, so that the latent alone tells A
        from B, in phase 3 too.
    texture : above 0, errors count relative to the local texture, and the integration weighs with this that its output
        has the energies of B (ours).
    customary : every layer starts from its customary random weights, and nothing leads past the 1-D U-Net.
    tile : edge of the square pieces that are standardized, pixels.
    """

    channels: int
    chain: Chain
    denoiser: tuple[int, ...]
    tile: int
    widths: tuple[int, ...] = WIDTHS
    skips: bool = False
    anatomic: float = 0.1
    resampling: Resampling = "pool"
    detail: float = 0.0
    drop: float = 0.0
    conditioned: bool = False
    texture: float = 0.0
    customary: bool = False


_SMALL = Config(
    channels=64,
    chain=Chain(200, "cosine", "noise", l1=1.0),
    denoiser=(96, 128),
    tile=128,
    widths=(32, 32, 64, 96, 128),
    skips=True,
    resampling="learned",
    detail=DETAIL,
    drop=0.5,
    texture=0.3,
)


def _phases(autoencoder: int, diffusion: int, integration: int) -> tuple[tuple[str, Phase], ...]:
    phase = Phase(batch=2, learning_rate=0.02, final_rate=0.02, every=200, optimizer="muon")
    return (
        ("autoencoder", replace(phase, steps=autoencoder)),
        ("diffusion", Phase(steps=diffusion, batch=4, learning_rate=1e-3, final_rate=0.05, every=200)),
        ("integration", replace(phase, steps=integration, learning_rate=0.01)),
    )


def _only_printed(recipe: Recipe) -> Recipe:
    """Nothing beside the latent, two phases, which take the steps that the third would have cost."""
    phases = recipe.phases
    if len(phases) > 2:
        phases = tuple((name, replace(phase, steps=2 * phase.steps)) for name, phase in phases[:2])
    return replace(recipe, config=replace(recipe.config, skips=False, drop=0.0), phases=phases)


def _without_integration(recipe: Recipe) -> Recipe:
    return replace(recipe, phases=recipe.phases[:2])


def _large_latent(recipe: Recipe) -> Recipe:
    """As printed with four times the latent: no longer the narrowest place, which is the encoder's last stage then."""
    printed = _only_printed(recipe)
    return replace(printed, config=replace(printed.config, channels=4 * printed.config.channels))


def _conditioned(recipe: Recipe) -> Recipe:
    """A decoder that is conditioned on A, and a latent that decides between A and B."""
    return replace(recipe, config=replace(recipe.config, conditioned=True, drop=0.0))


#: `small` starts at the source's latent and half of T: a network that predicts the noise is blind at T.
#: The paper: 20 + 20 epochs, Adam at 1e-4; T, schedule, latent size and batch are not printed (ours).
RECIPES: dict[str, Recipe] = {
    "paper": Recipe(
        config=Config(
            channels=64,
            chain=Chain(1000, "linear", "noise", l1=1.0),
            denoiser=(128, 256, 512),
            tile=256,
            customary=True,
        ),
        patch=256,
        phases=(("autoencoder", Phase(epochs=20, batch=16)), ("diffusion", Phase(epochs=20, batch=16))),
        sampling=Sampling(steps=1000, sampler="ddpm"),
    ),
    "small": Recipe(
        config=_SMALL,
        patch=128,
        phases=_phases(400, 400, 500),
        sampling=Sampling(steps=5, start="source", begin=0.5),
    ),
    "common": Recipe(
        config=_SMALL,
        patch=128,
        phases=_phases(240, 260, 310),
        sampling=Sampling(steps=5, start="source", begin=0.5),
    ),
    "gpu": Recipe(
        config=replace(_SMALL, channels=256, denoiser=(256, 384), widths=WIDTHS, tile=256),
        patch=256,
        phases=tuple((name, replace(phase, batch=32)) for name, phase in _phases(12000, 12000, 12000)),
        sampling=Sampling(steps=5, start="source", begin=0.5),
    ),
}

#: The readings of the paper beside the recipe's own: nothing but the latent, that with a larger latent, skips alone, a
#: decoder that is conditioned on A.
ABLATIONS: dict[str, Callable[[Recipe], Recipe]] = {
    "skips": _only_printed,
    "bottleneck": _large_latent,
    "integration": _without_integration,
    "idle": _conditioned,
}


class DiffusionCT(nn.Module):
    """The autoencoder and the diffusion of its latent."""

    divisor = 32

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.tile, self.chain = config, config.tile, config.chain
        self.autoencoder = ResNetAutoencoder(
            config.channels,
            widths=config.widths,
            skips=config.skips,
            resampling=config.resampling,
            detail=config.detail,
        )
        net = LatentUNet1d(config.channels, config.denoiser, straight=not config.customary)
        if config.customary:
            for name, part in self.autoencoder.named_children():
                # The encoder has ResNet's own random weights already.
                if name != "encoder":
                    customary(part)
            customary(net)
        self.diffusion = ConditionalDiffusion(net, config.chain, [config.channels])

    def translate(self, image: Tensor, sampling: Sampling, draw: Draw, *, mean: bool) -> Tensor:
        """A' = D(Z_A'), Z_A' drawn given Z_A = E(A)."""
        source, leaks = self.autoencoder.encode(image)
        found = self.diffusion.mean(source) if mean else self.diffusion.sample(source, sampling, draw)
        return self.autoencoder.decode(found, leaks)[-1]


def anatomic_loss(output: Tensor, wanted: Tensor) -> Tensor:
    """Mean absolute difference of the first differences along rows and columns (ours)."""
    error = output - wanted
    return error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()


class _Autoencoder(nn.Module):
    """Phase 1: D(E(X)) = X for every image; conditioned, D(E(X); skips of A) = X for X of A and B."""

    def __init__(self, system: DiffusionCT) -> None:
        super().__init__()
        self.system = system

    def forward(self, source: Tensor, target: Tensor, seeds: Sequence[int]) -> dict[str, Tensor]:
        """Patches in HU to losses."""
        image, config = to_unit(source), self.system.config
        latents, skips = self.system.autoencoder.encode(image)
        if config.conditioned:
            of_target = torch.tensor([bool(seed % 2) for seed in seeds], device=image.device)[:, None, None, None]
            image = torch.where(of_target, to_unit(target), image)
            latents = self.system.autoencoder.encode(image)[0]
        if skips and config.drop:
            kept = torch.tensor([seed % 1000 >= 1000 * config.drop for seed in seeds], device=image.device)
            skips = [one * kept[:, None, None, None] for one in skips]
        output = self.system.autoencoder.decode(latents, skips)[-1]
        square, anatomic = (output - image).square().mean(), anatomic_loss(output, image)
        loss = relative_loss(output, image) if config.texture else square + config.anatomic * anatomic
        return {"loss": loss, "square": square, "anatomic": anatomic}


class _Diffusion(nn.Module):
    """Phase 2: the noise in Z_B given Z_A, the autoencoder frozen."""

    def __init__(self, system: DiffusionCT) -> None:
        super().__init__()
        self.system = system

    def forward(self, source: Tensor, target: Tensor, seeds: Sequence[int]) -> dict[str, Tensor]:
        """Patches in HU to losses."""
        with torch.no_grad():
            a, b = (self.system.autoencoder.encode(to_unit(image))[0] for image in (source, target))
        return self.system.diffusion.loss(a, b, seeds)[0]


class _Integration(nn.Module):
    """Phase 3 (ours; the paper says that the networks are integrated): the decoder between A's skips and a latent of B.

    L(D(Z_B; skips of A), B) + texture (e(D(Z_B; ...), B) + e(D(Z_A'; ...), B)) + l(D(Z_A'; ...), B), e the energies and
    l the local levels: with B's own latent the decoder learns what the latent knows beside the skips, with a sample
    what it meets at inference. A conditioned decoder has L(D(Z_A; skips of A), A) beside it, or it would forget to ask.
    """

    def __init__(self, system: DiffusionCT, sampling: Sampling) -> None:
        super().__init__()
        self.system, self.sampling = system, sampling

    def forward(self, source: Tensor, target: Tensor, seeds: Sequence[int]) -> dict[str, Tensor]:
        """Patches in HU to losses."""
        autoencoder, wanted = self.system.autoencoder, to_unit(target)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]

        def draw(shape: tuple[int, int]) -> Tensor:
            return torch.stack([torch.randn(shape[1], generator=one) for one in generators])

        with torch.no_grad():
            (a, skips), (b, _) = autoencoder.encode(to_unit(source)), autoencoder.encode(wanted)
            made = self.system.diffusion.sample(a, self.sampling, draw)
        known, drawn = autoencoder.decode(b, skips)[-1], autoencoder.decode(made, skips)[-1]
        decoded = relative_loss(known, wanted)
        texture = energy_loss(known, wanted) + energy_loss(drawn, wanted)
        level = level_loss(drawn, wanted)
        loss = decoded + self.system.config.texture * texture + level
        if self.system.config.conditioned:
            loss = loss + relative_loss(autoencoder.decode(a, skips)[-1], to_unit(source))
        return {"loss": loss, "decoded": decoded, "texture": texture, "level": level}


def fit(
    data: TrainingData,
    recipe: Recipe,
    run: Run,
    *,
    imagenet: Path | None = None,
) -> Bundle:
    """Train all phases, each from where it stands.

    Parameters
    ----------
    imagenet : torchvision's ResNet-18 weights (safetensors, or a `.pth` of plain tensors); random weights without.
    """
    system = seeded(lambda: DiffusionCT(recipe.config), recipe.seed)
    assert isinstance(system, DiffusionCT)
    if imagenet is not None:
        load_imagenet(system, imagenet)
    every = Patches([*data.pairs, *data.images], recipe.patch, recipe.seed, either=True)
    pairs = Patches(data.pairs, recipe.patch, recipe.seed + 1)
    phase = dict(recipe.phases)
    system.requires_grad_(False)
    system.autoencoder.requires_grad_(True)
    first = pairs if recipe.config.conditioned else every
    train_phase("autoencoder", _Autoencoder(system), first, phase["autoencoder"], run)
    system.autoencoder.requires_grad_(False)
    with torch.no_grad():
        batches = encoded(system.autoencoder.encode, every, STATISTICS_BATCHES, run.team.device)
        system.autoencoder.set_statistics(latent_statistics([b for _, b in batches]))
        if recipe.config.chain.predicts == "residual":
            paired = encoded(system.autoencoder.encode, pairs, STATISTICS_BATCHES, run.team.device)
            system.diffusion.set_spread(residual_spread(paired))
    system.diffusion.requires_grad_(True)
    picture = sample_picture(system, pairs, recipe.sampling)
    train_phase("diffusion", _Diffusion(system), pairs, phase["diffusion"], run, picture=picture)
    if "integration" in phase:
        for name, part in system.autoencoder.named_children():
            part.requires_grad_(name in ("from_latent", "up", "head"))
        system.diffusion.requires_grad_(False)
        integration = _Integration(system, recipe.sampling)
        train_phase("integration", integration, pairs, phase["integration"], run, picture=picture)
    return to_bundle(METHOD, system, recipe, data.info)


def load_imagenet(system: DiffusionCT, path: Path) -> None:
    """Put torchvision's ImageNet weights into the encoder. A `.pth` is read as plain tensors, never unpickled.

    Raises
    ------
    ConcordctError : no such file, not a file of tensors, or not those of ResNet-18.
    """
    try:
        if path.suffix == ".safetensors":
            tensors = load_file(path)
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
        system.autoencoder.encoder.load_torchvision(tensors)
    except OSError as error:
        raise ConcordctError(f"{path}: expected ResNet-18 weights, cannot read it ({error.strerror})") from None
    except ValueError as error:
        raise ConcordctError(f"{path}: {error}") from None
    except (SafetensorError, RuntimeError, TypeError, AttributeError, EOFError) as error:
        raise ConcordctError(f"{path}: expected a file of plain tensors, found {type(error).__name__}") from None
    except Exception as error:
        # torch.load raises pickle.UnpicklingError for whatever is not plain tensors.
        raise ConcordctError(f"{path}: expected a file of plain tensors, found {type(error).__name__}") from None


def build(config: Mapping[str, Any]) -> DiffusionCT:
    """The system of a stored configuration."""
    fields = dict(config)
    fields["chain"] = Chain(**fields["chain"])
    for name in ("widths", "denoiser"):
        fields[name] = tuple(fields[name])
    return DiffusionCT(Config(**fields))


load = loader(METHOD, build)

ENTRY = Method(
    "DiffusionCT",
    load,
    fit,
    RECIPES,
    ablations=ABLATIONS,
    pretrained="ResNet-18, ImageNet",
    sampling=SAMPLING,
)
