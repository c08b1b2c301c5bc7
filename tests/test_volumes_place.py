"""Outputs stand whole or not at all."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from concordct.errors import ConcordctError
from concordct.volumes.place import atomic_directory, atomic_file, refuse_overlap


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_directory_appears_whole(tmp_path: Path) -> None:
    with atomic_directory(tmp_path / "deep" / "out") as aside:
        (aside / "a").write_text("1")
        assert names(tmp_path / "deep") == [aside.name]
        assert aside.name.startswith(".")
    assert names(tmp_path / "deep") == ["out"]
    assert (tmp_path / "deep" / "out").stat().st_mode & 0o700 == 0o700


def test_failure_leaves_what_was_there(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with atomic_directory(out) as aside:
        (aside / "a").write_text("old")

    def fail() -> None:
        with atomic_directory(out, overwrite=True) as aside:
            (aside / "a").write_text("new")
            raise ValueError("half way")

    with pytest.raises(ValueError, match="half way"):
        fail()
    assert (out / "a").read_text() == "old"
    assert names(tmp_path) == ["out"]


def test_existing_is_refused_or_replaced_whole(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with atomic_directory(out) as aside:
        (aside / "a").write_text("old")
    with pytest.raises(ConcordctError, match="output exists"), atomic_directory(out):
        pass
    with atomic_directory(out, overwrite=True) as aside:
        (aside / "b").write_text("new")
    assert names(out) == ["b"]
    assert names(tmp_path) == ["out"]
    file = tmp_path / "f.txt"
    with atomic_file(file) as aside:
        aside.write_text("old")
    with pytest.raises(ConcordctError, match="output exists"), atomic_file(file):
        pass
    with atomic_file(file, overwrite=True) as aside:
        aside.write_text("new")
    assert file.read_text() == "new"
    with pytest.raises(ConcordctError, match="a folder stands"), atomic_file(out, overwrite=True):
        pass


_KILLED = """
import os, signal, sys
from concordct.volumes.place import atomic_directory
with atomic_directory(sys.argv[1], overwrite=True) as aside:
    (aside / "half").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_run_leaves_the_old_output_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with atomic_directory(out) as aside:
        (aside / "a").write_text("old")
    assert subprocess.run([sys.executable, "-c", _KILLED, str(out)]).returncode == -9
    assert (out / "a").read_text() == "old"
    assert len(names(tmp_path)) == 2
    with atomic_directory(out, overwrite=True) as aside:
        (aside / "a").write_text("new")
    assert names(tmp_path) == ["out"]
    assert (out / "a").read_text() == "new"


def test_output_moved_away_by_a_killed_run_comes_back(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with atomic_directory(out) as aside:
        (aside / "a").write_text("old")
        dead = aside.name
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    out.rename(tmp_path / dead.replace(f"-{os.getpid()}-", f"-{process.pid}-").replace(".part", ".replaced"))
    with pytest.raises(ConcordctError, match="output exists"), atomic_directory(out):
        pass
    assert (out / "a").read_text() == "old"


def test_full_disk_is_one_line(tmp_path: Path) -> None:
    # A file-size limit stands in for a full disk: writing fails half way in the same manner (EFBIG for ENOSPC).
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, old[1]))
        with (
            pytest.raises(ConcordctError, match=r"cannot write .*: file too large"),
            atomic_file(tmp_path / "f") as aside,
        ):
            aside.write_bytes(bytes(20_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert names(tmp_path) == []


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConcordctError, match="cannot write"), atomic_directory(tmp_path / "file" / "out"):
        pass
    if os.geteuid() != 0:
        (tmp_path / "locked").mkdir(mode=0o500)
        with pytest.raises(ConcordctError, match="no permission"), atomic_directory(tmp_path / "locked" / "out"):
            pass
    with pytest.raises(ConcordctError, match=r"cannot write /proc/"), atomic_directory("/proc/nothing/out"):
        pass


def test_overlap(tmp_path: Path) -> None:
    source = tmp_path / "in" / "a.dcm"
    source.parent.mkdir()
    source.write_text("x")
    for bad in (tmp_path / "in", tmp_path / "in" / "out", tmp_path, tmp_path / "in" / ".." / "in"):
        with pytest.raises(ConcordctError, match="expected another place"):
            refuse_overlap(bad, [source], folder=True)
    refuse_overlap(tmp_path / "out", [source], folder=True)
    refuse_overlap(tmp_path / "inside", [source], folder=True)
    with pytest.raises(ConcordctError, match="expected another place"):
        refuse_overlap(source, [source], folder=False)
    refuse_overlap(source.with_name("b.dcm"), [source], folder=False)
    (tmp_path / "link").symlink_to(tmp_path / "in")
    with pytest.raises(ConcordctError, match="expected another place"):
        refuse_overlap(tmp_path / "link" / "out", [source], folder=True)


def test_long_names_fit(tmp_path: Path) -> None:
    with atomic_directory(tmp_path / ("n" * 250)) as aside:
        (aside / "a").write_text("1")
    with atomic_file(tmp_path / ("é" * 120)) as aside:
        aside.write_text("1")
    assert len(names(tmp_path)) == 2
