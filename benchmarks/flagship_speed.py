"""Seconds a slice of concord, all included, beside the field's usual network, and memory of a long series.

The network is pix2pix's U-Net for 256 x 256 and larger (Isola et al. 2017, arXiv:1611.07004): eight levels of 4 x 4
convolutions with 64 to 512 channels, about 54 million parameters, random weights, since only time is measured. The
calls of all alternate, so that what else the machine does falls on every one.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.child import succeeded
from benchmarks.flagship_cohorts import COHORTS, FOLDER, calibrated, subjects_of
from benchmarks.long_series import SERIES, long_series
from benchmarks.results import data_folder, table, write_section
from concordct.methods.models import load_model
from concordct.methods.standardizer import Mode
from concordct.volumes.seeds import SliceSeeds

MODES: tuple[Mode, ...] = ("mean", "sample")
REPEATS = 5
WIDTHS = (64, 128, 256, 512, 512, 512, 512, 512)


class Pix2PixUNet(nn.Module):
    """The generator of pix2pix; [b, 1, y, x] to the same, edges a multiple of 256."""

    def __init__(self) -> None:
        super().__init__()
        down: list[nn.Module] = []
        for level, width in enumerate(WIDTHS):
            before = 1 if level == 0 else WIDTHS[level - 1]
            parts: list[nn.Module] = [] if level == 0 else [nn.LeakyReLU(0.2)]
            parts.append(nn.Conv2d(before, width, 4, 2, 1, bias=level == 0))
            if 0 < level < len(WIDTHS) - 1:
                parts.append(nn.BatchNorm2d(width))
            down.append(nn.Sequential(*parts))
        up: list[nn.Module] = []
        for level in reversed(range(len(WIDTHS))):
            inner = WIDTHS[level] * (1 if level == len(WIDTHS) - 1 else 2)
            outer = 1 if level == 0 else WIDTHS[level - 1]
            parts = [nn.ReLU(), nn.ConvTranspose2d(inner, outer, 4, 2, 1, bias=level == 0)]
            parts.append(nn.Tanh() if level == 0 else nn.BatchNorm2d(outer))
            up.append(nn.Sequential(*parts))
        self.down, self.up = nn.ModuleList(down), nn.ModuleList(up)

    def forward(self, x: Tensor) -> Tensor:
        """Through all levels with skips."""
        skips: list[Tensor] = []
        for stage in self.down:
            x = stage(x)
            skips.append(x)
        for stage, skip in zip(self.up, [None, *reversed(skips[:-1])], strict=True):
            x = stage(x if skip is None else torch.cat([skip, x], dim=1))
        return x


def timed(work: dict[str, Callable[[], object]]) -> dict[str, tuple[float, float]]:
    """Seconds of the clock and of CPU of one call each, medians; the calls alternate."""
    for call in work.values():
        call()
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in work}
    for _ in range(REPEATS):
        for name, call in work.items():
            clock, cpu = time.perf_counter(), time.process_time()
            call()
            found[name].append((time.perf_counter() - clock, time.process_time() - cpu))
    return {
        name: (float(np.median(np.array(one)[:, 0])), float(np.median(np.array(one)[:, 1])))
        for name, one in found.items()
    }


def slices(methods: tuple[str, ...]) -> str:
    """One 512 x 512 slice through every method, one thread and two."""
    cohort = COHORTS["patients"]
    pair = cohort.pairs[0]
    subject = subjects_of(cohort, pair)[1]
    volume = subject.source.read(2, 3)
    network = Pix2PixUNet().eval()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    parameters = sum(one.numel() for one in network.parameters())
    scaled = torch.from_numpy(volume.hu / np.float32(1000))[None].to(memory_format=torch.channels_last)

    def pix2pix() -> object:
        with torch.inference_mode():
            return network(scaled)

    reference = f"pix2pix U-Net, {parameters / 1e6:.1f} M parameters"
    work: dict[str, Callable[[], object]] = {}
    for method in methods:
        model = load_model(calibrated(method, cohort, pair, 1))
        for mode in MODES:
            standardizer = model.standardizer(mode=mode)
            work[f"{method}, {mode}"] = partial(standardizer, volume, generator=SliceSeeds(0, "speed"))
    work[reference] = pix2pix
    rows: dict[str, list[str]] = {name: [] for name in work}
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found = timed(work)
        for name, (clock, cpu) in found.items():
            ratio = cpu / found[reference][1]
            rows[name] += [f"{clock:.3f}", f"{cpu:.3f}", f"{ratio:.2f}"]
    torch.set_num_threads(before)
    header = [
        "",
        "clock, s",
        "CPU, s",
        "CPU relative to U-Net",
        "clock, s (2 threads)",
        "CPU, s",
        "CPU relative to U-Net",
    ]
    return table(header, [[name, *cells] for name, cells in rows.items()])


def series(methods: tuple[str, ...]) -> str:
    """A series of 300 slices from disk to disk: time and peak memory of the whole command."""
    data = data_folder()
    if data is None:
        return "No real series: the long one was left out."
    cohort = COHORTS["patients"]
    body = []
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        place = Path(folder)
        long_series(data / "chest_B40f", place / "series")
        for method in methods:
            model = calibrated(method, cohort, cohort.pairs[0], 1)
            for mode in ("mean", "sample"):
                output = place / f"out-{method}-{mode}"
                words = (
                    "standardize",
                    place / "series",
                    "-m",
                    model,
                    "-o",
                    output,
                    "--mode",
                    mode,
                    "--any-kernel",
                    "--check",
                    "off",
                )
                took = succeeded(*words, threads=2)
                cells = (
                    f"{took.wall_s:.0f}",
                    f"{took.cpu_s:.0f}",
                    f"{took.cpu_s / SERIES:.3f}",
                    f"{took.peak_mib:.0f}",
                )
                body.append([f"{method}, {mode}", *cells])
    return table(
        [f"{SERIES} slices of 512 x 512, DICOM to DICOM", "clock, s", "CPU, s", "CPU a slice, s", "peak, MiB"], body
    )


def run(methods: tuple[str, ...]) -> None:
    """Measure and write the section."""
    load = os.getloadavg()[0]
    body = (
        "## Speed of concord\n\n"
        f"One 512 x 512 slice of a simulated chest, all included, median of {REPEATS};\n"
        "pix2pix's U-Net (random weights, the network alone) in the same run. One thread on the left, two right.\n"
        f"Load average when it began: {load:.1f} on {os.cpu_count()} cores: CPU time is what can be compared.\n\n"
        + slices(methods)
        + "\n\n"
        + series(methods)
    )
    write_section("flagship-speed", "python -m benchmarks.flagship --part speed", body, seed="0")
