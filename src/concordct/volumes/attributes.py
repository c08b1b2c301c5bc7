"""The value of one attribute of a header; bytes that were decoded before are not decoded again.

A series says most things in every slice, in the same bytes. pydicom decodes each of them anew, and that takes half of
the time that a header does. What it made of an element is kept by all that it made it from: tag, VR, bytes, their order
and the character set.
"""

from __future__ import annotations

from typing import Any

from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag

#: Longer values are decoded each time, as are sequences.
_LONGEST = 256
#: Values kept; then all are forgotten, for in a large tree most that are different come once.
_MOST = 4096
#: Whose meaning hangs on other attributes, or that hold datasets of their own.
_NEVER = frozenset(("SQ", "UN", "US or SS", "US or OW", "US or SS or OW", "OB or OW"))
_kept: dict[tuple[Any, ...], Any] = {}
#: Keyword -> tag, and the VR that implicit VR leaves unsaid.
_tags: dict[str, tuple[BaseTag, str]] = {}


def attribute(dataset: Dataset, keyword: str, default: Any = None) -> Any:
    """As `dataset.get(keyword, default)` of a standard attribute; the caller leaves what comes back as it is.

    Raises
    ------
    Exception : of any kind, from pydicom, where the value is broken.
    """
    known = _tags.get(keyword)
    if known is None:
        number = tag_for_keyword(keyword)
        assert number is not None, keyword
        known = _tags[keyword] = BaseTag(number), dictionary_VR(number)
    tag, usual = known
    element = dataset.get_item(tag)
    if element is None:
        return default
    if not isinstance(element, RawDataElement):
        return element.value
    value, vr = element.value, element.VR or usual
    if value is None or len(value) > _LONGEST or vr in _NEVER:
        return dataset.get(keyword, default)
    said = dataset.original_character_set
    words = said if isinstance(said, str) else tuple(said or ())
    key = (tag, vr, value, element.is_little_endian, words)
    try:
        return _kept[key]
    except KeyError:
        pass
    found = dataset.get(keyword, default)
    if found is default:
        return found
    if len(_kept) >= _MOST:
        _kept.clear()
    _kept[key] = found
    return found
