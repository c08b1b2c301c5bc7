"""Compressed pixels of one frame: JPEG, JPEG-LS, JPEG 2000, RLE, decoded where a crash harms nobody.

Native C and C++ libraries decode; damaged data make them abort, run away, or warn and go on with what they have. They
run in the guarded worker process (`guard`), and a word from a decoder counts as an error. Sizes and end markers are
looked at before (ITU-T T.81 B.1.1, ISO 15444-1 A.5.1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_fragments, get_frame
from pydicom.pixels import get_decoder
from pydicom.uid import UID, JPEGExtended12Bit, RLELossless

from concordct.errors import ConcordctError
from concordct.volumes.guard import Asked, ask

_ITEM = b"\xfe\xff\x00\xe0"


def decoder_missing(syntax: UID, bits_stored: int) -> bool:
    """Whether no decoder is here for a compressed transfer syntax.

    JPEG Extended of 12 bits and HTJ2K, JPEG XL and video are such.
    """
    if syntax == JPEGExtended12Bit and bits_stored > 8:
        return True
    try:
        return not get_decoder(syntax).is_available
    except NotImplementedError:
        return True


def extended_offsets(dataset: Dataset, path: Path) -> tuple[int, ...]:
    """The numbers of ExtendedOffsetTable, which stands for an empty basic one (PS3.3 C.7.6.3.1.8); none without it.

    Raises
    ------
    ConcordctError : a table of no whole 64-bit numbers.
    """
    table = dataset.get("ExtendedOffsetTable") or b""
    if not isinstance(table, bytes) or len(table) % 8:
        raise ConcordctError(f"extended offsets of compressed frames, expected numbers of 8 bytes: {path}")
    return tuple(int.from_bytes(table[at : at + 8], "little") for at in range(0, len(table), 8))


def frame_codestream(data: bytes, frame: int, frames: int, *, path: Path, extended: tuple[int, ...] = ()) -> bytes:
    """The codestream of one frame, its fragments joined (PS3.5 A.4).

    Parameters
    ----------
    data : encapsulated pixel data.
    frames : how many the header says there are.
    extended : offsets of the frames where no table stands in the data, see `extended_offsets`.

    Raises
    ------
    ConcordctError : an offset table for another number of frames, or one that does not lead to them in their order:
        the frames follow each other, and their positions count in that order.
    """
    length = int.from_bytes(data[4:8], "little") if data[:4] == _ITEM else 0
    start = 8 + length
    offsets = [int.from_bytes(data[at : at + 4], "little") for at in range(8, start - 3, 4)] or list(extended)
    if (len(offsets) > 1 or extended) and len(offsets) != frames:
        raise ConcordctError(f"compressed pixels of {len(offsets)} frames by their offsets, expected {frames}: {path}")
    if frames == 1:  # whatever the table says, all that follows it is this frame
        return b"".join(generate_fragments(BytesIO(data[start:])))
    ascending = all(one < after for one, after in pairwise(offsets))
    if not ascending or any(data[start + one : start + one + 4] != _ITEM for one in offsets):
        raise ConcordctError(f"offsets of compressed frames that do not lead to them in their order: {path}")
    if extended:  # of fragments of any number; pydicom's own way asks for their lengths, too
        after = (*offsets[1:], len(data) - start)[frame]
        return b"".join(generate_fragments(BytesIO(data[start + offsets[frame] : start + after])))
    return get_frame(data, frame, number_of_frames=frames)


def decode_codestream(data: bytes, *, syntax: UID, options: Mapping[str, Any], path: Path) -> NDArray[Any]:
    """[y, x] stored values of one frame, see `begin_codestream`."""
    return begin_codestream(data, syntax=syntax, options=options, path=path)()


def begin_codestream(data: bytes, *, syntax: UID, options: Mapping[str, Any], path: Path) -> Callable[[], NDArray[Any]]:
    """Begin to decode one frame; the call of what comes back waits for its [y, x] stored values.

    Parameters
    ----------
    data : the frame's codestream, fragments joined.
    syntax : its transfer syntax.
    options : rows, columns, bits and the like, as `pydicom.pixels.Decoder.as_array` takes them.
    path : named in messages.

    Raises
    ------
    ConcordctError : cut short or of another size than the header's; when called, not decodable or decoded with a
        complaint.
    """
    rows, columns = options["rows"], options["columns"]
    found = codestream_size(data)
    # Decoders fill what is missing with whatever they like; T.81 and 15444-1 end with the same marker.
    if found is not None and not data.rstrip(b"\0\xff").endswith(b"\xff\xd9"):
        raise ConcordctError(f"compressed pixels are cut short, no end marker: {path}")
    if found is not None and found != (rows, columns):
        raise ConcordctError(f"compressed pixels of {found[0]} x {found[1]}, header {rows} x {columns}: {path}")
    if syntax == RLELossless:
        # pydicom's own decoder: Python, bounded by the header's sizes.
        return partial(decoded, data, syntax=str(syntax), options=dict(options))
    asked = ask(decoded, data, path=path, syntax=str(syntax), options=dict(options))
    return partial(_array, asked, syntax, path)


def _array(asked: Asked, syntax: UID, path: Path) -> NDArray[Any]:
    """What the worker decoded without a complaint."""
    failed = f"cannot decode pixels in {syntax.name} ({syntax})"
    try:
        result = asked.result()
    except ConcordctError as error:
        raise ConcordctError(f"{failed}, {error}") from None
    if result.said:
        raise ConcordctError(f"{failed}, the decoder complains: {path}")
    return result.array


def decoded(data: bytes, *, syntax: str, options: dict[str, Any]) -> NDArray[Any]:
    """One frame through pydicom's decoders; run by the worker process."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        array, _ = get_decoder(UID(syntax)).as_array(encapsulate([data]), index=0, raw=True, **options)
    return np.asarray(array)


def codestream_size(data: bytes) -> tuple[int, int] | None:
    """(rows, columns) that a JPEG, JPEG-LS or JPEG 2000 codestream declares; None for anything else."""
    if data[:4] == b"\xff\x4f\xff\x51" and len(data) >= 24:  # JPEG 2000 part 1, A.5.1: SOC, SIZ
        xsiz, ysiz, xosiz, yosiz = (int.from_bytes(data[8 + 4 * i : 12 + 4 * i], "big") for i in range(4))
        return ysiz - yosiz, xsiz - xosiz
    if data[:2] != b"\xff\xd8":
        return None
    position = 2
    while position + 9 <= len(data) and data[position] == 0xFF:  # ITU-T T.81 B.1.1: marker segments
        marker, length = data[position + 1], int.from_bytes(data[position + 2 : position + 4], "big")
        if marker == 0xFF:
            position += 1
            continue
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            rows, columns = (int.from_bytes(data[position + i : position + i + 2], "big") for i in (5, 7))
            return rows, columns
        position += 2 + length
    return None
