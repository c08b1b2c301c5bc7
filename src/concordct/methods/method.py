"""What the catalogue says of a method: how it is fitted, how its models are opened, what can be asked of it.

The last lines of a method's file hold its `ENTRY`; `catalogue.py` names the file. Nothing else knows a method by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from concordct.errors import ConcordctError
from concordct.methods.standardizer import Mode, Standardizer
from concordct.training.bundle import Bundle

if TYPE_CHECKING:
    from concordct.methods.network import Recipe


@dataclass(frozen=True)
class Method:
    """A published system, or one of our own.

    Attributes
    ----------
    title : what a model card calls it.
    load : (bundle, mode) to a Standardizer; with `use_neighbours=` and `sampling=` where the two fields below say so.
    fit : (TrainingData, Recipe or None, Run) to a Bundle, with `imagenet=` where `pretrained` says so; None for what is
        calibrated in closed form.
    recipes : by name; empty for a method without one.
    ablations : what can be left out, each with the recipe that it leaves.
    pretrained : which published weights it can start from, in words; empty for none.
    neighbours : whether it can use the slices above and below.
    sampling : what of its way of sampling can be overridden.
    calibration : the closed-form transfer inside a bundle, a `SpectralModel`, for methods that have one.
    """

    title: str
    load: Callable[..., Standardizer]
    fit: Callable[..., Bundle] | None = None
    recipes: Mapping[str, Recipe] = field(default_factory=dict)
    ablations: Mapping[str, Callable[[Recipe], Recipe]] = field(default_factory=dict)
    pretrained: str = ""
    neighbours: bool = False
    sampling: frozenset[str] = frozenset()
    calibration: Callable[[Bundle], Any] | None = None

    def open(self, bundle: Bundle, mode: Mode, *, use_neighbours: bool, sampling: Mapping[str, Any]) -> Standardizer:
        """A stored model at work.

        Raises
        ------
        ConcordctError : an override of sampling that this method does not have.
        """
        unknown = sorted(set(sampling) - self.sampling)
        if unknown:
            known = ", ".join(sorted(self.sampling)) or "none"
            raise ConcordctError(f"{bundle.method}: expected sampling options of {known}, found {', '.join(unknown)}")
        options: dict[str, Any] = {"use_neighbours": use_neighbours} if self.neighbours else {}
        if sampling:
            options["sampling"] = sampling
        return self.load(bundle, mode, **options)
