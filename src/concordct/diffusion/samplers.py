"""The way back: DDPM, DDIM and DPM-Solver++ as plain functions over `denoise(x, time, condition) -> x0`.

Ho et al. 2020 (arXiv:2006.11239), Song et al. 2021 (arXiv:2010.02502), Lu et al. 2022 (arXiv:2211.01095). A sampler
knows no network. It walks the chain it is given from its last step to its first: for fewer steps hand it
`respaced(schedule, trailing(T, n))`. Fresh noise comes from `draw`, so that its source decides what is the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from concordct.diffusion.schedule import Schedule, noise_of, posterior

#: denoise(x [b, ...], time [b] in [0, 1], condition) -> estimate of x_0, [b, ...].
Denoise = Callable[[Tensor, Tensor, Any], Tensor]
#: draw() -> standard normal noise of the state's shape.
Draw = Callable[[], Tensor]


def _estimate(denoise: Denoise, schedule: Schedule, x: Tensor, t: int, condition: Any) -> Tensor:
    return denoise(x, torch.full((x.shape[0],), float(schedule.times[t]), device=x.device), condition)


def sample_ddpm(denoise: Denoise, x: Tensor, condition: Any, schedule: Schedule, *, draw: Draw) -> Tensor:
    """Ancestral sampling, Ho et al. 2020, algorithm 2, with the posterior's variance.

    Parameters
    ----------
    x : [b, ...] the state at step T.
    """
    for t in range(schedule.steps, 0, -1):
        mean, variance = posterior(schedule, _estimate(denoise, schedule, x, t, condition), x, t)
        x = mean + math.sqrt(variance) * draw() if t > 1 else mean
    return x


def sample_ddim(
    denoise: Denoise, x: Tensor, condition: Any, schedule: Schedule, *, draw: Draw | None = None, eta: float = 0.0
) -> Tensor:
    """Song et al. 2021, eq. 12; `eta` 0 draws nothing, 1 has DDPM's variance.

    Raises
    ------
    ValueError : `eta` above 0 without `draw`.
    """
    if eta > 0 and draw is None:
        raise ValueError("eta above 0 needs noise to draw")
    alpha_bar = schedule.alpha_bar
    for t in range(schedule.steps, 0, -1):
        x0 = _estimate(denoise, schedule, x, t, condition)
        now, before = float(alpha_bar[t]), float(alpha_bar[t - 1])
        # eq. 16: sigma_t = eta sqrt((1 - ab_(t-1)) / (1 - ab_t)) sqrt(1 - ab_t / ab_(t-1))
        sigma = eta * math.sqrt((1 - before) / (1 - now)) * math.sqrt(1 - now / before)
        x_next = math.sqrt(before) * x0
        x_next = x_next + math.sqrt(max(1 - before - sigma**2, 0.0)) * noise_of(schedule, x, x0, t)
        x = x_next + sigma * draw() if draw is not None and sigma > 0 else x_next
    return x


def sample_dpmpp_2m(denoise: Denoise, x: Tensor, condition: Any, schedule: Schedule) -> Tensor:
    """DPM-Solver++(2M), Lu et al. 2022, algorithm 2: second order, deterministic; the last step is first order."""
    alpha_bar = schedule.alpha_bar
    # lambda_t = log(alpha_t / sigma_t), with alpha = sqrt(ab), sigma = sqrt(1 - ab); infinite at t = 0.
    half_log_snr = 0.5 * torch.log(alpha_bar[1:] / (1 - alpha_bar[1:]))
    before: Tensor | None = None
    step_before = 0.0
    for t in range(schedule.steps, 0, -1):
        x0 = _estimate(denoise, schedule, x, t, condition)
        if t == 1:
            return x0
        h = float(half_log_snr[t - 2] - half_log_snr[t - 1])
        data = x0
        if before is not None:
            # D_i = (1 + 1 / (2 r)) x_i - 1 / (2 r) x_(i-1), r = h_(i-1) / h_i
            ratio = step_before / h
            data = (1 + 1 / (2 * ratio)) * x0 - 1 / (2 * ratio) * before
        alpha, sigma = math.sqrt(float(alpha_bar[t - 1])), math.sqrt(1 - float(alpha_bar[t - 1]))
        x = sigma / math.sqrt(1 - float(alpha_bar[t])) * x - alpha * math.expm1(-h) * data
        before, step_before = x0, h
    return x


def start_from_noise(draw: Draw) -> Tensor:
    """x_T of pure noise."""
    return draw()


def start_from_source(schedule: Schedule, source: Tensor, *, draw: Draw) -> Tensor:
    """LTDiff++'s start: the source's latent, noised to the last step of the chain (its sigma is not printed)."""
    alpha_bar = float(schedule.alpha_bar[-1])
    return math.sqrt(alpha_bar) * source + math.sqrt(1 - alpha_bar) * draw()
