"""``dynahugd doctor``: what this kernel, these loaders and these interpreters can do."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from dynahugd.config import DEFAULT_PATH, Config, load
from dynahugd.errors import DynahugError
from dynahugd.escape import escape

HELP = "say what this kernel, these loaders and these interpreters can do"
EXAMPLES = """\
examples:
  dynahugd doctor
  dynahugd doctor --config /etc/dynahugd.toml
  dynahugd doctor --json | jq '.checks[] | select(.good | not)'

Exit status: 0 the daemon can run, 1 it cannot, 2 wrong usage."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at.

    Attributes
    ----------
    needed : the daemon cannot run without it.
    """

    name: str
    good: bool
    needed: bool
    detail: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument(
        "--config", metavar="FILE", help="default: /etc/dynahugd.toml, if it exists"
    )
    parser.add_argument("--json", action="store_true", help="print the checks as JSON")


def _try(name: str, needed: bool, look: Callable[[], str]) -> Check:
    try:
        return Check(name, True, needed, look())
    except (DynahugError, OSError, ImportError) as error:
        return Check(name, False, needed, str(error))


def _kernel() -> str:
    version = tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2])
    if version < (5, 8):
        raise DynahugError(f"Linux {platform.release()} has no ring buffers: 5.8 is needed")
    return f"Linux {platform.release()} {platform.machine()}"


def _privilege() -> str:
    from dynahugd.commands.options import require_root

    require_root()
    return "root" if os.geteuid() == 0 else "capabilities"


def _maps() -> str:
    from dynahugd.probes.maps import Maps, Sizes

    Maps(Sizes(loads=1, tasks=64, files=64, globals=64, ring=4096)).close()
    return "ring buffer, mapped arrays, queue"


def _types() -> str:
    from dynahugd.probes.btf import offsets

    found = offsets()
    return f"task_struct.pid at {found.task_pid}, linux_binprm.filename at {found.program_filename}"


def _opens() -> str:
    from dynahugd.probes.attach import tracefs

    tracefs()
    paranoid = int(Path("/proc/sys/kernel/perf_event_paranoid").read_text())
    if paranoid > 2:
        raise DynahugError(
            f"kernel.perf_event_paranoid is {paranoid}: without CAP_SYS_ADMIN, as the service "
            "runs, all system calls are looked at while an ML process lives; 2 spares the host that"
        )
    return "by tracepoints of their own"


def _uprobes() -> str:
    from dynahugd.probes.attach import multi_uprobes

    if multi_uprobes():
        return "multi-uprobe links: CAP_SYS_ADMIN is not needed"
    return "by perf events: CAP_SYS_ADMIN is needed (Linux 6.6 has multi-uprobe links)"


def _loader(name: str) -> str:
    from dynahugd.daemon import probe_options
    from dynahugd.probes.probe import Probe

    Probe(probe_options(load(None, {"probe.loader": name}))).close()
    return "programs load and attach"


def _configuration(path: str | None) -> str:
    load(path)
    name = path or DEFAULT_PATH
    return escape(name) if os.path.exists(name) else "defaults"


def _baseline(config: Config) -> str:
    from dynahugd.commands.options import choose_baseline

    baseline, source = choose_baseline(config.daemon.baseline)
    told = baseline.metadata
    return f"{escape(source)}: {told.get('loads')} loads, trained {told.get('trained')}"


def _listener(config: Config) -> str:
    from dynahugd.outputs.listener import open_to_others, web_config

    address, path = config.daemon.listen, config.daemon.web_config
    web = web_config(path)
    if not address:
        return "none"
    if open_to_others(address, web):
        raise DynahugError(
            f"anyone who reaches {address} can read the metrics: set daemon.web_config (TLS, "
            "users), or listen on 127.0.0.1"
        )
    return address + (f", by {escape(path)}" if path else "")


def _alertmanager(config: Config) -> str:
    from dynahugd.outputs.alertmanager import Alertmanagers
    from dynahugd.outputs.clock import WallClock

    keys = config.alertmanager
    Alertmanagers(keys, "", lambda message, text: None, WallClock())
    return ", ".join(keys.urls) or "none"


def _systemd() -> str:
    from systemd import daemon

    return f"systemd-python, booted with systemd: {bool(daemon.booted())}"


def _interpreters() -> list[dict[str, object]]:
    from dynahugd.probes.interpreters import Interpreters

    found = Interpreters(None)
    found.cover_installed()
    found.scan()
    return [
        {
            "path": escape(item.path),
            "state": "can be attached" if item.coverage.value == "attached" else "not_covered",
            "version": ".".join(map(str, item.version or ())),
            "unpickler": item.unpickler,
            "reason": escape(item.reason),
        }
        for item in found.files.values()
    ]


def run(arguments: argparse.Namespace) -> int:
    """Look, and report."""
    checks = [
        _try("configuration", True, partial(_configuration, arguments.config)),
        _try("kernel", True, _kernel),
        _try("privilege", True, _privilege),
        _try("maps", True, _maps),
        _try("types", True, _types),
        _try("opens", False, _opens),
        _try("uprobes", False, _uprobes),
    ]
    if all(check.good for check in checks if check.needed):
        checks += [
            _try("loader libbpf", False, partial(_loader, "libbpf")),
            _try("loader bcc", False, partial(_loader, "bcc")),
        ]
    loaders = [check.good for check in checks if check.name.startswith("loader")]
    # One that cannot be read is told of above.
    config = load(arguments.config) if checks[0].good else Config()
    checks += [
        _try("baseline", True, partial(_baseline, config)),
        _try("listener", False, partial(_listener, config)),
        _try("alertmanager", False, partial(_alertmanager, config)),
        _try("systemd", False, _systemd),
    ]
    interpreters = _interpreters()
    good = all(check.good for check in checks if check.needed) and any(loaders)
    if arguments.json:
        print(
            json.dumps(
                {
                    "can_run": good,
                    "checks": [asdict(check) for check in checks],
                    "interpreters": interpreters,
                }
            )
        )
        return 0 if good else 1
    for check in checks:
        mark = "ok  " if check.good else "FAIL" if check.needed else "no  "
        print(f"{mark} {check.name:<14} {escape(check.detail)}")
    for item in interpreters:
        mark = "ok  " if item["state"] == "can be attached" else "no  "
        what = "unpickler" if item["unpickler"] else item["reason"] or "no built-in unpickler"
        print(f"{mark} {'interpreter':<14} {item['path']} {item['version']} {what}")
    print("the daemon can run" if good else "the daemon cannot run: see FAIL above")
    return 0 if good else 1
