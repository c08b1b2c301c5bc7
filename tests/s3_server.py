"""A local S3-compatible server for tests: real sockets, real clients, nothing outside the machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


@contextmanager
def s3_server() -> Iterator[tuple[str, Any]]:
    """(endpoint URL, a boto3 client) of a server of its own; skips where moto, boto3 or duckdb is missing.

    Objects put with `ACL="public-read"` can be read without credentials.
    """
    for name in ("boto3", "moto.server", "duckdb", "idc_index_data"):
        pytest.importorskip(name)
    from benchmarks import archive_server

    with archive_server.s3_server() as running:
        yield running
