"""Write a derived CT series: same patient, study and frame of reference; new UIDs, honest kernel, recorded derivation.

The pixels come slab by slab and are laid aside on disk, so memory stays flat; UIDs are hashed from the source, the
model, the settings, the software version and the pixels, so that the same work gives the same bytes anywhere
(DICOM PS3.3 C.7.6.1, C.12.1; PS3.5 B.2). `docs/conventions.md` lists what happens to each attribute.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from io import BufferedWriter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import FileDataset

from concordct import __version__
from concordct.errors import ConcordctError
from concordct.volumes.classic import MULTI_FRAME, classic_frame
from concordct.volumes.ct_range import Reach, ct_range
from concordct.volumes.decode import StoredSlice, able_to_reach, as_signed, open_dataset, quiet_dicom
from concordct.volumes.derivation import Derivation
from concordct.volumes.derived_header import derived_dataset, hashed_uid, save
from concordct.volumes.derived_place import place
from concordct.volumes.place import atomic_directory, refuse_overlap, writing
from concordct.volumes.restacked import RestackedSeries
from concordct.volumes.series import Problem, Series, SliceRef
from concordct.volumes.volume import Volume

#: A slab may not lie elsewhere than the slices that it replaces; affines are equal but for float arithmetic.
SAME_PLACE_MM = 1e-3
#: The record that lies beside the DICOM objects.
RECORD = "derivation.json"


@dataclass(frozen=True)
class Written:
    """A derived series that now stands whole.

    Attributes
    ----------
    directory, paths : where it stands; one DICOM object for each slice, and the record beside them.
    series_uid : its SeriesInstanceUID.
    clipped_low, clipped_high : voxels that lay below or above what is stored, see `ct_range` and the source's bits.
    pixels_sha256 : SHA-256 of all stored values, little endian, in slice order.
    allowed : problems of the source that the caller let pass.
    """

    directory: Path
    paths: tuple[Path, ...]
    series_uid: str
    clipped_low: int
    clipped_high: int
    pixels_sha256: str
    allowed: tuple[Problem, ...] = ()

    @property
    def clipped_voxels(self) -> int:
        """Voxels clipped at either end of the stored range."""
        return self.clipped_low + self.clipped_high


def write_derived_series(
    series: Series,
    slabs: Iterable[Volume],
    directory: str | Path,
    derivation: Derivation,
    *,
    allow: Collection[str] = frozenset(),
    overwrite: bool = False,
    also: Mapping[str, Any] | None = None,
) -> Written:
    """Write standardized slabs of a DICOM series as a derived CT series.

    Parameters
    ----------
    series : the source; from an enhanced multi-frame CT each frame becomes a single-frame CT object. A
        `RestackedSeries` gives objects at its own places, each with the header of the nearest source slice.
    slabs : consecutive Volumes that cover the whole series in order; consumed one at a time.
    directory : the output folder, made aside and moved into place whole.
    derivation : what was done.
    allow : problems of the source that may pass, see `Series.check`; they are recorded.
    overwrite : whether an existing folder is replaced, after the new one is complete.
    also : what else the record beside the objects says, JSON values.

    Returns
    -------
    Written.

    Raises
    ------
    ConcordctError : output equal to, around or inside the input, output exists, slabs that do not cover the series
        or hold values that are not finite, or a place that cannot be written.
    """
    allowed = series.check(allow)
    directory = Path(directory)
    refuse_overlap(directory, (ref.path for ref in series.slices), folder=True)
    with atomic_directory(directory, overwrite=overwrite, ours=RECORD) as aside:
        # The pixels wait here until their hash, and with it every UID, is known.
        waiting = aside / ".stored"
        with writing(directory), open(waiting, "wb") as file:
            digest, read, clipped, signed = _lay_aside(series, slabs, file)
        identity = _identity(series, derivation, digest)
        series_uid = hashed_uid("series", identity)
        descending = isinstance(series, RestackedSeries) and _descending(series)
        names = [f"{index:0{max(4, len(str(series.shape[0])))}d}.dcm" for index in range(series.shape[0])]
        with writing(directory), open(waiting, "rb") as file:
            for index, (ref, source, sop_class) in enumerate(_sources(series)):
                pixels = file.read(_slice_bytes(series, source))
                uids = {"series_uid": series_uid, "sop_instance_uid": hashed_uid("instance", identity, str(index))}
                try:
                    if signed[index]:
                        as_signed(source)
                    dataset = derived_dataset(
                        source, pixels, ref, sop_class, **uids, derivation=derivation, index=index, allowed=allowed
                    )
                    if isinstance(series, RestackedSeries):
                        place(dataset, series.placed(index, descending=descending), sop_class)
                    save(dataset, aside / names[index])
                except (ConcordctError, OSError):
                    raise
                except Exception as error:
                    # pydicom refuses to write some values that it reads, with many kinds of exceptions.
                    said = f"header cannot be written again ({type(error).__name__})"
                    raise ConcordctError(f"{said}: {ref.path}") from None
        with writing(directory):
            waiting.unlink()
            record = _record(series, derivation, series_uid, identity, digest, clipped, names, allowed)
            if not isinstance(series, RestackedSeries):
                record["source_sha256"] = read
            record |= dict(also or {})
            (aside / RECORD).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return Written(
        directory=directory,
        paths=tuple(directory / name for name in names),
        series_uid=series_uid,
        clipped_low=clipped[0],
        clipped_high=clipped[1],
        pixels_sha256=digest,
        allowed=allowed,
    )


def stored_sha256(stored: Iterable[StoredSlice]) -> str:
    """SHA-256 of what slices hold: stored values and rescale."""
    digest = hashlib.sha256()
    for one in stored:
        _add(digest, one)
    return digest.hexdigest()


def _add(digest: Any, stored: StoredSlice) -> None:
    digest.update(f"{stored.slope!r} {stored.intercept!r}\0".encode())
    digest.update(stored.values.astype(stored.dtype).tobytes())


def _lay_aside(
    series: Series, slabs: Iterable[Volume], file: BufferedWriter
) -> tuple[str, str, tuple[int, int], list[bool]]:
    """Stored values of every slice to `file`; their SHA-256, the source's, voxels clipped (low, high), and which slices
    became signed."""
    digest, source = hashlib.sha256(), hashlib.sha256()
    low = high = 0
    following = 0
    signed: list[bool] = []
    for slab in slabs:
        _check_slab(series, slab, following)
        stop = following + slab.shape[0]
        for hu, found in zip(slab.hu, series.stored(following, stop), strict=True):
            _add(source, found)
            stored = able_to_reach(found, slab.reach_hu)
            signed.append(stored is not found)
            values, below, above = _stored_values(hu, stored, slab.reach_hu)
            data = values.astype(stored.dtype).tobytes()
            digest.update(data)
            file.write(data)
            low, high = low + below, high + above
        following = stop
    if following != series.shape[0]:
        raise ConcordctError(f"slabs end after {following} slices, expected {series.shape[0]}: {series.folder}")
    return digest.hexdigest(), source.hexdigest(), (low, high), signed


def _stored_values(
    hu: NDArray[np.float32], stored: StoredSlice, reach: Reach | None
) -> tuple[NDArray[np.int64], int, int]:
    """HU of one slice as stored values of its own rescale; padding gets its source's values back, bit for bit."""
    values = np.rint((hu.astype(np.float64) - stored.intercept) / stored.slope)
    ends = sorted((end - stored.intercept) / stored.slope for end in ct_range(stored.hu(), stored.padding, reach))
    low, high = max(stored.bounds[0], math.ceil(ends[0])), min(stored.bounds[1], math.floor(ends[1]))
    image = ~stored.padding
    below, above = int(np.sum((values < low) & image)), int(np.sum((values > high) & image))
    clipped = np.clip(values, low, high).astype(np.int64)
    return np.where(stored.padding, stored.values, clipped), below, above


