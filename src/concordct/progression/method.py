"""What is said of a method that predicts follow-up scans: how it is fitted and how its models are opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from concordct.training.bundle import Bundle
from concordct.volumes.seeds import SliceSeeds


class FollowupPredictor(Protocol):
    """A model at work."""

    @property
    def spacing_mm(self) -> float:
        """Of the grid that it works on."""

    @property
    def steps(self) -> int:
        """Evaluations of the network for each patch."""

    def predict(
        self, hu: NDArray[np.floating[Any]], region: NDArray[np.bool_], sentence: str, *, seeds: SliceSeeds
    ) -> NDArray[np.float32]:
        """Initial scan [z, y, x] HU, dilated lungs, lung function in words, to the follow-up in HU."""


@dataclass(frozen=True)
class FollowupMethod:
    """A published system.

    Attributes
    ----------
    title : what a table calls it.
    load : (bundle, mode) to a predictor. fit : (CohortData, recipe, Run) to a Bundle. recipes : by name.
    """

    title: str
    load: Callable[..., FollowupPredictor]
    fit: Callable[..., Bundle]
    recipes: Mapping[str, Any]
