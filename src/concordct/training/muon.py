"""Muon: matrices are moved by the orthogonal part of their momentum, so that every direction learns at one speed.

Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; Liu et al. 2025, arXiv:2502.16982. A chain of layers
under Adam learns what is loud first, and texture is a hundredth of the anatomy; an update without singular values does
not know loud from quiet. Vectors (biases, gains) take Adam's step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

#: Decay of the momentum, and Adam's of its moments.
MOMENTUM, BETAS, FLOOR = 0.95, (0.9, 0.999), 1e-8
#: Adam's rate for vectors, as a share of the matrices'.
VECTOR_RATE = 0.15
#: Coefficients of the quintic iteration that drives singular values to about 1, and how often it runs.
QUINTIC, ITERATIONS = (3.4445, -4.7750, 2.0315), 5


def orthogonalized(matrix: Tensor) -> Tensor:
    """[m, n] to nearly U V' of its singular value decomposition, by Newton and Schulz's iteration."""
    a, b, c = QUINTIC
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    # Enough of an accuracy for a direction, and what processors with matrix units are fast at.
    x = (x / (x.norm() + 1e-7)).to(torch.bfloat16)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if tall else x).to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """Muon for matrices and the kernels of convolutions, Adam for vectors; state in Adam's names.

    Parameters
    ----------
    parameters : what is trained.
    lr : root mean square step of a square matrix's singular values.
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float) -> None:
        super().__init__(list(parameters), {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            for one in group["params"]:
                if one.grad is None:
                    continue
                state: dict[str, Any] = self.state[one]
                if not state:
                    state |= {"step": torch.tensor(0.0), "exp_avg": torch.zeros_like(one)}
                    state["exp_avg_sq"] = torch.zeros_like(one)
                state["step"] += 1
                if one.ndim >= 2:
                    _matrix(one, one.grad, state, group["lr"])
                else:
                    _vector(one, one.grad, state, group["lr"] * VECTOR_RATE)


def _matrix(one: Tensor, gradient: Tensor, state: dict[str, Any], rate: float) -> None:
    momentum = state["exp_avg"].mul_(MOMENTUM).add_(gradient)
    # Nesterov's: a step ahead along the momentum.
    update = gradient.add(momentum, alpha=MOMENTUM).reshape(one.shape[0], -1)
    rows, columns = update.shape
    one.add_(orthogonalized(update).reshape(one.shape), alpha=-rate * max(1.0, rows / columns) ** 0.5)


def _vector(one: Tensor, gradient: Tensor, state: dict[str, Any], rate: float) -> None:
    first, second, step = state["exp_avg"], state["exp_avg_sq"], float(state["step"])
    first.lerp_(gradient, 1 - BETAS[0])
    second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
    size = second.sqrt().div_((1 - BETAS[1] ** step) ** 0.5).add_(FLOOR)
    one.addcdiv_(first, size, value=-rate / (1 - BETAS[0] ** step))
