"""Branching trees that fill a volume: pulmonary arteries, veins and airways.

A tree is grown from its root by halving the cloud of points that it has to reach, again and again, across the cloud's
longest axis; each branch runs part of the way to its cloud's middle. Radii follow Murray's law (1926,
doi:10.1073/pnas.12.3.207): a branch that feeds n ends is n^(1/3) times as wide as one that feeds one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from concordct.scanner.shapes import chain

#: Murray's exponent; measured pulmonary trees lie between 2.7 and 3 (Huang 1996, doi:10.1152/jappl.1996.81.5.2123).
MURRAY = 2.8
#: How far a branch runs towards the middle of what it feeds, as a share; short steps give straight, radiating vessels.
REACH = (0.2, 0.4)


def grow_tree(
    root: NDArray[np.floating[Any]],
    ends: NDArray[np.floating[Any]],
    *,
    end_radius_mm: float,
    wander: float,
    generator: np.random.Generator,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Grow a tree from a root to many ends.

    Parameters
    ----------
    root : (z, y, x), mm.
    ends : [end, (z, y, x)], mm.
    end_radius_mm : radius of a twig that feeds one end.
    wander : sideways bend of a branch as a share of its length.

    Returns
    -------
    [segment, 8] tubes (`shapes.SEGMENT_COLUMNS`) and [segment] the number of ends that each feeds.
    """
    tubes: list[NDArray[np.float64]] = []
    feeds: list[int] = []
    waiting = [(np.asarray(root, dtype=np.float64), np.asarray(ends, dtype=np.float64), float(len(ends)))]
    while waiting:
        start, cloud, parent = waiting.pop()
        count = len(cloud)
        middle = cloud.mean(axis=0)
        tip = cloud[0] if count == 1 else start + generator.uniform(*REACH) * (middle - start)
        length = float(np.sqrt(((tip - start) ** 2).sum()))
        bend = generator.normal(size=3) * wander * length
        path = np.stack([start, 0.5 * (start + tip) + bend, tip])
        r0, r1 = (end_radius_mm * n ** (1 / MURRAY) for n in (min(parent, 1.6 * count), count))
        tubes.append(chain(path, np.array([r0, 0.5 * (r0 + r1), r1 * (0.5 if count == 1 else 1.0)])))
        feeds += [count, count]
        if count > 1:
            spread = cloud - middle
            order = np.argsort((spread * _longest_axis(spread)).sum(axis=1), kind="stable")
            cut = min(max(round(count * generator.uniform(0.3, 0.7)), 1), count - 1)
            waiting.append((tip, cloud[order[:cut]], count))
            waiting.append((tip, cloud[order[cut:]], count))
    return np.concatenate(tubes), np.array(feeds)


def _longest_axis(spread: NDArray[np.float64]) -> NDArray[np.float64]:
    """[3] unit vector along the longest axis of a cloud around its middle, the same on every processor.

    An eigenvector's sign is arbitrary and its last digits are those of the linear algebra at hand: the largest
    component is made positive, the digits are cut. Sums are written out: matrix products differ as well.
    """
    moments = (spread[:, :, None] * spread[:, None, :]).sum(axis=0)
    axis = np.linalg.eigh(moments)[1][:, -1].round(9)
    return np.asarray(axis * (1.0 if axis[np.argmax(np.abs(axis))] > 0 else -1.0))


def companion(
    tubes: NDArray[np.float64], feeds: NDArray[np.int64], *, least_feeds: int, calibre: float
) -> NDArray[np.float64]:
    """Airways that run beside the arteries which feed at least `least_feeds` ends, `calibre` times as wide inside."""
    chosen = tubes[feeds >= least_feeds].copy()
    radius = chosen[:, 6:8].mean(axis=1)
    gap = (radius * (1.0 + calibre) + 0.8)[:, None] * np.array([0.35, 0.75, 0.0])
    side = -np.sign(chosen[:, 2])[:, None] * (radius * 0.5)[:, None] * np.array([0.0, 0.0, 1.0])
    chosen[:, 0:3] += gap + side
    chosen[:, 3:6] += gap + side
    chosen[:, 6:8] *= calibre
    return chosen
