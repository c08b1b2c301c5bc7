"""concordct brings CT scans into concord: the same patient, the same radiomic numbers, whatever the kernel."""

__version__ = "0.1.0"
