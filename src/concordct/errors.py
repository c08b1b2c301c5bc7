"""The one exception that a user is meant to read.

Every message is one line that says what was found, what was expected and in which file. Messages never hold patient
names, patient IDs or birth dates. Where a caller may decide otherwise, the message ends in a code in brackets, such as
"[exists]"; the command line adds which option does so.
"""

from __future__ import annotations

import errno
import os
import traceback
from pathlib import Path


class ConcordctError(Exception):
    """Input, model or output that concordct refuses; the command line prints it as one line and exits with 2.

    Names and values may hold escape sequences of terminals or bytes of no character: they are shown as "?".
    """

    def __init__(self, message: str) -> None:
        super().__init__("".join(c if c.isprintable() or c == "\n" else "?" for c in message))


def reason_of(error: BaseException) -> str:
    """One line for an exception of any kind, without a value that it may quote: those may name a patient.

    Returns
    -------
    The text of a `ConcordctError`; for a file that cannot be read or written, its path and the system's word; memory;
    else the kind of exception and the line of this package that it came through.
    """
    if isinstance(error, ConcordctError):
        return " ".join(str(error).split())
    if isinstance(error, MemoryError):
        return "not enough memory"
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        reason = _REASONS.get(error.errno, error.strerror.lower())
        if error.strerror.startswith("No usable temporary directory"):
            return "no folder for temporary files can be written, expected one; TMPDIR may name it"
        place = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes | os.PathLike) else ""
        return f"{place}: {reason}" if place else reason
    return f"a fault of the program, {type(error).__name__} in {_line_of(error)}"


#: What the system's errors mean for someone who reads or writes a file.
_REASONS = {
    errno.ENOSPC: "no space left on the device",
    errno.EDQUOT: "disk quota exceeded",
    errno.EFBIG: "file too large for this place",
    errno.EROFS: "read-only file system",
    errno.EACCES: "no permission",
    errno.EPERM: "no permission",
    errno.ENOENT: "no such file or folder",
    errno.ENOTDIR: "a part of the path is not a folder",
    errno.EEXIST: "exists already",
    errno.EIO: "input/output error",
}


def _line_of(error: BaseException) -> str:
    """File and line of the last frame of ours, or of the last frame at all."""
    frames = [(Path(frame.f_code.co_filename), line) for frame, line in traceback.walk_tb(error.__traceback__)]
    ours = [(path, line) for path, line in frames if "concordct" in path.parts]
    path, line = (ours or frames or [(Path("unknown"), 0)])[-1]
    return f"{path.name}, line {line}"
