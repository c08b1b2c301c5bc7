"""The same bytes whatever the processor, its threads, workers, locale, time zone, umask and hash seed."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from volumes_slices import write_slice

_DRAW = """
import hashlib
import numpy as np
from concordct.scanner.frame import Frame
from concordct.scanner.patients import digital_patient
from concordct.scanner.trees import grow_tree
g = np.random.default_rng(3)
cloud = g.normal(size=(900, 3)) * (30, 20, 40)
tubes, feeds = grow_tree(np.zeros(3), cloud, end_radius_mm=0.4, wander=0.1, generator=g)
body = digital_patient(3, seed=5)
hu = body.draw(np.array([0.4, 0.5, 0.6]) * body.height_mm, Frame((128, 128), 3.0)).round()
print(hashlib.sha256(tubes.round(6).tobytes() + feeds.tobytes() + hu.astype("<i2").tobytes()).hexdigest())
"""


def _run(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.mark.slow
def test_simulated_patients_are_the_same_on_every_processor() -> None:
    """OpenBLAS picks its kernels by the processor; numpy its own loops. Older kernels stand in for other machines."""
    here = _run(_DRAW)
    assert _run(_DRAW, OPENBLAS_CORETYPE="Nehalem") == here
    assert _run(_DRAW, OPENBLAS_CORETYPE="Haswell", OPENBLAS_NUM_THREADS="2", OMP_NUM_THREADS="2") == here


def test_the_longest_axis_has_no_sign_of_its_own() -> None:
    from concordct.scanner.trees import grow_tree

    ends = np.random.default_rng(1).normal(size=(40, 3)) * (1, 2, 9)
    grown = [
        grow_tree(np.zeros(3), cloud, end_radius_mm=1, wander=0, generator=np.random.default_rng(2))[0]
        for cloud in (ends, ends[::-1])
    ]
    # The order in which the ends are named turns the eigenvector round; the tree is the same.
    assert np.allclose(grown[0], grown[1], atol=1e-9)


_STANDARDIZE = "from concordct.cli import main; main()"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree")
    y, x = np.mgrid[:96, :96] - 47.5
    for name in ("a", "b"):
        for index in range(3):
            noise = np.random.default_rng(index).normal(0, 20, (96, 96))
            hu = np.rint(np.where(np.hypot(y, x) < 36, 40, -990) + noise)
            tags = {"SeriesInstanceUID": f"1.2.3.{ord(name)}", "SOPInstanceUID": f"1.2.3.{ord(name)}.{index}"}
            write_slice(root / "in" / name / f"{index}.dcm", z=3.0 * index, hu=hu, **tags)
    frequencies = np.arange(0, 11, 0.5)
    for name, width in (("soft", 4.0), ("sharp", 6.0)):
        rows = "".join(f"{f},{np.exp(-((f / width) ** 2))},{50 * np.exp(-((f / 5) ** 2))}\n" for f in frequencies)
        (root / f"{name}.csv").write_text("f_lp_cm,mtf,nps_hu2_mm2\n" + rows)
    _command(root, "calibrate", "--tables", "soft.csv", "sharp.csv", "-o", "model")
    return root


def _command(root: Path, *words: str, **environment: str) -> None:
    subprocess.run(
        [sys.executable, "-c", f"import os; os.umask(int(os.environ.get('MASK', '22'), 8)); {_STANDARDIZE}", *words],
        cwd=root,
        env={**os.environ, **environment},
        check=True,
        capture_output=True,
    )


def _digest(folder: Path) -> str:
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return found.hexdigest()


@pytest.mark.slow
def test_a_run_gives_the_same_bytes_in_any_environment(tree: Path) -> None:
    def run(name: str, *words: str, **environment: str) -> str:
        _command(tree, "standardize", "in", "-m", "model", "-o", name, *words, **environment)
        return _digest(tree / name)

    here = run("plain")
    other = {"LC_ALL": "C", "LANG": "tr_TR.UTF-8", "TZ": "Pacific/Kiritimati", "PYTHONHASHSEED": "7", "MASK": "77"}
    threads = {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2", "OPENBLAS_CORETYPE": "Nehalem"}
    assert run("other", "--workers", "2", **other, **threads) == here
    assert len(list((tree / "plain").rglob("*.dcm"))) == 6
