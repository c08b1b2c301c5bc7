"""Calibrations mean tomorrow what they meant when they were stored: numbers of fixed small inputs, as they were.

    python tests/test_methods_kept.py            # prints what differs
    python tests/test_methods_kept.py --write    # keeps the numbers, after a change that is meant to change them

A difference says that something changed, not which side is right; what is right is tested in the methods' own files.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from concordct.methods.concord import fit
from concordct.methods.concord.adaptive import BANDS, DRAWN_BANDS, FEATURES, Adaptive, Near
from concordct.methods.concord.curves import curves
from concordct.methods.concord.lacking_power import PatchPower, lacking_power
from concordct.methods.concord.perceptron import begun, trained
from concordct.methods.concord.standardizer import ConcordStandardizer
from concordct.methods.concord.texture_level import LevelLaw, level_of, local_rms
from concordct.methods.concord.transport import fit_transport
from concordct.methods.spectral.fit import fit_pairs
from concordct.methods.spectral.reference import Condition, Reference, model_to
from concordct.methods.spectral.self_check import check_kernel
from concordct.methods.spectral.transfer import SpectralModel
from concordct.methods.spectral.unpaired import fit_unpaired
from concordct.signal.signature import EDGE_LP_CM, Signature, ring_centres_lp_cm
from concordct.signal.spectra import detail_to_cosines
from concordct.volumes.seeds import SliceSeeds
from synthetic import pair, volume

KEPT = Path(__file__).parent / "data" / "kept_values.json"
SPACING = (0.75, 0.75)
#: Room for the arithmetic of other processors, as a share of the largest number of a row.
SAME = 2e-3


def _told(values: object) -> list[float]:
    """Mean, spread and some values of an array along the way."""
    flat = np.asarray(values, np.float64).ravel()
    flat = flat[np.isfinite(flat)]
    return [float(flat.mean()), float(flat.std()), *flat[np.linspace(0, flat.size - 1, 6).astype(int)].tolist()]


def _image(seed: int, size: int = 96) -> NDArray[np.float32]:
    """A disc with rods and noise, HU."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] - size / 2
    hu = np.where(np.hypot(y, x) < 0.42 * size, 40.0, -1000.0)
    hu[np.hypot(y - 10, x + 8) < 7] = 300
    hu[np.hypot(y + 14, x - 6) < 9] = -700
    return (hu + 30 * rng.standard_normal((size, size))).astype(np.float32)


def _adaptive() -> Adaptive:
    f = np.linspace(0, 12, 25)
    network = begun((FEATURES, 6, 6, 2 * BANDS), np.linspace(-1, 1, 2 * BANDS), np.random.default_rng(0))
    zero = np.zeros(FEATURES, np.float32)
    drawn = np.full(DRAWN_BANDS, 0.5)
    return Adaptive(f, -0.4 * f / (1 + f), f * np.exp(-f / 4), 0.75, drawn, network, zero, zero + 2, zero - 4, zero + 4)


def near() -> dict[str, list[float]]:
    """What the adaptive network reads of a slice, and what it writes."""
    image, wider = _image(0), (0.75, 0.9)
    body = image > -900
    found = Near(image, image + 10, body, wider, 0.75)
    white = np.random.default_rng(1).standard_normal(image.shape, dtype=np.float32)
    rows = {f"feature {index}": _told(found.features[:, index]) for index in range(FEATURES)}
    rows |= {f"strength {index}": _told(one) for index, one in enumerate(found.strengths)}
    rows["written"] = _told(_adaptive().written(image, image + 10, body, wider, white)[body])
    rows["written, nothing drawn"] = _told(_adaptive().written(image, image + 10, body, wider, None)[body])
    return rows


def levels() -> dict[str, list[float]]:
    """Local noise levels, with pixels of two sizes."""
    image = _image(2)
    body = image > -900
    noise = np.random.default_rng(3).standard_normal(image.shape, dtype=np.float32) * (5 + np.arange(96) / 8)
    law = LevelLaw(4.0, 0.3, 0.7, 0.1)
    rows = {f"rms {mm}": _told(local_rms(noise, body, spacing_mm=(mm, 0.9 * mm))) for mm in (0.7, 3.0)}
    rows["level"] = _told(level_of(detail_to_cosines(noise), body, law, spacing_mm=SPACING))
    return rows


