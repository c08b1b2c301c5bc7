"""Which tests run which lines, and the tests that know a mutant run on it; used by `benchmarks.mutants`.

A mutant meets the tests that run its line, the quickest first, in a fork of a process that has the outside libraries
loaded and nothing of ours: the fork imports a copy of the package with the fault in it.
"""

from __future__ import annotations

import ast
import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.mutants_places import Mutant, mutated

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "concordct"
#: Loaded before the forks: what the tests import and what takes long.
OUTSIDE = (
    "pytest", "numpy", "scipy.ndimage", "scipy.signal", "scipy.optimize", "torch", "pydicom", "safetensors.torch",
    "pydantic", "matplotlib.pyplot", "hypothesis",
)  # fmt: skip
#: Tests that compare with recorded values: they run last, so that what they alone notice can be counted.
KEPT = "tests/test_methods_kept.py"
#: Seconds that a mutant's tests may take: so many times what they take without it, and some more.
TIMES, MORE_S = 8.0, 120.0
#: The tests' whole time without a mutant, seconds; of more tests than fit the quickest run.
MOST_S = 40.0
#: pytest's exit code for tests that are not there, or whose module cannot be imported.
NOT_FOUND = 4
#: Our own modules, which a fork imports anew.
OURS = ("concordct", "tests", "benchmarks", "conftest", "learning", "synthetic")


def cover(names: Sequence[str], room: str, place: Path) -> None:
    """Run test files once: which tests pass, how long each takes, which run each line of the room."""
    import coverage
    import pytest

    class Outcomes:
        """Seconds of each test function, and those that fail or are skipped."""

        def __init__(self) -> None:
            self.seconds: dict[str, float] = {}
            self.bad: set[str] = set()

        def pytest_runtest_logreport(self, report: Any) -> None:
            name = report.nodeid.split("[")[0]
            self.seconds[name] = self.seconds.get(name, 0.0) + report.duration
            if report.failed:
                self.bad.add(name)

    place.parent.mkdir(parents=True, exist_ok=True)
    warm_up()  # else the first tests would look slow
    data = place.with_suffix(".coverage")
    data.unlink(missing_ok=True)
    outcomes = Outcomes()
    # A room is a folder or one file.
    within = PACKAGE / room if (PACKAGE / room).is_dir() else (PACKAGE / room).with_suffix(".py")
    watch = coverage.Coverage(
        data_file=str(data), include=[f"{within}/*" if within.is_dir() else str(within)], config_file=False
    )
    watch.set_option("run:dynamic_context", "test_function")
    watch.start()
    pytest.main(["-q", "-p", "no:cacheprovider", "-m", "not slow", *names], plugins=[outcomes])
    watch.stop()
    watch.save()
    write_covered(coverage.CoverageData(str(data)), outcomes.seconds, outcomes.bad, place)


def write_covered(data: Any, seconds: dict[str, float], bad: set[str], place: Path) -> None:
    """Lines by their text, so that a line added elsewhere does not move them: file -> text -> tests."""
    data.read()
    lines: dict[str, dict[str, list[str]]] = {}
    for measured in data.measured_files():
        path = Path(measured)
        text = path.read_text(encoding="utf-8").splitlines()
        own = lines.setdefault(path.as_posix().split("/concordct/")[-1], {})
        for number, contexts in data.contexts_by_lineno(measured).items():
            if not 1 <= number <= len(text):
                continue  # an empty file has a line for coverage
            tests = {_node(one) for one in contexts if one} & (seconds.keys() - bad)
            known = own.setdefault(text[number - 1].strip(), [])
            known.extend(sorted(tests - set(known)))
    place.write_text(json.dumps({"seconds": seconds, "lines": lines}), encoding="utf-8")


def _node(context: str) -> str:
    """coverage's "tests.test_x.test_y" or "test_x.test_y" as pytest's "tests/test_x.py::test_y"."""
    parts = context.removeprefix("tests.").split(".")
    return f"tests/{parts[0]}.py::{'::'.join(parts[1:])}"


