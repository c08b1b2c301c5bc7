"""Conditional diffusion of a state (latents at one or several scales, or an image) given the source's.

Ho et al. 2020 (arXiv:2006.11239) for predicting the noise, as both papers print it; Salimans & Ho 2022
(arXiv:2202.00512) for v, here of the *residual* target - source in units of its own spread: the source already says
most of the target, and a network that predicts the noise must first learn to copy it. The target enters `loss` alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from concordct.diffusion.samplers import (
    Draw,
    sample_ddim,
    sample_ddpm,
    sample_dpmpp_2m,
    start_from_noise,
    start_from_source,
)
from concordct.diffusion.schedule import Kind, q_sample, respaced, schedule, trailing

Predicts = Literal["noise", "residual"]
Sampler = Literal["ddpm", "ddim", "dpmpp"]
Start = Literal["noise", "source"]

#: What differs from its surroundings of this many pixels is shown to the network as the source's detail.
DETAIL_PIXELS = 12

#: Estimates of unit-normal latents are cut here when the network predicts the noise: at the last steps the division by
#: sqrt(alpha_bar) turns small errors into wild latents (Ho et al. 2020 cut images at 1).
LARGEST_LATENT = 6.0


@dataclass(frozen=True)
class Chain:
    """The forward process and what the network predicts.

    Attributes
    ----------
    steps : T. schedule : how betas grow. predicts : "noise", or "residual" for v of target - source.
    l1 : weight of the L1 term beside the mean square (DiffusionCT, section 3.2).
    """

    steps: int
    schedule: Kind
    predicts: Predicts
    l1: float = 0.0


@dataclass(frozen=True)
class Sampling:
    """How a sample is drawn.

    Attributes
    ----------
    steps : of the T. sampler : "ddpm", "ddim" or "dpmpp" (DPM-Solver++ 2M).
    start : "noise", or "source" for LTDiff++'s Z_A + noise. begin : share of T at which the start lies; below 1 pure
        noise is taken for what still holds a little of the signal, where a network that predicts the noise is blind.
    depth : of UNet++, for pruning; 0 for all of it.
    """

    steps: int
    sampler: Sampler = "dpmpp"
    start: Start = "noise"
    begin: float = 1.0
    depth: int = 0


#: What of a diffusion's sampling a caller may override.
SAMPLING = frozenset(field.name for field in fields(Sampling))


class ConditionalDiffusion(nn.Module):
    """A network, a chain, and the spread of the residual at each scale.

    Parameters
    ----------
    net : (noisy state, time, condition) -> prediction, lists of tensors [b, c, ...].
    channels : of the state at each scale.
    detail : edge of the surroundings, odd, whose mean is taken from the source to show its detail beside it, in units
        of the residual's spread; the condition then has twice the state's channels. 0: the source alone.
    """

    def __init__(self, net: nn.Module, chain: Chain, channels: Sequence[int], *, detail: int = 0) -> None:
        super().__init__()
        self.net, self.chain, self.schedule = net, chain, schedule(chain.schedule, chain.steps)
        self.detail = detail
        for index, count in enumerate(channels):
            self.register_buffer(f"spread_{index}", torch.ones(count))

    def set_spread(self, spreads: Sequence[Tensor]) -> None:
        """Take the standard deviation, [c], of target - source at each scale; used when the residual is predicted."""
        for index, spread in enumerate(spreads):
            self.get_buffer(f"spread_{index}").copy_(spread.clamp_min(1e-4))

    def loss(
        self, source: Sequence[Tensor], target: Sequence[Tensor], seeds: Sequence[int]
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Losses at a random step for each sample, and the estimate of the target that goes with them."""
        a, b = pack(self._scaled(source)), pack(self._scaled(target))
        t, noise = _draws(seeds, self.chain.steps, b.shape[1])
        t, noise = t.to(b.device), noise.to(b.device)
        x = q_sample(self.schedule, b, t, noise)
        alpha, sigma = self._levels(t, x)
        found = self._predict(x, t.to(x.dtype) / self.chain.steps, source, alpha)
        # Salimans & Ho 2022, appendix D: v = alpha eps - sigma x_0, of the residual.
        wanted = noise if self.chain.predicts == "noise" else alpha * noise - sigma * (b - a)
        square = (found - wanted).square().mean()
        losses = {"loss": square, "square": square}
        if self.chain.l1:
            # DiffusionCT, section 3.2: E |eta_t - p_theta(Z_A, Z_B_t)|
            losses["l1"] = (found - wanted).abs().mean()
            losses["loss"] = square + self.chain.l1 * losses["l1"]
        estimate = self._estimate(found, x, a, alpha, sigma, cut=False)
        return losses, self._unscaled(unpack(estimate, source))

    def denoise(self, x: Tensor, time: Tensor, condition: Sequence[Tensor]) -> Tensor:
        """The samplers' `denoise`: packed state, time and the source's latents to the estimate of x_0."""
        t = (time.double() * self.chain.steps).round().long()
        alpha, sigma = self._levels(t, x)
        found = self._predict(x, time.to(x.dtype), condition, alpha)
        return self._estimate(found, x, pack(self._scaled(condition)), alpha, sigma, cut=True)

    def sample(
        self, source: Sequence[Tensor], sampling: Sampling, draw: Callable[[tuple[int, int]], Tensor]
    ) -> list[Tensor]:
        """Draw the target's state given the source's."""
        a = pack(self._scaled(source))
        last = max(1, round(sampling.begin * self.chain.steps))
        chain = respaced(self.schedule, trailing(last, min(sampling.steps, last)))
        fresh: Draw = lambda: draw((a.shape[0], a.shape[1])).to(a.device)  # noqa: E731
        x = start_from_source(chain, a, draw=fresh) if sampling.start == "source" else start_from_noise(fresh)
        if sampling.sampler == "ddpm":
            x = sample_ddpm(self.denoise, x, source, chain, draw=fresh)
        elif sampling.sampler == "ddim":
            x = sample_ddim(self.denoise, x, source, chain)
        else:
            x = sample_dpmpp_2m(self.denoise, x, source, chain)
        return self._unscaled(unpack(x, source))

    def mean(self, source: Sequence[Tensor]) -> list[Tensor]:
        """The estimate from no signal at all: the mean of the target's state given the source's."""
        a = pack(self._scaled(source))
        time = torch.ones(a.shape[0], device=a.device)
        return self._unscaled(unpack(self.denoise(torch.zeros_like(a), time, source), source))

    def _levels(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        alpha_bar = self.schedule.alpha_bar.to(like.device)[t][:, None]
        return alpha_bar.sqrt().to(like.dtype), (1 - alpha_bar).sqrt().to(like.dtype)

    def _predict(self, x: Tensor, time: Tensor, source: Sequence[Tensor], alpha: Tensor) -> Tensor:
        shown = x if self.chain.predicts == "noise" else x - alpha * pack(self._scaled(source))
        return pack(self.net(unpack(shown, source), time, self._shown(source))).float()

    def _shown(self, source: Sequence[Tensor]) -> Sequence[Tensor]:
        # The texture that the residual follows from is a few hundredths of a source of unit variance.
        if not self.detail:
            return source
        found = []
        for index, one in enumerate(source):
            around = functional.avg_pool2d(one, self.detail, 1, self.detail // 2, count_include_pad=False)
            found.append(torch.cat([one, (one - around) / self._spread(index, one)], dim=1))
        return found

    def _estimate(self, found: Tensor, x: Tensor, a: Tensor, alpha: Tensor, sigma: Tensor, *, cut: bool) -> Tensor:
        if self.chain.predicts == "noise":
            # Ho et al. 2020, eq. 15
            x0 = (x - sigma * found) / alpha
            return x0.clamp(-LARGEST_LATENT, LARGEST_LATENT) if cut else x0
        return a + alpha * (x - alpha * a) - sigma * found

    def _spread(self, index: int, like: Tensor) -> Tensor:
        return self.get_buffer(f"spread_{index}").reshape(1, -1, *([1] * (like.ndim - 2)))

    def _scaled(self, state: Sequence[Tensor]) -> list[Tensor]:
        return [one / self._spread(index, one) for index, one in enumerate(state)]

    def _unscaled(self, state: Sequence[Tensor]) -> list[Tensor]:
        return [one * self._spread(index, one) for index, one in enumerate(state)]


def detail_window(fold: int) -> int:
    """An odd edge of about `DETAIL_PIXELS` where one position stands for `fold` pixels."""
    return (DETAIL_PIXELS // fold) | 1


def residual_spread(pairs: Sequence[tuple[Sequence[Tensor], Sequence[Tensor]]]) -> list[Tensor]:
    """Root mean square, [c], of target - source at each scale over (source, target) states."""
    found = []
    for index in range(len(pairs[0][0])):
        squares = torch.cat([(b[index] - a[index]).transpose(0, 1).flatten(1) for a, b in pairs], dim=1).double()
        found.append(squares.square().mean(dim=1).sqrt().float())
    return found


def pack(state: Sequence[Tensor]) -> Tensor:
    """[b, c, ...] at each scale to one [b, n]: samplers and noise know nothing of scales."""
    return torch.cat([one.flatten(1) for one in state], dim=1)


def unpack(packed: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The inverse of `pack`, in the shapes of `like`."""
    sizes = [math.prod(one.shape[1:]) for one in like]
    return [part.reshape(one.shape) for part, one in zip(packed.split(sizes, dim=1), like, strict=True)]


def _draws(seeds: Sequence[int], steps: int, length: int) -> tuple[Tensor, Tensor]:
    """A step 1 ... T and noise for each sample from its own seed, whatever batch it stands in."""
    t, noise = [], []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        t.append(torch.randint(1, steps + 1, (), generator=generator))
        noise.append(torch.randn(length, generator=generator))
    return torch.stack(t), torch.stack(noise)
