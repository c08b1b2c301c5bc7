"""A network that segments lungs, asked about source, standardized image and target: does conversion change its answer?

python -m benchmarks.downstream          # make bench-downstream; a few minutes of one core, resumes

lungmask's architecture (a 2D U-Net on slices of 256 x 256 pixels; Hofmanninger 2020, doi:10.1186/s41747-020-00173-2),
narrower, trained here on the target kernel's scans of the training patients of `benchmarks.papers_cohort` with the
lungs as they were drawn. `compare` then asks it as it asks any program.
"""

from __future__ import annotations

import functools
import sys
import time
from pathlib import Path

import numpy as np
import torch
from monai.networks.nets import BasicUNet
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from benchmarks.papers_cohort import jobs, runs
from benchmarks.results import RESULTS, ROOT, table
from concordct.judging.provenance import provenance
from concordct.methods.models import load_model
from concordct.pipelines.calibrate import METHODS, calibrate_pairs
from concordct.pipelines.compare import compare
from concordct.pipelines.consistency import consistency
from concordct.pipelines.programs import dice
from concordct.pipelines.simulate import simulate
from concordct.volumes.manifest import read_manifest
from concordct.volumes.place import atomic_file
from concordct.volumes.scans import one_scan
from concordct.volumes.volume import Volume

FOLDER = ROOT / "runs" / "downstream"
WEIGHTS, SLICES = FOLDER / "lungs.safetensors", FOLDER / "slices.npz"
#: lungmask's input and HU window.
PIXELS, WINDOW = 256, (-1024.0, 600.0)
STEPS, BATCH, RATE, SEED = 240, 4, 1e-3, 5
#: What `compare` measures besides: as little as it takes.
SETTINGS = "setting: {binWidth: 25, force2D: true}\nimageType: {Original: {}}\nfeatureClass: {firstorder: [Mean]}\n"


def network() -> BasicUNet:
    """lungmask's U-Net, narrower."""
    return BasicUNet(spatial_dims=2, in_channels=1, out_channels=3, features=(8, 16, 32, 64, 64, 8))


def shrunk(hu: NDArray[np.float32]) -> NDArray[np.float32]:
    """[z, 256, 256] slices in lungmask's window, 0 to 1."""
    fit = torch.nn.functional.interpolate(torch.from_numpy(hu)[:, None], (PIXELS, PIXELS), mode="area")[:, 0]
    low, high = WINDOW
    found: NDArray[np.float32] = ((fit.clamp(low, high) - low) / (high - low)).numpy()
    return found


def training_slices() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Slices of the training patients in the target's kernel, and their lungs as drawn: 1 right, 2 left."""
    if not SLICES.exists():
        manifest = simulate(jobs(), runs() / "cohort", file_format="nifti").manifest
        scans = {row.subject: row.target for row in read_manifest(manifest)}
        images, labels = [], []
        for job in (job for job in jobs() if job.split == "train"):
            path = scans[job.subject_name]
            assert path is not None
            volume = one_scan(path).read()
            lungs = job.body().masks(job.stacks[0].z_mm, job.frame)["lungs"]
            sides = lungs.astype(np.float32)
            sides[..., lungs.shape[2] // 2 :] *= 2
            images.append(shrunk(volume.hu))
            small = torch.nn.functional.interpolate(torch.from_numpy(sides)[:, None], (PIXELS, PIXELS))[:, 0]
            labels.append(small.numpy().astype(np.int64))
        FOLDER.mkdir(parents=True, exist_ok=True)
        with atomic_file(SLICES, overwrite=True) as aside, aside.open("wb") as stream:
            np.savez_compressed(stream, images=np.concatenate(images), labels=np.concatenate(labels))
    with np.load(SLICES, allow_pickle=False) as kept:
        return kept["images"], kept["labels"]


def train() -> float:
    """Train unless that has been done; seconds of processor time."""
    if WEIGHTS.exists():
        return float("nan")
    images, labels = training_slices()
    torch.manual_seed(SEED)
    generator = np.random.default_rng(SEED)
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), RATE)
    began = time.process_time()
    for step in range(STEPS):
        pick = generator.integers(len(images), size=BATCH)
        x, y = torch.from_numpy(images[pick])[:, None], torch.from_numpy(labels[pick])
        shift = [int(v) for v in generator.integers(-20, 21, 2)]
        x, y = torch.roll(x, shift, (2, 3)), torch.roll(y, shift, (1, 2))
        loss = torch.nn.functional.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 40 == 0:
            print(f"step {step}: {loss.item():.4f}", file=sys.stderr, flush=True)
    with atomic_file(WEIGHTS, overwrite=True) as aside:
        save_file(net.state_dict(), aside)
    return time.process_time() - began


