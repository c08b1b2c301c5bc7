"""CT series of the Imaging Data Commons by its index tables, and which of them belong together.

The package `idc-index-data` ships the archive's table of all series (`idc_index`); its table of CT series (`ct_index`:
kernel, voltage, thickness, pixels of each) is fetched by `idc-index`. Collections that name kernels in their series'
descriptions are searched without the latter.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Literal

from concordct.errors import ConcordctError

#: Series with fewer slices are localizers.
LEAST_SLICES = 20
#: How far a thickness may lie from the one asked for, mm: headers round.
THICKNESS_TOLERANCE_MM = 0.01

#: What belongs together: one raw data set in two kernels, two scans of one patient minutes apart, or each by itself.
Relation = Literal["pairs", "repeats", "scans"]


@dataclass(frozen=True)
class Preset:
    """A collection by name, with how its series belong together.

    Attributes
    ----------
    study : UIDs of the studies that count start with it; the rest are other versions of the same scans.
    masks : whether each study holds a segmentation of its scan.
    """

    collection: str
    relation: Relation
    about: str
    study: str = ""
    masks: bool = False


#: Pinsky 2013 (NLST), doi:10.7937/TCIA.HMQ8-J677; QIBA, doi:10.7937/K9/TCIA.2016.YXGR4BLU;
#: Amirian 2025, doi:10.7937/M0PB-BH69; Zhao 2009, doi:10.1148/radiol.2522081593.
PRESETS = {
    "nlst-pairs": Preset("nlst", "pairs", "screening chests in two kernels"),
    "qiba-1c": Preset("qiba_ct_1c", "pairs", "a chest phantom on six scanners, two kernels of each scan"),
    "ct4harmonization": Preset(
        "ct4harmonization_multicentric", "scans", "a liver phantom: 13 scanners, doses, reconstructions, repeats",
        masks=True,
    ),
    "rider-lung": Preset(
        "rider_lung_ct", "repeats", "lung cancer scanned twice within 15 minutes", study="1.3.6.1.4.1.9328.50.1."
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Wanted:
    """What is selected.

    Attributes
    ----------
    kernels : source and target for pairs; any of them for others. None takes all.
    vendor, model : parts of the manufacturer's and the model's name, in any case.
    thickness_mm : of the slices; one of them, None takes all.
    dates : first and last study date, YYYY-MM-DD (the archive shifts dates of some collections).
    least_slices : of a series; shorter ones are localizers.
    """

    kernels: tuple[str, ...] = ()
    vendor: str | None = None
    model: str | None = None
    thickness_mm: tuple[float, ...] = ()
    dates: tuple[str, str] | None = None
    least_slices: int = LEAST_SLICES


@dataclass(frozen=True)
class ArchiveSeries:
    """A series as the archive describes it.

    Attributes
    ----------
    subject : collection and the archive's public pseudonym.
    study, uid : UIDs of study and series.
    kernel, thickness_mm : of the header by `ct_index`, else of the description; None where neither says.
    scan : what reconstructions of one raw data set share, with the study.
    slices, size_mb, licence, url : of the series.
    scanner : manufacturer and model.
    labels : what the description says beside: dose, reconstruction, repeat.
    mask : uid, URL and size of a segmentation in the same study.
    """

    subject: str
    study: str
    uid: str
    kernel: str | None
    thickness_mm: float | None
    scan: tuple[object, ...]
    slices: int
    size_mb: float
    licence: str
    url: str
    scanner: str
    date: str
    number: int
    labels: Mapping[str, str] = field(default_factory=dict)
    mask: tuple[str, str, float] | None = None


@dataclass(frozen=True)
class _Said:
    """What a description says."""

    kernel: str | None = None
    thickness_mm: float | None = None
    scan: tuple[object, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)


def _nlst(description: str) -> _Said | None:
    """`year,type,vendor,model,kernel,field,thickness,kVp,mAs,effective mAs,pitch`; None for localizers and others."""
    said = description.split(",")
    if len(said) != 11:
        return None
    # Gaps of the table are written "na" and the like.
    thickness = float(said[6]) if re.fullmatch(r"\d+(\.\d+)?", said[6]) else None
    return _Said(said[4], thickness or None, tuple(said[5:9]))


_QIBA = re.compile(r"AXIAL (?P<dose>.*) recon (?P<kernel>.+?) - (?P<name>.*)")


def _qiba(description: str) -> _Said | None:
    """`vendor AXIAL dose recon kernel - name`; the name repeats the kernel at its end or before a number."""
    found = _QIBA.search(description)
    if found is None:
        return None
    name = re.sub(r"(?<=\d)(STD|DETAIL?|[A-D])$|\s[BFC]+\d\df?$", "", found["name"])
    name = re.sub(r"\b[A-D](?=\d)", "", name)
    # A GE kernel with a share of iterative reconstruction ("SS30") is another reconstruction of the same raw data.
    return _Said(found["kernel"], None, (found["dose"], name))


_CT4 = re.compile(r"(?P<scanner>\w\d)_\w+_(?P<dose>\d+mGy)_(?P<reconstruction>[A-Z]+) - #(?P<repeat>\d+)")


def _ct4(description: str) -> _Said | None:
    """`scanner_Harmonized_dose_reconstruction - #repeat`; the reconstruction stands for the kernel."""
    found = _CT4.fullmatch(description)
    return found and _Said(found["reconstruction"], None, (description,), found.groupdict())


DESCRIPTIONS: Mapping[str, Callable[[str], _Said | None]] = {
    "nlst": _nlst, "qiba_ct_1c": _qiba, "ct4harmonization_multicentric": _ct4,
}  # fmt: skip

_QUERY = """
select i.PatientID, i.StudyInstanceUID, i.SeriesInstanceUID, i.instanceCount, i.series_size_MB, i.license_short_name,
       i.series_aws_url, coalesce(i.SeriesDescription, ''), concat_ws(' ', i.Manufacturer, i.ManufacturerModelName),
       coalesce(i.StudyDate::varchar, ''), coalesce(try_cast(i.SeriesNumber as bigint), 0), {columns}