def tests_of(mutant: Mutant, covered: dict[str, Any]) -> list[str]:
    """The tests that run a mutant's lines, or, of a line that runs at import, all that run its file.

    The quickest first, and those of `KEPT` last.
    """
    own: dict[str, list[str]] = covered["lines"].get(mutant.file, {})
    text = (PACKAGE / mutant.file).read_text(encoding="utf-8").splitlines()
    found = {test for line in text[mutant.first - 1 : mutant.last] for test in own.get(line.strip(), ())}
    if not found and not _in_function(mutant):
        found = {test for tests in own.values() for test in tests}
    seconds = covered["seconds"]
    ordered = sorted(found, key=lambda test: (test.startswith(KEPT), seconds[test], test))
    total, kept = 0.0, []
    for test in ordered:
        if kept and total + seconds[test] > MOST_S:
            continue
        total += seconds[test]
        kept.append(test)
    return kept


def _in_function(mutant: Mutant) -> bool:
    """Whether the mutant lies in a function's body, not in its defaults or at the top of the module."""
    node: Any = ast.parse((PACKAGE / mutant.file).read_text(encoding="utf-8"))
    inside = False
    for name, index in mutant.way:
        inside = inside or (isinstance(node, ast.FunctionDef) and name == "body")
        node = getattr(node, name) if index is None else getattr(node, name)[index]
    return inside


def warm_up() -> None:
    """Load what the forks share."""
    for name in OUTSIDE:
        importlib.import_module(name)


def sound(mutant: Mutant, covered: dict[str, Any], folder: Path) -> None:
    """Check that a mutant's tests pass in a fork without it: else everything would look killed."""
    tests = tests_of(mutant, covered)
    code = _forked(tests, folder, 600) if tests else 0
    if code:
        raise SystemExit(f"expected {tests} to pass without a mutant, pytest ended with {code}")


def judge(mutant: Mutant, covered: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run a mutant's tests on it, in a copy of the package below `folder`."""
    source = PACKAGE / mutant.file
    tests = tests_of(mutant, covered)
    began, outcome, by = time.monotonic(), "no test runs it", ""
    if tests:
        text = source.read_text(encoding="utf-8")
        place = folder / "concordct" / mutant.file
        place.write_text(ast.unparse(mutated(ast.parse(text), mutant.way, mutant.kind)), encoding="utf-8")
        limit = TIMES * sum(covered["seconds"][test] for test in tests) + MORE_S
        noticed = folder / "noticed"
        noticed.unlink(missing_ok=True)
        try:
            code = _forked(tests, folder, limit)
        finally:
            place.write_text(text, encoding="utf-8")
        by = noticed.read_text(encoding="utf-8") if noticed.exists() else ""
        if code == NOT_FOUND and _forked(tests, folder, limit) == 0:
            code = 1  # the fault keeps the tests' own module from being imported
        if code not in (0, 1, 2, None):
            raise SystemExit(f"{mutant.file}:{mutant.first}: expected pytest to run {tests}, it ended with {code}")
        outcome = "survived" if code == 0 else "killed"
        by = by or {None: "time was up", 0: ""}.get(code, "the tests' module")
    return {
        "key": mutant.key,
        "outcome": outcome,
        "by": by,
        "tests": len(tests),
        "seconds": round(time.monotonic() - began, 1),
    }


class _First:
    """Writes down the first test that fails."""

    def __init__(self, folder: Path) -> None:
        self.place = folder / "noticed"

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and not self.place.exists():
            self.place.write_text(report.nodeid, encoding="utf-8")


def _forked(tests: Sequence[str], folder: Path, limit: float) -> int | None:
    """Exit code of pytest on these tests in a fork; None when its time is up."""
    child = os.fork()
    if child == 0:
        code = 3
        try:
            os.setpgid(0, 0)
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            for name in list(sys.modules):
                if name.split(".")[0] in OURS:
                    del sys.modules[name]
            sys.path[:] = [str(folder), *(one for one in sys.path if Path(one) != PACKAGE.parent)]
            os.environ["PYTHONPATH"] = f"{folder}{os.pathsep}{ROOT}"
            os.chdir(ROOT)
            sys.dont_write_bytecode = True
            import pytest

            code = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests], plugins=[_First(folder)]))
        finally:
            os._exit(code)
    until = time.monotonic() + limit
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None
