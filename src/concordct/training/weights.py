"""Published weights from a file that the user names: safetensors alone, since anything else may hold code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from concordct.errors import ConcordctError


def read_tensors(path: Path, what: str, take: Callable[[Mapping[str, Tensor]], None]) -> None:
    """Hand the tensors of a safetensors file to a network.

    Raises
    ------
    ConcordctError : no such file, not safetensors, or not the tensors that the network takes.
    """
    try:
        tensors = load_file(path)
    except OSError as error:
        raise ConcordctError(f"{path}: expected {what} weights, cannot read it ({error.strerror or error})") from None
    except SafetensorError as error:
        raise ConcordctError(f"{path}: expected a safetensors file, found damage or another format") from error
    try:
        take(tensors)
    except ValueError as error:
        raise ConcordctError(f"{path}: {error}") from None
