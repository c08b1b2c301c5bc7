"""One machine to a cluster: speed-up of two workers, memory, kills, and from these a model of what a cohort costs.

python -m benchmarks.scale                    # all parts, then docs/results/scale.md; what stands is not run again
python -m benchmarks.scale --parts speedup    # this one alone, and the page of what stands
python -m benchmarks.scale --anew             # what stands is measured again, as on a machine that is quiet now
python -m benchmarks.scale --parts speedup --rows 1    # the next row that is missing: half a minute to three each

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
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.child import Measured, concordct, succeeded
from benchmarks.child import measured as from_outside
from benchmarks.results import ROOT, table, write_section
from concordct.methods.models import load_model
from concordct.pipelines.calibrate import calibrate_pairs, pairs_of_paths
from concordct.pipelines.standardize import Settings, plan
from concordct.volumes.new_series import SimulatedScan, write_new_series
from concordct.volumes.volume import Volume

PLACE = Path(os.environ.get("CONCORDCT_RUNS", ROOT / "runs")) / "scale"
SERIES = 20
#: Slices a series and pixels a side; fewer where the environment says so, and the page says how many.
SLICES = int(os.environ.get("CONCORDCT_SCALE_SLICES", "100"))
MATRIX = int(os.environ.get("CONCORDCT_SCALE_MATRIX", "512"))
#: Of what asks for many slices or runs, not for large ones.
SMALL, KILLED_SERIES, KILLED_SLICES = 64, 8, 40
RAY = "Ray, two nodes"
#: Twice the work: what this machine's cores give beside each other.
CEILING = "one process, twice"
SETTINGS = Settings(check="off")
#: What the bar asks of two workers.
BAR = 1.8
#: Of the model of a cohort: series, slices a series, workers.
COHORT, COHORT_SLICES, WORKERS = (10, 100, 1_000, 10_000), 300, (1, 2, 4, 8, 32, 128)
LIMIT_SECONDS = 1_800
#: Runs of each start, of which the least counts.
STARTS = 5


@dataclass(frozen=True)
class Run:
    """What a run took.

    Attributes
    ----------
    wall_s : by the clock.
    lead_s, workers_s : processor seconds of the process that led and of each worker.
    before_s : by the clock, until the work on scans began: start and headers.
    load : of the machine when it began.
    """

    wall_s: float
    lead_s: float
    workers_s: tuple[float, ...]
    before_s: float
    load: float

    @property
    def critical_s(self) -> float:
        """Processor seconds one after another: the lead's, then the busiest worker's."""
        return self.lead_s + max(self.workers_s, default=0.0)


class Found:
    """Rows of a part, kept as they come: a run that is stopped goes on with those that are missing.

    Parameters
    ----------
    most : rows to add; None for all.
    """

    def __init__(self, part: str, *, anew: bool, most: int | None = None) -> None:
        self.path = PLACE / f"{part}.json"
        self.most = most
        self.rows: dict[str, Any] = {} if anew or not self.path.exists() else json.loads(self.path.read_text())

    def add(self, name: str, row: dict[str, Any]) -> None:
        """Keep a row."""
        self.rows[name] = row
        print(name, row, flush=True)
        self.path.write_text(json.dumps(self.rows))
        if self.most is not None:
            self.most -= 1

    def lacks(self, name: str) -> bool:
        """Whether a row is to be measured now."""
        return name not in self.rows and self.most != 0


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


def started(source: Path, output: Path, engine: str, *, address: str = "") -> subprocess.Popen[str]:
    """A run in a process of its own."""
    words = [str(source), str(output), str(PLACE / "model"), engine, address]
    whole = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.scale_run", *words],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={name: value for name, value in whole.items() if name != "PYTHONDONTWRITEBYTECODE"},
    )


def measured(source: Path, outputs: tuple[Path, ...], engines: tuple[str, ...], *, address: str = "") -> Run:
    """Runs beside each other, one for each engine."""
    for output in outputs:
        shutil.rmtree(output, ignore_errors=True)
    before = os.getloadavg()[0]
    begun = time.perf_counter()
    found = []
    runs = [started(source, output, engine, address=address) for engine, output in zip(engines, outputs, strict=True)]
    for process in runs:
        said, _ = process.communicate(timeout=LIMIT_SECONDS)
        if process.returncode:
            sys.exit(f"{engines}: expected exit code 0, found {process.returncode}")
        found.append(json.loads(said.splitlines()[-1]))
    if any(one["failed"] for one in found):
        sys.exit(f"{engines}: {found[0]['failed']}")
    wall = time.perf_counter() - begun
    serial = max(one["start"] + one["headers"] for one in found)
    if len(found) > 1:  # each leads itself
        return Run(wall, 0.0, tuple(one["lead"] for one in found), serial, before)
    return Run(wall, found[0]["lead"], tuple(found[0]["workers"]), serial, before)


def digest(folder: Path) -> str:
    """Of every file's name and bytes; hidden ones are leftovers."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            found.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return found.hexdigest()


