"""Engines: processes, shares of an array and a real Ray cluster give the same bytes, and what dies is done again."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from concordct.errors import ConcordctError
from concordct.judging.case import cases_of_manifest
from concordct.methods.models import Model, load_model
from concordct.methods.slabs import SLAB_SLICES
from concordct.pipelines.calibrate import calibrate_pairs, pairs_of_paths
from concordct.pipelines.engines import HERE, Engine, Local, Ray, Share, each, ready, share_of
from concordct.pipelines.evaluate import evaluate
from concordct.pipelines.features import FeatureJob, extract_features
from concordct.pipelines.measure import Choice, jobs_of_path, measure_images
from concordct.pipelines.pyradiomics_batch import run_batch
from concordct.pipelines.records import Record
from concordct.pipelines.standardize import RECORDS, Settings, plan, run
from concordct.volumes import find
from concordct.volumes.files import open_volume_file, write_volume_file
from concordct.volumes.find import find_series
from concordct.volumes.new_series import SimulatedScan, write_new_series
from engine_work import square_or_die, square_or_die_always
from learning import cohort, pair

SETTINGS = Settings(seed=3, check="off")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and a tree of five small scans."""
    place = tmp_path_factory.mktemp("engines")
    for name, volume in zip(("soft", "sharp"), pair(0, size=96), strict=True):
        write_volume_file(place / f"{name}.nii.gz", volume)
    calibrate_pairs(pairs_of_paths(place / "soft.nii.gz", place / "sharp.nii.gz"), place / "model", method="spectral")
    for number in range(5):
        (place / "in" / f"p{number}").mkdir(parents=True)
        write_volume_file(place / "in" / f"p{number}" / "scan.nii.gz", pair(number + 1)[0])
    return place


def standardized(tree: Path, output: Path, *engines: Engine) -> dict[str, bytes]:
    """Every file that runs of these engines leave."""
    model: Model = load_model(tree / "model")
    for engine in engines:
        records = run(plan(tree / "in", output, model, SETTINGS), model, output, SETTINGS, engine=engine)
        assert all(record.status == "done" for record in records), records
    return {str(path.relative_to(output)): path.read_bytes() for path in sorted(output.rglob("*")) if path.is_file()}


def test_shares_and_processes_leave_what_one_process_leaves(tree: Path, tmp_path: Path) -> None:
    whole = standardized(tree, tmp_path / "whole", HERE)
    assert RECORDS in whole
    first = standardized(tree, tmp_path / "shares", Share(2, 3))
    assert RECORDS not in first
    assert len(first) < len(whole)
    assert standardized(tree, tmp_path / "shares", Share(1, 3), Share(3, 3, Local(2))) == whole
    # A share beside a whole run: each finds what the other left.
    assert standardized(tree, tmp_path / "mixed", Share(1, 2), Local(2)) == whole


def test_a_single_scan_is_one_share_s_alone(tree: Path, tmp_path: Path) -> None:
    model = load_model(tree / "model")
    planned = plan(tree / "in" / "p0", tmp_path / "out", model, SETTINGS)
    assert run(planned, model, tmp_path / "out", SETTINGS, engine=Share(2, 2)) == ()
    assert len(run(planned, model, tmp_path / "out", SETTINGS, engine=Share(1, 2))) == 1


def test_slabs_of_one_long_scan_are_shared(tree: Path, tmp_path: Path) -> None:
    soft = pair(7, depth=SLAB_SLICES * 2 + 3)[0]
    soft = dataclasses.replace(soft, hu=np.clip(soft.hu, -1024, 3071), kernel="soft")
    write_volume_file(tmp_path / "long.nii.gz", soft)
    write_new_series(soft, tmp_path / "long", SimulatedScan("engines", "long", "soft", 1, 120.0, 100.0))
    model = load_model(tree / "model")
    for name in ("long.nii.gz", "long"):
        left = []
        for engine in (HERE, Local(2)):
            output = tmp_path / f"by-{engine.workers}" / name
            done: list[int] = []
            planned = plan(tmp_path / name, output, model, SETTINGS)
            report = partial(_append, done)
            (record,) = run(planned, model, output, SETTINGS, engine=engine, progress=report)
            assert record.status == "done", record
            # Slabs came from the pool one by one, in order.
            assert done[:3] == [SLAB_SLICES, SLAB_SLICES * 2, SLAB_SLICES * 2 + 3]
            left.append({one.name: one.read_bytes() for one in sorted(output.parent.rglob("*")) if one.is_file()})
            shutil.rmtree(output.parent)
        assert left[0] == left[1]
        assert len(left[0]) > 1


