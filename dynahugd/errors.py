"""Errors that a user can do something about."""


class DynahugError(Exception):
    """A user's error: the command line prints it as one sentence, without a traceback."""
