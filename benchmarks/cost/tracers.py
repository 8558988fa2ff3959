"""What a user would take instead: strace, perf trace, bpftrace, sysdig."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from benchmarks.cost.conditions import Condition

__all__ = ["COUNTING", "audit_probe", "bpftrace", "tracers"]

#: Counts by system call, as one would do it in one line.
COUNTING = "tracepoint:raw_syscalls:sys_enter { @[args->id] = count(); }"


def _attached(pid: int) -> bool:
    shown = subprocess.run(["bpftool", "-j", "perf", "show"], capture_output=True, check=True)
    return any(event["pid"] == pid for event in json.loads(shown.stdout))


@contextmanager
def _running(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate()


@contextmanager
def bpftrace(program: str) -> Iterator[int]:
    """bpftrace from the moment on that it is attached; its pid."""
    with _running(["bpftrace", "-e", program]) as process:
        end = time.monotonic() + 60
        while not _attached(process.pid):
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"bpftrace does not attach to {program}")
            time.sleep(0.05)
        yield process.pid


def audit_probe(interpreter: str) -> str:
    """A program for bpftrace: a uprobe where every audited event of an interpreter passes."""
    return f"uprobe:{interpreter}:PySys_Audit {{ @ = count(); }}"


@contextmanager
def _sysdig() -> Iterator[None]:
    with _running(["sysdig", "-w", "/dev/null"]):
        time.sleep(2)
        yield


def _refusal(*command: str) -> str:
    """Why a program does not run here; empty if it does."""
    if shutil.which(command[0]) is None:
        return "it is not installed"
    done = subprocess.run(command, capture_output=True, text=True)
    words = (done.stderr or done.stdout).strip().splitlines()
    return "" if done.returncode == 0 else " ".join(words)[:200] or f"exit {done.returncode}"


def tracers(every: int) -> tuple[list[Condition], list[str]]:
    """Those that run here, each in the first of so many rounds, and notes on those that do not."""
    ways = (
        (
            Condition("strace -f -c", prefix=("strace", "-f", "-c", "-o", "/dev/null")),
            ("strace", "-c", "-o", "/dev/null", "true"),
        ),
        (
            Condition("bpftrace", partial(bpftrace, COUNTING)),
            ("bpftrace", "-e", "BEGIN { exit(); }"),
        ),
        (
            Condition("perf trace -s", prefix=("perf", "trace", "-s", "-o", "/dev/null")),
            ("perf", "trace", "-s", "-o", "/dev/null", "true"),
        ),
        (Condition("sysdig", _sysdig), ("sysdig", "-M", "1", "-w", "/dev/null")),
    )
    conditions, notes = [], []
    for condition, trial in ways:
        refusal = _refusal(*trial)
        if refusal:
            notes.append(f"{condition.name} was left out: {refusal}")
        else:
            conditions.append(
                Condition(condition.name, condition.enter, condition.prefix, max(every, 1))
            )
    return conditions, notes
