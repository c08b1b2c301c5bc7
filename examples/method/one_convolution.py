"""A method of one's own in one file: a single convolution from source to target, the least that can be learned.

python -m benchmarks.papers --method examples/method/one_convolution.py
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from concordct.methods.method import Method
from concordct.methods.network import loader, to_unit
from concordct.methods.translation import Translation, fitted, recipe
from concordct.training.engine import Phase

METHOD = "one_convolution"


@dataclass(frozen=True)
class Config:
    """Edge of the kernel, pixels."""

    size: int = 9


class OneConvolution(nn.Module):
    """[b, 1, y, x] in [-1, 1] to the same; it starts as the identity."""

    divisor = 1

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.filter = nn.Conv2d(1, 1, config.size, padding=config.size // 2, padding_mode="reflect", bias=False)
        nn.init.dirac_(self.filter.weight)

    def forward(self, image: Tensor) -> Tensor:
        """The filtered image."""
        return self.filter(image)


class Loss(nn.Module):
    """Mean absolute error on pairs."""

    def __init__(self, system: nn.Module) -> None:
        super().__init__()
        self.system = system

    def forward(self, source: Tensor, target: Tensor, seeds: Sequence[int]) -> dict[str, Tensor]:
        """Patches in HU to the loss."""
        return {"loss": (self.system(to_unit(source)) - to_unit(target)).abs().mean()}


def make(config: Config) -> Translation:
    """The system of a configuration."""
    return Translation(OneConvolution(config))


def build(config: Mapping[str, Any]) -> Translation:
    """The system of a stored configuration."""
    return make(Config(**config))


ENTRY = Method(
    "one convolution",
    loader(METHOD, build),
    fitted(METHOD, lambda system, recipe: Loss(system), make=make),
    {"small": recipe("small", Config(), Phase(steps=1000, batch=8, learning_rate=1e-3, final_rate=0.05))},
)
#: Settings of the search; without them four learning rates are tried.
GRID = tuple({"learning_rate": rate, "size": size} for rate in (1e-3, 4e-3) for size in (9, 15))
