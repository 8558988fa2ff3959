"""A real ``dynahugd run`` as a child process, and what it says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

Verdict = dict[str, Any]

LOAD = "import pickle, sys\nwith open(sys.argv[1], 'rb') as f: pickle.load(f)"


def system(command: str) -> bytes:
    """A pickle that runs a shell command."""
    return b"cos\nsystem\n(S'" + command.encode() + b"'\ntR."


def run(source: str, *arguments: str | bytes | Path, python: str = sys.executable) -> int:
    """Run Python source to its end; the process' number."""
    process = subprocess.Popen([python, "-c", source, *arguments])
    assert process.wait(60) == 0
    return process.pid


def _cgroup() -> tuple[Path, Path] | None:
    """The root of the cgroup2 hierarchy and the group of this process, where there is one."""
    mounts = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    roots = [Path(fields[1]) for fields in mounts if fields[2] == "cgroup2"]
    if not roots:
        return None
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    home = next(line for line in lines if line.startswith("0::")).removeprefix("0::/")
    return roots[0], roots[0] / home


def cgroup_id() -> int | None:
    """The id of this process' control group, as records and verdicts give it."""
    found = _cgroup()
    return found[1].stat().st_ino if found else None


@contextmanager
def own_cgroup() -> Iterator[int | None]:
    """A control group for this process and its children, so that loads of others are told apart.

    Yields its id; None where there is no cgroup2 that we may write to.
    """
    found = _cgroup()
    if not found or not os.access(found[0], os.W_OK):
        yield None
        return
    root, home = found
    group = root / f"dynahugd-tests-{os.getpid()}"
    group.mkdir()
    try:
        (group / "cgroup.procs").write_text(str(os.getpid()))
        yield group.stat().st_ino
    finally:
        (home / "cgroup.procs").write_text(str(os.getpid()))
        for _ in range(50):  # what a load left behind goes first
            try:
                group.rmdir()
                break
            except OSError:
                for pid in (group / "cgroup.procs").read_text().split():
                    os.kill(int(pid), signal.SIGKILL)
                time.sleep(0.1)


class RunningDaemon:
    """Starts the daemon, collects its verdicts, stops it.

    Parameters
    ----------
    program : the command line of dynahugd, without a command.

    Attributes
    ----------
    verdicts : every verdict that it printed, in order; ``stage`` is ``alert`` or ``ended``.
    said : its own lines, without verdicts.
    """

    def __init__(
        self,
        folder: Path,
        *options: str,
        linger: float = 3.0,
        program: Sequence[str] = (sys.executable, "-m", "dynahugd"),
    ) -> None:
        self.alert_log = folder / "alerts.jsonl"
        self.verdicts: list[Verdict] = []
        self.said: list[str] = []
        self._changed = threading.Condition()
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [
                *program,
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
            text = line.rstrip("\n")
            if text.startswith("{"):
                text = json.loads(text)["text"]
            with self._changed:
                self.said.append(text)
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
        """SIGTERM, and the exit status: after watching, the kernel takes seconds to let go."""
        self.process.terminate()
        return self.process.wait(60)

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
