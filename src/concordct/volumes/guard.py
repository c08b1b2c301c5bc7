"""Untrusted data decoded in another process, under limits of memory and time, so that a crash is one failed slice.

Libraries in C that decode codestreams abort, run away or print a warning and hand out what they have. Here they run in
one worker process that is started when it is first needed, serves every call of this process and ends with it: a fork
where this process has one thread, else Python anew. It forks itself afresh when a call kills it, which costs a few
milliseconds. Data and arrays go through memory that both share, as plain bytes: nothing that it says is unpickled.

One call at a time is on its way. Who asks before the answer is needed (`ask`) works meanwhile.

>>> decoded = guarded(decode_frame, codestream, path=path, syntax="1.2.840.10008.1.2.4.80")   # doctest: +SKIP
"""

from __future__ import annotations

import atexit
import json
import mmap
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from concordct.errors import ConcordctError
from concordct.volumes.guard_process import HEAD, MEMORY_BYTES, SHARED_BYTES, file_in_memory, started, write

#: Processor time of one call: the largest slice in JPEG 2000 takes a third of it on a slow core.
PROCESSOR_SECONDS = 15
#: A call that waits for something is ended too; far above the processor time, for machines that are busy otherwise.
WALL_SECONDS = 8 * PROCESSOR_SECONDS


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
    return ask(function, data, path=path, **options).result()


def ask(function: Callable[..., NDArray[Any]], data: bytes, *, path: Path, **options: Any) -> Asked:
    """As `guarded`, without waiting: `result` of what comes back waits, and raises what went wrong."""
    with _LOCK:
        waiting = _worker(function.__module__).asked
        if waiting is not None:
            waiting.fetch()  # its answer lies where this question goes; the worker may have ended over it
        return _worker(function.__module__).ask(function, data, path, options)


class Asked:
    """A call on its way."""

    def __init__(self, worker: _Worker, path: Path) -> None:
        self._worker, self._path = worker, path
        self._deadline = time.monotonic() + WALL_SECONDS
        self._found: Decoded | ConcordctError | None = None

    def result(self) -> Decoded:
        """What the function returned.

        Raises
        ------
        ConcordctError : see `guarded`.
        """
        found = self.fetch()
        if isinstance(found, ConcordctError):
            raise found
        return found

    def fetch(self) -> Decoded | ConcordctError:
        """Wait for the answer and keep it."""
        with _LOCK:
            if self._found is None:
                try:
                    self._found = self._worker.answer(self._path, self._deadline)
                except ConcordctError as error:
                    self._found = error
            return self._found


class _Worker:
    """The parent's end of one worker process.

    Attributes
    ----------
    owner : the process that it serves.
    asked : the call whose answer is still to be fetched.
    """

    def __init__(self, module: str) -> None:
        self.owner = os.getpid()
        self.asked: Asked | None = None
        ours_in, theirs_out = os.pipe()
        theirs_in, ours_out = os.pipe()
        shared = file_in_memory()
        os.ftruncate(shared, SHARED_BYTES)
        self.shared = mmap.mmap(shared, SHARED_BYTES)
        self.process = started(theirs_in, theirs_out, shared)
        for handle in (theirs_in, theirs_out, shared):
            os.close(handle)
        self.replies, self.requests = ours_in, ours_out
        self.send({"module": module}, b"")

    def ask(self, function: Callable[..., Any], data: bytes, path: Path, options: dict[str, Any]) -> Asked:
        """One request."""
        if len(data) > SHARED_BYTES:
            raise ConcordctError(f"{len(data)} bytes to decode, expected at most {SHARED_BYTES}: {path}")
        called = {"module": function.__module__, "name": function.__qualname__, "options": options}
        with suppress(OSError):  # a worker that has ended gives no answer either, and `answer` says so
            self.send({**called, "seconds": PROCESSOR_SECONDS}, data)
        self.asked = Asked(self, path)
        return self.asked

    def answer(self, path: Path, deadline: float) -> Decoded:
        """The answer to what was asked; whatever goes wrong beyond an exception ends the process."""
        if self.owner != os.getpid():
            raise ConcordctError(f"the process that decodes is that of another process: {path}")
        self.asked = None
        try:
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
        write(self.requests, HEAD.pack(len(text), len(payload)) + text)

    def receive(self, deadline: float) -> tuple[dict[str, Any], int]:
        """The answer, and how many bytes of the shared memory belong to it."""
        text, size = HEAD.unpack(self._read(HEAD.size, deadline))
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
        if _CURRENT is self:  # another may serve by now
            _CURRENT = None
        for pipe in (self.requests, self.replies):
            with suppress(OSError):
                os.close(pipe)
        self.requests = self.replies = -1  # whoever still waits for an answer reads no other file
        try:
            self.process.wait(timeout=0.2)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


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