def speedup(found: Found) -> None:
    """One process, two, two shares, two actors of a Ray cluster of two nodes."""
    source = tree(f"twenty-{SLICES}-{MATRIX}", SERIES, SLICES, MATRIX)

    def measure(name: str, engines: tuple[str, ...], outputs: tuple[str, ...], address: str = "") -> None:
        run = measured(source, tuple(PLACE / output for output in outputs), engines, address=address)
        same = digest(PLACE / "out")
        for output in outputs:
            shutil.rmtree(PLACE / output, ignore_errors=True)
        found.add(name, {"slices": SLICES, "matrix": MATRIX, "digest": same, **asdict(run)})

    for name, engines, outputs in (
        ("one process", ("1",), ("out",)),
        ("two processes", ("2",), ("out",)),
        ("two shares", ("1/2", "2/2"), ("out", "out")),
        (CEILING, ("1", "1"), ("out", "other")),
    ):
        if found.lacks(name):
            measure(name, engines, outputs)
    if found.lacks(RAY):
        with cluster_of_two() as cluster:
            measure(RAY, ("ray",), ("out",), cluster.address)


@contextmanager
def cluster_of_two() -> Iterator[Any]:
    """A real Ray cluster: a head and another node, one core each."""
    os.environ.update(RAY_worker_niceness="0")  # by default its workers give way to whatever else runs
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        yield cluster
    finally:
        cluster.shutdown()


def memory(found: Found) -> None:
    """Peak memory by the number of series and by the number of slices, and of a giant's slabs on two processes."""
    for series in (1, 20, 200):
        if found.lacks(f"{series} series"):
            found.add(f"{series} series", _peak(tree(f"many-{series}", series, 4, SMALL)))
    for series in (1, 200):
        if found.lacks(f"{series} series of 512 x 512"):
            found.add(f"{series} series of 512 x 512", _peak(tree(f"wide-{series}", series, 2, 512)))
    wanted = ""
    for slices, more in ((28, ()), (300, ()), (1_500, ()), (1_500, ("-j", "2"))):
        name = f"{slices:,} slices{', ' + ' '.join(more) if more else ''}"
        if found.lacks(name):
            found.add(name, _peak(tree(f"long-{slices}", 1, slices, SMALL) / "000", *more))
        if name not in found.rows:
            return
        same = found.rows[name]["digest"] == wanted
        if more and not same:
            sys.exit(f"{name}: expected the bytes of one process, found others")
        wanted = found.rows[name]["digest"]


def _peak(source: Path, *more: str) -> dict[str, Any]:
    words = ("standardize", source, "-m", PLACE / "model", "-o", PLACE / "out", "--check", "off", *more)
    shutil.rmtree(PLACE / "out", ignore_errors=True)
    took = succeeded(*words)
    same = digest(PLACE / "out")
    shutil.rmtree(PLACE / "out")
    return {"wall": took.wall_s, "cpu": took.cpu_s, "peak": took.peak_mib, "digest": same}


