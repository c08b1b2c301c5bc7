"""One machine to a cluster: speed-up of two workers, memory, kills, and from these a model of what a cohort costs.

python -m benchmarks.scale                    # all parts, then docs/results/scale.md; what stands is not run again
python -m benchmarks.scale --parts speedup    # this one alone, and the page of what stands
python -m benchmarks.scale --anew             # what stands is measured again, as on a machine that is quiet now

Scans are simulated discs with noise; their content decides neither time nor memory. The part of each process is told by
its own processor time, which other work on the machine touches less than the clock.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results import ROOT, table, write_section
from concordct.methods.models import load_model
from concordct.pipelines.calibrate import calibrate_pairs, pairs_of_paths
from concordct.pipelines.engines import Engine, Local, Ray, Share, each
from concordct.pipelines.records import ScanJob
from concordct.pipelines.standardize import Settings, plan, standardize_scan
from concordct.volumes.new_series import SimulatedScan, write_new_series
from concordct.volumes.volume import Volume

PLACE = Path(os.environ.get("CONCORDCT_RUNS", ROOT / "runs")) / "scale"
#: The load of the issue, at a smaller matrix.
SERIES, MATRIX = 20, 128
#: Slices a series; fewer where the environment says so, and the page says how many.
SLICES = int(os.environ.get("CONCORDCT_SCALE_SLICES", "100"))
#: Of what asks for many slices or runs, not for large ones.
SMALL, KILLED_SERIES = 64, 8
RAY = "Ray, two nodes"
SETTINGS = Settings(check="off")
#: What the bar asks of two workers.
BAR = 1.8
#: Of the model of a cohort: series, slices a series, workers.
COHORT, COHORT_SLICES, WORKERS = (10, 100, 1_000, 10_000), 300, (1, 2, 4, 8, 32, 128)
LIMIT_SECONDS = 1_800


@dataclass(frozen=True)
class Run:
    """What a run took: the clock, processor seconds of the one that led and of each worker, the load when it ended."""

    wall_s: float
    lead_s: float
    workers_s: tuple[float, ...]
    load: float

    @property
    def critical_s(self) -> float:
        """Processor seconds one after another: the lead's, then the busiest worker's."""
        return self.lead_s + max(self.workers_s, default=0.0)


class Found:
    """Rows of a part, kept as they come: a run that is stopped goes on with those that are missing."""

    def __init__(self, part: str, *, anew: bool) -> None:
        self.path = PLACE / f"{part}.json"
        self.rows: dict[str, Any] = {} if anew or not self.path.exists() else json.loads(self.path.read_text())

    def add(self, name: str, row: dict[str, Any]) -> None:
        """Keep a row."""
        self.rows[name] = row
        print(name, row, flush=True)
        self.path.write_text(json.dumps(self.rows))


def scan(folder: Path, number: int, slices: int, matrix: int, *, sharp: bool = False) -> None:
    """A disc with noise, as a DICOM series."""
    y, x = np.mgrid[:matrix, :matrix] - (matrix - 1) / 2
    noise = np.random.default_rng(number).normal(0, 40, (slices, matrix, matrix))
    soft = (noise + np.roll(noise, 1, 1) + np.roll(noise, 1, 2)) / 3
    hu = np.where(np.hypot(y, x) < 0.4 * matrix, 40.0, -950.0) + (noise if sharp else soft)
    affine = np.eye(4)[[2, 1, 0, 3]] * (1.0, 0.8, 0.8, 1.0)
    kernel = "sharp" if sharp else "soft"
    volume = Volume(np.clip(np.rint(hu), -1024, 3071).astype(np.float32), affine, kernel=kernel, slice_thickness_mm=1.0)
    write_new_series(volume, folder, SimulatedScan(f"s{number}", f"s{number}", kernel, 1 + sharp, 120.0, 100.0))


def tree(name: str, series: int, slices: int, matrix: int) -> Path:
    """A tree of series, made once; and the model that they are standardized with."""
    place = PLACE / name
    if not place.exists():
        aside = PLACE / f"{name}.making"
        shutil.rmtree(aside, ignore_errors=True)
        for number in range(series):
            scan(aside / f"{number:03d}", number, slices, matrix)
        aside.rename(place)
    if not (PLACE / "model").exists():
        for sharp in (False, True):
            shutil.rmtree(PLACE / f"pair-{int(sharp)}", ignore_errors=True)
            scan(PLACE / f"pair-{int(sharp)}", 999, 3, 256, sharp=sharp)
        calibrate_pairs(pairs_of_paths(PLACE / "pair-0", PLACE / "pair-1"), PLACE / "model")
    return place


def timed(job: ScanJob, *, model: Path) -> tuple[int, float, str]:
    """Standardize one scan: the process that did it, its processor seconds from its start to now, and why it failed."""
    try:
        standardize_scan(job, load_model(model), SETTINGS)
    except Exception as error:
        return os.getpid(), time.process_time(), f"{type(error).__name__}: {error}"
    return os.getpid(), time.process_time(), ""


def lead(source: Path, output: Path, engine: Engine) -> dict[str, Any]:
    """A run as the command line makes it, with the processor time of each process; called in a process of its own."""
    planned = plan(source, output, load_model(PLACE / "model"), SETTINGS)
    spent: dict[int, float] = {}
    failed = []
    work = partial(timed, model=PLACE / "model")
    for _, (pid, seconds, reason) in each(work, planned.jobs, lambda _, reason: (0, 0.0, reason), engine=engine):
        spent[pid] = max(seconds, spent.get(pid, 0.0))
        failed += [reason] if reason else []
    own = spent.pop(os.getpid(), None)
    spent.pop(0, None)
    return {"lead": time.process_time() if own is None else own, "workers": list(spent.values()), "failed": failed}


def started(source: Path, output: Path, engine: str, *, address: str = "") -> subprocess.Popen[str]:
    """A run in a process of its own."""
    words = ["--lead", str(source), str(output), engine, address]
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.scale", *words], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )


def measured(source: Path, output: Path, engines: tuple[str, ...], *, address: str = "") -> Run:
    """Runs beside each other into one output, one for each engine."""
    shutil.rmtree(output, ignore_errors=True)
    begun = time.perf_counter()
    found = []
    for process in [started(source, output, engine, address=address) for engine in engines]:
        said, _ = process.communicate(timeout=LIMIT_SECONDS)
        if process.returncode:
            sys.exit(f"{engines}: expected exit code 0, found {process.returncode}")
        found.append(json.loads(said.splitlines()[-1]))
    if any(one["failed"] for one in found):
        sys.exit(f"{engines}: {found[0]['failed']}")
    wall = time.perf_counter() - begun
    if len(found) > 1:  # shares: each leads itself
        return Run(wall, 0.0, tuple(one["lead"] for one in found), os.getloadavg()[0])
    return Run(wall, found[0]["lead"], tuple(found[0]["workers"]), os.getloadavg()[0])


def digest(folder: Path) -> str:
    """Of every file's name and bytes; hidden ones are leftovers."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            found.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return found.hexdigest()


