"""CIResDiff: the follow-up scan of a patient with pulmonary fibrosis from the first scan and the lung-function tests.

Jiang et al. 2024, arXiv:2408.00938. Residual diffusion in 3D (eqs. 1 to 4, `diffusion/residual_shifting.py`) by an
attention U-Net that predicts x_0, steered by a sentence through CLIP (eq. 5, `nets/`). `ciresdiff_recipes.py` has the
rows of its Table 1, `docs/equations.md` what the paper leaves open and what was decided; y_0 is the initial, x_0 the
follow-up scan, as in its equations. `ciresdiff_predict.py` runs what is trained here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from concordct import __version__
from concordct.diffusion import residual_shifting as shifting
from concordct.diffusion import schedule as standard
from concordct.methods.network import seeded
from concordct.nets.clip import (
    ContrastivePair,
    TextConfig,
    ends,
    published_tower,
    tokenize,
    train_tokenizer,
    vocabulary,
)
from concordct.nets.unet3d import AttentionUNet3d
from concordct.progression.ciresdiff_known import TOLD, dense_share, text_direction, told_again
from concordct.progression.ciresdiff_recipes import Config, Intensity, Recipe
from concordct.progression.patches3d import Followup, Patches3d, cube, patch_seed
from concordct.training.bundle import Bundle
from concordct.training.data import Batch
from concordct.training.engine import Run, train_phase

METHOD = "ciresdiff"

#: HU at 0 and at 1: air with its noise to soft tissue with contrast. A fixed, invertible map, the same for every scan.
LOW_HU, HIGH_HU = -1100.0, 500.0
#: What lies outside the region, in [0, 1]: the paper's networks see lungs alone.
OUTSIDE = 0.0
#: Where lungs lie in [0, 1] and how far they spread, so that the network sees numbers about 1.
CENTRE, SPREAD = 0.25, 0.25
#: Spread of the difference of two scans in [0, 1]: the network's outputs are in units of it.
STEP = 0.06
#: How much fine detail of y_0 is enlarged beside y_0: a network learns texture at the speed of its variance.
DETAIL = 4.0
#: Principal components of a sentence's words that the text-guided attention reads. Over all features of all words,
#: fifty patients can be told apart by anything; these components hold what differs most, the numbers.
COMPONENTS = 16
#: Noise on them in training, in units of their spread: what two patients differ in by less is not to be learned.
TEXT_NOISE = 0.3
#: Features of words that hardly differ between sentences are not enlarged beyond this share of the usual spread.
SPREAD_FLOOR = 0.3
#: Voxels of the scan that the contrastive pre-training sees, each way, and their spacing, mm.
THUMBNAIL, THUMBNAIL_MM = 32, 10.0


@dataclass(frozen=True, eq=False)
class CohortData:
    """What the method is fitted on: registered subjects on the recipe's grid, and JSON for the bundle."""

    subjects: Sequence[Followup]
    info: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Condition:
    """What a step is conditioned on.

    Attributes
    ----------
    initial : [b, 1, z, y, x] y_0. dense : [b] see `dense_share`.
    words, there : [b, L, c] the text and [b, L] where words are; None for a network without text.
    """

    initial: Tensor
    dense: Tensor
    words: Tensor | None
    there: Tensor | None


def scale_of(hu: NDArray[Any], region: NDArray[np.bool_], intensity: Intensity) -> tuple[float, float]:
    """HU that become 0 and 1. "minmax" takes the scan's own ends inside the region, which the result inherits."""
    if intensity == "fixed":
        return LOW_HU, HIGH_HU
    inside = hu[region]
    return float(inside.min()), max(float(inside.max()), float(inside.min()) + 1.0)


