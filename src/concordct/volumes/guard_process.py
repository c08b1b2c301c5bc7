"""The process that `guard` asks: how it starts, and how it answers under limits of memory and time.

A fork of the caller has loaded everything already and is made where the caller has one thread; else Python starts anew,
for a fork would inherit locks that nobody opens. The process itself does nothing but fork a child that answers, and
another where that one was killed.
"""

from __future__ import annotations

import gc
import importlib
import json
import math
import mmap
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from concordct.errors import ConcordctError

#: What one call may take beside the worker itself: the largest slice allowed (4096 x 4096) needs a quarter of it.
MEMORY_BYTES = 2**30
#: So much of what a library prints is kept.
SAID_BYTES = 2000
#: Room for the data of a call, then for its array: the largest slice in four bytes takes a quarter. Pages that nobody
#: has written to take no memory.
SHARED_BYTES = 2**28
#: So much freed memory the worker keeps for its next call; glibc allows no higher limit for arrays on the heap.
KEPT_BYTES = 2**25

HEAD = struct.Struct("<QQ")  # bytes of JSON, bytes in the shared memory
_PRINTED_BYTES = 2**22
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def file_in_memory() -> int:
    """A file without a name, in memory where the system has such: a read-only container has no other place."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("concordct")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class Forked:
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


def started(requests: int, replies: int, shared: int) -> Forked | subprocess.Popen[bytes]:
    """The process, with what it is given of two pipes and of the shared memory."""
    if one_thread():
        with suppress(OSError):  # no room for a second process of this size
            return _fork(requests, replies, shared)
    return _spawn(requests, replies, shared)


def _fork(requests: int, replies: int, shared: int) -> Forked:
    """A fork has loaded everything already: Python and pydicom anew take half a second of processor time."""
    pid = os.fork()
    if pid:
        return Forked(pid)
    try:
        gc.freeze()  # a collection would write to every page, and so copy it
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        _close_all_but({requests, replies, shared})
        # What was written before and not yet handed on is the parent's: its streams are kept, so nothing flushes them.
        _PARENTS[:] = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = (os.fdopen(number, "w", errors="replace", closefd=False) for number in (1, 2))
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
    code = f"from concordct.volumes.guard_process import serve; serve({requests}, {replies}, {shared})"
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


def write(pipe: int, data: bytes | memoryview) -> None:
    view = memoryview(data).cast("B")
    while view:
        view = view[os.write(pipe, view) :]


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
                write(replies, HEAD.pack(len(text), 0) + text)
            except BrokenPipeError:
                return


def _answer_all(source: BinaryIO, replies: int, memory: mmap.mmap) -> None:
    with os.fdopen(file_in_memory(), "r+b") as printed:
        for stream in (1, 2):
            os.dup2(printed.fileno(), stream)
        _keep_memory()
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
            write(replies, HEAD.pack(len(text), 0 if array is None else array.nbytes) + text)


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
    head = _exactly(source, HEAD.size)
    if len(head) < HEAD.size:
        return None, 0
    text, size = HEAD.unpack(head)
    return json.loads(_exactly(source, text)), size


def _exactly(source: BinaryIO, size: int) -> bytes:
    pieces = []
    while size and (piece := source.read(size)):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def _keep_memory() -> None:
    """What a call frees stays with the process: to give it back and to take it anew costs 600 page faults a slice."""
    with suppress(OSError, AttributeError):  # glibc alone has it
        import ctypes

        library = ctypes.CDLL(None)
        library.mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
        library.mallopt(_M_MMAP_THRESHOLD, KEPT_BYTES)


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
