"""One place judges: each scan is opened once, stored by one rule; a method or endpoint is one file and a line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from concordct.agreement.bootstrap import draw_subjects, percentiles
from concordct.endpoints.catalogue import ENDPOINTS
from concordct.endpoints.endpoint import Column, Endpoint
from concordct.errors import ConcordctError
from concordct.judging import case as cases
from concordct.judging.case import cases_of_manifest, open_pair
from concordct.judging.stages import stored
from concordct.methods import catalogue
from concordct.methods.method import Method
from concordct.methods.models import load_model
from concordct.pipelines.compare import compare
from concordct.pipelines.measure import Choice, jobs_of_path, measure_images
from concordct.training.bundle import Bundle, save_bundle
from concordct.volumes import scans
from concordct.volumes.files import VolumeFile, write_volume_file
from concordct.volumes.manifest import read_manifest, write_manifest
from concordct.volumes.volume import Volume
from learning import cohort, pair


class Shift:
    """A toy method: some HU more."""

    context_slices = 0

    def __init__(self, by_hu: float) -> None:
        self.by_hu = by_hu
        self.settings = {"method": "shift", "by_hu": by_hu}

    def __call__(self, volume: Volume, *, generator: object) -> Volume:
        return volume.with_hu(volume.hu + self.by_hu)


@pytest.fixture
def shift(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The toy method as a module of its own and one line in the catalogue; a model of it."""
    module = ModuleType("concordct.methods.paired.shift")
    module.ENTRY = Method("Shift", lambda bundle, mode: Shift(float(bundle.tensors["by_hu"][0])))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(catalogue.CATALOGUE, "shift", catalogue.Place("paired.shift", "train"))
    bundle = Bundle({"by_hu": np.array([5000.0])}, {"method": "shift", "info": {}})
    save_bundle(bundle, tmp_path / "shift", card="")
    return tmp_path / "shift"


def test_a_method_is_one_file_and_one_line(shift: Path) -> None:
    source, _ = pair(0)
    made = load_model(shift).standardizer(mode="mean")(source, generator=None)  # type: ignore[arg-type]
    assert np.array_equal(made.hu, source.hu + 5000)
    with pytest.raises(ConcordctError, match="expected sampling options of none, found steps"):
        load_model(shift).standardizer(mode="mean", sampling={"steps": 3})


def test_compare_opens_each_scan_once(shift: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = cohort(tmp_path / "cohort", count=2)
    opened: list[Path] = []
    read: list[str] = []
    real: Callable[..., object] = scans.one_scan
    monkeypatch.setattr(scans, "one_scan", lambda path, **which: (opened.append(path), real(path, **which))[1])
    whole = VolumeFile.read

    def counted(self: VolumeFile, start: int = 0, stop: int | None = None, **options: object) -> Volume:
        read.append(f"{self.path.name} {start} {stop}")
        return whole(self, start, stop, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(VolumeFile, "read", counted)
    compare(manifest, {"one": shift, "two": shift}, tmp_path / "out", split="test", preset="pyradiomics-default")
    assert sorted(path.name for path in opened) == ["source1.nii.gz", "target1.nii.gz"]
    assert sum(one == "target1.nii.gz 0 None" for one in read) == 1


def test_what_is_judged_does_not_follow_from_the_target(shift: Path, tmp_path: Path) -> None:
    """Metal in the target alone must not widen what a method's result may hold."""
    manifest = cohort(tmp_path / "cohort", count=2)
    (row,) = (row for row in read_manifest(manifest) if row.split == "test")
    assert row.target is not None
    metal = cases_of_manifest(manifest, split="test")[0].target.read()
    metal.hu[0, 30, 30] = 4000
    write_volume_file(tmp_path / "metal.nii.gz", metal)
    other = write_manifest(
        tmp_path / "metal.csv",
        [row.model_copy(update={"target": tmp_path / "metal.nii.gz"})],
    )
    highest = []
    for name, pairs in (("plain", manifest), ("metal", other)):
        compare(pairs, {"shift": shift}, tmp_path / name, preset="pyradiomics-default")
        kept = [np.load(path) for path in (tmp_path / f"{name}.run").glob("*.npz")]
        highest.append(sorted(int(one["image"].max()) for one in kept))
    # Target, input and result: only the target's own maximum may differ.
    assert 3071 in highest[0]
    assert 3071 in highest[1]
    assert max(highest[1]) == 4000


def test_stored_is_whole_and_inside_the_range_of_each_source_slice() -> None:
    source = np.array([[[-1024.0, 100.0]], [[-2000.0, 4000.0]]], np.float32)
    made = np.array([[[-1500.4, 5000.0]], [[-1500.4, 5000.0]]], np.float32)
    assert stored(made, source).tolist() == [[[-1024.0, 3071.0]], [[-1500.0, 4000.0]]]
    assert stored(made, source, (-1100.0, 3071.0)).tolist() == [[[-1100.0, 3071.0]], [[-1500.0, 4000.0]]]


def test_pairs_that_are_none_are_refused_and_masks_are_labels(tmp_path: Path) -> None:
    manifest = cohort(tmp_path / "cohort", count=2)
    case = cases_of_manifest(manifest, split="test")[0]
    labels = Volume(np.zeros(case.source.shape, np.float32), case.source.read().affine)
    labels.hu[:, 20:40, 20:30] = 3
    labels.hu[:, 20:40, 30:40] = 7
    write_volume_file(tmp_path / "mask.nii.gz", labels)
    masked = cases.Case(case.subject, case.source, None, case.target, tmp_path / "mask.nii.gz", case.name)
    found = open_pair(masked).labels
    assert found is not None
    assert len(np.unique(found)) == 3
    with pytest.raises(ConcordctError, match="expected pairs in split 'none', found none"):
        cases_of_manifest(manifest, split="none")


def test_the_bootstrap_draws_subjects_not_rows() -> None:
    """Ten rows of one subject are drawn together: the mean of a sample takes few values."""
    values = np.repeat([0.0, 1.0, 2.0], 10)
    subjects = [f"s{index // 10}" for index in range(30)]
    drawn = draw_subjects(subjects, repeats=500, generator=np.random.default_rng(0))
    means = drawn.sums(values) / drawn.sums(np.ones(30))
    assert drawn.counts.sum(axis=1).tolist() == [3.0] * 500
    assert set(np.round(np.unique(means) * 3, 6)) <= {0, 1, 2, 3, 4, 5, 6}
    assert percentiles(np.arange(101.0)) == (pytest.approx(2.5), pytest.approx(97.5))
    alone = draw_subjects(["one"] * 5, repeats=10, generator=np.random.default_rng(0))
    assert alone.counts.shape == (0, 1)
    assert np.isnan(percentiles(np.empty(0))).all()


def test_an_endpoint_is_one_file_and_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A toy endpoint, listed once, is measured by the verb's pipeline and stands in its table with its unit."""
    column = Column("median_hu", "HU", "Median")
    toy = Endpoint(
        "median", "Median", "nothing", (column,), lambda volume, _: {"median_hu": float(np.median(volume.hu))}
    )
    monkeypatch.setitem(ENDPOINTS, "median", toy)
    volume, _ = pair(0)
    write_volume_file(tmp_path / "scan.nii.gz", volume)
    measure_images(jobs_of_path(tmp_path / "scan.nii.gz"), tmp_path / "out.csv", choice=Choice(endpoints=("median",)))
    header, row = (line.split(",") for line in (tmp_path / "out.csv").read_text().splitlines())
    assert float(row[header.index("median_hu")]) == pytest.approx(float(np.median(volume.hu)))
