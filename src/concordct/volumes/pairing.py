"""Are two volumes two reconstructions of one scan? Geometry first, then content below every kernel's cut-off.

Kernels differ in fine detail only. What a wide Gaussian leaves must be the same anatomy at the same HU, or a transfer
function fitted between the two would be nonsense.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from concordct.errors import ConcordctError
from concordct.volumes.allowable import ALLOWABLE
from concordct.volumes.files import VolumeFile
from concordct.volumes.series import Series
from concordct.volumes.volume import BODY_ABOVE_HU

#: Reconstructions of one scan share their positions; each header rounds them to 0.1 mm at the worst.
SAME_POSITION_MM = 0.11
#: Width of the low pass: 3 mm leaves less than 2% at 1.5 lp/cm, below which CT kernels agree.
LOW_PASS_MM = 3.0
#: Real pairs: Philips UB/YA 0.9985, Siemens B30/D45 0.9996. Neighbouring slices of one chest, 3 mm apart: 0.986.
MIN_CORRELATION = 0.99
#: Kernels keep the mean HU of uniform regions; beam-hardening options and other doses of contrast do not.
MAX_BIAS_HU = 10.0
#: Where the low-passed image is steeper than this, it is an edge and no uniform region.
UNIFORM_HU_PER_MM = 4.0
#: Slices compared: three, at a quarter, half and three quarters of the volume.
QUARTERS = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class PairCheck:
    """How well two volumes agree below the kernels' cut-offs.

    Attributes
    ----------
    correlation : of the low-passed body voxels of the compared slices.
    bias_hu : mean of target - source over uniform body regions; 0 where there is none.
    uniform_voxels : how many voxels that mean is over.
    offset_mm : greatest distance between corresponding voxels by the two geometries.
    frames_differ : two frames of reference, let pass because positions and content agree.
    """

    correlation: float
    bias_hu: float
    uniform_voxels: int
    offset_mm: float
    frames_differ: bool = False


def check_pair(
    source: Series | VolumeFile, target: Series | VolumeFile, *, allow: Collection[str] = frozenset()
) -> PairCheck:
    """Refuse a pair that is not one scan reconstructed twice.

    Parameters
    ----------
    source, target : series or volume files.
    allow : "frames" lets two frames of reference pass, which anonymizing series by series makes of one; shape,
        positions and content are asked for all the same. Other codes of `ALLOWABLE` concern each scan by itself.

    Returns
    -------
    PairCheck, as measured.

    Raises
    ------
    ConcordctError : other frame of reference, shape or positions, or a content that disagrees; with the measured
        and the expected value.
    """
    where = f"{_name(source)} and {_name(target)}"
    offset = _check_geometry(source, target, where, allow)
    correlation, bias, voxels = _content(source, target)
    if correlation < MIN_CORRELATION:
        raise ConcordctError(
            f"the pair shows different content: low-passed body correlates {correlation:.3f}, expected at least "
            f"{MIN_CORRELATION}: {where}"
        )
    if abs(bias) > MAX_BIAS_HU:
        raise ConcordctError(
            f"the pair differs by {bias:+.1f} HU in uniform body regions, expected at most {MAX_BIAS_HU:g} HU: {where}"
        )
    return PairCheck(correlation, bias, voxels, offset, frames_differ=_frames_differ(source, target))


def pair_series(
    sources: Sequence[Series | VolumeFile],
    targets: Sequence[Series | VolumeFile],
    *,
    allow: Collection[str] = frozenset(),
) -> tuple[tuple[Series | VolumeFile, Series | VolumeFile], ...]:
    """Match the volumes of two folders: by frame of reference and geometry, and by content where several fit.

    Parameters
    ----------
    sources, targets : as found; every source needs exactly one target and no target serves twice.
    allow : as for `check_pair`.

    Returns
    -------
    (source, target) in the order of `sources`; `check_pair` has accepted each.

    Raises
    ------
    ConcordctError : a source without a partner, or two sources that want the same one.
    """
    pairs = []
    taken: dict[int, Series | VolumeFile] = {}
    for source in sources:
        fitting = [k for k, target in enumerate(targets) if _geometry_fault(source, target, allow)[1] is None]
        if not fitting:
            faults = sorted({_geometry_fault(source, target, allow)[1] or "" for target in targets})
            why = f": {faults[0]}" if len(faults) == 1 else ""
            raise ConcordctError(f"none of {len(targets)} targets fits{why}: {_name(source)}")
        if len(fitting) > 1:
            scores = [_content(source, targets[k])[0] for k in fitting]
            fitting = [fitting[int(np.argmax(scores))]]
        best = fitting[0]
        if best in taken:
            raise ConcordctError(f"{_name(source)} and {_name(taken[best])} both fit {_name(targets[best])} only")
        taken[best] = source
        check_pair(source, targets[best], allow=allow)
        pairs.append((source, targets[best]))
    return tuple(pairs)


@dataclass(frozen=True, eq=False)
class Pairing:
    """What `pair_by_kernel` found: the pairs, and each source without a partner with the reason."""

    pairs: tuple[tuple[Series, Series], ...]
    failures: tuple[tuple[Series, str], ...]


def pair_by_kernel(
    series: Sequence[Series],
    source_kernel: str,
    target_kernel: str,
    *,
    allow: Collection[str] = frozenset(),
    progress: Callable[[int, int], None] | None = None,
) -> Pairing:
    """Pair the series of a tree by their kernels: same frame of reference, same positions, same content.

    Parameters
    ----------
    series : of any kernels, in any folders; several may share one.
    source_kernel, target_kernel : as the headers name them.
    allow : as for `check_pair`.
    progress : called with (sources looked at, sources in all).

    Raises
    ------
    ConcordctError : one of the kernels is not there; the message names those that are.
    """
    sources = [one for one in series if one.kernel == source_kernel]
    free = [one for one in series if one.kernel == target_kernel]
    if not sources or not free:
        there = sorted({one.kernel or "unknown" for one in series})
        raise ConcordctError(
            f"expected series in {source_kernel} and {target_kernel}, found {', '.join(there) or 'no series'}"
        )
    pairs, failures = [], []
    for index, source in enumerate(sources, start=1):
        reason = f"no {target_kernel} series in its frame of reference"
        for target in [one for one in free if "frames" in allow or not _frames_differ(source, one)]:
            try:
                check_pair(source, target, allow=allow)
            except ConcordctError as error:
                reason = str(error)
                continue
            free.remove(target)
            pairs.append((source, target))
            break
        else:
            failures.append((source, reason))
        if progress is not None:
            progress(index, len(sources))
    return Pairing(tuple(pairs), tuple(failures))


def _check_geometry(
    source: Series | VolumeFile, target: Series | VolumeFile, where: str, allow: Collection[str]
) -> float:
    offset, fault = _geometry_fault(source, target, allow)
    if fault is not None:
        raise ConcordctError(f"{fault}: {where}")
    return offset


def _frames_differ(source: Series | VolumeFile, target: Series | VolumeFile) -> bool:
    if not (isinstance(source, Series) and isinstance(target, Series)):
        return False
    frames = (source.frame_of_reference_uid, target.frame_of_reference_uid)
    return None not in frames and frames[0] != frames[1]


def _geometry_fault(
    source: Series | VolumeFile, target: Series | VolumeFile, allow: Collection[str]
) -> tuple[float, str | None]:
    """Greatest distance of corresponding voxels, and what is wrong in words."""
    if "frames" not in allow and _frames_differ(source, target):
        return np.inf, "the pair has two frames of reference, expected one [frames]"
    if isinstance(source, Series) and isinstance(target, Series) and source.energy != target.energy:
        shown = " and ".join(one.energy or "the plain image" for one in (source, target))
        return np.inf, f"the pair shows {shown}, expected one energy"
    if source.shape != target.shape:
        return np.inf, f"the pair has shapes {source.shape} and {target.shape}, expected the same"
    offset = float(np.linalg.norm(_corners(source) - _corners(target), axis=1).max())
    if isinstance(source, Series) and isinstance(target, Series):
        origins = [np.array([ref.origin_lps_mm for ref in series.slices]) for series in (source, target)]
        offset = max(offset, float(np.linalg.norm(origins[0] - origins[1], axis=1).max()))
    if offset > SAME_POSITION_MM:
        return offset, f"the pair lies {offset:.3g} mm apart, expected at most {SAME_POSITION_MM} mm"
    return offset, None


def _corners(volume: Series | VolumeFile) -> NDArray[np.float64]:
    last = [n - 1 for n in volume.shape]
    index = np.array([[a, b, c, 1] for a in (0, last[0]) for b in (0, last[1]) for c in (0, last[2])], dtype=float)
    return np.asarray((volume.affine @ index.T).T[:, :3])


def _content(source: Series | VolumeFile, target: Series | VolumeFile) -> tuple[float, float, int]:
    """Correlation and bias (target - source, HU) of the low-passed body, and the voxels behind the bias."""
    sigma = [LOW_PASS_MM / spacing for spacing in source.spacing_mm[1:]]
    bodies: list[list[NDArray[Any]]] = []
    flat: list[NDArray[Any]] = []
    for index in sorted({int(part * (source.shape[0] - 1)) for part in QUARTERS}):
        a, b = (
            ndimage.gaussian_filter(one.read(index, index + 1, allow=_all(one)).hu[0], sigma, mode="nearest")
            for one in (source, target)
        )
        # Lung is no uniform region: its fine structure belongs to the kernel.
        body = ndimage.binary_fill_holes((a > BODY_ABOVE_HU) | (b > BODY_ABOVE_HU))
        bodies.append([a[body], b[body]])
        steep = np.maximum(*(np.hypot(*np.gradient(image, *source.spacing_mm[1:])) for image in (a, b)))
        uniform = (steep < UNIFORM_HU_PER_MM) & (np.minimum(a, b) > BODY_ABOVE_HU)
        flat.append((b - a)[uniform])
    first, second = (np.concatenate([pair[k] for pair in bodies]) for k in (0, 1))
    if first.size < 2 or first.std() == 0 or second.std() == 0:
        # Nothing to compare by: two empty or two constant images are as alike as their means.
        correlation = 1.0 if np.allclose(first, second, atol=MAX_BIAS_HU) else 0.0
    else:
        correlation = float(np.corrcoef(first, second)[0, 1])
    differences = np.concatenate(flat)
    return correlation, float(differences.mean()) if differences.size else 0.0, int(differences.size)


def _all(volume: Series | VolumeFile) -> frozenset[str]:
    # The caller has checked the series; content is compared on whatever it let pass.
    return frozenset(problem.code for problem in volume.problems) & ALLOWABLE


def _name(volume: Series | VolumeFile) -> str:
    return str(volume.path if isinstance(volume, VolumeFile) else volume.folder)
