"""Rows of `benchmarks.followup`: what is trained on every fold, what stands beside it, and how the tables name it."""

from __future__ import annotations

from benchmarks.followup_models import RIVALS, SLICES
from concordct.progression import ciresdiff_recipes

#: Models of every fold: the ablation, all with the same parametrization of the output.
MODELS = tuple(ciresdiff_recipes.ABLATIONS)
#: Models of the first folds: the other parametrization and what else stands beside the ablation, and the rivals.
ASIDE_FOLDS = (0, 1)
WHOLE = "DM-R-CIP"
SHUFFLED, OPPOSITE = "DM-R-CIP, text of another subject", "DM-R-CIP, text of the other label"
PLAIN = ("no change", "linear trend")
#: Every method's estimate (`mean`: one evaluation, nothing drawn), and below it what the ablation draws.
METHODS = (*PLAIN, *MODELS, SHUFFLED, OPPOSITE)
_DRAWN = ", drawn"
DRAWN = {name: f"{name}{_DRAWN}" for name in MODELS}
#: Steps of the ablation, of its parametrization and of the text.
LADDER = (
    ("DM", "DM-CIP"), ("DM", "DM-R"), ("DM-CIP", WHOLE), ("DM-R", WHOLE), (SHUFFLED, WHOLE), (OPPOSITE, WHOLE),
    *((f"{row}, x_0 itself", row) for row in MODELS),
    *((row, WHOLE) for row in ciresdiff_recipes.VARIANTS if "x_0" not in row),
)  # fmt: skip
EVERY = (*METHODS, *(DRAWN[name] for name in MODELS))
#: Rows of a brief study.
BRIEF = (*PLAIN, *MODELS, SHUFFLED, *(DRAWN[name] for name in MODELS))
#: Models of the first folds, those that matter most first.
ASIDE = (
    *(f"{row}, x_0 itself" for row in ("DM-R-CIP", "DM-R", "DM", "DM-CIP")),
    *(one for one in ciresdiff_recipes.VARIANTS if "x_0" not in one),
    *RIVALS,
    SLICES,
)
#: Rows of theirs.
FIRST = tuple(row for name in ASIDE for row in (name, DRAWN.get(name)) if row is not None)


def of_model(row: str) -> str:
    """The model that makes a row."""
    return WHOLE if row in (SHUFFLED, OPPOSITE) else row.removesuffix(_DRAWN)


def rows_of(model: str) -> list[str]:
    """Every row that a model makes."""
    return [row for row in dict.fromkeys((*EVERY, *FIRST)) if row not in PLAIN and of_model(row) == model]


def drawn(row: str) -> str:
    """The row of what a method draws, where there is one."""
    return f"{row}{_DRAWN}"


def is_drawn(row: str) -> bool:
    """Whether a row is what a method draws, and not its estimate."""
    return row.endswith(_DRAWN)
