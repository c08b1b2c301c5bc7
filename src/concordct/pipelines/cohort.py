"""Cohorts of real pairs: from a public archive's offline index, or from a folder of the user's own."""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from concordct.errors import ConcordctError
from concordct.volumes.csv_text import safe_cell
from concordct.volumes.decode import open_dataset
from concordct.volumes.manifest import PairRow, write_manifest
from concordct.volumes.pairing import check_pair, pair_by_kernel
from concordct.volumes.place import atomic_file
from concordct.volumes.scans import find_scans, one_scan, scan_path
from concordct.volumes.series import Series

MANIFEST, SELECTION, FAILURES = "pairs.csv", "selection.json", "failures.csv"
#: Collections whose SeriesDescription is "year,type,vendor,model,kernel,field,thickness,kVp,mAs,...", and its length.
NLST_LIKE, NLST_FIELDS = ("nlst",), 11
#: Series with fewer slices are localizers.
LEAST_SLICES = 20
#: Shares of the subjects, in this order.
SPLITS = (("train", 0.7), ("validation", 0.1), ("test", 0.2))

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Candidate:
    """Two series of one acquisition, as the index describes them.

    Attributes
    ----------
    subject : the archive's public pseudonym.
    study, source, target : UIDs of the study and of the two series.
    source_kernel, target_kernel : as asked for.
    slice_thickness_mm : from the description; None when it says none.
    slices : of each series.
    size_mb : of both together.
    licence : short name.
    urls : of the two series in the archive's bucket.
    """

    subject: str
    study: str
    source: str
    target: str
    source_kernel: str
    target_kernel: str
    slice_thickness_mm: float | None
    slices: int
    size_mb: float
    licence: str
    urls: tuple[str, str]


@dataclass(frozen=True)
class Cohort:
    """What was found.

    Attributes
    ----------
    manifest : `pairs.csv`; None while nothing has been downloaded.
    pairs : rows in the manifest, or candidates in the selection.
    failures : (pair, reason).
    size_mb : to download, or downloaded.
    licences : of what was selected.
    splits : rows of the manifest in each split.
    """

    manifest: Path | None
    pairs: int
    failures: tuple[tuple[str, str], ...]
    size_mb: float = 0.0
    licences: tuple[str, ...] = ()
    splits: Mapping[str, int] = field(default_factory=dict)


def split_of(subject: str) -> str:
    """The split of a subject: fixed by its name, so that a larger cohort moves nobody."""
    share = int.from_bytes(hashlib.sha256(subject.encode()).digest()[:8], "big") / 2**64
    for name, part in SPLITS:
        if share < part:
            return name
        share -= part
    return SPLITS[-1][0]


_QUERY = """
with series as (
    select PatientID, StudyInstanceUID, SeriesInstanceUID, instanceCount, license_short_name, series_aws_url,
           series_size_MB, string_split(SeriesDescription, ',') as f
    from read_parquet($index)
    where collection_id = $collection and Modality = 'CT' and instanceCount >= $least
), kernels as (
    select *, f[5] as kernel, [f[6], f[7], f[8], f[9]] as protocol from series where len(f) = $fields
)
select a.PatientID, a.StudyInstanceUID, a.SeriesInstanceUID, b.SeriesInstanceUID, a.f[7], a.instanceCount,
       a.series_size_MB + b.series_size_MB, a.license_short_name, a.series_aws_url, b.series_aws_url
from kernels a join kernels b
  on a.StudyInstanceUID = b.StudyInstanceUID and a.protocol = b.protocol and a.instanceCount = b.instanceCount
where a.kernel = $source and b.kernel = $target
order by a.PatientID, a.StudyInstanceUID, a.SeriesInstanceUID, b.SeriesInstanceUID
"""


#: Any collection, by the archive's `ct_index`: one study, voltage, thickness, pixels and number of slices.
_CT_QUERY = """
with series as (
    select i.PatientID, i.StudyInstanceUID, i.SeriesInstanceUID, i.instanceCount, i.license_short_name,
           i.series_aws_url, i.series_size_MB, c.ConvolutionKernel as kernel, c.SliceThickness as thickness,
           [c.KVP, c.SliceThickness, c.PixelSpacing_row_mm, c.PixelSpacing_col_mm, c.Rows, c.Columns] as protocol
    from read_parquet($index) i join read_parquet($ct) c using (SeriesInstanceUID)
    where i.collection_id = $collection and i.Modality = 'CT' and i.instanceCount >= $least
)
select a.PatientID, a.StudyInstanceUID, a.SeriesInstanceUID, b.SeriesInstanceUID, a.thickness::varchar,
       a.instanceCount, a.series_size_MB + b.series_size_MB, a.license_short_name, a.series_aws_url, b.series_aws_url
from series a join series b
  on a.StudyInstanceUID = b.StudyInstanceUID and a.protocol = b.protocol and a.instanceCount = b.instanceCount
where list_contains(a.kernel, $source) and list_contains(b.kernel, $target)
order by a.PatientID, a.StudyInstanceUID, a.SeriesInstanceUID, b.SeriesInstanceUID
"""


