"""The training loop: one phase of one method, from whatever checkpoint stands, to its last step.

It knows a loss, not a method. Everything random follows from (seed, step, place in the batch), so a run that was killed
and resumed ends with the same weights, bit for bit (on a CPU), and processes under `torchrun` share the global batch:

    torchrun --nproc-per-node 2 -m concordct.cli train ltdiffpp pairs.csv -o model --recipe small
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn

from concordct.errors import ConcordctError
from concordct.signal.drawing import ready_to_draw
from concordct.training.checkpoint import checkpoints
from concordct.training.data import Batch, Batches
from concordct.training.players import ALONE, Table, resume, save, seat

METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class Phase:
    """How long and how a phase is trained.

    Attributes
    ----------
    epochs : visits of every slice; steps follow from it. One of this and `steps` is 0.
    steps : optimizer steps.
    batch : patches in the global batch.
    learning_rate : after the warm-up; `final_rate` is what it falls to, as a share.
    falls : along half a cosine, or "linear"; hold : share of the steps before it begins to fall.
    warmup : steps in which the rate grows from 0.
    clip : largest norm of the gradient.
    ema : decay of the moving average of the weights, which is what remains of the phase; it starts faster.
    optimizer : "adam", or "muon" with a rate of its own, see `training/muon.py`.
    every : steps from checkpoint to checkpoint.
    """

    epochs: int = 0
    steps: int = 0
    batch: int = 8
    learning_rate: float = 1e-4
    final_rate: float = 1.0
    warmup: int = 100
    clip: float = 1.0
    ema: float = 0.999
    every: int = 500
    optimizer: Literal["adam", "muon"] = "adam"
    falls: Literal["cosine", "linear"] = "cosine"
    hold: float = 0.0

    def length(self, slices: int) -> int:
        """Optimizer steps over so many slices an epoch."""
        return self.steps or self.epochs * math.ceil(slices / self.batch)


@dataclass(frozen=True)
class Team:
    """Who trains together."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009


#: Called with (phase, step, steps in all).
Progress = Callable[[str, int, int], None]


class Paused(Exception):
    """A run that was asked to stop: its checkpoint is written, the next run goes on."""


@dataclass(frozen=True)
class Run:
    """Where and with whom a method is trained.

    Attributes
    ----------
    folder : checkpoints, metrics and pictures.
    team : who trains together.
    progress : called after each step.
    stop : asked after each step whether to write a checkpoint and pause.
    """

    folder: Path
    team: Team = Team()
    progress: Progress | None = None
    stop: Callable[[], bool] | None = None


#: Draws what the phase makes of a fixed patch: [y, x], 0 to 1.
Picture = Callable[[], NDArray[np.floating[Any]]]


@contextmanager
def team() -> Iterator[Team]:
    """One process, or the processes that `torchrun` started (NCCL on GPUs, gloo on CPUs)."""
    cuda = torch.cuda.is_available()
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield Team(device=torch.device("cuda" if cuda else "cpu"))
        return
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if cuda else "gloo")
    try:
        yield Team(distributed.get_rank(), distributed.get_world_size(), device)
    finally:
        distributed.destroy_process_group()