def _killed_workers(source: Path, output: Path, wanted: str) -> dict[str, Any]:
    """SIGKILL to one of two workers as soon as a scan stands; then the same again, undisturbed."""
    process = started(source, output, "2")
    until = time.monotonic() + LIMIT_SECONDS
    while process.poll() is None and not any(output.glob("[0-9]*")) and time.monotonic() < until:
        time.sleep(0.02)
    # Workers are forks of one process that has loaded what they need.
    (server,) = [pid for pid in _children(process.pid) if b"forkserver" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(_children(server)[-1], signal.SIGKILL)
    said, _ = process.communicate(timeout=LIMIT_SECONDS)
    lost = len(json.loads(said.splitlines()[-1])["failed"])
    first = digest(output)
    again = started(source, output, "2")
    again.communicate(timeout=LIMIT_SECONDS)
    return {
        "first": f"exit {process.returncode}, {lost} of {KILLED_SERIES} scans told as lost, bytes "
        f"{'as' if first == wanted else 'NOT as'} undisturbed",
        "same": digest(output) == wanted,
    }


def _children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


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
    code = concordct(*words, prepare=limit).code
    left = list(output.rglob("*.dcm")) if output.exists() else []
    again = concordct(*words).code
    (output / "standardize.jsonl").unlink(missing_ok=True)
    return {
        "first": f"exit {code}, {len(left)} slices left under a final name",
        "same": again == 0 and digest(output) == wanted,
    }


def kills(found: Found) -> None:
    """A worker, the disk, the head: what the first run says, and whether the second ends with the same bytes."""
    source = tree("killed", KILLED_SERIES, KILLED_SLICES, SMALL)
    measured(source, (PLACE / "out",), ("1",))
    wanted = digest(PLACE / "out")
    ways = {"a worker killed": _killed_workers, "disk full": _full_disk, "Ray's head killed": _killed_head}
    for name, way in ways.items():
        shutil.rmtree(PLACE / "out", ignore_errors=True)
        if found.lacks(name):
            found.add(name, way(source, PLACE / "out", wanted))
    shutil.rmtree(PLACE / "out", ignore_errors=True)


def start(found: Found) -> None:
    """Whole processes of one slice and of help, beside Python that imports the libraries which they rest on."""
    source = tree("one-512", 1, 1, 512) / "000"
    words = ("standardize", source, "-m", PLACE / "model", "-o", PLACE / "out", "--check", "off", "--overwrite")
    ways: dict[str, Callable[[], Measured]] = {
        "`concordct --version`": lambda: succeeded("--version"),
        "`concordct --help`": lambda: succeeded("--help"),
        "`standardize` of one slice": lambda: succeeded(*words),
        "Python, `import pydicom, scipy.fft, scipy.ndimage`": lambda: from_outside(
            [sys.executable, "-c", "import pydicom, scipy.fft, scipy.ndimage"]
        ),
    }
    for name, way in ways.items():
        if found.lacks(name):
            least = min((way() for _ in range(STARTS)), key=lambda one: one.cpu_s)
            found.add(name, {"cpu": least.cpu_s, "wall": least.wall_s, "load": os.getloadavg()[0]})
    shutil.rmtree(PLACE / "out", ignore_errors=True)


def _start_text(found: dict[str, Any]) -> str:
    rows = [[name, f"{one['cpu']:.2f}", f"{one['wall']:.2f}", f"{one['load']:.1f}"] for name, one in found.items()]
    return (
        f"The least of {STARTS} runs, whole processes. Bars: version and help 0.3 s, one slice of 512 x 512 1.2 s.\n\n"
        + table(["", "CPU, s", "clock, s", "load"], rows)
    )


def cost(found: Found) -> None:
    """Processor seconds of what the model is made of: start, finding a file, a slice of 512 x 512."""
    for name, slices in (("short", 4), ("long", 20)):
        if found.lacks(name):
            found.add(name, {"slices": slices, **_peak(tree(f"full-{name}", 1, slices, 512))})
    if found.lacks("files"):
        source = tree(f"twenty-{SLICES}-{MATRIX}", SERIES, SLICES, MATRIX)
        begun = time.process_time()
        plan(source, PLACE / "out", load_model(PLACE / "model"), SETTINGS)
        found.add("files", {"seconds": (time.process_time() - begun) / (SERIES * SLICES)})


PARTS: dict[str, Callable[[Found], None]] = {
    "start": start,
    "speedup": speedup,
    "memory": memory,
    "cost": cost,
    "kills": kills,
}


def _speedup_text(found: dict[str, Any]) -> str:
    names = ("wall_s", "lead_s", "workers_s", "before_s", "load")
    runs = {name: Run(**{key: one[key] for key in names}) for name, one in found.items()}
    one, one_row = runs["one process"], found["one process"]
    rows, said = [], []
    for name, run in runs.items():
        workers = " + ".join(f"{seconds:.1f}" for seconds in run.workers_s) or "-"
        times = 2 if name == CEILING else 1
        ratios = (times * one.wall_s / run.wall_s, times * one.critical_s / run.critical_s)
        same = "yes" if found[name]["digest"] == found["one process"]["digest"] else "NO"
        rows.append([name, f"{run.wall_s:.1f}", f"{ratios[0]:.2f}", f"{run.before_s:.1f}", f"{run.lead_s:.1f}",
                     workers, f"{ratios[1]:.2f}", f"{run.load:.1f}", same])  # fmt: skip
        if name not in ("one process", CEILING):
            said.append(f"{name} {ratios[0]:.2f} by the clock")
    text = (
        f"{SERIES} series of {one_row['slices']} slices of {one_row['matrix']} x {one_row['matrix']}, one thread each, "
        f"whole runs with start-up, reading, checking and writing. Bar {BAR}: {'; '.join(said)}.\n\n"
        + table(
            [
                "engine",
                "clock, s",
                "speed-up by the clock",
                "of it start and headers, s",
                "lead, CPU s",
                "workers, CPU s",
                "speed-up by CPU",
                "load before",
                "same bytes",
            ],
            rows,
        )
        + "\n\nBy the clock a run competes with whatever else the machine does (load; it has "
        f"{os.cpu_count()} cores). Speed-up by CPU is the processor time of one process over that of the longest chain "
        "of a run, the lead's and its busiest worker's."
    )
    if CEILING in runs:
        beside = 2 * one.wall_s / runs[CEILING].wall_s
        slower = sum(runs[CEILING].workers_s) / 2 / one.lead_s if runs[CEILING].workers_s else 1.0
        text += (
            f" Two whole runs beside each other that share nothing do {beside:.2f} times the work of one in the same "
            f"time, at {slower:.2f} times its processor time each: about what two workers can give here."
        )
    return text


def _memory_text(found: dict[str, Any]) -> str:
    rows = [[name, f"{one['wall']:.0f}", f"{one['cpu']:.1f}", f"{one['peak']:.0f}"] for name, one in found.items()]
    return (
        f"Trees of series of 4 slices of {SMALL} x {SMALL} or of 2 slices of 512 x 512, then one series of so many "
        f"slices of {SMALL} x {SMALL}; largest process.\n\n"
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
        hours = [(start + series * a_series / workers) / 3600 for workers in WORKERS]
        rows.append([f"{series:,}", *(f"{h:.1f}" if h >= 0.1 else f"{h * 60:.1f} min" for h in hours)])
    core_hours = 10_000 * a_series / 3600
    best = (start + 10_000 * a_series / 32) / 3600
    return (
        "This is a model, no measurement: start + series x slices x time a slice / workers, from CPU times of one run "
        f"each on this machine: {a_slice:.3f} s a slice of 512 x 512 (`concord`, `sample`; headers, reading, checking, "
        f"writing as well), {start:.1f} s to start. Of a slice's time {1000 * found['files']['seconds']:.1f} ms are "
        "its header, which the workers read before the work begins. Disk and network are taken to keep up, workers to "
        "be such cores "
        f"with one thread and {long['peak']:.0f} MiB each.\n\nHours, series of {COHORT_SLICES} slices:\n\n"
        + table(["series", *(f"{workers} workers" for workers in WORKERS)], rows)
        + f"\n\n**10,000 series** of {COHORT_SLICES} slices are {core_hours:,.0f} core hours. Rent one machine of 32 "
        f"cores and 64 GB (`-j 32`): about {best:.1f} hours; or an array of jobs (`--shard I/N`) that begin "
        "together: they leave each other the headers that they read. Room: the input's size once more, since results "
        "are uncompressed DICOM of 0.5 MB a slice: "
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
    if "start" in kept:
        body.append("## Start\n\n" + _start_text(kept["start"]))
    if "one process" in kept.get("speedup", ()):
        body.append("## Two workers\n\n" + _speedup_text(kept["speedup"]))
    if "memory" in kept:
        body.append("## Memory\n\n" + _memory_text(kept["memory"]))
    if "kills" in kept:
        rows = [[name, one["first"], "yes" if one["same"] else "NO"] for name, one in kept["kills"].items()]
        text = table(["what happened", "the disturbed run", "the run after it: same bytes as undisturbed"], rows)
        body.append(f"## Killed\n\n{KILLED_SERIES} series of {KILLED_SLICES} slices of {SMALL} x {SMALL}.\n\n{text}")
    if len(kept.get("cost", ())) == 3:
        body.append("## What a cohort costs\n\n" + _cost_text(kept["cost"]))
    write_section("scale", command_line, "\n\n".join(body), seed="0")


def main() -> None:
    """Run the parts that do not stand, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--anew", action="store_true", help="measure again what stands")
    parser.add_argument("--rows", type=int, help="of each part, so many rows that are missing; all without")
    arguments = parser.parse_args()
    PLACE.mkdir(parents=True, exist_ok=True)
    for name in arguments.parts:
        print(f"part {name}, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)
        try:
            PARTS[name](Found(name, anew=arguments.anew, most=arguments.rows))
        finally:
            page("make bench-scale")


if __name__ == "__main__":
    main()
