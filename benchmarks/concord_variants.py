"""What the flagship's network could be instead: variants of its training, and of what serves it, for the ablation.

- `flow`: the network that comes with the package, at the variants' number of steps: their twin.
- `without-condition`: not told which kernel pair it serves.
- `without-maps`: not told the transported texture and the anatomy. Given the very texture that a flow starts from, all
  randomness but the drawn noise is known at the start, and no flow leads from one point to a distribution; without it
  the flow is one between two distributions (rectified flow, Liu et al. 2022, arXiv:2209.03003).
- `bands`, `patches`: terms beside the velocity's error, on samples of one evaluation: log power in bands of the
  spectrum; log energy of windows of 16 pixels behind the cosine filters of 4 x 4 pixels.
- `regression`: one evaluation, from the transfer to the target by squared error: no process, no noise.
- `source`: no physics first. Residual shifting along the chord from the unfiltered scan (and noise) to the target.

    python -m benchmarks.concord_weights --variant bands
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional

from concordct.methods.concord.inputs import ANATOMY_HU, MAPS, TEXTURE_LIMIT, Curves, Prepared, curves, prepare
from concordct.methods.concord.network import shifted
from concordct.methods.concord.standardizer import ConcordStandardizer, held
from concordct.methods.concord.training import AT_START, Cut, FlowTask, RemainderPatches, Slice
from concordct.nets.remainder import RemainderUNet
from concordct.signal.spectra import from_cosines, to_cosines
from concordct.volumes.seeds import SliceSeeds
from concordct.volumes.volume import AIR_HU, Volume

#: Optimizer steps of each variant.
STEPS = 800
#: Weight of the terms beside the velocity's error: each is worth a quarter to a half of it at the beginning.
WEIGHT = {"bands": 0.5, "patches": 0.3}
#: Powers below this, where white noise of the texture's level has 1, do not count.
LEAST_POWER = 0.01
RINGS, WINDOW, FILTER = 8, 16, 4
#: Deviation, in levels, of the noise that shifting from the source starts with; its residuals are cut at the limit.
SOURCE_NOISE, SOURCE_LIMIT = 1.0, 12.0
#: What the network sees of the source's texture is what this blur takes away, pixels.
DETAIL_PIXELS = 3.0

Image = NDArray[np.float32]


class Without(nn.Module):
    """A network that is not told something: zeros in its place, and weights of zero for what will stand there."""

    def __init__(self, network: RemainderUNet, what: str) -> None:
        super().__init__()
        self.network, self.what = network, what
        first = network.condition[0] if what == "condition" else network.stem
        folded = network.config.fold**2
        untold = slice(0, network.config.condition) if what == "condition" else slice(folded, MAPS * folded)
        with torch.no_grad():
            torch.as_tensor(first.weight)[:, untold] = 0

    def forward(self, state: Tensor, maps: Tensor, condition: Tensor, shift: Tensor) -> Tensor:
        """As the network."""
        if self.what == "condition":
            condition = torch.zeros_like(condition)
        else:
            maps = torch.cat([torch.zeros_like(maps[:, :-1]), maps[:, -1:]], dim=1)
        return torch.as_tensor(self.network(state, maps, condition, shift))


class TruthPatches(RemainderPatches):
    """Batches with the true texture behind the velocity."""

    def process(self, found: Slice, cut: Cut, random: np.random.Generator) -> tuple[Image, Image, float]:
        """As the base."""
        state, velocity, shift = super().process(found, cut, random)
        return state, np.concatenate([velocity, cut(found.truth)[None]]), shift


class StatisticTask(FlowTask):
    """The velocity's error, and that of a statistic of samples of one evaluation, for `TruthPatches`."""

    def __init__(self, network: nn.Module, statistic: Callable[[Tensor], Tensor], weight: float) -> None:
        super().__init__(network)
        self.statistic, self.weight = statistic, weight

    def forward(self, source: Tensor, target: Tensor, seeds: tuple[int, ...]) -> dict[str, Tensor]:
        """As the base."""
        velocity = self.velocity(source)
        error = (velocity - target[:, :1]).square().mean()
        # Samples of one evaluation begin at the start, and nowhere else.
        start = (source[:, -1, 0, 0] == 1).float()
        made, true = (self.statistic(one).flatten(1) for one in (source[:, :1] - velocity, target[:, 1:]))
        term = ((made - true).square().mean(1) * start).sum() / start.sum().clamp(min=1)
        return {
            "loss": error + self.weight * term,
            "share": error / target[:, :1].square().mean(),
            "statistic": term,
        }


def band_powers(texture: Tensor) -> Tensor:
    """[b, 1, y, x] to the log power in rings of the spectrum, [b, ring]."""
    count = texture.shape[-1]
    hann = torch.hann_window(count, periodic=False)
    window = hann[:, None] * hann[None]
    power = torch.fft.rfft2(texture[:, 0] * window).abs().square() / window.square().sum()
    frequency = torch.hypot(torch.fft.fftfreq(count)[:, None], torch.fft.rfftfreq(count)[None])
    ring = (frequency / math.sqrt(0.5) * RINGS).long().clamp(max=RINGS - 1).flatten()
    sums = torch.zeros(len(texture), RINGS).index_add(1, ring, power.flatten(1))
    return (sums / torch.bincount(ring, minlength=RINGS) + LEAST_POWER).log()


