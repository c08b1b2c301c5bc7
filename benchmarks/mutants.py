"""Do the tests notice? A seeded sample of small faults in methods/, diffusion/, agreement/ and judging/, one at a time.

python -m benchmarks.mutants                   # 300 mutants; hours of one core, resumes
python -m benchmarks.mutants --minutes 9       # one piece
python -m benchmarks.mutants --show            # what survived

A mutant is one changed operator, comparison, number or condition, or one call left out. The tests of its room run on
it; it is killed when one fails or time is up. Recipes and raised messages are left alone: what a recipe says is no
behaviour that a test could know. The page `docs/results/mutants.md` counts them and lists the survivors.
"""

from __future__ import annotations

import argparse
import ast
import copy
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.papers_cohort import runs
from benchmarks.results import RESULTS, ROOT, table
from concordct.judging.provenance import provenance

SEED, COUNT = 0, 300
#: Seconds that the tests of one mutant may take.
LIMIT_S = 240
PACKAGE = ROOT / "src" / "concordct"
#: Rooms, and the tests that know them.
ROOMS: dict[str, tuple[str, ...]] = {
    "methods/concord": ("test_methods_concord", "test_methods_texture_level", "test_methods_lacking_power"),
    "methods/spectral": ("test_methods_spectral", "test_methods_self_check", "test_methods_spectral_unpaired"),
    "methods/paired": ("test_methods_phases", "test_methods_learned"),
    "methods/network": ("test_methods_learned",),
    "methods/slabs": ("test_methods_learned", "test_pipelines_samples"),
    "methods/models": ("test_methods_learned", "test_pipelines_train"),
    "diffusion": ("test_diffusion", "test_diffusion_residual_shifting", "test_methods_phases"),
    "agreement": ("test_agreement_concordance", "test_agreement_combat", "test_agreement_endpoints"),
    "judging": ("test_judging", "test_pipelines_compare", "test_report_evaluation"),
}
#: What says how a method is trained.
RECIPES = {"RECIPES", "UNETPP_RECIPES", "_SMALL", "_small", "_phases", "_recipes", "ENTRY", "CATALOGUE", "__all__"}
PAGE = RESULTS / "mutants.md"

_SWAPS: dict[type, type] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Add: ast.Sub, ast.Sub: ast.Add,
    ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip


def places(tree: ast.Module) -> list[tuple[list[Any], str]]:
    """Every place that can be changed: the way to the node, and what is done there."""
    found: list[tuple[list[Any], str]] = []

    def walk(node: ast.AST, way: list[Any]) -> None:
        if isinstance(node, ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom):
            return
        if isinstance(node, ast.FunctionDef) and node.name in RECIPES:
            return
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(one, ast.Name) and one.id in RECIPES for one in targets):
                return
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if (isinstance(node, ast.BinOp | ast.BoolOp) and type(node.op) in _SWAPS) or (
            isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _SWAPS
        ):
            found.append((way, "operator"))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
            found.append((way, "sign"))
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            found.append((way, "number"))
        if isinstance(node, ast.If | ast.IfExp):
            found.append((way, "condition"))
        if isinstance(node, ast.AugAssign) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
            found.append((way, "left out"))
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list"):
                continue
            for index, child in enumerate(value) if isinstance(value, list) else ((None, value),):
                if isinstance(child, ast.AST):
                    walk(child, [*way, (name, index)])

    walk(tree, [])
    return found


def mutated(tree: ast.Module, way: Sequence[tuple[str, int | None]], kind: str) -> ast.Module:
    """The module with one place changed."""
    changed = copy.deepcopy(tree)
    holder: Any = None
    node: Any = changed
    for name, index in way:
        holder = (node, name, index)
        node = getattr(node, name) if index is None else getattr(node, name)[index]
    new: Any = node
    if kind == "operator":
        if isinstance(node, ast.Compare):
            node.ops[0] = _SWAPS[type(node.ops[0])]()
        else:
            node.op = _SWAPS[type(node.op)]()
    elif kind == "sign":
        new = node.operand
    elif kind == "number":
        value = node.value
        new = ast.Constant(not value if isinstance(value, bool) else value + 1 if isinstance(value, int) else value * 2)
    elif kind == "condition":
        node.test = ast.UnaryOp(ast.Not(), node.test)
    else:
        new = ast.Pass()
    parent, name, index = holder
    if index is None:
        setattr(parent, name, new)
    else:
        getattr(parent, name)[index] = new
    return ast.fix_missing_locations(changed)


