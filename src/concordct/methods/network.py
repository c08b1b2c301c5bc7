"""What the trained methods share: the HU window, the recipe, the slice-by-slice Standardizer, the bundle.

A *system* is a torch module with `divisor`, perhaps a `tile`, a `chain` and a `deepest` scale, and `translate`: source
slices in, standardized slices out. It never sees a target. `docs/equations.md` lists the symbols.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from concordct import __version__
from concordct.errors import ConcordctError
from concordct.methods.paired.conditional import Sampling
from concordct.methods.standardizer import Mode
from concordct.training.bundle import Bundle
from concordct.training.data import Images, Patches
from concordct.training.engine import Phase, Picture
from concordct.volumes.seeds import SliceSeeds
from concordct.volumes.volume import Volume

#: What networks see, HU: air with its noise to dense bone. A fixed map onto [-1, 1], the same for every scan.
LOW_HU, HIGH_HU = -1200.0, 1500.0
#: Below the upper end of the window the result fades into the source over this many HU; beyond it the source stands.
FADE_HU = 100.0
#: Pixels of each tile that are thrown away at its border, where the network saw no neighbours.
TILE_MARGIN = 8
#: Tiles that go through the network together: a constant, so that it changes no byte.
TILES_AT_ONCE = 16

Draw = Callable[[tuple[int, int]], Tensor]


@dataclass(frozen=True)
class Recipe:
    """How a method is trained.

    Attributes
    ----------
    config : of the networks, a frozen dataclass of the method.
    patch : edge of a training patch, pixels.
    phases : name and length of each phase, in order.
    sampling : default at inference.
    seed : of initial weights, patches and noise.
    """

    config: Any
    patch: int
    phases: tuple[tuple[str, Phase], ...]
    sampling: Sampling
    seed: int = 0

    def phase(self, name: str) -> Phase:
        """A phase by its name."""
        return dict(self.phases)[name]


@dataclass(frozen=True, eq=False)
class TrainingData:
    """What a method is fitted on.

    Attributes
    ----------
    pairs : source and target. images : any images, for phases that need no pairs.
    info : JSON for the bundle: kernels, slice thickness, subjects.
    """

    pairs: Sequence[Images]
    images: Sequence[Images]
    info: Mapping[str, Any]


def to_unit(hu: Tensor) -> Tensor:
    """HU to [-1, 1], cut at the window."""
    return (hu.clamp(LOW_HU, HIGH_HU) - LOW_HU) * (2 / (HIGH_HU - LOW_HU)) - 1


def from_unit(unit: Tensor) -> Tensor:
    """The inverse of `to_unit` inside the window."""
    return (unit + 1) * ((HIGH_HU - LOW_HU) / 2) + LOW_HU


def seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A network whose initial weights follow from the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


@dataclass(frozen=True, eq=False)
class NetworkStandardizer:
    """A system as a Standardizer: each slice by itself, so that slabs and batches change nothing.

    Attributes
    ----------
    system : networks in evaluation, on the device they run on.
    method : name of the method.
    sampling : how samples are drawn. mode : "sample", or "mean" for the estimate without drawing.
    """

    system: Any
    method: str
    sampling: Sampling
    mode: Mode = "sample"

    @property
    def context_slices(self) -> int:
        """Slices needed on either side of a slab."""
        return 0

    @property
    def settings(self) -> dict[str, Any]:
        """What determines the output beside model and seed."""
        return {"method": self.method, "mode": self.mode, "sampling": asdict(self.sampling)}

    def __call__(self, volume: Volume, *, generator: SliceSeeds) -> Volume:
        """Standardize a volume or slab: [z, y, x] HU in and out, not rounded. Beyond the window the source stands."""
        hu = np.empty_like(volume.hu)
        with torch.inference_mode():
            for index, image in enumerate(volume.hu):
                found = self._slice(image, generator.at(volume.first_slice + index))
                if not np.isfinite(found).all():
                    raise ConcordctError(f"{self.method}: expected finite HU, found none in slice {index}")
                share = np.clip((HIGH_HU - image) / FADE_HU, 0, 1) * (image >= LOW_HU)
                hu[index] = np.where(share > 0, share * found + (1 - share) * image, image)
        return volume.with_hu(hu)

    def _slice(self, image: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float32]:
        device = next(self.system.parameters()).device

        def draw(shape: tuple[int, int]) -> Tensor:
            return torch.from_numpy(random.standard_normal(shape, dtype=np.float32))

        def translate(images: NDArray[np.float32]) -> NDArray[np.float32]:
            unit = to_unit(torch.from_numpy(np.ascontiguousarray(images))[:, None].to(device))
            out = self.system.translate(unit, self.sampling, draw, mean=self.mode == "mean")
            return np.asarray(from_unit(out.float())[:, 0].cpu().numpy())

        rows, columns = image.shape
        tile = self.system.tile
        if tile is None:
            padded = _padded(image, (-rows) % self.system.divisor, (-columns) % self.system.divisor, before=0)
            return translate(padded[None])[0, :rows, :columns]
        # Tiles meet without overlap once their margins are gone, so no two samples are ever averaged.
        inner = tile - 2 * TILE_MARGIN
        down, right = -(-rows // inner), -(-columns // inner)
        padded = _padded(
            image, down * inner - rows + TILE_MARGIN, right * inner - columns + TILE_MARGIN, before=TILE_MARGIN
        )
        corners = [(y * inner, x * inner) for y in range(down) for x in range(right)]
        tiles = np.stack([padded[y : y + tile, x : x + tile] for y, x in corners])
        made = np.concatenate([translate(tiles[i : i + TILES_AT_ONCE]) for i in range(0, len(tiles), TILES_AT_ONCE)])
        out = np.empty((down * inner, right * inner), np.float32)
        for (y, x), one in zip(corners, made, strict=True):
            out[y : y + inner, x : x + inner] = one[TILE_MARGIN:-TILE_MARGIN, TILE_MARGIN:-TILE_MARGIN]
        return out[:rows, :columns]


def _padded(image: NDArray[np.float32], down: int, right: int, *, before: int) -> NDArray[np.float32]:
    return np.pad(image, ((before, down), (before, right)), mode="symmetric")


def sample_picture(system: Any, patches: Patches, sampling: Sampling) -> Picture:
    """Source, result and target of one fixed patch side by side, in the papers' window [-800, 600] HU."""

    def draw() -> NDArray[np.float32]:
        batch = patches.batch(0, (0,))
        device = next(system.parameters()).device
        random = torch.Generator().manual_seed(0)
        with torch.inference_mode():
            unit = to_unit(torch.from_numpy(batch.source).to(device))
            made = system.translate(unit, sampling, lambda shape: torch.randn(shape, generator=random), mean=False)
        row = np.concatenate(
            [batch.source[0, 0], np.asarray(from_unit(made.float())[0, 0].cpu().numpy()), batch.target[0, 0]], axis=1
        )
        return np.asarray((row + 800) / 1400, np.float32)

    return draw


