"""The one error that users see: a rule, what was got, what to do next."""

from __future__ import annotations


class NoscratchError(Exception):
    """A mistake in settings, data or environment that the user can mend.

    The command line prints it without a traceback.
    """
