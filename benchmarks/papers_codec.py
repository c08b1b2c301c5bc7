"""What the latent carries: compression against texture, each scale's share, and what leaks past the latent.

All on the validation subjects: choices are made here, the test subjects are for the tables alone.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

from benchmarks.papers_cohort import runs
from benchmarks.papers_measure import INPUT, Judged, Measured, fixed_stage, measured, model_of
from benchmarks.papers_rows import CONDITIONED, DCT, LONG, PRINTED, ROWS, WITHOUT_INTEGRATION, lines_of
from concordct.agreement import concordance
from concordct.judging.stages import stored
from concordct.methods.network import TrainingData, from_unit, load_system, seeded, to_unit
from concordct.methods.paired import diffusionct, ltdiffpp
from concordct.methods.paired.conditional import Sampling
from concordct.training.bundle import load_bundle
from concordct.training.data import Images, Patches
from concordct.training.engine import Run, train_phase
from concordct.volumes.volume import Volume

#: Latent channels of the trained curve at each scale, and steps of its trainings.
CURVE = ((1, 4, 16), (2, 8, 24), (3, 10, 40), (4, 12, 64), (6, 24, 64))
CURVE_STEPS = 700
#: Shares of the numbers that the best linear code of 8 x 8 blocks keeps.
LINEAR, BLOCK = (1 / 16, 0.25, 0.375, 0.5, 0.6875, 0.875), 8
#: Steps of each phase of the paper's architecture, and its patches: what a CPU allows in minutes.
PAPER_STEPS, PAPER_PATCH, PAPER_BATCH = 100, 64, 4
#: Classes shown.
SHOWN = ("GLCM", "GLRLM", "NID")

Image = Callable[[torch.Tensor], torch.Tensor]


def _classes(of: Measured, target: Measured) -> list[str]:
    means = concordance.mean_by_class(concordance.ccc_per_feature(of.values, target.values), of.classes)
    return [f"{means[name].mean:.2f}" for name in SHOWN]


def _hu(subjects: tuple[Judged, ...], work: Callable[[Judged], Volume]) -> float:
    squares = [np.mean((work(one).hu - one.slab.target.hu)[one.slab.target.hu > -500] ** 2) for one in subjects]
    return float(np.sqrt(np.mean(squares)))


def _reconstructed(again: Image, divisor: int) -> Callable[[Judged], Volume]:
    """D(E(B)) of a subject as it would have been stored."""

    def work(one: Judged) -> Volume:
        hu = one.slab.target.hu
        assert not any(length % divisor for length in hu.shape[1:])
        with torch.inference_mode():
            made = from_unit(again(to_unit(torch.from_numpy(hu)[:, None])))[:, 0].numpy()
        return one.slab.target.with_hu(stored(made, hu))

    return work


def _line(subjects: tuple[Judged, ...], name: str, identity: str, work: Callable[[Judged], Volume]) -> list[str]:
    target = measured(subjects, fixed_stage("target"), label="target")
    found = measured(subjects, (identity, lambda one: (work(one), 0.0)), label=name)
    return [name, f"{_hu(subjects, work):.1f}", *_classes(found, target)]


def curve(train: Sequence[Images], subjects: tuple[Judged, ...]) -> list[list[str]]:
    """Numbers a pixel, error of D(E(B)) in HU, texture CCC of D(E(B)), for the best linear code."""
    target = measured(subjects, fixed_stage("target"), label="target")
    source = measured(subjects, fixed_stage(INPUT), label=INPUT)
    rows = [
        ["A itself, for comparison", f"{_hu(subjects, lambda one: one.slab.source):.1f}", *_classes(source, target)]
    ]
    basis = _linear(train)
    for share in LINEAR:
        kept = round(share * BLOCK**2)
        name = f"best linear code of {BLOCK} x {BLOCK} blocks, {share:.2f} numbers a pixel"
        rows.append(_line(subjects, name, name, lambda one, kept=kept: _projected(one, basis[:, :kept])))  # type: ignore[misc]
    return rows


def codecs(train: Sequence[Images], subjects: tuple[Judged, ...]) -> list[list[str]]:
    """The same of UNet++ codecs of other latents, trained briefly and alike."""
    rows = []
    for latents in CURVE:
        codec = _codec(train, latents)
        name = f"UNet++ {latents}, {codec.compression:.2f} numbers a pixel, {CURVE_STEPS} steps"
        work = _reconstructed(lambda image, codec=codec: codec.decode(*codec.encode(image))[-1], codec.divisor)  # type: ignore[misc]
        rows.append(_line(subjects, name, name, work))
    return rows


def picture(linear: Sequence[Sequence[str]], learned: Sequence[Sequence[str]], path: Path) -> None:
    """Numbers a pixel against RMSE and GLCM CCC of D(E(B)): rows of `curve` (the first is A itself) and of `codecs`."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6))
    for axis, column, label in ((axes[0], 1, "RMSE in the body, HU"), (axes[1], 2, "GLCM, mean CCC")):
        for rows, name in ((linear[1:], "best linear code"), (learned, f"learned, {CURVE_STEPS} steps")):
            at = [float(str(re.search(r"([\d.]+) numbers a pixel", row[0])[1])) for row in rows]  # type: ignore[index]
            axis.plot(at, [float(row[column]) for row in rows], marker="o", label=name)
        axis.axhline(float(linear[0][column]), color="0.5", linestyle="--", label="A itself")
        axis.set_xlabel("latent numbers a pixel")
        axis.set_ylabel(label)
    axes[0].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)