def encoded(
    encode: Callable[[Tensor], tuple[Sequence[Tensor], Any]], patches: Patches, batches: int, device: torch.device
) -> list[tuple[list[Tensor], list[Tensor]]]:
    """Latents of source and target, batch by batch, on the CPU: what their statistics are taken over."""
    found = []
    for step in range(batches):
        batch = patches.batch(step, range(4))
        source, target = (torch.from_numpy(one).to(device) for one in (batch.source, batch.target))
        a, b = ([one.cpu() for one in encode(to_unit(image))[0]] for image in (source, target))
        found.append((a, b))
    return found


def to_bundle(method: str, system: nn.Module, recipe: Recipe, info: Mapping[str, Any]) -> Bundle:
    """The system's tensors, and everything else as JSON with the fields that MONAI reads."""
    tensors = {name: one.detach().cpu().numpy() for name, one in system.state_dict().items()}
    plane = {"type": "image", "format": "hounsfield", "modality": "CT", "num_channels": 1, "spatial_shape": ["*", "*"]}
    network_format = {"inputs": {"image": plane}, "outputs": {"pred": plane}}
    return Bundle(
        tensors,
        {
            "method": method,
            "config": asdict(recipe.config),
            "recipe": {
                "patch": recipe.patch,
                "seed": recipe.seed,
                "phases": {name: asdict(phase) for name, phase in recipe.phases},
            },
            "sampling": asdict(recipe.sampling),
            "parameters": sum(one.numel() for one in system.parameters()),
            "info": dict(info),
            "version": __version__,
            "pytorch_version": torch.__version__.split("+")[0],
            "task": "CT kernel standardization",
            "description": f"{method}, trained with concordct",
            "network_data_format": network_format,
        },
    )


def load_system(method: str, bundle: Bundle, build: Callable[[Mapping[str, Any]], nn.Module]) -> nn.Module:
    """The system that `to_bundle` stored, in evaluation, on a GPU where there is one.

    Raises
    ------
    ConcordctError : a bundle of another method, or tensors that do not fit its configuration.
    """
    if bundle.method != method:
        raise ConcordctError(f"expected a model of method {method!r}, found {bundle.method!r}")
    try:
        system = build(bundle.metadata["config"])
        system.load_state_dict({name: torch.from_numpy(np.array(one)) for name, one in bundle.tensors.items()})
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        line = str(error).splitlines()[0]
        raise ConcordctError(f"expected a whole {method} model, found one that does not fit: {line}") from error
    return system.eval().requires_grad_(False).to("cuda" if torch.cuda.is_available() else "cpu")


def standardizer(
    method: str,
    bundle: Bundle,
    mode: Mode,
    build: Callable[[Mapping[str, Any]], nn.Module],
    *,
    sampling: Mapping[str, Any] | None = None,
) -> NetworkStandardizer:
    """A stored system at work; `sampling` overrides fields of the recipe's.

    Raises
    ------
    ConcordctError : something to choose that `Sampling` does not have, more steps than the chain, a depth that the
        networks do not have.
    """
    known = {one.name for one in fields(Sampling)}
    if unknown := sorted(set(sampling or {}) - known):
        raise ConcordctError(f"expected a choice of {', '.join(sorted(known))}, found {', '.join(unknown)}")
    system = load_system(method, bundle, build)
    chosen = replace(Sampling(**bundle.metadata["sampling"]), **(sampling or {}))
    deepest = int(getattr(system, "deepest", 0))
    if not 0 <= chosen.depth <= deepest:
        raise ConcordctError(f"{method}: expected a depth of 0 to {deepest}, found {chosen.depth}")
    most = int(system.chain.steps) if hasattr(system, "chain") else chosen.steps  # type: ignore[arg-type,union-attr]
    if not 1 <= chosen.steps <= most:
        raise ConcordctError(f"{method}: expected 1 to {most} sampling steps, found {chosen.steps}")
    return NetworkStandardizer(system, method, chosen, mode)


def loader(method: str, build: Callable[[Mapping[str, Any]], nn.Module]) -> Callable[..., NetworkStandardizer]:
    """A method's `load`: (bundle, mode, sampling=...) to a Standardizer, see `standardizer`."""

    def load(bundle: Bundle, mode: Mode, *, sampling: Mapping[str, Any] | None = None) -> NetworkStandardizer:
        return standardizer(method, bundle, mode, build, sampling=sampling)

    return load
