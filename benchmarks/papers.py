"""The papers' table on the virtual scanner, Br40 to Bl64, in pieces that resume; writes docs/results/papers.md.

python -m benchmarks.papers                       # cohort, trainings, features, tables
python -m benchmarks.papers --minutes 9           # one piece; run it again to go on
python -m benchmarks.papers --page                # the page from what has been trained and measured so far
python -m benchmarks.papers --rows "LTDiff++"     # train these rows alone
python -m benchmarks.papers --most-steps 3        # a rehearsal
python -m benchmarks.papers --method FILE.py      # a method of one's own beside the rows that stand: docs/howto

Everything lies below `runs/papers`, or where CONCORDCT_RUNS says: the cohort (`benchmarks.papers_cohort`), the models
with their runs (`benchmarks.papers_rows`), the features of each subject and row (`benchmarks.papers_measure`).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import papers_codec, papers_rivals, papers_steps
from benchmarks.papers_cohort import MINUTES, SEED, cohort, runs
from benchmarks.papers_measure import (
    INPUT,
    PRESET,
    REDRAWN,
    SECOND,
    Measured,
    fixed_stage,
    judged,
    measured,
    model_of,
    repeat_of_phantom,
    row_stage,
)
from benchmarks.papers_rows import ROWS, SHARED, chosen_steps, spent, train_rows
from benchmarks.results import RESULTS, ROOT, data_folder, table
from concordct.judging.provenance import provenance
from concordct.judging.table import table_of_methods
from concordct.training.data import Images, store
from concordct.training.engine import Paused, Run
from concordct.volumes.scans import paired_scans

PAGE = RESULTS / "papers.md"
#: The compression curve's picture.
FIGURE = ROOT / "docs" / "figures" / "papers-compression.png"
#: Rows that are no methods and compete with none.
BESIDE = (INPUT, SECOND, REDRAWN)
#: What the two ceilings are.
CEILINGS = (
    f'"{SECOND}" has all its noise anew, the part that the source knows included: it is no bound, and the input',
    f'may beat it. "{REDRAWN}" keeps what the source says through the spectral transfer and takes the rest from',
    "the second scan; anatomy beyond the source's limit stays, so it lies a little above what a method can reach.",
    "It is made with the method of a row, which may favour that one.",
)
#: What the page says after its tables; kept in a file of its own, since it is an opinion and not a figure.
VERDICT = ROOT / "benchmarks" / "papers_verdict.md"


def stored_pairs(manifest: Path, split: str) -> list[Images]:
    """The pairs of a split, memory-mapped."""
    folder = runs() / "voxels"
    folder.mkdir(parents=True, exist_ok=True)
    return [store(folder, pair.pair, pair.source, pair.target) for pair in paired_scans(manifest, split=split)]


def table_rows(
    values: Mapping[str, Measured], target: Measured, *, beside: Sequence[str] = BESIDE, marks: bool = True
) -> list[list[str]]:
    """Lin's CCC by class with its interval over subjects, share of features with RE below 0.15, seconds a slice."""
    found = table_of_methods(
        {name: one.values for name, one in values.items()},
        target.values,
        target.classes,
        target.subjects,
        baseline=next(iter(values)),
        not_competing=tuple(beside),
        seed=SEED,
    )
    rows = []
    for row in found:
        cells = [_cell(cell, marks) for cell in row["classes"].values()]
        one = values[row["name"]]
        share = np.mean(np.nan_to_num(_within(one.values, target.values)))
        rows.append([row["name"], *cells, f"{share:.2f}", f"{one.seconds:.2f}" if one.seconds else ""])
    return rows


def _cell(cell: Mapping[str, Any], marks: bool) -> str:
    if cell["ccc"] is None:
        return "?"
    text = f"**{cell['ccc']:.2f}**" if cell["best"] and marks else f"{cell['ccc']:.2f}"
    low, high = cell["interval"]
    return text if low is None else f"{text} ({low:.2f}, {high:.2f})"


