"""Models on disk: tensors in safetensors, the rest in JSON, laid out as a MONAI Bundle. Nothing is ever unpickled.

MODEL/
  configs/metadata.json    method, settings, what it was fitted on, checksum of the tensors
  configs/inference.json   what MONAI's ConfigParser builds from it: the Standardizer
  models/model.safetensors
  docs/README.md           the model card
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from concordct.errors import ConcordctError
from concordct.volumes.given import read_json
from concordct.volumes.place import atomic_directory

#: Raised by one whenever the meaning of a stored field changes.
SCHEMA = 1

#: What `save_bundle` adds to the metadata.
_WRITTEN = ("schema", "tensors_sha256", "sha256")

_TENSORS = Path("models/model.safetensors")
_METADATA = Path("configs/metadata.json")
_CARD = Path("docs/README.md")
_INFERENCE = Path("configs/inference.json")

#: MONAI's ConfigParser turns "standardizer" into the model at work; `bundle_root` is the model's folder.
_INFERENCE_CONFIG = {
    "bundle_root": ".",
    "standardizer": {"_target_": "concordct.methods.models.open_standardizer", "path": "@bundle_root"},
}


@dataclass(frozen=True)
class Bundle:
    """A model: named arrays and the JSON that says what they are."""

    tensors: Mapping[str, NDArray[Any]]
    metadata: Mapping[str, Any]

    @property
    def method(self) -> str:
        """Name of the method that can use the tensors."""
        return str(self.metadata["method"])

    @property
    def sha256(self) -> str:
        """Digest of tensors and metadata: the identity of the model in every derived object."""
        digest = hashlib.sha256(save({name: np.ascontiguousarray(one) for name, one in self.tensors.items()}))
        digest.update(_canonical({k: v for k, v in self.metadata.items() if k not in _WRITTEN}))
        return digest.hexdigest()


def _canonical(metadata: Mapping[str, Any]) -> bytes:
    return json.dumps(metadata, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def save_bundle(
    bundle: Bundle, path: Path, *, card: str, overwrite: bool = False, inference: Mapping[str, Any] = _INFERENCE_CONFIG
) -> None:
    """Write a bundle whole: an existing one is replaced only when the new one is complete.

    Parameters
    ----------
    card : the model card, Markdown.
    overwrite : replace an existing bundle.
    inference : what MONAI's ConfigParser builds from it.

    Raises
    ------
    ConcordctError : the path exists and `overwrite` is False, or it cannot be written.
    """
    tensors = save({name: np.ascontiguousarray(array) for name, array in bundle.tensors.items()})
    digest = hashlib.sha256(tensors).hexdigest()
    metadata = {**bundle.metadata, "schema": SCHEMA, "tensors_sha256": digest, "sha256": bundle.sha256}
    with atomic_directory(path, overwrite=overwrite, ours=str(_METADATA)) as aside:
        for part in (_TENSORS, _METADATA, _CARD):
            (aside / part).parent.mkdir(parents=True, exist_ok=True)
        (aside / _TENSORS).write_bytes(tensors)
        (aside / _METADATA).write_text(json.dumps(metadata, indent=2, sort_keys=True, allow_nan=False) + "\n")
        (aside / _INFERENCE).write_text(json.dumps(dict(inference), indent=2) + "\n")
        (aside / _CARD).write_text(card)


def halved(bundle: Bundle, *, keep: Collection[str] = (), info: Mapping[str, Any]) -> Bundle:
    """A bundle to be given on: weights of two dimensions and more in half precision, `info` added to what it says.

    Parameters
    ----------
    keep : names of tensors that stay as they are.
    """
    tensors = {
        name: one.astype(np.float16) if one.ndim >= 2 and one.dtype == np.float32 and name not in keep else one
        for name, one in bundle.tensors.items()
    }
    # What the file says of itself is written anew.
    metadata = {name: value for name, value in bundle.metadata.items() if name not in _WRITTEN}
    return Bundle(tensors, {**metadata, "info": {**metadata["info"], **info}})


def load_bundle(path: Path) -> Bundle:
    """Read a bundle and check it against its own checksum.

    Raises
    ------
    ConcordctError : no bundle there, a newer schema, damaged JSON or tensors, or tensors that were changed.
    """
    try:
        metadata = read_json(path / _METADATA, parse_constant=lambda name: name)
        raw = (path / _TENSORS).read_bytes()
    except OSError as error:
        raise ConcordctError(
            f"{path}: expected a model folder with {_METADATA} and {_TENSORS}, found none ({type(error).__name__})"
        ) from error
    if not isinstance(metadata, dict) or metadata.get("schema") != SCHEMA:
        found = metadata.get("schema") if isinstance(metadata, dict) else type(metadata).__name__
        raise ConcordctError(f"{path}: expected a model of schema {SCHEMA}, found {found}")
    digest = hashlib.sha256(raw).hexdigest()
    if digest != metadata.get("tensors_sha256"):
        raise ConcordctError(
            f"{path / _TENSORS}: expected SHA-256 {str(metadata.get('tensors_sha256'))[:12]}, found {digest[:12]}: "
            "the file was changed or damaged"
        )
    if not isinstance(metadata.get("info"), dict):
        raise ConcordctError(f"{path / _METADATA}: expected an object 'info', found {metadata.get('info')!r:.40}")
    if not isinstance(metadata.get("method"), str):
        raise ConcordctError(f"{path / _METADATA}: expected the name of a method, found {metadata.get('method')!r}")
    try:
        tensors = load(raw)
    except SafetensorError as error:
        raise ConcordctError(f"{path / _TENSORS}: expected safetensors, found damage ({error})") from error
    bundle = Bundle(tensors=tensors, metadata=metadata)
    if bundle.sha256 != metadata.get("sha256"):
        raise ConcordctError(
            f"{path / _METADATA}: expected metadata of SHA-256 {str(metadata.get('sha256'))[:12]}, "
            f"found {bundle.sha256[:12]}: the file was changed"
        )
    return bundle