def lacking() -> dict[str, list[float]]:
    """Lacking power of seeded patches."""
    rng = np.random.default_rng(4)
    patches = PatchPower.of(SPACING)
    at = patches.centres_lp_cm
    anatomy = rng.exponential(1, (240, 1)) * 20 / (1 + at) ** 3
    made = anatomy + 1 + 0.2 * rng.standard_normal((240, at.size))
    true = 1.03 * anatomy + 1.3 + 0.3 * rng.standard_normal(made.shape)
    found = lacking_power(made, true, anatomy + 1, at)
    assert found is not None
    names = ("power", "error", "quiet_made", "quiet_true", "quiet_source", "anatomy_share")
    return {name: _told(getattr(found, name)) for name in names} | {"centres": _told(at)}


def learned() -> dict[str, list[float]]:
    """A perceptron after a few steps."""
    rng = np.random.default_rng(5)
    x = rng.standard_normal((200, 3)).astype(np.float32)
    network = begun((3, 5, 5, 2), np.array([0.2, -0.1], np.float32), rng)

    def slope(rows: NDArray[np.intp], said: NDArray[np.float32]) -> NDArray[np.float32]:
        return (said - np.abs(x[rows][:, :2])) / np.float32(len(rows))

    before = _told(network(x))
    return {
        "before": before,
        "after": _told(trained(network, x, slope, steps=30, batch=32, rate=0.1, generator=rng)(x)),
    }


def _each(name: str, values: Sequence[float]) -> dict[str, list[float]]:
    """Numbers of different units, a row each."""
    return {f"{name} {index}": [float(value)] for index, value in enumerate(values)}


def _model(model: SpectralModel) -> dict[str, list[float]]:
    rows = {name: _told(getattr(model, name)) for name in ("transfer", "single", "coherence")}
    rows |= _each("limits", (model.limits.half_lp_cm, model.limits.gone_lp_cm))
    if model.relative_error is not None:
        rows["error"] = _told(model.relative_error)
    if model.noise is not None:
        noise = model.noise
        rows["nps"] = _told(noise.nps_mm2)
        law = (noise.gain, noise.exponent, noise.probe_lp_cm, noise.probe_width_lp_cm, noise.z_correlation)
        rows |= _each("law", law)
    return rows


def paired() -> dict[str, list[float]]:
    """A calibration from one pair: transfer, noise, texture, and what they make of a slice, wide pixels included."""
    soft, sharp = pair(size=160, slices=3, seed=3, noise_hu=80.0)
    source, target = volume(soft), volume(sharp)
    model = fit_pairs(lambda: [(source, target)])
    transport = fit_transport(model, lambda: [(source, target)])
    assert transport is not None
    rows = _model(model)
    share = model.limits.noise_share_above_half
    rows["share lost"] = [float("nan") if share is None else share]
    tensors = transport.to_tensors()
    rows |= _each("level", tensors.pop("laws").ravel().tolist()) | {name: _told(one) for name, one in tensors.items()}
    slab, seeds = source.slab(0, 1), SliceSeeds(2, "kept")
    made = ConcordStandardizer(model, transport)(slab, generator=seeds).hu
    rows["sample"] = _told(made[soft[:1] > -300])
    wide = volume(soft[:1, ::2, ::2], pixel_mm=1.6)
    rows["sample, wide pixels"] = _told(ConcordStandardizer(model, transport)(wide, generator=seeds).hu)
    on = curves(model, transport, (80, 80), (1.6, 1.6))
    rows |= {f"wide {name}": _told(getattr(on, name)) for name in ("free", "gain", "drawn", "in_all")}
    return rows | _each("wide law", (on.law.from_lp_cm, on.law.offset, on.law.slope, on.law.misfit))


