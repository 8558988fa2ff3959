"""Options that several commands share."""

from __future__ import annotations

import argparse
import os

from dynahugd.baseline import Baseline, embedded, read
from dynahugd.config import Config, load
from dynahugd.errors import DynahugError

__all__ = ["add_config", "add_probe", "choose_baseline", "config_from", "require_root"]

_KEYS = {
    "listen": "daemon.listen",
    "alert_log": "daemon.alert_log",
    "baseline": "daemon.baseline",
    "loader": "probe.loader",
    "hop": "probe.hop",
    "idle": "probe.idle",
    "linger": "probe.linger",
    "alpha": "verdict.alpha",
    "window": "verdict.window",
    "ring_bytes": "tables.ring_bytes",
    "max_loads": "tables.max_loads",
    "max_tasks": "tables.max_tasks",
    "learn": "learn.file",
    "web_config": "daemon.web_config",
}


def add_config(parser: argparse.ArgumentParser) -> None:
    """``--config`` and the verdict's settings."""
    parser.add_argument(
        "--config", metavar="FILE", help="default: /etc/dynahugd.toml, if it exists"
    )
    parser.add_argument("--baseline", metavar="FILE", help="default: the embedded baseline")
    parser.add_argument("--alpha", type=float, metavar="P", help="p-value of an alert (0.001)")
    parser.add_argument("--window", type=float, metavar="S", help="sliding window in seconds (1)")
    parser.add_argument(
        "--linger", type=float, metavar="S", help="seconds a load's children are followed (30)"
    )


def add_probe(parser: argparse.ArgumentParser) -> None:
    """Settings of the probe."""
    parser.add_argument("--loader", choices=("auto", "libbpf", "bcc"), help="default: auto")
    parser.add_argument("--hop", type=float, metavar="S", help="seconds between two looks (0.25)")
    parser.add_argument(
        "--idle",
        type=float,
        metavar="S",
        help="seconds until an unused descriptor ends a load (30)",
    )
    parser.add_argument("--ring-bytes", type=int, metavar="N", help="size of the ring (8388608)")
    parser.add_argument("--max-loads", type=int, metavar="N", help="loads open at once (1024)")
    parser.add_argument("--max-tasks", type=int, metavar="N", help="tracked tasks (16384)")


def config_from(arguments: argparse.Namespace) -> Config:
    """The configuration: file, overridden by the options that were given."""
    overrides = {
        key: getattr(arguments, name)
        for name, key in _KEYS.items()
        if getattr(arguments, name, None) is not None
    }
    return load(getattr(arguments, "config", None), overrides)


def choose_baseline(path: str) -> tuple[Baseline, str]:
    """The baseline to use and what to call it; an empty path means the embedded one."""
    return (read(path), path) if path else (embedded(), "embedded")


def require_root() -> None:
    """Say early what is missing, instead of a refused system call."""
    if os.geteuid() != 0 and not _has_capabilities():
        raise DynahugError("dynahugd has to run as root, or with CAP_BPF and CAP_PERFMON: try sudo")


def _has_capabilities() -> bool:
    """CAP_PERFMON (38) and CAP_BPF (39) are effective."""
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith("CapEff:"):
                return int(line.split()[1], 16) >> 38 & 3 == 3
    return False
