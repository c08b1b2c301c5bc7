"""Diffusion: identities of the chain and of the samplers; the chain that Ho et al. print."""

from __future__ import annotations

import math

import pytest
import torch

from concordct.diffusion.samplers import sample_ddim, sample_ddpm, sample_dpmpp_2m, start_from_source
from concordct.diffusion.schedule import (
    Schedule,
    cosine_schedule,
    linear_schedule,
    posterior,
    q_sample,
    respaced,
    trailing,
)

SCHEDULES = (linear_schedule(1000), linear_schedule(50), cosine_schedule(40))


def _draws(shape: tuple[int, ...], seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(shape, generator=generator, dtype=torch.float64)


def test_linear_schedule_is_that_of_ho() -> None:
    chain = linear_schedule(1000)
    assert chain.betas[0].item() == pytest.approx(1e-4)
    assert chain.betas[-1].item() == pytest.approx(0.02)
    # Ho et al. 2020, section 4: KL(q(x_T | x_0) || N(0, I)) about 1e-5 bits per dimension.
    assert chain.alpha_bar[-1].item() == pytest.approx(4.04e-5, rel=0.01)


@pytest.mark.parametrize("chain", SCHEDULES)
def test_forward_process_has_the_right_moments_at_every_step(chain: Schedule) -> None:
    """Walking the chain one beta at a time gives the closed form's mean and variance."""
    mean, variance = 1.0, 0.0
    for t in range(1, chain.steps + 1):
        beta = float(chain.betas[t - 1])
        mean, variance = math.sqrt(1 - beta) * mean, (1 - beta) * variance + beta
        one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
        assert q_sample(chain, one, torch.tensor([t]), zero).item() == pytest.approx(mean, rel=1e-9)
        assert q_sample(chain, zero, torch.tensor([t]), one).item() ** 2 == pytest.approx(variance, rel=1e-9)


def test_forward_samples_agree_with_their_moments() -> None:
    chain = cosine_schedule(40)
    noise = _draws((20000, 1))()
    for t in (1, 10, 39, 40):
        x = q_sample(chain, torch.full((20000, 1), 2.0, dtype=torch.float64), torch.full((20000,), t), noise)
        assert x.mean().item() == pytest.approx(2 * math.sqrt(chain.alpha_bar[t]), abs=0.03)
        assert x.var().item() == pytest.approx(1 - chain.alpha_bar[t].item(), rel=0.05, abs=1e-3)


def test_posterior_is_bayes_rule() -> None:
    chain = linear_schedule(50)
    x0, x = 0.7, -0.4
    for t in range(2, 51):
        before, beta = float(chain.alpha_bar[t - 1]), float(chain.betas[t - 1])
        # Product of N(x_(t-1); sqrt(ab) x0, 1 - ab) and N(x_t; sqrt(1 - beta) x_(t-1), beta).
        precision = 1 / (1 - before) + (1 - beta) / beta
        expected = (math.sqrt(before) * x0 / (1 - before) + math.sqrt(1 - beta) * x / beta) / precision
        mean, variance = posterior(chain, torch.tensor(x0), torch.tensor(x), t)
        assert mean.item() == pytest.approx(expected, rel=1e-5)
        assert variance == pytest.approx(1 / precision, rel=1e-9)


def test_respacing_keeps_alpha_bar_and_times() -> None:
    chain = cosine_schedule(40)
    short = respaced(chain, trailing(40, 7))
    places = [0, *trailing(40, 7)]
    torch.testing.assert_close(short.alpha_bar, chain.alpha_bar[places])
    torch.testing.assert_close(short.times, chain.times[places])
    assert trailing(40, 7)[-1] == 40
    assert trailing(1000, 4) == (250, 500, 750, 1000)
    assert respaced(chain, range(1, 41)).betas.tolist() == pytest.approx(chain.betas.tolist())
    with pytest.raises(ValueError, match="ascending"):
        respaced(chain, [3, 2])


@pytest.mark.parametrize("chain", [*SCHEDULES[1:], respaced(linear_schedule(1000), trailing(1000, 9))])
def test_an_oracle_denoiser_returns_x0(chain: Schedule) -> None:
    x0 = _draws((3, 5), 1)()
    draw = _draws((3, 5), 2)
    oracle = lambda x, time, condition: x0  # noqa: E731
    for found in (
        sample_ddpm(oracle, draw(), None, chain, draw=draw),
        sample_ddim(oracle, draw(), None, chain),
        sample_ddim(oracle, draw(), None, chain, draw=draw, eta=1.0),
        sample_dpmpp_2m(oracle, draw(), None, chain),
    ):
        torch.testing.assert_close(found, x0)


def _gaussian_denoiser(chain: Schedule, mean: float, spread: float):
    """The exact E[x0 | x_t] for x0 ~ N(mean, spread^2)."""

    def denoise(x, time, condition):
        t = int(torch.argmin((chain.times - time[0].double()).abs()))
        alpha_bar = float(chain.alpha_bar[t])
        gain = math.sqrt(alpha_bar) * spread**2 / (alpha_bar * spread**2 + 1 - alpha_bar)
        return mean + gain * (x - math.sqrt(alpha_bar) * mean)

    return denoise


def test_ddim_with_eta_one_and_all_steps_is_ddpm_in_distribution() -> None:
    """Step by step: DDIM's mean and variance are the posterior's; and end to end with an exact denoiser."""
    chain = linear_schedule(400)
    denoise = _gaussian_denoiser(chain, 0.5, 0.3)
    shape = (20000, 1)
    start = _draws(shape, 3)()
    same = [
        sample_ddpm(denoise, start, None, chain, draw=_draws(shape, 4)),
        sample_ddim(denoise, start, None, chain, draw=_draws(shape, 4), eta=1.0),
    ]
    # The same noise gives the same path, which is more than the same distribution.
    torch.testing.assert_close(same[0], same[1])
    assert same[0].mean().item() == pytest.approx(0.5, abs=0.02)
    # DDPM's posterior variance is the lower bound of Ho et al. 2020, eq. 7: a little less spread than the truth.
    assert same[0].std().item() == pytest.approx(0.3, rel=0.08)


def test_solvers_converge_to_the_distribution_and_second_order_is_better() -> None:
    chain = cosine_schedule(1000)
    denoise = _gaussian_denoiser(chain, 0.5, 0.3)
    start = _draws((4000, 1), 5)()
    exact = sample_ddim(denoise, start, None, chain)
    assert exact.std().item() == pytest.approx(0.3, rel=0.05)
    short = respaced(chain, trailing(1000, 16))
    errors = [
        (sampler(denoise, start, None, short) - exact).abs().mean().item() for sampler in (sample_ddim, sample_dpmpp_2m)
    ]
    assert errors[1] < 0.6 * errors[0]


def test_start_from_the_source_has_the_chain_s_last_noise() -> None:
    chain = respaced(linear_schedule(100), (10, 20))
    source = torch.full((20000, 1), 3.0, dtype=torch.float64)
    x = start_from_source(chain, source, draw=_draws((20000, 1), 6))
    assert x.mean().item() == pytest.approx(3 * math.sqrt(chain.alpha_bar[-1]), abs=0.03)
    assert x.var().item() == pytest.approx(1 - chain.alpha_bar[-1].item(), rel=0.05)


def test_diffusers_or_monai_agree_where_they_are_installed() -> None:
    """MONAI generative's DDPM scheduler, the same betas: the same alpha_bar."""
    monai = pytest.importorskip("monai.networks.schedulers")
    reference = monai.DDPMScheduler(num_train_timesteps=1000, schedule="linear_beta", beta_start=1e-4, beta_end=0.02)
    torch.testing.assert_close(
        reference.alphas_cumprod.double(), linear_schedule(1000).alpha_bar[1:], rtol=1e-4, atol=1e-7
    )


def test_cosine_schedule_is_that_of_nichol_and_dhariwal() -> None:
    """Their eq. 17 at half of T: cos^2(0.508 / 1.008 pi / 2) / cos^2(0.008 / 1.008 pi / 2) = 0.4938."""
    assert cosine_schedule(40).alpha_bar[20].item() == pytest.approx(0.4938, abs=1e-4)


@pytest.mark.parametrize("keep", [[], [0, 3], [2, 9], [3, 3]])
def test_steps_that_are_not_of_the_chain_are_refused(keep: list[int]) -> None:
    with pytest.raises(ValueError, match="ascending"):
        respaced(linear_schedule(8), keep)


def test_a_chain_of_its_last_step_starts_from_nothing_else() -> None:
    chain = cosine_schedule(8)
    assert respaced(chain, [8]).alpha_bar.tolist() == pytest.approx([1.0, float(chain.alpha_bar[8])])
    assert respaced(chain, [1, 8]).alpha_bar.tolist() == pytest.approx([float(chain.alpha_bar[t]) for t in (0, 1, 8)])
    assert respaced(chain, [1, 8]).times.tolist() == [0.0, 0.125, 1.0]


def test_the_last_step_draws_nothing() -> None:
    asked = []

    def draw() -> torch.Tensor:
        asked.append(1)
        return torch.ones(1, 1)

    sample_ddpm(lambda x, time, condition: x, torch.ones(1, 1), None, cosine_schedule(5), draw=draw)
    assert len(asked) == 4
