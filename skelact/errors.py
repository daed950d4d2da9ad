"""Errors that a user can mend: the command line prints their one line instead of a traceback."""

from __future__ import annotations


class SkelactError(ValueError):
    """Something outside skelact's code is at fault: a file, a key, an override.

    The message says which, and what to do.
    """
