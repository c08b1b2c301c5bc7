"""What the adversarial methods share: a generator as a system, and the sizes of the `paper`, `gpu` and `small` recipes.

A generator is deterministic: noise of dropout stays in training, and both modes of the Standardizer give the same. The
discriminators are not kept. Optimizer settings of `paper` are Isola et al.'s unless a method says otherwise; `gpu` and
`small` add the source to the output, use norms without statistics, and average the weights (all ours).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from concordct.methods.network import Draw, Recipe, TrainingData, sample_picture, seeded, to_bundle
from concordct.methods.paired.conditional import Sampling
from concordct.nets.discriminators import Judge
from concordct.nets.translators import Generator, Translator
from concordct.training.bundle import Bundle
from concordct.training.data import Batches, Patches, Together, strangers
from concordct.training.engine import Phase, Run, train_phase
from concordct.training.players import Player

#: Name of the phase in which everybody plays.
GAME = "game"
#: The papers clip no gradient.
NO_CLIP = 1e9
#: Adam's first moment in games.
BETAS = (0.5, 0.999)

UNET = {
    "paper": Translator("unet", 64, 8, "batch", dropout=0.5),
    "gpu": Translator("unet", 64, 5, "pixel", fold=2, residual=True),
    "small": Translator("unet", 24, 3, "pixel", fold=2, residual=True),
}
RESNET = {
    "paper": Translator("resnet", 64, 9, "instance"),
    "gpu": Translator("resnet", 64, 6, "pixel", halvings=1, fold=2, residual=True),
    "small": Translator("resnet", 32, 2, "pixel", halvings=0, fold=4, residual=True, outer=3),
}
JUDGES = {"paper": Judge(64, 3), "gpu": Judge(64, 3, "INSTANCE"), "small": Judge(16, 2, "INSTANCE")}
PATCH = {"paper": 256, "gpu": 128, "small": 64}


def players(*judges: str, rate: float = 1.0) -> tuple[Player, ...]:
    """The system's generator, then whoever judges; `judges` are names of the task's modules."""
    others = tuple(Player(name, (f"{name}.",), rate, BETAS) for name in judges)
    return (Player("generator", ("system.",), 1.0, BETAS), *others)


def phase(name: str, *, epochs: int = 200, batch: int = 1, linear: bool = False) -> Phase:
    """The game's length in a recipe; `epochs` and `batch` are the paper's."""
    if name == "paper":
        falls: dict[str, Any] = {"falls": "linear", "hold": 0.5, "final_rate": 0.0} if linear else {}
        return Phase(epochs=epochs, batch=batch, learning_rate=2e-4, warmup=0, clip=NO_CLIP, ema=0.0, **falls)
    if name == "gpu":
        return Phase(steps=16000, batch=16, learning_rate=2e-4, final_rate=0.05)
    return Phase(steps=2000, batch=8, learning_rate=1e-3, final_rate=0.05, every=250)


def recipe(name: str, config: Any, game: Phase) -> Recipe:
    """A recipe of one phase."""
    return Recipe(config=config, patch=PATCH[name], phases=((GAME, game),), sampling=Sampling(steps=1))


class Translation(nn.Module):
    """A generator at work.

    Attributes
    ----------
    tile : for generators with attention, which must see what they saw in training; None for whole slices.
    """

    def __init__(self, generator: nn.Module, *, tile: int | None = None) -> None:
        super().__init__()
        self.generator, self.tile = generator, tile
        self.divisor: int = generator.divisor  # type: ignore[assignment]

    def forward(self, image: Tensor) -> Tensor:
        """[b, 1, y, x] in [-1, 1] to the same."""
        return self.generator(image)

    def translate(self, image: Tensor, sampling: Any, draw: Draw, *, mean: bool) -> Tensor:
        """The standardized slices; nothing is drawn."""
        training = self.generator.training
        made = self.generator.eval()(image)
        self.generator.train(training)
        return made


def play(
    method: str,
    data: TrainingData,
    recipe: Recipe,
    run: Run,
    make: Callable[[], nn.Module],
    game: Callable[[nn.Module], nn.Module],
    batches: Batches | None = None,
) -> Bundle:
    """Play from where the game stands; the bundle of the system.

    Parameters
    ----------
    make : the system that is kept, with weights from the recipe's seed. game : the task around it.
    batches : where they come from, if not from the pairs alone.
    """
    system = seeded(make, recipe.seed)
    task = seeded(lambda: game(system), recipe.seed + 1)
    pairs = Patches(data.pairs, recipe.patch, recipe.seed)
    picture = sample_picture(system, pairs, recipe.sampling)
    train_phase(GAME, task, batches or pairs, recipe.phase(GAME), run, picture=picture)
    return to_bundle(method, system, recipe, data.info)


def make(config: Any) -> Translation:
    """The system of a configuration with a `generator`, and a `tile` where it has attention."""
    return Translation(Generator(config.generator), tile=getattr(config, "tile", None))


def build(config: Mapping[str, Any]) -> Translation:
    """The system of a stored configuration."""
    return Translation(Generator(Translator(**config["generator"])), tile=config.get("tile"))


def fitted(
    method: str,
    game: Callable[[nn.Module, Recipe], nn.Module],
    *,
    batches: Callable[[TrainingData, Recipe], Batches] | None = None,
    make: Callable[[Any], nn.Module] = make,
) -> Callable[[TrainingData, Recipe, Run], Bundle]:
    """A method's `fit`, where that is to play from where the game stands; see `play`."""

    def fit(data: TrainingData, recipe: Recipe, run: Run) -> Bundle:
        drawn = None if batches is None else batches(data, recipe)
        return play(method, data, recipe, run, lambda: make(recipe.config), lambda system: game(system, recipe), drawn)

    return fit


def unpaired(data: TrainingData, recipe: Recipe) -> Batches:
    """Strangers alone; scans without a partner are further sources."""
    return strangers(data.pairs, recipe.patch, recipe.seed, others=data.images)


def beside_strangers(data: TrainingData, recipe: Recipe) -> Batches:
    """Pairs, and strangers beside them; scans without a partner are further sources."""
    pairs = Patches(data.pairs, recipe.patch, recipe.seed)
    return Together(pairs, strangers(data.pairs, recipe.patch, recipe.seed + 10, others=data.images))
