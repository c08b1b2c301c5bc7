"""Untrusted data decoded in another process, under limits of memory and time, so that a crash is one failed slice.

Libraries in C that decode codestreams abort, run away or print a warning and hand out what they have. Here they run in
one worker process that is started when it is first needed, serves every call of this process and ends with it: a fork
where this process has one thread, else Python anew. It forks itself afresh when a call kills it, which costs a few
milliseconds. Data and arrays go through memory that both
share, as plain bytes: nothing that the worker says is unpickled.

>>> decoded = guarded(decode_frame, codestream, path=path, syntax="1.2.840.10008.1.2.4.80")   # doctest: +SKIP
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import math
import mmap
import os
import select
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from concordct.errors import ConcordctError

#: What one call may take beside the worker itself: the largest slice allowed (4096 x 4096) needs a quarter of it.
MEMORY_BYTES = 2**30
#: Processor time of one call: the largest slice in JPEG 2000 takes a third of it on a slow core.
PROCESSOR_SECONDS = 15
#: A call that waits for something is ended too; far above the processor time, for machines that are busy otherwise.
WALL_SECONDS = 8 * PROCESSOR_SECONDS
#: So much of what a library prints is kept.
SAID_BYTES = 2000

#: Room for the data of a call, then for its array: the largest slice in four bytes takes a quarter. Pages that nobody
#: has written to take no memory.
SHARED_BYTES = 2**28

_HEAD = struct.Struct("<QQ")  # bytes of JSON, bytes in the shared memory
_PRINTED_BYTES = 2**22


@dataclass(frozen=True, eq=False)
class Decoded:
    """What a guarded function returned, and what was printed or warned of meanwhile ("" for nothing).

    Attributes
    ----------
    array : as returned, any shape.
    said : warnings of Python and the text on standard output and error, at most `SAID_BYTES`; it may quote the data.
    """

    array: NDArray[Any]
    said: str


def guarded(function: Callable[..., NDArray[Any]], data: bytes, *, path: Path, **options: Any) -> Decoded:
    """Call `function(data, **options)` in the worker process.

    Parameters
    ----------
    function : of a module's top level; it returns one array.
    data : what is decoded.
    path : named in messages.
    options : anything that JSON holds.

    Raises
    ------
    ConcordctError : the function raised one (its message as it is), raised anything else (its type alone, for the text
        may quote a patient), crashed, or went beyond `MEMORY_BYTES`, `PROCESSOR_SECONDS` or `WALL_SECONDS`.
    """
    with _LOCK:
        return _worker(function.__module__).call(function, data, path, options)


class _Worker:
    """The parent's end of one worker process."""

    def __init__(self, module: str) -> None:
        self.owner = os.getpid()
        ours_in, theirs_out = os.pipe()
        theirs_in, ours_out = os.pipe()
        shared = _shared_file()
        self.shared = mmap.mmap(shared, SHARED_BYTES)
        start: Callable[[int, int, int], _Forked | subprocess.Popen[bytes]] = _fork if one_thread() else _spawn
        self.process = start(theirs_in, theirs_out, shared)
        for handle in (theirs_in, theirs_out, shared):
            os.close(handle)
        self.replies, self.requests = ours_in, ours_out
        self.send({"module": module}, b"")

    def call(self, function: Callable[..., Any], data: bytes, path: Path, options: dict[str, Any]) -> Decoded:
        """One request and its answer; whatever goes wrong beyond an exception ends the process."""
        if len(data) > SHARED_BYTES:
            raise ConcordctError(f"{len(data)} bytes to decode, expected at most {SHARED_BYTES}: {path}")
        deadline = time.monotonic() + WALL_SECONDS
        try:
            called = {"module": function.__module__, "name": function.__qualname__, "options": options}
            self.send({**called, "seconds": PROCESSOR_SECONDS}, data)
            answer, size = self.receive(deadline)
        except TimeoutError:
            self.end()
            raise ConcordctError(f"decoding took longer than {WALL_SECONDS} s: {path}") from None
        except (OSError, EOFError, ValueError):
            self.end()
            raise ConcordctError(f"the process that decodes was ended (out of memory?): {path}") from None
        if "died" in answer:
            raise ConcordctError(f"decoding {_death(int(answer['died']))}: {path}")
        if "error" in answer:
            raise ConcordctError(str(answer["error"]))
        if "raised" in answer:
            memory = answer["raised"] == "MemoryError"
            reason = f"needs more than {MEMORY_BYTES >> 20} MB" if memory else f"failed ({answer['raised']})"
            raise ConcordctError(f"decoding {reason}: {path}")
        dtype = np.dtype(answer["dtype"])
        array = np.frombuffer(self.shared, dtype, size // dtype.itemsize).reshape(answer["shape"]).copy()
        return Decoded(array, str(answer["said"]))

    def send(self, head: dict[str, Any], payload: bytes) -> None:
        text = json.dumps(head).encode()
        self.shared[: len(payload)] = payload
        _write(self.requests, _HEAD.pack(len(text), len(payload)) + text)

    def receive(self, deadline: float) -> tuple[dict[str, Any], int]:
        """The answer, and how many bytes of the shared memory belong to it."""
        text, size = _HEAD.unpack(self._read(_HEAD.size, deadline))
        if text > 2**16 or size > SHARED_BYTES:
            raise ValueError("an answer of that size is none of ours")
        return json.loads(self._read(text, deadline)), size

    def _read(self, size: int, deadline: float) -> bytearray:
        buffer = bytearray(size)
        view, done = memoryview(buffer), 0
        while done < size:
            if not select.select([self.replies], [], [], max(deadline - time.monotonic(), 0))[0]:
                raise TimeoutError
            count = os.readv(self.replies, [view[done:]])
            if count == 0:
                raise EOFError
            done += count
        return buffer

    def end(self) -> None:
        """Close the pipes, which ends an idle worker, and kill one that is busy."""
        global _CURRENT
        _CURRENT = None
        for pipe in (self.requests, self.replies):
            with suppress(OSError):
                os.close(pipe)
        try:
            self.process.wait(timeout=0.2)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


class _Forked:
    """A fork of this process; asked and awaited as `subprocess.Popen` is."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._code: int | None = None

    def poll(self) -> int | None:
        return self._ask(os.WNOHANG)

    def wait(self, timeout: float | None = None) -> int | None:
        if timeout is None:
            return self._ask(0)
        end = time.monotonic() + timeout
        while self._ask(os.WNOHANG) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("worker", timeout)
            time.sleep(0.001)
        return self._code

    def _ask(self, how: int) -> int | None:
        if self._code is None:
            try:
                pid, status = os.waitpid(self.pid, how)
            except ChildProcessError:  # somebody else in this process waited for it
                pid, status = self.pid, 0
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
        return self._code


def one_thread() -> bool:
    """Whether this process has no thread but this one, so that a fork of it inherits no lock that nobody opens."""
    try:
        return len(os.listdir("/proc/self/task")) == 1
    except OSError:
        return False


def _fork(requests: int, replies: int, shared: int) -> _Forked:
    """A fork has loaded everything already: Python and pydicom anew take half a second of processor time."""
    pid = os.fork()
    if pid:
        return _Forked(pid)
    try:
        gc.freeze()  # a collection would write to every page, and so copy it
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        _close_all_but({requests, replies, shared})
        # What was written before and not yet handed on is the parent's: its streams are kept, so nothing flushes them.
        sys.stdin, _PARENTS[:] = open(0, closefd=False), [sys.stdin, sys.stdout, sys.stderr]
        sys.stdout, sys.stderr = (open(number, "w", errors="replace", closefd=False) for number in (1, 2))
        serve(requests, replies, shared)
    finally:
        os._exit(0)


_PARENTS: list[Any] = []


def _close_all_but(kept: set[int]) -> None:
    """The files and sockets of this process are its parent's; input and output become nothing."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nothing, stream)
    for handle in map(int, os.listdir("/proc/self/fd")):
        if handle > 2 and handle not in kept:
            with suppress(OSError):
                os.close(handle)


def _spawn(requests: int, replies: int, shared: int) -> subprocess.Popen[bytes]:
    code = f"from concordct.volumes.guard import serve; serve({requests}, {replies}, {shared})"
    # BLAS without threads of its own: the worker forks, and a slice is too small to share.
    quiet = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    package = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, **quiet, "PYTHONPATH": os.pathsep.join([package, *filter(None, sys.path)])}
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=(requests, replies, shared),
        env=environment,
        start_new_session=True,  # Ctrl-C is the parent's; the worker ends when its pipe does
    )


