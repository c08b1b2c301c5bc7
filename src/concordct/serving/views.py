"""What the page shows, as plain data: no name, no number and no free text of a header."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from concordct.errors import ConcordctError
from concordct.report.evaluation import ShownStack, write_evaluation_report
from concordct.report.voxels import evenly, to_int16
from concordct.serving.ledger import Entry
from concordct.volumes.find import find_series

COLUMNS = ("Series", "State", "Rule", "Kernel", "Objects", "Self-check", "Deliveries", "Since", "")
#: The page lists so many series, the latest first.
SHOWN = 200
#: The viewer holds so many slices of a series, evenly spaced.
VIEWED = 24
#: Throughput is that of the last hour, s.
_HOUR = 3600.0
_one_at_a_time = threading.Lock()


def state(service: Any) -> dict[str, Any]:
    """Everything on the page that changes."""
    queue = service.queue
    entries = queue.entries(limit=SHOWN)
    now = time.time()
    sent = [entry for entry in entries if entry.state == "sent" and now - (entry.ended_at or 0) < _HOUR]
    seconds = [entry.seconds for entry in entries if entry.seconds is not None]
    return {
        "counts": queue.counts(),
        "hour": {"series": len(sent), "objects": sum(entry.objects for entry in sent)},
        "seconds": round(float(np.median(seconds)), 1) if seconds else None,
        "used_gb": round(queue.bytes_used() / 1e9, 2),
        "quota_gb": service.config.store.quota_gb,
        "healthy": service.healthy(),
        "series": [_row(service, entry) for entry in entries],
    }


def _row(service: Any, entry: Entry) -> dict[str, Any]:
    check = entry.made.get("self_check")
    deliveries = [
        {"to": one.destination, "state": one.state, "tries": one.tries, "reason": one.reason}
        for one in service.queue.deliveries(entry.id)
    ]
    return {
        "id": entry.id,
        "uid": entry.uid,
        "state": entry.state,
        "reason": entry.reason,
        "rule": entry.rule,
        "kernel": entry.facts.get("kernel"),
        "objects": entry.objects,
        "seconds": None if entry.seconds is None else round(entry.seconds, 1),
        "check": None if check is None else {"failed": check["failed"], "lines": check["lines"]},
        "notes": list(entry.made.get("notes", ())),
        "deliveries": deliveries,
        "since": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry.last_at)),
        "view": bool(entry.made.get("results")) and not entry.removed,
        "again": entry.state != "running" and not entry.removed,
    }


def viewer(service: Any, series: str) -> str | None:
    """Before and after of a series as the report's own page; None where there is no result."""
    entry = service.queue.entry(series)
    if entry is None or entry.removed or not entry.made.get("results"):
        return None
    path = service.inbox.views / f"{series}.html"
    results = service.inbox.results / series / entry.made["results"][0]
    with _one_at_a_time:
        if not path.exists() or path.stat().st_mtime < results.stat().st_mtime:
            try:
                _write(path, service.inbox.folder(series), results, entry)
            except (ConcordctError, OSError):
                return None
        return path.read_text(encoding="utf-8")


def _write(path: Path, source: Path, results: Path, entry: Entry) -> None:
    after = find_series(results).series[0]
    depth = after.shape[0]
    before = next(one for one in find_series(source).series if one.shape == after.shape)
    chosen = evenly(min(VIEWED, depth), depth)
    stacks = [
        ShownStack(name, np.concatenate([to_int16(one.stored_hu(index, index + 1)) for index in chosen]))
        for name, one in (("source", before), ("standardized", after))
    ]
    check = entry.made.get("self_check") or {}
    warnings = list(check.get("problems", ())) + list(entry.made.get("notes", ()))
    if len(chosen) < depth:
        warnings.append(f"{len(chosen)} of {depth} slices are shown, evenly spaced")
    write_evaluation_report(
        path,
        results={"warnings": warnings, "self_check": {"found": list(check.get("lines", ()))}},
        stacks=stacks,
        spacing_mm=after.spacing_mm,
        slice_positions_mm=[after.slices[index].position_mm for index in chosen],
        curves=(),
        title=f"Series {entry.id}",
    )


def policy_of(page: str) -> str:
    """The policy that a report states for itself, by the hashes of its scripts, for the header of the answer, too."""
    found = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page)
    return (found.group(1) if found else "default-src 'none'") + "; frame-ancestors 'none'"
