"""Who moves in a training step: one optimizer for a regression, several for a game of generators and discriminators.

A task without `players` has one, who owns all of its parameters. A game names its players in the order in which they
move; the engine calls `task(source, target, seeds, name)` for each, and an empty dictionary sits the turn out. While
one moves, the parameters of the others are constants.

What a game remembers beside weights (replayed images, older copies, whose turn it is) lies in its buffers: they are
part of a checkpoint, so a resumed game goes on to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from concordct.errors import ConcordctError
from concordct.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from concordct.training.muon import Muon


@dataclass(frozen=True)
class Player:
    """One optimizer.

    Attributes
    ----------
    name : in metrics; the losses of the first player stand there without it.
    owns : parameters whose names begin with one of these.
    rate : its learning rate as a share of the phase's.
    betas : of Adam, where that is the optimizer.
    """

    name: str
    owns: tuple[str, ...]
    rate: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)


#: The one player of a task that names none.
ALONE = Player("all", ("",))


@dataclass(eq=False)
class Mover:
    """A player at work: its parameters by name, its optimizer, how often it has moved."""

    player: Player
    parameters: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    moves: int = 0


@dataclass(eq=False)
class Table:
    """Everyone who moves, and the moving average of every weight.

    Attributes
    ----------
    parameters : all that are trained, by name. buffers : what the task remembers. average : of the parameters.
    """

    movers: list[Mover]
    parameters: dict[str, nn.Parameter]
    buffers: dict[str, Tensor]
    average: dict[str, Tensor] = field(default_factory=dict)

    def update_average(self, decay: float) -> None:
        """One step of the moving average."""
        with torch.no_grad():
            for key, one in self.parameters.items():
                self.average[key].lerp_(one, 1 - decay)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The averaged weights in place of the trained ones, for a while."""
        kept = {key: one.detach().clone() for key, one in self.parameters.items()}
        self.take_average()
        yield
        with torch.no_grad():
            for key, one in self.parameters.items():
                one.copy_(kept[key])

    def take_average(self) -> None:
        """Leave the averaged weights in the task."""
        with torch.no_grad():
            for key, one in self.parameters.items():
                one.copy_(self.average[key])

    @contextmanager
    def turn(self, mover: Mover) -> Iterator[None]:
        """Only this player's parameters collect gradients."""
        others = [one for key, one in self.parameters.items() if key not in mover.parameters]
        for one in others:
            one.requires_grad_(False)
        yield
        for one in others:
            one.requires_grad_(True)


def seat(task: nn.Module, learning_rate: float, kind: Literal["adam", "muon"] = "adam") -> Table:
    """An optimizer for each player of a task.

    Raises
    ------
    ConcordctError : a trained parameter that no player or more than one owns.
    """
    players: Sequence[Player] = getattr(task, "players", (ALONE,))
    parameters = {key: one for key, one in task.named_parameters() if one.requires_grad}
    movers = []
    owners = dict.fromkeys(parameters, 0)
    for player in players:
        own = {key: one for key, one in parameters.items() if key.startswith(player.owns)}
        for key in own:
            owners[key] += 1
        rate = learning_rate * player.rate
        optimizer: torch.optim.Optimizer = (
            Muon(own.values(), rate) if kind == "muon" else torch.optim.Adam(own.values(), rate, betas=player.betas)
        )
        movers.append(Mover(player, own, optimizer))
    if wrong := [key for key, count in owners.items() if count != 1]:
        raise ConcordctError(f"expected one player for each parameter, found {owners[wrong[0]]} for {wrong[0]}")
    known = {key for key, _ in task.named_parameters()}
    buffers = {key: one for key, one in task.state_dict().items() if key not in known}
    return Table(movers, parameters, buffers, {key: one.detach().clone() for key, one in parameters.items()})


def save(place: Path, step: int, table: Table) -> None:
    """Write weights, averages, moments, and what the task remembers."""
    tensors: dict[str, Tensor] = {f"buffer/{key}": one for key, one in table.buffers.items()}
    for mover in table.movers:
        for key, one in mover.parameters.items():
            tensors[f"weight/{key}"] = one
            tensors[f"average/{key}"] = table.average[key]
            # A parameter that no loss reaches has no moments.
            state = mover.optimizer.state.get(one) or dict.fromkeys(("exp_avg", "exp_avg_sq"), torch.zeros_like(one))
            tensors[f"first/{key}"], tensors[f"second/{key}"] = state["exp_avg"], state["exp_avg_sq"]
    info: dict[str, Any] = {"torch": torch.__version__}
    if len(table.movers) > 1:
        info["moves"] = {mover.player.name: mover.moves for mover in table.movers}
    save_checkpoint(place, step, tensors, info)


def resume(place: Path, table: Table) -> int:
    """Take the last checkpoint; the number of steps done.

    Raises
    ------
    ConcordctError : a checkpoint of another network.
    """
    found = checkpoints(place)
    if not found:
        return 0
    tensors, info = load_checkpoint(found[-1])
    wanted = {f"{kind}/{key}" for key in table.parameters for kind in ("weight", "average", "first", "second")}
    kept = {key for key in tensors if not key.startswith("buffer/")}
    pairs: list[tuple[str, Tensor]] = [(f"weight/{key}", one) for key, one in table.parameters.items()]
    # A run of a version that kept no buffers has none to check.
    pairs += [(f"buffer/{key}", one) for key, one in table.buffers.items() if f"buffer/{key}" in tensors]
    if kept != wanted or any(tensors[key].shape != one.shape for key, one in pairs):
        raise ConcordctError(f"{found[-1]}: expected a checkpoint of this network, found another's; name a new output")
    step = int(info["step"])
    with torch.no_grad():
        for stored, one in pairs:
            one.copy_(tensors[stored])
        for mover in table.movers:
            mover.moves = int(info.get("moves", {}).get(mover.player.name, step))
            for key, parameter in mover.parameters.items():
                table.average[key].copy_(tensors[f"average/{key}"])
                mover.optimizer.state[parameter] = {
                    "step": torch.tensor(float(mover.moves)),
                    "exp_avg": tensors[f"first/{key}"].to(parameter.device),
                    "exp_avg_sq": tensors[f"second/{key}"].to(parameter.device),
                }
    return step