_LOCK = threading.RLock()
_CURRENT: _Worker | None = None


def _worker(module: str) -> _Worker:
    """The worker of this process; a fork of this process gets its own."""
    global _CURRENT
    if _CURRENT is None or _CURRENT.owner != os.getpid() or _CURRENT.process.poll() is not None:
        _CURRENT = _Worker(module)
    return _CURRENT


@atexit.register
def end_worker() -> None:
    """End the worker process, if there is one; the next call starts another."""
    if _CURRENT is not None and _CURRENT.owner == os.getpid():
        _CURRENT.end()


def _after_fork() -> None:
    global _LOCK, _CURRENT
    _LOCK, _CURRENT = threading.RLock(), None


os.register_at_fork(after_in_child=_after_fork)


def _shared_file() -> int:
    """A file of `SHARED_BYTES` in memory; where the system has none, one without a name."""
    if hasattr(os, "memfd_create"):
        handle = os.memfd_create("concordct")
    else:
        with tempfile.TemporaryFile() as file:
            handle = os.dup(file.fileno())
    os.ftruncate(handle, SHARED_BYTES)
    return handle


def _write(pipe: int, data: bytes | memoryview) -> None:
    view = memoryview(data).cast("B")
    while view:
        view = view[os.write(pipe, view) :]


