"""The two system calls that Python has no name for: bpf(2) and perf_event_open(2).

Used for what both loaders share: creating maps, filling them, attaching programs. Sources:
``linux/bpf.h`` and ``linux/perf_event.h`` of Linux 6.18; attributes are zero padded, so older
kernels accept them as long as the fields that they do not know are zero.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
import struct
from enum import IntEnum

__all__ = [
    "AttachType",
    "MapType",
    "count_elements",
    "create_map",
    "delete_element",
    "link_perf_event",
    "link_uprobes",
    "lookup_element",
    "next_key",
    "open_perf_event",
    "open_raw_tracepoint",
    "pop_element",
    "program_statistics",
    "push_element",
    "update_element",
]

_SYSCALL = {"x86_64": (321, 298), "aarch64": (280, 241)}
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class MapType(IntEnum):
    """``enum bpf_map_type``, those in use."""

    HASH = 1
    ARRAY = 2
    PERCPU_ARRAY = 6
    QUEUE = 22
    RINGBUF = 27


class AttachType(IntEnum):
    """``enum bpf_attach_type``, those in use."""

    PERF_EVENT = 41
    TRACE_UPROBE_MULTI = 48


_CREATE, _LOOKUP, _UPDATE, _DELETE, _NEXT_KEY, _POP = 0, 1, 2, 3, 4, 21
_OBJECT_INFO, _RAW_TRACEPOINT_OPEN, _LOOKUP_BATCH, _LINK_CREATE = 15, 17, 24, 28
_UPROBE_MULTI_RETURN = 1
_PERF_FLAG_FD_CLOEXEC = 8


def _call(index: int, *args: object) -> int:
    number = _SYSCALL[platform.machine()][index]
    result = _libc.syscall(ctypes.c_long(number), *args)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(result)


def _attributes(values: bytes) -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(values.ljust(128, b"\0"), 128)


def _bpf(command: int, attributes: bytes) -> int:
    return _call(0, ctypes.c_int(command), _attributes(attributes), ctypes.c_uint(128))


def create_map(
    kind: MapType, key_size: int, value_size: int, entries: int, flags: int, name: str
) -> int:
    """Create a map and return its descriptor. Sizes in bytes; raises OSError as bpf(2) does."""
    label = name.encode()[:15]
    return _bpf(
        _CREATE,
        struct.pack("<7I16s", kind, key_size, value_size, entries, flags, 0, 0, label),
    )


def _pointer(buffer: object) -> int:
    return ctypes.addressof(buffer)  # type: ignore[arg-type]


def _element(command: int, fd: int, key: bytes, value: object | None, flags: int = 0) -> int:
    key_buffer = ctypes.create_string_buffer(key, max(len(key), 1))
    return _bpf(
        command,
        struct.pack(
            "<IIQQQ",
            fd,
            0,
            _pointer(key_buffer) if key else 0,
            0 if value is None else _pointer(value),
            flags,
        ),
    )


def update_element(fd: int, key: bytes, value: bytes) -> None:
    """Set an element of a map."""
    _element(_UPDATE, fd, key, ctypes.create_string_buffer(value, len(value)))


def push_element(fd: int, value: bytes) -> None:
    """Append to a queue map."""
    update_element(fd, b"", value)


def _found(command: int, fd: int, key: bytes, size: int) -> bytes | None:
    value = ctypes.create_string_buffer(size)
    try:
        _element(command, fd, key, value)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    return value.raw


def pop_element(fd: int, size: int) -> bytes | None:
    """Take the oldest element, of ``size`` bytes, out of a queue map; None when it is empty."""
    return _found(_POP, fd, b"", size)


def next_key(fd: int, key: bytes, size: int) -> bytes | None:
    """The key, of ``size`` bytes, after ``key`` in a hash map, or the first after ``b""``."""
    return _found(_NEXT_KEY, fd, key, size)


def lookup_element(fd: int, key: bytes, size: int) -> bytes | None:
    """An element of ``size`` bytes of a map, or None."""
    return _found(_LOOKUP, fd, key, size)


def delete_element(fd: int, key: bytes) -> None:
    """Delete an element of a map; one that is gone already is no error."""
    try:
        _element(_DELETE, fd, key, None)
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise


def count_elements(fd: int, key_size: int, value_size: int, most: int) -> int:
    """Number of elements of a hash map of at most ``most``, in one call (Linux 5.6).

    The kernel copies them out to be counted, some 0.1 us each; sizes in bytes.
    """
    # Not written to where there are no elements, so it is memory only as far as it is used.
    elements = mmap.mmap(-1, most * (key_size + value_size))
    start = ctypes.addressof(ctypes.c_char.from_buffer(elements))
    place = ctypes.create_string_buffer(8)
    attributes = _attributes(
        struct.pack("<QQQQIIQQ", 0, _pointer(place), start, start + most * key_size, most, fd, 0, 0)
    )
    try:
        _call(0, ctypes.c_int(_LOOKUP_BATCH), attributes, ctypes.c_uint(128))
    except OSError as error:
        if error.errno != errno.ENOENT:  # that was all of them
            raise
    return int(struct.unpack_from("<I", attributes, 32)[0])


def program_statistics(fd: int) -> tuple[int, int]:
    """Run time in ns and runs of a program, as far as ``kernel.bpf_stats_enabled`` was on."""
    info = ctypes.create_string_buffer(208)
    _bpf(_OBJECT_INFO, struct.pack("<IIQ", fd, len(info), _pointer(info)))
    spent, runs = struct.unpack_from("<QQ", info, 192)
    return spent, runs


def open_raw_tracepoint(program: int, name: str) -> int:
    """Attach a program to a raw tracepoint; closing the descriptor detaches it."""
    label = ctypes.create_string_buffer(name.encode())
    return _bpf(_RAW_TRACEPOINT_OPEN, struct.pack("<QII", _pointer(label), program, 0))


def open_perf_event(kind: int, config: int, config1: int = 0, config2: int = 0) -> int:
    """A perf event on every process; ``kind`` is its type, from sysfs or PERF_TYPE_TRACEPOINT.

    For uprobes config1 is the address of the path's C string and config2 the file offset. The
    event is bound to CPU 0, as the kernel asks for one; tracepoints and uprobes with a program
    attached run it on every CPU all the same.
    """
    size = 128
    attributes = bytearray(size)
    struct.pack_into("<IIQQ", attributes, 0, kind, size, config, 1)
    struct.pack_into("<QQ", attributes, 56, config1, config2)
    buffer = ctypes.create_string_buffer(bytes(attributes), size)
    return _call(
        1,
        buffer,
        ctypes.c_int(-1),
        ctypes.c_int(0),
        ctypes.c_int(-1),
        ctypes.c_ulong(_PERF_FLAG_FD_CLOEXEC),
    )


def link_perf_event(program: int, event: int) -> int:
    """Attach a program to a perf event through a link (Linux 5.15); closing it detaches."""
    return _bpf(_LINK_CREATE, struct.pack("<IIII", program, event, AttachType.PERF_EVENT, 0))


def link_uprobes(program: int, path: str, offsets: list[int], returns: bool) -> int:
    """Attach a program to offsets of a file by one multi-uprobe link (Linux 6.6).

    The program must have been loaded for ``TRACE_UPROBE_MULTI``. Needs CAP_BPF and CAP_PERFMON,
    not CAP_SYS_ADMIN. Offsets are file offsets in bytes.
    """
    name = ctypes.create_string_buffer(os.fsencode(path))
    array = (ctypes.c_uint64 * len(offsets))(*offsets)
    return _bpf(
        _LINK_CREATE,
        struct.pack("<IIII", program, 0, AttachType.TRACE_UPROBE_MULTI, 0)
        + struct.pack(
            "<QQQQIII",
            _pointer(name),
            ctypes.addressof(array),
            0,
            0,
            len(offsets),
            _UPROBE_MULTI_RETURN if returns else 0,
            0,
        ),
    )
