"""UIDs that follow from what they name and from nothing else: no clock, no chance."""

from __future__ import annotations

import hashlib


def uid_of(*parts: object) -> str:
    """A UID under 2.25 from text: SHA-256 cut to a version 8 UUID (PS3.5 B.2, RFC 9562 5.8)."""
    digest = bytearray(hashlib.sha256("\0".join(map(str, parts)).encode()).digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x80
    digest[8] = digest[8] & 0x3F | 0x80
    return f"2.25.{int.from_bytes(digest, 'big')}"
