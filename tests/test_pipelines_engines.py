"""Engines: processes, shares of an array and a real Ray cluster give the same bytes, and what dies is done again."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from concordct.errors import ConcordctError
from concordct.methods.models import Model, load_model
from concordct.pipelines.calibrate import calibrate_pairs, pairs_of_paths
from concordct.pipelines.engines import HERE, Engine, Local, Ray, Share, each, share_of
from concordct.pipelines.features import FeatureJob, extract_features
from concordct.pipelines.standardize import RECORDS, Settings, plan, run
from concordct.volumes.files import write_volume_file
from learning import pair

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


def test_features_are_joined_by_the_last_share(tree: Path, tmp_path: Path) -> None:
    jobs = [FeatureJob(f"p{k}", f"p{k}", tree / "in" / f"p{k}" / "scan.nii.gz", None) for k in range(3)]
    extract_features(jobs, "pyradiomics-default", tmp_path / "whole.csv")
    results = extract_features(jobs, "pyradiomics-default", tmp_path / "shared.csv", engine=Share(2, 2))
    assert [result.image for result in results] == ["p1"]
    assert not (tmp_path / "shared.csv").exists()
    extract_features(jobs, "pyradiomics-default", tmp_path / "shared.csv", engine=Share(1, 2))
    assert (tmp_path / "shared.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_every_item_is_in_one_share() -> None:
    items = list(range(10))
    shares = [share_of(Share(k, 4), items) for k in (1, 2, 3, 4)]
    assert sorted(index for share in shares for index in share) == items
    with pytest.raises(ConcordctError, match="expected a share from 1/4 to 4/4, found 5"):
        Share(5, 4)


def _square_or_die(item: tuple[int, str]) -> str:
    number, place = item
    if number == 2 and not os.path.exists(place):
        Path(place).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return str(number**2)


def test_a_killed_process_costs_its_items_and_not_the_run(tmp_path: Path) -> None:
    items = [(number, str(tmp_path / "died")) for number in range(4)]
    found = dict(each(_square_or_die, items, lambda item, reason: reason, engine=Local(2)))
    assert len(found) == 4
    assert "was killed" in found[2]


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
        found = dict(each(_square_or_die, items, lambda item, reason: reason, engine=engine))
        # The actor that died was replaced, and its item done again.
        assert found == {number: str(number**2) for number in range(5)}
        assert standardized(tree, tmp_path / "ray", engine) == standardized(tree, tmp_path / "whole", HERE)
    finally:
        os.environ["PYTHONPATH"] = paths
        ray.shutdown()
        cluster.shutdown()
