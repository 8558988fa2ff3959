"""A real ``dynahugd run`` as a child process, and what it says."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

Verdict = dict[str, Any]


class RunningDaemon:
    """Starts the daemon, collects its verdicts, stops it.

    Attributes
    ----------
    verdicts : every verdict that it printed, in order; ``stage`` is ``alert`` or ``ended``.
    said : its own lines, without verdicts.
    """

    def __init__(self, folder: Path, *options: str, linger: float = 3.0) -> None:
        self.alert_log = folder / "alerts.jsonl"
        self.verdicts: list[Verdict] = []
        self.said: list[str] = []
        self._changed = threading.Condition()
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "dynahugd",
                "run",
                "--json",
                "--listen",
                "127.0.0.1:0",
                "--alert-log",
                str(self.alert_log),
                "--linger",
                str(linger),
                *options,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        threading.Thread(target=self._read_verdicts, daemon=True).start()
        threading.Thread(target=self._read_lines, daemon=True).start()
        self.wait(lambda: any("ready after" in line for line in self.said), 30, "ready")
        line = next(line for line in self.said if "metrics at" in line)
        self.url = line.split("metrics at ")[1].removesuffix("/metrics")

    def _read_verdicts(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.verdicts.append(json.loads(line) | {"seen": time.time()})
                self._changed.notify_all()

    def _read_lines(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._changed:
                self.said.append(line.rstrip("\n"))
                self._changed.notify_all()

    def wait(self, condition: Callable[[], bool], timeout: float, what: str) -> None:
        """Wait until a condition on what was said holds."""
        end = time.monotonic() + timeout
        with self._changed:
            while not condition():
                left = end - time.monotonic()
                if left <= 0 or (self.process.poll() is not None and left < timeout - 1):
                    raise AssertionError(
                        f"no {what} within {timeout} s; status {self.process.poll()}; it said: "
                        + "\n".join(self.said[-20:])
                    )
                self._changed.wait(min(left, 0.2))

    def of(self, where: str | int, stage: str = "ended") -> list[Verdict]:
        """Verdicts on loads of a process (its number) or of files below a folder."""
        with self._changed:
            return [
                verdict
                for verdict in self.verdicts
                if verdict["stage"] == stage
                and (
                    verdict["tgid"] == where
                    if isinstance(where, int)
                    else verdict["path"].startswith(where)
                )
            ]

    def expect(self, where: str | int, stage: str = "ended", timeout: float = 10) -> Verdict:
        """The first verdict on such a load, waited for."""
        self.wait(lambda: bool(self.of(where, stage)), timeout, f"{stage} verdict on {where}")
        return self.of(where, stage)[0]

    def settle(self) -> None:
        """Wait until the loop has come round with everything that has happened before."""
        time.sleep(0.6)

    def get(self, path: str) -> tuple[int, str]:
        """Status and text of a request to the listener."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def metric(self, sample: str) -> float:
        """One sample of /metrics by its name with labels."""
        for line in self.get("/metrics")[1].splitlines():
            if line.startswith(sample + " "):
                return float(line.rsplit(" ", 1)[1])
        raise AssertionError(f"no sample {sample}")

    def stop(self) -> int:
        """SIGTERM, and the exit status."""
        self.process.terminate()
        return self.process.wait(10)

    def __enter__(self) -> RunningDaemon:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.stop()
