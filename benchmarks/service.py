"""The service under load, and killed under load: ten associations at once, 40 series, real clients of three kinds.

    python -m benchmarks.service            # writes docs/results/service.md; some minutes on two cores

The clients are DCMTK's storescu, pynetdicom and dicomweb-client; each sends a series until every object of it was
answered with success, as a scanner does. The archive notes the digest of every object that comes, as often as it comes.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import requests
import yaml

from benchmarks.results import ROOT, table
from benchmarks.service_clients import Client, dicomweb, pynetdicom, storescu
from concordct.judging.provenance import provenance
from concordct.pipelines.calibrate import calibrate_pairs, pairs_of_paths
from concordct.serving.ledger import Ledger
from concordct.volumes.new_series import SimulatedScan, write_new_series
from concordct.volumes.volume import Volume

RESULTS = ROOT / "docs" / "results" / "service.md"
#: Slices of the 40 series: most of them thick, one thin reconstruction.
SLICES = (300, 60, 40, 40, *(28,) * 36)
#: Slices of the series whose memory is looked at on slices as scanners store them; more slices take no more of it.
LARGE, LARGE_SIDE = (60, 28, 28), 512
KINDS: tuple[Callable[..., bool], ...] = (storescu, pynetdicom, dicomweb)
CLIENTS = 10
KILLS = 30
SEED = 19
TOKEN = "benchmark-sender-token-0000"
MEGA = 2**20


def prepare(folder: Path, side: int, counts: Sequence[int]) -> tuple[Path, list[Path]]:
    """A model and series on disk: discs with noise, one patient each, kernels Br40 and Bl64 of simulated noise."""
    rng = np.random.default_rng(SEED)
    y, x = np.mgrid[:side, :side] / side - 0.5
    body = np.where((x / 0.42) ** 2 + (y / 0.36) ** 2 < 1, 40.0, -1000.0)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side)))

    def slices(count: int, width: float) -> np.ndarray:
        white = np.fft.fft2(rng.normal(0, 60, (min(count, 8), side, side)) + body)
        some = np.fft.ifft2(white * np.exp(-((frequency / width) ** 2))).real
        return np.clip(np.rint(np.resize(some, (count, side, side))), -1024, 3071)

    affine = np.diag([0.0, 0.7, 0.7, 1.0])
    affine[:3, :3] = np.array([[0, 0, 0.7], [0, 0.7, 0], [1.5, 0, 0]])

    def volume(hu: np.ndarray, kernel: str) -> Volume:
        return Volume(hu.astype(np.float32), affine, slice_thickness_mm=1.5, kernel=kernel)

    for kernel, width in (("Br40", 0.12), ("Bl64", 0.3)):
        rng = np.random.default_rng(SEED)
        scan = SimulatedScan("pair", "scan", kernel, 1, 120.0, 100.0)
        write_new_series(volume(slices(4, width), kernel), folder / kernel, scan)
    calibrate_pairs(pairs_of_paths(folder / "Br40", folder / "Bl64"), folder / "model", method="spectral")
    made = []
    for index, count in enumerate(counts):
        scan = SimulatedScan(f"patient-{index:02d}", "scan", "Chest", 2, 120.0, 100.0)
        place = folder / "series" / f"{index:02d}"
        for path in write_new_series(volume(slices(count, 0.12), "Br40"), place, scan):
            dataset = pydicom.dcmread(path)
            dataset.NumberOfSeriesRelatedInstances = count
            dataset.save_as(path)
        made.append(place)
    return folder / "model", made


class Running:
    """Service and archive as processes of their own; the service can be killed and started again."""

    def __init__(self, folder: Path, model: Path, *, workers: int) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        ports = [_free_port() for _ in range(3)]
        self.port, self.page, archive = ports
        (folder / "token").write_text(TOKEN)
        given = {
            "node": {"port": self.port, "complete_after_s": 60,
                     "peers": [{"ae_title": "CLIENT", "address": "127.0.0.1"}]},
            "store": {"folder": "store", "quota_gb": 20, "keep_free_gb": 1},
            "page": {"port": self.page, "tokens": [{"name": "web", "role": "sender", "file": "token"}]},
            "workers": workers, "retry_s": 1,
            "destinations": [{"name": "pacs", "kind": "dicom", "ae_title": "PACS", "host": "127.0.0.1",
                              "port": archive, "retry_s": 0.5}],
            "rules": [{"name": "all", "model": str(model), "mode": "sample", "destinations": ["pacs"]}],
        }  # fmt: skip
        (folder / "service.yaml").write_text(yaml.safe_dump(given))
        self.received = folder / "received.jsonl"
        self._archive = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.service_clients", str(archive), str(self.received)]
        )
        self._log = open(folder / "log", "ab")  # noqa: SIM115 - as long as the service
        self.peak: Counter[str] = Counter()
        self._ended = threading.Event()
        self.start()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "concordct.cli", "serve", str(self.folder / "service.yaml")]
        self.process = subprocess.Popen(command, stdout=self._log, stderr=self._log)

    def wait_until_healthy(self) -> None:
        """Until it answers so."""
        while True:
            try:
                if requests.get(f"http://127.0.0.1:{self.page}/healthz", timeout=5).status_code == 200:
                    return
            except requests.RequestException:
                pass
            time.sleep(0.1)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        self._ended.set()
        self._watcher.join()
        self.process.terminate()
        self.process.wait()
        self._archive.terminate()
        self._archive.wait()
        self._log.close()

    def ledger(self) -> Ledger:
        return Ledger(self.folder / "store" / "queue.sqlite")

    def sent(self) -> int:
        """Series that have been sent; 0 while the service has no queue yet."""
        if not (self.folder / "store" / "queue.sqlite").exists():
            return 0
        ledger = self.ledger()
        try:
            return ledger.counts()["sent"]
        finally:
            ledger.close()

    def copies(self) -> dict[str, list[str]]:
        """Digests of what the archive received, by SOP Instance UID."""
        found: dict[str, list[str]] = {}
        for line in self.received.read_text().splitlines():
            uid, digest = json.loads(line)
            found.setdefault(uid, []).append(digest)
        return found

    def _watch(self) -> None:
        while not self._ended.wait(0.2):
            service = _resident(self.process.pid)
            workers = [_resident(pid) for pid in _children(self.process.pid)]
            self.peak["service"] = max(self.peak["service"], service)
            self.peak["worker"] = max([self.peak["worker"], *workers])
            self.peak["all"] = max(self.peak["all"], service + sum(workers))


def _free_port() -> int:
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _resident(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))
    except (OSError, StopIteration):
        return 0


def _children(pid: int) -> list[int]:
    try:
        found = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:
        return []
    return [int(child) for text in found for child in text.split()]


def load(running: Running, series: list[Path]) -> tuple[int, Counter[str]]:
    """Ten clients share the series; how often one had to send anew, and how many series each kind sent."""
    left: queue.SimpleQueue[Path] = queue.SimpleQueue()
    for place in series:
        left.put(place)
    again: Counter[str] = Counter()
    client = Client(running.port, f"http://127.0.0.1:{running.page}/dicom-web", TOKEN)

    def work(index: int) -> None:
        kind = KINDS[index % len(KINDS)]
        while True:
            try:
                place = left.get_nowait()
            except queue.Empty:
                return
            while not kind(client, place):
                again["again"] += 1
                time.sleep(0.5)
            again[kind.__name__] += 1

    threads = [threading.Thread(target=work, args=(index,)) for index in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return again.pop("again", 0), again


def wait_until_sent(running: Running, count: int, seconds: float = 1500) -> None:
    """Until so many series were sent.

    Raises
    ------
    TimeoutError : not in time.
    """
    end = time.monotonic() + seconds
    while running.sent() < count:
        if time.monotonic() > end:
            raise TimeoutError(f"{running.sent()} of {count} series sent after {seconds:.0f} s: {running.folder}")
        time.sleep(0.5)


def measure(folder: Path, model: Path, series: list[Path], workers: int) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """One undisturbed run."""
    running = Running(folder, model, workers=workers)
    try:
        running.wait_until_healthy()
        began = time.monotonic()
        again, kinds = load(running, series)
        answered = time.monotonic() - began
        wait_until_sent(running, len(series))
        wall = time.monotonic() - began
        ledger = running.ledger()
        entries = ledger.entries()
        ledger.close()
        copies = running.copies()
        row = {
            "workers": workers, "answered_s": answered, "wall_s": wall, "again": again, "kinds": dict(kinds),
            "series_s": statistics.median(float(one.seconds or 0) for one in entries),
            "slowest_s": max(float(one.seconds or 0) for one in entries),
            "way_s": statistics.median(float(one.ended_at or 0) - one.first_at for one in entries),
            "sent": sum(one.state == "sent" for one in entries),
            "objects": len(copies), "twice": sum(len(one) > 1 for one in copies.values()),
            "service_mb": running.peak["service"] / MEGA, "worker_mb": running.peak["worker"] / MEGA,
            "all_mb": running.peak["all"] / MEGA,
        }  # fmt: skip
        return row, copies
    finally:
        running.end()


def kill_under_load(folder: Path, model: Path, series: list[Path], kills: int) -> tuple[Counter[str], dict[str, Any]]:
    """The same load while the service is killed again and again; what happened, and what the archive got."""
    running = Running(folder, model, workers=1)
    dice, said = random.Random(SEED), Counter[str]()
    try:
        sender = threading.Thread(target=lambda: said.update(again=load(running, series)[0]))
        sender.start()
        for _ in range(kills):
            # One time in five it may not even have come up.
            if dice.random() < 0.8:
                running.wait_until_healthy()
            time.sleep(dice.uniform(0.1, 6.0))
            said["under load"] += running.sent() < len(series)
            running.kill()
            running.start()
        sender.join()
        wait_until_sent(running, len(series))
        return said, running.copies()
    finally:
        running.end()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=256, help="pixels of a slice along one side, under load")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument("--folder", type=Path, help="where everything lies that is made; a temporary one without")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = chosen.folder or Path(temporary)
        large, _ = measure(folder / "large-run", *prepare(folder / "large", LARGE_SIDE, LARGE), workers=1)
        print(json.dumps(large), flush=True)
        model, series = prepare(folder, chosen.side, SLICES)
        rows, first = [], {}
        for workers in chosen.workers:
            row, copies = measure(folder / f"workers-{workers}", model, series, workers)
            first = first or copies
            row["same"] = {uid: set(found) for uid, found in copies.items()} == {u: set(f) for u, f in first.items()}
            rows.append(row)
            print(json.dumps(row), flush=True)
        killed, copies = kill_under_load(folder / "killed", model, series, chosen.kills)
        same = {uid: set(found) for uid, found in copies.items()} == {uid: set(found) for uid, found in first.items()}
        print(json.dumps([dict(killed), same]), flush=True)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(_page(rows, large, killed, same, copies, chosen))
    print(RESULTS)


def _page(
    rows: list[dict[str, Any]], large: dict[str, Any], killed: Counter[str], same: bool, copies: dict[str, Any],
    chosen: Any,
) -> str:  # fmt: skip
    made = provenance()
    kinds = ", ".join(f"{count} by {name}" for name, count in sorted(rows[0]["kinds"].items()))
    busy = os.getloadavg()[0]
    body = table(
        ["workers", "sent", "objects at the archive", "of these twice", "all answered after", "all sent after",
         "standardized in (median, slowest)", "first object to sent (median)", "service", "one worker", "all processes",
         "same bytes as the first row"],
        [[str(row["workers"]), f"{row['sent']} of {len(SLICES)}", str(row["objects"]), str(row["twice"]),
          f"{row['answered_s']:.0f} s", f"{row['wall_s']:.0f} s", f"{row['series_s']:.1f} s, {row['slowest_s']:.1f} s",
          f"{row['way_s']:.0f} s", f"{row['service_mb']:.0f} MB", f"{row['worker_mb']:.0f} MB",
          f"{row['all_mb']:.0f} MB", "yes" if row["same"] else "NO"] for row in rows],
    )  # fmt: skip
    repeated = sum(len(found) > 1 for found in copies.values())
    return f"""# The service under load