def _within(values: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Whether each feature's median relative error over ROIs is below 0.15."""
    with np.errstate(divide="ignore", invalid="ignore"):
        errors = np.abs(values - target) / np.abs(target)
    return np.asarray(np.nanmedian(np.where(np.isfinite(errors), errors, np.nan), axis=0) < 0.15)


def measure_rows(manifest: Path, repeats: Path | None, names: Sequence[str]) -> dict[str, Measured]:
    """Features of every row whose model stands, of the input and, with second scans, of the ceilings."""
    subjects = judged(manifest, repeats, "test")
    found = {INPUT: measured(subjects, fixed_stage(INPUT), label=INPUT)}
    rivals = papers_rivals.RIVALS if set(names) == set(ROWS) else ()
    for name in (*names, *rivals):
        undecided = name in ROWS and ROWS[name].chosen and chosen_steps(ROWS[name].of) is None
        if model_of(name).exists() and not undecided:
            found[name] = measured(subjects, row_stage(name), label=name)
    for name in () if repeats is None else (SECOND, REDRAWN):
        found[name] = measured(subjects, fixed_stage(name), label=name)
    return found


def _header(classes: Iterable[str], first: str = "") -> list[str]:
    return [first, *dict.fromkeys(classes), "RE < 0.15", "processor s a slice"]


def _two_samples(manifest: Path, repeats: Path | None, names: Sequence[str]) -> list[list[str]]:
    """Agreement of two samples of one model: what a target would have with them, were the model calibrated."""
    subjects = judged(manifest, repeats, "test")
    rows = []
    for name in names:
        if not (ROWS[name].samples and model_of(name).exists()):
            continue
        first = measured(subjects, row_stage(name), label=name)
        second = measured(subjects, row_stage(name, SEED + 1), label=f"{name}, second sample")
        rows += table_rows({name: first}, second, beside=(name,), marks=False)
    return rows


def _phantom() -> list[list[str]]:
    data = data_folder()
    if data is None or not (data / "canon_lung_phantom").is_dir():
        return []
    found = repeat_of_phantom(data / "canon_lung_phantom")
    rows = []
    for kind in ("IR", "DLR"):
        first, second = found[f"{kind}_2"], found[f"{kind}_3"]
        rows += table_rows({f"{kind}, scan 2 against scan 3": first}, second, beside=(), marks=False)
    return rows


def _cost(names: Sequence[str]) -> list[list[str]]:
    rows = []
    for name in names:
        phases = {} if ROWS[name].of else spent(name)
        if phases:
            shared = SHARED.get(name, ("", ()))[1]
            steps = ", ".join(
                f"{phase} {count}{' (shared)' if phase in shared else ''}" for phase, (count, _) in phases.items()
            )
            rows.append([name, steps, f"{sum(seconds for _, seconds in phases.values()) / 60:.1f}"])
    return rows


def _main(manifest: Path, repeats: Path | None, names: Sequence[str]) -> list[str]:
    found = measure_rows(manifest, repeats, names)
    subjects = judged(manifest, repeats, "test")
    target = measured(subjects, fixed_stage("target"), label="target")
    classes = tuple(dict.fromkeys(target.classes))
    pruned = [name for name in found if name in ROWS and ROWS[name].of]
    main_rows = {name: one for name, one in found.items() if name not in pruned}
    trained = len({pair.subject for pair in paired_scans(manifest, split="train")})
    return [
        f"Br40 to Bl64, simulated: {trained} subjects trained on, 3 for choices, {len(subjects)} judged on two slices",
        f"each, {len(target.subjects)} random ROIs of 16 x 16 pixels in the papers' four HU ranges, preset {PRESET}.",
        "Lin's CCC of each feature across ROIs, mean of a class. Intervals of 95 % are over the judged subjects; each",
        "model was trained once, and how far another training would fall from it is not in them. In bold the largest",
        'number of each class before rounding, level or not. "LTDiff++" and "DiffusionCT" were trained longer (see',
        f"the end), all other learned rows for about {MINUTES:g} processor minutes. RE < 0.15: share of all features",
        "with a median relative error below that. Processor seconds of one thread for a slice of 512 x 512. Nothing",
        "was chosen on the judged subjects.",
        "",
        table(_header(classes), table_rows(main_rows, target)),
        "",
        *([] if repeats is None else CEILINGS),
        "",
        "### The same models pruned, started elsewhere, in other steps",
        "",
        table(
            _header(classes),
            table_rows({INPUT: found[INPUT], **{name: found[name] for name in pruned}}, target, marks=False),
        ),
    ]


def _samples(manifest: Path, repeats: Path | None, names: Sequence[str]) -> list[str]:
    subjects = judged(manifest, repeats, "test")
    target = measured(subjects, fixed_stage("target"), label="target")
    return [
        "What target and sample would have, were the model the target's conditional distribution; a model that agrees",
        "with itself more than with the target draws too little.",
        "",
        table(_header(dict.fromkeys(target.classes)), _two_samples(manifest, repeats, names)),
    ]


def _repeat(manifest: Path, repeats: Path | None, names: Sequence[str]) -> list[str]:
    rows = _phantom()
    classes = ("GLCM", "GLRLM", "GOH", "ID", "IH", "NID")
    return [
        "Two scans of one printed lung phantom, one protocol (Canon, iterative and deep-learning reconstruction): a",
        "repeat, all noise independent; real, no patient.",
        "",
        table(_header(classes), rows) if rows else "Not measured: the scans are not here.",
    ]


def _curve_rows(manifest: Path) -> list[list[str]]:
    return papers_codec.curve(stored_pairs(manifest, "train"), judged(manifest, None, "validation"))


def _curve(manifest: Path, repeats: Path | None, names: Sequence[str]) -> list[str]:
    return [
        "D(E(B)) on the validation subjects: RMSE in the body, CCC of texture classes, for the best linear code of its",
        "kind (principal components of blocks).",
        "",
        table(["", "RMSE, HU", *papers_codec.SHOWN], _curve_rows(manifest)),
    ]


def _codecs(manifest: Path, repeats: Path | None, names: Sequence[str]) -> list[str]:
    rows = papers_codec.codecs(stored_pairs(manifest, "train"), judged(manifest, None, "validation"))
    papers_codec.picture(_curve_rows(manifest), rows, FIGURE)
    return [
        f"D(E(B)) of the autoencoder of `small` with other latents, {papers_codec.CURVE_STEPS} steps each (the shipped",
        "model has 2,200), everything else alike; latent channels at scales 0, 1 and 2.",
        "",
        table(["", "RMSE, HU", *papers_codec.SHOWN], rows),
        "",
        f"![compression against error and texture](../figures/{FIGURE.name})",
    ]


def _steps(manifest: Path, repeats: Path | None, names: Sequence[str]) -> list[str]:
    header, rows = papers_steps.steps_table(judged(manifest, None, "validation"))
    return [
        "On the three validation subjects; in bold the largest mean of the six classes, which the rows",
        '"steps chosen on validation" of the table above have. LTDiff++ in 2 and in 12 steps had been seen on the test',
        "subjects before (GLCM 0.93 and 0.91); the rule does not know that, and three subjects do not tell these steps",
        "apart.",
        "",
        table(header, rows),
    ]


def _scales(manifest: Path, repeats: Path | None, names: Sequence[str]) -> list[str]:
    return [
        "D(E(B)) again: pruned to each depth, and with one scale's latent replaced by its mean.",
        "",
        table(["", "RMSE, HU", *papers_codec.SHOWN], papers_codec.scales(judged(manifest, None, "validation"))),
    ]


def _leak(manifest: Path, repeats: Path | None, names: Sequence[str]) -> list[str]:
    return [
        "How far the output moves toward B when A's latents are replaced by B's while A's skips stay: 1 when the",
        "latents carry everything (by construction where there are no skips), 0 when the skips do; and how far images",
        "and outputs beside A's skips lie apart, HU; validation patches of 64 pixels, for DiffusionCT of 128.",
        "",
        table(
            ["", "moved", "A to B", "D(Z_A) to A", "D(Z_A) to B", "D(Z_B) to B"],
            papers_codec.leak(stored_pairs(manifest, "train"), stored_pairs(manifest, "validation")),
        ),
    ]


def _learning(manifest: Path, repeats: Path | None, names: Sequence[str]) -> list[str]:
    return [
        "Loss after a tenth, a quarter, a half and all of the steps of a phase.",
        "",
        table(["", "phase", "steps", "10 %", "25 %", "50 %", "100 %"], papers_codec.learning(names)),
        "",
        f"Processor minutes of one thread; the common budget is {MINUTES:g} minutes (rivals: by their measured speed).",
        "",
        table(["", "steps", "processor min"], _cost(names)),
    ]


#: Parts of the page: heading, and what makes it.
PARTS: dict[str, tuple[str, Callable[[Path, Path | None, Sequence[str]], list[str]]]] = {
    "table": ("The table", _main),
    "steps": ("Sampling steps, chosen on validation", _steps),
    "samples": ("Two samples of one model against each other", _samples),
    "repeat": ("A real repeat", _repeat),
    "curve": ("What a latent can carry: compression against texture", _curve),
    "codecs": ("The same, learned", _codecs),
    "scales": ("Each scale's share in the shipped LTDiff++", _scales),
    "leak": ("The leak", _leak),
    "learning": ("Learning curves and cost", _learning),
}


def page(manifest: Path, repeats: Path | None, names: Sequence[str], parts: Sequence[str]) -> None:
    """Make these parts anew, and write the page from all that stand."""
    made = provenance()
    folder = runs() / "parts"
    folder.mkdir(parents=True, exist_ok=True)
    for part in parts:
        origin = f"*`python -m benchmarks.papers --page --parts {part}`, commit {made['commit']}.*"
        text = "\n".join([*PARTS[part][1](manifest, repeats, names), "", origin])
        (folder / f"{part}.md").write_text(text + "\n", encoding="utf-8")
    body = ["# The papers' table on the virtual scanner"]
    for part, (heading, _) in PARTS.items():
        if (folder / f"{part}.md").exists():
            body += ["", f"## {heading}", "", (folder / f"{part}.md").read_text(encoding="utf-8").strip()]
    if VERDICT.exists():
        body += ["", "## What it is worth", "", VERDICT.read_text(encoding="utf-8").strip()]
    body += ["", f"*`make bench-papers`, {made['software']}, seed {SEED}, {made['machine']}.*"]
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text("\n".join(body) + "\n", encoding="utf-8")
    print(PAGE)


def with_stranger(file: Path, manifest: Path, repeats: Path | None, *, minutes: float | None = None) -> str:
    """Search and train a stranger's method, then the table with its row and every row that stands; kept as text in
    `runs()/NAME.md`, since docs/results is for the project's own.

    Raises
    ------
    SystemExit : paused after `minutes`, or a file without a method.
    """
    until = None if minutes is None else time.monotonic() + 60 * minutes
    run = Run(Path(), stop=None if until is None else lambda: time.monotonic() > until)
    method, grid = papers_rivals.stranger(file)
    try:
        papers_rivals.train(file.stem, method, grid, manifest, run)
    except Paused:
        raise SystemExit("paused; run it again to go on") from None
    text = "\n".join(_main(manifest, repeats, list(ROWS))) + "\n"
    (runs() / f"{file.stem}.md").write_text(text, encoding="utf-8")
    return text


def main() -> None:
    """Run what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--minutes", type=float, help="stop with a checkpoint after this long")
    parser.add_argument("--most-steps", type=int)
    parser.add_argument("--page", action="store_true", help="train nothing")
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=list(PARTS), help="of the page, made anew")
    parser.add_argument("--models", action="store_true", help="train only")
    parser.add_argument(
        "--method", type=Path, help="a stranger's method, one Python file; see benchmarks.papers_rivals"
    )
    given = parser.parse_args()
    began = time.monotonic()
    if given.page:
        manifest, second = runs() / "cohort" / "pairs.csv", runs() / "second-scans" / "repeats.csv"
        page(manifest, second if second.exists() else None, given.rows, given.parts)
        return
    try:
        manifest, repeats = cohort(minutes=given.minutes)
    except Paused:
        raise SystemExit("paused in the cohort; run it again to go on") from None
    if given.method is not None:
        print(with_stranger(given.method, manifest, repeats, minutes=given.minutes))
        return
    left = None if given.minutes is None else given.minutes - (time.monotonic() - began) / 60
    if not train_rows(given.rows, manifest, minutes=left, most_steps=given.most_steps):
        raise SystemExit("paused; run it again to go on")
    if not given.models:
        page(manifest, repeats, list(ROWS), given.parts)


if __name__ == "__main__":
    main()