@functools.cache
def _trained() -> BasicUNet:
    net = network()
    net.load_state_dict(load_file(WEIGHTS))
    return net.eval()


def lungs(volume: Volume) -> NDArray[np.int32]:
    """Labels of a volume's lungs on its own grid: 1 right, 2 left; what `compare` asks."""
    x = torch.from_numpy(shrunk(volume.hu))[:, None]
    with torch.inference_mode():
        logits = torch.cat([_trained()(one[None]) for one in x])
        large = torch.nn.functional.interpolate(logits, volume.shape[1:], mode="bilinear")
    return large.argmax(dim=1).numpy().astype(np.int32)


def main() -> None:
    """Train, ask, write the page."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    seconds = train()
    manifest = simulate(jobs(), runs() / "cohort", file_format="nifti").manifest
    rows = read_manifest(manifest)
    model = FOLDER / "model"
    if not model.exists():
        first = rows[0]
        assert first.target is not None
        calibrate_pairs([(one_scan(first.source), one_scan(first.target))], model)
    settings = FOLDER / "settings.yaml"
    settings.write_text(SETTINGS, encoding="utf-8")
    results = compare(
        manifest,
        {METHODS[0]: model},
        FOLDER / "compare",
        preset=str(settings),
        rois_per_range=1,
        downstream=["benchmarks.downstream:lungs"],
        overwrite=True,
        progress=lambda *said: print(*said, file=sys.stderr, flush=True),
    )
    (RESULTS / "downstream.md").write_text(page(results, manifest, model, seconds), encoding="utf-8")


def truth(manifest: Path) -> list[list[float]]:
    """Dice of the network's lungs with the lungs as drawn, [test patient, source and target], both lungs as one."""
    found = []
    for job, row in zip(jobs(), read_manifest(manifest), strict=True):
        if row.split != "test" or row.target is None:
            continue
        drawn = job.body().masks(job.stacks[0].z_mm, job.frame)["lungs"]
        found.append([dice(lungs(one_scan(path).read()) > 0, drawn) for path in (row.source, row.target)])
    return found


def page(results: dict[str, object], manifest: Path, model: Path, seconds: float) -> str:
    """docs/results/downstream.md."""
    made = provenance()
    found = consistency(manifest, load_model(model), lungs)
    rows = [
        [
            name,
            f"{found.source[:, k].mean():.4f}",
            f"{found.standardized[:, k].mean():.4f}",
            f"{found.gain[k]:+.4f} ({found.gain_interval[0, k]:+.4f} to {found.gain_interval[1, k]:+.4f})",
        ]
        for k, name in enumerate(found.names)
    ]
    drawn = np.array(truth(manifest)).mean(axis=0)
    took = "" if np.isnan(seconds) else f" in {seconds:.0f} s of one core"
    return f"""# A network downstream: lungs segmented before and after conversion

*`make bench-downstream`, {made["software"]}, commit {made["commit"]}, {made["machine"]}. Simulated patients
(`benchmarks.papers_cohort`), {len(found.subjects)} of the test split. Nothing was tuned on them.*

lungmask's architecture, a 2D U-Net on slices of {PIXELS} x {PIXELS} pixels, narrower, trained for {STEPS} steps{took}
on Bl64 scans of ten other patients with the lungs as drawn. `compare --downstream` asks it on source (Br40),
standardized image (`{METHODS[0]}`, `sample`) and target (Bl64). Dice with its own answer on the target:

{table(["", "source", "standardized", "gain, 95 % interval over patients"], rows)}

With the lungs as drawn its Dice is {drawn[0]:.4f} on source and {drawn[1]:.4f} on target.
"""


if __name__ == "__main__":
    main()
