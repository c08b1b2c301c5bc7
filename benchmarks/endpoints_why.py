"""Why low attenuation misses from Br40 to Bl64 at 1 mm: the noise of the lung, stage by stage, and what a noise of the
target's level would give.

The object is known, so that an image less the object is noise and what blur leaves.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from benchmarks.endpoints_cohort import FRAME, Scanned
from benchmarks.results import table
from concordct.judging.stages import standardized, standardizer_for
from concordct.methods.models import Model
from concordct.volumes.files import write_volume_file
from concordct.volumes.place import atomic_file
from concordct.volumes.scans import one_scan

#: Lung so near its edge is the rim, mm; blood vessels and holes are left out of noise.
RIM_MM = 5.0
PLAIN_HU = (-900.0, -800.0)
LOW_HU = -950.0
Numbers = dict[str, float]


def of_smoker(one: Scanned, model: Model, source: str, target: str, place: Path) -> Numbers:
    """Noise and low attenuation of one smoker's lungs, by stage and by depth."""
    path = place / f"{one.name}.nii.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_volume_file(path, one.images[source], overwrite=True)
    scan, volume = one_scan(path), one.images[source]
    mean, sample = (
        standardized(scan, volume, standardizer_for(scan, model, mode=mode)).hu for mode in ("mean", "sample")
    )
    wanted, drawn = one.images[target].hu, one.object.hu
    lung = one.lungs > 0
    pixels = round(RIM_MM / FRAME.pixel_mm)
    deep = ndimage.binary_erosion(lung, iterations=pixels, structure=np.ones((1, 3, 3)))
    plain = deep & (drawn > PLAIN_HU[0]) & (drawn < PLAIN_HU[1])
    # Noise of the target's own level, apart for the rim and the rest: takes the target, so it only explains.
    scaled = drawn.copy()
    for part in (deep, lung & ~deep):
        scaled[part] += (sample - drawn)[part] * spread((wanted - drawn)[part]) / spread((sample - drawn)[part])
    found = {}
    for stage, hu in {"target": wanted, "mean": mean, "sample": sample, "scaled": scaled}.items():
        found[f"{stage} noise"] = spread((hu - drawn)[plain])
        found[f"{stage} density"] = float((hu - drawn)[plain].mean(dtype=np.float64))
        found[f"{stage} perc15"] = float(np.percentile(hu[lung], 15))
        for name, part in (("lung", lung), ("deep", deep), ("rim", lung & ~deep)):
            found[f"{stage} laa {name}"] = 100.0 * float((hu[part] < LOW_HU).mean())
    for stage, hu in {"target": wanted, "sample": sample}.items():
        for name, part in (("deep", deep), ("rim", lung & ~deep)):
            found[f"{stage} spread {name}"] = spread((hu - drawn)[part])
    found["clipped"] = 100.0 * float((wanted[lung] <= -1024).mean())
    return found


def spread(hu: NDArray[np.float32]) -> float:
    """Standard deviation, HU."""
    return float(hu.std(dtype=np.float64))


def why(everyone: Sequence[Scanned], model: Model, pair: tuple[str, str], folder: Path) -> str:
    """The section of the page."""
    path = folder / "why.json"
    kept: dict[str, Numbers] = json.loads(path.read_text()) if path.exists() else {}
    for one in everyone:
        if one.name not in kept:
            kept[one.name] = of_smoker(one, model, *pair, folder / "aside")
            with atomic_file(path, overwrite=True) as aside:
                aside.write_text(json.dumps(kept))
    of = {name: float(np.mean([one[name] for one in kept.values()])) for name in next(iter(kept.values()))}
    rows = [
        [
            title,
            f"{of[f'{stage} noise']:.1f}",
            f"{of[f'{stage} density']:+.1f}",
            f"{of[f'{stage} perc15'] - of['target perc15']:+.1f}",
            *(f"{of[f'{stage} laa {part}'] - of[f'target laa {part}']:+.2f}" for part in ("lung", "deep", "rim")),
        ]
        for stage, title in (
            ("target", "target"),
            ("mean", "`mean`"),
            ("sample", "`sample`"),
            ("scaled", "`sample`, its noise scaled to the target's level"),
        )
    ]
    header = ["", "SD of the lung less the object, HU", "density less the object", "Perc15 less the target's",
              "LAA-950 less the target's", "the same, deep", "the same, rim"]  # fmt: skip
    deep, rim = (of[f"sample spread {part}"] / of[f"target spread {part}"] for part in ("deep", "rim"))
    gauss = 1.0364 * (of["target noise"] - of["mean noise"])
    return f"""## Why {pair[0]} to {pair[1]} at 1 mm misses

Means over {len(kept)} smokers; the rim is what lies within {RIM_MM:g} mm of the lung's edge.

{table(header, rows)}

- **`mean` lacks noise.** Its lung spreads by {of["target noise"] - of["mean noise"]:.1f} HU less than the target's:
  what the source does not tell is not there. A normal distribution narrower by that has its 15th percentile
  {gauss:.1f} HU higher, which is about what is seen. Perc15, LAA-950 and other thresholds near the histogram's edge are
  not to be measured in `mean` toward a sharper kernel.
- **`sample` has a little too much.** Its noise is {100 * (deep - 1):.0f} % above the target's deep in the lung and
  {100 * (rim - 1):.0f} % at the rim. Where 2 or 3 % of the
  lung lie below -950 HU by noise alone, that is the bias that is seen: the last row takes the level from the target (so
  it is no method), and what it leaves does not come from the level.
- **Neither air nor clipping.** The lung's density is off by {of["sample density"] - of["target density"]:+.1f} HU, and
  {of["clipped"]:.2f} % of the target's lung lies at the lower end of the range, -1024 HU.
"""
