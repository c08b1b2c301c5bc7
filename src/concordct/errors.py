"""The one exception that a user is meant to read.

Every message is one line that says what was found, what was expected and in which file. Messages never hold patient
names, patient IDs or birth dates. Where a caller may decide otherwise, the message ends in a code in brackets, such as
"[exists]"; the command line adds which option does so.
"""


class ConcordctError(Exception):
    """Input, model or output that concordct refuses; the command line prints it as one line and exits with 2."""
