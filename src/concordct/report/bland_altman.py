"""Bland-Altman pictures (doi:10.1016/S0140-6736(86)90837-8): difference against mean, bias and limits of agreement."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from concordct.agreement.concordance import bland_altman
from concordct.errors import ConcordctError
from concordct.signal.drawing import new_figure
from concordct.volumes.place import atomic_file

#: Width and height of a panel, inches.
PANEL = (3.4, 2.7)
COLOUR, MUTED = "#22577a", "#8a8a8a"

#: (title, values, reference values of the same patients).
Panel = tuple[str, NDArray[np.float64], NDArray[np.float64]]


def write_bland_altman(path: Path, panels: Sequence[Panel], *, overwrite: bool = False) -> Path:
    """Draw panels side by side; two that share an endpoint's name before ":" share their axes.

    Parameters
    ----------
    path : .png or .svg.

    Raises
    ------
    ConcordctError : no panel, or values that do not match.
    """
    if not panels or any(values.shape != reference.shape for _, values, reference in panels):
        raise ConcordctError("expected panels of values with as many reference values")
    figure = new_figure(figsize=(PANEL[0] * len(panels), PANEL[1]), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    reach: dict[str, float] = {}
    for title, values, reference in panels:
        name = title.split(":")[0]
        largest = float(np.nanmax(np.abs(values - reference), initial=0.0))
        reach[name] = max(reach.get(name, 0.0), 1.25 * largest or 1.0)
    for axis, (title, values, reference) in zip(axes, panels, strict=True):
        limits = bland_altman(values[:, None], reference[:, None])
        axis.scatter((values + reference) / 2, values - reference, s=14, color=COLOUR, zorder=3)
        axis.axhline(0.0, color=MUTED, linewidth=0.6)
        for level, style in ((limits.bias[0], "-"), (limits.low[0], "--"), (limits.high[0], "--")):
            if np.isfinite(level):
                axis.axhline(level, color=COLOUR, linewidth=0.9, linestyle=style)
        axis.set_ylim(-reach[title.split(":")[0]], reach[title.split(":")[0]])
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("mean of both", fontsize=8)
        axis.set_ylabel("difference", fontsize=8)
        axis.tick_params(labelsize=7)
    with atomic_file(path, overwrite=overwrite) as aside:
        figure.savefig(
            aside,
            format=path.suffix[1:].lower(),
            dpi=110,
            metadata={"Software": None} if path.suffix == ".png" else None,
        )
    return path
