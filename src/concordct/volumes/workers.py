"""Processes that share work: they start afresh, leave Ctrl-C to the run that started them, and end with it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager


@contextmanager
def worker_pool(count: int, *, begin: Callable[[], None] | None = None) -> Iterator[ProcessPoolExecutor]:
    """A pool of processes; leaving it on an exception ends them at once, whatever they do.

    Parameters
    ----------
    begin : called in each process before its work; picklable.

    They are spawned, for a forked child would inherit the locks of numba's and ITK's threads.
    """
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(
        count, mp_context=multiprocessing.get_context("spawn"), initializer=_begin, initargs=(begin,)
    )
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in multiprocessing.active_children():
            if child not in before:
                child.terminate()
        raise
    pool.shutdown()


def _begin(begin: Callable[[], None] | None) -> None:
    """A worker ends with the run that started it, even one that was killed; else it would wait for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    if begin is not None:
        begin()
