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
    synthetic : what the pixels show, in words, when they are no scan at all ("follow-up predicted for 52 weeks later");
        None when they are one.
    shows : what the pixels are when they are not one standardized image ("mean of 8 samples"); None when they are.
    slices : what was done to slices when they are not the source's ("slices of 5 mm ..."); None when they are.
    window_hu : centre and width in which they are to be shown; None for the source's own.
    """

    method: str
    model_sha256: str
    target_kernel: str | None
    settings: Mapping[str, Any] = field(default_factory=dict)
    sharpens: bool | None = None
    synthetic: str | None = None
    shows: str | None = None
    window_hu: tuple[float, float] | None = None
    slices: str | None = None

    def __post_init__(self) -> None:
        if len(self.model_sha256) != 64 or set(self.model_sha256) - set("0123456789abcdef"):
            raise ConcordctError(f"model digest of {len(self.model_sha256)} characters, expected 64 hexadecimal ones")

    def canonical(self) -> str:
        """One JSON text for one derivation: sorted keys, no spaces."""
        fields = {**asdict(self), "settings": dict(self.settings)}
        for name in ("synthetic", "shows", "window_hu", "slices"):
            if fields[name] is None:
                del fields[name]  # UIDs of what was standardized hang on the text as it always was
        return json.dumps(fields, sort_keys=True, separators=(",", ":"))
