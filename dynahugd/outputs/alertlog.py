"""The alert log: one JSON object a line for each anomalous verdict."""

from __future__ import annotations

import errno
import json
import os

from dynahugd.errors import DynahugError
from dynahugd.escape import escape
from dynahugd.outputs.clock import WallClock
from dynahugd.outputs.text import as_object
from dynahugd.verdicts import Verdict

__all__ = ["AlertLog"]


class AlertLog:
    """Appends to a file, one write(2) an alert, so that lines of two writers never mix.

    Opened again when it has been moved away: a log rotation needs no signal.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        try:
            self._fd = self._open()
        except OSError as error:
            raise DynahugError(
                f"cannot write the alert log {escape(path)}: {error.strerror}"
            ) from error

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)

    def write(self, verdict: Verdict, clock: WallClock) -> None:
        """Append an alert.

        Raises
        ------
        OSError : when the disk is full, or the file was moved away and none can be made.
        """
        try:
            moved = not os.path.samestat(os.stat(self._path), os.fstat(self._fd))
        except FileNotFoundError:
            moved = True
        if moved:
            fd = self._open()
            os.close(self._fd)
            self._fd = fd
        line = (json.dumps(as_object(verdict, clock), ensure_ascii=False) + "\n").encode()
        if os.write(self._fd, line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)
