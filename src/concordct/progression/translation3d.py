"""Rivals that turn the initial scan into the follow-up by a game: what they share, in training and at work.

Scans enter by CIResDiff's fixed map of HU, brought to [-1, 1]; outside the region lies -1. Whoever works on slices gets
those of a patch. None of them reads lung function: their papers' tables do not either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional

from concordct import __version__
from concordct.errors import ConcordctError
from concordct.methods.network import load_system, seeded
from concordct.methods.standardizer import Mode
from concordct.nets.discriminators import Judge, Kind, PatchGAN, judge_loss, verdict_loss
from concordct.progression.ciresdiff import HIGH_HU, LOW_HU, CohortData
from concordct.progression.ciresdiff_predict import FADE_HU, FADE_MM
from concordct.progression.method import FollowupMethod
from concordct.progression.patches3d import Patches3d, region_box
from concordct.progression.tiling3d import blended
from concordct.training.bundle import Bundle
from concordct.training.engine import Phase, Run, train_phase
from concordct.training.game import seeded_by
from concordct.training.players import Player
from concordct.volumes.seeds import SliceSeeds

#: What lies outside the region.
OUTSIDE = -1.0
#: Slices of each patch that a network of slices is trained on.
SLICES = 4
#: Adam's first moment in games.
BETAS = (0.5, 0.999)
GAME = "game"


@dataclass(frozen=True)
class Losses:
    """Weights of a game: kind of verdict, L1, root mean square inside the region, features of the judge."""

    kind: Kind
    l1: float
    rmse: float = 0.0
    features: float = 0.0


@dataclass(frozen=True)
class Config:
    """A rival: settings of its network, its judge, its losses; `flat` for networks of slices."""

    net: Mapping[str, Any]
    judge: Judge
    losses: Losses
    flat: bool = False


@dataclass(frozen=True)
class Recipe:
    """How a rival is trained: grid, patch and overlap in voxels, its one phase, seed."""

    config: Any
    spacing_mm: float
    patch: int
    overlap: int
    game: Phase
    seed: int = 0


def recipes(paper: Any, published: Phase, gpu: Any, small: Any) -> dict[str, Recipe]:
    """A rival's recipes: configurations of its networks, and `published`, the schedule of its paper.

    `gpu` and `small` have CIResDiff's grids, steps and batches of the same names (ours).
    """
    return {
        "paper": Recipe(paper, spacing_mm=1.0, patch=96, overlap=32, game=published),
        "gpu": Recipe(
            gpu,
            spacing_mm=1.0,
            patch=96,
            overlap=32,
            game=Phase(steps=4000, batch=8, learning_rate=1e-3, final_rate=0.05),
        ),
        "small": Recipe(
            small,
            spacing_mm=3.0,
            patch=32,
            overlap=8,
            game=Phase(steps=800, batch=2, learning_rate=1e-3, final_rate=0.05, warmup=50, every=200),
        ),
    }


Build = Callable[[Any, int], nn.Module]


def to_unit(hu: Tensor, region: Tensor) -> Tensor:
    """HU to [-1, 1], not cut above; `OUTSIDE` where the region is not."""
    return torch.where(region > 0, (hu - LOW_HU) * (2 / (HIGH_HU - LOW_HU)) - 1, OUTSIDE)


def chosen_slices(images: Sequence[Tensor], seeds: Sequence[int]) -> list[Tensor]:
    """[b, 1, z, y, x] to `SLICES` of each patch, [b SLICES, 1, y, x], the same for every image."""
    places = [torch.randperm(images[0].shape[2], generator=torch.Generator().manual_seed(s))[:SLICES] for s in seeds]
    return [torch.cat([one[:, at].transpose(0, 1) for one, at in zip(image, places, strict=True)]) for image in images]


class Game(nn.Module):
    """Generator against one conditional judge."""

    players = (Player("generator", ("system.",), 1.0, BETAS), Player("judge", ("judge.",), 1.0, BETAS))

    def __init__(self, system: nn.Module, config: Config) -> None:
        super().__init__()
        self.system, self.config = system, config
        self.judge = PatchGAN(2, config.judge, dims=2 if config.flat else 3)

    def forward(self, source: Tensor, target: Tensor, seeds: Sequence[int], player: str) -> dict[str, Tensor]:
        """Initial HU and region [b, 2, z, y, x], follow-up HU, to the losses of whoever moves."""
        region = source[:, 1:]
        a, b = to_unit(source[:, :1], region), to_unit(target, region)
        if self.config.flat:
            a, b, region = chosen_slices((a, b, region), seeds)
        with seeded_by(seeds):
            made = self.system(a)
        made = torch.where(region > 0, made, OUTSIDE)
        given = self.config.losses
        if player == "judge":
            return {"loss": judge_loss(self.judge(a, b), self.judge(a, made.detach()), given.kind)}
        states = self.judge.features(a, made)
        fooled, distance = verdict_loss(states[-1], True, given.kind), functional.l1_loss(made, b)
        losses = {"fooled": fooled, "l1": distance}
        total = fooled + given.l1 * distance
        if given.rmse:
            losses["rmse"] = masked_rmse(made, b, region)
            total = total + given.rmse * losses["rmse"]
        if given.features:
            real = self.judge.features(a, b)
            pairs = zip(states[:-1], real[:-1], strict=True)
            losses["features"] = torch.stack([functional.l1_loss(one, two.detach()) for one, two in pairs]).mean()
            total = total + given.features * losses["features"]
        return {"loss": total, **losses}


def masked_rmse(made: Tensor, wanted: Tensor, region: Tensor) -> Tensor:
    """Root mean square difference inside the region; a little above 0 where there is none, so that it has a slope."""
    square = ((made - wanted).square() * region).sum() / region.sum().clamp(min=1.0)
    return (square + 1e-8).sqrt()


def fit(method: str, build: Build, data: CohortData, recipe: Recipe, run: Run) -> Bundle:
    """Play from where the game stands."""
    config: Config = recipe.config
    system = seeded(lambda: build(config, recipe.patch), recipe.seed)
    game = seeded(lambda: Game(system, config), recipe.seed + 1)
    train_phase(GAME, game, Patches3d(data.subjects, recipe.patch, recipe.seed + 1), recipe.game, run)
    return to_bundle(method, system, recipe, data.info)


def to_bundle(method: str, system: nn.Module, recipe: Recipe, info: Mapping[str, Any]) -> Bundle:
    """The system's tensors and everything that opens them."""
    volume = {"type": "image", "format": "hounsfield", "modality": "CT", "num_channels": 1, "spatial_shape": ["*"] * 3}
    return Bundle(
        {name: one.detach().cpu().numpy() for name, one in system.state_dict().items()},
        {
            "method": method,
            "config": asdict(recipe.config),
            "recipe": {name: value for name, value in asdict(recipe).items() if name != "config"},
            "parameters": sum(one.numel() for one in system.parameters()),
            "info": dict(info),
            "version": __version__,
            "pytorch_version": torch.__version__.split("+")[0],
            "task": "follow-up CT of pulmonary fibrosis, not for diagnosis",
            "description": f"{method}, trained with concordct",
            "network_data_format": {"inputs": {"image": volume}, "outputs": {"pred": volume}},
        },
    )


