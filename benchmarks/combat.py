"""ComBat beside standardized images: two sites, and for every patient of one the scan that the other would have made.

python -m benchmarks.combat              # make bench-combat; a few minutes of one core, resumes

Patients of `benchmarks.papers_cohort`. Half of the training patients were scanned at site A (Bl64), half at site B
(Br40); ComBat is trained on the features of both, with A as reference, and one pair calibrates the images' method. The
test patients all come from site B. Their features are compared with those of their own scans in site A's kernel, which
neither ComBat nor the method sees: as they are, after ComBat, from standardized images, after both.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.papers_cohort import jobs, runs
from benchmarks.results import RESULTS, ROOT, table
from concordct.judging.provenance import provenance
from concordct.judging.stages import standardized, standardizer_for
from concordct.methods.models import load_model
from concordct.pipelines.agree import agree
from concordct.pipelines.calibrate import METHODS, calibrate_pairs
from concordct.pipelines.combat import apply_combat, train_combat
from concordct.pipelines.features import FeatureJob, extract_features
from concordct.pipelines.rois import draw_rois
from concordct.pipelines.simulate import simulate
from concordct.radiomics.table import read_rows
from concordct.volumes.files import write_volume_file
from concordct.volumes.manifest import PairRow, read_manifest
from concordct.volumes.scans import one_scan

FOLDER = ROOT / "runs" / "combat"
SIZE, PER_RANGE = 28, 4
SETTINGS = """
setting: {binWidth: 25, force2D: true}
imageType: {Original: {}}
featureClass: {firstorder: [], glcm: [], glrlm: [], glszm: [], gldm: [], ngtdm: []}
"""
#: Rows of the table: name, features file, features of site A's own scans beside it.
ROWS = (
    ("as they are", "test-b.csv", "test-a.csv"),
    ("ComBat", "test-b-combat.csv", "test-a-combat.csv"),
    ("ComBat, site A as reference", "test-b-reference.csv", "test-a.csv"),
    ("standardized images", "test-std.csv", "test-a.csv"),
    ("standardized images, then ComBat", "test-std-combat.csv", "test-a-std-combat.csv"),
)


def standardized_file(row: PairRow, place: Path, model: Path) -> Path:
    """A patient's scan of site B, standardized to A's kernel."""
    path = place / f"{row.subject}.nii.gz"
    if not path.exists():
        scan = one_scan(row.source)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_volume_file(path, standardized(scan, scan.read(), standardizer_for(scan, load_model(model))))
    return path


def measure(name: str, images: Sequence[tuple[PairRow, Path]]) -> Path:
    """Features of images in ROIs drawn on the patient's scan of site B, where a site has nothing else."""
    found = []
    for row, image in images:
        rois = FOLDER / "rois" / f"{row.subject}.nii.gz"
        rois.parent.mkdir(parents=True, exist_ok=True)
        if not rois.exists():
            draw_rois(row.source, rois, size=SIZE, per_range=PER_RANGE)
        found.append(FeatureJob(row.subject, row.subject, image, rois))
    settings, output = FOLDER / "settings.yaml", FOLDER / name
    settings.write_text(SETTINGS, encoding="utf-8")
    if not output.exists():
        print(name, file=sys.stderr, flush=True)
        extract_features(found, str(settings), output)
    return output


def trained(train: Sequence[Path], sites: Path, name: str, reference: str | None = None) -> Path:
    """ComBat trained on two sites' files."""
    both = FOLDER / f"{name}.csv"
    rows = [path.read_text(encoding="utf-8").splitlines(keepends=True) for path in train]
    both.write_text("".join([*rows[0], *rows[1][1:]]), encoding="utf-8")
    train_combat(both, sites, FOLDER / f"{name}.json", reference=reference, overwrite=True)
    return FOLDER / f"{name}.json"


def write_sites(name: str, a: Sequence[PairRow], b: Sequence[PairRow]) -> Path:
    """Whose images come from where."""
    path = FOLDER / name
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("image", "site"))
        writer.writerows([*((row.subject, "A") for row in a), *((row.subject, "B") for row in b)])
    return path