def _sources(series: Series) -> Iterator[tuple[SliceRef, FileDataset, str]]:
    """Each slice, its whole header for the caller to change, its SOP class; a multi-frame file is parsed once."""
    multi_frame: tuple[Path, FileDataset] | None = None
    for ref in series.slices:
        parsed = multi_frame is not None and multi_frame[0] == ref.path
        dataset = multi_frame[1] if multi_frame is not None and parsed else open_dataset(ref.path)
        with quiet_dicom():
            sop_class = str(dataset.SOPClassUID)
            if sop_class in MULTI_FRAME:
                multi_frame = (ref.path, dataset)
                dataset = classic_frame(dataset, ref.frame, ref.path)
        yield ref, dataset, sop_class


def _descending(series: RestackedSeries) -> bool:
    """Whether the source numbers its slices against their normal."""
    numbers = []
    for ref in (series.slices[0], series.slices[-1]):
        with quiet_dicom():
            text = str(open_dataset(ref.path).get("InstanceNumber", "")).strip()
        numbers.append(int(text) + ref.frame if re.fullmatch(r"[+-]?\d{1,11}", text) else 0)
    return numbers[0] > numbers[1]


def _slice_bytes(series: Series, source: FileDataset) -> int:
    with quiet_dicom():
        return series.shape[1] * series.shape[2] * int(source.BitsAllocated) // 8