@dataclass(frozen=True, eq=False)
class Translated:
    """A rival at work, as `ciresdiff_predict.Predictor` is; nothing is drawn, so both modes give the same.

    Attributes
    ----------
    system : patches, or slices where `flat`, in [-1, 1] to the same. patch, overlap : voxels.
    """

    method: str
    system: nn.Module
    spacing_mm: float
    patch: int
    overlap: int
    flat: bool
    mode: Mode = "sample"
    steps: int = 1

    def predict(
        self, hu: NDArray[np.floating[Any]], region: NDArray[np.bool_], sentence: str, *, seeds: SliceSeeds
    ) -> NDArray[np.float32]:
        """[z, y, x] HU; outside the region and above the window the initial scan. The sentence is not read.

        Raises
        ------
        ConcordctError : an empty region, or a result that is not finite.
        """

        def walk(initial: Tensor, inside: NDArray[np.bool_]) -> Tensor:
            return self.blend(lambda cut: self.system(cut[0]), (initial,), inside)

        return predict_in_region(self.method, hu, region, self.spacing_mm, self.patch, self.overlap, walk)

    def blend(
        self, estimate: Callable[[Sequence[Tensor]], Tensor], volumes: Sequence[Tensor], inside: NDArray[np.bool_]
    ) -> Tensor:
        """Patches through the network, blended where they meet; networks of slices get the patches' slices."""

        def of_patches(cut: Sequence[Tensor]) -> Tensor:
            if not self.flat:
                return estimate(cut)
            shape = cut[0].shape
            slices = [one.transpose(1, 2).reshape(-1, 1, *shape[3:]) for one in cut]
            return estimate(slices).reshape(shape[0], shape[2], 1, *shape[3:]).transpose(1, 2)

        device = next(self.system.parameters()).device
        return blended(
            of_patches,
            volumes,
            inside,
            size=self.patch,
            overlap=self.overlap,
            divisor=self.overlap,
            device=device,
        )


