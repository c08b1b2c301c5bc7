"""What DiffusionCT's paper does not print, chosen on validation patches: size of the latent, T and the schedule.

`python -m benchmarks.papers --study diffusionct`. Trainings are short and of equal length; what is compared is the
order of the settings, not how good they can become.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from concordct.methods.network import Recipe, TrainingData, seeded, to_unit
from concordct.methods.paired import diffusionct
from concordct.methods.paired.conditional import Chain, Sampling
from concordct.training.data import Images, Patches
from concordct.training.engine import Run

#: Steps of each phase.
STEPS = 200
#: Channels of the latent, 16 positions each; T and schedule.
SETTINGS: tuple[tuple[int, Chain], ...] = (
    (64, Chain(200, "cosine", "noise", l1=1.0)),
    (128, Chain(200, "cosine", "noise", l1=1.0)),
    (128, Chain(200, "linear", "noise", l1=1.0)),
    (128, Chain(1000, "cosine", "noise", l1=1.0)),
)
#: Ways of sampling, DPM-Solver++ in 10 steps: from noise at T, from noise at 0.9 T, from the source's latent at T / 2.
SAMPLINGS = (Sampling(10), Sampling(10, begin=0.9), Sampling(5, start="source", begin=0.5))
HEADER = [
    "latent",
    "T",
    "schedule",
    "D(E(B))",
    "from T",
    "from 0.9 T",
    "from Z_A at T / 2",
    "its step between neighbours",
]


def _short(channels: int, chain: Chain, steps: int) -> Recipe:
    recipe = diffusionct.RECIPES["small"]
    config = dataclasses.replace(recipe.config, channels=channels, chain=chain)
    phases = tuple((name, dataclasses.replace(phase, steps=steps, every=steps)) for name, phase in recipe.phases)
    return dataclasses.replace(recipe, config=config, phases=phases)


def study(
    train: Sequence[Images], validation: Sequence[Images], folder: Path, steps: int
) -> tuple[list[list[str]], str]:
    """Rows of the table, and what the patches themselves are."""
    patches = Patches(validation, diffusionct.RECIPES["small"].patch, 1)
    batch = patches.batch(0, range(16))
    a, b = (to_unit(torch.from_numpy(image)) for image in (batch.source, batch.target))

    def hu(error: torch.Tensor) -> float:
        return float(error.square().mean().sqrt()) * 1350

    def roughness(image: torch.Tensor) -> float:
        return float(image.diff(dim=3).abs().mean()) * 1350

    rows = []
    for index, (channels, chain) in enumerate(SETTINGS):
        recipe = _short(channels, chain, steps)
        run = Run(folder / f"{index}-{channels}-{chain.steps}-{chain.schedule}-{steps}")
        bundle = diffusionct.fit(TrainingData(train, [], {}), recipe, run)
        system = seeded(lambda recipe=recipe: diffusionct.DiffusionCT(recipe.config), 0)  # type: ignore[misc]
        assert isinstance(system, diffusionct.DiffusionCT)
        system.load_state_dict({name: torch.from_numpy(np.array(one)) for name, one in bundle.tensors.items()})
        random = torch.Generator().manual_seed(0)
        with torch.inference_mode():
            again = system.autoencoder.decode(*system.autoencoder.encode(b))[-1]
            samples = [
                system.translate(a, sampling, lambda shape: torch.randn(shape, generator=random), mean=False)  # noqa: B023
                for sampling in SAMPLINGS
            ]
        found = (hu(again - b), *(hu(one - b) for one in samples), roughness(samples[-1]))
        rows.append([f"{channels} x 16", str(chain.steps), chain.schedule, *(f"{one:.1f}" for one in found)])
    rough = f"step between neighbours {roughness(a):.1f} HU, of the target {roughness(b):.1f} HU"
    return rows, f"Input {hu(a - b):.1f} HU from the target; {rough}."
