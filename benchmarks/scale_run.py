"""One run of `standardize` as the command line makes it, that tells the processor time of each of its processes.

python -m benchmarks.scale_run SOURCE OUTPUT MODEL ENGINE ADDRESS    # ENGINE: workers, a share I/N, or "ray"
"""

from __future__ import annotations

import json
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from concordct.pipelines.engines import Engine, Local, Ray, Share, each, ready

if TYPE_CHECKING:
    from concordct.methods.models import Model
    from concordct.pipelines.records import ScanJob


def timed(job: ScanJob, *, model: Model) -> tuple[int, float, str]:
    """Standardize one scan: the process that did it, its processor seconds from its start to now, and why it failed."""
    from concordct.pipelines.standardize import Settings, standardize_scan

    try:
        standardize_scan(job, model, Settings(check="off"))
    except Exception as error:
        return os.getpid(), time.process_time(), f"{type(error).__name__}: {error}"
    return os.getpid(), time.process_time(), ""


def lead(source: Path, output: Path, model: Path, engine: Engine) -> dict[str, Any]:
    """The run, with the processor time of its processes and how long the headers took by the clock."""
    begun = time.perf_counter()
    with ready(engine, "concordct.pipelines.standardize"):
        from concordct.methods.models import load_model
        from concordct.pipelines.standardize import Settings, plan

        loaded = load_model(model)
        imported = time.perf_counter()
        planned = plan(source, output, loaded, Settings(check="off"), engine=engine)
        found = time.perf_counter()
        spent: dict[int, float] = {}
        failed = []
        work = partial(timed, model=loaded)
        for _, (pid, seconds, reason) in each(work, planned.jobs, lambda _, reason: (0, 0.0, reason), engine=engine):
            spent[pid] = max(seconds, spent.get(pid, 0.0))
            failed += [reason] if reason else []
    own = spent.pop(os.getpid(), None)
    spent.pop(0, None)
    return {
        "lead": time.process_time() if own is None else own,
        "workers": list(spent.values()),
        "failed": failed,
        "start": imported - begun,
        "headers": found - imported,
    }


def main() -> None:
    """Run and print one line of JSON."""
    source, output, model, engine, address = sys.argv[1:]
    chosen: Engine
    if "/" in engine:
        chosen = Share(*map(int, engine.split("/")))
    else:
        chosen = Ray(address, workers=2, memory_gb=0.5) if engine == "ray" else Local(int(engine))
    print(json.dumps(lead(Path(source), Path(output), Path(model), chosen)))


if __name__ == "__main__":
    main()