class CIResDiff(nn.Module):
    """The U-Net, the chain that it walks, and the text tower with its scan encoder."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.net = AttentionUNet3d(
            4,
            config.widths,
            fold=config.fold,
            query=config.query,
            text=COMPONENTS if config.query == "text" else config.text.width,
            length=config.text.length,
            attend=config.attend,
        )
        self.pair = None if config.query == "none" else ContrastivePair(config.text, config.scan_widths)
        # The text's own statistics: what all sentences share would drown what tells them apart.
        length, width = config.text.length, config.text.width
        self.register_buffer("text_mean", torch.zeros(length, width))
        self.register_buffer("text_spread", torch.ones(length, width))
        by_text = config.query == "text"
        self.register_buffer("text_basis", torch.zeros(length * width, COMPONENTS) if by_text else torch.zeros(0))
        self.shift = shifting.shifting(config.steps, kappa=config.kappa, power=config.power)
        self.schedule = standard.cosine_schedule(config.steps)

    def denoise(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        """f_theta(x_t, y_0, t): [b, 1, z, y, x] to the estimate of x_0; of the usual diffusion in units of `SPREAD`."""
        y0 = (condition.initial - CENTRE) / SPREAD
        detail = DETAIL * (y0 - functional.avg_pool3d(y0, 3, 1, 1, count_include_pad=False))
        known, left = torch.zeros_like(y0), torch.ones_like(time)
        if self.config.residual:
            known, left = shifting.linear_estimate(self.shift, x - condition.initial, time, spread=STEP)
        seen = known / STEP if self.config.residual else x
        dense = condition.dense.to(x.dtype).reshape(-1, 1, 1, 1, 1).expand_as(y0)
        found = self.net(
            torch.cat([seen, y0, detail, dense], dim=1), time.to(x.dtype), condition.words, condition.there
        )
        if self.config.onto_initial:
            unit = condition.initial + known + STEP * left.reshape(-1, 1, 1, 1, 1).to(x.dtype) * found
        else:
            unit = CENTRE + SPREAD * found
        return unit if self.config.residual else (unit - CENTRE) / SPREAD

    def loss(
        self, initial: Tensor, followup: Tensor, region: Tensor, condition: Condition, seeds: Sequence[int]
    ) -> Tensor:
        """Eq. 4 inside the region, in [0, 1]: ||f_theta(x_t, y_0, t) - x_0||^2 at a random step for each patch."""
        t, noise = _draws(seeds, self.config.steps, initial.shape[1:], self.config.at_last)
        t, noise = t.to(initial.device), noise.to(initial.device)
        if self.config.residual:
            x, scale = shifting.q_sample(self.shift, followup, initial, t, noise), 1.0
        else:
            x, scale = standard.q_sample(self.schedule, (followup - CENTRE) / SPREAD, t, noise), SPREAD
            followup = (followup - CENTRE) / SPREAD
        error = scale * (self.denoise(x, t / self.config.steps, condition) - followup)
        return (error.square() * region).sum() / region.sum().clamp(min=1.0)

    def words(self, tokenizer: str, sentences: Sequence[str], device: torch.device) -> tuple[Tensor, Tensor] | None:
        """What the attention reads: components of sentences [n, 1, c] and [n, 1] where the text asks; every word's
        features [n, L, c], and where words are [n, L], where the image does. None for a network without text.
        """
        if self.pair is None:
            return None
        features, there = self._every_word(tokenizer, sentences, device)
        features = (features - self.get_buffer("text_mean")) / self.get_buffer("text_spread") * there[..., None]
        if self.config.query == "text":
            return (features.flatten(1) @ self.get_buffer("text_basis"))[:, None], there[:, :1]
        return features, there

    def set_text_statistics(self, tokenizer: str, sentences: Sequence[str], device: torch.device) -> None:
        """Take the features' mean and spread over sentences, or their principal components, scaled to unit spread."""
        words, there = self._every_word(tokenizer, sentences, device)
        seen = there[..., None].to(words.dtype)
        count = seen.sum(dim=0).clamp(min=1.0)
        mean = (words * seen).sum(dim=0) / count
        self.get_buffer("text_mean").copy_(mean)
        centred = (words - mean) * seen
        if self.config.query == "text":
            _, sizes, basis = torch.linalg.svd(centred.flatten(1).double(), full_matrices=False)
            # The sign of a component is arbitrary, and another on another processor: its largest entry is positive.
            basis = basis * basis.gather(1, basis.abs().argmax(dim=1, keepdim=True)).sign()
            kept = min(COMPONENTS, int((sizes > 1e-6 * sizes[0]).sum()))
            scaled = basis[:kept].T * (len(sentences) ** 0.5 / sizes[:kept])
            self.get_buffer("text_basis").zero_()[:, :kept] = scaled.to(words.dtype)
        else:
            spread = (centred.square().sum(dim=0) / count).sqrt()
            self.get_buffer("text_spread").copy_(
                spread.clamp(min=SPREAD_FLOOR * float(spread.square().mean().sqrt()) + 1e-6)
            )

    @torch.no_grad()
    def _every_word(self, tokenizer: str, sentences: Sequence[str], device: torch.device) -> tuple[Tensor, Tensor]:
        assert self.pair is not None
        ids, there = (one.to(device) for one in tokenize(tokenizer, sentences, self.config.text.length))
        return self.pair.words(ids, there), there


