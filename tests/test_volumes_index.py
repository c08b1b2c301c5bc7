"""The index of a tree: it says what reading everything says, and the second look reads nothing that stands."""

from __future__ import annotations

import sqlite3
import tempfile
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest

from concordct.errors import ConcordctError, reason_of
from concordct.pipelines.inspect import describe
from concordct.volumes import index
from concordct.volumes.files import write_volume_file
from concordct.volumes.find import find_series
from concordct.volumes.headers import SliceHeader
from concordct.volumes.new_series import SimulatedScan, write_new_series
from concordct.volumes.scans import find_scans
from concordct.volumes.volume import Volume
from volumes_slices import write_stack


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Three series, a volume file, a label map, voxels beside a header, and a text."""
    root = tmp_path / "tree"
    volume = Volume(np.full((4, 16, 16), 40.0, np.float32), np.eye(4)[[2, 1, 0, 3]], kernel="B30f")
    for number in range(3):
        scan = SimulatedScan(f"index-{number}", f"s{number}", "index", 1, 120.0, 100.0)
        write_new_series(volume, root / f"exam{number}" / "series", scan)
    for name in ("scan.nii.gz", "scan_mask.nii.gz", "scan.mhd"):
        write_volume_file(root / name, volume)
    (root / "notes.txt").write_text("none")
    return root


def test_an_index_says_what_reading_says_and_reads_once(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "index"
    found = find_scans(tree)
    without = describe(tree)
    assert [(one["path"], tuple(one["shape"])) for one in without["scans"]] == [
        (("exam0/series"), (4, 16, 16)),
        (("exam1/series"), (4, 16, 16)),
        (("exam2/series"), (4, 16, 16)),
        *((path.name, (4, 16, 16)) for path in sorted(tree.glob("scan.[mn]*"))),
    ]
    assert sum(without["set_aside"].values()) == len(found.set_aside)
    seen: list[tuple[int, int]] = []
    assert describe(tree, index=place, progress=lambda done, total: seen.append((done, total))) == without
    assert seen[-1] == (len(seen), len(seen))
    assert place.stat().st_mode & 0o077 == 0

    read: list[Path] = []

    def counted(path: Path) -> tuple[SliceHeader, ...]:
        read.append(path)
        return slice_headers(path)

    slice_headers = index.slice_headers
    monkeypatch.setattr(index, "slice_headers", counted)
    assert describe(tree, index=place) == without
    assert read == []
    # What has gone is forgotten, what is new is read, and its series is described anew.
    gone, kept, *_ = sorted((tree / "exam1" / "series").glob("*.dcm"))
    gone.unlink()
    (tree / "exam1" / "series" / "zz.dcm").write_bytes(kept.read_bytes())
    changed = describe(tree, index=place)
    assert read == [tree / "exam1" / "series" / "zz.dcm"]
    assert changed == describe(tree)
    assert changed != without
    # A part of the tree from the same index.
    assert [one["path"] for one in describe(tree / "exam2", index=place)["scans"]] == ["series"]


def test_headers_come_back_as_they_went(tree: Path, tmp_path: Path) -> None:
    with index.Index.opened(tmp_path / "index") as kept:
        kept.look(tree)
        back = {header.path: header for group in kept.groups(tree) for header in kept.headers(group)}
    for series in find_series(tree).series:
        for ref in series.slices:
            assert astuple(back[ref.path]) == astuple(index.slice_headers(ref.path)[0])


def test_what_is_no_index_stays_as_it_is(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("mine")
    with pytest.raises(ConcordctError, match="expected an index that can be written, found file is not a database"):
        describe(tree, index=tmp_path / "text")
    assert (tmp_path / "text").read_text() == "mine"
    other = sqlite3.connect(tmp_path / "other")
    other.execute("create table t (x)")
    other.commit()
    other.close()
    with pytest.raises(ConcordctError, match="expected an index of this version, found something else"):
        describe(tree, index=tmp_path / "other")


def test_where_nothing_temporary_can_be_written_the_index_stands_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_stack(tmp_path, [0.0, 3.0])
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", list)
    with index.Index.opened(None) as found:
        found.look(tmp_path)
        assert [len(group.paths) for group in found.groups(tmp_path)] == [2]
    with pytest.raises(FileNotFoundError) as caught:
        tempfile.gettempdir()
    assert reason_of(caught.value).endswith("expected one; TMPDIR may name it")
