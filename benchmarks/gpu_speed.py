"""Milliseconds a slice of method concord on whatever card is at hand, beside one core; 300 slices from disk to disk.

python -m benchmarks.gpu_speed                # needs a card
python -m benchmarks.gpu_speed --device cpu   # the same path through PyTorch on the processor: a dry run

Writes docs/results/gpu-speed.md where there is a card, and prints everywhere.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.results import table, write_section
from benchmarks.scale import scan
from concordct.methods.models import load_model
from concordct.methods.slabs import for_filters
from concordct.pipelines.calibrate import calibrate_pairs, pairs_of_paths
from concordct.pipelines.standardize import Settings, plan, run
from concordct.signal.spectra import transforms_on
from concordct.volumes.scans import one_scan
from concordct.volumes.seeds import SliceSeeds

#: What the project wants of a card: ms a slice, and seconds for 300 slices from disk to disk.
BAR_MS, BAR_SECONDS, DISK_SLICES = 5.0, 5.0, 300
REPEATS = 3


def method_ms(model: Path, folder: Path, device: str | None) -> tuple[float, np.ndarray]:
    """Median milliseconds a slice of the method alone, and its HU."""
    volume = for_filters(one_scan(folder).read())
    work = load_model(model).standardizer(mode="sample")
    taken = []
    with transforms_on(device):
        work(volume.slab(0, 1), generator=SliceSeeds(0, "warm"))
        for _ in range(REPEATS):
            begun = time.perf_counter()
            hu = work(volume, generator=SliceSeeds(0, "speed")).hu
            taken.append(1000 * (time.perf_counter() - begun) / len(hu))
    return float(np.median(taken)), hu


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--matrix", type=int, default=512)
    parser.add_argument("--slices", type=int, default=DISK_SLICES)
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("expected a card, found none: --device cpu is the dry run")
    card = torch.cuda.get_device_name() if arguments.device == "cuda" else "PyTorch on the processor"
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for sharp in (False, True):
            scan(place / f"pair-{int(sharp)}", 999, 2, min(256, 2 * arguments.matrix), sharp=sharp)
        calibrate_pairs(pairs_of_paths(place / "pair-0", place / "pair-1"), place / "model")
        scan(place / "few", 1, min(16, arguments.slices), arguments.matrix)
        scan(place / "long", 2, arguments.slices, arguments.matrix)
        rows, images = [], []
        for name, device in (("SciPy, one core", None), (card, arguments.device)):
            ms, hu = method_ms(place / "model", place / "few", device)
            images.append(hu)
            settings = Settings(check="off", device=device)
            loaded = load_model(place / "model")
            begun = time.perf_counter()
            (record,) = run(plan(place / "long", place / "out" / name, loaded, settings), loaded, place / "out" / name,
                            settings)  # fmt: skip
            seconds = time.perf_counter() - begun
            if record.status != "done":
                sys.exit(f"{name}: {record.reason}")
            rows.append([name, f"{ms:.1f}", f"{seconds:.1f}"])
    apart = float(np.abs(images[0] - images[1]).max())
    heads = [
        "",
        f"ms a slice of {arguments.matrix} x {arguments.matrix}",
        f"{arguments.slices} slices, disk to disk, s",
    ]
    body = table(heads, rows) + f"\n\nLargest difference {apart:.4f} HU. Wanted: {BAR_MS:g} ms and {BAR_SECONDS:g} s."
    print(body)
    if arguments.device == "cuda":
        write_section("gpu-speed", "sh runs/gpu.sh", body, seed="0")


if __name__ == "__main__":
    main()
