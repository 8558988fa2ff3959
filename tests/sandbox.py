"""The restrictions of a service unit, laid on a command where systemd is not there to do it.

``confined`` gives the command line; root has to run it. What the directives mean is in
systemd.exec(5); the filters of system calls are those that systemd 252 installs for them.
"""

from __future__ import annotations

import ctypes
import errno
import importlib
import json
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

__all__ = ["IMITATED", "NOT_IMITATED", "USER", "confined", "directives"]

REPOSITORY = Path(__file__).parents[1]

#: A number from the range that systemd takes dynamic users from.
USER = 61184

#: Directives that are laid on the command as the unit has them.
IMITATED = frozenset(
    "AmbientCapabilities CapabilityBoundingSet DynamicUser Environment ExecPaths "
    "LimitNOFILE MemoryDenyWriteExecute NoExecPaths NoNewPrivileges PrivateDevices "
    "PrivateMounts PrivateTmp ProcSubset ProtectHome ProtectKernelLogs ProtectKernelModules "
    "ProtectKernelTunables ProtectProc ProtectSystem ReadOnlyPaths RestrictAddressFamilies "
    "RestrictNamespaces RestrictRealtime SystemCallErrorNumber SystemCallFilter UMask User".split()
)

#: Directives that are not, and why the daemon cannot be hurt by them.
NOT_IMITATED = {
    "CPUQuota": "control groups are systemd's",
    "CPUSchedulingPolicy": "does not restrict",
    "DevicePolicy": "control groups are systemd's; it opens no device",
    "KeyringMode": "it uses no keyring",
    "LimitMEMLOCK": "counts before Linux 5.11 only",
    "LockPersonality": "it never changes its personality",
    "MemoryMax": "control groups are systemd's",
    "OOMScoreAdjust": "does not restrict",
    "ProtectClock": "the calls are filtered already",
    "ProtectControlGroups": "read-only already",
    "ProtectHostname": "the calls are filtered already",
    "RemoveIPC": "comes after its end",
    "RestrictSUIDSGID": "it makes no such files",
    "SystemCallArchitectures": "its own is the native one",
    "TasksMax": "control groups are systemd's",
}

_READ_ONLY, _NO_EXEC, _RECURSIVE = 1, 8, 0x8000
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_WRITE, _EXECUTE, _SHM_EXEC = 2, 4, 0o100000
_NAMESPACES = 0x7E020080  # all CLONE_NEW* of clone(2) as of Linux 5.6


def directives(*files: Path) -> dict[str, list[str]]:
    """Values by directive of a unit's [Service] section and its drop-ins, in their order."""
    values: dict[str, list[str]] = {}
    for file in files:
        section = ""
        for line in file.read_text().splitlines():
            if line.startswith("["):
                section = line
            elif section == "[Service]" and line and line[0] not in "#;":
                name, _, value = line.partition("=")
                values.setdefault(name, []).append(value)
    return values


def confined(units: Sequence[Path], writable: Path, command: Sequence[str]) -> list[str]:
    """The command line that runs ``command`` as the service that ``units`` describe.

    The process stays the same all the way, so that signals reach the command. It sees this
    repository, and may write to one folder besides its temporary ones.
    """
    unit = json.dumps(directives(*units))
    program = [sys.executable, "-m", "tests.sandbox", str(writable), unit, *command]
    return ["env", f"--chdir={REPOSITORY}", "unshare", "--mount", "--propagation=slave", *program]


# ------------------------------------------------------------------------------------ mounts


def _mount(*arguments: str, keep: Iterable[int] = ()) -> None:
    subprocess.run(["mount", *arguments], check=True, pass_fds=tuple(keep))


def _hide(folder: str, mode: str = "755") -> None:
    if os.path.isdir(folder):
        _mount("-t", "tmpfs", "-o", f"mode={mode}", "tmpfs", folder)


