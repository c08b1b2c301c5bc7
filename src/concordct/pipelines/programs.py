"""Programs that read scans, as callables from a Volume to an answer: a command, a Python function, Sybil.

An answer is numbers (a list, or names with numbers) or labels on the scan's own grid. A command is given the scan as a
NIfTI file and answers with JSON on its last line, or with a file: JSON, or labels in a volume file.
"""

from __future__ import annotations

import importlib
import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from concordct.errors import ConcordctError
from concordct.volumes.files import write_volume_file
from concordct.volumes.masks import read_regions
from concordct.volumes.volume import Volume

Answer = Sequence[float] | Mapping[str, float] | NDArray[np.integer[Any]]
Program = Callable[[Volume], Answer]

INPUT, OUTPUT = "{input}", "{output}"
#: A program that runs longer than this on one scan has hung.
MOST_SECONDS = 3600.0


def program(text: str) -> Program:
    """The program that a text names.

    Parameters
    ----------
    text : a command that holds "{input}" (a NIfTI file) and perhaps "{output.json}" or "{output.nii.gz}" (what it
        writes), or "module:function" of a Python function from a Volume to an answer.

    Raises
    ------
    ConcordctError : none of these, or a module or function that is not there.
    """
    if INPUT in text:
        return _command(text)
    module, _, name = text.partition(":")
    if not name or " " in text.strip():
        raise ConcordctError(f"expected a command with {INPUT} or module:function, found {text!r}")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConcordctError(f"expected a Python function {text!r}, found none: {error}") from error
    if not callable(found):
        raise ConcordctError(f"expected a Python function {text!r}, found a {type(found).__name__}")
    answer: Program = found
    return answer


def _command(text: str) -> Program:
    ending = next((end for end in (".json", ".nii.gz", ".nrrd") if f"{{output{end}}}" in text), None)
    if ending is None and "{output" in text:
        raise ConcordctError(f"expected {{output.json}}, {{output.nii.gz}} or {{output.nrrd}}, found another: {text!r}")

    def ask(volume: Volume) -> Answer:
        with TemporaryDirectory() as folder:
            scan, out = Path(folder) / "scan.nii.gz", Path(folder) / f"output{ending or ''}"
            write_volume_file(scan, volume)
            words = [
                word.replace(INPUT, str(scan)).replace(f"{{output{ending}}}", str(out)) for word in shlex.split(text)
            ]
            try:
                done = subprocess.run(words, capture_output=True, text=True, timeout=MOST_SECONDS, check=False)
            except (OSError, subprocess.TimeoutExpired) as error:
                raise ConcordctError(f"cannot run {words[0]}: {type(error).__name__}") from error
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["no message"])[-1]
                raise ConcordctError(f"{words[0]} ended with {done.returncode}: {last}")
            if ending not in (None, ".json"):
                return _labels(out, volume)
            lines = out.read_text().strip() if ending else (done.stdout.strip().splitlines() or [""])[-1]
            try:
                found: Answer = json.loads(lines)
            except ValueError:
                raise ConcordctError(f"{words[0]}: expected numbers as JSON, found {lines[:60]!r}") from None
            return found

    return ask


def _labels(path: Path, volume: Volume) -> NDArray[np.integer[Any]]:
    if not path.exists():
        raise ConcordctError(f"expected labels in {path.name}, the program wrote none")
    labels = np.zeros(volume.shape, np.int32)
    for region in read_regions(path, affine=volume.affine, shape=volume.shape):
        labels[region.mask] = region.number
    return labels


def compared(answers: Sequence[Answer], volume: Volume) -> tuple[tuple[str, ...], list[list[float]]]:
    """Answers on several stages, the last being the reference, as names and [stage, number].

    Labels become their Dice with the reference's (1 for the reference itself), label by label.

    Raises
    ------
    ConcordctError : answers of several kinds or lengths, labels of another shape, nothing answered.
    """
    if all(isinstance(one, np.ndarray) and one.ndim == 3 for one in answers):
        labels = [np.asarray(one) for one in answers]
        if any(one.shape != volume.shape for one in labels):
            raise ConcordctError(f"expected labels of shape {volume.shape}, found {labels[0].shape}")
        present = sorted({int(k) for one in labels for k in np.unique(one)} - {0})
        if not present:
            raise ConcordctError("expected a program that labels something, found no label in any scan")
        names = tuple(f"Dice of label {k}" for k in present)
        return names, [[dice(one == k, labels[-1] == k) for k in present] for one in labels]
    plain = [
        dict(one) if isinstance(one, Mapping) else {f"score {k}": v for k, v in enumerate(one, start=1)}
        for one in answers
    ]
    if any(set(one) != set(plain[-1]) for one in plain) or not plain[-1]:
        raise ConcordctError(f"expected as many scores for every scan, found {sorted({len(one) for one in plain})}")
    return tuple(plain[-1]), [[float(one[name]) for name in plain[-1]] for one in plain]


def dice(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Dice's coefficient (Dice 1945, doi:10.2307/1932409); 1 where both are empty."""
    total = int(one.sum()) + int(other.sum())
    return 2.0 * int((one & other).sum()) / total if total else 1.0
