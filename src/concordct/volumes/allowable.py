"""Which problems of a scan a caller may let pass. Imports nothing, so that `--help` is quick."""

from __future__ import annotations

#: What a caller may let pass ("units" is found from voxels, by those who read them, "frames" from a pair). A "conflict"
#: (one position, two contents), a "shift" and a "stray" position have no right answer, a "syntax" without decoder no
#: voxels.
ALLOWABLE = frozenset(
    {"gap", "spacing", "duplicate", "tilt", "kernel", "energy", "acquisition", "mixed", "lossy", "units", "frames"}
)
