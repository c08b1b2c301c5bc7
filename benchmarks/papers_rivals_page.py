"""What the search and the final runs of the rivals gave: writes docs/results/rivals.md and its two figures.

python -m benchmarks.papers_rivals_page                     # from what benchmarks.papers_rivals has done so far
python -m benchmarks.papers_rivals_page --pairs MANIFEST    # of another cohort

Everything on this page is validation, where the settings were chosen; the test subjects are in docs/results/papers.md.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray

from benchmarks.papers_cohort import MINUTES, cohort, runs
from benchmarks.papers_rivals import PRESET, RIVALS, place, score, validation
from benchmarks.results import ROOT, spent_in, table
from concordct.judging.provenance import provenance
from concordct.judging.stages import stored
from concordct.methods.models import load_model
from concordct.radiomics.extract import extract
from concordct.radiomics.presets import settings_for
from concordct.report.curves import THRESHOLDS
from concordct.volumes.manifest import read_manifest
from concordct.volumes.scans import one_scan

PAGE = ROOT / "docs" / "results" / "rivals.md"
FIGURES = ROOT / "docs" / "figures"
INPUT = "input"
#: What the page says after its figures; an opinion, kept in a file of its own.
VERDICT = ROOT / "benchmarks" / "rivals_verdict.md"
#: CCC of GLCM and GLRLM as DiffusionCT's Table 1 prints them, over the features of an image and not over ROIs.
PUBLISHED_INPUT = (0.20, 0.59)
PUBLISHED = {
    "GANai": (0.50, 0.63),
    "STAN-CT": (0.70, 0.72),
    "RadiomicGAN, random VGG": (0.80, 0.75),
}
#: Edge of the pictures' crop, pixels; windows of image and difference, HU.
CROP, WINDOW_HU, DIFFERENCE_HU = 128, (-1000.0, 400.0), 200.0


def found_so_far() -> dict[str, dict[str, Any]]:
    """The record of every row whose final run is done."""
    records = {}
    for name in RIVALS:
        path = runs() / "search" / place(name).name / "search.json"
        if path.exists() and "final" in (record := json.loads(path.read_text())) and place(name).exists():
            records[name] = record
    return records


def setting_in_words(setting: Mapping[str, Any]) -> str:
    """A setting without its score."""
    return ", ".join(f"{key} {value}" for key, value in setting.items() if key not in ("score", "classes"))


def rows_of(records: Mapping[str, dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """One row for the input and for each method: CCC by class, and the setting that was chosen."""
    given = json.loads((runs() / "search" / "input.json").read_text())
    classes = list(given["classes"])
    header = ["", *classes, "mean", "chosen of four", "quarter run"]
    rows = [[INPUT, *(f"{given['classes'][one]:.2f}" for one in classes), f"{given['score']:.3f}", "", ""]]
    for name, record in records.items():
        final, best = record["final"], record["settings"][record["best"]]
        cells = [f"{final['classes'][one]:.2f}" for one in classes]
        rows.append(
            [
                name,
                *cells,
                f"{score(final['classes']):.3f}",
                setting_in_words(best),
                f"{best['score']:.3f}",
            ]
        )
    return header, rows


def processor_minutes(name: str) -> tuple[float, float]:
    """What the search and the final run of a row took to train."""
    searched = (runs() / "search" / place(name).name).glob("[0-9]*")
    runs_of = [[spent_in(folder) for folder in searched], [spent_in(Path(f"{place(name)}.run"))]]
    search, final = (sum(s for one in found for _, s in one.values()) / 60 for found in runs_of)
    return search, final


def cost_rows(records: Mapping[str, dict[str, Any]], seconds: Mapping[str, float]) -> list[list[str]]:
    """Training, parameters and work of each method."""
    rows = []
    for name, record in records.items():
        search, final = processor_minutes(name)
        parameters = load_model(place(name)).bundle.metadata["parameters"]
        rows.append(
            [
                name,
                f"{record['steps']:,}",
                f"{record['seconds_a_step']:.3f}",
                f"{search:.1f}",
                f"{final:.1f}",
                f"{parameters / 1e6:.2f} M",
                f"{seconds[name]:.2f}",
            ]
        )
    return rows


def closed(before: float, after: float) -> str:
    """Share of the way from the input's CCC to 1."""
    return f"{100 * (after - before) / (1 - before):.0f} %"


def published_rows(records: Mapping[str, dict[str, Any]]) -> list[list[str]]:
    """How far the published figures go beyond their input, and how far these do."""
    given = json.loads((runs() / "search" / "input.json").read_text())["classes"]
    rows = []
    for name, printed in PUBLISHED.items():
        if name in records:
            here = records[name]["final"]["classes"]
            pairs = zip(("GLCM", "GLRLM"), PUBLISHED_INPUT, printed, strict=True)
            cells = [(closed(before, after), closed(given[one], here[one])) for one, before, after in pairs]
            rows.append([name, *(cell for pair in cells for cell in pair)])
    return rows


def curves(manifest: Path, names: list[str]) -> tuple[dict[str, NDArray[np.float64]], dict[str, float]]:
    """Share of features whose median relative error is below each of `THRESHOLDS` (the papers' Figure 4); s a slice."""
    settings, judged = settings_for(PRESET), validation(manifest)
    targets = np.concatenate([wanted.values for *_, wanted in judged])
    shares, seconds = {}, {}
    for name in (INPUT, *names):
        values, spent, slices = [], 0.0, 0
        standardizer = None if name == INPUT else load_model(place(name)).standardizer(mode="sample")
        for seeds, volume, rois, _ in judged:
            began = time.process_time()
            made = volume if standardizer is None else standardizer(volume, generator=seeds)
            spent, slices = spent + time.process_time() - began, slices + volume.hu.shape[0]
            values.append(extract(made.with_hu(stored(made.hu, volume.hu)), rois, settings).values)
        with np.errstate(divide="ignore", invalid="ignore"):
            errors = np.abs(np.concatenate(values) - targets) / np.abs(targets)
        medians = np.median(np.where(np.isfinite(errors), errors, np.inf), axis=0)
        shares[name] = np.array([np.mean(medians <= limit) for limit in THRESHOLDS])
        seconds[name] = spent / slices
    return shares, seconds


