"""Follow-up scans of pulmonary fibrosis: train CIResDiff or a rival on a cohort, predict one patient's scan.

`MODEL.run/` holds the prepared subjects, checkpoints and metrics; `MODEL` appears when all phases are done. A run that
was stopped goes on where it stands.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import distributed

from concordct import __version__
from concordct.errors import ConcordctError
from concordct.judging.provenance import provenance
from concordct.methods.models import model_folder
from concordct.methods.slabs import SLAB_SLICES
from concordct.methods.standardizer import Mode
from concordct.pipelines.followup_data import (
    Prepared,
    digest_of,
    lungs_of,
    onto,
    patient_of,
    prepare,
    to_spacing,
)
from concordct.pipelines.followup_verdict import ENTRY, counted, parted, verdict, with_classifier
from concordct.progression import catalogue, ciresdiff, ciresdiff_recipes
from concordct.progression.ciresdiff import CohortData
from concordct.progression.ciresdiff_recipes import Recipe
from concordct.progression.cohort import LABELS, FollowupPair, read_cohort
from concordct.progression.lung_function import check_weeks, first_visit, read_table, sentence
from concordct.progression.method import FollowupPredictor
from concordct.progression.registration import DILATION_MM
from concordct.radiomics.regions.lungs import dilate
from concordct.report.followup import write_followup_report
from concordct.training.bundle import Bundle, load_bundle, save_bundle
from concordct.training.engine import Paused, Run, team
from concordct.training.run import Progress, Trained, claim, cut_short, place_of_run, plain, time_limit
from concordct.volumes.ct_range import ct_range
from concordct.volumes.derivation import Derivation
from concordct.volumes.derived import write_derived_series
from concordct.volumes.files import VolumeFile, write_volume_file
from concordct.volumes.place import atomic_directory
from concordct.volumes.scans import Scan, checked, one_scan
from concordct.volumes.seeds import SliceSeeds
from concordct.volumes.volume import Volume

#: High attenuation areas, HU: what fibrosis makes of lung; below lies aerated lung, above vessels and consolidation
#: (Lederer et al. 2009, doi:10.1164/rccm.200812-1966OC).
FIBROSIS_HU = (-600.0, -250.0)
SUMMARY = "summary.json"
#: In the header of volume files, which have no other place to say so.
NOTE = "synthetic, not a scan, not for diagnosis"
#: What opens a model, see `open_predictor`.
INFERENCE = {
    "bundle_root": ".",
    "predictor": {"_target_": "concordct.pipelines.followup.open_predictor", "path": "@bundle_root"},
}


def train(
    cohort: Path,
    output: Path,
    *,
    method: str = ciresdiff.METHOD,
    recipe: str = "small",
    row: str = "DM-R-CIP",
    clip: Path | None = None,
    subjects: Sequence[str] | None = None,
    seed: int = 0,
    most_steps: int | None = None,
    minutes: float | None = None,
    allow: Collection[str] = frozenset(),
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Trained:
    """Train a method on the subjects of a cohort that have both scans, or go on with it.

    Parameters
    ----------
    cohort : `cohort.csv`, with `lung_function.csv` beside it; see `progression.cohort`.
    method : a name of `progression.catalogue`. recipe : one of its recipes.
    row : of `ciresdiff_recipes.ABLATIONS` or `VARIANTS`, for CIResDiff.
    clip : folder of published CLIP weights, for CIResDiff.
    subjects : train on these alone; None for all.
    most_steps : cut both phases to this many steps. minutes : pause with a checkpoint after this long.

    Raises
    ------
    ConcordctError : a bad cohort, scans that cannot be used (with the row's number), a run of other data or another
        recipe in the place, a loss that is not finite.
    """
    began, limit = time.monotonic(), time_limit(minutes)
    folder = place_of_run(output, overwrite=overwrite)
    entry = catalogue.method(method)
    if method == ciresdiff.METHOD:
        chosen: Any = recipe_of(recipe, row=row, seed=seed, most_steps=most_steps)
        fit, title = partial(entry.fit, clip=clip), row
    else:
        chosen = rival_recipe(method, recipe, seed=seed, most_steps=most_steps)
        fit, title = partial(entry.fit), entry.title
    with team() as members:
        if members.rank > 0:
            distributed.barrier()
        try:
            ready = prepare_cohort(
                cohort, folder / "subjects", chosen.spacing_mm, subjects=subjects, allow=allow, stop=limit,
                progress=progress,
            )  # fmt: skip
            if members.rank == 0:
                claim(folder, _identity(method, chosen, ready, clip))
                if members.size > 1:
                    distributed.barrier()
            data = CohortData([one.data for one in ready], info_of(ready, recipe, title))
            run = Run(folder, members, progress, limit)
            bundle = fit(data, chosen, run)
            bundle = with_classifier(bundle, ready, run, spacing_mm=chosen.spacing_mm, seed=seed, most_steps=most_steps)
        except Paused:
            return Trained(output, False, time.monotonic() - began, 0)
        if members.rank == 0:
            save_bundle(bundle, output, card=card_of(bundle), overwrite=overwrite, inference=INFERENCE)
    return Trained(output, True, time.monotonic() - began, int(bundle.metadata["parameters"]))


def recipe_of(name: str, *, row: str, seed: int, most_steps: int | None = None) -> Recipe:
    """A recipe by name, as a row of the ablation has it.

    Raises
    ------
    ConcordctError : unknown names.
    """
    if name not in ciresdiff_recipes.RECIPES or row not in (*ciresdiff_recipes.ABLATIONS, *ciresdiff_recipes.VARIANTS):
        known = f"{', '.join(ciresdiff_recipes.RECIPES)} and a row of {', '.join(ciresdiff_recipes.ABLATIONS)}"
        raise ConcordctError(f"expected a recipe of {known}, found {name!r} and {row!r}")
    chosen = dataclasses.replace(ciresdiff_recipes.ablated(ciresdiff_recipes.RECIPES[name], row), seed=seed)
    contrast, diffusion = (cut_short(phase, most_steps) for phase in (chosen.contrast, chosen.diffusion))
    return dataclasses.replace(chosen, contrast=contrast, diffusion=diffusion)


def rival_recipe(method: str, name: str, *, seed: int, most_steps: int | None = None) -> Any:
    """A recipe of a method other than CIResDiff, by name.

    Raises
    ------
    ConcordctError : unknown names.
    """
    recipes = catalogue.method(method).recipes
    if name not in recipes:
        raise ConcordctError(f"{method}: expected a recipe of {', '.join(recipes)}, found {name!r}")
    return dataclasses.replace(recipes[name], seed=seed, game=cut_short(recipes[name].game, most_steps))


def prepare_cohort(
    cohort: Path,
    folder: Path,
    spacing_mm: float,
    *,
    subjects: Sequence[str] | None = None,
    allow: Collection[str] = frozenset(),
    stop: Callable[[], bool] | None = None,
    progress: Progress | None = None,
) -> list[Prepared]:
    """Every subject of a cohort with both scans, made ready.

    Raises
    ------
    ConcordctError : what `prepare` raises, with the subject's place in the cohort; no subject with both scans.
    Paused : `stop` said so.
    """
    everyone = read_cohort(cohort)
    pairs: list[tuple[int, FollowupPair]] = [
        (number, pair)
        for number, pair in enumerate(everyone, start=2)
        if pair.followup is not None and (subjects is None or pair.subject in subjects)
    ]
    if not pairs:
        raise ConcordctError(f"{cohort}: expected subjects with an initial and a follow-up scan, found none")
    ready = []
    for done, (number, pair) in enumerate(pairs, start=1):
        try:
            ready.append(prepare(pair, folder, spacing_mm, allow=allow))
        except ConcordctError as error:
            raise ConcordctError(f"{cohort}, row {number}: {error}") from None
        if progress is not None:
            progress("registering", done, len(pairs))
        # Only after work was done: a run in short pieces must come to its end.
        if ready[-1].fresh and stop is not None and stop():
            raise Paused
    return ready


def _identity(method: str, recipe: Recipe, ready: Sequence[Prepared], clip: Path | None) -> dict[str, Any]:
    data = CohortData([one.data for one in ready], {})
    return {
        "method": method,
        "recipe": plain(recipe),
        "data_sha256": ciresdiff.digest(data),
        "clip": None if clip is None else clip.name,
    }


def info_of(ready: Sequence[Prepared], recipe: str, row: str) -> dict[str, Any]:
    """What a model says of its training; recipe and row by name."""
    weeks = [one.weeks for one in ready]
    return {
        "software": f"concordct {__version__}",
        "recipe": recipe,
        "row": row,
        "subjects": len(ready),
        "weeks": [min(weeks), max(weeks)],
        "without_tests": sum(len(one.tests.missing) == len(dataclasses.fields(one.tests)) for one in ready),
        "volume_change": volume_changes(ready),
    }


def volume_changes(ready: Sequence[Prepared]) -> dict[str, Any]:
    """Relative change of lung volume from scan to scan, which the registration takes out: "all" and by label.

    Breath and lost volume together; mean, standard deviation and subjects.
    """
    found = {}
    for name in ("all", *LABELS):
        changes = []
        for one in ready:
            if name in ("all", one.label):
                fixed, moving = (sum(values[k] for values in one.record["volumes_ml"].values()) for k in (0, 1))
                changes.append(moving / fixed - 1)
        if changes:
            found[name] = {
                "mean": round(float(np.mean(changes)), 4),
                "sd": round(float(np.std(changes, ddof=1)), 4) if len(changes) > 1 else None,
                "subjects": len(changes),
            }
    return found


def card_of(bundle: Bundle) -> str:
    """A model's card, Markdown."""
    info = bundle.metadata["info"]
    return "\n".join(
        [
            f"# {bundle.method}, {info['row']}",
            "",
            f"Trained by {info['software']} with recipe `{info['recipe']}` on {info['subjects']} subjects scanned",
            f"twice, {info['weeks'][0]:g} to {info['weeks'][1]:g} weeks apart, {info['without_tests']} without tests;",
            f"{bundle.metadata['parameters']:,} parameters.",
            *_card_of_classifier(bundle),
            "",
            "It draws what the follow-up scan of a patient with pulmonary fibrosis may look like. Nobody was scanned:",
            "its output is synthetic, research only, not for diagnosis, and this is not a medical device.",
            "",
        ]
    )


def _card_of_classifier(bundle: Bundle) -> list[str]:
    entry = bundle.metadata.get(ENTRY)
    if entry is None:
        return []
    trained = counted(entry["subjects"])
    seen = "initial scan, follow-up scan and the weeks between" if entry.get("table") else "initial and follow-up scan"
    return ["", f"A classifier of {seen}, fitted on the real pairs of {trained} subjects, comes along."]


def open_predictor(path: str, mode: Mode = "sample") -> FollowupPredictor:
    """A model on disk at work; what `configs/inference.json` names."""
    return _at_work(parted(load_bundle(Path(path)))[0], mode, None)


@lru_cache(maxsize=1)
def _opened(path: Path, changed_ns: int) -> Bundle:
    """A model, read once by a process that predicts for many subjects."""
    return load_bundle(path)


def _loaded(model: Path) -> Bundle:
    path = model_folder(model)
    newest = max((file.stat().st_mtime_ns for file in path.iterdir()), default=0) if path.is_dir() else 0
    return _opened(path.absolute(), newest)


def what_makes(
    scan: Path,
    model: Path,
    *,
    weeks: float,
    steps: int | None = None,
    mode: Mode = "sample",
    seed: int = 0,
    allow: Collection[str] = frozenset(),
) -> dict[str, Any]:
    """What a summary must say to be that of this scan, predicted in this way; arguments as for `predict`."""
    bundle = _loaded(model)
    predictor = _at_work(parted(bundle)[0], mode, steps)
    return {
        "source": _digest(one_scan(scan)),
        "weeks": weeks,
        "model": _model_of(bundle),
        "sampling": {"steps": predictor.steps, "mode": mode, "seed": seed},
        "software": f"concordct {__version__}",
    }


def _digest(scan: Scan) -> str:
    """Of what a scan is known by: nothing of it can be read back."""
    return hashlib.sha256(scan.key.encode()).hexdigest()


def _model_of(bundle: Bundle) -> dict[str, Any]:
    return {"method": bundle.method, "sha256": bundle.sha256, "row": bundle.metadata["info"].get("row")}


def _at_work(network: Bundle, mode: Mode, steps: int | None) -> FollowupPredictor:
    options = {} if steps is None else {"steps": steps}
    return catalogue.method(network.method).load(network, mode, **options)


def predict(
    scan_path: Path,
    table: Path,
    model: Path,
    output: Path,
    *,
    subject: str,
    weeks: float,
    steps: int | None = None,
    mode: Mode = "sample",
    seed: int = 0,
    any_subject: bool = False,
    allow: Collection[str] = frozenset(),
    overwrite: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Predict a follow-up scan; write it, the change map, a summary and a report.

    `OUTPUT/predicted` (DICOM, marked as synthetic) or `OUTPUT/predicted.nii.gz`, `change.nii.gz` (predicted - initial,
    HU), `summary.json`, `report.html`.

    Parameters
    ----------
    scan_path : the initial scan, one series or volume file. table : lung-function tests, see `read_table`.
    model : a folder, or the name of a model that comes with the package.
    subject : whose row of the table. weeks : from the scan to the one predicted.
    steps : of sampling; None takes the recipe's. mode : "sample", or "mean" for one estimate without drawing.
    any_subject : accept a scan whose PatientID is not `subject`.

    Returns
    -------
    What `summary.json` holds.

    Raises
    ------
    ConcordctError : weeks not above 0, a table without the subject, a scan of another subject, several scans, no lung
        or one lung, a model of another method, an output that exists.
    """
    say = progress or (lambda what, done, total: None)
    check_weeks(weeks)
    visits = read_table(table)
    try:
        said = sentence(first_visit(visits, subject).values, weeks=weeks)
    except ConcordctError as error:
        raise ConcordctError(f"{table}: {error}") from None
    bundle = _loaded(model)
    network, classifier = parted(bundle)
    predictor = _at_work(network, mode, steps)
    scan = one_scan(scan_path)
    if patient_of(scan) not in (None, digest_of(subject)) and not any_subject:
        raise ConcordctError(
            f"{scan_path}: expected a scan whose PatientID is the subject of the table, found another [other-subject]"
        )
    passed = checked(scan, allow)
    say("reading", 0, 5)
    initial = scan.read(allow=allow)
    say("finding the lungs", 1, 5)
    working = to_spacing(initial, predictor.spacing_mm)
    try:
        lungs = lungs_of(working)
    except ConcordctError as error:
        raise ConcordctError(f"{scan_path}: {error}") from None
    region = dilate(lungs, DILATION_MM, working.spacing_mm)
    if working.padding is not None:
        region &= ~working.padding
    say("predicting", 2, 5)
    found = predictor.predict(working.hu, region, said, seeds=SliceSeeds(seed, scan.key))
    say("writing", 3, 5)
    predicted = _on_grid(initial, working, found)
    extent = fibrosis(working, lungs, found)
    judged = verdict(
        working.hu, found, region, spacing_mm=predictor.spacing_mm, fibrosis=extent, weeks=weeks, classifier=classifier,
        subjects=bundle.metadata.get(ENTRY, {}).get("subjects"),
    )  # fmt: skip
    summary = {
        "schema": 2,
        "software": f"concordct {__version__}",
        "source": _digest(scan),
        "weeks": weeks,
        "text": said,
        "grid_mm": predictor.spacing_mm,
        "progression": judged,
        "fibrosis": extent,
        "volume_change_of_training_subjects": bundle.metadata["info"].get("volume_change", {}),
        "model": _model_of(bundle),
        "sampling": {"steps": predictor.steps, "mode": mode, "seed": seed},
        "warnings": _warnings(bundle, said, weeks, predictor, initial),
        "provenance": provenance(),
    }
    derivation = Derivation(
        method=bundle.method,
        model_sha256=bundle.sha256,
        target_kernel=None,
        settings={"weeks": weeks, "seed": seed, "steps": predictor.steps, "mode": mode,
                  "allowed": sorted({problem.code for problem in passed})},
        synthetic=f"follow-up predicted for {weeks:g} weeks later",
    )  # fmt: skip
    with atomic_directory(output, overwrite=overwrite, ours=SUMMARY) as aside:
        if isinstance(scan, VolumeFile):
            write_volume_file(aside / "predicted.nii.gz", predicted, source=scan, note=NOTE)
        else:
            write_derived_series(scan, _slabs(predicted), aside / "predicted", derivation, allow=allow)
        change = dataclasses.replace(initial, hu=predicted.hu - initial.hu, padding=None)
        write_volume_file(aside / "change.nii.gz", change, note=NOTE)
        (aside / SUMMARY).write_text(json.dumps(summary, indent=1, allow_nan=False) + "\n")
        say("reporting", 4, 5)
        write_followup_report(aside / "report.html", summary, initial, predicted)
    return summary


def _on_grid(initial: Volume, working: Volume, found: NDArray[np.float32]) -> Volume:
    """The change on the scan's own grid, added to the scan: detail finer than the working grid stays the scan's."""
    hu = initial.hu + onto(found - working.hu, working, initial)
    for new, old in zip(hu, initial.hu, strict=True):
        np.clip(np.rint(new, out=new), *ct_range(old, None), out=new)
    return initial.with_hu(hu)


def _slabs(volume: Volume) -> Iterator[Volume]:
    for start in range(0, volume.shape[0], SLAB_SLICES):
        yield volume.slab(start, min(start + SLAB_SLICES, volume.shape[0]))


def fibrosis(initial: Volume, lungs: NDArray[np.bool_], predicted: NDArray[np.float32]) -> dict[str, Any]:
    """High attenuation areas (`FIBROSIS_HU`) within the initial scan's lungs, in it and in the prediction.

    Lung below them is aerated: what is left of it is the prediction's own loss of volume.
    """
    ml = float(abs(np.linalg.det(initial.affine[:3, :3]))) / 1000.0

    def extent(hu: NDArray[np.float32]) -> dict[str, float]:
        inside = hu[lungs]
        dense = int(((inside >= FIBROSIS_HU[0]) & (inside <= FIBROSIS_HU[1])).sum())
        aerated = int((inside < FIBROSIS_HU[0]).sum())
        return {
            "share": dense / inside.size,
            "ml": round(dense * ml, 1),
            "aerated_ml": round(aerated * ml, 1),
            "mean_hu": round(float(inside.mean()), 1),
        }

    return {
        "range_hu": list(FIBROSIS_HU),
        "lung_ml": round(int(lungs.sum()) * ml, 1),
        "initial": extent(initial.hu),
        "predicted": extent(predicted),
    }


def _warnings(bundle: Bundle, said: str, weeks: float, predictor: FollowupPredictor, initial: Volume) -> list[str]:
    info = bundle.metadata["info"]
    found = ["the predicted scan is synthetic: not for diagnosis"]
    if info.get("caution"):
        found.append(f"this model was {info['caution']}")
    if "unknown" in said:
        missing = said.count("unknown")
        one = "1 value of the lung-function tests is unknown"
        found.append(one if missing == 1 else f"{missing} values of the lung-function tests are unknown")
    low, high = info.get("weeks", (weeks, weeks))
    if not low <= weeks <= high:
        found.append(f"{weeks:g} weeks lie outside the {low:g} to {high:g} weeks that the model was trained on")
    if min(initial.spacing_mm) < 0.8 * predictor.spacing_mm:
        found.append(
            f"changes are predicted at {predictor.spacing_mm:g} mm; finer detail stays that of the initial scan"
        )
    return found
