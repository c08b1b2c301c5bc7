"""Processes that share work: they start afresh, leave Ctrl-C to the run that started them, and end with it.

Where the system can, they are forks of one process that has loaded what they need and has no threads: a fork of the
caller would inherit the locks of numba's and ITK's threads, and starting Python for each takes a second a process.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from concordct.errors import ConcordctError

Item = TypeVar("Item")
Result = TypeVar("Result")

#: What a process says first, and how many may end before they do, one after another.
_STARTED = "concordct: a worker started"
MOST_STILLBORN = 8
_FORKS = "forkserver" in multiprocessing.get_all_start_methods()
_CONTEXT: Any = multiprocessing.get_context("forkserver" if _FORKS else "spawn")


@contextmanager
def worker_pool(count: int, *, begin: Callable[[], None] | None = None) -> Iterator[ProcessPoolExecutor]:
    """A pool of processes; leaving it on an exception ends them at once, whatever they do.

    Parameters
    ----------
    begin : called in each process before its work; picklable.
    """
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(count, mp_context=_CONTEXT, initializer=_begin, initargs=(begin,))
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in multiprocessing.active_children():
            if child not in before:
                child.terminate()
        raise
    pool.shutdown()


class Crew:
    """Processes that stand ready and do one item each at a time; one that is killed is replaced, alone.

    Unlike a pool's, each has a connection of its own: which item a death interrupted is known, and the others go on.

    Parameters
    ----------
    count : of processes.
    load : modules that they load while the caller does something else.
    """

    def __init__(self, count: int, load: Sequence[str] = ()) -> None:
        self._count = count
        self._idle: list[_Worker] = []
        self._busy: dict[Any, tuple[_Worker, int]] = {}
        self._stillborn = 0
        if _FORKS:
            # Of no effect where the process that they fork from stands already. It loads while the caller goes on; the
            # first fork waits for it.
            from multiprocessing import forkserver  # not every system has it

            _CONTEXT.set_forkserver_preload(["__main__", *load])
            forkserver.ensure_running()
        else:
            self._begin()

    def _begin(self) -> None:
        self._idle += [_Worker() for _ in range(self._count)]
        self._count = 0

    def run(
        self, work: Callable[[Item], Result], items: Sequence[Item], lost: Callable[[Item], Result], *, tries: int
    ) -> Iterator[tuple[int, Result]]:
        """`work` of every item, with its place, as they come.

        Parameters
        ----------
        work : picklable, and sent once to each process; it must not raise.
        lost : the result of an item whose process was killed `tries` times.

        Raises
        ------
        ConcordctError : processes that end before they begin.
        """
        self._begin()
        todo = deque(range(len(items)))
        deaths = dict.fromkeys(todo, 0)
        while todo or self._busy:
            while todo and self._idle:
                worker, place = self._idle.pop(), todo.popleft()
                with suppress(BrokenPipeError, ConnectionResetError):  # killed while idle: heard of below
                    worker.hand(work, items[place])
                self._busy[worker.connection] = worker, place
            heard: list[Any] = wait(list(self._busy))
            for connection in heard:
                worker, place = self._busy[connection]
                try:
                    result = connection.recv()
                    if isinstance(result, str) and result == _STARTED:
                        worker.started, self._stillborn = True, 0
                        continue
                    del self._busy[connection]
                except (EOFError, ConnectionResetError):
                    del self._busy[connection]
                    worker.end()
                    self._idle.append(_Worker())
                    if worker.started:
                        deaths[place] += 1
                    else:
                        self._stillborn += 1
                        if self._stillborn > MOST_STILLBORN:
                            raise ConcordctError(
                                f"expected processes that start, found {self._stillborn} that ended before their work; "
                                'a script of your own needs `if __name__ == "__main__":`'
                            ) from None
                    if deaths[place] < tries:
                        todo.append(place)
                    else:
                        yield place, lost(items[place])
                    continue
                self._idle.append(worker)
                yield place, result

    def end(self) -> None:
        """End them: those that wait when they hear of it, those that work at once."""
        for worker, _ in self._busy.values():
            worker.process.terminate()
        everyone = [*self._idle, *(worker for worker, _ in self._busy.values())]
        for worker in everyone:
            worker.connection.close()  # so that none waits for another's end
        for worker in everyone:
            worker.end()


class _Worker:
    """One process of a crew, with the connection to it."""

    def __init__(self) -> None:
        self.connection, other = _CONTEXT.Pipe()
        self.process = _CONTEXT.Process(target=_serve, args=(other,))
        self.process.start()
        other.close()
        self._has: object = None
        self.started = False

    def hand(self, work: Callable[[Any], Any], item: object) -> None:
        if self._has is not work:
            self.connection.send(_Work(work))
            self._has = work
        self.connection.send(item)

    def end(self) -> None:
        self.connection.close()
        self.process.join()


@dataclass(frozen=True)
class _Work:
    """What is done with the items that follow."""

    function: Callable[[Any], Any]


def _serve(connection: Connection) -> None:
    """Of a process of a crew: do what comes until the connection ends."""
    _begin(None)
    work: Callable[[Any], Any] | None = None
    with suppress(BrokenPipeError):  # the run ended already, and the connection with it
        connection.send(_STARTED)
    while True:
        try:
            found = connection.recv()
        except (EOFError, ConnectionResetError):
            return
        if isinstance(found, _Work):
            work = found.function
        else:
            assert work is not None
            connection.send(work(found))


def _begin(begin: Callable[[], None] | None) -> None:
    """A worker ends with the run that started it, even one that was killed; else it would wait for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    if sys.platform == "linux":
        # The system sends SIGIO, and so ends this process, when the pipe of its parent closes. A thread that waits for
        # that would do everywhere; but what is forked from a process with threads inherits their locks (`guard`).
        import fcntl

        signal.signal(signal.SIGIO, signal.SIG_DFL)
        fcntl.fcntl(parent.sentinel, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(parent.sentinel, fcntl.F_SETFL, fcntl.fcntl(parent.sentinel, fcntl.F_GETFL) | os.O_ASYNC)
        if wait([parent.sentinel], timeout=0):  # it ended before
            os._exit(1)
    else:

        def watch() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()
    if begin is not None:
        begin()