def train_phase(
    name: str,
    task: nn.Module,
    patches: Batches,
    phase: Phase,
    run: Run,
    *,
    picture: Picture | None = None,
) -> None:
    """Train the parameters of `task` that require gradients; leave their moving average in it.

    Parameters
    ----------
    task : its forward takes (source, target [b, c, ...] HU, seeds [b]) and gives {"loss": scalar, ...}; with `players`
        it takes the name of the one who moves as well.
    run : a phase goes on from its last checkpoint in the run's folder.
    picture : called at each checkpoint on the first process.

    Raises
    ------
    ConcordctError : a loss that is not finite (step, batch and last good checkpoint), a batch that the processes
        cannot share evenly, a checkpoint of another network.
    Paused : `run.stop` said so.
    """
    team, folder = run.team, run.folder
    if phase.batch % team.size:
        raise ConcordctError(f"a global batch of {phase.batch} does not divide among {team.size} processes")
    if picture is not None and team.rank == 0:
        ready_to_draw()
    total = phase.length(patches.slices)
    place = folder / "checkpoints" / name
    task.to(team.device)
    table = seat(task, phase.learning_rate, phase.optimizer)
    start = resume(place, table)
    if start < total:
        if team.rank == 0:
            _trim_metrics(folder / METRICS, name, start)
        board = _tensorboard(folder) if team.rank == 0 else None
        forward: nn.Module = task
        if team.size > 1:
            forward = nn.parallel.DistributedDataParallel(task, broadcast_buffers=False, find_unused_parameters=True)
        own = range(team.rank, phase.batch, team.size)
        mixed = torch.autocast(team.device.type, torch.bfloat16) if _has_bfloat16(team.device) else nullcontext()
        began, spent = time.monotonic(), time.process_time()
        with ThreadPoolExecutor(1) as reader:
            waiting = reader.submit(patches.batch, start, own)
            for step in range(start, total):
                batch = waiting.result()
                waiting = reader.submit(patches.batch, step + 1, own)
                source, target = (torch.from_numpy(one).to(team.device) for one in (batch.source, batch.target))
                rate = _rate(phase, step, total)
                values: dict[str, float] = {}

                # Every player's move: forward, backward, update
                for mover in table.movers:
                    game = mover.player is not ALONE
                    with table.turn(mover):
                        with mixed:
                            turn = (mover.player.name,) if game else ()
                            losses: dict[str, Tensor] = forward(source, target, batch.seeds, *turn)
                        if not losses:
                            continue
                        found = _gathered(losses, team)
                        if not math.isfinite(found["loss"]):
                            raise ConcordctError(_not_finite(name, step, found["loss"], batch, place))
                        mover.optimizer.zero_grad(set_to_none=True)
                        losses["loss"].backward()
                    norm = float(nn.utils.clip_grad_norm_(mover.parameters.values(), phase.clip))
                    if not math.isfinite(norm):
                        raise ConcordctError(_not_finite(name, step, norm, batch, place, what="gradient"))
                    for group in mover.optimizer.param_groups:
                        group["lr"] = rate * mover.player.rate
                    mover.optimizer.step()
                    mover.moves += 1
                    prefix = "" if mover is table.movers[0] else f"{mover.player.name} "
                    values |= {f"{prefix}gradient": norm, **{f"{prefix}{key}": one for key, one in found.items()}}
                table.update_average(min(phase.ema, (1 + step) / (10 + step)))

                # What a run leaves behind
                done = step + 1
                if team.rank == 0:
                    line = {"phase": name, "step": done, "rate": rate, **values}
                    line["seconds"] = round(time.monotonic() - began, 3)
                    line["processor"] = round(time.process_time() - spent, 3)
                    _log(folder / METRICS, line, board)
                pausing = run.stop is not None and _any(run.stop(), team)
                if team.rank == 0 and (pausing or done % phase.every == 0 or done == total):
                    save(place, done, table)
                    if picture is not None:
                        _picture(folder / "pictures" / f"{name}-{done:08d}.png", table, picture)
                if run.progress is not None:
                    run.progress(name, done, total)
                if pausing and done < total:
                    raise Paused
        if board is not None:
            board.close()
        if team.size > 1:
            distributed.barrier()
    table.take_average()


def _rate(phase: Phase, step: int, total: int) -> float:
    warm = min(1.0, (step + 1) / max(phase.warmup, 1))
    gone = max(0.0, step / max(total, 1) - phase.hold) / (1 - phase.hold)
    falling = 0.5 * (1 + math.cos(math.pi * gone)) if phase.falls == "cosine" else 1 - gone
    return phase.learning_rate * warm * (phase.final_rate + (1 - phase.final_rate) * falling)


def _has_bfloat16(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_bf16_supported()


def _gathered(losses: dict[str, Tensor], team: Team) -> dict[str, float]:
    """The mean over processes of every reported loss."""
    stacked = torch.stack([one.detach().float() for one in losses.values()])
    if team.size > 1:
        distributed.all_reduce(stacked)
        stacked = stacked / team.size
    return dict(zip(losses, stacked.tolist(), strict=True))


def _any(flag: bool, team: Team) -> bool:
    if team.size == 1:
        return flag
    shared = torch.tensor(float(flag), device=team.device)
    distributed.all_reduce(shared)
    return bool(shared > 0)


def _not_finite(name: str, step: int, value: float, batch: Batch, place: Path, *, what: str = "loss") -> str:
    good = checkpoints(place)
    where = str(good[-1]) if good else "none yet"
    return (
        f"{name}, step {step + 1}: expected a finite {what}, found {value}; batch: {'; '.join(batch.places)}; "
        f"last good checkpoint: {where}"
    )


def _trim_metrics(path: Path, name: str, start: int) -> None:
    """Forget the lines of steps that will be done again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            continue  # the line that a kill cut short
        if found["phase"] != name or found["step"] <= start:
            kept.append(line + "\n")
    path.write_text("".join(kept))


def _log(path: Path, line: dict[str, Any], board: Any) -> None:
    with path.open("a") as file:
        file.write(json.dumps({key: line[key] for key in line}) + "\n")
    if board is not None:
        for key, value in line.items():
            if key not in ("phase", "step"):
                board.add_scalar(f"{line['phase']}/{key}", value, line["step"])


def _tensorboard(folder: Path) -> Any:
    """A writer where TensorBoard is installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"))


def _picture(path: Path, table: Table, draw: Picture) -> None:
    """A picture of what the averaged weights make."""
    import matplotlib.image

    with table.averaged():
        path.parent.mkdir(parents=True, exist_ok=True)
        matplotlib.image.imsave(path, np.clip(draw(), 0, 1), cmap="gray", vmin=0.0, vmax=1.0)