def run() -> dict[str, dict[str, dict[str, float]]]:
    """Row -> class -> CCC and share of features within 15 %."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    manifest = simulate(jobs(), runs() / "cohort", file_format="nifti").manifest
    rows = [row for row in read_manifest(manifest) if row.target is not None]
    train = [row for row in rows if row.split == "train"]
    test = [row for row in rows if row.split == "test"]
    one, a, b = train[0], train[1 : len(train) // 2 + 1], train[len(train) // 2 + 1 :]
    model = FOLDER / "model"
    if not model.exists():
        calibrate_pairs([(one_scan(one.source), one_scan(one.target))], model)
    sites, sites_of_a = write_sites("sites.csv", a, [*b, *test]), write_sites("sites-a.csv", [*a, *test], b)
    of_a = measure("train-a.csv", [(row, row.target) for row in a])
    of_b = measure("train-b.csv", [(row, row.source) for row in b])
    made_b = measure("train-std.csv", [(row, standardized_file(row, FOLDER / "std", model)) for row in b])
    plain = measure("test-b.csv", [(row, row.source) for row in test])
    made = measure("test-std.csv", [(row, standardized_file(row, FOLDER / "std", model)) for row in test])
    target = measure("test-a.csv", [(row, row.target) for row in test])
    plain_combat = trained((of_a, of_b), sites, "combat")
    with_reference = trained((of_a, of_b), sites, "combat-reference", "A")
    after_images = trained((of_a, made_b), sites, "combat-std")
    for model_file, features, where, name in (
        (plain_combat, plain, sites, "test-b-combat.csv"),
        (plain_combat, target, sites_of_a, "test-a-combat.csv"),
        (with_reference, plain, sites, "test-b-reference.csv"),
        (after_images, made, sites, "test-std-combat.csv"),
        (after_images, target, sites_of_a, "test-a-std-combat.csv"),
    ):
        apply_combat(model_file, features, where, FOLDER / name, overwrite=True)
    found = {}
    for title, name, beside in ROWS:
        results = agree(FOLDER / name, FOLDER / beside, FOLDER / f"agree-{name[:-4]}", repeats=200, overwrite=True)
        found[title] = {row["class"]: row for row in results["agreement"]["per_class"]}
        found[title]["all"] = {"rois": results["rois"], "patients": len(test), "train": len(a) + len(b)}
    spreads = [read_rows(path).values.var(axis=0) for path in (of_b, of_a)]
    found[ROWS[0][0]]["all"]["ratio"] = float(np.max(spreads[0][spreads[1] > 0] / spreads[1][spreads[1] > 0]))
    return found


def page(found: dict[str, dict[str, dict[str, float]]]) -> str:
    """docs/results/combat.md."""
    made = provenance()
    of = found[ROWS[0][0]]
    classes = [name for name in of if name != "all"]

    def cells(title: str, key: str, decimals: int) -> list[str]:
        values = [found[title].get(name, {}).get(key) for name in classes]
        return [title, *("-" if value is None else f"{value:.{decimals}f}" for value in values)]

    ccc = table(["CCC", *classes], [cells(title, "standardized_ccc_mean", 3) for title, *_ in ROWS])
    within = table(["RE < 0.15", *classes], [cells(title, "standardized_re_share", 2) for title, *_ in ROWS])
    return f"""# ComBat, standardized images, or both

*`make bench-combat`, {made["software"]}, commit {made["commit"]}, {made["machine"]}. Simulated patients
(`benchmarks.papers_cohort`). The row without a reference was added after the test figures of the one with it.*

Site A reconstructs with Bl64, site B with Br40. ComBat is trained on {of["all"]["train"]} patients, half of each
site; one further pair calibrates `{METHODS[0]}` (`sample`). The {of["all"]["patients"]} test
patients come from site B: {of["all"]["rois"]} square ROIs of {SIZE} pixels over the papers' HU ranges, drawn on site
B's scans. Their features are compared with those of the same patients' scans in site A's kernel. Mean CCC of the
features of a class over ROIs, and share of the features whose median relative error is below 0.15.

{ccc}

{within}

Without a reference ComBat moves both sites to their mean, and both are compared there. With A as reference features are
counted in A's spread, and a few of them (sizes of zones and runs of the smooth kernel) have up to
{of["all"]["ratio"]:,.0f} times the variance at B: most likely they draw the prior that all features share, and
every feature is scaled down (not tested by leaving them out). What each needs: ComBat a table of features from enough
patients of both sites (here few), and that the sites' patients are alike; standardized images one pair of scans, once.
ComBat moves and scales each feature by one number for a whole site; what a kernel does to a feature depends on the
tissue, which it cannot follow.
"""


def main() -> None:
    """Run, write the page."""
    found = run()
    (FOLDER / "found.json").write_text(json.dumps(found), encoding="utf-8")
    (RESULTS / "combat.md").write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
