"""Where the two fields of kernel structures lie that we read: from the kernel's own BTF.

Raw tracepoints hand over structures, and need no perf event: perf_event_open(2) is refused without
CAP_SYS_ADMIN where ``kernel.perf_event_paranoid`` is above 2, as Debian sets it.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from dynahugd.errors import DynahugError

__all__ = ["Kernel", "Offsets", "libbpf", "offsets"]

_STRUCT, _UNION = 4, 5
_FLAG = 1 << 31  # offsets of members hold the size of a bit field, too


@dataclass(frozen=True, slots=True)
class Offsets:
    """Offsets in bytes.

    Attributes
    ----------
    task_pid : of ``pid`` in ``struct task_struct``.
    program_filename : of ``filename`` in ``struct linux_binprm``.
    """

    task_pid: int
    program_filename: int


class _Type(ctypes.Structure):
    """``struct btf_type`` of linux/btf.h."""

    _fields_ = (("name", ctypes.c_uint32), ("info", ctypes.c_uint32), ("size", ctypes.c_uint32))


class _Member(ctypes.Structure):
    """``struct btf_member``."""

    _fields_ = (("name", ctypes.c_uint32), ("type", ctypes.c_uint32), ("offset", ctypes.c_uint32))


def libbpf() -> ctypes.CDLL:
    """The library.

    Raises
    ------
    DynahugError : it is not there.
    """
    try:
        return ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as error:
        raise DynahugError("libbpf.so.1 is missing: install Debian's libbpf1") from error


class Kernel:
    """The types of the running kernel."""

    def __init__(self) -> None:
        self._lib = lib = libbpf()
        pointer, text = ctypes.c_void_p, ctypes.c_char_p
        for name, result, arguments in (
            ("btf__load_vmlinux_btf", pointer, []),
            ("btf__find_by_name_kind", ctypes.c_int, [pointer, text, ctypes.c_uint32]),
            ("btf__type_by_id", pointer, [pointer, ctypes.c_uint32]),
            ("btf__name_by_offset", text, [pointer, ctypes.c_uint32]),
            ("btf__free", None, [pointer]),
        ):
            function = getattr(lib, name)
            function.restype, function.argtypes = result, arguments
        self._types = lib.btf__load_vmlinux_btf()
        if not self._types:
            raise DynahugError(
                "this kernel does not tell its types (/sys/kernel/btf/vmlinux): one built with "
                "CONFIG_DEBUG_INFO_BTF is needed"
            )

    def offset(self, structure: str, field: str) -> int:
        """Offset in bytes of a field, also where it lies in a nameless part of the structure."""
        number = self._lib.btf__find_by_name_kind(self._types, structure.encode(), _STRUCT)
        found = self._look(number, field.encode()) if number > 0 else None
        if found is None or found % 8:
            raise DynahugError(f"this kernel's struct {structure} has no {field}")
        return found // 8

    def _look(self, number: int, field: bytes) -> int | None:
        """Offset in bits."""
        address = self._lib.btf__type_by_id(self._types, number)
        kind = _Type.from_address(address)
        if kind.info >> 24 & 0x1F not in (_STRUCT, _UNION):
            return None
        members = (_Member * (kind.info & 0xFFFF)).from_address(address + ctypes.sizeof(_Type))
        for member in members:
            offset = member.offset & 0xFFFFFF if kind.info & _FLAG else member.offset
            name = self._lib.btf__name_by_offset(self._types, member.name)
            if name == field:
                return int(offset)
            within = self._look(member.type, field) if not name else None
            if within is not None:
                return int(offset) + within
        return None

    def close(self) -> None:
        """Forget the types: they take megabytes."""
        self._lib.btf__free(self._types)


def offsets() -> Offsets:
    """Look both up.

    Raises
    ------
    DynahugError : this kernel tells no types, or has no such field.
    """
    kernel = Kernel()
    try:
        return Offsets(
            kernel.offset("task_struct", "pid"), kernel.offset("linux_binprm", "filename")
        )
    finally:
        kernel.close()
