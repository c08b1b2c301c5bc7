"""What an installation costs: size on disk, start-up times, and whether the plain tool works without any extra.

python -m benchmarks.install                                     # this Python; writes docs/results/install.md
python -m benchmarks.install --python python3.12 python3.13      # others, too, with the fast tests of the core

Wheels are built and installed into environments of their own, so it takes a package index; a minute or two for each.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.results import ROOT, table, write_section

#: Megabytes of the plain tool's environment, and seconds of its import, at most.
MOST_MB, MOST_SECONDS = 600, 0.2
#: What every environment made by `venv` and pip holds, whatever is installed.
INSTALLERS = ("pip", "setuptools", "wheel", "pkg_resources", "_distutils_hack")
REPEATS = 5
#: Largest packages that are listed.
LISTED = 8
#: Tests of what the plain tool does, and what they need beside `measure`.
TESTS = (
    "test_signal_*.py", "test_agreement_*.py", "test_methods_spectral.py", "test_volumes_files.py",
    "test_volumes_find.py", "test_volumes_derived.py", "test_pipelines_standardize.py",
)  # fmt: skip
TEST_NEEDS = ("pytest>=8", "hypothesis>=6", "nibabel>=5.2", "highdicom>=0.25")
#: Run by the environment's own Python on a pair of small discs: the verbs that need no extra.
PLAIN_VERBS = """
import sys, tempfile
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from synthetic import pair, volume
from typer.testing import CliRunner
from concordct import cli
from concordct.volumes.new_series import SimulatedScan, write_new_series
with tempfile.TemporaryDirectory() as place:
    root = Path(place)
    for number, (kernel, hu) in enumerate(zip(("Br40", "Bl64"), pair(seed=1, size=160)), start=1):
        scan = SimulatedScan("p", "s", "Chest", number, 120.0, 100.0)
        write_new_series(volume(hu, kernel=kernel), root / "exam" / kernel, scan)
    exam, model = str(root / "exam"), str(root / "m")
    for words in (
        ["inspect", exam, "--identify"],
        ["calibrate", exam, "--from", "Br40", "--to", "Bl64", "-o", model],
        ["standardize", exam, "-m", model, "-o", str(root / "out")],
        ["describe", model],
        ["cohort", "folder", exam, "--kernel", "Br40", "--kernel", "Bl64", "-o", str(root / "cohort")],
    ):
        found = CliRunner().invoke(cli.common.app, words)
        assert found.exit_code == 0, (words, found.output, found.exception)
        print(words[0])
"""


def megabytes(folder: Path) -> float:
    """Size on disk, as `du` counts it."""
    return (
        int(subprocess.run(["du", "-sk", folder], capture_output=True, text=True, check=True).stdout.split()[0]) / 1e3
    )


def seconds(*command: str | Path) -> float:
    """Processor seconds of a command, the least of some runs, so that a busy machine does not count."""
    found = []
    for _ in range(REPEATS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([*map(str, command)], check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(found)


def environment(python: str, place: Path, wheel: Path) -> Path:
    """A fresh environment with the wheel; its Python."""
    subprocess.run([python, "-m", "venv", place], check=True)
    inside = place / "bin" / "python"
    install(inside, str(wheel))
    return inside


def install(python: Path, *packages: str) -> None:
    """With the environment's own pip."""
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--prefer-binary", *packages]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)


def start_up(python: Path) -> list[list[str]]:
    """Rows of what starting takes, and beyond an interpreter that does nothing."""
    bare, rows = seconds(python, "-c", "pass"), []
    for what, command in (
        ("`import concordct`", (python, "-c", "import concordct")),
        ("`concordct --help`", (python.parent / "concordct", "--help")),
        ("`concordct standardize --help`", (python.parent / "concordct", "standardize", "--help")),
    ):
        spent = seconds(*command)
        rows.append([what, f"{spent:.2f}", f"{max(spent - bare, 0):.2f}"])
    return rows


def packages_of(python: Path) -> list[tuple[str, float]]:
    """What lies in an environment, largest first; shared libraries count with the package that brought them."""
    (site,) = python.parents[1].glob("lib/python*/site-packages")
    sizes: dict[str, float] = {}
    for path in site.iterdir():
        name = path.name.removesuffix(".libs").removesuffix(".py").split("-")[0].lstrip("_")
        name = "gdcm" if name == "python_gdcm" else name
        sizes[name] = sizes.get(name, 0.0) + megabytes(path)
    return sorted(sizes.items(), key=lambda item: -item[1])


def tested(python: Path) -> str:
    """The closing line of the core's fast tests."""
    files = sorted(path for pattern in TESTS for path in (ROOT / "tests").glob(pattern))
    found = subprocess.run(
        [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", *files],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    lines = found.stdout.strip().splitlines()
    if found.returncode:
        sys.stderr.write(found.stdout[-4000:])
    return lines[-1].strip("= ") if lines else found.stderr[-200:]


def main() -> None:
    """Install, measure, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", nargs="*", default=[], help="further interpreters")
    given = parser.parse_args()
    sizes, versions, largest, times = [], [], [], []
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        subprocess.run(
            [sys.executable, "-m", "build", "--wheel", "--outdir", place, ROOT], check=True, stdout=subprocess.DEVNULL
        )
        (wheel,) = place.glob("*.whl")
        for index, python in enumerate((sys.executable, *given.python)):
            inside = environment(python, place / f"env-{index}", wheel)
            found = packages_of(inside)
            own = sum(size for name, size in found if name in INSTALLERS)
            whole = megabytes(inside.parents[1])
            said = subprocess.run([inside, "--version"], capture_output=True, text=True, check=True).stdout.strip()
            done = subprocess.run(
                [inside, "-c", PLAIN_VERBS, ROOT / "tests"], capture_output=True, text=True, check=True
            ).stdout.split()
            sizes.append([said, f"{whole:.0f}", f"{whole - own:.0f}", ", ".join(done)])
            print(sizes[-1], flush=True)
            if index == 0:
                largest = found[:LISTED]
                times = start_up(inside)
                if whole > MOST_MB:
                    raise SystemExit(f"plain environment: expected at most {MOST_MB} MB, found {whole:.0f}")
            else:
                install(inside, "--no-compile", f"{wheel}[measure]", *TEST_NEEDS)
                versions.append([said, tested(inside)])
                print(versions[-1], flush=True)
    body = [
        "An environment made by `venv` and filled by `pip install` from the wheel, without any extra: everything in "
        "it, as `du` counts, and without pip and what comes with it. The verbs are those that ran in it on a pair of "
        "simulated discs.",
        table(["Python", "MB", "MB without pip", "verbs that ran"], sizes),
        "What the plain tool's environment holds, largest first:",
        table(["package", "MB"], [[name, f"{size:.0f}"] for name, size in largest]),
        f"Processor seconds, the least of {REPEATS} runs, and beyond an interpreter that does nothing. The import is "
        f"to stay under {MOST_SECONDS} s.",
        table(["command", "seconds", "beyond Python's own"], times),
    ]
    if versions:
        body += [
            f"The core's fast tests ({', '.join(f'`{one}`' for one in TESTS)}), with `measure`, without PyTorch; "
            "all tests run on the Python of the first row:",
            table(["Python", "tests"], versions),
        ]
    text = "\n\n".join(body)
    command = "python -m benchmarks.install" + (
        f" --python {' '.join(Path(p).name for p in given.python)}" if given.python else ""
    )
    print(text)
    write_section("install", command, text, seed="none")


if __name__ == "__main__":
    main()
