"""Entries of systemd's journal, with fields."""

from __future__ import annotations

import os
from collections.abc import Container
from contextlib import suppress

from dynahugd.errors import DynahugError
from dynahugd.outputs.messages import Level, Message
from dynahugd.outputs.text import reasons_of, safe, summary
from dynahugd.verdicts import Verdict

__all__ = ["Journal", "connected"]


def connected() -> bool:
    """Whether standard error is connected to the journal (JOURNAL_STREAM in systemd.exec(5))."""
    try:
        status = os.fstat(2)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


class Journal:
    """Writes entries. Benign loads are not worth one.

    Raises
    ------
    DynahugError : systemd-python is missing.
    """

    complete = False

    def __init__(self) -> None:
        try:
            from systemd.journal import sendv
        except ImportError as error:
            raise DynahugError("systemd-python is missing: install python3-systemd") from error
        self._send = sendv

    def message(self, message: Message, text: str) -> None:
        """An entry of the program's own."""
        self._entry(message, text)

    def verdict(self, message: Message, verdict: Verdict, told: Container[str]) -> None:
        """An entry for a load."""
        if message.level is Level.DEBUG:
            return
        load, score = verdict.load, verdict.score
        reasons = reasons_of(verdict, told)
        self._entry(
            message,
            "\n".join([summary(verdict), *reasons]),
            DYNAHUGD_LOAD_ID=f"{load.id:016x}",
            DYNAHUGD_STAGE=verdict.stage.value,
            DYNAHUGD_VERDICT=verdict.kind.value,
            DYNAHUGD_PATH=safe(load.path) or "(no file)",
            DYNAHUGD_FORMAT=load.format,
            DYNAHUGD_P_VALUE=f"{score.p_value:.3g}",
            DYNAHUGD_SCORE=f"{score.score:.3g}",
            DYNAHUGD_CLUSTER=safe(score.cluster),
            DYNAHUGD_REASON="\n".join(reasons) or verdict.note,
            DYNAHUGD_COMM=safe(load.comm),
            DYNAHUGD_EXE=safe(load.exe),
            DYNAHUGD_UID=str(load.uid),
            DYNAHUGD_CGROUP=str(load.cgroup),
            OBJECT_PID=str(load.tgid),
        )

    def _entry(self, message: Message, text: str, **fields: str) -> None:
        with suppress(OSError):  # loads are watched whether or not the journal takes entries
            self._send(
                f"MESSAGE={text}",
                f"MESSAGE_ID={message.id}",
                f"PRIORITY={message.level.value}",
                "SYSLOG_IDENTIFIER=dynahugd",
                *(f"{name}={value}" for name, value in fields.items()),
            )