def _linear(train: Sequence[Images]) -> np.ndarray:
    """Principal components, [64, 64], of what 8 x 8 blocks of training targets are beside their mean."""
    blocks = []
    for one in train:
        assert one.target is not None
        blocks.append(_blocks(np.clip(one.target[::3].astype(np.float32), -1200, 1500)))
    found = np.concatenate(blocks)
    found = found - found.mean(axis=1, keepdims=True)
    found = found[found.std(axis=1) > 15]
    _, vectors = np.linalg.eigh(found.T @ found)
    # The mean is one of the numbers.
    mean = np.full((BLOCK**2, 1), 1 / BLOCK)
    return np.concatenate([mean, vectors[:, ::-1][:, :-1]], axis=1)


def _blocks(hu: np.ndarray) -> np.ndarray:
    z, y, x = hu.shape
    cut = hu.reshape(z, y // BLOCK, BLOCK, x // BLOCK, BLOCK).transpose(0, 1, 3, 2, 4)
    return cut.reshape(-1, BLOCK**2)


def _projected(one: Judged, basis: np.ndarray) -> Volume:
    hu = one.slab.target.hu
    z, y, x = hu.shape
    made = _blocks(hu) @ basis @ basis.T
    made = made.reshape(z, y // BLOCK, x // BLOCK, BLOCK, BLOCK).transpose(0, 1, 3, 2, 4).reshape(hu.shape)
    return one.slab.target.with_hu(stored(made, hu))


def _codec(train: Sequence[Images], latents: tuple[int, ...]) -> ltdiffpp.LatentCodec:
    """The small recipe's autoencoder with other latents, trained briefly."""
    recipe = ltdiffpp.RECIPES["small"]
    config = dataclasses.replace(recipe.config, latents=latents)
    system = seeded(lambda: ltdiffpp.LTDiffPlusPlus(config), 0)
    assert isinstance(system, ltdiffpp.LTDiffPlusPlus)
    system.requires_grad_(False)
    system.codec.requires_grad_(True)
    phase = dataclasses.replace(recipe.phase("autoencoder"), steps=CURVE_STEPS)
    folder = runs() / "curve" / "-".join(map(str, latents))
    patches = Patches(train, recipe.patch, 0, either=True)
    train_phase("autoencoder", ltdiffpp.AutoencoderTask(system), patches, phase, Run(folder))
    return system.codec.eval()


def scales(subjects: tuple[Judged, ...]) -> list[list[str]]:
    """D(E(B)) of the trained LTDiff++, pruned, and with each scale's latent silenced (its mean in its place)."""
    bundle = load_bundle(model_of(LONG))
    codec = load_system("ltdiffpp", bundle, ltdiffpp.build).codec
    assert isinstance(codec, ltdiffpp.LatentCodec)
    rows = []
    for depth in range(codec.net.depth, 0, -1):

        def again(image: torch.Tensor, depth: int = depth) -> torch.Tensor:
            return codec.decode(*codec.encode(image, depth=depth), depth=depth)[-1]

        name = f"depth {depth}: scales 0 to {depth}"
        rows.append(_line(subjects, name, f"{name} {bundle.sha256}", _reconstructed(again, codec.divisor)))
    for silent, scale in enumerate(codec.scales):

        def without(image: torch.Tensor, silent: int = silent) -> torch.Tensor:
            latents, leaks = codec.encode(image)
            latents[silent] = torch.zeros_like(latents[silent])
            return codec.decode(latents, leaks)[-1]

        name = f"without the latent of scale {scale}"
        rows.append(_line(subjects, name, f"{name} {bundle.sha256}", _reconstructed(without, codec.divisor)))
    return rows


def _share(a: torch.Tensor, b: torch.Tensor, swapped: torch.Tensor) -> str:
    return f"{1 - float((swapped - b).square().mean() / (a - b).square().mean()):.2f}"


def _patches(validation: Sequence[Images], size: int) -> tuple[torch.Tensor, torch.Tensor]:
    batch = Patches(validation, size, 1).batch(0, range(16))
    return to_unit(torch.from_numpy(batch.source)), to_unit(torch.from_numpy(batch.target))


def leak(train: Sequence[Images], validation: Sequence[Images]) -> list[list[str]]:
    """How far the output moves toward B when A's latents are replaced by B's: 1 when the latents carry everything.

    1 - |D(Z_B; skips of A) - D(Z_B; skips of B)|^2 / |D(Z_A; skips of A) - D(Z_B; skips of B)|^2.
    """
    rows = []
    paper = ltdiffpp.RECIPES["paper"]
    short = dataclasses.replace(
        paper,
        patch=PAPER_PATCH,
        phases=tuple(
            (name, dataclasses.replace(phase, epochs=0, steps=PAPER_STEPS, batch=PAPER_BATCH, every=20))
            for name, phase in paper.phases
        ),
        sampling=Sampling(steps=1, start="source"),
    )
    for name, recipe in (
        ("before phase 3", dataclasses.replace(short, phases=short.phases[:2])),
        ("after phase 3", short),
    ):
        bundle = ltdiffpp.fit(TrainingData(train, [], {}), recipe, Run(runs() / "leak" / f"{PAPER_STEPS}"))
        system = ltdiffpp.build(json.loads(json.dumps(dict(bundle.metadata)))["config"])
        system.load_state_dict({key: torch.from_numpy(np.array(one)) for key, one in bundle.tensors.items()})
        rows.append([f"LTDiff++ `paper`, {PAPER_STEPS} steps a phase, {name}", *_moved(system.codec, validation)])
    for label, name in (("after phase 3", LONG), ("before phase 3", f"{LONG}, common budget, without phase 3")):
        if model_of(name).exists():
            system = load_system("ltdiffpp", load_bundle(model_of(name)), ltdiffpp.build)  # type: ignore[assignment]
            rows.append([f"{name}: latents at every scale, {label}", *_moved(system.codec, validation)])
    for name in (PRINTED, f"{PRINTED}, latent four times as large", WITHOUT_INTEGRATION, DCT, CONDITIONED):
        if model_of(name).exists():
            other = load_system("diffusionct", load_bundle(model_of(name)), diffusionct.build)
            rows.append([name, *_moved(other.autoencoder, validation, 128)])
    return rows


def _moved(codec: torch.nn.Module, validation: Sequence[Images], size: int = 64) -> list[str]:
    """The share, and how far A lies from B, D(Z_A; skips of A) from A and from B, D(Z_B; skips of A) from B, HU."""
    a, b = _patches(validation, size)
    with torch.inference_mode():
        (za, skips_a), (zb, skips_b) = codec.encode(a), codec.encode(b)  # type: ignore[operator]
        given = ((za, skips_a), (zb, skips_b), (zb, skips_a))
        d = [codec.decode(latents, skips)[-1] for latents, skips in given]  # type: ignore[operator]
    apart = [(a, b), (d[0], a), (d[0], b), (d[2], b)]
    return [_share(*d), *(f"{float((from_unit(x) - from_unit(y)).square().mean().sqrt()):.0f}" for x, y in apart)]


def learning(names: Sequence[str]) -> list[list[str]]:
    """The loss of each phase after a tenth, a quarter, a half and all of its steps: medians over a twentieth."""
    rows = []
    for name in names:
        if ROWS[name].of:
            continue
        by_phase: dict[str, list[float]] = {}
        for line in lines_of(name):
            by_phase.setdefault(line["phase"], []).append(line["loss"])
        for phase, losses in by_phase.items():
            width = max(1, len(losses) // 20)
            ends = [max(width, round(share * len(losses))) for share in (0.1, 0.25, 0.5, 1.0)]
            rows.append([name, phase, str(len(losses)), *(f"{np.median(losses[e - width : e]):.3f}" for e in ends)])
    return rows