{len(SLICES)} simulated series of {min(SLICES)} to {max(SLICES)} slices ({sum(SLICES)} slices of {chosen.side} x \
{chosen.side}), sent by {CLIENTS} clients at once ({kinds}), standardized (`spectral`, mode `sample`, self-check and
structured report) and sent to an archive by C-STORE. Nothing was tuned on anything. Memory is the peak of resident
pages, looked at five times a second; pages that processes share count in each.

{body}

On {LARGE_SIDE} x {LARGE_SIDE} slices (series of {", ".join(map(str, LARGE))}, one worker): service \
{large["service_mb"]:.0f} MB, worker {large["worker_mb"]:.0f} MB, all processes {large["all_mb"]:.0f} MB.

## Killed

The same load with one worker, while the service was killed with SIGKILL {chosen.kills} times at random moments \
({killed["under load"]} of them before the last series was sent), and started again each time. Clients sent a series
again where they had no answer ({killed["again"]} times).

- SOP Instance UIDs at the archive: {len(copies)}; of the undisturbed run: {rows[0]["objects"]}.
- The set of UIDs and the bytes under each are those of the undisturbed run: **{"yes" if same else "NO"}**.
- UIDs that came more than once, with the same bytes each time: {repeated}.

*`make bench-service`, {made["software"]}, commit {made["commit"]}, seed {SEED}, {made["machine"]}, load of the machine
at the end {busy:.0f}, of which the benchmark is a part.*
"""


if __name__ == "__main__":
    main()
