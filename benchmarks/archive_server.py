"""A local S3-compatible server, and tables of the archive's schema: for tests and for `benchmarks.idc`."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import duckdb
import idc_index_data
from moto.server import ThreadedMotoServer

BUCKET = "idc-open-data"
KINDS = {"STRING": "varchar", "FLOAT": "double", "INTEGER": "bigint"}


def write_table(path: Path, name: str, rows: Sequence[Mapping[str, Any]]) -> Path:
    """A table of the archive in the schema that `idc-index-data` ships; columns that a row lacks are empty."""
    columns = json.loads((Path(idc_index_data.__file__).parent / f"{name}_schema.json").read_text())["columns"]
    base = duckdb.connect()
    declared = [f"{c['name']} {KINDS[c['type']]}{'[]' if c['mode'] == 'REPEATED' else ''}" for c in columns]
    base.execute(f"create table t ({', '.join(declared)})")
    for row in rows:
        base.execute(f"insert into t ({', '.join(row)}) values ({', '.join('?' * len(row))})", list(row.values()))
    path.unlink(missing_ok=True)
    base.execute(f"copy t to '{path}' (format parquet)")
    return path


def put_series(client: Any, prefix: str, folder: Path) -> None:
    """Objects of a series under its own prefix, readable by everyone."""
    for number, path in enumerate(sorted(folder.glob("*.dcm"))):
        client.put_object(Bucket=BUCKET, Key=f"{prefix}/{number:04d}.dcm", Body=path.read_bytes(), ACL="public-read")


@contextmanager
def s3_server() -> Iterator[tuple[str, Any]]:
    """(endpoint, client) of a local S3-compatible server."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        endpoint = f"http://{host}:{port}"
        keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
        yield endpoint, boto3.client("s3", endpoint_url=endpoint, **keys)
    finally:
        server.stop()
