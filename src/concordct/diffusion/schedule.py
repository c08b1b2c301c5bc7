"""The forward process: how much noise at which step.

Ho et al. 2020 (arXiv:2006.11239); cosine schedule from Nichol & Dhariwal 2021 (arXiv:2102.09672). Step t runs from 1
to T as in the papers; index 0 is the clean state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["linear", "cosine"]

#: The cosine schedule's betas are cut here, Nichol & Dhariwal 2021, section 3.2.
LARGEST_BETA = 0.999


@dataclass(frozen=True, eq=False)
class Schedule:
    """A Markov chain of Gaussian noise.

    Attributes
    ----------
    betas : [T] float64, variance added at steps 1 ... T.
    times : [T + 1] float64, what the network is told at each step, in [0, 1]; kept by respacing.
    """

    betas: Tensor
    times: Tensor

    @property
    def steps(self) -> int:
        """T."""
        return len(self.betas)

    @property
    def alpha_bar(self) -> Tensor:
        """[T + 1] float64, the share of the signal's variance that is left after t steps; 1 at t = 0."""
        one = torch.ones(1, dtype=torch.float64)
        return torch.cat([one, torch.cumprod(1.0 - self.betas, dim=0)])


def linear_schedule(steps: int, *, first: float = 1e-4, last: float = 0.02) -> Schedule:
    """Betas that grow linearly, Ho et al. 2020; with fewer than 1,000 steps they grow by the same factor."""
    scale = 1000.0 / steps
    betas = torch.linspace(first * scale, last * scale, steps, dtype=torch.float64).clamp(max=LARGEST_BETA)
    return _from_betas(betas)


def cosine_schedule(steps: int, *, offset: float = 0.008) -> Schedule:
    """Nichol & Dhariwal 2021, eq. 17."""
    at = torch.arange(steps + 1, dtype=torch.float64) / steps
    f = torch.cos((at + offset) / (1 + offset) * math.pi / 2) ** 2
    return _from_betas((1 - f[1:] / f[:-1]).clamp(max=LARGEST_BETA))


def schedule(kind: Kind, steps: int) -> Schedule:
    """A schedule by its name."""
    return linear_schedule(steps) if kind == "linear" else cosine_schedule(steps)


def _from_betas(betas: Tensor) -> Schedule:
    return Schedule(betas, torch.arange(len(betas) + 1, dtype=torch.float64) / len(betas))


def respaced(schedule: Schedule, keep: Sequence[int]) -> Schedule:
    """The chain that visits only some steps: same alpha_bar and same times there, betas that lead from one to the next.

    Nichol & Dhariwal 2021, eq. 19: beta' = 1 - alpha_bar(t_i) / alpha_bar(t_(i-1)).

    Parameters
    ----------
    keep : steps 1 ... T in ascending order.
    """
    if not keep or list(keep) != sorted(set(keep)) or keep[0] < 1 or keep[-1] > schedule.steps:
        raise ValueError(f"expected ascending steps within 1 ... {schedule.steps}, found {list(keep)}")
    places = torch.tensor([0, *keep])
    alpha_bar = schedule.alpha_bar[places]
    return Schedule(1 - alpha_bar[1:] / alpha_bar[:-1], schedule.times[places])


def trailing(total: int, count: int) -> tuple[int, ...]:
    """`count` steps that end at T, where the noise is whole (Lin et al. 2024, arXiv:2305.08891)."""
    if not 1 <= count <= total:
        raise ValueError(f"expected 1 to {total} sampling steps, found {count}")
    return tuple(sorted({total - round(index * total / count) for index in range(count)}))


def q_sample(schedule: Schedule, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """x_t from x_0, Ho et al. 2020, eq. 4: sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) noise.

    Parameters
    ----------
    x0, noise : [b, ...].
    t : [b] integers, 0 ... T.
    """
    alpha_bar = schedule.alpha_bar.to(x0.device)[t].reshape(-1, *([1] * (x0.ndim - 1)))
    return (alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise).to(x0.dtype)


def posterior(schedule: Schedule, x0: Tensor, x: Tensor, t: int) -> tuple[Tensor, float]:
    """Mean and variance of q(x_(t-1) | x_t, x_0), Ho et al. 2020, eqs. 6 and 7."""
    alpha_bar = schedule.alpha_bar
    now, before, beta = float(alpha_bar[t]), float(alpha_bar[t - 1]), float(schedule.betas[t - 1])
    # eq. 7: sqrt(ab_(t-1)) beta_t / (1 - ab_t) x_0 + sqrt(alpha_t) (1 - ab_(t-1)) / (1 - ab_t) x_t
    mean = math.sqrt(before) * beta / (1 - now) * x0 + math.sqrt(1 - beta) * (1 - before) / (1 - now) * x
    return mean, beta * (1 - before) / (1 - now)


def noise_of(schedule: Schedule, x: Tensor, x0: Tensor, t: int) -> Tensor:
    """The noise that leads from x_0 to x_t."""
    alpha_bar = float(schedule.alpha_bar[t])
    return (x - math.sqrt(alpha_bar) * x0) / math.sqrt(1 - alpha_bar)
