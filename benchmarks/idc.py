"""From nothing to tables on a public collection's pairs, unattended: select, fetch, calibrate, convert, measure, write.

python -m benchmarks.idc                  # here: simulated patients in a local archive (make bench-idc)
python -m benchmarks.idc --archive -n 40  # NLST, B50f to B30f, from the Imaging Data Commons: 6 GB and a network

Every step goes on where it stopped. The first pairs calibrate, the others, of other subjects, are judged.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from benchmarks.idc_archive import local_archive
from benchmarks.idc_scanners import conditions_of, fetched, scanners_archive, section
from benchmarks.results import RESULTS, ROOT, table
from concordct.errors import ConcordctError
from concordct.judging.provenance import provenance
from concordct.pipelines import archive
from concordct.pipelines.archive_series import LEAST_SLICES, Wanted
from concordct.pipelines.archive_transfer import ENDPOINT
from concordct.pipelines.calibrate import METHODS, calibrate_pairs
from concordct.pipelines.compare import CEILING, INPUT, compare
from concordct.volumes.manifest import PairRow, read_manifest, write_manifest
from concordct.volumes.scans import one_scan

FOLDER = ROOT / "runs" / "idc"
#: Pairs that calibrate.
CALIBRATE = 2
PRESET = "pyradiomics-default"
JUDGED = "judged"
#: Kernels of the simulated patients and of NLST's largest group.
LOCAL, REAL = ("Br40", "Bl64"), ("B50f", "B30f")
#: Endpoints of the table: column, title, decimals.
SHOWN = (
    ("laa950_lungs_percent", "LAA-950, %", 2),
    ("perc15_lungs_hu", "Perc15, HU", 1),
    ("density_lungs_hu", "mean lung density, HU", 1),
    ("noise_level_hu", "noise, HU", 1),
)


def cohort(place: Path, kernels: tuple[str, str], count: int, least: int, tables: tuple[Any, ...]) -> tuple[Path, str]:
    """Fetch the cohort: its manifest, and what was said of it."""
    index, ct_index, endpoint = tables
    preset = archive.preset_of("nlst-pairs")
    selection = archive.select(preset, Wanted(kernels, least_slices=least), count=count, index=index, ct_index=ct_index)
    said = (
        f"{len(selection.groups)} pairs of {len({group[0].subject for group in selection.groups})} subjects, "
        f"{selection.size_gb:.2f} GB, licence {', '.join(selection.licences)}"
    )
    print(said, file=sys.stderr, flush=True)
    found = archive.fetch_cohort(selection, place, most_gb=200.0, endpoint=endpoint, progress=_progress("series"))
    if found.manifest is None:
        raise ConcordctError(f"{place}: expected pairs, found none: {found.failures[0][1]}")
    left = f"; {len(found.failures)} were no pairs" if found.failures else ""
    return found.manifest, said + left


def judged(manifest: Path, place: Path) -> tuple[list[PairRow], Path]:
    """The pairs that calibrate, and the manifest of all others' subjects."""
    rows = read_manifest(manifest)
    first = [row for row in rows if row.split == "train"][:CALIBRATE] or list(rows[:CALIBRATE])
    theirs = {row.subject for row in first}
    others = [row.model_copy(update={"split": JUDGED}) for row in rows if row.subject not in theirs]
    if not others:
        raise ConcordctError(f"{manifest}: expected subjects besides those that calibrate, found none")
    return first, write_manifest(place / "judged.csv", others, overwrite=True)


def _progress(what: str) -> Any:
    def told(*steps: Any) -> None:
        done, total = steps[-2:]
        if done in (1, total) or done % 10 == 0:
            print(f"{what}: {done} of {total}", file=sys.stderr, flush=True)

    return told


def texture(results: dict[str, Any]) -> str:
    """CCC by class of the headline's ROIs."""
    rows = results["table"][results["headline_region"]]
    body = [
        [row["name"], *(_number(row["classes"].get(name, {}).get("ccc"), 3) for name in results["classes"])]
        for row in rows
        if row["name"] != CEILING
    ]
    return table(["", *results["classes"]], body)