def draw_curves(shares: Mapping[str, NDArray[np.float64]], path: Path) -> None:
    """The curves in one picture."""
    figure, axes = plt.subplots(figsize=(7, 4.5))
    for name, share in shares.items():
        axes.plot(THRESHOLDS, share, label=name, color="black" if name == INPUT else None)
    axes.set(xlabel="relative error", ylabel="share of features below it", xlim=(0, 1), ylim=(0, 1))
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)


def draw_images(manifest: Path, names: list[str], path: Path) -> None:
    """A crop of one validation slice by every method, and below it the difference to the target."""
    row = next(row for row in read_manifest(manifest) if row.split == "validation" and row.target is not None)
    assert row.target is not None
    (seeds, volume, _, _), target = validation(manifest)[0], one_scan(row.target).read()
    middle = volume.hu.shape[0] // 2
    where = (middle, *(slice(size // 2 - CROP // 2, size // 2 + CROP // 2) for size in volume.hu.shape[1:]))
    made = {INPUT: volume.hu, "target": target.hu}
    for name in names:
        standardizer = load_model(place(name)).standardizer(mode="sample")
        made[name] = stored(standardizer(volume, generator=seeds).hu, volume.hu)
    figure, axes = plt.subplots(2, len(made), figsize=(1.7 * len(made), 3.6), squeeze=False)
    for column, (name, hu) in enumerate(made.items()):
        axes[0, column].imshow(hu[where], cmap="gray", vmin=WINDOW_HU[0], vmax=WINDOW_HU[1])
        axes[0, column].set_title(name, fontsize=7)
        difference = hu[where] - target.hu[where]
        axes[1, column].imshow(difference, cmap="coolwarm", vmin=-DIFFERENCE_HU, vmax=DIFFERENCE_HU)
    for one in axes.ravel():
        one.set_axis_off()
    figure.savefig(path, dpi=100, bbox_inches="tight")
    plt.close(figure)


def main() -> None:
    """Write the page from what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, help="manifest of another cohort")
    given = parser.parse_args()
    manifest = given.pairs or cohort()[0]
    records = found_so_far()
    names, missing = list(records), [name for name in RIVALS if name not in records]
    FIGURES.mkdir(parents=True, exist_ok=True)
    shares, seconds = curves(manifest, names)
    draw_curves(shares, FIGURES / "rivals-curves.png")
    draw_images(manifest, names, FIGURES / "rivals-images.png")
    header, rows = rows_of(records)
    subjects = len(validation(manifest))
    made = provenance()
    body = [
        "# Rivals: search and final runs",
        "",
        f"Simulated scans, Br40 to Bl64. Ten patients trained on; {subjects} validation patients here, on whom four",
        "settings of each method were compared after a quarter of its steps. The budget is processor time, the same",
        f"for all: {MINUTES:g} minutes of one core for a final run, by the method's own measured speed, and as much",
        "for its four settings together. Recipe `small`; the grids are listed in [equations](../equations.md).",
        "CycleGAN's grid was changed once after its validation figures had been seen, on the patients of before.",
        "RadiomicGAN and CVH-CT start from random VGG weights here and are named so.",
        f"Lin's CCC of each feature over random ROIs, mean of a class, preset {PRESET}. The settings were chosen on",
        "these patients, so this page tells runs of one method apart; for methods see [the table](papers.md).",
        "",
        table(header, rows),
        "",
        f"Not trained yet: {'; '.join(missing)}; `python -m benchmarks.papers_rivals` goes on with them."
        if missing
        else "All are trained.",
        "",
        "## What each costs",
        "",
        "Processor minutes of one thread, the search's and the final run's steps; a slice has 512 x 512 pixels.",
        "",
        table(
            ["", "steps", "s a step", "min of search", "min of final run", "parameters", "processor s a slice"],
            cost_rows(records, seconds),
        ),
        "",
        "## Beside the published figures",
        "",
        "How much of the way from the input's CCC to 1 is gone, as DiffusionCT's Table 1 prints it (tumours of",
        "patients, CCC over the features of an image) and here (CCC of each feature over ROIs). The definitions",
        "differ, so the sizes compare only roughly.",
        "",
        table(["", "GLCM, printed", "GLCM, here", "GLRLM, printed", "GLRLM, here"], published_rows(records)),
        "",
        *([VERDICT.read_text(encoding="utf-8").strip(), ""] if VERDICT.exists() else []),
        "## Pictures",
        "",
        "Share of features whose median relative error over ROIs is below a limit (the papers' Figure 4):",
        "",
        "![curves](../figures/rivals-curves.png)",
        "",
        f"One slice, window {WINDOW_HU[0]:g} to {WINDOW_HU[1]:g} HU, and its difference to the target, "
        f"-{DIFFERENCE_HU:g} (blue) to {DIFFERENCE_HU:g} HU (red):",
        "",
        "![images](../figures/rivals-images.png)",
        "",
        f"*`python -m benchmarks.papers_rivals_page`, {made['software']}, commit {made['commit']}, {made['machine']}.*",
    ]
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text("\n".join(body) + "\n", encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