def _append(done: list[int], _: int, count: int, __: int) -> None:
    done.append(count)


def test_features_are_joined_by_the_last_share(tmp_path: Path) -> None:
    jobs = []
    for k in range(3):
        small = dataclasses.replace(pair(k)[0], hu=pair(k)[0].hu[:2, :24, :24])
        jobs.append(FeatureJob(f"p{k}", f"p{k}", write_volume_file(tmp_path / f"{k}.nii.gz", small), None))
    extract_features(jobs, "pyradiomics-default", tmp_path / "whole.csv")
    results = extract_features(jobs, "pyradiomics-default", tmp_path / "shared.csv", engine=Share(2, 2))
    assert [result.image for result in results] == ["p1"]
    assert not (tmp_path / "shared.csv").exists()
    extract_features(jobs, "pyradiomics-default", tmp_path / "shared.csv", engine=Share(1, 2))
    assert (tmp_path / "shared.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_headers_are_read_by_the_workers_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(2):  # two series of one folder
        soft = dataclasses.replace(pair(number, size=96)[0], kernel="soft")
        soft = dataclasses.replace(soft, hu=np.clip(soft.hu, -1024, 3071))
        write_new_series(soft, tmp_path / str(number), SimulatedScan("p", "p", f"s{number}", number, 120.0, 100.0))
        (tmp_path / "in").mkdir(exist_ok=True)
        for path in (tmp_path / str(number)).glob("*.dcm"):
            path.rename(tmp_path / "in" / f"{number}-{path.name}")
    uids = [series.uid for series in find_series(tmp_path / "in").series]
    measured = measure_images(jobs_of_path(tmp_path / "in"), tmp_path / "here.csv", choice=Choice(("noise",)))
    assert [one.status for one in measured] == ["done", "done"], measured

    def never(path: Path) -> None:
        raise AssertionError(path)

    monkeypatch.setattr("concordct.volumes.find.CHUNK", 2)
    monkeypatch.setattr("concordct.volumes.find.slice_headers", never)  # of this process, not of its workers
    with ready(Local(2), "concordct.pipelines.measure"):
        jobs = jobs_of_path(tmp_path / "in", engine=Local(2))
        measure_images(jobs, tmp_path / "out.csv", choice=Choice(("noise",)), engine=Local(2))
        ends = write_volume_file(
            tmp_path / "roi.nii.gz", dataclasses.replace(soft, hu=(soft.hu > 0).astype(np.float32))
        )
        images = [FeatureJob(uid, "p", tmp_path / "in", ends, series=uid) for uid in uids]
        found = extract_features(images, "pyradiomics-default", tmp_path / "features.csv", engine=Local(2))
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "here.csv").read_bytes()
    assert [one.status for one in found] == ["done", "done"], found