def speedup(found: Found) -> None:
    """One process, two, two shares, two actors of a Ray cluster of two nodes."""
    source = tree(f"twenty-{SLICES}", SERIES, SLICES, MATRIX)

    def measure(name: str, engines: tuple[str, ...], address: str = "") -> None:
        run = measured(source, PLACE / "out", engines, address=address)
        same = digest(PLACE / "out")
        shutil.rmtree(PLACE / "out")
        found.add(name, {"slices": SLICES, "digest": same, **asdict(run)})

    for name, engines in (("one process", ("1",)), ("two processes", ("2",)), ("two shares", ("1/2", "2/2"))):
        if name not in found.rows:
            measure(name, engines)
    if RAY not in found.rows:
        with cluster_of_two() as cluster:
            measure(RAY, ("ray",), cluster.address)


@contextmanager
def cluster_of_two() -> Iterator[Any]:
    """A real Ray cluster: a head and another node, one core each."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        yield cluster
    finally:
        cluster.shutdown()


#: Starts a command from a small process: the peak that the system tells of a child begins at its parent's.
_SMALL = """
import json, os, sys, time
begun = time.perf_counter()
child = os.spawnvp(os.P_NOWAIT, sys.argv[1], sys.argv[1:])
_, status, usage = os.wait4(child, 0)
wall = time.perf_counter() - begun
print(json.dumps([os.waitstatus_to_exitcode(status), wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024]))
"""


def command(*words: str | Path, prepare: Callable[[], None] | None = None) -> tuple[int, float, float, float]:
    """Exit code, seconds by the clock, processor seconds and peak memory (MiB) of one concordct command."""
    program = "import os; os.dup2(2, 1); from concordct.cli import main; main()"
    line = [sys.executable, "-c", _SMALL, sys.executable, "-c", program, *map(str, words)]
    found = subprocess.run(
        line, preexec_fn=prepare, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True
    )
    code, wall, cpu, peak = json.loads(found.stdout)
    return code, wall, cpu, peak


def memory(found: Found) -> None:
    """Peak memory by the number of series and by the number of slices, and of a giant's slabs on two processes."""
    for series in (1, 20, 200):
        if f"{series} series" not in found.rows:
            found.add(f"{series} series", _peak(tree(f"many-{series}", series, 4, SMALL)))
    wanted = ""
    for slices, more in ((28, ()), (300, ()), (1_500, ()), (1_500, ("-j", "2"))):
        name = f"{slices:,} slices{', ' + ' '.join(more) if more else ''}"
        if name not in found.rows:
            found.add(name, _peak(tree(f"long-{slices}", 1, slices, SMALL) / "000", *more))
        same = found.rows[name]["digest"] == wanted
        if more and not same:
            sys.exit(f"{name}: expected the bytes of one process, found others")
        wanted = found.rows[name]["digest"]


