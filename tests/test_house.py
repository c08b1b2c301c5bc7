"""The house: imports point down, no file grows without a reason, heavy libraries stay out of the spectral path."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "concordct"

#: From the ground up. A module imports from its own room or from rooms before it.
ROOMS = (
    "errors",
    "volumes",
    "signal",
    "scanner",
    "radiomics",
    "endpoints",
    "agreement",
    "nets",
    "diffusion",
    "training",
    "methods",
    "progression",
    "judging",
    "report",
    "pipelines",
    "serving",
    "cli",
)
MODULES = sorted(SOURCE.rglob("*.py"))


def _room(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "concordct" and len(parts) > 1 else None


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_down(path: Path) -> None:
    room = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    if room == "__init__":
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import in line {node.lineno}"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            other = _room(name)
            if other in (None, "__version__"):
                continue
            assert other in ROOMS, f"{path}: imports unknown room {other}"
            assert ROOMS.index(other) <= ROOMS.index(room), f"{path}, line {node.lineno}: {room} imports {other}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_files_stay_small(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 500


def test_the_spectral_path_needs_no_heavy_library() -> None:
    code = (
        "import sys, concordct.pipelines.calibrate, concordct.pipelines.standardize;"
        "print([m for m in ('torch', 'astra', 'monai', 'matplotlib', 'transformers', 'ants') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
