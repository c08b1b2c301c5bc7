"""A small archive of our own: tables of the shipped schema, objects on an S3-compatible server."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

BUCKET = "idc-open-data"
KINDS = {"STRING": "varchar", "FLOAT": "double", "INTEGER": "bigint"}


def write_table(path: Path, name: str, rows: Sequence[Mapping[str, Any]]) -> Path:
    """A table of the archive in the schema that the package ships; columns that a row lacks are empty."""
    duckdb = pytest.importorskip("duckdb")
    data = pytest.importorskip("idc_index_data")
    columns = json.loads((Path(data.__file__).parent / f"{name}_schema.json").read_text())["columns"]
    base = duckdb.connect()
    base.execute(
        "create table t ({})".format(
            ", ".join(f"{c['name']} {KINDS[c['type']]}{'[]' if c['mode'] == 'REPEATED' else ''}" for c in columns)
        )
    )
    for row in rows:
        base.execute(f"insert into t ({', '.join(row)}) values ({', '.join('?' * len(row))})", list(row.values()))
    base.execute(f"copy t to '{path}' (format parquet)")
    return path


def put_series(client: Any, uuid: str, folder: Path) -> tuple[str, float, int]:
    """Objects of a series under its own prefix, readable by everyone: (URL, MB, number)."""
    files = sorted(folder.glob("*.dcm"))
    for number, path in enumerate(files):
        client.put_object(Bucket=BUCKET, Key=f"{uuid}/{number:04d}.dcm", Body=path.read_bytes(), ACL="public-read")
    return f"s3://{BUCKET}/{uuid}/*", sum(path.stat().st_size for path in files) / 1e6, len(files)
