"""The machine that was measured on, and what else watched it."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path

__all__ = ["available_memory", "describe", "watched_already"]


def _first(file: str, pattern: str) -> str:
    try:
        found = re.search(pattern, Path(file).read_text(), re.MULTILINE)
    except OSError:
        return ""
    return found[1] if found else ""


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def available_memory() -> int:
    """Bytes of memory that a program can have without swapping."""
    return int(_first("/proc/meminfo", r"^MemAvailable:\s+(\d+)")) << 10


def describe() -> str:
    """CPU, cores, memory, kernel, and the versions of what loads."""
    cpu = _first("/proc/cpuinfo", r"^model name\s*:\s*(.+)$") or platform.machine()
    guest = (
        " (a virtual machine)" if "hypervisor" in _first("/proc/cpuinfo", r"^(flags.+)$") else ""
    )
    memory = int(_first("/proc/meminfo", r"^MemTotal:\s+(\d+)")) >> 20
    libraries = ", ".join(f"{name} {_version(name)}" for name in ("torch", "numpy", "transformers"))
    return (
        f"{cpu}, {os.cpu_count()} cores{guest}, {memory} GiB; Linux {platform.release()}; "
        f"CPython {platform.python_version()}, {libraries}; load average "
        f"{os.getloadavg()[0]:.1f} at the start"
    )


def watched_already() -> bool:
    """Whether programs of a dynahugd are in the kernel: then "nothing" is not nothing."""
    shown = subprocess.run(["bpftool", "-j", "prog", "show"], capture_output=True, check=True)
    return any(item.get("name", "").startswith("dh_") for item in json.loads(shown.stdout))