def _death(status: int) -> str:
    """A wait status in words."""
    if not os.WIFSIGNALED(status):
        return f"ended its process (exit {os.waitstatus_to_exitcode(status)})"
    number = os.WTERMSIG(status)
    if number == signal.SIGXCPU:
        return f"took more than {PROCESSOR_SECONDS} s of processor time"
    if number == signal.SIGKILL:
        return "was killed (out of memory?)"
    return f"crashed ({signal.Signals(number).name})"


# What follows runs in the worker process alone.


def serve(requests: int, replies: int, shared: int) -> None:
    """Answer requests until the pipe ends. A child does the work; one that is killed is replaced and reported."""
    memory = mmap.mmap(shared, SHARED_BYTES)
    with open(requests, "rb", buffering=0, closefd=False) as source:
        first, _ = _receive(source)
        if first is None:
            return
        with suppress(ImportError):
            importlib.import_module(first["module"])  # once, before the forks
        while True:
            child = os.fork()
            if child == 0:
                try:
                    _answer_all(source, replies, memory)
                except BrokenPipeError:
                    os._exit(0)
                except BaseException:
                    os._exit(3)
                os._exit(0)
            _, status = os.waitpid(child, 0)
            if status == 0:
                return
            text = json.dumps({"died": status}).encode()
            try:
                _write(replies, _HEAD.pack(len(text), 0) + text)
            except BrokenPipeError:
                return


def _answer_all(source: BinaryIO, replies: int, memory: mmap.mmap) -> None:
    with tempfile.TemporaryFile() as printed:
        for stream in (1, 2):
            os.dup2(printed.fileno(), stream)
        _limit_memory()
        while True:
            request, size = _receive(source)
            if request is None:
                return
            if os.fstat(printed.fileno()).st_size:
                printed.seek(0)
                printed.truncate()
            _limit_time(int(request["seconds"]))
            head, array = _answer(request, memory[:size])
            sys.stdout.flush()
            sys.stderr.flush()
            if array is not None:
                printed.seek(0)
                head["said"] = (head["said"] + printed.read(SAID_BYTES).decode("utf-8", "replace"))[:SAID_BYTES]
            if array is not None:
                np.frombuffer(memory, array.dtype, array.size)[:] = array
            text = json.dumps(head).encode()
            _write(replies, _HEAD.pack(len(text), 0 if array is None else array.nbytes) + text)


def _answer(request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], NDArray[Any] | None]:
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            function = getattr(importlib.import_module(request["module"]), request["name"])
            array = np.asarray(function(data, **request["options"]), order="C")
    except ConcordctError as error:
        return {"error": str(error)}, None
    except Exception as error:
        return {"raised": type(error).__name__}, None
    if array.nbytes > SHARED_BYTES:
        return {"raised": "MemoryError"}, None
    said = "".join(f"{warning.message}\n" for warning in caught)
    return {"dtype": array.dtype.str, "shape": array.shape, "said": said}, array.reshape(-1)


def _receive(source: BinaryIO) -> tuple[dict[str, Any] | None, int]:
    """A request, and how many bytes of the shared memory belong to it."""
    head = _exactly(source, _HEAD.size)
    if len(head) < _HEAD.size:
        return None, 0
    text, size = _HEAD.unpack(head)
    return json.loads(_exactly(source, text)), size


def _exactly(source: BinaryIO, size: int) -> bytes:
    pieces = []
    while size and (piece := source.read(size)):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def _limit_memory() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_PRINTED_BYTES, _PRINTED_BYTES))
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (OSError, ValueError):
        return  # no such system file, and no limit of address space that holds (macOS)
    limit = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _limit_time(seconds: int) -> None:
    """The soft limit moves with every request; beyond it the system sends SIGXCPU, which ends the process."""
    import resource

    usage = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(usage.ru_utime + usage.ru_stime) + seconds, hard))
