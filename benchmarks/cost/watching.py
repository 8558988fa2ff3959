"""A daemon as a user runs it, to be measured."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from benchmarks.cost.processes import cpu_seconds

__all__ = ["READY", "TASKS_MAP", "Daemon", "command", "tracked_tasks", "watching"]

#: What the daemon says when it is ready.
READY = "ready after"
#: The kernel's table of the tasks that it tracks.
TASKS_MAP = "dh_tasks"
_ADDRESS = re.compile(r"http://[0-9.:]+/metrics")
_SAMPLE = re.compile(r"^([^#\s{]+)(\{[^}]*\})? (\S+)$", re.MULTILINE)


def command(*options: str) -> list[str]:
    """The daemon's command line; verdicts go to standard output, which nobody has to read."""
    return [sys.executable, "-m", "dynahugd", "run", "--listen", "127.0.0.1:0", *options]


def tracked_tasks(pid: int) -> int | None:
    """How many tasks the daemon of a pid tracks; None where its map cannot be found."""
    for file in Path(f"/proc/{pid}/fdinfo").iterdir():
        try:
            found = re.search(r"^map_id:\s*(\d+)", file.read_text(), re.MULTILINE)
        except FileNotFoundError:  # closed since
            continue
        if found and _bpftool("map", "show", "id", found[1])["name"] == TASKS_MAP:
            return len(_bpftool("map", "dump", "id", found[1]))
    return None


def _bpftool(*arguments: str) -> Any:
    shown = subprocess.run(["bpftool", "-j", *arguments], capture_output=True, check=True)
    return json.loads(shown.stdout)


@dataclass(frozen=True, slots=True)
class Daemon:
    """A running daemon.

    Attributes
    ----------
    ready : seconds from its start until it was ready.
    metrics_url : where its metrics are.
    """

    pid: int
    ready: float
    metrics_url: str
    alert_log: Path
    said: Path

    def cpu(self) -> float:
        """CPU seconds so far."""
        return cpu_seconds(self.pid)

    def metrics(self) -> dict[str, float]:
        """Samples by name with labels."""
        with urllib.request.urlopen(self.metrics_url, timeout=30) as answer:
            text = answer.read().decode()
        return {m[1] + (m[2] or ""): float(m[3]) for m in _SAMPLE.finditer(text)}

    def total(self, prefix: str, containing: str = "") -> float:
        """Sum of the samples of a metric, of those whose labels contain a text."""
        return sum(
            value
            for name, value in self.metrics().items()
            if name.split("{")[0] == prefix and containing in name
        )

    def wait_for(self, condition: Callable[[], bool], timeout: float) -> bool:
        """Look every tenth of a second; whether the condition came true."""
        end = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > end:
                return False
            time.sleep(0.1)
        return True


@contextmanager
def watching(*options: str, stdout: BinaryIO | int = subprocess.DEVNULL) -> Iterator[Daemon]:
    """A daemon from ready to its end; its verdicts go to ``stdout``."""
    with tempfile.TemporaryDirectory() as folder:
        said, alert_log = Path(folder, "said"), Path(folder, "alerts.jsonl")
        with said.open("wb") as log:
            started = time.monotonic()
            process = subprocess.Popen(
                command("--alert-log", str(alert_log), *options),
                stdout=stdout,
                stderr=log,
            )
        try:
            while READY not in (text := said.read_text()):
                if process.poll() is not None or time.monotonic() - started > 60:
                    raise RuntimeError(f"the daemon does not start: {text[-2000:]}")
                time.sleep(0.002)
            ready = time.monotonic() - started
            address = _ADDRESS.search(text)
            if address is None:
                raise RuntimeError(f"the daemon does not say where its metrics are: {text[-2000:]}")
            yield Daemon(process.pid, ready, address[0], alert_log, said)
        finally:
            process.terminate()
            process.wait(60)
