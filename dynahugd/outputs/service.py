"""The service manager that started the daemon: sd_notify(3), where there is one."""

from __future__ import annotations

import os
import time
from contextlib import suppress

from dynahugd.errors import DynahugError

__all__ = ["Service"]


class Service:
    """Tells systemd how the daemon does; does nothing where nobody asked for it.

    Raises
    ------
    DynahugError : it asked, and systemd-python is missing.
    """

    def __init__(self) -> None:
        self._notify = None
        self._beat = 0.0
        self._beaten = 0.0
        self._status = ""
        if "NOTIFY_SOCKET" not in os.environ:
            return
        try:
            from systemd.daemon import notify
        except ImportError as error:
            raise DynahugError("systemd-python is missing: install python3-systemd") from error
        self._notify = notify
        interval = os.environ.get("WATCHDOG_USEC", "")
        if interval.isdigit() and os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(
            os.getpid()
        ):
            # Half of the interval, as sd_watchdog_enabled(3) asks for.
            self._beat = int(interval) / 2e6

    def _tell(self, state: str) -> None:
        if self._notify is not None:
            with suppress(OSError):  # nobody listens any more: that is no reason to stop watching
                self._notify(state)

    def ready(self) -> None:
        """Everything is attached, or a reload is over."""
        self._tell("READY=1")

    def reloading(self) -> None:
        """A reload has begun."""
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """The daemon ends."""
        self._tell("STOPPING=1")

    def status(self, text: str) -> None:
        """One line for ``systemctl status``; told when it changes."""
        if text != self._status:
            self._status = text
            self._tell(f"STATUS={text}")

    def alive(self) -> None:
        """The loop has come round. Only the loop may say so: a stuck one is to be restarted."""
        if self._beat and time.monotonic() - self._beaten >= self._beat:
            self._beaten = time.monotonic()
            self._tell("WATCHDOG=1")
