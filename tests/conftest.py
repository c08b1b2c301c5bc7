"""Fixtures that tests share. Real data is found through CONCORDCT_DATA or ../shared/data; tests skip without it."""

from __future__ import annotations

import os
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