def _check_slab(series: Series, slab: Volume, following: int) -> None:
    where = f"series in {series.folder}"
    if slab.first_slice != following or following + slab.shape[0] > series.shape[0]:
        raise ConcordctError(
            f"slab of slices {slab.first_slice} to {slab.first_slice + slab.shape[0]}, expected to start at "
            f"{following} and end by {series.shape[0]}: {where}"
        )
    if slab.shape[1:] != series.shape[1:]:
        raise ConcordctError(f"slab of {slab.shape[1:]} pixels, expected {series.shape[1:]}: {where}")
    expected = series.affine.copy()
    expected[:3, 3] = series.slices[following].origin_lps_mm
    if not np.allclose(slab.affine, expected, rtol=0, atol=SAME_PLACE_MM):
        raise ConcordctError(f"slab at slice {following} lies elsewhere than its source: {where}")
    if not np.isfinite(slab.hu).all():
        raise ConcordctError(f"HU that are not finite in slices from {following}, nothing written: {where}")


def _identity(series: Series, derivation: Derivation, pixels_sha256: str) -> str:
    """SHA-256 of everything that makes this result what it is; all UIDs hang on it."""
    digest = hashlib.sha256()
    parts = [series.key, *(f"{ref.sop_instance_uid}.{ref.frame}" for ref in series.slices)]
    if isinstance(series, RestackedSeries):
        parts += [repr(ref.origin_lps_mm) for ref in series.slices]
    for part in (*parts, derivation.canonical(), __version__, pixels_sha256):
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()


def _record(
    series: Series,
    derivation: Derivation,
    series_uid: str,
    identity: str,
    pixels_sha256: str,
    clipped: tuple[int, int],
    names: list[str],
    allowed: tuple[Problem, ...],
) -> dict[str, Any]:
    """The JSON beside the objects: which derived slice came from which source slice, and how."""
    return {
        "software": f"concordct {__version__}",
        "derivation": json.loads(derivation.canonical()),
        "source_kernel": series.kernel,
        "source_series_uid": series.uid,
        "series_uid": series_uid,
        "frame_of_reference_uid": series.frame_of_reference_uid,
        "pixels_sha256": pixels_sha256,
        "clipped_low": clipped[0],
        "clipped_high": clipped[1],
        "allowed": [asdict(problem) for problem in allowed],
        "notes": list(series.notes),
        "instances": [
            {
                "file": name,
                "position_mm": ref.position_mm,
                "source_sop_instance_uid": ref.sop_instance_uid,
                "source_frame": ref.frame + 1,
                "sop_instance_uid": hashed_uid("instance", identity, str(index)),
                **_made_of(series, index),
            }
            for index, (name, ref) in enumerate(zip(names, series.slices, strict=True))
        ],
    }


def _made_of(series: Series, index: int) -> dict[str, Any]:
    """Of a new slice: all source slices, of which the nearest is named above."""
    if not isinstance(series, RestackedSeries):
        return {}
    made_of = series.placed(index).made_of
    return {"made_of": [{"sop_instance_uid": ref.sop_instance_uid, "frame": ref.frame + 1} for ref in made_of]}
