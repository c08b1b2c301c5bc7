"""Which scan is this, said without saying whose: short digests of the UIDs of its slices, series and exam.

A model keeps those of the scans that it was calibrated on, so that judging it on one of them is noticed. A UID cannot
be read back from its digest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from concordct.volumes.files import VolumeFile
from concordct.volumes.scans import Scan

#: Hexadecimal digits kept of a digest: among a million slices, two share one by chance once in thirty million cases.
DIGITS = 16


@dataclass(frozen=True)
class Identity:
    """Digests of one scan, or of several together.

    Attributes
    ----------
    slices : of the slices; a volume file without UIDs counts as one slice, known by its voxels.
    series : of the series.
    exams : of the frames of reference: all reconstructions of one acquisition share it.
    """

    slices: frozenset[str]
    series: frozenset[str]
    exams: frozenset[str]

    def to_json(self) -> dict[str, list[str]]:
        """Sorted lists."""
        return {"slices": sorted(self.slices), "series": sorted(self.series), "exams": sorted(self.exams)}

    @staticmethod
    def from_json(found: Any) -> Identity | None:
        """What `to_json` wrote; None for what it never writes."""
        try:
            return Identity(*(frozenset(map(str, found[name])) for name in ("slices", "series", "exams")))
        except (KeyError, TypeError):
            return None


def identity(scan: Scan, slices: Iterable[int] | None = None) -> Identity:
    """The identity of a scan.

    Parameters
    ----------
    slices : of these alone; of all without.
    """
    if isinstance(scan, VolumeFile):
        own = frozenset([_digest(scan.key)])
        return Identity(own, own, frozenset())
    used = range(len(scan.slices)) if slices is None else slices
    # An object with many frames has one UID.
    uids = {f"{scan.slices[index].sop_instance_uid}#{scan.slices[index].frame}" for index in used}
    exam = scan.frame_of_reference_uid
    return Identity(
        frozenset(map(_digest, uids)),
        frozenset([_digest(scan.uid)]),
        frozenset() if exam is None else frozenset([_digest(exam)]),
    )


def together(parts: Iterable[Identity]) -> Identity:
    """The identity of several scans."""
    found = tuple(parts)
    return Identity(
        frozenset().union(*(one.slices for one in found)),
        frozenset().union(*(one.series for one in found)),
        frozenset().union(*(one.exams for one in found)),
    )


def _digest(uid: str) -> str:
    return hashlib.sha256(f"concordct\0{uid}".encode()).hexdigest()[:DIGITS]
