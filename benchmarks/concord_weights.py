"""Scan the studies and train the network that comes with the package.

python -m benchmarks.concord_weights                  # resumes; writes src/concordct/methods/weights/concord
python -m benchmarks.concord_weights --minutes 9      # one piece; run it again to go on
python -m benchmarks.concord_weights --variant regression   # an ablation, in runs/concord/variants

Studies (random bodies, doses and kernels, simulated) go to `runs/concord/studies`, about half a minute of one core
each; checkpoints beside them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import concord_variants
from benchmarks.concord_variants import TRAININGS
from benchmarks.flagship_cohorts import flagship_code
from benchmarks.results import ROOT
from concordct import __version__
from concordct.methods.concord.bundle import SHIPPED, WEIGHTS
from concordct.methods.concord.inputs import CONDITION, MAPS
from concordct.methods.concord.training import Scanned
from concordct.nets.remainder import RemainderConfig, RemainderUNet
from concordct.scanner.studies import SUBJECTS, scan_study
from concordct.training.bundle import Bundle, save_bundle
from concordct.training.engine import Paused, Phase, Run, team, train_phase
from concordct.volumes.place import atomic_file

SEED = 11
STUDIES = 64
#: The first studies are kept for validation.
VALIDATION = 2
PHASE = Phase(steps=4000, batch=12, learning_rate=1e-3, final_rate=0.02, warmup=100, ema=0.998, every=250)
PATCH = 96
CARD = """# Weights of concord

Residual flow for what a reconstruction kernel destroyed (`concordct/methods/concord.py`), {parameters:,} parameters.

- Data: {studies} simulated studies of the virtual scanner (`concordct/scanner/studies.py`, seed {seed}): random bodies,
  doses, pixels, thicknesses and kernels. No patient, no named kernel, no real scan was used.
- Training: `python -m benchmarks.concord_weights`, {steps} steps of {batch} patches of {patch} pixels, Adam.
- Last loss: {loss:.4f}, {share:.3f} of that of a silent network (noise of the calibrated spectrum alone).
- Use: inside models that `concordct calibrate` writes. Research use; not a medical device. What it draws above the
  source kernel's limit is texture of the right kind, not the patient's own.
"""


def studies(folder: Path, count: int, deadline: float | None) -> list[list[Scanned]]:
    """The studies, scanned where they are not there yet; the protocols of each."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for number in range(count):
        path, record = folder / f"{number:03d}.npy", folder / f"{number:03d}.json"
        if not (path.exists() and record.exists()):
            if deadline is not None and time.monotonic() > deadline:
                raise SystemExit(f"paused before study {number}; run it again to go on")
            protocols, images = scan_study(number, seed=SEED)
            with atomic_file(path, overwrite=True) as aside, aside.open("wb") as file:
                np.save(file, images)
            with atomic_file(record, overwrite=True) as aside:
                aside.write_text(json.dumps([dataclasses.asdict(one) for one in protocols], indent=1) + "\n")
            print(f"study {number + 1} of {count}", flush=True)
        images = np.load(path, mmap_mode="r")
        told = json.loads(record.read_text())
        found.append(
            [
                Scanned(f"study {number}/{i}", list(images[i]), SUBJECTS, one["pixel_mm"], one["acquisition"]["row_mm"])
                for i, one in enumerate(told)
            ]
        )
    return found


def main() -> None:
    """Scan, train, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "concord")
    parser.add_argument("--output", "-o", type=Path, help="the package, or for a variant the folder of variants")
    parser.add_argument("--studies", type=int, default=STUDIES)
    parser.add_argument("--steps", type=int, help=f"{PHASE.steps}, or for a variant {concord_variants.STEPS}")
    parser.add_argument("--variant", choices=tuple(TRAININGS), help="see benchmarks/concord_variants.py")
    parser.add_argument("--minutes", type=float)
    given = parser.parse_args()
    deadline = None if given.minutes is None else time.monotonic() + 60 * given.minutes
    scanned = studies(given.folder / "studies", given.studies, deadline)
    steps = given.steps or (concord_variants.STEPS if given.variant else PHASE.steps)
    output = given.output or (given.folder / "variants" / given.variant if given.variant else SHIPPED)
    training = TRAININGS[given.variant or "flow"]
    torch.manual_seed(SEED)
    network = RemainderUNet(RemainderConfig(MAPS, CONDITION))
    task = training.task(network)
    patches = training.patches([one for study in scanned[VALIDATION:] for one in study], size=PATCH, seed=SEED)
    folder = given.folder / f"{given.variant or 'flow'}-{given.studies}-{steps}"
    with team() as members:

        def told(phase_name: str, step: int, steps: int) -> None:
            if step % 50 == 0:
                print(f"{phase_name}: {step} of {steps}", flush=True)

        stop = None if deadline is None else (lambda: time.monotonic() > deadline)
        try:
            train_phase(
                "flow", task, patches, dataclasses.replace(PHASE, steps=steps), Run(folder, members, told, stop)
            )
        except Paused:
            raise SystemExit("paused; run it again to go on") from None
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()][-200:]
    info: dict[str, Any] = {
        "software": f"concordct {__version__}",
        "studies": given.studies - VALIDATION,
        "seed": SEED,
        "steps": steps,
        "variant": given.variant,
        "code": flagship_code(),
    }
    tensors = {key: one.detach().cpu().numpy() for key, one in network.state_dict().items()}
    parameters = sum(one.numel() for one in network.parameters())
    described = dataclasses.asdict(network.config)
    bundle = Bundle(tensors, {"method": WEIGHTS, "network": described, "parameters": parameters, "info": info})
    card = CARD.format(
        parameters=parameters,
        batch=PHASE.batch,
        patch=PATCH,
        loss=np.mean([one["loss"] for one in lines]),
        share=np.mean([one["share"] for one in lines]),
        **info,
    )
    save_bundle(bundle, output, card=card, overwrite=True)
    print(output)


if __name__ == "__main__":
    main()
