"""Why ResViT stays at no change and cDiff below it, on the cohort of `benchmarks.followup`: short trainings that tell.

python -m benchmarks.followup_why     # minutes after `make bench-followup`, whose cohort it takes; resumes

Everything is trained on fold 0's training patients but twelve, who judge: no test patient is looked at.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn

from benchmarks.followup_models import SEED, SPACING_MM
from benchmarks.followup_subjects import folds, usable
from benchmarks.results import ROOT, once, table, write_section
from concordct.diffusion import schedule as standard
from concordct.diffusion.samplers import sample_ddim
from concordct.nets.transformers2d import ResViT, TransUNet
from concordct.pipelines.followup_data import Prepared
from concordct.progression import cdiff, resvit, transunet
from concordct.progression.ciresdiff import CohortData
from concordct.progression.patches3d import Patches3d
from concordct.progression.translation3d import OUTSIDE, Config, fit, to_unit
from concordct.training.engine import Run

#: Steps of each training; cDiff has half of the recipe's.
STEPS, CDIFF_STEPS = 250, 400
#: Patients who judge, batches of two of their patches, and every how many-th slice of them.
JUDGES, BATCHES, EVERY = 12, 8, 8
#: Least share of a slice that is region.
FULL = 0.3
#: Widths of a Gaussian, voxels; steps of cDiff's chain that are looked at, and lengths that it is walked in.
WIDTHS, SHOWN, WALKS = (0.3, 0.5, 0.7), (50, 200, 300, 500, 700, 1000), (4, 10)
#: Initial slices, the follow-up's, and the region, [n, 1, y, x].
Slices = tuple[Tensor, Tensor, Tensor]


def slices_of(subjects: Sequence[Prepared], patch: int) -> Slices:
    """Slices of patches, in [-1, 1]."""
    patches = Patches3d([one.data for one in subjects], patch, SEED)
    batches = [patches.batch(step, range(2)) for step in range(BATCHES)]

    def flat(volumes: Tensor) -> Tensor:
        return volumes[:, :, EVERY // 2 :: EVERY].transpose(1, 2).reshape(-1, 1, *volumes.shape[3:])

    source, target = (
        torch.from_numpy(np.concatenate(one)) for one in zip(*((b.source, b.target) for b in batches), strict=True)
    )
    region = flat(source[:, 1:])
    kept = region.flatten(1).mean(dim=1) >= FULL
    return to_unit(flat(source[:, :1]), region)[kept], to_unit(flat(target), region)[kept], region[kept]


def gain(made: Tensor, slices: Slices) -> float:
    """PSNR above no change in the region, dB, of all slices together."""
    initial, wanted, region = slices
    missed, still = (((one - wanted).square() * region).sum() for one in (made, initial))
    return -10 * math.log10(float(missed / still))


def smoothed(subjects: Sequence[Prepared], width: float) -> float:
    """PSNR above no change in the lungs, dB, of the initial scan through a Gaussian."""
    missed = still = 0.0
    for one in subjects:
        lungs, wanted = np.asarray(one.data.lungs), np.asarray(one.data.followup, np.float32)
        hu = np.asarray(one.data.initial, np.float32)
        missed += float(((ndimage.gaussian_filter(hu, width) - wanted)[lungs] ** 2).sum())
        still += float(((hu - wanted)[lungs] ** 2).sum())
    return -10 * math.log10(missed / still)


def without_finest(config: Config, patch: int) -> nn.Module:
    """TransUNet whose decoder is not shown the state at full resolution."""
    net = TransUNet(size=patch, **config.net)
    weight = net.up[-1][0].weight
    seen = torch.ones_like(weight)
    seen[:, -config.net["widths"][0] :] = 0
    with torch.no_grad():
        weight.mul_(seen)
    weight.register_hook(lambda slope: slope * seen)
    return net


def without_transformer(config: Config, patch: int) -> nn.Module:
    """ResViT of convolutions alone, the first stage of the published training."""
    return ResViT(size=patch, **{**config.net, "attend": ()})


def without_norms(config: Config, patch: int) -> nn.Module:
    """ResViT that knows its channels' means."""
    net = resvit.build(config, patch)
    for module in list(net.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.InstanceNorm2d):
                setattr(module, name, nn.Identity())
    return net


