"""The script for a machine with a card: its commands exist, and its measurement runs on the processor."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "runs" / "gpu.sh"


def test_every_command_of_the_script_exists() -> None:
    subprocess.run(["sh", "-n", SCRIPT], check=True)
    lines = SCRIPT.read_text().replace("\\\n", " ").splitlines()
    modules = [found[1] for line in lines if (found := re.search(r"\$PYTHON -m (\S+)", line))]
    assert {"benchmarks.gpu_speed", "benchmarks.papers_cohort", "concordct.cli"} <= set(modules)
    for line in lines:
        found = re.search(r"\$PYTHON -m (\S+)(.*)", line)
        if found is None:
            continue
        module = "concordct.cli.training" if found[1] == "concordct.cli" else found[1]
        spec = find_spec(module)
        assert spec is not None
        assert spec.origin is not None
        # Their text, since to ask them for help would load PyTorch three times.
        text = Path(spec.origin).read_text()
        for option in re.findall(r"(?<=[\s+])--([a-z-]+)", found[2]):
            assert f"--{option}" in text or f"{option.replace('-', '_')}: " in text, f"{module}: {option}"


@pytest.mark.slow
def test_the_measurement_runs_on_the_processor() -> None:
    words = ["-m", "benchmarks.gpu_speed", "--device", "cpu", "--matrix", "64", "--slices", "3"]
    said = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    apart = re.search(r"Largest difference ([\d.]+) HU", said)
    assert apart is not None
    assert float(apart[1]) <= 0.01
