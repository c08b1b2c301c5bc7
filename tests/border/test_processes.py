"""What a run does to its terminal, its workers and its output when something goes wrong around it."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from concordct.cli import common, main
from concordct.errors import ConcordctError, reason_of
from concordct.pipelines.parts import refuse_standing
from concordct.radiomics.table import FeatureRows, read_rows, write_rows
from concordct.signal.compiled import compiled
from concordct.training.data import store
from concordct.volumes.csv_text import plain_cell, safe_cell
from concordct.volumes.find import find_series
from concordct.volumes.manifest import PairRow, write_manifest
from concordct.volumes.place import atomic_directory, atomic_file
from concordct.volumes.workers import Crew
from volumes_slices import write_stack

sys.path.insert(0, str(Path(__file__).parent))
from guard_tasks import decoder_of


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """The command line in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["concordct", *map(str, words)])
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return 0


# The terminal.


def test_names_that_a_terminal_would_obey_are_shown_as_escapes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/s\xff\x1b[2J\xe2\x80\xae:x:[/b]"))
    write_stack(folder, [0.0, 3.0, 6.0])
    assert run(monkeypatch, "inspect", tmp_path) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert "\\x1b" in shown
    assert ":x:[/b]" in shown
    assert run(monkeypatch, "inspect", folder / "none") == 2
    said = capsys.readouterr().err
    assert "\x1b" not in said
    assert len(said.strip().splitlines()) == 1


def test_a_fault_is_one_line_and_a_report_without_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["concordct", "inspect", "/data/DOE^JANE"])
    try:
        int("DOE^JANE")
    except ValueError as error:
        common.fail(error)
    said = capsys.readouterr().err
    assert len(said.strip().splitlines()) == 1
    assert "a fault of the program, ValueError in test_processes.py, line" in said
    (report,) = tmp_path.glob("concordct-fault-*.txt")
    text = report.read_text()
    assert "verb: inspect" in text
    assert "test_a_fault_is_one_line" in text
    assert "DOE" not in said + text


def test_reasons() -> None:
    assert reason_of(ConcordctError("a\nb")) == "a b"
    assert reason_of(OSError(28, "No space left on device", "/x/y")) == "/x/y: no space left on the device"
    assert reason_of(MemoryError()) == "not enough memory"


@pytest.mark.parametrize(
    "words",
    [
        "simulate phantom --kernel Br40 --kernel Bl64 --slice-thickness 1 --slices 1 --matrix 64",
        "cohort folder IN --kernel B30f --kernel B70f",
        "features IN/a -p pyradiomics-default",
        "rois IN/a --size 4",
        "train ltdiffpp PAIRS",
        "evaluate --source IN/a --standardized IN/b --target IN/b",
        "demo",
    ],
)
def test_a_place_that_cannot_be_written_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str
) -> None:
    scans = [tmp_path / "in" / name for name in "ab"]
    for scan, kernel in zip(scans, ("B30f", "B70f"), strict=True):
        write_stack(scan, [0.0, 3.0, 6.0], ConvolutionKernel=kernel, SeriesInstanceUID=f"1.2.3.{kernel[1]}")
    pairs = write_manifest(
        tmp_path / "pairs.csv", [PairRow(pair="p", subject="s", split="train", source=scans[0], target=scans[1])]
    )
    line = words.replace("IN", str(tmp_path / "in")).replace("PAIRS", str(pairs))
    assert run(monkeypatch, *line.split(), "-o", "/proc/none/out.nii.gz") == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert "fault of the program" not in said
    assert "/proc/none" in said


