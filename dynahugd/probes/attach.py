"""Attaching programs: raw tracepoints, tracepoints, uprobes.

Every attachment is a descriptor of a link or of a perf event: closing it detaches, and so does the
end of the process, however it comes.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import re
from collections.abc import Iterable
from pathlib import Path

from dynahugd.errors import DynahugError
from dynahugd.probes import kernel
from dynahugd.probes.loaders import Programs

__all__ = [
    "Uprobe",
    "attach_call",
    "attach_counting",
    "attach_opens",
    "attach_tasks",
    "attach_uprobes",
    "detach",
    "event_of",
    "multi_uprobes",
    "tracefs",
]

_TRACEFS = (Path("/sys/kernel/tracing"), Path("/sys/kernel/debug/tracing"))
_UPROBE_TYPE = Path("/sys/bus/event_source/devices/uprobe/type")
_UPROBE_RETURN = Path("/sys/bus/event_source/devices/uprobe/format/retprobe")
_PERF_TYPE_TRACEPOINT = 2
_PERF_EVENT_IOC_ENABLE = 0x2400
_PERF_EVENT_IOC_SET_BPF = 0x40042408
_OPENS = ("sys_exit_open", "sys_exit_openat", "sys_exit_openat2")

#: Tracepoints are named by the kernel's functions, where these are named otherwise than the calls.
_EVENTS = {"umount2": "umount"}

#: (name of the program, file offset, whether it runs at the return instead of the entry)
Uprobe = tuple[str, int, bool]


def tracefs() -> Path:
    """Where tracefs is; mounted at its usual place if it is not and we may."""
    for folder in _TRACEFS:
        if (folder / "events").is_dir():
            return folder
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tracefs", os.fsencode(_TRACEFS[0]), b"tracefs", 0, None) == 0:
        return _TRACEFS[0]
    raise DynahugError(
        f"tracefs is not readable ({os.strerror(ctypes.get_errno())}): run as root, or "
        f"'mount -t tracefs tracefs {_TRACEFS[0]}' first"
    )


def multi_uprobes() -> bool:
    """Whether this kernel has multi-uprobe links (Linux 6.6)."""
    match = re.match(r"(\d+)\.(\d+)", platform.release())
    return bool(match) and (int(match[1]), int(match[2])) >= (6, 6)  # type: ignore[index]


def _tracepoint(program: int, event: str) -> list[int]:
    number = int((tracefs() / "events" / event / "id").read_text())
    return _perf(program, kernel.open_perf_event(_PERF_TYPE_TRACEPOINT, number))


def _perf(program: int, event: int) -> list[int]:
    try:
        return [kernel.link_perf_event(program, event), event]
    except OSError:
        pass  # before Linux 5.15 there are no links to perf events
    try:
        fcntl.ioctl(event, _PERF_EVENT_IOC_SET_BPF, program)
        fcntl.ioctl(event, _PERF_EVENT_IOC_ENABLE, 0)
    except OSError:
        os.close(event)
        raise
    return [event]


def _refused(error: OSError) -> DynahugError:
    return DynahugError(
        f"the kernel refuses a tracepoint ({error.strerror}): run as root, or with CAP_BPF, "
        "CAP_PERFMON and CAP_DAC_READ_SEARCH"
    )


def detach(fds: Iterable[int]) -> None:
    """Close what attaching has returned."""
    for fd in fds:
        os.close(fd)


def attach_tasks(programs: Programs) -> list[int]:
    """Attach to fork, exec and exit; the descriptors, to be closed to detach."""
    fds: list[int] = []
    try:
        for name in ("fork", "exec", "exit"):
            program = programs.fds[f"dh_{name}"]
            fds.append(kernel.open_raw_tracepoint(program, f"sched_process_{name}"))
    except OSError as error:
        detach(fds)
        raise _refused(error) from error
    return fds


def attach_counting(programs: Programs) -> int:
    """Attach to every system call of the host; the descriptor."""
    try:
        return kernel.open_raw_tracepoint(programs.fds["dh_enter"], "sys_enter")
    except OSError as error:
        raise _refused(error) from error


def event_of(name: str) -> str:
    """The tracepoint at the entry of a system call."""
    return f"sys_enter_{_EVENTS.get(name, name)}"


def attach_call(programs: Programs, name: str) -> list[int]:
    """Attach to one system call by a tracepoint of its own; nothing where the kernel has none.

    Raises OSError as the kernel does.
    """
    event = event_of(name)
    if not (tracefs() / "events/syscalls" / event).is_dir():
        return []
    return _tracepoint(programs.fds["dh_call"], f"syscalls/{event}")


def attach_opens(programs: Programs) -> tuple[list[int], bool]:
    """Attach to the returns of the calls that open files, or of all, where only that is allowed.

    The descriptors, and whether system calls can have tracepoints of their own.
    """
    fds: list[int] = []
    try:
        for event in _OPENS:
            if (tracefs() / "events/syscalls" / event).is_dir():  # arm64 has no open(2)
                fds += _tracepoint(programs.fds["dh_opened"], f"syscalls/{event}")
    except (PermissionError, DynahugError):
        # As with kernel.perf_event_paranoid above 2, without CAP_SYS_ADMIN.
        detach(fds)
        try:
            return [kernel.open_raw_tracepoint(programs.fds["dh_returned"], "sys_exit")], False
        except OSError as error:
            raise _refused(error) from error
    except OSError as error:
        detach(fds)
        raise _refused(error) from error
    return fds, True


def attach_uprobes(programs: Programs, path: str, uprobes: list[Uprobe]) -> list[int]:
    """Attach to offsets of one file; the descriptors, to be closed to detach.

    Raises OSError as the kernel does; then nothing stays attached.
    """
    fds: list[int] = []
    try:
        for name, offset, returns in uprobes:
            if programs.multi:
                fds.append(kernel.link_uprobes(programs.fds[name], path, [offset], returns))
                continue
            bit = int(_UPROBE_RETURN.read_text().removeprefix("config:")) if returns else None
            text = ctypes.create_string_buffer(os.fsencode(path))
            event = kernel.open_perf_event(
                int(_UPROBE_TYPE.read_text()),
                0 if bit is None else 1 << bit,
                ctypes.addressof(text),
                offset,
            )
            fds += _perf(programs.fds[name], event)
    except OSError:
        detach(fds)
        raise
    return fds
