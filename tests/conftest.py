"""Fixtures that tests share. Real data is found through CONCORDCT_DATA or ../shared/data; tests skip without it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


def _find_data() -> Path | None:
    candidates = [Path(os.environ["CONCORDCT_DATA"])] if "CONCORDCT_DATA" in os.environ else []
    candidates.append(Path(__file__).resolve().parents[1].parent / "shared" / "data")
    return next((path for path in candidates if path.is_dir()), None)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real CT data, or a skip that says where it was looked for."""
    data = _find_data()
    if data is None:
        pytest.skip("real CT data not found: set CONCORDCT_DATA or place ../shared/data beside the checkout")
    return data


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts an empty disk of a size such as "64k", or skips where it may not."""
    disk, mount = tmp_path / "disk", shutil.which("mount")

    def mounted(size: str) -> Path:
        if os.geteuid() != 0 or mount is None:
            pytest.skip("needs root to mount a small disk")
        disk.mkdir()
        call = [mount, "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
        if subprocess.run(call, capture_output=True).returncode:
            pytest.skip("no tmpfs may be mounted here")
        return disk

    yield mounted
    if disk.is_mount():
        subprocess.run(["umount", str(disk)], check=True)
