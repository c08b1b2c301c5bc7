"""The house: imports point down, no file grows without a reason, heavy libraries stay out of the spectral path."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "concordct"

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
    "api",
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


#: What reads or writes images; registration's transforms are none.
IMAGE_LIBRARIES = ("pydicom", "gdcm", "jpeg_ls", "nibabel", "nrrd", "itk")
IMAGE_CALLS = ("ReadImage", "WriteImage", "ImageFileReader", "ImageFileWriter", "ImageSeriesReader", "dcmread")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_images_are_read_and_written_by_volumes_alone(path: Path) -> None:
    room = path.relative_to(SOURCE).parts[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            assert node.attr not in IMAGE_CALLS or (room == "volumes" and node.attr == "dcmread"), (
                f"{path}: {node.attr}"
            )
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            # The node speaks DICOM's network protocol and hands what it receives to `volumes`.
            allowed = room == "volumes" or (room == "serving" and name.split(".")[0] == "pydicom")
            assert allowed or name.split(".")[0] not in IMAGE_LIBRARIES, f"{path}: imports {name}"


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


@pytest.mark.parametrize(
    "path",
    [*MODULES, *sorted((SOURCE.parents[1] / "benchmarks").glob("*.py"))],
    ids=lambda path: path.name,
)
def test_nothing_private_crosses_files(path: Path) -> None:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("concordct", "benchmarks")):
            private = [alias.name for alias in node.names if re.match(r"_[^_]", alias.name)]
            assert not private, f"line {node.lineno}: {private}"
            modules |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            # A class that was imported may be asked for what it says of itself, never for its inside.
            assert not re.match(r"_[^_]", node.attr), f"line {node.lineno}: {node.value.id}.{node.attr}"


def _docstrings(tree: ast.AST) -> set[int]:
    holders = (ast.Module, ast.ClassDef, ast.FunctionDef)
    bodies = [node.body for node in ast.walk(tree) if isinstance(node, holders) and node.body]
    return {id(body[0].value) for body in bodies if isinstance(body[0], ast.Expr)}


#: Options of git, which tells the commit of a result.
OF_GIT = {"--show-toplevel", "--short"}
#: Options of the programs that a file runs, by the file.
OF_PROGRAMS = {"archive_transfer.py": {"--json", "--no-sign-request", "--retry-count", "--endpoint-url", "--etag"}}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_libraries_name_no_option_of_the_command_line(path: Path) -> None:
    if path.relative_to(SOURCE).parts[0] == "cli":
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docs = _docstrings(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", node.value)) - OF_GIT
            named -= OF_PROGRAMS.get(path.name, set())
            assert not named, f"line {node.lineno}: {named}"


def test_paths_in_equations_exist() -> None:
    text = (SOURCE.parents[1] / "docs" / "equations.md").read_text(encoding="utf-8")
    for name in sorted(set(re.findall(r"`([a-z0-9_/]+\.py)", text))):
        assert list(SOURCE.parents[1].glob(f"**/{name}")), name


def test_the_tree_in_the_readme_is_true() -> None:
    """Every folder of the package stands in README's tree, and nothing that is not there."""
    text = (SOURCE.parents[1] / "README.md").read_text(encoding="utf-8")
    tree = text[text.index("    src/concordct/ ") : text.index("    tests/ ")].splitlines()[1:]
    shown, room = set(), ""
    for line in tree:
        name = line.split()[0]
        inside = line.startswith(" " * 8)
        room = room if inside else name
        shown.add(f"{room}{name}" if inside else name)
    folders = {
        f"{path.relative_to(SOURCE).as_posix()}/"
        for path in SOURCE.rglob("*")
        if path.is_dir()
        and path.name != "__pycache__"
        and len(path.relative_to(SOURCE).parts) < 3
        and any(one.is_file() for one in path.rglob("*") if "__pycache__" not in one.parts)
        and not path.relative_to(SOURCE).as_posix().startswith("methods/weights/")
    }
    assert {name for name in shown if name.endswith("/")} == folders
    assert all((SOURCE / name).exists() for name in shown)


def test_the_lock_holds_whatever_tests_need_in_a_version_that_is_allowed():
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras, waiting, wanted = known["optional-dependencies"], ["dev"], list(known["dependencies"])
    while waiting:
        for text in extras[waiting.pop()]:
            requirement = Requirement(text)
            own = requirement.name == known["name"]
            waiting += requirement.extras if own else []
            wanted += [] if own else [text]
    locked = [
        Requirement(line.removesuffix("\\").strip())
        for line in (ROOT / "requirements.lock").read_text().splitlines()
        if re.match(r"\w", line)
    ]
    missing = [
        text
        for text in wanted
        if not any(
            canonicalize_name(one.name) == canonicalize_name(Requirement(text).name)
            and Requirement(text).specifier.contains(next(iter(one.specifier)).version, prereleases=True)
            for one in locked
        )
    ]
    assert not missing, "run `make lock`"