def find_candidates(
    collection: str, *, source_kernel: str, target_kernel: str, ct_index: Path | None = None
) -> tuple[Candidate, ...]:
    """Pairs of series in the archive's index: same study, protocol and number of slices.

    A series takes part in one pair only; where a study holds a kernel twice, the first of each is taken.

    Parameters
    ----------
    ct_index : the archive's table of CT series (Parquet), by which any collection is searched; without it, the one
        collection that names its kernels in its descriptions.

    Raises
    ------
    ConcordctError : the extra `archive` is missing, a collection that needs `ct_index`, or a table of another schema.
    """
    if ct_index is None and collection not in NLST_LIKE:
        raise ConcordctError(
            f"collection {collection!r} does not name kernels in its index; known are {', '.join(NLST_LIKE)}; any "
            "other needs the archive's ct_index"
        )
    if ct_index is not None and not ct_index.is_file():
        raise ConcordctError(f"{ct_index}: expected the archive's ct_index, found no file")
    try:
        import duckdb
        import idc_index_data
    except ImportError:
        raise ConcordctError("the archive's index is not installed; expected: pip install concordct[archive]") from None
    asked = {
        "index": str(idc_index_data.IDC_INDEX_PARQUET_FILEPATH),
        "collection": collection,
        "least": LEAST_SLICES,
        "source": source_kernel,
        "target": target_kernel,
    }
    if ct_index is None:
        rows = duckdb.execute(_QUERY, {**asked, "fields": NLST_FIELDS}).fetchall()
    else:
        try:
            rows = duckdb.execute(_CT_QUERY, {**asked, "ct": str(ct_index)}).fetchall()
        except duckdb.Error as error:
            reason = str(error).splitlines()[0]
            raise ConcordctError(
                f"{ct_index}: expected the archive's ct_index, found another table: {reason}"
            ) from None
    taken: set[str] = set()
    found = []
    for patient, study, source, target, thickness, slices, size, licence, first, second in rows:
        if source in taken or target in taken:
            continue
        taken |= {source, target}
        found.append(
            Candidate(
                subject=f"{collection}-{patient}",
                study=study,
                source=source,
                target=target,
                source_kernel=source_kernel,
                target_kernel=target_kernel,
                slice_thickness_mm=_number(thickness),
                slices=slices,
                size_mb=round(size, 3),
                licence=licence,
                urls=(first, second),
            )
        )
    return tuple(found)


def _number(text: str) -> float | None:
    try:
        return float(text) or None
    except ValueError:
        return None