def predict_in_region(
    method: str,
    hu: NDArray[np.floating[Any]],
    region: NDArray[np.bool_],
    spacing_mm: float,
    patch: int,
    overlap: int,
    walk: Callable[[Tensor, NDArray[np.bool_]], Tensor],
) -> NDArray[np.float32]:
    """A prediction inside the region's box, faded into the initial scan at the rim and above the window.

    Parameters
    ----------
    patch, overlap : voxels; a patch is a multiple of the overlap.
    walk : the box in [-1, 1] and where the region is, to the prediction in [-1, 1].
    """
    if not region.any():
        raise ConcordctError("expected a region to predict in, found an empty one")
    first, last = region_box(region)
    box = tuple(slice(int(a), int(b)) for a, b in zip(first, last, strict=True))
    own = tuple(slice(0, int(n)) for n in last - first)
    # Whole overlaps, so that neighbours meet on one grid.
    grown = [max(patch, -(-int(n) // overlap) * overlap) for n in last - first]
    inside, scan = np.zeros(grown, bool), np.zeros(grown, np.float32)
    inside[own], scan[own] = region[box], hu[box]
    with torch.inference_mode():
        unit = to_unit(torch.from_numpy(scan), torch.from_numpy(inside))
        made = walk(unit, inside).numpy()[own]
    if not np.isfinite(made).all():
        raise ConcordctError(f"{method}: expected finite HU, found none")
    found = np.asarray(hu, np.float32).copy()
    old = found[box]
    rim = np.clip(ndimage.distance_transform_edt(region[box]) * spacing_mm / FADE_MM, 0, 1)
    share = rim * np.clip((HIGH_HU - old) / FADE_HU, 0, 1)
    new = (made + 1) * ((HIGH_HU - LOW_HU) / 2) + LOW_HU
    found[box] = (share * new + (1 - share) * old).astype(np.float32)
    return found


def load(method: str, build: Build, bundle: Bundle, mode: Mode = "sample", *, steps: int | None = None) -> Translated:
    """A stored rival at work.

    Raises
    ------
    ConcordctError : a bundle of another method, tensors that do not fit, or steps of a sampling that it does not have.
    """
    if steps is not None:
        raise ConcordctError(f"{method}: expected no number of sampling steps, found {steps}")
    recipe = bundle.metadata["recipe"]
    patch = int(recipe["patch"])
    system = load_system(method, bundle, lambda config: build(config_of(config), patch))
    return Translated(
        method,
        system,
        float(recipe["spacing_mm"]),
        patch,
        int(recipe["overlap"]),
        bool(bundle.metadata["config"]["flat"]),
        mode,
    )


def config_of(stored: Mapping[str, Any]) -> Config:
    """The configuration that was stored as JSON."""
    net = {name: tuple(one) if isinstance(one, list) else one for name, one in stored["net"].items()}
    return Config(net, Judge(**stored["judge"]), Losses(**stored["losses"]), stored["flat"])


def entry(title: str, method: str, build: Build, recipes: Mapping[str, Recipe]) -> FollowupMethod:
    """What the catalogue says of a rival that is one game; see `fit` and `load`."""
    return FollowupMethod(title, partial(load, method, build), partial(fit, method, build), recipes)
