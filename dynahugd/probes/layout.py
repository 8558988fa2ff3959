"""What the kernel side and user space share: ``bpf/dynahug.h`` as numpy dtypes and enumerations.

A test compiles the header and compares every size, offset and value with this module.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = [
    "BANKS",
    "CONFIG",
    "COUNTERS",
    "FILE_KEY",
    "GLOBAL_KEY",
    "HALF",
    "LOAD",
    "MARKS",
    "NEVER",
    "RECORD",
    "SEEN",
    "SUFFIX",
    "TASK",
    "TEXT",
    "Bank",
    "Exact",
    "Flag",
    "Kind",
    "Loss",
    "Reason",
    "Record",
    "Slot",
    "State",
    "TaskFlag",
    "records",
    "slots",
]

TEXT = 256
HALF = 128
SUFFIX = 16
MARKS = 8
SEEN = 64
BANKS = 3
NEVER = 2**64 - 1


class Kind(IntEnum):
    """What a record says: ``enum dh_kind``."""

    BEGIN = 1
    END = 2
    OPEN = 3
    CALL = 4
    GLOBAL = 5
    BIRTH = 6
    RUNTIME = 7
    EXEC = 8


class Flag(IntFlag):
    """Circumstances of a record."""

    INSIDE = 0x01
    DESCENDANT = 0x02
    AFTER = 0x04
    TRUNCATED = 0x08
    UNREADABLE = 0x10
    MEMORY = 0x20
    WIDE = 0x40
    UNCOUNTED = 0x80


class Reason(IntEnum):
    """Why the span of a load ended: ``enum dh_reason``."""

    CLOSED = 1
    RETURNED = 2
    EXITED = 3
    REPLACED = 4
    IDLE = 5


class State(IntEnum):
    """State of a slot of the table of loads: ``enum dh_state``."""

    FREE = 0
    OPENED = 1
    ENDED = 2


class Bank(IntEnum):
    """Where a system call is counted: ``enum dh_bank``."""

    OUTSIDE = 0
    WITHIN = 1
    CHILDREN = 2


class Loss(IntEnum):
    """Why something was lost: ``enum dh_loss``. The lower-case name is the metric's label."""

    RING = 0
    LOADS = 1
    TASKS = 2
    FILES = 3
    DEPTH = 4
    LATE = 5


class Exact(IntEnum):
    """Whether a descriptor was read by an unpickling: ``enum dh_exact``; 0 where none was there."""

    EXACT = 1
    UNPROVEN = 2


class TaskFlag(IntFlag):
    """Flags of a tracked task."""

    ML = 0x1
    CHILD = 0x2
    INSIDE = 0x4
    DEEP = 0x8


RECORD = np.dtype(
    [
        ("time", "<u8"),
        ("load", "<u8"),
        ("tgid", "<u4"),
        ("tid", "<u4"),
        ("kind", "<u2"),
        ("nr", "<u2"),
        ("flags", "<u4"),
        ("ret", "<i8"),
        ("args", "<u8", (3,)),
        ("cgroup", "<u8"),
        ("uid", "<u4"),
        ("length", "<u4"),
        ("comm", "S16"),
        ("text", "V256"),
    ]
)

LOAD = np.dtype(
    [
        ("id", "<u8"),
        ("begin", "<u8"),
        ("touched", "<u8"),
        ("active", "<u8"),
        ("state", "<u4"),
        ("reason", "<u4"),
        ("refs", "<u4"),
        ("inside", "<u4"),
        ("exact", "<u4"),
        ("quiet", "<u4"),
        ("memory", "<u4"),
        ("lost", "<u4"),
        ("tgid", "<u4"),
        ("tid", "<u4"),
        ("fd", "<u4"),
        ("uid", "<u4"),
    ]
)


class Record(NamedTuple):
    """One record, its fields as Python has them."""

    time: int
    load: int
    tgid: int
    tid: int
    kind: int
    nr: int
    flags: int
    ret: int
    args: npt.NDArray[np.uint64]
    cgroup: int
    uid: int
    length: int
    comm: bytes
    text: bytes


class Slot(NamedTuple):
    """One slot of the table of loads, its fields as Python has them."""

    id: int
    begin: int
    touched: int
    active: int
    state: int
    reason: int
    refs: int
    inside: int
    exact: int
    quiet: int
    memory: int
    lost: int
    tgid: int
    tid: int
    fd: int
    uid: int


def records(array: npt.NDArray[np.void]) -> list[Record]:
    """Records as Python has them, in a tenth of the time that it takes to ask for each field."""
    return list(map(Record._make, array.tolist()))


def slots(array: npt.NDArray[np.void]) -> list[Slot]:
    """Slots as Python has them."""
    return list(map(Slot._make, array.tolist()))


COUNTERS = np.dtype([("calls", "<u8", (BANKS, 512))])

CONFIG = np.dtype(
    [
        ("rejoin", "<u8"),
        ("watched", "<u8"),
        ("counted", "<u8"),
        ("self", "<u4"),
        ("task_pid", "<u4"),
        ("program_filename", "<u4"),
        ("unused", "<u4"),
    ]
)

TASK = np.dtype(
    [
        ("load", "<u8"),
        ("last", "<u8"),
        ("open_path", "<u8"),
        ("open_flags", "<u8"),
        ("unpickle", "<u8"),
        ("stack", "<u8"),
        ("tgid", "<u4"),
        ("depth", "<u4"),
        ("flags", "<u4"),
        ("clone_flags", "<u4"),
        ("open_nr", "<u4"),
        ("open_dirfd", "<u4"),
    ]
)

FILE_KEY = np.dtype([("tgid", "<u4"), ("fd", "<u4")])

GLOBAL_KEY = np.dtype([("module", "S64"), ("name", "S64")])