from read_parquet($index) i {join}
where i.collection_id = $collection and i.Modality = 'CT' and i.instanceCount >= $least
  and i.analysis_result_id is null and starts_with(i.StudyInstanceUID, $study)
  and contains(lower(coalesce(i.Manufacturer, '')), lower($vendor))
  and contains(lower(coalesce(i.ManufacturerModelName, '')), lower($model))
  and coalesce(i.StudyDate::varchar, '') between $first and $last
order by i.PatientID, i.StudyInstanceUID, i.SeriesInstanceUID
"""
_CT_COLUMNS = """array_to_string(c.ConvolutionKernel, '\\'), c.SliceThickness,
       [c.KVP, c.SliceThickness, c.PixelSpacing_row_mm, c.PixelSpacing_col_mm, c.Rows, c.Columns]"""
_CT_JOIN = "join read_parquet($ct) c using (SeriesInstanceUID)"
_MASKS = """
select StudyInstanceUID, SeriesInstanceUID, series_aws_url, series_size_MB from read_parquet($index)
where collection_id = $collection and Modality = 'SEG' and analysis_result_id is null
order by SeriesInstanceUID desc
"""


def find_series(preset: Preset, wanted: Wanted, *, index: Path | None, ct_index: Path | None) -> list[ArchiveSeries]:
    """The CT series of a collection that are wanted, by subject, study and UID.

    Parameters
    ----------
    index : `idc_index.parquet`; None takes the one that the package ships.
    ct_index : the archive's table of CT series; None goes by descriptions.

    Raises
    ------
    ConcordctError : the extra `archive` is missing, a table of another schema, or a selection by kernel or thickness
        in a collection whose descriptions name none.
    """
    try:
        import duckdb
        import idc_index_data
    except ImportError:
        raise ConcordctError("the archive's index is not installed; expected: pip install concordct[archive]") from None
    for path in (index, ct_index):
        if path is not None and not path.is_file():
            raise ConcordctError(f"{path}: expected a table of the archive (Parquet), found no file")
    read = DESCRIPTIONS.get(preset.collection, lambda _: _Said())
    asks = bool(wanted.kernels or wanted.thickness_mm or preset.relation == "pairs")
    if asks and ct_index is None and preset.collection not in DESCRIPTIONS:
        raise ConcordctError(
            f"the descriptions of collection {preset.collection!r} name no kernels; expected the archive's ct_index"
        )
    first, last = wanted.dates or ("", "9999")
    asked: dict[str, object] = {
        "index": str(index or idc_index_data.IDC_INDEX_PARQUET_FILEPATH),
        "collection": preset.collection,
    }
    where: dict[str, object] = {
        "least": wanted.least_slices,
        "study": preset.study,
        "vendor": wanted.vendor or "",
        "model": wanted.model or "",
        "first": first,
        "last": last,
    }
    columns, join = ("null, null, null", "") if ct_index is None else (_CT_COLUMNS, _CT_JOIN)
    ct = {} if ct_index is None else {"ct": str(ct_index)}
    try:
        rows = duckdb.execute(_QUERY.format(columns=columns, join=join), {**asked, **where, **ct}).fetchall()
        masks = {row[0]: row[1:] for row in duckdb.execute(_MASKS, asked).fetchall()} if preset.masks else {}
    except duckdb.Error as error:
        reason = str(error).splitlines()[0]
        table = ct_index or index or "the archive's index"
        raise ConcordctError(f"{table}: expected the archive's table, found another: {reason}") from None
    found = []
    for patient, study, uid, slices, size, licence, url, text, scanner, date, number, kernel, thick, protocol in rows:
        said = read(text)
        if said is None:
            continue
        series = ArchiveSeries(
            subject=f"{preset.collection}-{patient}",
            study=study,
            uid=uid,
            kernel=kernel or said.kernel,
            thickness_mm=thick or said.thickness_mm,
            scan=(*said.scan, *map(str, protocol or ()), slices),
            slices=slices,
            size_mb=round(float(size), 3),
            licence=licence,
            url=url,
            scanner=scanner,
            date=date,
            number=number,
            labels=said.labels,
            mask=masks.get(study),
        )
        if _fits(series, wanted, any_kernel=preset.relation == "pairs"):
            found.append(series)
    return found


def _fits(series: ArchiveSeries, wanted: Wanted, *, any_kernel: bool) -> bool:
    if wanted.kernels and not any_kernel and series.kernel not in wanted.kernels:
        return False
    return not wanted.thickness_mm or (
        series.thickness_mm is not None
        and any(abs(series.thickness_mm - mm) <= THICKNESS_TOLERANCE_MM for mm in wanted.thickness_mm)
    )


def together(found: Sequence[ArchiveSeries], relation: Relation, kernels: tuple[str, ...]) -> list[list[ArchiveSeries]]:
    """Series that belong together, in the order of their subjects; each belongs to one group at most.

    Parameters
    ----------
    kernels : for pairs, source and target; without them two kernels of a scan in the order of their names.

    Returns
    -------
    Pairs [source, target]; repeats [first, second, ...] of a subject; or each scan by itself, sorted by its labels.
    """
    if relation == "scans":
        return [[one] for one in sorted(found, key=lambda one: (one.subject, _numbers(one.labels), one.uid))]
    of: dict[tuple[object, ...], list[ArchiveSeries]] = defaultdict(list)
    for one in found:
        of[(one.subject,) if relation == "repeats" else (one.subject, one.study, one.scan)].append(one)
    groups = []
    for series in of.values():
        if relation == "repeats":
            ordered = sorted(series, key=lambda one: (one.date, one.number, one.uid))
            groups += [ordered] if len(ordered) > 1 else []
        elif kernels:
            source, target = ([one for one in series if one.kernel == kernel] for kernel in kernels)
            groups += [list(pair) for pair in zip(source, target, strict=False)]
        else:
            # One of each kernel, neighbours by name: the first with the second, the third with the fourth.
            each = sorted({one.kernel: one for one in reversed(series) if one.kernel}.items())
            groups += [[a[1], b[1]] for place, (a, b) in enumerate(pairwise(each)) if place % 2 == 0]
    return groups


def _numbers(labels: Mapping[str, str]) -> tuple[tuple[int, str], ...]:
    """Sorts "10mGy" after "6mGy"."""
    return tuple((int(match[0]) if (match := re.match(r"\d+", text)) else 0, text) for text in labels.values())