def _attributes(folder: str, on: int = 0, off: int = 0) -> None:
    """Change attributes of all mounts below a folder: mount_setattr(2)."""
    values = (ctypes.c_uint64 * 4)(on, off, 0, 0)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(442, -100, os.fsencode(folder), _RECURSIVE, values, ctypes.sizeof(values)):
        raise OSError(ctypes.get_errno(), f"mount_setattr {folder}")


def _show_again(kept: dict[str, int]) -> None:
    """Bind what was opened before it was hidden to where it was."""
    for path, fd in kept.items():
        if path.startswith("/dev/"):
            Path(path).touch()
        else:
            Path(path).mkdir(parents=True, exist_ok=True)
        _mount("--no-canonicalize", "--bind", f"/proc/self/fd/{fd}", path, keep=[fd])


def _arrange_files(unit: dict[str, list[str]], writable: str) -> None:
    def is_on(name: str) -> bool:
        return unit.get(name, ["no"])[-1] in ("yes", "strict", "invisible", "pid")

    own = [str(REPOSITORY), writable]
    kept = {path: os.open(path, os.O_PATH) for path in own}
    options = [
        option
        for option, name in (("hidepid=invisible", "ProtectProc"), ("subset=pid", "ProcSubset"))
        if is_on(name)
    ]
    if options:
        _mount("-t", "proc", "-o", ",".join(options), "proc", "/proc")
    if is_on("ProtectHome"):
        for folder in ("/home", "/root", "/run/user"):
            _hide(folder)
    scratch = ["/tmp", "/var/tmp"] if is_on("PrivateTmp") else []
    if is_on("PrivateDevices"):
        kept |= {f"/dev/{name}": os.open(f"/dev/{name}", os.O_PATH) for name in _DEVICES}
        _hide("/dev")
        os.mkdir("/dev/shm")
        scratch.append("/dev/shm")
    for folder in scratch:
        _hide(folder, "1777")
    if is_on("ProtectKernelModules"):
        _hide("/usr/lib/modules")
    _show_again(kept)
    if is_on("ProtectKernelTunables"):
        for name in ("kallsyms", "kcore"):
            if os.path.exists(f"/proc/{name}"):
                _mount("--bind", "/dev/null", f"/proc/{name}")
    if is_on("ProtectKernelLogs") and os.path.exists("/proc/kmsg"):
        _mount("--bind", "/dev/null", "/proc/kmsg")
    if "NoExecPaths" in unit:
        allowed = " ".join(unit["ExecPaths"]).split()
        for path in allowed:
            _mount("--rbind", path, path)
        for path in " ".join(unit["NoExecPaths"]).split():
            _attributes(path, on=_NO_EXEC)
        for path in (*allowed, own[0]):
            _attributes(path, off=_NO_EXEC)
    if is_on("ProtectSystem"):
        _attributes("/", on=_READ_ONLY)
        for path in ("/proc", writable, *scratch):
            _attributes(path, off=_READ_ONLY)
    for path in " ".join(unit.get("ReadOnlyPaths", [])).split():
        _attributes(path, on=_READ_ONLY)