def _noise(seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Standard normal noise for each seed, [b, ...], other than that of `_draws`."""
    return torch.stack([torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed ^ 1)) for seed in seeds])


def _draws(seeds: Sequence[int], steps: int, shape: Sequence[int], at_last: float) -> tuple[Tensor, Tensor]:
    """A step 1 ... T and noise for each patch from its own seed, whatever batch it stands in; T for a share of them."""
    t, noise = [], []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randint(1, steps + 1, (), generator=generator)
        t.append(torch.tensor(steps) if seed // 2**40 % 2**10 < 2**10 * at_last else drawn)
        noise.append(torch.randn(tuple(shape), generator=generator))
    return torch.stack(t), torch.stack(noise)


def _way(seed: int) -> int:
    """Which way of telling a seed takes."""
    return seed // 2**50 % TOLD


@dataclass(frozen=True, eq=False)
class _Thumbnails:
    """Whole scans at coarse spacing for the contrastive phase, moved by up to a voxel."""

    scans: NDArray[np.float32]  # [n, z, y, x]
    seed: int

    @property
    def slices(self) -> int:
        return len(self.scans)

    def subject(self, seed: int) -> int:
        return seed % len(self.scans)

    def batch(self, step: int, places: Sequence[int]) -> Batch:
        seeds = tuple(patch_seed(self.seed, step, place) for place in places)
        moved = [
            np.roll(self.scans[self.subject(seed)], [seed // 64 // 3**axis % 3 - 1 for axis in range(3)], (0, 1, 2))
            for seed in seeds
        ]
        stacked = np.stack(moved)[:, None]
        return Batch(stacked, stacked, seeds, tuple(f"scan {self.subject(seed)}" for seed in seeds))


class _Contrast(nn.Module):
    """Phase 1: text and initial scan of one subject belong together (Sec. 2.3, training subjects only)."""

    def __init__(self, system: CIResDiff, tokenizer: str, sentences: Sequence[str], data: _Thumbnails) -> None:
        super().__init__()
        assert system.pair is not None
        self.pair, self.data = system.pair, data
        self.ids, self.there = tokenize(tokenizer, sentences, system.config.text.length)

    def forward(self, source: Tensor, target: Tensor, seeds: Sequence[int]) -> dict[str, Tensor]:
        who = torch.tensor([self.data.subject(seed) for seed in seeds])
        row = who * TOLD + torch.tensor([_way(seed) for seed in seeds])
        given = (one[row].to(source.device) for one in (self.ids, self.there))
        loss, hit = self.pair(source, *given, who.to(source.device))
        return {"loss": loss, "hit": hit}


class _Diffusion(nn.Module):
    """Phase 2: eq. 4 on patches, the text tower frozen."""

    def __init__(
        self,
        system: CIResDiff,
        patches: Patches3d,
        words: tuple[Tensor, Tensor] | None,
        scales: NDArray[np.float64],
    ) -> None:
        super().__init__()
        dense = [dense_share(one.initial, one.region) for one in patches.subjects]
        self.dense = torch.tensor(dense, dtype=torch.float32)
        self.system, self.patches, self.text = system, patches, words
        self.scales = torch.from_numpy(scales).float()  # [n, 2 scans, 2 ends]

    def forward(self, source: Tensor, target: Tensor, seeds: Sequence[int]) -> dict[str, Tensor]:
        """HU and region to losses."""
        who = torch.tensor([self.patches.subject(seed) for seed in seeds])
        region = source[:, 1:]
        ends = self.scales[who].to(source.device)[..., None, None, None]  # [b, 2, 2, 1, 1, 1]
        initial, followup = (
            torch.where(region > 0, (hu - ends[:, i, :1]) / (ends[:, i, 1:] - ends[:, i, :1]), OUTSIDE)
            for i, hu in enumerate((source[:, :1], target))
        )
        row = who * TOLD + torch.tensor([_way(seed) for seed in seeds])
        given: tuple[Tensor | None, Tensor | None] = (None, None)
        if self.text is not None:
            words, there = (one[row] for one in self.text)
            given = (
                (words + TEXT_NOISE * _noise(seeds, words.shape[1:]).to(words.device)).to(source.device),
                there.to(source.device),
            )
        condition = Condition(initial, self.dense[who].to(source.device), *given)
        loss = self.system.loss(initial, followup, region, condition, seeds)
        return {"loss": loss}


def fit(data: CohortData, recipe: Recipe, run: Run, *, clip: Path | None = None) -> Bundle:
    """Train both phases, each from where it stands.

    Parameters
    ----------
    clip : folder of published CLIP weights and tokenizer; without, the text tower starts from random weights and a
        tokenizer that is trained on these subjects' sentences.
    """
    patches = Patches3d(data.subjects, recipe.patch, recipe.seed + 1)
    sentences = [told_again(one.sentence, way) for one in data.subjects for way in range(TOLD)]
    config, tokenizer, weights = recipe.config, "", None
    if config.query != "none":
        if clip is not None:
            text, tokenizer, weights = published_tower(clip)
        else:
            tokenizer = train_tokenizer(sentences)
            text = replace(config.text, vocabulary=vocabulary(tokenizer), end=ends(tokenizer)[1])
        config = replace(config, text=text)
    system = seeded(lambda: CIResDiff(config), recipe.seed)
    assert isinstance(system, CIResDiff)

    # Phase 1: sentence and initial scan.
    system.requires_grad_(False)
    words = None
    if system.pair is not None:
        if weights is not None:
            system.pair.text.load_state_dict(weights)
        else:
            system.pair.order_numbers(tokenizer)
        system.pair.requires_grad_(True)
        scans = np.stack([thumbnail(one.initial, one.region, recipe.spacing_mm) for one in data.subjects])
        thumbnails = _Thumbnails(scans, recipe.seed)
        if config.tower == "contrast":
            contrast = _Contrast(system, tokenizer, sentences, thumbnails)
            train_phase("contrast", contrast, thumbnails, recipe.contrast, run)
        system.pair.requires_grad_(False)
        system.eval().set_text_statistics(tokenizer, sentences, run.team.device)
        words = system.words(tokenizer, sentences, run.team.device)
        if words is not None and system.net.reading is not None and config.ridge:
            system.net.start_reading(text_direction(words[0][:, 0].cpu(), data.subjects).to(run.team.device))

    # Phase 2: the follow-up from the initial scan.
    system.net.requires_grad_(True)
    scales = np.array(
        [
            [scale_of(scan, one.region, config.intensity) for scan in (one.initial, one.followup)]
            for one in data.subjects
        ]
    )
    train_phase("diffusion", _Diffusion(system, patches, words, scales), patches, recipe.diffusion, run)
    return _to_bundle(system, replace(recipe, config=config), tokenizer, data.info)


def thumbnail(hu: NDArray[Any], region: NDArray[np.bool_], spacing_mm: float) -> NDArray[np.float32]:
    """The lungs at `THUMBNAIL_MM` in a cube of `THUMBNAIL` voxels, [0, 1], centred on the region's box."""
    unit = (np.asarray(hu, np.float32) - LOW_HU) / (HIGH_HU - LOW_HU)
    return cube(unit, region, size=THUMBNAIL, factor=THUMBNAIL_MM / spacing_mm)


def _to_bundle(system: CIResDiff, recipe: Recipe, tokenizer: str, info: Mapping[str, Any]) -> Bundle:
    volume = {"type": "image", "format": "hounsfield", "modality": "CT", "num_channels": 1, "spatial_shape": ["*"] * 3}
    return Bundle(
        {name: one.detach().cpu().numpy() for name, one in system.state_dict().items()},
        {
            "method": METHOD,
            "config": asdict(recipe.config),
            "recipe": {name: value for name, value in asdict(recipe).items() if name != "config"},
            "tokenizer": tokenizer,
            "parameters": sum(one.numel() for one in system.parameters()),
            "info": dict(info),
            "version": __version__,
            "pytorch_version": torch.__version__.split("+")[0],
            "task": "follow-up CT of pulmonary fibrosis, not for diagnosis",
            "description": f"{METHOD}, trained with concordct",
            "network_data_format": {"inputs": {"image": volume}, "outputs": {"pred": volume}},
        },
    )


def build(config: Mapping[str, Any]) -> CIResDiff:
    """The system of a stored configuration."""
    fields = dict(config)
    fields["text"] = TextConfig(**fields["text"])
    for name in ("widths", "attend", "scan_widths"):
        fields[name] = tuple(fields[name])
    return CIResDiff(Config(**fields))


def digest(data: CohortData) -> str:
    """SHA-256 of what is trained on: names, sentences, voxels."""
    found = hashlib.sha256()
    for one in data.subjects:
        found.update(f"{one.name}\0{one.sentence}\0{one.initial.shape}".encode())
        for array in (one.initial, one.followup, one.region):
            found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()
