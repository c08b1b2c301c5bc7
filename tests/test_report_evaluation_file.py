"""The evaluation report as a file: it fetches nothing, is the same for the same input, and replaces nothing by half."""

from __future__ import annotations

import re

import numpy as np
import pytest

from concordct.errors import ConcordctError
from concordct.report.evaluation import ShownStack
from evaluation_report import POSITIONS, random_volumes, write


@pytest.fixture(scope="module")
def volumes() -> dict[str, np.ndarray]:
    return random_volumes()


def test_the_page_forbids_every_outside_source(tmp_path, volumes):
    report = tmp_path / "report.html"
    write(report, volumes)
    text = report.read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)[1]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r'(?:src|href)=["\'](?!#)', text)
    assert set(re.findall(r"https?://[^\"'\s<]+", text)) == set()


def test_same_input_same_bytes_and_nothing_left_beside(tmp_path, volumes):
    folder = tmp_path / "out"
    folder.mkdir()
    write(folder / "a.html", volumes)
    first = (folder / "a.html").read_bytes()
    write(folder / "a.html", volumes)
    assert (folder / "a.html").read_bytes() == first
    assert [p.name for p in folder.iterdir()] == ["a.html"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slice_positions_mm": POSITIONS[:-1]}, "found 8 slice positions, expected 9"),
        (
            {"stacks": [ShownStack("source", np.zeros((9, 4, 4))), ShownStack("target", np.zeros((9, 4, 5)))]},
            r"\(9, 4, 5\)",
        ),
        ({"stacks": [ShownStack("source", np.full((9, 4, 4), np.nan))]}, "not finite"),
        ({"stacks": [ShownStack("source", np.zeros((9, 4, 4)))] * 2}, "share a name"),
        ({"max_bytes": 10_000}, "expected at most 10000"),
    ],
)
def test_what_does_not_fit_is_refused_and_the_old_file_stays(tmp_path, volumes, change, message):
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(ConcordctError, match=message):
        write(path, volumes, **change)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
