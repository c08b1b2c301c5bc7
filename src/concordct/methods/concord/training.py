"""Trains the flagship's network on studies: every step meets another kernel pair, calibrated as a user would.

A slice is prepared from a calibration on one slice of the *other* body of its study, the hardest way in which the
network will be used. What a batch holds follows from (seed, step, place).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from concordct.diffusion.residual_flow import weights as arc_weights
from concordct.errors import ConcordctError
from concordct.methods.concord.inputs import MAPS, Curves, Prepared, curves, prepare
from concordct.methods.concord.network import network_of
from concordct.methods.concord.transport import Transport, fit_transport
from concordct.methods.spectral.fit import fit_pairs
from concordct.methods.spectral.transfer import SpectralModel, SpectralStandardizer
from concordct.signal.spectra import from_cosines, to_cosines
from concordct.training.bundle import Bundle
from concordct.training.data import Batch
from concordct.training.engine import Phase, Run, train_phase
from concordct.volumes.volume import AIR_HU, Volume

#: Slices kept prepared, and steps after which one is replaced: preparing a slice takes as long as half a step.
POOL, STEPS_A_SLICE = 24, 3
#: Slices of the other body that calibrations are made from, one at a time.
CALIBRATIONS = 2
#: Share of slices that go from the softer kernel to the sharper, where there is something to draw.
SHARPENING = 0.75
#: Share of patches at the start of the flow, where every sample passes.
AT_START = 0.3
#: The process runs on patches this much wider on each side, pixels, so that the border of its transform is cut off.
MARGIN = 16
#: True and transported texture differ by at most this many levels in training.
DIFFERENCE_LIMIT = 4.0


@dataclass(frozen=True, eq=False)
class Scanned:
    """One protocol of a study, or one pair of scans.

    Attributes
    ----------
    images : of each kernel, [slice, y, x] int16 HU, the sharpest first; memory-mapped.
    bodies : how many bodies the slices belong to, in order and in equal numbers.
    pixel_mm, thickness_mm : of every slice.
    directed : two kernels, target and source, and no other direction.
    """

    name: str
    images: Sequence[NDArray[np.int16]]
    bodies: int
    pixel_mm: float
    thickness_mm: float
    directed: bool = False

    @property
    def depth(self) -> int:
        """Slices of each kernel."""
        return len(self.images[0])

    def volume(self, kernel: int, slices: Sequence[int]) -> Volume:
        """Slices of one kernel; they need not be neighbours, and are not treated as such."""
        affine = np.eye(4)
        affine[:3, :3] = 0.0
        affine[2, 0] = self.thickness_mm
        affine[1, 1] = affine[0, 2] = self.pixel_mm
        hu = self.images[kernel][list(slices)].astype(np.float32)
        return Volume(hu, affine, slice_thickness_mm=self.thickness_mm)

    def of_body(self, body: int) -> range:
        """Indices of the slices of a body."""
        count = self.depth // self.bodies
        return range(body * count, (body + 1) * count)

    def calibrations(self, body: int) -> Sequence[int]:
        """Slices that a body's slices are calibrated from: of the next body, or spread over the only one."""
        if self.bodies > 1:
            return self.of_body((body + 1) % self.bodies)[:CALIBRATIONS]
        return [self.depth * (k + 1) // (CALIBRATIONS + 1) for k in range(CALIBRATIONS)]


@dataclass(frozen=True, eq=False)
class Slice:
    """A prepared slice: maps and condition of the network, transported and true texture, curves on a patch."""

    one: Prepared
    truth: NDArray[np.float32]
    on: Curves
    name: str


#: Cuts, turns and flips planes [..., y, x] to the patch that was drawn.
Cut = Callable[[NDArray[np.float32]], NDArray[np.float32]]


class RemainderPatches:
    """Batches for the training engine: `source` holds state, maps and condition as channels, `target` the velocity."""

    def __init__(self, scanned: Sequence[Scanned], *, size: int, seed: int) -> None:
        self.scanned, self.size, self.seed = scanned, size, seed
        self._prepared = lru_cache(maxsize=POOL + 8)(self._prepare)
        self._models = lru_cache(maxsize=4096)(self._fit)

    @property
    def slices(self) -> int:
        """Slices of one kernel."""
        return sum(one.depth for one in self.scanned)

    def batch(self, step: int, places: Sequence[int]) -> Batch:
        """The patches of a step at these places of the global batch."""
        drawn = [self._draw(step, place) for place in places]
        sources, targets, names = zip(*drawn, strict=True)
        return Batch(np.stack(sources), np.stack(targets), (0,) * len(names), tuple(names))

    def _random(self, *key: object) -> np.random.Generator:
        digest = hashlib.sha256("\0".join(map(str, (self.seed, *key))).encode()).digest()
        return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))

    def _draw(self, step: int, place: int) -> tuple[NDArray[np.float32], NDArray[np.float32], str]:
        random = self._random("patch", step, place)
        found = self._prepared(step // STEPS_A_SLICE + int(random.integers(POOL)))
        one, size, edge = found.one, self.size, self.size + 2 * MARGIN
        assert one.body is not None
        top, bottom, left, right = one.body
        y, x = (
            int(np.clip(random.integers(low, high) - edge // 2, 0, length - edge))
            for low, high, length in zip((top, left), (bottom, right), found.truth.shape, strict=True)
        )
        turns, flip = int(random.integers(4)), bool(random.integers(2))

        def cut(planes: NDArray[np.float32]) -> NDArray[np.float32]:
            patch = np.rot90(planes[..., y : y + edge, x : x + edge], turns, axes=(-2, -1))
            return np.ascontiguousarray(patch[..., ::-1] if flip else patch)

        state, target, shift = self.process(found, cut, random)
        inner = np.s_[..., MARGIN : MARGIN + size, MARGIN : MARGIN + size]
        condition = np.concatenate([one.condition, [np.float32(shift)]])
        channels = np.broadcast_to(condition[:, None, None], (len(condition), size, size))
        source = np.concatenate([state[inner][None], cut(one.maps)[inner], channels]).astype(np.float32)
        return source, target[inner], f"{found.name} at ({y}, {x})"

    def process(
        self, found: Slice, cut: Cut, random: np.random.Generator
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], float]:
        """A state of the process, what the network is to say there, and the place: [y, x], [channel, y, x], shift.

        The patch has a margin of `MARGIN` pixels that is cut off afterwards.
        """
        start = to_cosines(cut(found.one.texture) + np.float32(AIR_HU))
        start += random.standard_normal(start.shape, dtype=np.float32) * found.on.drawn
        target = to_cosines(cut(found.truth) + np.float32(AIR_HU))
        shift = 1.0 if random.random() < AT_START else float(random.random())
        own, other, own_rate, other_rate = (
            np.asarray(weight, np.float32) for weight in arc_weights(found.on.theta, shift)
        )
        velocity = from_cosines(own_rate * target + other_rate * start)
        return from_cosines(own * target + other * start), velocity[None], shift

    def _prepare(self, number: int) -> Slice:
        """Slice `number` of an endless list."""
        random = self._random("slice", number)
        while True:
            which = int(random.integers(len(self.scanned)))
            scanned = self.scanned[which]
            a, b = sorted(random.choice(len(scanned.images), 2, replace=False).tolist())
            source, target = (b, a) if scanned.directed or random.random() < SHARPENING else (a, b)
            body = int(random.integers(scanned.bodies))
            own = scanned.of_body(body)
            index = own[int(random.integers(len(own)))]
            calibration = scanned.calibrations(body)[int(random.integers(CALIBRATIONS))]
            found = self._models(which, source, target, calibration)
            if found is None:
                continue
            model, transport = found
            volume = scanned.volume(source, [index])
            spacing = volume.spacing_mm[1:]
            on = curves(model, transport, volume.shape[1:], spacing)
            one = prepare(SpectralStandardizer(model, "mean"), transport, on, volume)[0]
            if one.body is None:
                continue
            hu = scanned.images[target][index].astype(np.float32)
            one, truth = self.task(one, on, volume.hu[0], hu)
            edge = self.size + 2 * MARGIN
            name = f"{scanned.name} kernel {source} to {target} slice {index}"
            return Slice(one, truth, curves(model, transport, (edge, edge), spacing), name)

    def task(
        self, one: Prepared, on: Curves, source: NDArray[np.float32], target: NDArray[np.float32]
    ) -> tuple[Prepared, NDArray[np.float32]]:
        """What the network is given of a slice, and the texture that it is to find, from two slices [y, x] in HU."""
        truth = from_cosines(to_cosines(target) * on.free) / one.level
        # Edges stand as transported; of the rest, too, the largest errors would own the loss.
        off = truth - one.edges - one.texture
        return one, one.texture + np.clip(off, -DIFFERENCE_LIMIT, DIFFERENCE_LIMIT)

    def _fit(self, which: int, source: int, target: int, slice_index: int) -> tuple[SpectralModel, Transport] | None:
        scanned = self.scanned[which]
        pairs = [(scanned.volume(source, [slice_index]), scanned.volume(target, [slice_index]))]
        model = fit_pairs(lambda: pairs)
        transport = fit_transport(model, lambda: pairs)
        return None if transport is None else (model, transport)


class FlowTask(nn.Module):
    """The loss: mean squared error of the velocity; `share` is what it is of a silent network's."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def velocity(self, source: Tensor) -> Tensor:
        """Channels of `RemainderPatches` to velocities [b, 1, y, x]."""
        state, maps, condition = source[:, :1], source[:, 1 : 1 + MAPS], source[:, 1 + MAPS :, 0, 0]
        return torch.as_tensor(self.network(state, maps, condition[:, :-1], condition[:, -1]))

    def forward(self, source: Tensor, target: Tensor, seeds: tuple[int, ...]) -> dict[str, Tensor]:
        """Channels of `RemainderPatches` and velocities [b, 1, y, x] to the losses."""
        error = (self.velocity(source) - target).square().mean()
        return {"loss": error, "share": error / target.square().mean()}


REFINEMENT = Phase(steps=400, batch=8, learning_rate=2e-4, final_rate=0.05, warmup=50, ema=0.99, every=100)


@dataclass(frozen=True)
class Refinement:
    """How the network is trained further on pairs of one kernel pair."""

    phase: Phase = REFINEMENT
    patch: int = 96
    seed: int = 0


def refine(weights: Bundle, scanned: Sequence[Scanned], run: Run, refinement: Refinement) -> Bundle:
    """Weights trained further; the run resumes.

    Parameters
    ----------
    weights : of method `WEIGHTS`, as shipped or as `concord_bundle.weights_of` takes them from a model.
    scanned : pairs, `directed`.

    Raises
    ------
    ConcordctError : images smaller than a patch, a loss that is not finite.
    """
    least = min(min(image.shape[1:]) for one in scanned for image in one.images)
    size = refinement.patch
    if least < size + 2 * MARGIN:
        raise ConcordctError(f"expected slices of at least {size + 2 * MARGIN} pixels to refine on, found {least}")
    network = network_of(weights)
    network.requires_grad_(True)
    patches = RemainderPatches(scanned, size=size, seed=refinement.seed)
    train_phase("refinement", FlowTask(network), patches, refinement.phase, run)
    tensors = {name: one.detach().cpu().numpy() for name, one in network.state_dict().items()}
    info = {**weights.metadata["info"], "refined_from": weights.sha256, "refined_on": len(scanned)}
    return Bundle(tensors, {**weights.metadata, "info": info})