def cohort_idc(
    collection: str,
    *,
    source_kernel: str,
    target_kernel: str,
    count: int | None,
    output: Path,
    ct_index: Path | None = None,
    most_gb: float | None = None,
    download: bool = False,
    progress: Progress | None = None,
) -> Cohort:
    """Select pairs from the archive, write the selection, and download and verify them when asked.

    Parameters
    ----------
    count : pairs, spread evenly over the candidates; None takes all.
    output : folder of `selection.json` and, after the download, `pairs.csv`, `failures.csv` and the series.
    ct_index : see `find_candidates`.
    most_gb : refuse to download a selection that is larger.
    download : fetch what is not there yet (needs a network), then verify every pair's geometry and content.
    progress : called with (pairs verified, pairs in all).

    Raises
    ------
    ConcordctError : nothing found, the extra is missing, or no network.
    """
    if count is not None and count < 1:
        raise ConcordctError(f"{count} pairs: at least 1 is allowed")
    candidates = find_candidates(
        collection, source_kernel=source_kernel, target_kernel=target_kernel, ct_index=ct_index
    )
    if not candidates:
        raise ConcordctError(f"no pairs of {source_kernel} and {target_kernel} in {collection}")
    if count is not None and count < len(candidates):
        candidates = tuple(candidates[index * len(candidates) // count] for index in range(count))
    output.mkdir(parents=True, exist_ok=True)
    size = round(sum(item.size_mb for item in candidates), 1)
    licences = tuple(sorted({item.licence for item in candidates}))
    selection = {
        "collection": collection,
        "pairs": len(candidates),
        "size_mb": size,
        "licences": licences,
        "series": [asdict(item) for item in candidates],
    }
    with atomic_file(output / SELECTION, overwrite=True) as aside:
        aside.write_text(json.dumps(selection, indent=1) + "\n", encoding="utf-8")
    if not download:
        return Cohort(None, len(candidates), (), size, licences)
    if most_gb is not None and size > 1000 * most_gb:
        raise ConcordctError(
            f"{output}: expected at most {most_gb:g} GB, found {size / 1000:.1f} GB in {len(candidates)} pairs; "
            "nothing was fetched"
        )
    _download(candidates, output)
    rows, failures = _verify(candidates, output, progress)
    manifest = write_manifest(output / MANIFEST, rows, overwrite=True) if rows else None
    _write_failures(output, failures)
    return Cohort(manifest, len(rows), tuple(failures), size, licences)


def _folder(output: Path, item: Candidate, series: str) -> Path:
    return output / item.subject / series


def _download(candidates: Sequence[Candidate], output: Path) -> None:
    """Fetch the series that are not there; one interrupted is fetched again."""
    try:
        from idc_index import IDCClient
    except ImportError:
        raise ConcordctError("the archive's client is missing; expected: pip install concordct[archive]") from None
    try:
        client = IDCClient()
        for item in candidates:
            for series in (item.source, item.target):
                place = _folder(output, item, series)
                if len(list(place.glob("*.dcm"))) < item.slices:
                    place.mkdir(parents=True, exist_ok=True)
                    client.download_dicom_series(
                        seriesInstanceUID=series, downloadDir=str(place), dirTemplate="", quiet=True
                    )
    except Exception as error:
        raise ConcordctError(
            f"the download stopped ({type(error).__name__}); run again to go on where it did"
        ) from None


def _verify(
    candidates: Sequence[Candidate], output: Path, progress: Progress | None
) -> tuple[list[PairRow], list[tuple[str, str]]]:
    rows, failures = [], []
    for index, item in enumerate(candidates):
        name = f"{item.subject}_{index + 1:05d}"
        try:
            source, target = (one_scan(_folder(output, item, uid)) for uid in (item.source, item.target))
            check_pair(source, target)
        except ConcordctError as error:
            failures.append((name, str(error)))
        else:
            rows.append(
                PairRow(
                    pair=name,
                    subject=item.subject,
                    split=split_of(item.subject),
                    source=scan_path(source),
                    target=scan_path(target),
                    source_kernel=item.source_kernel,
                    target_kernel=item.target_kernel,
                    slice_thickness_mm=item.slice_thickness_mm,
                )
            )
        if progress is not None:
            progress(index + 1, len(candidates))
    return rows, failures


def cohort_folder(
    path: Path,
    *,
    source_kernel: str,
    target_kernel: str,
    output: Path,
    progress: Progress | None = None,
) -> Cohort:
    """Find the pairs that lie in a folder: series of one frame of reference in the two kernels, verified.

    Parameters
    ----------
    path : searched to its depths. Volume files name no kernel and are not paired.
    output : folder for `pairs.csv` and `failures.csv`.
    progress : called with (files read, files in all).

    Raises
    ------
    ConcordctError : no series in one of the kernels; the message names those that are there.
    """
    series = [scan for scan in find_scans(path, progress=progress).scans if isinstance(scan, Series)]
    try:
        found = pair_by_kernel(series, source_kernel, target_kernel)
    except ConcordctError as error:
        raise ConcordctError(f"{path}: {error}") from None
    person = {one.key: _person(one) for one in series}
    people = {digest: f"subject-{rank:04d}" for rank, digest in enumerate(sorted(set(person.values())), 1)}
    shared = Counter(one.folder for one in series)
    names = {source.key: f"pair-{number:04d}" for number, source in enumerate(_sources(series, source_kernel), start=1)}
    rows = [
        PairRow(
            pair=names[source.key],
            subject=people[person[source.key]],
            split=split_of(person[source.key]),
            source=scan_path(source),
            target=scan_path(target),
            source_kernel=source_kernel,
            target_kernel=target_kernel,
            slice_thickness_mm=source.slice_thickness_mm,
            source_series=source.uid if shared[source.folder] > 1 else None,
            target_series=target.uid if shared[target.folder] > 1 else None,
        )
        for source, target in found.pairs
    ]
    failures = [(f"{names[source.key]} ({_place(source, path)})", reason) for source, reason in found.failures]
    output.mkdir(parents=True, exist_ok=True)
    manifest = write_manifest(output / MANIFEST, rows, overwrite=True) if rows else None
    _write_failures(output, failures)
    return Cohort(manifest, len(rows), tuple(failures), splits=dict(Counter(row.split for row in rows)))


def _sources(series: Sequence[Series], kernel: str) -> list[Series]:
    return [one for one in series if one.kernel == kernel]


def _place(series: Series, root: Path) -> str:
    return scan_path(series).relative_to(root).as_posix() if root.is_dir() else scan_path(series).name


def _person(series: Series) -> str:
    """A digest that stands for the patient; it leaves no trace of who that is."""
    header = open_dataset(series.slices[0].path, tags=["PatientID"])
    return hashlib.sha256(str(header.get("PatientID") or series.frame_of_reference_uid).encode()).hexdigest()


def _write_failures(output: Path, failures: Sequence[tuple[str, str]]) -> None:
    with (
        atomic_file(output / FAILURES, overwrite=True) as aside,
        open(aside, "w", newline="", encoding="utf-8") as file,
    ):
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("pair", "reason"))
        table.writerows([safe_cell(cell) for cell in row] for row in failures)