def test_shares_leave_each_other_the_headers_that_they_read(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        soft = dataclasses.replace(pair(number, size=96)[0], kernel="soft")
        soft = dataclasses.replace(soft, hu=np.clip(soft.hu, -1024, 3071))
        place = SimulatedScan(f"p{number}", "p", f"s{number}", number, 120.0, 100.0)
        write_new_series(soft, tmp_path / "in" / str(number), place)
    model, out = load_model(tree / "model"), tmp_path / "out"
    whole = plan(tmp_path / "in", out, model, SETTINGS)
    monkeypatch.setattr("concordct.volumes.find.CHUNK", 2)
    monkeypatch.setattr("concordct.pipelines.headers.TOGETHER", 2)
    read: list[str] = []
    real = find.slice_headers
    monkeypatch.setattr(find, "slice_headers", lambda path: read.append(str(path)) or real(path))
    planned = [plan(tmp_path / "in", out, model, SETTINGS, engine=Share(index, 2)) for index in (2, 1)]
    assert len(read) == len(set(read)) == 9
    read.clear()
    os.utime(tmp_path / "in" / "2" / "00001.dcm")
    planned.append(plan(tmp_path / "in", out, model, SETTINGS, engine=Share(1, 2)))
    assert 0 < len(read) <= 4  # those that lie with the one that changed
    for one in planned:
        assert [job.scan.key for job in one.jobs] == [job.scan.key for job in whole.jobs]
        assert [job.scan.slices for job in one.jobs[:2]] == [job.scan.slices for job in whole.jobs[:2]]
    for index in (2, 1):
        records = run(planned[-1], model, out, SETTINGS, engine=Share(index, 2))
    assert [record.status for record in records] == ["done"] * 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_a_failure_of_one_share_is_in_what_the_last_writes(tree: Path, tmp_path: Path) -> None:
    shutil.copytree(tree / "in", tmp_path / "in")
    broken = tmp_path / "in" / "p1" / "scan.nii.gz"
    hu = pair(2)[0].hu.copy()
    write_volume_file(broken, dataclasses.replace(pair(2)[0], hu=hu + 50_000), overwrite=True)
    model, out = load_model(tree / "model"), tmp_path / "out"
    for share in (Share(2, 2), Share(1, 2)):
        records = run(plan(tmp_path / "in", out, model, SETTINGS), model, out, SETTINGS, engine=share)
    assert [record.status for record in records] == ["done", "failed", "done", "done", "done"]
    assert (out / RECORDS).read_text().count('"failed"') == 1
    assert not list(out.glob(".*"))


def test_two_runs_into_one_file_leave_one_whole_result(tree: Path, tmp_path: Path) -> None:
    model = load_model(tree / "model")

    def standardize(seed: int, output: Path) -> Record:
        settings = Settings(seed=seed, check="off")
        return run(plan(tree / "in/p0/scan.nii.gz", output, model, settings), model, output, settings)[0]

    output = tmp_path / "out.nii.gz"
    with ThreadPoolExecutor(4) as pool:
        records = list(pool.map(lambda seed: standardize(seed, output), (1, 2, 1, 2)))
    # The seed that came first wins; the other is told that another's result stands there.
    assert sorted(record.status for record in records) == ["done", "done", "failed", "failed"]
    reasons = [record.reason for record in records if record.reason]
    assert all("holds the result of another source, model, setting or version" in reason for reason in reasons)
    seed = json.loads(output.with_name("out.nii.gz.json").read_text())["derivation"]["settings"]["seed"]
    standardize(seed, tmp_path / "alone.nii.gz")
    assert output.read_bytes() == (tmp_path / "alone.nii.gz").read_bytes()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_cases_are_judged_on_any_engine(tmp_path: Path) -> None:
    cases = cases_of_manifest(cohort(tmp_path, 3), split=None)
    calibrate_pairs(
        pairs_of_paths(tmp_path / "source0.nii.gz", tmp_path / "target0.nii.gz"), tmp_path / "model", method="spectral"
    )
    options = {"model": load_model(tmp_path / "model"), "endpoints": False, "mode": "mean"}
    assert evaluate(cases, tmp_path / "shares", engine=Share(2, 2), **options) is None
    assert not (tmp_path / "shares").exists()
    shared = evaluate(cases, tmp_path / "shares", engine=Share(1, 2, Local(2)), **options)
    whole = evaluate(cases, tmp_path / "whole", **options)
    assert whole is not None
    assert shared == whole
    assert whole["inputs"]["cases"] == 3
    assert [(tmp_path / name / "report.html").read_bytes() for name in ("shares", "whole")].count(
        (tmp_path / "whole" / "report.html").read_bytes()
    ) == 2
    assert not list(tmp_path.glob(".*"))
    with pytest.raises(ConcordctError, match="output exists"):
        evaluate(cases, tmp_path / "whole", **options)


def test_a_pyradiomics_batch_is_joined_by_the_last_share(tree: Path, tmp_path: Path) -> None:
    lines = ["Image,Mask,who"]
    for number in range(3):
        image = tree / "in" / f"p{number}" / "scan.nii.gz"
        volume = open_volume_file(image).read()
        mask = volume.with_hu((volume.hu > 0).astype(np.float32))
        write_volume_file(tmp_path / f"m{number}.nii.gz", mask)
        lines.append(f"{image},m{number}.nii.gz,p{number}")
    lines.append("none.nii.gz,m0.nii.gz,nobody")
    (tmp_path / "cases.csv").write_text("\n".join(lines) + "\n")
    whole = run_batch(tmp_path / "cases.csv", tmp_path / "whole.csv")
    assert [bool(result.reason) for result in whole] == [False, False, False, True]
    assert len(run_batch(tmp_path / "cases.csv", tmp_path / "shared.csv", engine=Share(2, 2))) == 2
    assert not (tmp_path / "shared.csv").exists()
    run_batch(tmp_path / "cases.csv", tmp_path / "shared.csv", engine=Share(1, 2))
    assert (tmp_path / "shared.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_every_item_is_in_one_share() -> None:
    items = list(range(10))
    shares = [share_of(Share(k, 4), items) for k in (1, 2, 3, 4)]
    assert sorted(index for share in shares for index in share) == items
    with pytest.raises(ConcordctError, match="expected a share from 1/4 to 4/4, found 5"):
        Share(5, 4)


def test_a_killed_process_is_replaced_and_what_it_did_is_done_again(tmp_path: Path) -> None:
    items = [(number, str(tmp_path / "died")) for number in range(6)]
    found = dict(each(square_or_die, items, lambda item, reason: reason, engine=Local(2)))
    assert (tmp_path / "died").exists()
    assert found == {number: str(number**2) for number in range(6)}
    # What kills again is told; the others are done.
    found = dict(each(square_or_die_always, range(6), lambda item, reason: reason, engine=Local(2)))
    assert "was killed 2 times" in found.pop(2)
    assert found == {number: str(number**2) for number in (0, 1, 3, 4, 5)}


def test_processes_that_never_start_end_the_run_in_one_line(tmp_path: Path) -> None:
    script = tmp_path / "unguarded.py"
    script.write_text(
        "from concordct.pipelines.engines import Local, each\n"
        "print(dict(each(abs, [1, 2], lambda item, reason: reason, engine=Local(2))))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "found 9 that ended before their work" in done.stderr


def test_processes_that_stand_ready_read_the_headers_too(tree: Path, tmp_path: Path) -> None:
    soft = dataclasses.replace(pair(7, depth=30, size=24)[0], kernel="soft")
    soft = dataclasses.replace(soft, hu=np.clip(soft.hu, -1024, 3071))
    for name in ("a", "b"):
        write_new_series(soft, tmp_path / "in" / name, SimulatedScan("ready", name, "soft", 1, 120.0, 100.0))
    (tmp_path / "in" / "b" / "notes.txt").write_text("no scan")
    model = load_model(tree / "model")
    alone = plan(tmp_path / "in", tmp_path / "out", model, SETTINGS)
    with ready(Local(2)):
        shared = plan(tmp_path / "in", tmp_path / "out", model, SETTINGS, engine=Local(2))
        assert repr(shared) == repr(alone)
        assert len(run(shared, model, tmp_path / "out", SETTINGS, engine=Local(2))) == 2
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_a_ray_cluster_of_two_nodes_gives_the_same_bytes_though_an_actor_dies(tree: Path, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    paths = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), paths])
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        items = [(number, str(tmp_path / "died")) for number in range(5)]
        engine = Ray(cluster.address, workers=2, memory_gb=0.2)
        found = dict(each(square_or_die, items, lambda item, reason: reason, engine=engine))
        # The actor that died was replaced, and its item done again.
        assert found == {number: str(number**2) for number in range(5)}
        assert standardized(tree, tmp_path / "ray", engine) == standardized(tree, tmp_path / "whole", HERE)
    finally:
        os.environ["PYTHONPATH"] = paths
        ray.shutdown()
        cluster.shutdown()
