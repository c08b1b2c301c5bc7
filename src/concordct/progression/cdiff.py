"""cDiff: a conditional diffusion of slices, a rival of CIResDiff's Table 2.

As published there: a 2D U-Net of 128 channels times (1, 2, 3, 4), the initial slice beside the noisy one, T = 1000,
linear schedule, the noise predicted (Ho et al. 2020, arXiv:2006.11239). MONAI's U-Net. Drawn by DDIM in fewer steps;
`mean` walks the same chain from 0 instead of noise, so that nothing is drawn (ours).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from concordct.diffusion import schedule as standard
from concordct.diffusion.samplers import sample_ddim
from concordct.methods.network import load_system, seeded
from concordct.methods.standardizer import Mode
from concordct.progression.ciresdiff import CENTRE, SPREAD, CohortData
from concordct.progression.method import FollowupMethod
from concordct.progression.patches3d import Patches3d
from concordct.progression.translation3d import (
    GAME,
    OUTSIDE,
    Recipe,
    Translated,
    chosen_slices,
    predict_in_region,
    recipes,
    to_bundle,
    to_unit,
)
from concordct.training.bundle import Bundle
from concordct.training.engine import Phase, Run, train_phase
from concordct.volumes.seeds import SliceSeeds

METHOD = "cdiff"


@dataclass(frozen=True)
class Config:
    """The network and its chain.

    Attributes
    ----------
    widths : channels of the U-Net's scales, of which the last `attention` look at every place.
    steps : T. sampling_steps : at work.
    centre, spread : of the region, in [-1, 1]; the chain walks in units of them. 0 and 1 is [-1, 1] itself.
    """

    widths: tuple[int, ...] = (128, 256, 384, 512)
    blocks: int = 2
    attention: int = 2
    steps: int = 1000
    sampling_steps: int = 50
    centre: float = 0.0
    spread: float = 1.0


#: CIResDiff's `CENTRE` and `SPREAD` in [-1, 1]. The noise of a linear chain is made for data as large as itself: what
#: spreads less is drowned early, and an error of the noise is larger beside it.
_CENTRE, _SPREAD = 2 * CENTRE - 1, 2 * SPREAD


RECIPES: dict[str, Recipe] = recipes(
    Config(),
    Phase(epochs=400, batch=4, learning_rate=1e-4, ema=0.9999),
    Config((64, 128, 192, 256), sampling_steps=25, centre=_CENTRE, spread=_SPREAD),
    Config((16, 32, 48), blocks=1, attention=1, sampling_steps=10, centre=_CENTRE, spread=_SPREAD),
)


class CDiff(nn.Module):
    """The network and its chain."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        from monai.networks.nets import DiffusionModelUNet

        scales = len(config.widths)
        self.config = config
        self.net = DiffusionModelUNet(
            spatial_dims=2,
            in_channels=2,
            out_channels=1,
            channels=config.widths,
            attention_levels=tuple(level >= scales - config.attention for level in range(scales)),
            num_res_blocks=config.blocks,
            num_head_channels=config.widths[0],
            norm_num_groups=min(16, config.widths[0]),
        )
        self.schedule = standard.linear_schedule(config.steps)

    def to_units(self, image: Tensor) -> Tensor:
        """[-1, 1] to what the chain walks in."""
        return (image - self.config.centre) / self.config.spread

    def from_units(self, x: Tensor) -> Tensor:
        """Back to [-1, 1]."""
        return x * self.config.spread + self.config.centre

    def noise(self, x: Tensor, initial: Tensor, step: Tensor) -> Tensor:
        """[b, 1, y, x] noisy and initial slices, [b] steps 1 ... T, to the noise."""
        return self.net(torch.cat([x, initial], dim=1), step)

    def denoise(self, x: Tensor, time: Tensor, initial: Tensor) -> Tensor:
        """The estimate of x_0 that the predicted noise leaves, cut at the scale's ends as Ho et al. do."""
        step = (time * self.config.steps).round().long()
        alpha_bar = self.schedule.alpha_bar.to(x.device)[step].reshape(-1, 1, 1, 1).to(x.dtype)
        # Ho et al., eq. 15: x_0 = (x_t - sqrt(1 - ab_t) eps) / sqrt(ab_t)
        found = (x - (1 - alpha_bar).sqrt() * self.noise(x, initial, step)) / alpha_bar.sqrt()
        ends = self.to_units(torch.tensor([-1.0, 1.0]))
        return found.clamp(float(ends[0]), float(ends[1]))


