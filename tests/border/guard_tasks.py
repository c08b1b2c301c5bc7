"""What the worker process is asked to do in `test_guard.py`."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
import time
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from concordct.errors import ConcordctError
from concordct.volumes import guard
from concordct.volumes.guard import guarded


def double(data: bytes, *, dtype: str = "u1") -> NDArray[np.generic]:
    return np.frombuffer(data, dtype) * 2


def process(data: bytes) -> NDArray[np.int64]:
    return np.array(os.getpid())


def page_faults(data: bytes) -> NDArray[np.int64]:
    """Of this process until now, after it has filled arrays of slices' sizes and freed them."""
    held = [np.ones(2**20, "u1") for _ in range(4)]
    del held
    return np.array(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)


def crash(data: bytes) -> NDArray[np.generic]:
    ctypes.string_at(0)
    raise AssertionError


def leave(data: bytes) -> NDArray[np.generic]:
    os._exit(7)


def fill(data: bytes) -> NDArray[np.generic]:
    return np.ones(2**31, "u1")


def spin(data: bytes) -> NDArray[np.generic]:
    while True:
        pass


def sleep(data: bytes) -> NDArray[np.generic]:
    time.sleep(60)
    raise AssertionError


def warn(data: bytes) -> NDArray[np.generic]:
    warnings.warn("odd", stacklevel=1)
    print("on standard output")
    os.write(sys.stderr.fileno(), b"premature end of data\n")
    return np.zeros(1)


def refuse(data: bytes) -> NDArray[np.generic]:
    raise ConcordctError("expected good data, found bad: x.dcm")


def stumble(data: bytes) -> NDArray[np.generic]:
    raise ValueError("Doe^Jane")


def decoder_of(path: Path) -> str:
    """How the process was made that decodes for this one."""
    guarded(double, b"x", path=path)
    return type(guard._CURRENT.process).__name__
