"""DiffusionCT: a ResNet-18 autoencoder with a one-dimensional latent, and a conditional latent DDPM.

Selim et al. 2023, arXiv:2301.08815. Two phases: the autoencoder on every image (L2 and an anatomic loss), then a 1-D
U-Net that predicts the noise in Z_B given Z_A (mean square and L1). At inference Z_A' is drawn given Z_A and
decoded. The text names an "anatomic loss" without a formula: here it is the L1 difference of the images' gradients,
which weighs edges.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    NetworkStandardizer,
    Recipe,
    TrainingData,
    sample_picture,
    seeded,
    standardizer,
    to_bundle,
    to_unit,
)
from concordct.methods.paired.conditional import SAMPLING, Chain, ConditionalDiffusion, Sampling, residual_spread
from concordct.methods.standardizer import Mode
from concordct.nets.codec import latent_statistics
from concordct.nets.denoisers import LatentUNet1d
from concordct.nets.resnet import WIDTHS, ResNetAutoencoder
from concordct.training.bundle import Bundle
from concordct.training.data import Patches
from concordct.training.engine import Phase, Run, Team, train_phase

METHOD = "diffusionct"

#: Batches that the latents' statistics are taken over.
STATISTICS_BATCHES = 16


@dataclass(frozen=True)
class Config:
    """Networks and losses.

    Attributes
    ----------
    channels : of the latent; with a tile of 256 it has 64 positions.
    chain : of the diffusion. denoiser : widths of the 1-D U-Net.
    widths : of the ResNet, see `nets/resnet.py`. skips : features that pass around the latent.
    anatomic : weight of the anatomic loss beside L2.
    tile : edge of the square pieces that are standardized, pixels.
    """

    channels: int
    chain: Chain
    denoiser: tuple[int, ...]
    tile: int
    widths: tuple[int, ...] = WIDTHS
    skips: bool = False
    anatomic: float = 0.1


#: `small` starts at the source's latent and half of T: of all ways studied only this one's samples reach the decoder's
#: own error (`docs/results.md`), since a network that predicts the noise is blind at T.
#: The paper: 20 + 20 epochs, Adam at 1e-4; T, schedule, latent size and batch are not printed (ours).
RECIPES: dict[str, Recipe] = {
    "paper": Recipe(
        config=Config(channels=64, chain=Chain(1000, "linear", "noise", l1=1.0), denoiser=(128, 256, 512), tile=256),
        patch=256,
        phases=(("autoencoder", Phase(epochs=20, batch=16)), ("diffusion", Phase(epochs=20, batch=16))),
        sampling=Sampling(steps=1000, sampler="ddpm"),
    ),
    "small": Recipe(
        config=Config(
            channels=64,
            chain=Chain(200, "cosine", "noise", l1=1.0),
            denoiser=(96, 128),
            tile=128,
            widths=(16, 32, 64, 96, 128),
        ),
        patch=128,
        phases=(
            ("autoencoder", Phase(steps=2000, batch=2, learning_rate=1e-3, final_rate=0.05, every=250)),
            ("diffusion", Phase(steps=2000, batch=4, learning_rate=1e-3, final_rate=0.05, every=250)),
        ),
        sampling=Sampling(steps=5, start="source", begin=0.5),
    ),
    "gpu": Recipe(
        config=Config(channels=256, chain=Chain(1000, "cosine", "noise", l1=1.0), denoiser=(256, 384), tile=256),
        patch=256,
        phases=(
            ("autoencoder", Phase(steps=12000, batch=32, learning_rate=5e-4, final_rate=0.05)),
            ("diffusion", Phase(steps=12000, batch=64, learning_rate=5e-4, final_rate=0.05)),
        ),
        sampling=Sampling(steps=5, start="source", begin=0.5),
    ),
}


class DiffusionCT(nn.Module):
    """The autoencoder and the diffusion of its latent."""

    divisor = 32

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.tile = config, config.tile
        self.autoencoder = ResNetAutoencoder(config.channels, widths=config.widths, skips=config.skips)
        net = LatentUNet1d(config.channels, config.denoiser)
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
    """Phase 1: D(E(X)) = X for every image."""

    def __init__(self, system: DiffusionCT) -> None:
        super().__init__()
        self.system = system

    def forward(self, source: Tensor, target: Tensor, seeds: Sequence[int]) -> dict[str, Tensor]:
        """Patches in HU to losses."""
        image = to_unit(source)
        output = self.system.autoencoder.decode(*self.system.autoencoder.encode(image))[-1]
        square, anatomic = (output - image).square().mean(), anatomic_loss(output, image)
        return {"loss": square + self.system.config.anatomic * anatomic, "square": square, "anatomic": anatomic}


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


def fit(
    data: TrainingData,
    recipe: Recipe,
    run: Run,
    *,
    imagenet: Path | None = None,
) -> Bundle:
    """Train both phases, each from where it stands.

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
    train_phase("autoencoder", _Autoencoder(system), every, phase["autoencoder"], run)
    system.autoencoder.requires_grad_(False)
    with torch.no_grad():
        batches = [_latents(system, every, step, run.team) for step in range(STATISTICS_BATCHES)]
        system.autoencoder.set_statistics(latent_statistics([b for _, b in batches]))
        if recipe.config.chain.predicts == "residual":
            paired = [_latents(system, pairs, step, run.team) for step in range(STATISTICS_BATCHES)]
            system.diffusion.set_spread(residual_spread(paired))
    system.diffusion.requires_grad_(True)
    picture = sample_picture(system, pairs, recipe.sampling)
    train_phase("diffusion", _Diffusion(system), pairs, phase["diffusion"], run, picture=picture)
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


def _latents(system: DiffusionCT, patches: Patches, step: int, team: Team) -> tuple[list[Tensor], list[Tensor]]:
    batch = patches.batch(step, range(4))
    source, target = (torch.from_numpy(one).to(team.device) for one in (batch.source, batch.target))
    a, b = ([one.cpu() for one in system.autoencoder.encode(to_unit(image))[0]] for image in (source, target))
    return a, b


def build(config: Mapping[str, Any]) -> DiffusionCT:
    """The system of a stored configuration."""
    fields = dict(config)
    fields["chain"] = Chain(**fields["chain"])
    for name in ("widths", "denoiser"):
        fields[name] = tuple(fields[name])
    return DiffusionCT(Config(**fields))


def load(bundle: Bundle, mode: Mode, *, sampling: Mapping[str, Any] | None = None) -> NetworkStandardizer:
    """A stored model as a Standardizer."""
    return standardizer(METHOD, bundle, mode, build, sampling=sampling)


ENTRY = Method(
    "DiffusionCT",
    load,
    fit,
    RECIPES,
    pretrained="ResNet-18, ImageNet",
    sampling=SAMPLING,
)