def endpoints(results: dict[str, Any], method: str) -> str:
    """Bias with limits of agreement and CCC of the lungs' endpoints, before and after."""
    rows = []
    of = {row["name"]: row["stages"] for row in results["endpoints"]}
    for column, title, decimals in SHOWN:
        stages = [of.get(column, {}).get(stage) for stage in (INPUT, method)]
        rows.append([title, *(_bias(one, decimals) for one in stages), *(_ccc(one) for one in stages)])
    return table(["", "bias before", "after", "CCC before", "after"], rows)


def _number(value: float | None, decimals: int) -> str:
    return "-" if value is None else f"{value:.{decimals}f}"


def _bias(one: dict[str, Any] | None, decimals: int) -> str:
    if one is None:
        return "-"
    low, high = (_number(one[name], decimals) for name in ("low", "high"))
    return f"{_number(one['bias'], decimals)} ({low} to {high})"


def _ccc(one: dict[str, Any] | None) -> str:
    return "-" if one is None else _number(one["ccc"], 3)


def main() -> None:
    """All of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archive", action="store_true", help="the real archive instead of the local one")
    parser.add_argument("-n", type=int, default=8, help="pairs")
    parser.add_argument("--scans", type=int, default=40, help="scans of ct4harmonization, from the archive")
    options = parser.parse_args()
    real = options.archive
    place, kernels = FOLDER / ("archive" if real else "local"), REAL if real else LOCAL
    place.mkdir(parents=True, exist_ok=True)
    with nullcontext((None, None, ENDPOINT)) if real else local_archive(FOLDER / "patients") as tables:
        manifest, said = cohort(place, kernels, options.n, LEAST_SLICES if real else 1, tables)
    first, others = judged(manifest, place)
    model = place / "model"
    if not model.exists():
        pairs = [(one_scan(row.source), one_scan(row.target)) for row in first if row.target is not None]
        calibrate_pairs(pairs, model)
    results = compare(
        others,
        {METHODS[0]: model},
        place / "compare",
        split=JUDGED,
        preset=PRESET,
        endpoints=True,
        overwrite=True,
        progress=_progress("measured"),
    )
    scanners = place / "scanners"
    with nullcontext((None, None, ENDPOINT)) if real else scanners_archive(FOLDER / "phantom") as tables:
        jobs = fetched(scanners, options.scans if real else None, tables, LEAST_SLICES if real else 1)
    page(results, said, kernels, section(jobs, conditions_of(scanners), scanners), real=real)


def page(results: dict[str, Any], said: str, kernels: tuple[str, str], scanners: str, *, real: bool) -> None:
    """docs/results/idc.md."""
    made = provenance()
    kind = "Real patients (NLST)." if real else (
        "Simulated patients, stored and fetched as NLST's are, from a local server: this page shows that the way from "
        "nothing to tables is whole, not how NLST's scans agree. The archive itself was not reached."
    )  # fmt: skip
    what = "The liver phantom of ct4harmonization." if real else (
        "A simulated phantom, stored and fetched as ct4harmonization's scans and masks are. Its kernels are Br40,\n"
        "Bl64, STANDARD and LUNG; the references are the condition of the first two on the same virtual scanner, so "
        "that real\nscanners will agree less well."
    )  # fmt: skip
    text = f"""# Public pairs, from nothing to tables

*`make bench-idc`, {made["software"]}, commit {made["commit"]}. {kind} Nothing was tuned on them.*

{said}. {kernels[0]} to {kernels[1]}; {CALIBRATE} pairs calibrate `{METHODS[0]}`, {results["pairs"]} pairs of
{results["subjects"]} other subjects are judged, with seeded texture (`sample`).

## Texture

CCC of the features of each class (`{PRESET}`), {results["rois"][results["headline_region"]]} ROIs
({results["headline_region"]}).

{texture(results)}

## Emphysema and density

Under the lungs found in the source. Bias against the target with limits of agreement over subjects.

{endpoints(results, METHODS[0])}

## Scanners brought to one reference

{what}
{scanners}

With a network, `python -m benchmarks.idc --archive -n 40` does the same with {REAL[0]} to {REAL[1]} of NLST and with
40 scans of ct4harmonization (about 12 GB). That was not run here.
"""
    (RESULTS / "idc.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
