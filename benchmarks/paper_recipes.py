"""Does every rival's `paper` recipe start? One optimizer step each, with what it takes; docs/results/paper-recipes.md.

python -m benchmarks.paper_recipes     # two minutes of one core, 6 GB; what a lab sees before it gives a card to one

Networks, losses, optimizers and rates are the recipe's own. Patch, batch and data are cut: a random object in slices
(64 pixels, 256 where eight halvings need them), two chests in volumes (patches of 32). Nothing is learned.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from benchmarks.results import table, write_section
from concordct.methods import catalogue
from concordct.methods.network import TrainingData
from concordct.progression import catalogue as followups
from concordct.progression.ciresdiff import CohortData
from concordct.progression.patches3d import Followup
from concordct.training.data import Images
from concordct.training.engine import Phase, Run

SEED = 0
#: The rivals of both tables; LTDiff++ and DiffusionCT have pages of their own.
SLICES = ("choe", "pix2pix", "ganai", "stan-ct", "radiomicgan", "cyclegan", "cvh-ct", "uda", "multipath")
#: U-Nets of eight levels need the whole published patch.
WHOLE = ("pix2pix", "ganai", "stan-ct")
EDGE, WHOLE_EDGE, EDGE_3D = 64, 256, 32


def once(phase: Phase) -> Phase:
    """One step of one patch."""
    return dataclasses.replace(phase, epochs=0, steps=1, batch=1, every=1)


def pictures(edge: int) -> TrainingData:
    """Two pairs of noise about soft tissue, the source blurred."""
    generator = np.random.default_rng(SEED)
    box = np.array([[0, edge - 1, 0, edge - 1]], np.int32)
    pairs = []
    for number in range(2):
        sharp = generator.normal(40.0, 60.0, (1, edge, edge))
        soft = ndimage.gaussian_filter(sharp, (0, 1, 1))
        pairs.append(Images(f"p{number}", *(one.round().astype(np.int16) for one in (soft, sharp)), box))
    return TrainingData(pairs, [], {"source_kernels": ["soft"], "target_kernels": ["sharp"]})


def chests() -> CohortData:
    """Two subjects whose lungs become denser."""
    edge = EDGE_3D + 4
    subjects = []
    for number in range(2):
        generator = np.random.default_rng((SEED, number))
        z, y, x = np.indices((edge,) * 3) / edge - 0.5
        lungs = ((np.abs(x) - 0.22) / 0.16) ** 2 + (y / 0.36) ** 2 + (z / 0.42) ** 2 < 1
        first = np.where(lungs, -850.0, 40.0) + generator.normal(0.0, 30.0, lungs.shape)
        scans = [one.round().astype(np.int16) for one in (first, first + 120.0 * lungs)]
        subjects.append(Followup(f"s{number}", *scans, ndimage.binary_dilation(lungs), lungs, "no tests"))
    return CohortData(subjects, {})


def step(name: str) -> list[str]:
    """A row of the table: method, weights, processor seconds, peak of memory."""
    flat = name in SLICES
    entry: Any = catalogue.method(name) if flat else followups.method(name)
    recipe = entry.recipes["paper"]
    if flat:
        edge = WHOLE_EDGE if name in WHOLE else EDGE
        data: Any = pictures(edge)
        cut = {"patch": edge, "phases": tuple((phase, once(each)) for phase, each in recipe.phases)}
    else:
        data, edge = chests(), EDGE_3D
        phases = {one.name: getattr(recipe, one.name) for one in dataclasses.fields(recipe)}
        cut = {key: once(value) for key, value in phases.items() if isinstance(value, Phase)}
        cut |= {"patch": edge, "overlap": edge // 4}
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        bundle = entry.fit(data, dataclasses.replace(recipe, **cut), Run(Path(folder)))
    spent = time.process_time() - began
    if not all(np.isfinite(one).all() for one in bundle.tensors.values()):
        raise SystemExit(f"{name}: expected weights that are numbers after a step, found others")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    weights = bundle.metadata["parameters"] / 1e6
    shape = " x ".join([str(edge)] * (2 if flat else 3))
    return [entry.title, shape, f"{weights:.1f} M", f"{spent:.0f}", f"{peak:.1f}"]


def main() -> None:
    """Take the steps and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="these methods, to the screen alone")
    given = parser.parse_args()
    rows = []
    for name in given.only or (*SLICES, *followups.CATALOGUE):
        # A process each: the peak is then the method's own.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rows.append(pool.apply(step, (name,)))
        print(*rows[-1], sep="  ", file=sys.stderr, flush=True)
    text = "\n\n".join(
        [
            "One optimizer step of each `paper` recipe (in games, one of everybody whose turn it is; in GANai the "
            "generator begins alone; in CIResDiff one of either phase): its own networks, losses and "
            "optimizers, on one small patch of simulated noise. **It says that they start, not what they reach:** no "
            "`paper` recipe was trained to its end here. Weights are those of the model that is kept, without "
            "discriminators; at the published patch and batch time and memory are many times these.",
            table(["method", "patch", "weights", "processor s", "peak, GiB"], rows),
        ]
    )
    print(text)
    if not given.only:
        write_section("paper-recipes", "python -m benchmarks.paper_recipes", text, seed=str(SEED))


if __name__ == "__main__":
    main()
