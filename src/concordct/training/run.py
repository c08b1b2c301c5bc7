"""A training run on disk: whose it is, what was trained, how long it may take, what its model card says.

`MODEL.run/` holds whatever a run needs to go on; `MODEL` appears when all phases are done.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from concordct.errors import ConcordctError
from concordct.training.engine import METRICS, Phase
from concordct.volumes.place import atomic_file, make_folder

#: Called with (phase, step, steps in all).
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Trained:
    """What a run left: the model when `done`, else a run to go on with."""

    output: Path
    done: bool
    seconds: float
    parameters: int


def place_of_run(output: Path, *, overwrite: bool) -> Path:
    """The folder of the run that makes `output`.

    Raises
    ------
    ConcordctError : the output exists already.
    """
    if output.exists() and not overwrite:
        raise ConcordctError(f"{output}: expected a new place, found one that exists [exists]")
    return output.with_name(output.name + ".run")


def time_limit(minutes: float | None) -> Callable[[], bool] | None:
    """Whether so many minutes from now are over; None without a limit."""
    end = None if minutes is None else time.monotonic() + 60 * minutes
    return None if end is None else (lambda: time.monotonic() > end)


def cut_short(phase: Phase, most_steps: int | None) -> Phase:
    """A phase of at most so many steps."""
    if most_steps is None:
        return phase
    return replace(phase, epochs=0, steps=min(phase.steps or most_steps, most_steps))


def digest_of(value: Any) -> str:
    """SHA-256 of a value as JSON, or of a file's bytes.

    Raises
    ------
    ConcordctError : a file that cannot be read.
    """
    if not isinstance(value, Path):
        return hashlib.sha256(json.dumps(value).encode()).hexdigest()
    try:
        return hashlib.sha256(value.read_bytes()).hexdigest()
    except OSError as error:
        raise ConcordctError(f"{value}: expected a file of weights, cannot read it ({error.strerror})") from None


def plain(recipe: Any) -> Any:
    """A recipe as JSON gives it back."""
    return None if recipe is None else json.loads(json.dumps(asdict(recipe)))


def claim(folder: Path, identity: Mapping[str, Any]) -> None:
    """Write what is trained on what into the run's folder, or check that it is the same.

    Raises
    ------
    ConcordctError : the folder holds the run of another method, recipe or data.
    """
    plan = folder / "run.json"
    if plan.exists():
        try:
            known = json.loads(plan.read_text())
        except (OSError, ValueError):
            known = {}
        differing = [name for name, value in identity.items() if known.get(name) != value]
        if differing:
            what = differing[0].split("_")[0]
            raise ConcordctError(f"{folder}: holds the run of another {what}; name a new output or remove it")
        return
    make_folder(folder)
    with atomic_file(plan) as aside:
        aside.write_text(json.dumps(identity, indent=1, sort_keys=True) + "\n")


def last_losses(folder: Path) -> dict[str, tuple[int, float]]:
    """Steps and last loss of each phase, from the run's metrics."""
    metrics = folder / METRICS
    last = {}
    for line in metrics.read_text().splitlines() if metrics.exists() else ():
        step = json.loads(line)
        if "loss" in step:  # a player who sits a step out has none
            last[step["phase"]] = (step["step"], step["loss"])
    return last
