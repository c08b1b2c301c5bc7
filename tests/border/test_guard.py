"""The worker process: what kills it is one refused call, and the next call is served."""

from __future__ import annotations

import os
import platform
import select
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from concordct.errors import ConcordctError
from concordct.volumes import guard, guard_process
from concordct.volumes.guard import guarded

sys.path.insert(0, str(Path(__file__).parent))
import guard_tasks as tasks

PATH = Path("a.dcm")


def works() -> bool:
    data = os.urandom(3_000_001)
    found = guarded(tasks.double, data, path=PATH)
    return bool(np.array_equal(found.array, np.frombuffer(data, "u1") * 2)) and found.said == ""


@pytest.fixture(params=["fork", "spawn"])
def afresh(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No worker yet, and the next one is made in this way."""
    monkeypatch.setattr(guard_process, "one_thread", lambda: request.param == "fork")
    guard.end_worker()
    yield
    guard.end_worker()


def test_either_worker_holds_no_file_of_its_parent_and_says_what_is_printed(afresh: None) -> None:
    ours, theirs = os.pipe()
    print("not flushed", end="")
    assert works()
    os.close(theirs)
    ready = select.select([ours], [], [], 10)[0]
    assert ready == [ours], "the worker keeps the pipe open"
    assert os.read(ours, 1) == b""
    os.close(ours)
    said = guarded(tasks.warn, b"", path=PATH).said
    assert [line in said for line in ("odd", "on standard output", "premature end of data", "not")] == [True] * 3 + [
        False
    ]
    with pytest.raises(ConcordctError, match="crashed"):
        guarded(tasks.crash, b"x", path=PATH)
    assert works()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc of glibc alone can be told to keep memory")
def test_memory_that_a_call_frees_serves_the_next(afresh: None) -> None:
    counts = [int(guarded(tasks.page_faults, b"", path=PATH).array) for _ in range(4)]
    assert counts[-1] - counts[-2] < 100, "four arrays of 256 pages each"


def test_who_asks_before_the_answer_is_needed_gets_each_its_own(afresh: None) -> None:
    first = guard.ask(tasks.double, b"\1\2", path=PATH)
    second = guard.ask(tasks.double, b"\5", path=PATH)
    harm = guard.ask(tasks.leave, b"", path=Path("harm.dcm"))
    third = guard.ask(tasks.double, b"\7\7\7", path=PATH)
    assert third.result().array.tolist() == [14, 14, 14]
    with pytest.raises(ConcordctError, match=r"exit 7.*harm"):
        harm.result()
    assert [second.result().array.tolist(), first.result().array.tolist()] == [[10], [2, 4]]
    guard.end_worker()
    assert first.result().array.tolist() == [2, 4]


def test_an_answer_that_nobody_fetched_ends_with_its_worker(afresh: None) -> None:
    left = guard.ask(tasks.double, b"\1", path=PATH)
    guard.end_worker()
    serving = int(guarded(tasks.process, b"", path=PATH).array)
    with pytest.raises(ConcordctError, match="was ended"):
        left.result()
    assert int(guarded(tasks.process, b"", path=PATH).array) == serving, "the worker of now is not the one that ended"
    assert works()


def test_a_fork_reads_no_answer_of_its_parent(afresh: None) -> None:
    asked = guard.ask(tasks.double, b"\1", path=PATH)
    child = os.fork()
    if child == 0:
        try:
            asked.result()
        except ConcordctError:
            os._exit(17)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 17
    assert asked.result().array.tolist() == [2]


def test_arrays_come_back_as_they_are_and_one_process_serves_all() -> None:
    assert works()
    found = guarded(tasks.double, np.arange(6, dtype="<i2").tobytes(), path=PATH, dtype="<i2")
    assert found.array.dtype == np.dtype("<i2")
    assert found.array.tolist() == [0, 2, 4, 6, 8, 10]
    processes = {int(guarded(tasks.process, b"", path=PATH).array) for _ in range(5)}
    assert len(processes) == 1
    assert os.getpid() not in processes
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(lambda _: works(), range(8)))


@pytest.mark.parametrize(
    ("task", "says"),
    [
        (tasks.crash, r"crashed \(SIGSEGV\): a.dcm"),
        (tasks.leave, r"ended its process \(exit 7\): a.dcm"),
        (tasks.fill, r"needs more than 1024 MB: a.dcm"),
        (tasks.refuse, r"^expected good data, found bad: x.dcm$"),
        (tasks.stumble, r"failed \(ValueError\): a.dcm"),
    ],
)
def test_what_goes_wrong_is_one_line_and_the_next_call_is_served(task, says: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConcordctError, match=says) as caught:
        guarded(task, b"x", path=PATH)
    assert "Doe" not in str(caught.value)
    assert works()


def test_a_loop_and_a_wait_end(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(guard, "WALL_SECONDS", 0.5)
        with pytest.raises(ConcordctError, match=r"took longer than 0\.5 s: a.dcm"):
            guarded(tasks.sleep, b"", path=PATH)
    assert works()
    with monkeypatch.context() as patch:
        patch.setattr(guard, "PROCESSOR_SECONDS", 1)
        with pytest.raises(ConcordctError, match=r"took more than 1 s of processor time"):
            guarded(tasks.spin, b"", path=PATH)
    assert works()


def test_what_a_library_prints_or_warns_of_is_told() -> None:
    said = guarded(tasks.warn, b"", path=PATH).said
    assert [line in said for line in ("odd", "on standard output", "premature end of data")] == [True] * 3
    assert works()


def test_the_worker_ends_with_its_parent() -> None:
    code = (
        f"import sys, os, signal; sys.path.insert(0, {str(Path(__file__).parent)!r}); import guard_tasks as tasks;"
        "from pathlib import Path; from concordct.volumes.guard import guarded;"
        "print(int(guarded(tasks.process, b'', path=Path('a')).array), flush=True);"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    number = int(found.stdout)
    for _ in range(100):
        try:
            state = Path(f"/proc/{number}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            break
        if state == "Z":
            break
        subprocess.run(["sleep", "0.05"], check=True)
    else:
        pytest.fail("the worker outlived its parent")
