"""What was done to a series, as derived objects and their record say it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from concordct.errors import ConcordctError


@dataclass(frozen=True)
class Derivation:
    """What was done, as the derived objects record it.

    Attributes
    ----------
    method : the Standardizer's name ("spectral").
    model_sha256 : hexadecimal SHA-256 of the model bundle.
    target_kernel : the kernel that the model was calibrated toward, as its own data named it; None when unknown.
    settings : whatever else decided the pixels (mode, seed, ...), JSON values only.
    sharpens : True when the target is sharper than the source, False when smoother, None when unknown; it picks the
        standard's derivation code (edge enhancement or smoothing) beside our own.
    """

    method: str
    model_sha256: str
    target_kernel: str | None
    settings: Mapping[str, Any] = field(default_factory=dict)
    sharpens: bool | None = None

    def __post_init__(self) -> None:
        if len(self.model_sha256) != 64 or set(self.model_sha256) - set("0123456789abcdef"):
            raise ConcordctError(f"model digest of {len(self.model_sha256)} characters, expected 64 hexadecimal ones")

    def canonical(self) -> str:
        """One JSON text for one derivation: sorted keys, no spaces."""
        return json.dumps({**asdict(self), "settings": dict(self.settings)}, sort_keys=True, separators=(",", ":"))