def wider(config: Config, patch: int) -> nn.Module:
    """ResViT of twice as many channels."""
    return ResViT(size=patch, **{**config.net, "width": 2 * config.net["width"]})


#: Trainings by a rival's recipe: its module, and what builds the network.
Build = Callable[[Config, int], nn.Module]
GAMES: dict[str, tuple[Any, Build]] = {
    "TransUNet": (transunet, transunet.build),
    "TransUNet, decoder without the finest state": (transunet, without_finest),
    "ResViT": (resvit, resvit.build),
    "ResViT, twice as wide": (resvit, wider),
    "ResViT, no norms": (resvit, without_norms),
    "ResViT, no transformer": (resvit, without_transformer),
}


def played(folder: Path, name: str, train: Sequence[Prepared], judges: Sequence[Prepared]) -> float:
    """`gain` of a short training."""
    module, build = GAMES[name]
    recipe = module.RECIPES["small"]
    recipe = replace(recipe, spacing_mm=SPACING_MM, seed=SEED, game=replace(recipe.game, steps=STEPS))
    built: list[nn.Module] = []

    def kept(config: Config, patch: int) -> nn.Module:
        built.append(build(config, patch))
        return built[-1]

    fit(module.METHOD, kept, CohortData([one.data for one in train], {}), recipe, Run(folder))
    initial, wanted, region = slices_of(judges, recipe.patch)
    with torch.inference_mode():
        made = torch.where(region > 0, built[0].eval()(initial), OUTSIDE)
    return gain(made, (initial, wanted, region))


def noised(folder: Path, units: bool, train: Sequence[Prepared], judges: Sequence[Prepared]) -> dict[str, list[float]]:
    """cDiff after a short training: by step, the error of the noise and `gain` of x_0 from the true state; by length
    of the walk, `gain` of what it comes to from 0 (`mean`) and from noise (`sample`).
    """
    recipe = cdiff.RECIPES["small"]
    config = recipe.config if units else replace(recipe.config, centre=0.0, spread=1.0)
    game = replace(recipe.game, steps=CDIFF_STEPS)
    recipe = replace(recipe, config=config, spacing_mm=SPACING_MM, seed=SEED, game=game)
    bundle = cdiff.fit(CohortData([one.data for one in train], {}), recipe, Run(folder))
    system: cdiff.CDiff = cdiff.load(bundle).system  # type: ignore[assignment]
    slices = slices_of(judges, recipe.patch)
    initial, wanted, region = system.to_units(slices[0]), system.to_units(slices[1]), slices[2]
    noise = torch.randn(initial.shape, generator=torch.Generator().manual_seed(SEED))
    found: dict[str, list[float]] = {}
    with torch.inference_mode():
        for step in SHOWN:
            t = torch.full((len(initial),), step)
            x = standard.q_sample(system.schedule, wanted, t, noise)
            error = ((system.noise(x, initial, t) - noise).square() * region).sum() / region.sum()
            x0 = system.denoise(x, t / config.steps, initial)
            found[f"step {step}"] = [float(error), gain(system.from_units(x0), slices)]
        for walk in WALKS:
            chain = standard.respaced(system.schedule, standard.trailing(config.steps, walk))

            def denoise(x: Tensor, time: Tensor, condition: Tensor) -> Tensor:
                x0 = system.denoise(x, time.expand(len(x)), condition)
                return torch.where(region > 0, x0, float(system.to_units(torch.tensor(OUTSIDE))))

            made = (sample_ddim(denoise, x, initial, chain) for x in (torch.zeros_like(initial), noise))
            found[f"{walk} steps"] = [gain(system.from_units(one), slices) for one in made]
    return found


