"""Residual shifting between two textures of the same spectrum, along great circles.

ResShift (Yue et al. 2023, arXiv:2307.12348) shifts the residual between a degraded and a clean image, x_t = x_0 + eta_t
(y_0 - x_0) + noise. Here both ends have the same power in every band (`methods/transport.py` sees to that) and a known
correlation rho(f) = cos Theta(f), and the shift follows the arc between them instead of the chord, frequency by
frequency:

    x(l) = [ sin((1 - l) Theta) t + sin(l Theta) n ] / sin Theta,   v(l) = dx/dl,   l from 0 (target t) to 1 (start n).

The arc keeps the power at every l, and where both are Gaussian v is uncorrelated with x: the best guess of v is 0. A
silent network therefore *is* the transport, in any number of steps; with rho = 0 (nothing known, n all noise) it is the
variance-preserving diffusion with velocity as in Salimans and Ho 2022 (arXiv:2202.00512). A network learns only in what
the target differs from such a Gaussian: local level, direction, structure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]

#: Below this angle start and target are the same, rad; the limit of the weights is used.
SMALLEST_ANGLE = 1e-3


def weights(theta: Array, shift: float) -> tuple[Array, Array, Array, Array]:
    """Weights of target and start in the state, and in its velocity.

    Parameters
    ----------
    theta : [f], angle between start and target, 0 to pi/2 rad. shift : l, 0 to 1.

    Returns
    -------
    target, start, target_rate, start_rate : [f].
    """
    safe = np.maximum(theta, SMALLEST_ANGLE)
    sine = np.sin(safe)
    return (
        np.sin((1 - shift) * safe) / sine,
        np.sin(shift * safe) / sine,
        -safe * np.cos((1 - shift) * safe) / sine,
        safe * np.cos(shift * safe) / sine,
    )


def sample(velocity: Callable[[Any, float], Any], start: Any, *, steps: int) -> Any:
    """Follow the flow from the start (l = 1) to a target (l = 0) with `steps` evaluations of the velocity.

    The first evaluation is at the start; with more, the way is cut into steps - 1 pieces, each of which takes the
    velocity at its middle, reached with the velocity before.

    Parameters
    ----------
    velocity : state and shift to dx/dl, same shape.
    start : any array or tensor.
    """
    rate = velocity(start, 1.0)
    if steps == 1:
        return start - rate
    x, width = start, 1.0 / (steps - 1)
    for step in range(steps - 1):
        middle = 1.0 - (step + 0.5) * width
        rate = velocity(x - 0.5 * width * rate, middle)
        x = x - width * rate
    return x