def window_energies(texture: Tensor) -> Tensor:
    """[b, 1, y, x] to the log energy of windows behind each filter but the mean, [b, filter, y, x]."""
    at = torch.arange(FILTER) + 0.5
    waves = [torch.cos(torch.pi / FILTER * k * at) * math.sqrt((1 if k == 0 else 2) / FILTER) for k in range(FILTER)]
    bank = torch.stack([a[:, None] * b[None] for a in waves for b in waves])[1:, None]
    energy = functional.conv2d(texture, bank).square()
    return (functional.avg_pool2d(energy, WINDOW, WINDOW // 2) + LEAST_POWER).log()


class RegressionPatches(RemainderPatches):
    """One place, the start: the transfer's texture without noise."""

    def process(self, found: Slice, cut: Cut, random: np.random.Generator) -> tuple[Image, Image, float]:
        """As the base."""
        state = cut(found.one.transferred - found.one.edges)
        return state, (state - cut(found.truth))[None], 1.0


@dataclass(frozen=True, eq=False)
class Unfiltered(Prepared):
    """What the network is given where nothing was filtered first: `source` [y, x], HU, at the level of `filtered`."""

    source: Image
    filtered: Prepared

    @cached_property
    def maps(self) -> Image:
        """As the base."""
        detail = (self.source - ndimage.gaussian_filter(self.source, DETAIL_PIXELS)) / self.level
        seen = np.clip(self.source, -ANATOMY_HU, ANATOMY_HU) / np.float32(ANATOMY_HU / 2)
        return np.stack([np.clip(detail, -TEXTURE_LIMIT, TEXTURE_LIMIT), seen, self.filtered.maps[2]])


def from_source(one: Prepared, source: Image) -> Unfiltered:
    """A slice for a network that starts from its source."""
    return Unfiltered(**{field.name: getattr(one, field.name) for field in fields(one)}, source=source, filtered=one)


class SourcePatches(RemainderPatches):
    """Residual shifting from the unfiltered source, in units of the level."""

    def task(self, one: Prepared, on: Curves, source: Image, target: Image) -> tuple[Prepared, Image]:
        """As the base."""
        return from_source(one, source), np.clip((target - source) / one.level, -SOURCE_LIMIT, SOURCE_LIMIT)

    def process(self, found: Slice, cut: Cut, random: np.random.Generator) -> tuple[Image, Image, float]:
        """As the base."""
        truth = cut(found.truth)
        start = random.standard_normal(truth.shape, dtype=np.float32) * np.float32(SOURCE_NOISE)
        shift = 1.0 if random.random() < AT_START else float(random.random())
        state = np.float32(1 - shift) * truth + np.float32(shift) * start
        return state, (start - truth)[None], shift


@dataclass(frozen=True)
class Training:
    """How a variant is trained: its batches, and its task around a network."""

    patches: type[RemainderPatches] = RemainderPatches
    task: Callable[[RemainderUNet], nn.Module] = FlowTask


TRAININGS: Mapping[str, Training] = {
    "flow": Training(),
    "without-condition": Training(task=lambda network: FlowTask(Without(network, "condition"))),
    "without-maps": Training(task=lambda network: FlowTask(Without(network, "maps"))),
    "bands": Training(TruthPatches, lambda network: StatisticTask(network, band_powers, WEIGHT["bands"])),
    "patches": Training(TruthPatches, lambda network: StatisticTask(network, window_energies, WEIGHT["patches"])),
    "regression": Training(RegressionPatches),
    "source": Training(SourcePatches),
}


@dataclass(frozen=True, eq=False)
class Regression(ConcordStandardizer):
    """`regression` at work; with `bound` its texture is held to the transport's power; without steps, no network."""

    def __call__(self, volume: Volume, *, generator: SliceSeeds) -> Volume:
        """As the base."""
        assert self.transport is not None
        on = curves(self.model, self.transport, volume.shape[1:], volume.spacing_mm[1:])
        hu = np.empty_like(volume.hu)
        for index, one in enumerate(prepare(self.base, self.transport, on, volume)):
            hu[index] = one.base
            if one.body is None:
                continue
            texture = one.transferred - one.edges
            if self.steps:
                texture = shifted(self.network, one, texture, steps=1)
            if self.bound:
                noise = from_cosines(self.base.white(volume, index, generator) * on.drawn)
                texture = held(texture, one.texture + noise, on, one.inside)
            written = one.level * (texture + one.edges - one.transferred)
            hu[index] += from_cosines(to_cosines(written + np.float32(AIR_HU)) * (on.free > 0))
        return volume.with_hu(hu)


@dataclass(frozen=True, eq=False)
class FromSource(ConcordStandardizer):
    """`source` at work."""

    def __call__(self, volume: Volume, *, generator: SliceSeeds) -> Volume:
        """As the base."""
        assert self.transport is not None
        on = curves(self.model, self.transport, volume.shape[1:], volume.spacing_mm[1:])
        hu = volume.hu.copy()
        for index, one in enumerate(prepare(self.base, self.transport, on, volume)):
            if one.body is None:
                continue
            start = from_cosines(self.base.white(volume, index, generator)) * np.float32(SOURCE_NOISE)
            residual = shifted(self.network, from_source(one, volume.hu[index]), start, steps=self.steps)
            inside = np.zeros_like(one.inside)
            inside[one.body[0] : one.body[1], one.body[2] : one.body[3]] = True
            hu[index] += np.where(inside, one.level * residual, 0)
        return volume.with_hu(hu)


SERVED: Mapping[str, type[ConcordStandardizer]] = {"regression": Regression, "source": FromSource}


def served(name: str, work: ConcordStandardizer) -> ConcordStandardizer:
    """A model with a variant's network, served as the variant asks."""
    given: dict[str, Any] = {one.name: getattr(work, one.name) for one in fields(work)}
    return SERVED[name](**given)
