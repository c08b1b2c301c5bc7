"""A source header made ready to be written again as Explicit VR Little Endian: public attributes, text byte for byte.

Text is never decoded on its way: bytes that do not fit their stated character set would come out as replacement
characters, and a patient would have another name for good (PS3.5 6.1.2.3). Numbers are turned where the byte order asks
for it, sequences item by item.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pydicom.charset import convert_encodings, decode_bytes
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.filewriter import correct_ambiguous_vr
from pydicom.tag import BaseTag

from concordct.volumes.dicom_file import quiet_dicom

#: Values that are text (PS3.5 6.2): the same bytes in every transfer syntax. UIDs have no character set and are read.
_TEXT = frozenset(("AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UR", "UT"))
_CHARACTER_SET = 0x00080005
_WIDTH = {"OW": 2, "OF": 4, "OL": 4, "OD": 8, "OV": 8, "OB or OW": 2, "US or OW": 2, "US or SS or OW": 2}


class KeptText(DataElement):
    """A text attribute that is written with the bytes that it was read with.

    pydicom writes the value of an element that says `is_raw` as it is; unlike its own raw elements this one is never
    converted, whatever becomes of the dataset around it.
    """

    is_raw = True
    is_buffered = False

    def __init__(self, tag: BaseTag, vr: str, kept: bytes) -> None:
        self.kept = kept + b" " * (len(kept) % 2)
        self.length = len(self.kept)
        super().__init__(tag, vr, None)

    @property
    def value(self) -> Any:
        """The bytes, until another value is set."""
        return self.kept if self.is_raw else DataElement.value.fget(self)  # type: ignore[attr-defined]

    @value.setter
    def value(self, value: Any) -> None:
        if value is not None:
            self.is_raw = False
            DataElement.value.fset(self, value)  # type: ignore[attr-defined]


def prepare(dataset: Dataset, *, big_endian: bool) -> None:
    """Drop private attributes, group lengths, curves and overlays, and keep text as bytes, at any depth, in place.

    Parameters
    ----------
    dataset : as read from a file, values still raw.
    big_endian : whether the file was.
    """
    _prepare(dataset, big_endian)
    correct_ambiguous_vr(dataset, True)


def _prepare(dataset: Dataset, big_endian: bool) -> None:
    for tag in list(dataset.keys()):
        # Curves (50xx) and overlays (60xx) were drawn for the source; group lengths are retired.
        drawn = 0x5000 <= tag.group <= 0x501E or 0x6000 <= tag.group <= 0x601E
        if tag.is_private or tag.element == 0 or drawn:
            del dataset[tag]
            continue
        element = dataset.get_item(tag)
        vr = _vr(tag, element)
        if vr == "SQ":
            for item in dataset[tag].value:
                _prepare(item, big_endian)
        elif vr in _TEXT and isinstance(element, RawDataElement) and tag != _CHARACTER_SET:
            dataset[tag] = KeptText(tag, vr, element.value or b"")
        elif isinstance(element, RawDataElement):
            _converted(dataset, element, vr, big_endian=big_endian)


def text_of(dataset: Dataset, keyword: str) -> str:
    """A text attribute of a prepared header as far as it can be read, for use in a text of ours."""
    value = dataset.get(keyword)
    if not isinstance(value, bytes):
        return str(value or "")
    stated = dataset.get("SpecificCharacterSet") or "ISO_IR 6"
    with quiet_dicom():
        text = decode_bytes(value, convert_encodings(stated), set())
    return text.replace("\ufffd", "?").strip("\0 ")


def _vr(tag: int, element: DataElement | RawDataElement) -> str:
    if element.VR in (None, "UN"):
        try:
            return str(dictionary_VR(tag))
        except KeyError:
            return "UN"
    return str(element.VR)


def _converted(dataset: Dataset, element: RawDataElement, vr: str, *, big_endian: bool) -> None:
    """A number or bytes: parsed and, where it was big endian, turned; what cannot be parsed is dropped."""
    tag = element.tag
    try:
        converted = dataset[tag]
        if big_endian and isinstance(converted.value, bytes) and (width := _WIDTH.get(str(converted.VR))):
            # pydicom leaves these as big-endian bytes (lookup tables and the like).
            converted.value = np.frombuffer(converted.value, f">u{width}").astype(f"<u{width}").tobytes()
    except Exception:
        # Its value fits no number of its type, or its length none at all: there is nothing to keep.
        del dataset[tag]