def main() -> None:
    """Run what is not there yet, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "followup", help="of the study")
    parser.add_argument("--out", type=Path, help="what this keeps; the study's folder `why` without")
    given = parser.parse_args()
    out: Path = given.out or given.folder / "why"
    ready = usable(given.folder / "cohort" / "cohort.csv", given.folder / "subjects", lambda: False)
    parts = folds(ready)
    judging = parts[2][:JUDGES]
    judges = [ready[i] for i in judging]
    train = [ready[i] for part in parts[1:] for i in part if i not in judging]
    games = {
        name: once(out / f"{index}.json", lambda: played(out / f"run-{index}", name, train, judges))  # noqa: B023
        for index, name in enumerate(GAMES)
    }
    blur = {width: once(out / f"blur-{width:g}.json", lambda: smoothed(judges, width)) for width in WIDTHS}  # noqa: B023
    chains = {
        name: once(out / f"cdiff-{units:d}.json", lambda: noised(out / f"run-cdiff-{units:d}", units, train, judges))  # noqa: B023
        for name, units in (("[-1, 1]", False), ("units of the region's spread", True))
    }
    text = page_of(len(train), games, blur, chains)
    print(text)
    write_section("followup-why", "python -m benchmarks.followup_why", text, seed=str(SEED))


def page_of(
    trained: int, games: dict[str, float], blur: dict[float, float], chains: dict[str, dict[str, list[float]]]
) -> str:
    """The page."""
    header = ["step", *(f"{name}: error of the noise, gain of x_0" for name in chains)]
    steps = [
        [str(step), *(f"{one[f'step {step}'][0]:.4f}, {one[f'step {step}'][1]:+.1f}" for one in chains.values())]
        for step in SHOWN
    ]
    walks = [
        [str(walk), *(f"{one[f'{walk} steps'][0]:+.1f}, {one[f'{walk} steps'][1]:+.1f}" for one in chains.values())]
        for walk in WALKS
    ]
    return "\n\n".join([
        f"Short trainings on {trained} of the [follow-up study](followup.md)'s simulated patients, judged on slices of "
        f"patches of {JUDGES} others, none of them a test patient of its fold 0; PSNR above no change, dB.",
        "## What TransUNet gains and ResViT does not",
        f"{STEPS} steps of recipe `small`, the same patches for all.",
        table(["network", "gain, dB"], [[name, f"{value:+.2f}"] for name, value in games.items()]),
        "No training at all, the initial scan through a Gaussian, in the lungs.",
        table(["width, voxels", "gain, dB"], [[f"{width:g}", f"{value:+.2f}"] for width, value in blur.items()]),
        "TransUNet's gain is mostly noise taken from the initial scan, voxel by voxel, as a Gaussian of half a voxel "
        "takes some; for that it needs its state at full resolution, and without it, it stands where ResViT stands. "
        "ResViT, as published, hands everything through a state of a quarter of the size, and has no other way to the "
        "output than the source that is added (ours). More channels, no norms, no transformer (the first stage of its "
        "published training, which is left out here) change nothing. Its loss falls in the study because the first "
        "patches are harder, for every method. What is left to gain is the disease's change, which an absolute "
        "difference hardly rewards where it is unsure: its best guess is the median (a reading, not tested).",
        "## What cDiff lacks",
        f"{CDIFF_STEPS} steps, half of the recipe's. The noise is predicted; beside its mean square error stands the "
        "gain of the x_0 that it gives from the true noisy follow-up, cut at the scale's ends.",
        table(header, steps),
        "Where the chain begins, x_t is the noise, and a network that handed it through would err by less than 1e-4; "
        "after so few steps it errs by far more, and x_0 takes that error times sqrt((1 - alpha_bar) / alpha_bar), "
        "157 at T and 3.4 in the middle, although the initial scan beside it is a better guess. A walk starts there "
        "and hands on what it got wrong: gains of what it comes to, from 0 (`mean`) and from noise (`sample`).",
        table(["steps of the walk", *chains], walks),
        "So neither cutting x_0 (done from the first) nor more steps makes up for a network that saw too little. What "
        "is mended: the chain walks in units of the region's spread, as the rows DM do, not in [-1, 1], of which "
        "lungs fill a part while the schedule's noise is made for all of it; it helps x_0 at every step and the walk "
        "from 0, not the walk from noise. Ho et al. trained 800,000 steps.",
    ])  # fmt: skip


if __name__ == "__main__":
    main()
