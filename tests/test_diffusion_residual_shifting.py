"""Residual shifting against its own algebra, against Monte Carlo, and against an exact posterior."""

from __future__ import annotations

import math

import pytest
import torch

from concordct.diffusion.residual_shifting import (
    Shifting,
    linear_estimate,
    posterior,
    q_sample,
    respaced,
    sample_shifting,
    shifting,
    start,
)
from concordct.diffusion.schedule import trailing


def _normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("kappa", [0.1, 2.0])
def test_etas_rise_from_nearly_nothing_to_nearly_one(kappa: float) -> None:
    chain = shifting(15, kappa=kappa, power=0.3)
    assert chain.etas[0] == 0
    assert 0 < chain.etas[1] <= 0.001
    assert kappa * math.sqrt(chain.etas[1]) <= 0.04 + 1e-12
    assert chain.etas[15] == pytest.approx(0.999)
    assert (chain.etas.diff() > 0).all()
    # Yue et al. 2023, eq. 12: for p = 1 the square roots are a geometric series.
    even = shifting(6, kappa=kappa, power=1.0).etas[1:].sqrt()
    assert torch.allclose(even[1:] / even[:-1], (even[1] / even[0]).expand(5))


def test_the_ends_of_the_chain_are_the_two_scans() -> None:
    chain = shifting(10, kappa=0.2, power=0.3)
    follow_up, initial, noise = _normal(0, 2, 5), _normal(1, 2, 5), _normal(2, 2, 5)
    first = q_sample(chain, follow_up, initial, torch.tensor([0, 10]), noise)
    assert torch.equal(first[0], follow_up[0])
    assert torch.allclose(first[1], initial[1] + 0.2 * noise[1], atol=4e-3)


def test_one_step_back_from_the_marginal_gives_the_marginal() -> None:
    """Bayes: sampling x_t by eq. 1 and then the posterior of eq. 3 must give eq. 1 at t - 1, mean and variance."""
    chain = shifting(8, kappa=0.7, power=0.5)
    for t in range(1, 9):
        now, before = float(chain.etas[t]), float(chain.etas[t - 1])
        zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
        slope = float(posterior(chain, zero, one, t)[0])
        rest, variance = float(posterior(chain, one, zero, t)[0]), posterior(chain, one, zero, t)[1]
        x0, y0 = 0.3, -1.1
        assert slope * (x0 + now * (y0 - x0)) + rest * x0 == pytest.approx(x0 + before * (y0 - x0))
        assert slope**2 * 0.49 * now + variance == pytest.approx(0.49 * before)


def test_leaving_out_steps_keeps_times_and_marginals() -> None:
    chain = shifting(20, kappa=0.3, power=0.3)
    short = respaced(chain, trailing(20, 4))
    assert short.steps == 4
    assert torch.equal(short.etas, chain.etas[[0, 5, 10, 15, 20]])
    assert torch.equal(short.times, chain.times[[0, 5, 10, 15, 20]])
    with pytest.raises(ValueError, match="ascending"):
        respaced(chain, (3, 2))


@pytest.mark.parametrize("steps", [2, 15])
def test_an_exact_denoiser_gives_the_exact_distribution(steps: int) -> None:
    """x_0 ~ N(0.4, 0.5^2) given y_0 = 0: its E[x_0 | x_t] is known, and many steps must give its mean and spread."""
    mean, spread, count = 0.4, 0.5, 20000
    chain = shifting(200, kappa=1.0, power=0.5)
    chain = respaced(chain, trailing(200, steps))

    def denoise(x: torch.Tensor, time: torch.Tensor, condition: None) -> torch.Tensor:
        place = int((chain.times - float(time[0])).abs().argmin())
        eta = float(chain.etas[place])
        # x_t = (1 - eta) x_0 + kappa sqrt(eta) noise, Gaussian conditioning
        gain = spread**2 * (1 - eta) / ((1 - eta) ** 2 * spread**2 + eta)
        return mean + gain * (x - (1 - eta) * mean)

    seeds = iter(range(10**6))
    draw = lambda: _normal(next(seeds), count)  # noqa: E731
    found = sample_shifting(denoise, start(chain, torch.zeros(count), draw=draw), None, chain, draw=draw)
    assert float(found.mean()) == pytest.approx(mean, abs=0.02)
    if steps == 15:
        assert float(found.std()) == pytest.approx(spread, rel=0.15)
    else:
        assert float(found.std()) < spread  # two steps are too few


@pytest.mark.parametrize("t", [1, 6, 15])
def test_the_linear_estimate_is_the_best_one_and_says_its_own_error(t: int) -> None:
    chain, spread = shifting(15, kappa=0.1, power=0.3), 0.06
    wanted, noise, y0 = spread * _normal(0, 1, 200_000), _normal(1, 1, 200_000), _normal(2, 1, 200_000)
    x = q_sample(chain, y0 + wanted, y0, torch.tensor([t]), noise)
    found, left = linear_estimate(chain, x - y0, chain.times[t].reshape(1), spread=spread)
    assert float((found - wanted).std()) == pytest.approx(spread * float(left), rel=0.02)
    for factor in (0.95, 1.05):
        assert float((factor * found - wanted).std()) >= float((found - wanted).std()) - 1e-7
    # A chain of some of the steps tells the same of them.
    kept = respaced(chain, [t, 15] if t < 15 else [7, 15])
    assert torch.equal(linear_estimate(kept, x - y0, chain.times[t].reshape(1), spread=spread)[0], found)


def test_the_network_that_knows_the_follow_up_gives_it() -> None:
    chain = shifting(5, kappa=0.4, power=0.3)
    truth = _normal(3, 1, 7)
    told = []

    def denoise(x: torch.Tensor, time: torch.Tensor, condition: str) -> torch.Tensor:
        told.append((float(time[0]), condition))
        return truth

    draw = lambda: _normal(4, 1, 7)  # noqa: E731
    assert torch.equal(sample_shifting(denoise, start(chain, truth, draw=draw), "said", chain, draw=draw), truth)
    assert told == [(pytest.approx(t / 5), "said") for t in (5, 4, 3, 2, 1)]


def test_bad_chains_are_refused() -> None:
    with pytest.raises(ValueError, match="kappa"):
        shifting(10, kappa=0.0, power=0.3)
    assert isinstance(shifting(2, kappa=1.0, power=0.3), Shifting)
