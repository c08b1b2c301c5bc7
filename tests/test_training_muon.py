"""Muon: every direction of a matrix moves alike; vectors move as under Adam; loud and quiet learn at one speed."""

from __future__ import annotations

import pytest
import torch

from concordct.training.muon import VECTOR_RATE, Muon, orthogonalized


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (8, 8)])
def test_singular_values_become_one_and_vectors_stay(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    made = orthogonalized(matrix)
    values = torch.linalg.svdvals(made)
    # The published quintic ends between 0.7 and 1.2, whatever it starts from.
    assert values.min() > 0.6
    assert values.max() < 1.3
    turned = u.T @ made @ v.T
    torch.testing.assert_close(turned, torch.diag(torch.diagonal(turned)), atol=0.05, rtol=0)
    torch.testing.assert_close(orthogonalized(1000 * matrix), made, atol=0.02, rtol=0)


def test_vectors_take_adam_s_steps() -> None:
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Parameter(torch.ones(5)) for _ in range(2))
    muon, adam = Muon([ours], lr=0.1), torch.optim.Adam([theirs], lr=0.1 * VECTOR_RATE)
    for _ in range(4):
        gradient = torch.randn(5)
        for one, optimizer in ((ours, muon), (theirs, adam)):
            one.grad = gradient.clone()
            optimizer.step()
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_a_kernel_moves_by_its_rate_against_the_gradient() -> None:
    kernel = torch.nn.Parameter(torch.zeros(4, 2, 3, 3))
    kernel.grad = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    before = kernel.grad.clone()
    Muon([kernel], lr=0.1).step()
    assert float((kernel.detach() * before).sum()) < 0
    values = torch.linalg.svdvals(kernel.detach().reshape(4, -1))
    assert values.min() > 0.06
    assert values.max() < 0.13


def test_quiet_components_are_learned_as_quickly_as_loud_ones() -> None:
    """Linear regression on two inputs, one of a tenth of the other's amplitude."""
    torch.manual_seed(0)
    x = torch.randn(256, 2) * torch.tensor([1.0, 0.1])
    wanted = x @ torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    errors = {}
    for name, kind in (("muon", Muon), ("sgd", torch.optim.SGD)):
        layer = torch.nn.Linear(2, 2, bias=False)
        torch.nn.init.zeros_(layer.weight)
        optimizer = kind(layer.parameters(), lr=0.05 if name == "muon" else 0.5)
        for _ in range(60):
            optimizer.zero_grad()
            (layer(x) - wanted).square().mean().backward()
            for group in optimizer.param_groups:
                group["lr"] *= 0.95
            optimizer.step()
        errors[name] = float((layer.weight - torch.eye(2)).abs()[1, 1].detach())
    assert errors["muon"] < 0.4
    assert errors["sgd"] > 0.8