class Task(nn.Module):
    """The loss: Ho et al., eq. 14, on slices of patches."""

    def __init__(self, system: CDiff) -> None:
        super().__init__()
        self.system = system

    def forward(self, source: Tensor, target: Tensor, seeds: Sequence[int]) -> dict[str, Tensor]:
        """Initial HU and region, follow-up HU, to the mean square of the noise inside the region."""
        region = source[:, 1:]
        a, b = to_unit(source[:, :1], region), to_unit(target, region)
        a, b, region = chosen_slices((self.system.to_units(a), self.system.to_units(b), region), seeds)
        random = torch.Generator().manual_seed(seeds[0])
        step = torch.randint(1, self.system.config.steps + 1, (len(a),), generator=random).to(a.device)
        noise = torch.randn(a.shape, generator=random).to(a.device)
        error = self.system.noise(standard.q_sample(self.system.schedule, b, step, noise), a, step) - noise
        return {"loss": (error.square() * region).sum() / region.sum().clamp(min=1.0)}


def fit(data: CohortData, recipe: Recipe, run: Run) -> Bundle:
    """Train it from where it stands."""
    system = seeded(lambda: CDiff(recipe.config), recipe.seed)
    assert isinstance(system, CDiff)
    train_phase(GAME, Task(system), Patches3d(data.subjects, recipe.patch, recipe.seed + 1), recipe.game, run)
    return to_bundle(METHOD, system, recipe, data.info)


@dataclass(frozen=True, eq=False)
class Diffused(Translated):
    """The chain walked for the whole volume: estimates are blended at every step, the noise is drawn once."""

    def predict(
        self, hu: NDArray[np.floating[Any]], region: NDArray[np.bool_], sentence: str, *, seeds: SliceSeeds
    ) -> NDArray[np.float32]:
        """[z, y, x] HU, see `Translated.predict`."""
        system: CDiff = self.system  # type: ignore[assignment]
        chain = standard.respaced(system.schedule, standard.trailing(system.config.steps, self.steps))

        def walk(initial: Tensor, inside: NDArray[np.bool_]) -> Tensor:
            initial = system.to_units(initial)
            outside = float(system.to_units(torch.tensor(OUTSIDE)))
            start = torch.zeros_like(initial)
            if self.mode == "sample":
                start = torch.from_numpy(seeds.at(0).standard_normal(tuple(initial.shape), dtype=np.float32))
            within = torch.from_numpy(inside)

            def denoise(x: Tensor, time: Tensor, condition: Tensor) -> Tensor:
                def estimate(cut: Sequence[Tensor]) -> Tensor:
                    return system.denoise(cut[0], time.to(cut[0].device).expand(len(cut[0])), cut[1])

                return torch.where(within, self.blend(estimate, (x[0], condition), inside), outside)[None]

            return system.from_units(sample_ddim(denoise, start[None], initial, chain)[0])

        return predict_in_region(self.method, hu, region, self.spacing_mm, self.patch, self.overlap, walk)


def load(bundle: Bundle, mode: Mode = "sample", *, steps: int | None = None) -> Diffused:
    """A stored model at work.

    Raises
    ------
    ConcordctError : a bundle of another method, or tensors that do not fit.
    """

    def build(config: Mapping[str, Any]) -> CDiff:
        return CDiff(replace(Config(**config), widths=tuple(config["widths"])))

    system, recipe = load_system(METHOD, bundle, build), bundle.metadata["recipe"]
    steps = steps or int(bundle.metadata["config"]["sampling_steps"])
    sizes = int(recipe["patch"]), int(recipe["overlap"])
    return Diffused(METHOD, system, float(recipe["spacing_mm"]), *sizes, True, mode, steps)


ENTRY = FollowupMethod("cDiff, slice by slice", load, fit, RECIPES)
