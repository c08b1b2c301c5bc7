"""`inspect` of a tree of tiny files: first look, second look from its index, and memory.

python -m benchmarks.inspect_tree                  # 2,000 and 20,000 files; writes docs/results/inspect.md
python -m benchmarks.inspect_tree --files 200000   # as many as that; rows of other sizes stay on the page
"""

from __future__ import annotations

import argparse
import json
import os
import re
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.child import concordct
from benchmarks.results import ROOT, table, write_section
from concordct.volumes.new_series import SimulatedScan, write_new_series
from concordct.volumes.volume import Volume

KEPT = Path(os.environ.get("CONCORDCT_RUNS", ROOT / "runs")) / "inspect" / "rows.json"
#: Files whose index is larger than the memory that it is given.
FULL_CACHE = 20_000
#: Files of a series.
SLICES = 40
FILES = (2_000, 20_000)


def tree(place: Path, files: int) -> None:
    """So many single slices of 8 x 8, in series of `SLICES`: one series written, the others by their UIDs."""
    volume = Volume(np.zeros((SLICES, 8, 8), np.float32), np.eye(4)[[2, 1, 0, 3]], kernel="soft")
    write_new_series(volume, place / "000000", SimulatedScan("tree", "tree", "soft", 1, 120.0, 100.0))
    written = [path.read_bytes() for path in sorted((place / "000000").glob("*.dcm"))]
    for number in range(1, files // SLICES):
        folder = place / f"{number:06d}"
        folder.mkdir()
        for index, content in enumerate(written):
            (folder / f"{index:04d}.dcm").write_bytes(_renamed(content, number))


def _renamed(content: bytes, number: int) -> bytes:
    """The last six of the forty digits of every UID of ours become the number of the series."""
    return re.sub(rb"(2\.25\.\d+)\d{6}(?!\d)", rb"\g<1>" + f"{number:06d}".encode(), content)


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, nargs="*", default=list(FILES))
    arguments = parser.parse_args()
    kept: dict[str, list[list[str]]] = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    for files in arguments.files:
        with tempfile.TemporaryDirectory(prefix="concordct-tree-") as folder:
            place = Path(folder)
            tree(place / "tree", files)
            rows = kept[str(files)] = []
            for look in ("first", "second"):
                took = concordct("inspect", place / "tree", "--index", place / "index", "--json")
                size = (place / "index").stat().st_size / 2**20
                cells = (
                    f"{took.wall_s:.1f}",
                    f"{took.cpu_s:.1f}",
                    f"{took.peak_mib:.0f}",
                    f"{size:.1f}",
                    f"{os.getloadavg()[0]:.1f}",
                    str(took.code),
                )
                rows.append([f"{files:,}", look, *cells])
                print(rows[-1], flush=True)
        KEPT.parent.mkdir(parents=True, exist_ok=True)
        KEPT.write_text(json.dumps(kept))
    heads = ["files", "look", "clock, s", "CPU, s", "peak, MiB", "index, MiB", "load", "exit code"]
    text = f"Slices of 8 x 8 in series of {SLICES}, on a local disk; `inspect --index`.\n\n" + table(
        heads, [row for _, rows in sorted(kept.items(), key=lambda one: int(one[0])) for row in rows]
    )
    first = {int(files): float(rows[0][4]) for files, rows in kept.items() if int(files) >= FULL_CACHE}
    if len(first) > 1:
        a_series = 1024 * SLICES * (first[max(first)] - first[min(first)]) / (max(first) - min(first))
        text += (
            f"\n\nFrom {min(first):,} files on, where the index fills its cache of 16 MB, memory grows by "
            f"{a_series:.1f} kB a series: what is printed of it."
        )
    write_section("inspect", "make bench-inspect", text, seed="none")


if __name__ == "__main__":
    main()
