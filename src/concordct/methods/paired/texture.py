"""Losses that weigh texture (ours): its variance is a hundredth of the anatomy's, and radiomic features are made of it.

Both are used by the small recipes alone; what the papers print stands in the methods' own files.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

#: What differs from the mean of so many pixels around is detail; its local power is taken over as many.
AROUND = 13
#: Detail below this counts as this, in the networks' units: 20 HU of a window of 2,700 HU onto [-1, 1].
LEAST_DETAIL = 20.0 / 1350.0
#: Edge of the cosine filters, their step, and over how many of their places energies are averaged (16 pixels).
FILTER, STEP, PLACES = 4, 2, 8
#: Power added before the logarithm: a quarter of the least detail's variance.
FLOOR = 0.25 * LEAST_DETAIL**2


def detail(image: Tensor) -> Tensor:
    """[b, 1, y, x] without the mean of the pixels around."""
    return image - functional.avg_pool2d(image, AROUND, 1, AROUND // 2, count_include_pad=False)


def relative_loss(output: Tensor, wanted: Tensor) -> Tensor:
    """Mean of sqrt(1 + e^2 / (v + s^2)) - 1, e the error, v the local power of the wanted detail, s the least detail.

    Quadratic where the error is below the texture, linear above, so that neither edges nor anatomy drown it.
    """
    power = functional.avg_pool2d(detail(wanted).square(), AROUND, 1, AROUND // 2, count_include_pad=False)
    return (((output - wanted).square() / (power + LEAST_DETAIL**2) + 1).sqrt() - 1).mean()


def level_loss(output: Tensor, wanted: Tensor) -> Tensor:
    """Mean absolute difference of the means over the pixels around, in units of the least detail.

    A kernel leaves a region's level alone, so that even a sample is held to it pixel by pixel.
    """
    means = [functional.avg_pool2d(one, AROUND, STEP, AROUND // 2, count_include_pad=False) for one in (output, wanted)]
    return (means[0] - means[1]).abs().mean() / LEAST_DETAIL


def energy_loss(output: Tensor, wanted: Tensor) -> Tensor:
    """Mean absolute difference of log energies behind 4 x 4 cosine filters over 16 pixels, the constant one left out.

    It knows how much texture there is in each band and place, not where each grain lies.
    """
    return (_log_energies(output) - _log_energies(wanted)).abs().mean()


def _log_energies(image: Tensor) -> Tensor:
    behind = functional.conv2d(image, _cosines().to(image), stride=STEP)
    return (functional.avg_pool2d(behind.square(), PLACES, PLACES // 2) + FLOOR).log()


def _cosines() -> Tensor:
    """[15, 1, 4, 4], the orthonormal cosine basis (type II) without its constant."""
    n = torch.arange(FILTER, dtype=torch.float64)
    basis = torch.cos(math.pi * (n[None] + 0.5) * n[:, None] / FILTER) * math.sqrt(2 / FILTER)
    basis[0] /= math.sqrt(2)
    return torch.einsum("iy,jx->ijyx", basis, basis).reshape(-1, 1, FILTER, FILTER)[1:].float()