def sample(count: int, seed: int) -> list[dict[str, Any]]:
    """Mutants drawn from all places of all rooms alike: file, line, kind, the way to the node, and the tests."""
    everything = []
    for room, tests in ROOMS.items():
        path = PACKAGE / room
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]:
            tree = ast.parse(file.read_text(encoding="utf-8"))
            for way, kind in places(tree):
                relative = file.relative_to(PACKAGE).as_posix()
                everything.append({"file": relative, "kind": kind, "way": way, "tests": tests, "room": room})
    return random.Random(seed).sample(everything, min(count, len(everything)))


def _line(tree: ast.AST, way: Sequence[Any]) -> int:
    line, node = 0, tree
    for name, index in way:
        node = getattr(node, name) if index is None else getattr(node, name)[index]
        line = getattr(node, "lineno", line)
    return line


def judge(mutant: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run the room's tests on one mutant in a copy of the package."""
    source = PACKAGE / mutant["file"]
    text = source.read_text(encoding="utf-8")
    tree = ast.parse(text)
    changed = mutated(tree, mutant["way"], mutant["kind"])
    line = _line(tree, mutant["way"])
    place = folder / "concordct" / mutant["file"]
    place.write_text(ast.unparse(changed), encoding="utf-8")
    tests = [f"tests/{name}.py" for name in mutant["tests"] if (ROOT / "tests" / f"{name}.py").exists()]
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    began = time.monotonic()
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=LIMIT_S, check=False)
        outcome = "killed" if done.returncode == 1 or done.returncode == 2 else "survived"
    except subprocess.TimeoutExpired:
        outcome = "killed"
    finally:
        place.write_text(text, encoding="utf-8")
    shown = text.splitlines()[line - 1].strip() if line else ""
    seconds = round(time.monotonic() - began, 1)
    return {**mutant, "line": line, "code": shown, "outcome": outcome, "seconds": seconds}


def _known(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        yield json.loads(line)


def _page(found: list[dict[str, Any]]) -> None:
    rows, survivors = [], []
    for room in ROOMS:
        own = [one for one in found if one["room"] == room]
        if own:
            killed = sum(one["outcome"] == "killed" for one in own)
            rows.append([room, str(len(own)), str(killed), f"{killed / len(own):.0%}"])
            survivors += [one for one in own if one["outcome"] != "killed"]
    killed = sum(one["outcome"] == "killed" for one in found)
    rows.append(["all", str(len(found)), str(killed), f"{killed / max(len(found), 1):.0%}"])
    made = provenance()
    body = [
        "# Small faults that the tests notice",
        "",
        f"{len(found)} of a seeded sample of {COUNT} mutants; one changed operator, number or condition each.",
        "",
        table(["room", "mutants", "killed", "share"], rows),
        "",
        "## Survivors",
        "",
        table(
            ["where", "change", "line"],
            [[f"{one['file']}:{one['line']}", one["kind"], f"`{one['code'].replace('|', '/')}`"] for one in survivors],
        ),
        "",
        f"*`make mutants`, {made['software']}, commit {made['commit']}, seed {SEED}, {made['machine']}.*",
    ]
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text("\n".join(body) + "\n", encoding="utf-8")
    print(f"{killed} of {len(found)} killed; {PAGE}")


def main() -> None:
    """Judge the mutants that have not been judged yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, help="stop after this long; the same call goes on")
    parser.add_argument("--rooms", nargs="*", choices=list(ROOMS), help="these rooms alone")
    parser.add_argument("--show", action="store_true", help="write the page and judge nothing")
    given = parser.parse_args()
    until = None if given.minutes is None else time.monotonic() + 60 * given.minutes
    results = runs().parent / "mutants.jsonl"
    found = list(_known(results))
    judged = {(one["file"], json.dumps(one["way"]), one["kind"]) for one in found}
    with tempfile.TemporaryDirectory() as aside:
        shutil.copytree(PACKAGE, Path(aside) / "concordct")
        for mutant in () if given.show else sample(COUNT, SEED):
            key = (mutant["file"], json.dumps(mutant["way"]), mutant["kind"])
            if key in judged or (given.rooms and mutant["room"] not in given.rooms):
                continue
            if until is not None and time.monotonic() > until:
                break
            one = judge(mutant, Path(aside))
            found.append(one)
            results.parent.mkdir(parents=True, exist_ok=True)
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(one) + "\n")
            print(f"{one['outcome']}: {one['file']}:{one['line']} {one['kind']}", flush=True)
    _page(found)


if __name__ == "__main__":
    main()