def adapted() -> dict[str, list[float]]:
    """The adaptive fit on a pair whose noise was lowered and whose edges were not, a few steps of it."""
    slabs = []
    for seed in (0, 1, 2):
        image = np.stack([_image(seed, 160)])
        edges = np.stack([_image(9, 160)])
        slabs.append((volume(image, pixel_mm=0.75), volume(edges + 0.3 * (image - edges), pixel_mm=0.75)))
    model = fit_pairs(lambda: slabs)
    measured = fit._flat_tissue(model, lambda: slabs, 3)
    assert measured is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit, "STEPS", 8)
        patch.setattr(fit, "BATCH", 256)
        patch.setattr(fit, "PIXELS", 3000)
        adaptive = fit.fit_adaptive(model, lambda: slabs)
    assert adaptive is not None
    rows = {name: _told(one) for name, one in zip(("frequency", "extra", "left"), measured[:3], strict=True)}
    rows |= {name: _told(getattr(adaptive, name)) for name in ("centre", "spread", "low", "high")}
    rows["says"] = _told(adaptive.network(np.linspace(-1, 1, 4 * FEATURES).reshape(4, -1).astype(np.float32)))
    return rows


def unpaired() -> dict[str, list[float]]:
    """Cohorts of two scans each."""
    sources = [(str(seed), volume(pair(seed=seed, slices=1, size=128)[0])) for seed in (10, 11)]
    targets = [(str(seed), volume(pair(seed=seed, slices=1, size=128)[1])) for seed in (20, 21)]
    return _model(fit_unpaired(lambda: sources, lambda: targets))


def _signature(width: float, noise: float | None, *, tail: float = 0.8) -> Signature:
    rings = ring_centres_lp_cm()
    power = None if noise is None else 40 * rings * np.exp(-2 * (rings / noise) ** 2) + 0.2
    return Signature(power, None if noise is None else tail, np.exp(-((EDGE_LP_CM / width) ** 2)), 0.7, 99, 9)


def referenced() -> dict[str, list[float]]:
    """Models to a reference, of scans above and below it, with noise and without; and the distances of kernels."""
    rings = ring_centres_lp_cm()
    wanted = Reference("r", "", np.exp(-((EDGE_LP_CM / 4) ** 2)), 30 * rings * np.exp(-2 * (rings / 4) ** 2) + 0.2)
    rows: dict[str, list[float]] = {}
    for name, signature in {
        "soft": _signature(3.0, 3.0), "sharp": _signature(6.0, 6.0), "no noise": _signature(3.5, None),
        "blurred": _signature(2.6, 4.5),
    }.items():  # fmt: skip
        model = model_to(wanted, Condition(signature, 0.05))
        rows |= {f"{name}, {key}": one for key, one in _model(model).items()}
        told = ("mtf50_reached_lp_cm", "noise_over_reference", "edges_against_noise", "surface_blur_cm2")
        rows |= _each(f"{name}, told", [float(model.info[key] or 0) for key in told])
        found = check_kernel(signature, _signature(3.2, 3.4))
        rows |= _each(f"{name}, distance", (found.sharpness or 0, found.noise_deviation or 0, found.distance or 0))
    return rows


PARTS: tuple[Callable[[], dict[str, list[float]]], ...] = (
    near, levels, lacking, learned, paired, adapted, unpaired, referenced,
)  # fmt: skip


def _differs(found: dict[str, list[float]], kept: dict[str, list[float]]) -> list[str]:
    wrong = [name for name in {*found, *kept} if name not in found or name not in kept]
    for name in found.keys() & kept.keys():
        room = SAME * max(np.abs(kept[name]).max(), 1e-6)
        if not np.allclose(found[name], kept[name], rtol=0, atol=room, equal_nan=True):
            wrong.append(f"{name}: {found[name]}, kept {kept[name]}")
    return sorted(wrong)


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_it_gives_the_numbers_that_it_gave(part: Callable[[], dict[str, list[float]]]) -> None:
    assert _differs(part(), json.loads(KEPT.read_text())[part.__name__]) == []


if __name__ == "__main__":
    everything = {part.__name__: part() for part in PARTS}
    if "--write" in sys.argv:
        rounded = {
            part: {name: [float(f"{one:.6g}") for one in row] for name, row in rows.items()}
            for part, rows in everything.items()
        }
        KEPT.write_text(json.dumps(rounded, indent=0, sort_keys=True) + "\n", encoding="utf-8")
    else:
        for part, rows in everything.items():
            print(part, _differs(rows, json.loads(KEPT.read_text())[part]))
