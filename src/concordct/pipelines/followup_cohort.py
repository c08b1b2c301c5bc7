"""A cohort of patients with pulmonary fibrosis as `train ciresdiff` reads it, from OSIC's folders and table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from concordct.errors import ConcordctError
from concordct.progression.cohort import TESTS, OsicCohort, osic_cohort, write_cohort
from concordct.progression.lung_function import write_table
from concordct.volumes.place import make_folder

COHORT = "cohort.csv"
#: Where OSIC's archive, unpacked, has the table and the scans.
OSIC_TABLE, OSIC_SCANS = "train.csv", "train"


def cohort_osic(
    folder: Path,
    output: Path,
    *,
    table: Path | None = None,
    progressive_decline: float | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> OsicCohort:
    """Write `cohort.csv` and `lung_function.csv` of OSIC's patients; scans stay where they are.

    Parameters
    ----------
    folder : the unpacked archive (`OSIC_TABLE` beside `OSIC_SCANS`); with `table`, holds a folder for each patient.
    output : folder of the cohort.
    table : of lung-function tests.
    progressive_decline : see `osic_cohort`.
    overwrite : replace a cohort that is there.

    Raises
    ------
    ConcordctError : no table, a cohort that is there, what `osic_cohort` raises; nobody with a scan that can be used.
    """
    if table is None:
        table, folder = folder / OSIC_TABLE, folder / OSIC_SCANS
        if not (table.is_file() and folder.is_dir()):
            raise ConcordctError(
                f"expected {OSIC_TABLE} and {OSIC_SCANS}/ in {table.parent} (or a table beside the patients' folders), "
                "found no such pair"
            )
    for name in (TESTS, COHORT):
        if (output / name).exists() and not overwrite:
            raise ConcordctError(f"{output / name}: expected a new place, found one that exists [exists]")
    found = osic_cohort(folder, table, progressive_decline=progressive_decline, progress=progress)
    if not found.pairs:
        number, reason = found.failures[0]
        raise ConcordctError(
            f"{table}: expected scans, found none of use for {len(found.failures)} patients; patient {number}: {reason}"
        )
    make_folder(output)
    write_table(output / TESTS, {pair.subject: pair.visits for pair in found.pairs}, overwrite=overwrite)
    write_cohort(output / COHORT, found.pairs, overwrite=overwrite)
    return found
