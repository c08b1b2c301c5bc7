"""Tiny pairs and recipes, so that training takes a second."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from concordct.methods import catalogue
from concordct.methods.network import Recipe, TrainingData
from concordct.methods.paired import ddpm, diffusionct, encoder_decoder, ltdiffpp
from concordct.methods.paired.conditional import Chain
from concordct.training.data import Images, store
from concordct.training.engine import Phase
from concordct.volumes.files import write_volume_file
from concordct.volumes.manifest import PairRow, write_manifest
from concordct.volumes.volume import Volume

CHAIN = Chain(8, "cosine", "residual")
QUICK = Phase(steps=6, batch=4, learning_rate=1e-3, warmup=2, every=2)


def pair(seed: int, *, depth: int = 3, size: int = 64) -> tuple[Volume, Volume]:
    """A soft and a sharp reconstruction of one random object in air."""
    generator = np.random.default_rng(seed)
    shape = (depth, size, size)
    body = np.zeros(shape)
    body[:, size // 8 : -size // 8, size // 8 : -size // 8] = 1000.0
    body += 150 * ndimage.gaussian_filter(generator.standard_normal(shape), (0, 3, 3)) * 8 * (body > 0)
    noise = generator.standard_normal(shape) * 60
    sharp = body - 1000 + noise
    soft = ndimage.gaussian_filter(sharp, (0, 1.0, 1.0))
    affine = np.eye(4)[[2, 1, 0, 3]]
    return tuple(Volume(np.rint(hu).astype(np.float32), affine) for hu in (soft, sharp))  # type: ignore[return-value]


class Held:
    """A volume in memory, read as a scan."""

    def __init__(self, volume: Volume, key: str) -> None:
        self.volume, self.key, self.shape = volume, key, volume.shape

    def read(self, start: int = 0, stop: int | None = None) -> Volume:
        return self.volume.slab(start, self.shape[0] if stop is None else stop)


def images(folder: Path, count: int = 2) -> list[Images]:
    folder.mkdir(parents=True, exist_ok=True)
    made = [pair(seed) for seed in range(count)]
    return [store(folder, f"p{i}", Held(a, f"{i}a"), Held(b, f"{i}b")) for i, (a, b) in enumerate(made)]


def data(folder: Path) -> TrainingData:
    return TrainingData(images(folder), [], {"source_kernels": ["soft"], "target_kernels": ["sharp"]})


def cohort(folder: Path, count: int = 3) -> Path:
    """NIfTI pairs and their manifest: train, train, ..., test."""
    rows = []
    for index in range(count):
        for name, volume in zip(("source", "target"), pair(index), strict=True):
            write_volume_file(folder / f"{name}{index}.nii.gz", volume)
        split = "test" if index == count - 1 else "train"
        source, target = (folder / f"{name}{index}.nii.gz" for name in ("source", "target"))
        rows.append(PairRow(pair=f"p{index}", subject=f"s{index}", split=split, source=source, target=target))
    return write_manifest(folder / "pairs.csv", rows)


def recipes() -> dict[str, Recipe]:
    """Every method at its smallest."""
    small = {
        "ltdiffpp": (
            ltdiffpp.RECIPES["small"],
            ltdiffpp.Config(widths=(8, 8), latents=(4, 4), chain=CHAIN, denoiser=(8, 8), fold=2),
        ),
        "diffusionct": (
            diffusionct.RECIPES["small"],
            diffusionct.Config(8, dataclasses.replace(CHAIN, predicts="noise", l1=1.0), (8, 8), 64, (8,) * 5),
        ),
        "ddpm": (ddpm.RECIPES["small"], ddpm.Config((8, 8), CHAIN, fold=2)),
        "encoder-decoder": (encoder_decoder.RECIPES["small"], encoder_decoder.Config((8, 8, 8), dense=False)),
        "unetpp": (encoder_decoder.UNETPP_RECIPES["small"], encoder_decoder.Config((8, 8, 8), dense=True)),
    }
    return {
        name: dataclasses.replace(
            recipe,
            config=config,
            patch=64 if name == "diffusionct" else 32,
            phases=tuple((phase, QUICK) for phase, _ in recipe.phases),
            sampling=dataclasses.replace(recipe.sampling, steps=2),
        )
        for name, (recipe, config) in small.items()
    }


#: Modules of the methods that have networks.
FITS = {
    "ltdiffpp": ltdiffpp,
    "diffusionct": diffusionct,
    "ddpm": ddpm,
    "encoder-decoder": encoder_decoder,
    "unetpp": encoder_decoder,
}


def offer(chosen: Mapping[str, Recipe], put: Callable[[Any, str, Any], None] = setattr) -> None:
    """Put recipes in the place of the `small` ones; `put` as monkeypatch.setattr takes them back after a test."""
    for name, recipe in chosen.items():
        module = import_module(f"concordct.methods.{catalogue.CATALOGUE[name].module}")
        put(module, "ENTRY", dataclasses.replace(module.ENTRY, recipes={"small": recipe}))


def awaken(net: torch.nn.Module, seed: int = 0) -> None:
    """Give weight to layers that start at zero."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.1)