def _privileges(unit: dict[str, list[str]]) -> list[str]:
    def names(name: str) -> str:
        given = " ".join(unit.get(name, [])).split()
        return ",".join(["-all", *("+" + item.removeprefix("CAP_").lower() for item in given)])

    ambient = names("AmbientCapabilities")
    options = [f"--bounding-set={names('CapabilityBoundingSet')}"]
    options += [f"--inh-caps={ambient}", f"--ambient-caps={ambient}"]
    if unit["DynamicUser"] == ["yes"]:
        options += [f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
    if unit["NoNewPrivileges"] == ["yes"]:
        options.append("--no-new-privs")
    return ["setpriv", *options]


# ------------------------------------------------------------------------------ system calls


def _sets() -> dict[str, set[str]]:
    """Members of each set of system calls that this systemd knows: calls and other sets."""
    listed = subprocess.check_output(["systemd-analyze", "syscall-filter"], text=True)
    sets: dict[str, set[str]] = {}
    members: set[str] = set()
    for line in listed.splitlines():
        if line.startswith("@"):
            members = sets[line.strip()] = set()
        elif line.startswith(" ") and not line.lstrip().startswith("#"):
            members.add(line.strip())
    return sets


def _expand(words: Iterable[str], sets: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    for word in words:
        found |= _expand(sets[word], sets) if word.startswith("@") else {word}
    return found


def _allowed(unit: dict[str, list[str]]) -> set[str]:
    sets = _sets()
    allowed = _expand(["@default"], sets)
    for value in unit["SystemCallFilter"]:
        named = _expand(value.removeprefix("~").split(), sets)
        allowed = allowed - named if value.startswith("~") else allowed | named
    return allowed


def _install_filter(unit: dict[str, list[str]]) -> None:
    """One filter for all directives; the narrowest rule of a call is the only one."""
    seccomp: Any = importlib.import_module("seccomp")
    refuse = seccomp.ERRNO(getattr(errno, unit["SystemCallErrorNumber"][-1]))
    rules = seccomp.SyscallFilter(refuse)
    narrowed: dict[str, list[Any]] = {}

    def mask(index: int, bits: int, value: int) -> Any:
        return seccomp.Arg(index, seccomp.MASKED_EQ, bits, value)

    if "RestrictAddressFamilies" in unit:
        families = " ".join(unit["RestrictAddressFamilies"]).split()
        narrowed["socket"] = [
            seccomp.Arg(0, seccomp.EQ, int(getattr(socket, family))) for family in families
        ]
    if unit.get("MemoryDenyWriteExecute") == ["yes"]:
        both = _WRITE | _EXECUTE
        narrowed["mmap"] = [mask(2, both, value) for value in (0, _WRITE, _EXECUTE)]
        narrowed["mprotect"] = narrowed["pkey_mprotect"] = [mask(2, _EXECUTE, 0)]
        narrowed["shmat"] = [mask(2, _SHM_EXEC, 0)]
    if unit.get("RestrictNamespaces") == ["yes"]:
        rules.add_rule(seccomp.ERRNO(errno.ENOSYS), "clone3")
        narrowed["clone"] = [mask(0, _NAMESPACES, 0)]
        narrowed["unshare"] = [mask(0, _NAMESPACES, 0)]
        narrowed["clone3"] = narrowed["setns"] = []
    if unit.get("RestrictRealtime") == ["yes"]:
        narrowed["sched_setscheduler"] = []
    for name in sorted(_allowed(unit)):
        if seccomp.resolve_syscall(seccomp.Arch(), name) < 0:
            continue  # of another architecture, or newer than the library
        if name not in narrowed:
            rules.add_rule(seccomp.ALLOW, name)
        for argument in narrowed.get(name, []):
            rules.add_rule(seccomp.ALLOW, name, argument)
    rules.load()


def _start(unit: dict[str, list[str]], writable: str, command: list[str]) -> None:
    """Become the command, with the service's environment."""
    os.umask(int(unit["UMask"][-1], 8))
    for assignment in unit.get("Environment", []):
        name, _, value = assignment.partition("=")
        os.environ[name] = value.replace("%t/dynahugd", writable)
    os.chdir(writable)
    _install_filter(unit)
    os.execv(command[0], command)


def main(arguments: list[str]) -> None:
    """Root arranges files and privileges and starts itself again; the service's user goes on."""
    writable, unit, command = arguments[0], json.loads(arguments[1]), arguments[2:]
    if os.geteuid() == 0:
        _arrange_files(unit, writable)
        resource.setrlimit(resource.RLIMIT_NOFILE, (int(unit["LimitNOFILE"][-1]),) * 2)
        again = [sys.executable, "-m", "tests.sandbox", *arguments]
        os.execvp("setpriv", [*_privileges(unit), *again])
    _start(unit, writable, command)


if __name__ == "__main__":
    main(sys.argv[1:])
