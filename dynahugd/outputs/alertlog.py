"""The alert log: one JSON object a line for each anomalous verdict."""

from __future__ import annotations

import json
import os

from dynahugd.errors import DynahugError
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
        self._fd = self._open()

    def _open(self) -> int:
        try:
            return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        except OSError as error:
            raise DynahugError(
                f"cannot write the alert log {self._path}: {error.strerror}"
            ) from error

    def write(self, verdict: Verdict, clock: WallClock) -> None:
        """Append an alert. Raises OSError when the disk is full."""
        try:
            moved = os.stat(self._path).st_ino != os.fstat(self._fd).st_ino
        except FileNotFoundError:
            moved = True
        if moved:
            os.close(self._fd)
            self._fd = self._open()
        line = json.dumps(as_object(verdict, clock), ensure_ascii=False) + "\n"
        os.write(self._fd, line.encode())

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)
