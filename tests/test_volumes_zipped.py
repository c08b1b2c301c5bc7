"""Zip archives: read as the tree that they hold, and refused where they are made to harm."""

from __future__ import annotations

import stat
import zipfile
from pathlib import Path

import pytest

from concordct.errors import ConcordctError
from concordct.volumes.files import write_volume_file
from concordct.volumes.scans import find_scans
from concordct.volumes.zipped import as_tree
from synthetic import pair, volume


def archive(path: Path, **files: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for name, data in files.items():
            made.writestr(name.replace("__", "/"), data)
    return path


def test_an_archive_is_the_tree_that_it_holds(tmp_path: Path) -> None:
    scan = write_volume_file(tmp_path / "ct.nrrd", volume(pair(seed=3, size=96)[0]))
    made = archive(tmp_path / "exam.zip", exam__ct_nrrd=b"no volume")
    with zipfile.ZipFile(made, "a") as more:
        more.write(scan, "exam/a/ct.nrrd")
    with as_tree(made) as tree:
        found = find_scans(tree)
        assert [one.path.relative_to(tree).as_posix() for one in found.scans] == ["exam/a/ct.nrrd"]
        kept = tree
    assert not kept.exists()
    with as_tree(tmp_path) as same:
        assert same == tmp_path


@pytest.mark.parametrize("name", ["../out.dcm", "/etc/out.dcm", "a/../../out.dcm", "c:\\out.dcm"])
def test_names_that_lead_out_are_refused(name: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as made:
        made.writestr(name, b"x")
    with pytest.raises(ConcordctError, match="leads out of it"), as_tree(tmp_path / "a.zip"):
        pass
    assert not (tmp_path / "out.dcm").exists()


def test_links_bombs_and_damage_are_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as made:
        made.writestr(link, "/etc/passwd")
    archive(tmp_path / "bomb.zip", zeros=bytes(80 * 2**20))
    whole = archive(tmp_path / "whole.zip", a=b"data" * 1000).read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[:40])
    damaged = bytearray(archive(tmp_path / "damaged.zip", a=bytes(range(256)) * 100).read_bytes())
    damaged[40] ^= 0xFF
    (tmp_path / "damaged.zip").write_bytes(damaged)
    archive(tmp_path / "empty.zip")
    with zipfile.ZipFile(tmp_path / "twice.zip", "w") as made:
        made.writestr("a", b"1")
        with pytest.warns(UserWarning, match="Duplicate name"):
            made.writestr("a", b"2")
    said = {
        "link": "found a link",
        "bomb": "times its size",
        "cut": "whole zip archive",
        "damaged": "whole zip archive",
        "empty": "found none",
        "twice": "a name twice",
    }
    for name, says in said.items():
        with pytest.raises(ConcordctError, match=says), as_tree(tmp_path / f"{name}.zip"):
            pass
