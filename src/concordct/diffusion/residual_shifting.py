"""Residual shifting: a Markov chain from the follow-up scan x_0 to the noisy initial scan y_0, and the way back.

CIResDiff (Jiang et al. 2024, arXiv:2408.00938), eqs. 1 to 3, after ResShift (Yue et al. 2023, arXiv:2307.12348). In the
equations y_0 is the initial and x_0 the follow-up scan; one sentence of the paper says it the other way round. Step t
runs from 1 to T, index 0 is the clean state. The sampler knows no network; they meet at `denoise(x, t, condition)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

#: denoise(x [b, ...], time [b] in [0, 1], condition) -> estimate of x_0, [b, ...].
Denoise = Callable[[Tensor, Tensor, Any], Tensor]
#: draw() -> standard normal noise of the state's shape.
Draw = Callable[[], Tensor]

#: eta_T: close to 1, so that the chain ends at y_0 plus noise (Yue et al. 2023, section 2.2).
LAST_ETA = 0.999
#: eta_1 is at most this, and kappa sqrt(eta_1) at most 0.04, so that x_1 is nearly x_0 (the same section).
FIRST_ETA, FIRST_DEVIATION = 0.001, 0.04


@dataclass(frozen=True, eq=False)
class Shifting:
    """How much of the difference y_0 - x_0, and of the noise, is in the state at which step.

    Attributes
    ----------
    etas : [T + 1] float64, eta_0 = 0 < eta_1 < ... < eta_T <= 1.
    kappa : standard deviation of the noise at eta = 1, in the image's unit.
    times : [T + 1] float64, what the network is told at each step, in [0, 1]; kept by respacing.
    """

    etas: Tensor
    kappa: float
    times: Tensor

    @property
    def steps(self) -> int:
        """T."""
        return len(self.etas) - 1


def shifting(steps: int, *, kappa: float, power: float) -> Shifting:
    """The geometric schedule of ResShift: sqrt(eta) grows from sqrt(eta_1) to sqrt(eta_T), early for a power below 1.

    Parameters
    ----------
    steps : T, at least 2.
    kappa : see `Shifting`.
    power : p of Yue et al. 2023, eq. 12; 0.3 there.

    Raises
    ------
    ValueError : fewer than two steps, or kappa or power not above 0.
    """
    if steps < 2 or kappa <= 0 or power <= 0:
        raise ValueError(f"expected T >= 2, kappa > 0 and p > 0, found {steps}, {kappa} and {power}")
    first = min((FIRST_DEVIATION / kappa) ** 2, FIRST_ETA)
    at = torch.arange(steps, dtype=torch.float64) / (steps - 1)
    # Yue et al. 2023, eqs. 11 and 12: sqrt(eta_t) = sqrt(eta_1) b0^beta_t, beta_t = ((t-1)/(T-1))^p (T-1),
    # b0 = exp(log(eta_T / eta_1) / (2 (T-1)))
    etas = first * (LAST_ETA / first) ** (at**power)
    zero = torch.zeros(1, dtype=torch.float64)
    return Shifting(torch.cat([zero, etas]), kappa, torch.arange(steps + 1, dtype=torch.float64) / steps)


def respaced(chain: Shifting, keep: Sequence[int]) -> Shifting:
    """The chain that visits only some steps: the marginals of eq. 1 are those of the whole chain, whatever is left out.

    Parameters
    ----------
    keep : steps 1 ... T in ascending order.
    """
    if not keep or list(keep) != sorted(set(keep)) or keep[0] < 1 or keep[-1] > chain.steps:
        raise ValueError(f"expected ascending steps within 1 ... {chain.steps}, found {list(keep)}")
    places = torch.tensor([0, *keep])
    return Shifting(chain.etas[places], chain.kappa, chain.times[places])


def q_sample(chain: Shifting, x0: Tensor, y0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """x_t given both scans, eq. 1: N(x_0 + eta_t (y_0 - x_0), kappa^2 eta_t I).

    Parameters
    ----------
    x0, y0, noise : [b, ...] follow-up scan, initial scan, standard normal.
    t : [b] integers, 0 ... T.
    """
    eta = chain.etas.to(x0.device)[t].reshape(-1, *([1] * (x0.ndim - 1)))
    return (x0 + eta * (y0 - x0) + chain.kappa * eta.sqrt() * noise).to(x0.dtype)


def posterior(chain: Shifting, x0: Tensor, x: Tensor, t: int) -> tuple[Tensor, float]:
    """Mean and variance of q(x_(t-1) | x_t, x_0, y_0).

    Eq. 3: eta_(t-1)/eta_t x_t + (eta_t - eta_(t-1))/eta_t x_0. The variance is printed as fixed, without a formula;
    it is ResShift's (eq. 6 there): kappa^2 eta_(t-1)/eta_t (eta_t - eta_(t-1)). y_0 has dropped out of both.
    """
    now, before = float(chain.etas[t]), float(chain.etas[t - 1])
    mean = (before / now) * x + ((now - before) / now) * x0
    return mean, chain.kappa**2 * (before / now) * (now - before)


def linear_estimate(chain: Shifting, shifted: Tensor, time: Tensor, *, spread: float) -> tuple[Tensor, Tensor]:
    """What the state alone tells of the difference of the scans, and how much of it is left to find.

    By eq. 1, x_t - y_0 = (1 - eta_t) (x_0 - y_0) + kappa sqrt(eta_t) n. With a variance of spread^2 for x_0 - y_0, the
    best linear estimate is w (x_t - y_0), and its error has the standard deviation spread * c:

        w = (1 - eta) spread^2 / v,  c = kappa sqrt(eta / v),  v = (1 - eta)^2 spread^2 + kappa^2 eta

    A network inside (Karras et al. 2022, arXiv:2206.00364, Sec. 5) sees no noise where the state tells nothing.

    Parameters
    ----------
    shifted : [b, ...] x_t - y_0. time : [b] one of the chain's `times`. spread : of x_0 - y_0 in the image's unit.

    Returns
    -------
    [b, ...] estimate of x_0 - y_0, and [b] c, 0 to 1.
    """
    place = (time.double().cpu()[:, None] - chain.times[None]).abs().argmin(dim=1)
    eta = chain.etas[place]
    variance = (1 - eta) ** 2 * spread**2 + chain.kappa**2 * eta
    weight, left = (1 - eta) * spread**2 / variance, chain.kappa * (eta / variance).sqrt()
    weight, left = (one.to(shifted.device, shifted.dtype) for one in (weight, left))
    return weight.reshape(-1, *([1] * (shifted.ndim - 1))) * shifted, left


def start(chain: Shifting, y0: Tensor, *, draw: Draw) -> Tensor:
    """x_T, eq. 2: N(y_0, kappa^2 I), which takes eta_T for 1."""
    return y0 + chain.kappa * draw()


def sample_shifting(denoise: Denoise, x: Tensor, condition: Any, chain: Shifting, *, draw: Draw) -> Tensor:
    """Walk back from x_T to x_0, eq. 2; the last step returns the estimate of x_0, since eta_0 = 0.

    Parameters
    ----------
    x : [b, ...] the state at step T, see `start`.
    """
    for t in range(chain.steps, 0, -1):
        time = torch.full((x.shape[0],), float(chain.times[t]), device=x.device)
        mean, variance = posterior(chain, denoise(x, time, condition), x, t)
        x = mean + math.sqrt(variance) * draw() if t > 1 else mean
    return x