def _peak(source: Path, *more: str) -> dict[str, Any]:
    words = ("standardize", source, "-m", PLACE / "model", "-o", PLACE / "out", "--check", "off", *more)
    shutil.rmtree(PLACE / "out", ignore_errors=True)
    code, wall, cpu, peak = command(*words)
    if code:
        sys.exit(f"{source}: expected exit code 0, found {code}")
    same = digest(PLACE / "out")
    shutil.rmtree(PLACE / "out")
    return {"wall": wall, "cpu": cpu, "peak": peak, "digest": same}


def _killed_workers(source: Path, output: Path, wanted: str) -> dict[str, Any]:
    """SIGKILL to one of two workers as soon as a scan stands; then the same again, undisturbed."""
    process = started(source, output, "2")
    until = time.monotonic() + LIMIT_SECONDS
    while process.poll() is None and not any(output.glob("[0-9]*")) and time.monotonic() < until:
        time.sleep(0.02)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    # Spawned workers; the first child may be the tracker of multiprocessing's resources.
    workers = [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(workers[-1], signal.SIGKILL)
    said, _ = process.communicate(timeout=LIMIT_SECONDS)
    lost = len(json.loads(said.splitlines()[-1])["failed"])
    measured_again = started(source, output, "2")
    measured_again.communicate(timeout=LIMIT_SECONDS)
    return {
        "first": f"exit {process.returncode}, {lost} of {KILLED_SERIES} scans told as lost",
        "same": digest(output) == wanted,
    }


def _killed_head(source: Path, output: Path, wanted: str) -> dict[str, Any]:
    """The head of a Ray cluster dies while two actors work; a local run finishes."""
    with cluster_of_two() as cluster:
        process = started(source, output, "ray", address=cluster.address)
        until = time.monotonic() + LIMIT_SECONDS
        while process.poll() is None and not any(output.glob("[0-9]*")) and time.monotonic() < until:
            time.sleep(0.02)
        standing = len(list(output.glob("[0-9]*")))
        cluster.remove_node(cluster.head_node, allow_graceful=False)
        try:
            process.communicate(timeout=180)
            ended = f"exit {process.returncode}"
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            ended = "still waiting after 180 s, killed"
    again = started(source, output, "1")
    again.communicate(timeout=LIMIT_SECONDS)
    return {"first": f"{standing} scans stood, then {ended}", "same": digest(output) == wanted}


def _full_disk(source: Path, output: Path, wanted: str) -> dict[str, Any]:
    """Files end at 4,000 bytes, as on a full disk; then there is room."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, 4_000))

    words = ("standardize", source, "-m", PLACE / "model", "-o", output, "--check", "off", "-j", "2")
    code, *_ = command(*words, prepare=limit)
    left = list(output.rglob("*.dcm")) if output.exists() else []
    again, *_ = command(*words)
    (output / "standardize.jsonl").unlink(missing_ok=True)
    return {
        "first": f"exit {code}, {len(left)} slices left under a final name",
        "same": again == 0 and digest(output) == wanted,
    }


def kills(found: Found) -> None:
    """A worker, the disk, the head: what the first run says, and whether the second ends with the same bytes."""
    source = tree("small", KILLED_SERIES, 6, SMALL)
    measured(source, PLACE / "out", ("1",))
    wanted = digest(PLACE / "out")
    ways = {"a worker killed": _killed_workers, "disk full": _full_disk, "Ray's head killed": _killed_head}
    for name, way in ways.items():
        shutil.rmtree(PLACE / "out", ignore_errors=True)
        if name not in found.rows:
            found.add(name, way(source, PLACE / "out", wanted))
    shutil.rmtree(PLACE / "out", ignore_errors=True)


def cost(found: Found) -> None:
    """Processor seconds of what the model is made of: start, finding a file, a slice of 512 x 512."""
    for name, slices in (("short", 4), ("long", 20)):
        if name not in found.rows:
            found.add(name, {"slices": slices, **_peak(tree(f"full-{name}", 1, slices, 512))})
    if "files" not in found.rows:
        source = tree(f"twenty-{SLICES}", SERIES, SLICES, MATRIX)
        begun = time.process_time()
        plan(source, PLACE / "out", load_model(PLACE / "model"), SETTINGS)
        found.add("files", {"seconds": (time.process_time() - begun) / (SERIES * SLICES)})


PARTS: dict[str, Callable[[Found], None]] = {"speedup": speedup, "memory": memory, "cost": cost, "kills": kills}


def _speedup_text(found: dict[str, Any]) -> str:
    runs = {
        name: Run(one["wall_s"], one["lead_s"], tuple(one["workers_s"]), one["load"]) for name, one in found.items()
    }
    one = runs["one process"]
    rows = []
    for name, run in runs.items():
        workers = " + ".join(f"{seconds:.0f}" for seconds in run.workers_s) or "-"
        ratios = (one.wall_s / run.wall_s, one.critical_s / run.critical_s)
        same = "yes" if found[name]["digest"] == found["one process"]["digest"] else "NO"
        rows.append([name, f"{run.wall_s:.0f}", f"{ratios[0]:.2f}", f"{run.lead_s:.0f}", workers, f"{ratios[1]:.2f}",
                     f"{run.load:.1f}", same])  # fmt: skip
    best = {name: one.critical_s / run.critical_s for name, run in runs.items() if name != "one process"}
    verdict = "; ".join(f"{name} {value:.2f}" for name, value in best.items())
    return (
        f"{SERIES} series of {found['one process']['slices']} slices of {MATRIX} x {MATRIX}, one thread each, whole "
        "runs with start-up, reading, checking and writing.\n\n"
        + table(
            [
                "engine",
                "clock, s",
                "speed-up by the clock",
                "lead, CPU s",
                "workers, CPU s",
                "speed-up by CPU",
                "load at the end",
                "same bytes",
            ],
            rows,
        )
        + "\n\nBy the clock a run competes with whatever else the machine does (load; it has "
        f"{os.cpu_count()} cores). Speed-up by CPU is the processor time of one process over that of the longest chain "
        f"of a run, the lead's and its busiest worker's: starting Python is in each link, and weighs the more the "
        f"shorter the series; the bar is for series of 100 slices. Bar {BAR}: {verdict}."
    )


def _memory_text(found: dict[str, Any]) -> str:
    rows = [[name, f"{one['wall']:.0f}", f"{one['cpu']:.1f}", f"{one['peak']:.0f}"] for name, one in found.items()]
    return (
        f"A tree of series of 4 slices, then one series of so many slices, all {SMALL} x {SMALL}; largest process.\n\n"
        + table(["", "clock, s", "CPU, s", "peak, MiB"], rows)
        + "\n\n`-j 2` on one series shares its slabs; the bytes are those of one process, or the command stops."
    )


def _cost_text(found: dict[str, Any]) -> str:
    long, short = found["long"], found["short"]
    a_slice = (long["cpu"] - short["cpu"]) / (long["slices"] - short["slices"])
    start = max(short["cpu"] - short["slices"] * a_slice, 0.0)
    a_series = COHORT_SLICES * a_slice
    rows = []
    for series in COHORT:
        serial = start + series * COHORT_SLICES * found["files"]["seconds"]
        hours = [(serial + series * a_series / workers) / 3600 for workers in WORKERS]
        rows.append([f"{series:,}", *(f"{h:.1f}" if h >= 0.1 else f"{h * 60:.1f} min" for h in hours)])
    core_hours = 10_000 * a_series / 3600
    best = (start + 10_000 * COHORT_SLICES * found["files"]["seconds"] + 10_000 * a_series / 32) / 3600
    return (
        "This is a model, no measurement: serial time + series x slices x time a slice / workers, from CPU times of "
        f"one run each on this machine: {a_slice:.3f} s a slice of 512 x 512 (`concord`, `sample`; reading, checking, "
        f"writing as well), {start:.1f} s to start, {1000 * found['files']['seconds']:.1f} ms to find a file, which "
        "one process does before the work begins. Disk and network are taken to keep up, workers to be such cores "
        f"with one thread and {long['peak']:.0f} MiB each.\n\nHours, series of {COHORT_SLICES} slices:\n\n"
        + table(["series", *(f"{workers} workers" for workers in WORKERS)], rows)
        + f"\n\n**10,000 series** of {COHORT_SLICES} slices are {core_hours:,.0f} core hours. Rent one machine of 32 "
        f"cores and 64 GB (`-j 32`): about {best:.0f} hours, of which "
        f"{10_000 * COHORT_SLICES * found['files']['seconds'] / 3600:.1f} go by while headers are read; or an array "
        "of jobs (`--shard I/N`), each over a folder of its own where finding the files should be shared as well. "
        "No GPU is needed. Room: the input's size once more, since results are uncompressed DICOM of 0.5 MB a slice: "
        f"{10_000 * COHORT_SLICES * 0.53e-6:.1f} TB."
    )


def page(command_line: str) -> None:
    """Write the page of what stands."""
    kept = {
        name: json.loads((PLACE / f"{name}.json").read_text()) for name in PARTS if (PLACE / f"{name}.json").exists()
    }
    body = [
        "Simulated discs; nothing was tuned on anything. The same command does it again: `--anew` on a quiet machine."
    ]
    if "one process" in kept.get("speedup", ()):
        body.append("## Two workers\n\n" + _speedup_text(kept["speedup"]))
    if "memory" in kept:
        body.append("## Memory\n\n" + _memory_text(kept["memory"]))
    if "kills" in kept:
        rows = [[name, one["first"], "yes" if one["same"] else "NO"] for name, one in kept["kills"].items()]
        text = table(["what happened", "the disturbed run", "the run after it: same bytes as undisturbed"], rows)
        body.append(f"## Killed\n\n{KILLED_SERIES} series of 6 slices of {SMALL} x {SMALL}.\n\n{text}")
    if len(kept.get("cost", ())) == 3:
        body.append("## What a cohort costs\n\n" + _cost_text(kept["cost"]))
    write_section("scale", command_line, "\n\n".join(body), seed="0")


def main() -> None:
    """Run the parts that do not stand, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--anew", action="store_true", help="measure again what stands")
    parser.add_argument("--lead", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.lead:
        source, output, engine, address = arguments.lead
        chosen: Engine = Local(int(engine)) if engine.isdigit() else Ray(address, workers=2, memory_gb=0.5)
        if "/" in engine:
            chosen = Share(*map(int, engine.split("/")))
        print(json.dumps(lead(Path(source), Path(output), chosen)))
        return
    PLACE.mkdir(parents=True, exist_ok=True)
    for name in arguments.parts:
        try:
            PARTS[name](Found(name, anew=arguments.anew))
        finally:
            page("make bench-scale")


if __name__ == "__main__":
    main()
