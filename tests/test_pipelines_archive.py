"""The Imaging Data Commons: selected on the shipped index and on tables of its schema, fetched by the real client."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from concordct.errors import ConcordctError
from concordct.pipelines import archive
from concordct.pipelines.archive_series import PRESETS, Preset, Wanted, find_series, together
from concordct.pipelines.archive_transfer import Remote, check_room, fetch
from concordct.volumes.manifest import read_manifest
from concordct.volumes.new_series import SimulatedScan, write_new_series
from concordct.volumes.volume import Volume
from s3_server import s3_server

SLICES = 20
BUCKET = "idc-open-data"


@pytest.mark.parametrize(
    ("name", "kernels", "groups", "subjects"),
    [
        ("nlst-pairs", ("B50f", "B30f"), 400, 100),
        ("qiba-1c", ("D", "B"), 25, 1),
        ("ct4harmonization", ("DL",), 80, 1),
        ("rider-lung", (), 31, 31),
    ],
)
def test_presets_find_what_the_shipped_index_holds(
    name: str, kernels: tuple[str, ...], groups: int, subjects: int
) -> None:
    pytest.importorskip("duckdb")
    pytest.importorskip("idc_index_data")
    preset = PRESETS[name]
    # One scanner's worth of the largest.
    wanted = Wanted(kernels, model="sensation 4" if name == "nlst-pairs" else None)
    found = together(find_series(preset, wanted, index=None, ct_index=None), preset.relation, kernels)
    assert len(found) >= groups
    assert len({group[0].subject for group in found}) >= subjects
    uids = [one.uid for group in found for one in group]
    assert len(set(uids)) == len(uids)
    if preset.relation == "pairs":
        assert {tuple(one.kernel for one in group) for group in found} == {kernels}
        assert all(one.study == group[0].study and one.scan == group[0].scan for group in found for one in group)
    if preset.masks:
        assert all(one.mask is not None for group in found for one in group)
        assert {one.labels["repeat"] for (one,) in found} == {str(number) for number in range(1, 11)}
    assert all(one.licence.startswith("CC BY") for group in found for one in group)


@dataclass
class Small:
    """A small archive: its tables and its server."""

    index: Path
    ct_index: Path
    endpoint: str
    client: Any


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Small]:
    """Subjects in two kernels each: the second's thicknesses differ, the third's sharp series is another scan, the
    fourth has two frames of reference."""
    for name in ("boto3", "moto.server", "duckdb", "idc_index_data"):
        pytest.importorskip(name)
    from benchmarks.archive_server import put_series, write_table

    place = tmp_path_factory.mktemp("archive")
    generator = np.random.default_rng(3)
    y, x = np.mgrid[:48, :48] - 23.5
    body = np.where(np.hypot(y, x) < 20, 40.0, -1000.0) + np.where(np.hypot(y - 5, x) < 7, 200.0, 0.0)
    soft = np.repeat(body[None], SLICES, 0)
    grain = np.rint(generator.normal(0, 4, soft.shape))
    affine = np.eye(4)
    affine[:3, :3] = [[0, 0, 2.0], [0, 2.0, 0], [2.0, 0, 0]]
    with s3_server() as (endpoint, client):
        client.create_bucket(Bucket=BUCKET)
        rows, ct = [], []
        for subject, sharp in (
            ("a", soft + grain),
            ("b", soft + grain),
            ("c", np.roll(soft, 9, axis=2)),
            ("d", soft + grain),
        ):
            for number, (kernel, hu) in enumerate((("SOFT", soft), ("HARD", sharp)), start=1):
                folder, uuid = place / subject / kernel, f"uuid-{subject}-{kernel}"
                volume = Volume(np.clip(hu, -1024, None).astype(np.float32), affine, slice_thickness_mm=2.0)
                # Anonymized series by series, the last one's frames of reference differ.
                frame = kernel if subject == "d" else "one"
                write_new_series(volume, folder, SimulatedScan(subject, frame, kernel, number, 120.0, 90.0))
                put_series(client, uuid, folder)
                sizes = [path.stat().st_size for path in folder.glob("*.dcm")]
                uid = f"1.2.3.{ord(subject)}.{number}"
                rows.append(
                    {
                        "collection_id": "own",
                        "PatientID": subject,
                        "StudyInstanceUID": f"1.2.3.{ord(subject)}",
                        "SeriesInstanceUID": uid,
                        "Modality": "CT",
                        "instanceCount": len(sizes),
                        "series_size_MB": sum(sizes) / 1e6,
                        "license_short_name": "CC BY 4.0",
                        "series_aws_url": f"s3://{BUCKET}/{uuid}/*",
                        "StudyDate": f"20{ord(subject)}-01-02",
                        "Manufacturer": "Siemens" if subject == "a" else "GE",
                    }
                )
                thickness = 5.0 if (subject, kernel) == ("b", "HARD") else 2.0
                ct.append(
                    {
                        "SeriesInstanceUID": uid,
                        "ConvolutionKernel": [kernel],
                        "KVP": 120.0,
                        "SliceThickness": thickness,
                        "PixelSpacing_row_mm": 2.0,
                        "PixelSpacing_col_mm": 2.0,
                        "Rows": 48,
                        "Columns": 48,
                    }
                )
        # A segmentation in the first subject's study; what it holds is not looked at here.
        some = next((place / "a" / "SOFT").glob("*.dcm")).read_bytes()
        client.put_object(Bucket=BUCKET, Key="uuid-a-mask/0000.dcm", Body=some, ACL="public-read")
        rows.append(
            {
                "collection_id": "own",
                "PatientID": "a",
                "StudyInstanceUID": f"1.2.3.{ord('a')}",
                "SeriesInstanceUID": "1.2.3.9",
                "Modality": "SEG",
                "instanceCount": 1,
                "series_size_MB": len(some) / 1e6,
                "series_aws_url": f"s3://{BUCKET}/uuid-a-mask/*",
            }
        )
        yield Small(
            write_table(place / "index.parquet", "idc_index", rows),
            write_table(place / "ct.parquet", "ct_index", ct),
            endpoint,
            client,
        )


Select = Callable[..., archive.Selection]


@pytest.fixture
def select(small: Small) -> Select:
    def found(*, count: int | None = None, kernels: tuple[str, ...] = ("HARD", "SOFT"), **wanted: Any) -> Any:
        asked = Wanted(kernels, **wanted)
        return archive.select(archive.preset_of("own"), asked, count=count, index=small.index, ct_index=small.ct_index)

    return found


def test_any_collection_by_the_table_of_ct_series(select: Select) -> None:
    assert [group[0].subject for group in select().groups] == ["own-a", "own-c", "own-d"]
    assert [group[0].subject for group in select(vendor="siemens").groups] == ["own-a"]
    assert [group[0].subject for group in select(dates=("2099-01-01", "2100-01-01")).groups] == ["own-c"]
    assert len(select(thickness_mm=(2.0, 3.0)).groups) == 3
    with pytest.raises(ConcordctError, match=r"found none among 0 series"):
        select(thickness_mm=(1.0,))
    with pytest.raises(ConcordctError, match=r"their kernels are SOFT \(4\), HARD \(4\)"):
        select(kernels=("B30f", "B50f"))
    with pytest.raises(ConcordctError, match="two kernels for pairs, found 1"):
        select(kernels=("B30f",))
    with pytest.raises(ConcordctError, match="name no kernels"):
        archive.select(archive.preset_of("lidc_idri"), Wanted(("a", "b")))


def test_tables_of_another_schema_are_refused(small: Small, tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    other = tmp_path / "other.parquet"
    duckdb.sql(f"copy (select 1 as x) to '{other}' (format parquet)")
    with pytest.raises(ConcordctError, match="expected the archive's table, found another"):
        archive.select(archive.preset_of("own"), Wanted(("a", "b")), index=small.index, ct_index=other)
    with pytest.raises(ConcordctError, match="found no file"):
        archive.select(archive.preset_of("own"), Wanted(("a", "b")), ct_index=tmp_path / "none.parquet")


def test_cohort_is_fetched_verified_and_resumed(small: Small, select: Select, tmp_path: Path) -> None:
    found = archive.fetch_cohort(select(), tmp_path, most_gb=1.0, endpoint=small.endpoint)
    assert found.manifest is not None
    (row,) = read_manifest(found.manifest)
    assert (row.subject, row.source_kernel, row.target_kernel) == ("own-a", "HARD", "SOFT")
    assert ["different content" in found.failures[0][1], "frames of reference" in found.failures[1][1]] == [True, True]
    said = json.loads((tmp_path / "selection.json").read_text())
    assert (said["groups"], said["licences"]) == (3, ["CC BY 4.0"])
    assert said["size_gb"] > 0
    # A series cut short is fetched again; those that are whole are left as they are.
    cut, whole = sorted(row.source.glob("*.dcm"))[3], sorted(row.target.glob("*.dcm"))[3]  # type: ignore[union-attr]
    bytes_before, untouched = cut.read_bytes(), whole.stat().st_mtime_ns
    cut.write_bytes(bytes_before[:1000])
    allowed = archive.fetch_cohort(select(), tmp_path, most_gb=1.0, endpoint=small.endpoint, allow={"frames"})
    assert allowed.pairs == 2
    assert "different content" in allowed.failures[0][1]
    assert cut.read_bytes() == bytes_before
    assert whole.stat().st_mtime_ns == untouched


def test_a_stopped_transfer_goes_on_with_what_it_has(small: Small, tmp_path: Path) -> None:
    remote = Remote(f"s3://{BUCKET}/uuid-a-SOFT/*", tmp_path / "series", 0.1, SLICES)
    assert fetch([remote], endpoint=small.endpoint) == ()
    aside = tmp_path / ".series.fetching"
    remote.place.rename(aside)
    kept, wrong, lacking = sorted(aside.glob("*.dcm"))[:3]
    time = kept.stat().st_mtime_ns
    good = wrong.read_bytes()
    wrong.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))  # same size, another content: the hash tells
    lacking.unlink()
    assert fetch([remote], endpoint=small.endpoint) == ()
    assert len(list(remote.place.glob("*.dcm"))) == SLICES
    assert (remote.place / kept.name).stat().st_mtime_ns == time
    assert (remote.place / wrong.name).read_bytes() == good
    assert not aside.exists()


def test_what_the_archive_lacks_and_what_is_too_large_is_said(small: Small, tmp_path: Path) -> None:
    short = Remote(f"s3://{BUCKET}/uuid-a-SOFT/*", tmp_path / "short", 0.1, SLICES + 1)
    none = Remote(f"s3://{BUCKET}/nobody/*", tmp_path / "none", 0.1, SLICES)
    reasons = dict(fetch([short, none], endpoint=small.endpoint))
    assert "expected 21 objects in the archive, found 20" in reasons[short.place]
    assert "found 0" in reasons[none.place]
    assert not short.place.exists()
    with pytest.raises(ConcordctError, match=r"expected at most 0\.5 GB, found 2\.0 GB; nothing was fetched"):
        check_room(tmp_path, 2.0, 0.5)
    with pytest.raises(ConcordctError, match="GB on the disk"):
        check_room(tmp_path, 1e9, None)
    with pytest.raises(ConcordctError, match="cannot be reached; run again"):
        fetch([none], endpoint="http://127.0.0.1:9")


def test_scans_and_repeats_say_what_each_is(small: Small, tmp_path: Path) -> None:
    for relation, rows in (("scans", 4), ("repeats", 2)):
        preset = archive.preset_of("own", relation)  # type: ignore[arg-type]
        wanted = Wanted(thickness_mm=(2.0,), vendor=None if relation == "scans" else "siemens")
        chosen = archive.select(preset, wanted, count=4, index=small.index, ct_index=small.ct_index)
        out = tmp_path / relation
        found = archive.fetch_cohort(chosen, out, most_gb=None, endpoint=small.endpoint)
        assert found.manifest is not None
        assert found.pairs == len(read_manifest(found.manifest)) == rows
        with (out / "scans.csv").open(newline="") as stream:
            said = list(csv.DictReader(stream))
        assert [one["kernel"] for one in said[:2]] == ["SOFT", "HARD"]
        assert [one.get("repeat") for one in said[:2]] == ([None, None] if relation == "scans" else ["1", "2"])


def test_masks_of_a_collection_come_along(small: Small, tmp_path: Path) -> None:
    preset = Preset("own", "scans", "", masks=True)
    wanted = Wanted(("SOFT",), vendor="siemens")
    chosen = archive.select(preset, wanted, index=small.index, ct_index=small.ct_index)
    alone = archive.select(replace(preset, masks=False), wanted, index=small.index, ct_index=small.ct_index)
    assert chosen.size_gb > alone.size_gb
    found = archive.fetch_cohort(chosen, tmp_path, most_gb=None, endpoint=small.endpoint)
    assert found.manifest is not None
    (row,) = read_manifest(found.manifest)
    assert row.mask == tmp_path / "own-a" / "1.2.3.9" / "0000.dcm"
