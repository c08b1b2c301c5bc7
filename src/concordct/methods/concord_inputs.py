"""What the flagship's network sees of a slice: texture in units of its expected level, maps, and the vector that says
which kernel pair it serves."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from concordct.features.body import material_mask
from concordct.features.spectra import cosine_frequencies, from_cosines, to_cosines
from concordct.methods.spectral import SpectralModel, SpectralStandardizer
from concordct.methods.transport import Transport
from concordct.volumes.seeds import SliceSeeds
from concordct.volumes.volume import Volume

#: Frequencies at which calibration's curves are told to the network, cycles per pixel of the scan at hand.
CURVE = np.linspace(0.02, 0.70, 18)
#: Channels beside the state: transported texture, anatomy, level of the texture.
MAPS = 3
#: Length of the vector: four curves, level of the texture, pixel, slice thickness.
CONDITION = 4 * len(CURVE) + 3
#: Anatomy is cut at this many HU on either side of water.
ANATOMY_HU = 1000.0
#: Typical level of texture, HU, and thickness, mm: units of the vector, and thickness where a scan does not say it.
LEVEL_HU, THICKNESS_MM = 30.0, 1.5
#: Texture beyond this many levels is an edge: it is cut off, stands as transported and is put back.
TEXTURE_LIMIT = 5.0
#: Levels below this do not occur in CT, HU; keeps divisions safe.
LEAST_LEVEL_HU = 1e-2


@dataclass(frozen=True, eq=False)
class Prepared:
    """One slice, ready for the network.

    Attributes
    ----------
    base : [y, x], the slice through the calibrated transfer, HU.
    transferred : [y, x], what of it lies in the bands that may be written, in units of `level`.
    texture : [y, x], the same transported to the target's power, cut at `TEXTURE_LIMIT`. edges : what was cut off.
    level : [y, x], standard deviation expected of the target's texture, HU.
    maps : [MAPS, y, x]. condition : [CONDITION].
    inside : [y, x] bool, the body.
    body : first and last row and column of what is not air, with the last ones exclusive; None without body.
    """

    base: NDArray[np.float32]
    transferred: NDArray[np.float32]
    texture: NDArray[np.float32]
    edges: NDArray[np.float32]
    level: NDArray[np.float32]
    maps: NDArray[np.float32]
    condition: NDArray[np.float32]
    inside: NDArray[np.bool_]
    body: tuple[int, int, int, int] | None


@dataclass(frozen=True, eq=False)
class Curves:
    """A transport on the lattice of a slice's cosine coefficients, each [y, x].

    Attributes
    ----------
    free, gain : as in `Transport`.
    drawn : root mean square coefficient of the noise to draw, in units of the level.
    in_all : the same with the noise that is added where nothing may be written.
    theta : angle between transported and true texture, rad.
    """

    free: NDArray[np.float32]
    gain: NDArray[np.float32]
    drawn: NDArray[np.float32]
    in_all: NDArray[np.float32]
    theta: NDArray[np.float32]


def curves(
    model: SpectralModel, transport: Transport, shape: tuple[int, int], spacing_mm: tuple[float, float]
) -> Curves:
    """The calibrated curves at every coefficient of a slice."""
    frequency = cosine_frequencies(shape, spacing_mm)

    def on_grid(curve: NDArray[np.float64]) -> NDArray[np.float32]:
        return np.interp(frequency, model.frequency_lp_cm, curve, right=0.0).astype(np.float32)

    unit = 1.0 / (transport.scale**2 * spacing_mm[0] * spacing_mm[1])
    return Curves(
        on_grid(transport.free),
        on_grid(transport.gain),
        np.sqrt(on_grid(transport.drawn_mm2 * unit)),
        np.sqrt(on_grid((transport.drawn_mm2 + transport.added_mm2) * unit)),
        on_grid(np.arccos(correlation(transport))),
    )


def correlation(transport: Transport) -> NDArray[np.float64]:
    """[f], correlation of transported (with its drawn part) and true texture."""
    raised = np.clip(1 - transport.drawn_mm2 / np.maximum(transport.power_mm2, 1e-12), 0, 1)
    return np.asarray(np.sqrt(np.clip(transport.coherence, 0, 1) * raised))


def prepare(spectral: SpectralStandardizer, transport: Transport, on: Curves, volume: Volume) -> list[Prepared]:
    """Every slice of a volume or slab.

    Parameters
    ----------
    spectral : the base at work, in mode "mean", with a model that has a noise part.
    on : `curves` for this shape and spacing.
    """
    base = spectral(volume, generator=SliceSeeds(0, ""))
    spacing = volume.spacing_mm[1:]
    found = []
    for index, (image, made) in enumerate(zip(volume.hu, base.hu, strict=True)):
        level = spectral.deviation(to_cosines(image), volume, index) * np.float32(transport.scale)
        level = np.maximum(level, np.float32(LEAST_LEVEL_HU))
        free = to_cosines(made) * on.free
        transported = from_cosines(free * on.gain) / level
        texture = np.clip(transported, -TEXTURE_LIMIT, TEXTURE_LIMIT)
        body = material_mask(image[None], spacing)[0]
        typical = float(np.median(level[body])) if body.any() else LEAST_LEVEL_HU
        found.append(
            Prepared(
                base=made,
                transferred=from_cosines(free) / level,
                texture=texture,
                edges=transported - texture,
                level=level,
                maps=_maps(texture, made, level, typical),
                condition=_condition(spectral.model, transport, spacing, typical, volume.slice_thickness_mm),
                inside=body,
                body=_box(body) if body.any() else None,
            )
        )
    return found


def _maps(
    texture: NDArray[np.float32], base: NDArray[np.float32], level: NDArray[np.float32], typical: float
) -> NDArray[np.float32]:
    return np.stack(
        [
            texture,
            np.clip(base, -ANATOMY_HU, ANATOMY_HU) / np.float32(ANATOMY_HU / 2),
            np.log(level / np.float32(typical)),
        ]
    ).astype(np.float32)


def _condition(
    model: SpectralModel,
    transport: Transport,
    spacing_mm: tuple[float, float],
    typical: float,
    thickness_mm: float | None,
) -> NDArray[np.float32]:
    pixel = math.sqrt(spacing_mm[0] * spacing_mm[1])
    at = CURVE * 10.0 / pixel  # lp/cm
    chosen = (
        np.sqrt(transport.power_mm2) / (transport.scale * pixel),
        correlation(transport),
        np.log1p(np.clip(model.single * transport.gain, 0, 20)),
        transport.free,
    )
    rest = (math.log(typical / LEVEL_HU), pixel, math.log((thickness_mm or THICKNESS_MM) / THICKNESS_MM))
    found = [np.interp(at, model.frequency_lp_cm, curve, right=0.0) for curve in chosen]
    return np.concatenate([*found, rest]).astype(np.float32)


def _box(body: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(body.any(axis=1)), np.flatnonzero(body.any(axis=0))
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
