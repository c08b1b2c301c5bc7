"""The rows of the papers' table: which method, recipe and reading each is, and its training in pieces that resume."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.papers_cohort import runs
from benchmarks.results import lines_in, spent_in
from concordct.pipelines.calibrate import calibrate_pairs, pairs_of_manifest
from concordct.pipelines.train import train

#: Methods that are calibrated in closed form.
CLOSED = ("spectral", "concord")


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes
    ----------
    method : a name of the catalogue. recipe : of it; "" for none.
    without : what is left out, a name of its ablations.
    sampling : what is overridden at inference. of : the row whose model it uses; "" for its own.
    chosen : whether its steps are those that were chosen on validation (`benchmarks.papers_steps`).
    samples : whether two samples of it are compared.
    """

    method: str
    recipe: str = ""
    without: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    of: str = ""
    samples: bool = False
    chosen: bool = False


LONG, BRIEF, DCT, DCT_BRIEF = "LTDiff++", "LTDiff++, common budget", "DiffusionCT", "DiffusionCT, common budget"
DDPM, CONDITIONED = "DDPM alone (image)", "DiffusionCT, decoder conditioned on A"
PRINTED, WITHOUT_INTEGRATION = "DiffusionCT as printed", "DiffusionCT, skips without integration"
#: In the order in which they are trained: what matters most first.
ROWS: dict[str, Row] = {
    "histogram matching": Row("histogram"),
    "spectral": Row("spectral", samples=True),
    "concord": Row("concord", samples=True),
    LONG: Row("ltdiffpp", "small", samples=True),
    DCT: Row("diffusionct", "small", samples=True),
    BRIEF: Row("ltdiffpp", "common"),
    "LTDiff++, common budget, without phase 3": Row("ltdiffpp", "common", "integration"),
    "LTDiff++, common budget, without skips": Row("ltdiffpp", "common", "skips", samples=True),
    "LTDiff++, common budget, without deep supervision": Row("ltdiffpp", "common", "supervision"),
    DCT_BRIEF: Row("diffusionct", "common"),
    PRINTED: Row("diffusionct", "common", "skips"),
    WITHOUT_INTEGRATION: Row("diffusionct", "common", "integration"),
    f"{PRINTED}, latent four times as large": Row("diffusionct", "common", "bottleneck"),
    CONDITIONED: Row("diffusionct", "common", "idle", samples=True),
    "UNet++ alone": Row("unetpp", "common"),
    DDPM: Row("ddpm", "common", samples=True),
    "encoder-decoder": Row("encoder-decoder", "common"),
    "LTDiff++ pruned to depth 1": Row("ltdiffpp", sampling={"depth": 1}, of=LONG),
    "without deep supervision, pruned to depth 1": Row(
        "ltdiffpp", sampling={"depth": 1}, of="LTDiff++, common budget, without deep supervision"
    ),
    "common budget, pruned to depth 1": Row("ltdiffpp", sampling={"depth": 1}, of=BRIEF),
    "LTDiff++ started from Z_A at T / 2": Row("ltdiffpp", sampling={"start": "source", "begin": 0.5}, of=LONG),
    "LTDiff++, steps chosen on validation": Row("ltdiffpp", of=LONG, chosen=True),
    "DiffusionCT, steps chosen on validation": Row("diffusionct", of=DCT, chosen=True),
    "DDPM alone, steps chosen on validation": Row("ddpm", of=DDPM, chosen=True),
}
#: Phases that a row takes over from another, which trained them to the bit.
SHARED = {
    "LTDiff++, common budget, without phase 3": (BRIEF, ("autoencoder", "diffusion")),
    WITHOUT_INTEGRATION: (DCT_BRIEF, ("autoencoder", "diffusion")),
}


def place_of(name: str) -> Path:
    """Where the model of a row lies."""
    owner = ROWS[name].of or name
    word = owner.lower().replace(" / ", "-").replace("(", "").replace(")", "").replace(",", "").replace(" ", "-")
    return runs() / "models" / word


def train_rows(names: list[str], manifest: Path, *, minutes: float | None, most_steps: int | None) -> bool:
    """Train what is not there yet; whether all stand."""
    until = None if minutes is None else time.monotonic() + 60 * minutes
    for name in names:
        row, path = ROWS[name], place_of(name)
        if path.exists() or row.of:
            continue
        left = None if until is None else (until - time.monotonic()) / 60
        if left is not None and left <= 0:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        if row.method in CLOSED:
            calibrate_pairs(pairs_of_manifest(manifest), path, method=row.method)
            continue
        _take_over(name)
        done = train(
            row.method,
            manifest,
            path,
            recipe=row.recipe or "small",
            without=row.without,
            most_steps=most_steps,
            minutes=left,
            progress=lambda phase, step, total, name=name: (  # type: ignore[misc]
                print(f"{name}, {phase}: {step} of {total}", flush=True) if step % 100 == 0 else None
            ),
        )
        if not done.done:
            return False
    return True


def _take_over(name: str) -> None:
    """Give a row the finished phases that it shares with another."""
    if name not in SHARED:
        return
    owner, phases = SHARED[name]
    for phase in phases:
        given = Path(f"{place_of(owner)}.run") / "checkpoints" / phase
        place = Path(f"{place_of(name)}.run") / "checkpoints" / phase
        if given.exists() and not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(given.resolve(), target_is_directory=True)


def chosen_steps(owner: str) -> int | None:
    """Sampling steps of a model that were best on validation; None where nobody has looked."""
    path = runs() / "steps.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found.get(owner)


def lines_of(name: str) -> list[dict[str, Any]]:
    """The metrics of a row's own training, step by step."""
    return lines_in(Path(f"{place_of(name)}.run"))


def spent(name: str) -> dict[str, tuple[int, float]]:
    """Steps and processor seconds of each phase of a row's training, those that it shares with another row included."""
    owner, phases = SHARED.get(name, (name, ()))
    shared = {} if owner == name else {phase: one for phase, one in spent(owner).items() if phase in phases}
    return {**shared, **spent_in(Path(f"{place_of(name)}.run"))}
