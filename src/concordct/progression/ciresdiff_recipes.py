"""CIResDiff's settings: networks and process, recipes, and the rows of its ablation (Jiang et al. 2024, Table 1)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from concordct.nets.clip import TextConfig
from concordct.nets.unet3d import Query
from concordct.training.engine import Phase

Intensity = Literal["fixed", "minmax"]


@dataclass(frozen=True)
class Config:
    """Networks and process.

    Attributes
    ----------
    residual : the residual diffusion of eqs. 1 to 3; False for the usual one from pure noise.
    query : of the cross-attention: "text" as printed, "image" as usual, "none" without lung function.
    steps : T. kappa, power : of the eta schedule.
    widths : of the U-Net's scales. fold : voxels that become channels. attend : scales that the text enters.
    text, scan_widths : of the contrastive pre-training.
    intensity : "fixed", or "minmax" of each scan, as the paper has it.
    onto_initial : the network's output is added to y_0; without, it is x_0 itself.
    tower : "contrast" pre-trains the text tower on the training set, "random" leaves it as it was drawn.
    at_last : share of the patches in training that stand at step T, where the follow-up is asked for with nothing of it
        in the state; the others have any step.
    ridge : the reading of the text starts along the direction that goes with the training subjects' change.
    """

    residual: bool = True
    query: Query = "text"
    steps: int = 15
    kappa: float = 0.1
    power: float = 0.3
    widths: tuple[int, ...] = (32, 48, 64)
    fold: int = 2
    attend: tuple[int, ...] = (0, 1)
    text: TextConfig = TextConfig()  # noqa: RUF009
    scan_widths: tuple[int, ...] = (8, 16, 32)
    intensity: Intensity = "fixed"
    onto_initial: bool = True
    tower: Literal["contrast", "random"] = "contrast"
    ridge: bool = True
    at_last: float = 0.0


@dataclass(frozen=True)
class Recipe:
    """How CIResDiff is trained and run.

    Attributes
    ----------
    config : networks and process.
    spacing_mm : of the isotropic grid that everything happens on.
    patch, overlap : edge of a patch, and how far neighbours overlap at inference, voxels.
    contrast, diffusion : the two phases.
    sampling_steps : of the T, at inference.
    seed : of initial weights, patches and noise.
    """

    config: Config
    spacing_mm: float
    patch: int
    overlap: int
    contrast: Phase
    diffusion: Phase
    sampling_steps: int
    seed: int = 0


#: `paper`: 1 mm, 96^3, Adam at 0.001 and min-max as printed; widths, T, kappa, batch and epochs are not (ours).
RECIPES: dict[str, Recipe] = {
    "paper": Recipe(
        config=Config(
            widths=(32, 64, 128, 256),
            fold=1,
            attend=(2, 3),
            text=TextConfig(512, 12, 8),
            scan_widths=(16, 32, 64, 128),
            intensity="minmax",
            onto_initial=False,
        ),
        spacing_mm=1.0,
        patch=96,
        overlap=16,
        contrast=Phase(epochs=50, batch=16, learning_rate=1e-3, final_rate=0.05),
        diffusion=Phase(epochs=400, batch=4, learning_rate=1e-3, final_rate=0.05),
        sampling_steps=15,
    ),
    "small": Recipe(
        config=Config(),
        spacing_mm=3.0,
        patch=32,
        overlap=8,
        contrast=Phase(steps=100, batch=16, learning_rate=5e-4, final_rate=0.05, warmup=50),
        diffusion=Phase(steps=800, batch=2, learning_rate=2e-3, final_rate=0.05, warmup=50, every=200),
        sampling_steps=2,
    ),
    "gpu": Recipe(
        config=Config(),
        spacing_mm=1.0,
        patch=96,
        overlap=16,
        contrast=Phase(steps=500, batch=32, learning_rate=1e-3, final_rate=0.05),
        diffusion=Phase(steps=4000, batch=8, learning_rate=1e-3, final_rate=0.05),
        sampling_steps=4,
    ),
}

#: Rows of the paper's Table 1: name -> what differs. `onto_initial` is the recipe's in all of them.
ABLATIONS: dict[str, dict[str, Any]] = {
    "DM": {"residual": False, "query": "none"},
    "DM-CIP": {"residual": False},
    "DM-R": {"query": "none"},
    "DM-R-CIP": {},
}
#: Rows beside them: a row of `ABLATIONS` and what differs from it.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"{row}, x_0 itself": (row, {"onto_initial": False}) for row in ABLATIONS},
    "DM-R-CIP, random text tower": ("DM-R-CIP", {"tower": "random"}),
    "DM-R-CIP, without ridge start": ("DM-R-CIP", {"ridge": False}),
    "DM-R-CIP, query from the image": ("DM-R-CIP", {"query": "image"}),
    "DM-R-CIP, half of the patches at T": ("DM-R-CIP", {"at_last": 0.5}),
}


def ablated(recipe: Recipe, row: str) -> Recipe:
    """The recipe of a row of `ABLATIONS` or `VARIANTS`."""
    of, changed = VARIANTS.get(row, (row, {}))
    return replace(recipe, config=replace(recipe.config, **ABLATIONS[of], **changed))
