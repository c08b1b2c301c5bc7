"""CIResDiff at work on a whole volume: patches blended at every step, noise drawn once for the volume, HU as they were.

`ciresdiff.py` says what it is and trains it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from concordct.diffusion import residual_shifting as shifting
from concordct.diffusion import schedule as standard
from concordct.diffusion.samplers import sample_ddpm
from concordct.errors import ConcordctError
from concordct.methods.network import load_system
from concordct.methods.standardizer import Mode
from concordct.progression.ciresdiff import (
    CENTRE,
    HIGH_HU,
    METHOD,
    OUTSIDE,
    SPREAD,
    CIResDiff,
    Condition,
    build,
    fit,
    scale_of,
)
from concordct.progression.ciresdiff_known import dense_share
from concordct.progression.ciresdiff_recipes import RECIPES
from concordct.progression.method import FollowupMethod
from concordct.progression.patches3d import region_box
from concordct.progression.tiling3d import blended
from concordct.training.bundle import Bundle
from concordct.volumes.seeds import SliceSeeds

#: Above the upper end of the window the initial scan stands; the result fades into it over this many HU, and over this
#: many mm at the rim of the region.
FADE_HU, FADE_MM = 100.0, 4.0


@dataclass(frozen=True, eq=False)
class Predictor:
    """A trained model at work.

    Attributes
    ----------
    system : in evaluation, on the device it runs on. tokenizer : its JSON; "" for a network without text.
    spacing_mm : of the grid that it works on. patch, overlap : voxels.
    steps : of the T. mode : "sample", or "mean" for the estimate from y_0 without noise, one evaluation.
    """

    system: CIResDiff
    tokenizer: str
    spacing_mm: float
    patch: int
    overlap: int
    steps: int
    mode: Mode = "sample"

    def predict(
        self, hu: NDArray[np.floating[Any]], region: NDArray[np.bool_], sentence: str, *, seeds: SliceSeeds
    ) -> NDArray[np.float32]:
        """The follow-up scan.

        Parameters
        ----------
        hu : [z, y, x] initial scan at `spacing_mm`, HU. region : [z, y, x] bool, the dilated lungs.
        sentence : lung function and weeks, see `progression.lung_function.sentence`; a network without text reads none.
        seeds : one seed and one scan give one result, whatever the patches.

        Returns
        -------
        [z, y, x] HU; outside the region and above the window the initial scan.

        Raises
        ------
        ConcordctError : an empty region, or a result that is not finite.
        """
        if not region.any():
            raise ConcordctError("expected a region to predict in, found an empty one")
        low, high = scale_of(hu, region, self.system.config.intensity)
        box, initial, inside = self._cut(hu, region, low, high)
        with torch.inference_mode():
            made = self._walk(initial, inside, sentence, dense_share(hu, region), seeds)
        found = np.asarray(hu, np.float32).copy()
        length = [stop.stop - stop.start for stop in box]
        unit = made.numpy()[tuple(slice(0, n) for n in length)]
        if not np.isfinite(unit).all():
            raise ConcordctError(f"{METHOD}: expected finite HU, found none")
        rim = np.clip(ndimage.distance_transform_edt(region[box]) * self.spacing_mm / FADE_MM, 0, 1)
        old = found[box]
        window = np.clip((HIGH_HU - old) / FADE_HU, 0, 1) if self.system.config.intensity == "fixed" else 1.0
        share = rim * window
        found[box] = (share * (unit * (high - low) + low) + (1 - share) * old).astype(np.float32)
        return found

    def _cut(
        self, hu: NDArray[np.floating[Any]], region: NDArray[np.bool_], low: float, high: float
    ) -> tuple[tuple[slice, ...], Tensor, NDArray[np.bool_]]:
        """The region's box of the scan in [0, 1], grown to whole patches and to what the network divides."""
        first, last = region_box(region)
        box = tuple(slice(int(a), int(b)) for a, b in zip(first, last, strict=True))
        divisor = self.system.net.divisor
        grown = [max(self.patch, -(-int(n) // divisor) * divisor) for n in last - first]
        unit, inside = np.full(grown, OUTSIDE, np.float32), np.zeros(grown, bool)
        own = tuple(slice(0, int(n)) for n in last - first)
        inside[own] = region[box]
        unit[own] = np.where(region[box], (hu[box] - low) / (high - low), OUTSIDE)
        return box, torch.from_numpy(unit), inside

    def _walk(
        self, initial: Tensor, inside: NDArray[np.bool_], sentence: str, dense: float, seeds: SliceSeeds
    ) -> Tensor:
        system, config = self.system, self.system.config
        device = next(system.parameters()).device
        text = system.words(self.tokenizer, [sentence], device)
        share = torch.tensor([dense], dtype=torch.float32, device=device)
        drawn = iter(range(2**31))
        within = torch.from_numpy(inside)
        outside = OUTSIDE if config.residual else (OUTSIDE - CENTRE) / SPREAD

        # Noise is drawn for the region's box on the network's grid, whatever a patch adds to it.
        divisor, (_, last) = system.net.divisor, region_box(inside)
        drawn_shape = [-(-int(n) // divisor) * divisor for n in last]

        def draw() -> Tensor:
            noise = np.zeros(tuple(initial.shape), np.float32)
            box = tuple(slice(0, n) for n in drawn_shape)
            noise[box] = seeds.at(next(drawn)).standard_normal(drawn_shape, dtype=np.float32)
            return torch.from_numpy(noise)[None]

        def denoise(x: Tensor, time: Tensor, condition: Tensor) -> Tensor:
            def estimate(cut: Sequence[Tensor]) -> Tensor:
                now, y0 = cut
                given = (None, None) if text is None else tuple(one.expand(len(now), *one.shape[1:]) for one in text)
                return system.denoise(
                    now, time.to(device, now.dtype).expand(len(now)), Condition(y0, share.expand(len(now)), *given)
                )

            found = blended(
                estimate,
                (x[0], condition),
                inside,
                size=self.patch,
                overlap=self.overlap,
                divisor=divisor,
                device=device,
            )
            # As in training: nothing is ever to be seen outside the region.
            return torch.where(within, found, outside)[None]

        keep = standard.trailing(config.steps, min(self.steps, config.steps))
        if config.residual:
            chain = shifting.respaced(system.shift, keep)
            if self.mode == "mean":
                return denoise(initial[None], chain.times[-1:], initial)[0]
            x = shifting.start(chain, initial[None], draw=draw)
            return shifting.sample_shifting(denoise, x, initial, chain, draw=draw)[0]
        steps = standard.respaced(system.schedule, keep)
        if self.mode == "mean":
            return denoise(torch.zeros_like(initial)[None], steps.times[-1:], initial)[0] * SPREAD + CENTRE
        return sample_ddpm(denoise, draw(), initial, steps, draw=draw)[0] * SPREAD + CENTRE


def load(bundle: Bundle, mode: Mode = "sample", *, steps: int | None = None) -> Predictor:
    """A stored model at work.

    Raises
    ------
    ConcordctError : a bundle of another method, tensors that do not fit, or missing packages for its text.
    """
    system = load_system(METHOD, bundle, build)
    assert isinstance(system, CIResDiff)
    recipe = bundle.metadata["recipe"]
    return Predictor(
        system,
        bundle.metadata["tokenizer"],
        float(recipe["spacing_mm"]),
        int(recipe["patch"]),
        int(recipe["overlap"]),
        steps or int(recipe["sampling_steps"]),
        mode,
    )


ENTRY = FollowupMethod("CIResDiff", load, fit, RECIPES)
