"""What makes a judgement worth less than it looks: scans that the calibration saw, kernels that are not the model's,
results in the place of a target.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from concordct.errors import ConcordctError
from concordct.methods.models import OWN_KERNEL, Model, kernel_mismatch
from concordct.volumes.derived import RECORD
from concordct.volumes.given import read_json
from concordct.volumes.identity import Identity, identity
from concordct.volumes.scans import Scan, scan_path
from concordct.volumes.series import Series

#: Where a model's `info` holds the identity of the scans that it was calibrated on.
CALIBRATED_ON = "calibrated_on"

#: How close judged scans are to the calibration: its very slices, other slices of its series, its acquisition.
Closeness = Literal["slices", "series", "exam"]


@dataclass(frozen=True)
class Seen:
    """Judged scans that the calibration saw.

    Attributes
    ----------
    closeness : the closest that any scan comes.
    slices : judged slices that the calibration saw, of `of` judged slices.
    scans : judged scans that come close.
    """

    closeness: Closeness
    slices: int
    of: int
    scans: int

    @property
    def said(self) -> str:
        """In words."""
        if self.closeness == "slices":
            return (
                f"in-sample: the model was calibrated on {self.slices} of the {self.of} judged slices, so this shows "
                "how well it fits them and not how well it does on new scans"
            )
        if self.closeness == "series":
            return "near-sample: the model was calibrated on other slices of the judged scans"
        return "near-sample: the model was calibrated on the same acquisition as the judged scans"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "closeness": self.closeness,
            "slices_seen": self.slices,
            "slices_judged": self.of,
            "scans": self.scans,
            "said": self.said,
        }


def seen_in_calibration(info: Mapping[str, Any], scans: Sequence[Scan]) -> Seen | None:
    """Whether judged scans took part in a calibration.

    Parameters
    ----------
    info : of the model.
    scans : sources and targets that are judged.

    Returns
    -------
    None where none did, or where the model does not say what it was calibrated on.
    """
    calibrated = Identity.from_json(info.get(CALIBRATED_ON))
    if calibrated is None:
        return None
    found = [identity(scan) for scan in scans]
    slices = sum(len(one.slices & calibrated.slices) for one in found)
    series = sum(bool(one.series & calibrated.series) for one in found)
    exams = sum(bool(one.exams & calibrated.exams) for one in found)
    if not slices + series + exams:
        return None
    closeness: Closeness = "slices" if slices else "series" if series else "exam"
    return Seen(closeness, slices, sum(len(one.slices) for one in found), max(series, exams))


def is_result(scan: Scan) -> bool:
    """Whether concordct wrote a scan: its kernel says so, or the record that lies beside it."""
    if scan.kernel is not None and scan.kernel.startswith(OWN_KERNEL):
        return True
    path = scan.folder / RECORD if isinstance(scan, Series) else scan.path.with_name(scan.path.name + ".json")
    try:
        return "derivation" in read_json(path)
    except (OSError, ConcordctError, TypeError):
        return False


def check_roles(source: Scan, target: Scan) -> None:
    """Refuse results in the place of what a scanner made.

    Raises
    ------
    ConcordctError : source or target is a result of concordct.
    """
    for name, scan in (("source", source), ("target", target)):
        if is_result(scan):
            raise ConcordctError(
                f"{scan_path(scan)}: expected as {name} a scan as the scanner made it, found a result of concordct; "
                "are source, standardized and target in each other's place?"
            )


def check_kernels(model: Model, source: Scan, target: Scan | None = None) -> None:
    """Refuse scans of other kernels than the model's, as `standardize` does.

    Raises
    ------
    ConcordctError : the source is not of the kernel that the model converts from, or the target not of the one that it
        converts to.
    """
    mismatch = kernel_mismatch(model, source.kernel)
    if mismatch is not None:
        raise ConcordctError(f"{scan_path(source)}: {mismatch}")
    kernels = model.target_kernels
    if target is not None and target.kernel is not None and kernels and target.kernel not in kernels:
        raise ConcordctError(
            f"{scan_path(target)}: kernel {target.kernel}, while the model converts to {' or '.join(kernels)}"
        )
