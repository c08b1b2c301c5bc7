"""Derived CT series, whole or not at all: refusals, full disks, kills, and what stood before."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from concordct.errors import ConcordctError
from concordct.volumes.derived import write_derived_series
from concordct.volumes.find import find_series
from concordct.volumes.volume import Volume
from volumes_derived import DERIVATION, EVEN, only, same_files, sharpened
from volumes_slices import write_stack


def test_refusals_leave_nothing(tmp_path: Path) -> None:
    series = only(write_stack(tmp_path / "in", EVEN))
    whole = series.read()
    out = tmp_path / "out"
    bad_hu = whole.hu.copy()
    bad_hu[2, 3, 4] = np.nan
    moved = whole.affine.copy()
    moved[0, 3] += 1
    cases = [
        (tmp_path / "in", [whole], "expected another place"),
        (tmp_path / "in" / "out", [whole], "expected another place"),
        (tmp_path, [whole], "expected another place"),
        (out, [whole.slab(0, 3)], "slabs end after 3 slices, expected 5"),
        (out, [whole.slab(0, 2), whole.slab(3, 5)], "slab of slices 3 to 5, expected to start at 2"),
        (out, [whole, whole], "expected to start at 5 and end by 5"),
        (out, [replace(whole, hu=whole.hu[:, :40])], r"slab of \(40, 48\) pixels, expected \(48, 48\)"),
        (out, [replace(whole, hu=bad_hu)], "not finite"),
        (out, [replace(whole, affine=moved)], "lies elsewhere"),
    ]
    for directory, slabs, says in cases:
        with pytest.raises(ConcordctError, match=says):
            write_derived_series(series, slabs, directory, DERIVATION, overwrite=True)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]
    assert len(list((tmp_path / "in").iterdir())) == len(EVEN)
    write_derived_series(series, [whole], out, DERIVATION)
    with pytest.raises(ConcordctError, match="output exists"):
        write_derived_series(series, [whole], out, DERIVATION)
    with pytest.raises(ConcordctError, match="64 hexadecimal"):
        replace(DERIVATION, model_sha256="short")


def test_standardizer_that_fails_leaves_the_old_series(tmp_path: Path) -> None:
    series = only(write_stack(tmp_path / "in", EVEN))
    out = tmp_path / "out"
    write_derived_series(series, [series.read()], out, DERIVATION)
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def failing() -> Iterator[Volume]:
        yield series.read(0, 2)
        raise ConcordctError("model gave up")

    with pytest.raises(ConcordctError, match="model gave up"):
        write_derived_series(series, failing(), out, DERIVATION, overwrite=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_file_size_limit_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    series = only(write_stack(tmp_path / "in", EVEN))
    old, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, old[1]))
        with pytest.raises(ConcordctError, match=r"cannot write .*out: file too large"):
            write_derived_series(series, [series.read()], tmp_path / "out", DERIVATION)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


@pytest.mark.parametrize("size", ["16k", "32k", "60k"])
def test_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, small_disk: Callable[[str], Path], size: str) -> None:
    # Full while the pixels are laid aside, at the first object, at a later object.
    disk = small_disk(size)
    series = only(write_stack(tmp_path / "in", EVEN))
    with pytest.raises(ConcordctError, match=r"cannot write .*out: no space left on the device"):
        write_derived_series(series, [series.read()], disk / "out", DERIVATION)
    assert list(disk.iterdir()) == []


_KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[3])
from volumes_derived import DERIVATION, only, sharpened
from concordct.volumes.derived import write_derived_series
from pathlib import Path
series = only(Path(sys.argv[1]))
def dying():
    for number, slab in enumerate(sharpened(series, 2)):
        if number == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        yield slab
write_derived_series(series, dying(), sys.argv[2], DERIVATION)
"""


def test_killed_and_run_again_gives_the_same_bytes(tmp_path: Path) -> None:
    series = only(write_stack(tmp_path / "in", EVEN))
    undisturbed = write_derived_series(series, sharpened(series), tmp_path / "a" / "out", DERIVATION)
    arguments = [str(tmp_path / "in"), str(tmp_path / "b" / "out"), str(Path(__file__).parent)]
    assert subprocess.run([sys.executable, "-c", _KILLED, *arguments]).returncode == -signal.SIGKILL
    assert not (tmp_path / "b" / "out").exists()
    assert find_series(tmp_path / "b").series == ()
    again = write_derived_series(series, sharpened(series), tmp_path / "b" / "out", DERIVATION)
    assert same_files(undisturbed.directory, again.directory)
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["out"]
