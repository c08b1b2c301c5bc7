"""Checkpoints of a run: tensors in safetensors files of limited size, the rest in JSON. Nothing is ever unpickled."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from concordct.errors import ConcordctError
from concordct.volumes.place import atomic_directory

#: Largest file of tensors, bytes: a damaged one costs little, and none is held in memory twice for long.
LARGEST_FILE = 15_000_000
#: Checkpoints kept of a phase: the last, and the one before it for a loss that turns NaN.
KEPT = 2

_NAME = re.compile(r"step-(\d{8})$")


def save_checkpoint(folder: Path, step: int, tensors: Mapping[str, Tensor], info: Mapping[str, Any]) -> Path:
    """Write `folder/step-N` whole and drop all but the last `KEPT`."""
    path = folder / f"step-{step:08d}"
    with atomic_directory(path, overwrite=True) as aside:
        for index, part in enumerate(_parts(tensors)):
            # Not save_file: it maps the file into memory, and a full disk would end the process with SIGBUS.
            (aside / f"tensors-{index}.safetensors").write_bytes(save(part))
        (aside / "state.json").write_text(json.dumps({"step": step, **info}, indent=1, sort_keys=True) + "\n")
    for old in checkpoints(folder)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a phase, the last one last."""
    return sorted(path for path in folder.glob("step-*") if _NAME.match(path.name))


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and JSON of a checkpoint.

    Raises
    ------
    ConcordctError : damage.
    """
    try:
        info = json.loads((path / "state.json").read_text())
        tensors: dict[str, Tensor] = {}
        for part in sorted(path.glob("tensors-*.safetensors")):
            tensors.update(load_file(part))
    except (OSError, ValueError, SafetensorError) as error:
        raise ConcordctError(f"{path}: expected a whole checkpoint, found damage ({type(error).__name__})") from error
    return tensors, info


def _parts(tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    parts: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        own = tensor.numel() * tensor.element_size()
        if size and size + own > LARGEST_FILE:
            parts.append({})
            size = 0
        parts[-1][name] = tensor.detach().cpu().contiguous().clone()
        size += own
    return parts
