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
from concordct.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from concordct.training.data import Batch, Batches
from concordct.training.muon import Muon

METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class Phase:
    """How long and how a phase is trained.

    Attributes
    ----------
    epochs : visits of every slice; steps follow from it. One of this and `steps` is 0.
    steps : optimizer steps.
    batch : patches in the global batch.
    learning_rate : after the warm-up; `final_rate` is what it falls to (cosine), as a share.
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
    task : its forward takes (source, target [b, c, ...] HU, seeds [b]) and gives {"loss": scalar, ...}.
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
    total = phase.length(patches.slices)
    place = folder / "checkpoints" / name
    task.to(team.device)
    parameters = {key: one for key, one in task.named_parameters() if one.requires_grad}
    optimizers: dict[str, type[torch.optim.Optimizer]] = {"adam": torch.optim.Adam, "muon": Muon}
    optimizer = optimizers[phase.optimizer](parameters.values(), lr=phase.learning_rate)  # type: ignore[call-arg]
    average = {key: one.detach().clone() for key, one in parameters.items()}
    start = _resume(place, parameters, optimizer, average)
    if start < total:
        if team.rank == 0:
            _trim_metrics(folder / METRICS, name, start)
        board = _tensorboard(folder) if team.rank == 0 else None
        forward: nn.Module = task
        if team.size > 1:
            forward = nn.parallel.DistributedDataParallel(task, broadcast_buffers=False, find_unused_parameters=True)
        own = range(team.rank, phase.batch, team.size)
        mixed = torch.autocast(team.device.type, torch.bfloat16) if _has_bfloat16(team.device) else nullcontext()
        began = time.monotonic()
        with ThreadPoolExecutor(1) as reader:
            waiting = reader.submit(patches.batch, start, own)
            for step in range(start, total):
                batch = waiting.result()
                waiting = reader.submit(patches.batch, step + 1, own)

                # Forward and backward
                source, target = (torch.from_numpy(one).to(team.device) for one in (batch.source, batch.target))
                with mixed:
                    losses: dict[str, Tensor] = forward(source, target, batch.seeds)
                values = _gathered(losses, team)
                if not math.isfinite(values["loss"]):
                    raise ConcordctError(_not_finite(name, step, values["loss"], batch, place))
                optimizer.zero_grad(set_to_none=True)
                losses["loss"].backward()
                norm = float(nn.utils.clip_grad_norm_(parameters.values(), phase.clip))
                if not math.isfinite(norm):
                    raise ConcordctError(_not_finite(name, step, norm, batch, place, what="gradient"))

                # Update, and the moving average
                rate = _rate(phase, step, total)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                optimizer.step()
                decay = min(phase.ema, (1 + step) / (10 + step))
                with torch.no_grad():
                    for key, one in parameters.items():
                        average[key].lerp_(one, 1 - decay)

                # What a run leaves behind
                done = step + 1
                if team.rank == 0:
                    line = {"phase": name, "step": done, "rate": rate, "gradient": norm, **values}
                    line["seconds"] = round(time.monotonic() - began, 3)
                    _log(folder / METRICS, line, board)
                pausing = run.stop is not None and _any(run.stop(), team)
                if team.rank == 0 and (pausing or done % phase.every == 0 or done == total):
                    _save(place, done, parameters, optimizer, average)
                    if picture is not None:
                        _picture(folder / "pictures" / f"{name}-{done:08d}.png", parameters, average, picture)
                if run.progress is not None:
                    run.progress(name, done, total)
                if pausing and done < total:
                    raise Paused
        if board is not None:
            board.close()
        if team.size > 1:
            distributed.barrier()
    with torch.no_grad():
        for key, one in parameters.items():
            one.copy_(average[key])


def _rate(phase: Phase, step: int, total: int) -> float:
    warm = min(1.0, (step + 1) / max(phase.warmup, 1))
    falling = 0.5 * (1 + math.cos(math.pi * step / max(total, 1)))
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


def _save(
    place: Path,
    step: int,
    parameters: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    average: dict[str, Tensor],
) -> None:
    tensors: dict[str, Tensor] = {}
    for key, one in parameters.items():
        tensors[f"weight/{key}"] = one
        tensors[f"average/{key}"] = average[key]
        # A parameter that no loss reaches has no moments.
        state = optimizer.state.get(one) or {"exp_avg": torch.zeros_like(one), "exp_avg_sq": torch.zeros_like(one)}
        tensors[f"first/{key}"], tensors[f"second/{key}"] = state["exp_avg"], state["exp_avg_sq"]
    save_checkpoint(place, step, tensors, {"torch": torch.__version__})


def _resume(
    place: Path,
    parameters: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    average: dict[str, Tensor],
) -> int:
    """Take the last checkpoint; the number of steps done."""
    found = checkpoints(place)
    if not found:
        return 0
    tensors, info = load_checkpoint(found[-1])
    wanted = {f"{kind}/{key}" for key in parameters for kind in ("weight", "average", "first", "second")}
    shapes = all(
        tensors[f"weight/{key}"].shape == one.shape for key, one in parameters.items() if wanted <= set(tensors)
    )
    if set(tensors) != wanted or not shapes:
        raise ConcordctError(f"{found[-1]}: expected a checkpoint of this network, found another's; name a new output")
    step = int(info["step"])
    with torch.no_grad():
        for key, one in parameters.items():
            one.copy_(tensors[f"weight/{key}"])
            average[key].copy_(tensors[f"average/{key}"])
            optimizer.state[one] = {
                "step": torch.tensor(float(step)),
                "exp_avg": tensors[f"first/{key}"].to(one.device),
                "exp_avg_sq": tensors[f"second/{key}"].to(one.device),
            }
    return step


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


def _picture(path: Path, parameters: dict[str, nn.Parameter], average: dict[str, Tensor], draw: Picture) -> None:
    """A picture of what the averaged weights make."""
    import matplotlib.image

    kept = {key: one.detach().clone() for key, one in parameters.items()}
    with torch.no_grad():
        for key, one in parameters.items():
            one.copy_(average[key])
        path.parent.mkdir(parents=True, exist_ok=True)
        matplotlib.image.imsave(path, np.clip(draw(), 0, 1), cmap="gray", vmin=0.0, vmax=1.0)
        for key, one in parameters.items():
            one.copy_(kept[key])