def test_voxels_for_training_on_a_full_disk_are_an_error_and_no_signal(tmp_path: Path) -> None:
    series = find_series(write_stack(tmp_path / "in", [0.0, 3.0, 6.0])).series[0]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        with pytest.raises(ConcordctError, match="too large for this place"):
            store(tmp_path / "voxels", "pair", series, None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    images = store(tmp_path / "voxels", "pair", series, None)
    assert np.array_equal(images.source, np.rint(series.read().hu))


# Tables.


@pytest.mark.parametrize("name", ["=1+1", "+x", "-x", "@x", "\tx", "'=x", "''x", "x", "", "ä", "-1.5"])
def test_no_cell_begins_a_formula_and_comes_back(name: str) -> None:
    assert not safe_cell(name).startswith(("=", "+", "-", "@", "\t", "\r"))
    assert plain_cell(safe_cell(name)) == name


def test_features_of_images_named_like_formulas_come_back(tmp_path: Path) -> None:
    import numpy as np

    rows = FeatureRows((("=cmd()", "@roi"),), ("+s",), ("a_b_c",), ("b",), np.array([[-1.5]]))
    write_rows(tmp_path / "f.csv", rows)
    assert "\n'=cmd()" in (tmp_path / "f.csv").read_text()
    again = read_rows(tmp_path / "f.csv")
    assert (again.keys, again.subjects, again.values[0, 0]) == (rows.keys, rows.subjects, -1.5)


# Leftovers.


def test_leftovers_of_process_1_are_cleared(tmp_path: Path) -> None:
    """In a container every run is process 1, and process 1 is always alive."""
    with atomic_directory(tmp_path / "out") as aside:
        name = aside.name
    left = tmp_path / name.replace(f"-{os.getpid()}-", "-1-")
    left.mkdir()
    (left / "half").write_text("half")
    with atomic_file(tmp_path / "out.csv") as aside:
        aside.write_text("x")
    assert left.exists()
    with pytest.raises(ConcordctError, match="output exists"), atomic_directory(tmp_path / "out"):
        pass
    assert not left.exists()


@pytest.mark.parametrize("age", [-10, 10])
def test_parts_of_the_run_that_made_an_output_go_and_those_of_another_stay(tmp_path: Path, age: int) -> None:
    output, parts = tmp_path / "f.csv", tmp_path / ".f.csv.images"
    parts.mkdir()
    output.touch()
    made = output.stat().st_mtime
    for one in (parts / "a.npz", parts):
        one.touch()
        os.utime(one, (made + age, made + age))
    refuse_standing(output, parts, overwrite=True)
    with pytest.raises(ConcordctError, match="output exists and stays as it is"):
        refuse_standing(output, parts, overwrite=False)
    assert parts.exists() == (age > 0)


def test_what_a_living_run_builds_is_left_alone(tmp_path: Path) -> None:
    with atomic_directory(tmp_path / "out") as aside:
        (aside / "a").write_text("first")
        with atomic_directory(tmp_path / "out") as other:
            (other / "a").write_text("second")
        assert (aside / "a").read_text() == "first"
        (tmp_path / "out" / "a").unlink()
        (tmp_path / "out").rmdir()
    assert (tmp_path / "out" / "a").read_text() == "first"


def test_simulate_killed_before_its_plan_goes_on(tmp_path: Path) -> None:
    from concordct.pipelines.simulate import _claim  # the step that a kill comes before

    left = tmp_path / ".cohort.json.host-99999999-abc.part"
    left.mkdir()
    (left / "cohort.json").write_text("{")
    _claim(tmp_path, [], "dicom")
    assert (tmp_path / "cohort.json").is_file()


# Workers.

_POOL = """
import sys, time
from concordct.volumes.workers import worker_pool
if __name__ == "__main__":
    with worker_pool(2) as pool:
        found = [pool.submit(time.sleep, 100) for _ in range(2)]
        print("started", flush=True)
        for one in found:
            one.result()
"""


def _descendants(process: int) -> set[int]:
    parents = {}
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = place.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if fields[0] != "Z":
            parents[int(place.parent.name)] = int(fields[1])
    found, size = {process}, 0
    while len(found) > size:
        size = len(found)
        found |= {child for child, parent in parents.items() if parent in found}
    return found - {process}


def _gone(children: set[int]) -> bool:
    for _ in range(200):
        if not any(Path(f"/proc/{child}").exists() and "Z" not in _state(child) for child in children):
            return True
        time.sleep(0.1)
    return False


def _state(child: int) -> str:
    try:
        return Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return "Z"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_workers_end_with_their_run(tmp_path: Path, how: signal.Signals) -> None:
    (tmp_path / "pool.py").write_text(_POOL)
    process = subprocess.Popen(
        [sys.executable, tmp_path / "pool.py"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        # A shell's background jobs ignore Ctrl-C, and so would what they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    process.stdout.readline()
    children: set[int] = set()
    for _ in range(200):
        children = _descendants(process.pid)
        if len(children) >= 4:  # two workers, what they fork from, and the tracker of their semaphores
            break
        time.sleep(0.1)
    assert len(children) >= 4
    if how == signal.SIGINT:
        os.killpg(process.pid, how)  # as Ctrl-C on a terminal does
    else:
        process.send_signal(how)
    _, said = process.communicate(timeout=30)
    assert _gone(children)
    assert said.count(b"Traceback") <= (how == signal.SIGINT)


def test_functions_compile_where_nothing_can_be_kept() -> None:
    """numba finds no place for the work on a function that no file holds, as on one in a read-only package."""
    names: dict[str, object] = {}
    exec("def double(x):\n    return 2 * x", names)
    assert compiled(names["double"])(21) == 42


def test_a_picture_without_a_place_for_its_library_is_refused_before_the_work(tmp_path: Path) -> None:
    program = (
        "import tempfile; tempfile.tempdir = '/proc/none'\n"
        "from concordct.errors import ConcordctError\n"
        "from concordct.signal.drawing import ready_to_draw\n"
        "try: ready_to_draw()\n"
        "except ConcordctError as error: print(error)\n"
    )
    without = {name: value for name, value in os.environ.items() if not name.startswith(("MPL", "XDG"))}
    for home, said in (("/proc/none", "no folder for matplotlib's cache can be written"), (str(tmp_path), "")):
        done = subprocess.run([sys.executable, "-c", program], env=without | {"HOME": home}, capture_output=True)
        assert done.stdout.decode().startswith(said)
        assert (said == "") == (done.stdout == b"")
        assert b"Traceback" not in done.stderr


def test_a_worker_has_no_thread_of_its_own(tmp_path: Path) -> None:
    """What it decodes with is then a fork of it, which takes no half second to start."""
    crew = Crew(1)
    try:
        ((_, forked),) = crew.run(decoder_of, [tmp_path], lambda path: "lost", tries=1)
    finally:
        crew.end()
    assert forked == ("Forked" if sys.platform == "linux" else "Popen")
