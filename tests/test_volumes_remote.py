"""Object storage: read and written through a real client and a local server, the same bytes as on disk."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from concordct.cli import main
from concordct.errors import ConcordctError
from concordct.pipelines.calibrate import calibrate_pairs, pairs_of_paths
from concordct.volumes.files import write_volume_file
from concordct.volumes.remote import sent, staged, url_of
from learning import pair
from s3_server import s3_server

BUCKET = "scans"


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    """A bucket of a server of its own, which clients of this process find by their environment."""
    pytest.importorskip("s3fs")
    with s3_server() as (endpoint, client), pytest.MonkeyPatch.context() as patch:
        for name, value in (("ENDPOINT_URL", endpoint), ("ACCESS_KEY_ID", "test"), ("SECRET_ACCESS_KEY", "test")):
            patch.setenv(f"AWS_{name}", value)
        client.create_bucket(Bucket=BUCKET)
        yield client


def objects(client: Any, prefix: str) -> dict[str, bytes]:
    listed = client.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", ())
    return {
        one["Key"].removeprefix(prefix): client.get_object(Bucket=BUCKET, Key=one["Key"])["Body"].read()
        for one in listed
    }


def standardize(*words: str | Path) -> int:
    return concordct("standardize", *words, "--check", "off", "--mode", "mean")


def concordct(*words: str | Path) -> int:
    line = ["concordct", *map(str, words)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", line)
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0)
    return 0


def test_a_tree_in_a_bucket_is_standardized_into_a_bucket(client: Any, tmp_path: Path) -> None:
    for name, volume in zip(("soft", "sharp"), pair(0, size=96), strict=True):
        write_volume_file(tmp_path / f"{name}.nii.gz", volume)
    pairs = pairs_of_paths(tmp_path / "soft.nii.gz", tmp_path / "sharp.nii.gz")
    calibrate_pairs(pairs, tmp_path / "model", method="spectral")
    for number in range(2):
        path = tmp_path / "in" / f"p{number}" / "scan.nii.gz"
        path.parent.mkdir(parents=True)
        write_volume_file(path, pair(number + 1)[0])
        client.put_object(Bucket=BUCKET, Key=f"in/p{number}/scan.nii.gz", Body=path.read_bytes())
    client.put_object(Bucket=BUCKET, Key="in/empty/", Body=b"")
    assert standardize(tmp_path / "in", "-m", tmp_path / "model", "-o", tmp_path / "out") == 0
    on_disk = {
        path.relative_to(tmp_path / "out").as_posix(): path.read_bytes()
        for path in (tmp_path / "out").rglob("*")
        if path.is_file()
    }
    words = (f"s3://{BUCKET}/in", "-m", tmp_path / "model", "-o", f"s3://{BUCKET}/out")
    assert standardize(*words) == 0
    assert objects(client, "out/") == on_disk
    # Again: what stands is found in the bucket and not sent again.
    written = {
        one["Key"]: one["LastModified"] for one in client.list_objects_v2(Bucket=BUCKET, Prefix="out/")["Contents"]
    }
    client.delete_object(Bucket=BUCKET, Key="out/p1/scan.nii.gz")
    assert standardize(*words) == 0
    assert objects(client, "out/") == on_disk
    after = {
        one["Key"]: one["LastModified"] for one in client.list_objects_v2(Bucket=BUCKET, Prefix="out/")["Contents"]
    }
    assert after["out/p0/scan.nii.gz"] == written["out/p0/scan.nii.gz"]
    assert standardize(f"s3://{BUCKET}/in", "-m", tmp_path / "model", "-o", f"s3://{BUCKET}/in/p0/out") == 2
    # A result of another setting is refused there as on disk.
    assert standardize(*words, "--seed", "9") in (1, 2)
    assert objects(client, "out/") == on_disk


def test_what_is_measured_in_a_bucket_is_what_is_measured_on_disk(client: Any, tmp_path: Path) -> None:
    (tmp_path / "exams" / "p").mkdir(parents=True)
    image = write_volume_file(tmp_path / "exams" / "p" / "scan.nii.gz", pair(5, depth=3, size=32)[0])
    client.put_object(Bucket=BUCKET, Key="exams/p/scan.nii.gz", Body=image.read_bytes())
    features = ("-p", "pyradiomics-default")
    noise = ("--endpoint", "noise")
    for verb, here, there, options in (
        ("features", image, "exams/p/scan.nii.gz", features),
        ("measure", tmp_path / "exams", "exams", noise),
    ):
        assert concordct(verb, here, "-o", tmp_path / f"{verb}.csv", *options) == 0
        assert concordct(verb, f"s3://{BUCKET}/{there}", "-o", f"s3://{BUCKET}/{verb}.csv", *options) == 0
        assert objects(client, f"{verb}.csv") == {"": (tmp_path / f"{verb}.csv").read_bytes()}


def test_what_fails_is_not_sent_and_what_is_missing_is_said(client: Any, tmp_path: Path) -> None:
    with pytest.raises(KeyError), sent(f"s3://{BUCKET}/half") as place:
        _write_and_fail(place)
    assert objects(client, "half") == {}
    with sent(f"s3://{BUCKET}/one.bin") as place:
        place.write_bytes(b"one")
    assert objects(client, "one.bin") == {"": b"one"}
    with staged(f"s3://{BUCKET}/one.bin") as place:
        assert place.read_bytes() == b"one"
    with (
        pytest.raises(ConcordctError, match="expected an object or a prefix with objects, found none"),
        staged(f"s3://{BUCKET}/nothing"),
    ):
        pass
    client.put_object(Bucket=BUCKET, Key="out-of/../../x", Body=b"x")
    with pytest.raises(ConcordctError, match="leads out of it"), staged(f"s3://{BUCKET}/out-of"):
        pass


def _write_and_fail(place: Path) -> None:
    place.mkdir()
    (place / "a.dcm").write_bytes(b"1")
    raise KeyError


def test_paths_and_urls_are_told_apart(tmp_path: Path) -> None:
    assert url_of(Path("s3://bucket/a/b/")) == "s3://bucket/a/b"
    assert url_of(tmp_path) is None
    assert url_of(Path("scans/a:b")) is None
