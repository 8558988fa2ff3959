"""The maps that the kernel side and user space share: created here, for both loaders alike.

Sizes are stated once, in ``Sizes``; whatever does not fit is counted by the kernel side.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dynahugd.errors import DynahugError
from dynahugd.probes import kernel, layout, syscalls
from dynahugd.probes.btf import Offsets
from dynahugd.probes.kernel import MapType

__all__ = ["Maps", "Sizes"]

_MMAPABLE = 1 << 10
#: Bytes of ``struct scratch``.
_SCRATCH = 8 + layout.SUFFIX + 4096 + layout.TEXT
_WRAPPER_SUFFIX, _MODEL_SUFFIX = 2, 1
_APART = 0x100

#: Processes that have just executed a program, waiting to be looked at.
_NEWCOMERS = 4096

#: Tasks that are looked at for one that can load; beyond that there is one.
_LOOKS = 64


def _pid_max() -> int:
    return int(Path("/proc/sys/kernel/pid_max").read_text())


@dataclass(frozen=True, slots=True)
class Sizes:
    """Entries of the kernel tables; the ring in bytes, a power of two."""

    loads: int = 1024
    tasks: int = 16384
    files: int = 16384
    globals: int = 65536
    ring: int = 8 << 20


class Maps:
    """All maps, by name, as descriptors; those that user space reads in place as numpy arrays.

    Attributes
    ----------
    fds : descriptor by name of the map.
    loads : structured array, shape (sizes.loads,), dtype ``layout.LOAD``, shared with the kernel.
    counters : uint64 array, shape (sizes.loads, 3, 512): calls by bank and number, shared.
    losses : uint64 array, shape (len(Loss),), shared.
    config : structured array, shape (1,), dtype ``layout.CONFIG``, shared.
    """

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        # Of tasks beyond it, should it be raised later, nothing is known, and all are looked up.
        marks = _pid_max() // layout.MARKS + 1
        specification = {
            "ring": (MapType.RINGBUF, 0, 0, sizes.ring, 0),
            "loads": (MapType.ARRAY, 4, layout.LOAD.itemsize, sizes.loads, _MMAPABLE),
            "counters": (MapType.ARRAY, 4, layout.COUNTERS.itemsize, sizes.loads, _MMAPABLE),
            "losses": (MapType.ARRAY, 4, 8, len(layout.Loss), _MMAPABLE),
            "free_slots": (MapType.QUEUE, 0, 4, sizes.loads, 0),
            "tasks": (MapType.HASH, 4, layout.TASK.itemsize, sizes.tasks, 0),
            "marks": (MapType.ARRAY, 4, layout.MARKS, marks, _MMAPABLE),
            "files": (MapType.HASH, layout.FILE_KEY.itemsize, 8, sizes.files, 0),
            "suffixes": (MapType.HASH, layout.SUFFIX, 4, 256, 0),
            "known_globals": (MapType.HASH, layout.GLOBAL_KEY.itemsize, 4, sizes.globals, 0),
            "actions": (MapType.ARRAY, 4, 4, syscalls.SYSCALLS, 0),
            "config": (MapType.ARRAY, 4, layout.CONFIG.itemsize, 1, _MMAPABLE),
            "newcomers": (MapType.QUEUE, 0, 4, _NEWCOMERS, 0),
            "scratches": (MapType.PERCPU_ARRAY, 4, _SCRATCH, 1, 0),
        }
        self.fds: dict[str, int] = {}
        self._suffixes: set[bytes] = set()
        try:
            for name, (kind, key, value, entries, flags) in specification.items():
                self.fds[name] = kernel.create_map(kind, key, value, entries, flags, f"dh_{name}")
        except OSError as error:
            self.close()
            raise DynahugError(
                f"the kernel refuses the map {name!r} ({error.strerror}): "
                "run as root, or with CAP_BPF and CAP_PERFMON"
            ) from error
        self.loads = self._shared("loads", layout.LOAD, sizes.loads)
        self.counters: npt.NDArray[np.uint64] = self._shared(
            "counters", layout.COUNTERS, sizes.loads
        )["calls"]
        self.losses: npt.NDArray[np.uint64] = self._shared(
            "losses", np.dtype("<u8"), len(layout.Loss)
        )
        self.config = self._shared("config", layout.CONFIG, 1)
        self._marks = self._shared("marks", np.dtype("u1"), marks * layout.MARKS)
        for slot in range(sizes.loads):
            self.release(slot)

    def _shared(self, name: str, dtype: np.dtype[Any], entries: int) -> npt.NDArray[Any]:
        # The mapping outlives the descriptor and goes with the array; it is never resized.
        length = -(-dtype.itemsize * entries // mmap.PAGESIZE) * mmap.PAGESIZE
        area = mmap.mmap(self.fds[name], length, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        return np.frombuffer(area, dtype, entries)

    def release(self, slot: int) -> None:
        """Give a slot of the table of loads back to the kernel side, its counters at zero."""
        self.loads[slot]["state"] = layout.State.FREE
        self.loads[slot]["id"] = 0
        self.counters[slot] = 0
        kernel.push_element(self.fds["free_slots"], slot.to_bytes(4, "little"))

    def configure(self, offsets: Offsets, rejoin_ns: int) -> None:
        """Set the configuration of the kernel side and its table of system calls."""
        config = self.config
        config["task_pid"], config["program_filename"] = offsets.task_pid, offsets.program_filename
        config["rejoin"], config["self"] = rejoin_ns, os.getpid()
        config["watched"] = config["counted"] = layout.NEVER
        for number, name in enumerate(syscalls.names(syscalls.machine())):
            action = syscalls.ACTIONS.get(name)
            if action is not None:
                self.set_action(number, action)

    def set_action(self, number: int, action: syscalls.Action, apart: bool = False) -> None:
        """What is done with a system call, and whether by a tracepoint of its own."""
        value = action | (_APART if apart else 0)
        kernel.update_element(
            self.fds["actions"], number.to_bytes(4, "little"), value.to_bytes(4, "little")
        )

    def set_suffixes(self, models: Iterable[str], wrappers: Iterable[str]) -> None:
        """Fill the table of suffixes (without dots, any case) that tell a model file."""
        entries: dict[bytes, bytes] = {}
        for suffixes, value in ((models, _MODEL_SUFFIX), (wrappers, _WRAPPER_SUFFIX)):
            for suffix in suffixes:
                text = suffix.encode()
                if not 0 < len(text) < layout.SUFFIX:
                    raise DynahugError(
                        f"the suffix {suffix!r} has to have 1 to {layout.SUFFIX - 1} bytes"
                    )
                # Bit 5 in every byte, as the kernel side does: letters of any case match.
                key = bytes(byte | 0x20 for byte in text.ljust(layout.SUFFIX, b"\0"))
                entries[key] = value.to_bytes(4, "little")
        for key in self._suffixes - entries.keys():
            kernel.delete_element(self.fds["suffixes"], key)
        for key, entry in entries.items():
            kernel.update_element(self.fds["suffixes"], key, entry)
        self._suffixes = set(entries)

    def know_global(self, module: bytes, name: bytes) -> None:
        """From now on, this global makes no load of an unpickling without a file.

        Longer texts than the key holds, and a full table, leave the global unknown: it then costs
        a load each time, and nothing is missed.
        """
        if len(module) >= layout.SEEN or len(name) >= layout.SEEN:
            return
        key = module.ljust(layout.SEEN, b"\0") + name.ljust(layout.SEEN, b"\0")
        try:
            kernel.update_element(self.fds["known_globals"], key, bytes(4))
        except OSError:
            return

    def track(self, tgid: int, tid: int) -> None:
        """Track a thread that was already running as one of an ML process."""
        task = np.zeros(1, layout.TASK)
        task["tgid"], task["flags"] = tgid, layout.TaskFlag.ML
        key = tid.to_bytes(4, "little")
        if kernel.lookup_element(self.fds["tasks"], key, layout.TASK.itemsize) is None:
            try:
                kernel.update_element(self.fds["tasks"], key, task.tobytes())
            except OSError:
                self.losses[layout.Loss.TASKS] += 1
            else:
                if tid < len(self._marks):
                    self._marks[tid] = 1

    def anyone(self) -> bool:
        """Whether a living task is tracked that loads, or belongs to a load."""
        key = b""
        for _ in range(_LOOKS):
            following = kernel.next_key(self.fds["tasks"], key, 4)
            if following is None:
                return False
            key = following
            value = kernel.lookup_element(self.fds["tasks"], key, layout.TASK.itemsize)
            if value is None or not os.path.exists(f"/proc/{int.from_bytes(key, 'little')}"):
                continue  # it has left, or had when it was to be tracked
            task = np.frombuffer(value, layout.TASK)[0]
            load = int(task["load"])
            if int(task["flags"]) & layout.TaskFlag.ML or (
                load and int(self.loads[load & 0xFFFF]["id"]) == load
            ):
                return True
        return True

    def newcomers(self) -> list[int]:
        """Processes that have executed a program since the last call, while nobody was watched."""
        found: list[int] = []
        while len(found) < _NEWCOMERS:
            tgid = kernel.pop_element(self.fds["newcomers"], 4)
            if tgid is None:
                break
            found.append(int.from_bytes(tgid, "little"))
        return found

    def forget_file(self, tgid: int, fd: int, load: int) -> None:
        """Drop the descriptor of a load that is over, unless a newer load has it now."""
        key = tgid.to_bytes(4, "little") + fd.to_bytes(4, "little")
        if kernel.lookup_element(self.fds["files"], key, 8) == load.to_bytes(8, "little"):
            kernel.delete_element(self.fds["files"], key)

    def close(self) -> None:
        """Close all descriptors; the kernel frees a map when the last program that uses it goes."""
        for fd in self.fds.values():
            os.close(fd)
        self.fds.clear()
