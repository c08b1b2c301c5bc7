"""The manifest: what is written comes back; what is wrong is named with its row."""

from __future__ import annotations

from pathlib import Path

import pytest

from concordct.errors import ConcordctError
from concordct.volumes.manifest import COLUMNS, PairRow, read_manifest, write_manifest

HEADER = ",".join(COLUMNS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a", "b", "c"):
        (tmp_path / "scans" / name).mkdir(parents=True)
    return tmp_path


def manifest(folder: Path, *rows: str, header: str = HEADER) -> Path:
    path = folder / "pairs.csv"
    path.write_text("\n".join((header, *rows)) + "\n", encoding="utf-8")
    return path


def test_round_trip(folder: Path) -> None:
    rows = (
        PairRow(pair="p1", subject="s1", split="train", source=folder / "scans/a", target=folder / "scans/b",
                source_kernel="Br40f\\3", target_kernel="Bl64", slice_thickness_mm=1.25),
        PairRow(pair="p2", subject="s2", split="test", source=folder / "scans/c"),
    )  # fmt: skip
    path = write_manifest(folder / "pairs.csv", rows)
    assert read_manifest(path) == rows
    assert "scans/a,scans/b" in path.read_text()
    assert write_manifest(folder / "again.csv", read_manifest(path)).read_bytes() == path.read_bytes()


def test_written_elsewhere_still_points_to_the_scans(folder: Path) -> None:
    row = PairRow(pair="p", subject="s", split="test", source=folder / "scans/a")
    (folder / "lists").mkdir()
    path = write_manifest(folder / "lists" / "pairs.csv", [row])
    assert "../scans/a" in path.read_text()
    assert read_manifest(path)[0].source.resolve() == (folder / "scans/a").resolve()


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (["p,s,train,scans/a,,,,thick,"], "row 2, column slice_thickness_mm: found 'thick'"),
        (["p,s,train,scans/a,,,,-1,"], "row 2, column slice_thickness_mm: found '-1'"),
        (["p,s,train,scans/a,,,,1,", "q,s,train,scans/none,,,,1,"], "row 3, column source: no such file or folder"),
        (["p,s,train,scans/a,scans/none,,,1,"], "row 2, column target: no such file or folder"),
        ([",s,train,scans/a,,,,,"], "row 2, column pair: found nothing"),
        (["p\0,s,train,scans/a,,,,,"], "row 2, column pair: expected printable characters"),
        (["p,s\u202e,train,scans/a,,,,,"], "row 2, column subject: expected printable characters"),
        (["p,s,train,scans/a,,,,1"], "row 2: another number of values"),
        (["p,s,train,scans/a,,,,1,,,extra"], "row 2: another number of values"),
        (["p,s,train,scans/a,,,,,", "p,t,train,scans/b,,,,,"], "row 3: pair named as in row 2"),
        (["p,s,train,scans/a,,,,,", "q,s,test,scans/b,,,,,"], "row 3: split test, but row 2 has the same subject"),
        ([], "no rows"),
    ],
)
def test_wrong_rows(folder: Path, rows: list[str], says: str) -> None:
    with pytest.raises(ConcordctError) as caught:
        read_manifest(manifest(folder, *rows))
    assert says in str(caught.value)
    assert "pairs.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_wrong_tables(folder: Path) -> None:
    for header in ("pair,subject", HEADER + ",extra", ""):
        with pytest.raises(ConcordctError, match=r"row 1: columns .* expected pair, subject"):
            read_manifest(manifest(folder, header=header))
    with pytest.raises(ConcordctError, match="cannot read manifest"):
        read_manifest(folder / "none.csv")
    (folder / "binary.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ConcordctError, match="not a comma-separated table"):
        read_manifest(folder / "binary.csv")
