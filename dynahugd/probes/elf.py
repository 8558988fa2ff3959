"""ELF files as the loader sees them: segments, dynamic symbols, calls, function ranges.

The files come from watched processes, so every byte is hostile. Hence:

- Loaded segments are copied into memory with `pread`, up to `MAX_LOADED` bytes. A mapping would be
  quicker, but its owner can truncate the file under it, and the next access is then a SIGBUS.
- Only what the kernel and ld.so use is read: program headers, the dynamic segment,
  `.eh_frame_hdr`. Section headers are never looked at: a file runs whatever lies they tell.
- Every address is checked against the bytes at hand, and what is found at most `MAX_HITS`
  times. Whatever is wrong, the outcome is `MalformedElf`.

Addresses are the file's own (before relocation); offsets are file offsets, as uprobes want them.
"""

import os
import stat
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dynahugd.errors import DynahugError

__all__ = ["EM_AARCH64", "EM_X86_64", "MAX_HITS", "MAX_LOADED", "Elf", "MalformedElf", "Segment"]

EM_X86_64, EM_AARCH64 = 62, 183
# A CPython with everything linked in loads ~30 MB; the limit bounds what a hostile file can cost.
MAX_LOADED = 256 << 20
MAX_SEGMENTS = 64
MAX_HITS = 4096
_MAX_SYMBOLS, _MAX_RELOCATIONS, _MAX_NAME = 1 << 20, 1 << 22, 4096
_TOP = 1 << 47  # user addresses end here (x86-64, 4-level page tables): sums never leave an int64

_EHDR, _PHDR = struct.Struct("<16sHHIQQQIHHHHHH"), struct.Struct("<IIQQQQQQ")
_PT_LOAD, _PT_DYNAMIC, _PT_GNU_EH_FRAME, _PF_X = 1, 2, 0x6474E550, 1
_DT_NEEDED, _DT_PLTRELSZ, _DT_HASH, _DT_STRTAB, _DT_SYMTAB = 1, 2, 4, 5, 6
_DT_RELA, _DT_RELASZ, _DT_STRSZ, _DT_SONAME, _DT_JMPREL = 7, 8, 10, 14, 23
_DT_GNU_HASH = 0x6FFFFEF5
_SYM = np.dtype(
    [
        ("name", "<u4"),
        ("info", "u1"),
        ("other", "u1"),
        ("section", "<u2"),
        ("value", "<u8"),
        ("size", "<u8"),
    ]
)
_RELA = np.dtype([("slot", "<u8"), ("type", "<u4"), ("symbol", "<u4"), ("addend", "<i8")])
_R_X86_64_RELATIVE = 8


class MalformedElf(DynahugError):
    """The file is not an ELF file that this module can trust; the sentence says why."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One PT_LOAD: `data` is what lies in the file at `offset` and in memory at `vaddr`."""

    vaddr: int
    offset: int
    data: bytes
    executable: bool


def _pread(fd: int, size: int, offset: int) -> bytes:
    """`size` bytes at `offset`; raises MalformedElf where the file ends before."""
    pieces = []
    while size > 0 and (piece := os.pread(fd, size, offset)):
        pieces.append(piece)
        size, offset = size - len(piece), offset + len(piece)
    if size > 0:
        raise MalformedElf("the file ends before the bytes that its headers promise")
    return b"".join(pieces)


class Elf:
    """A 64-bit little-endian executable or shared object, read whole when constructed.

    `machine` is e_machine; `fixed` tells an executable that is not position-independent; `needed`
    (library names) and `soname` come from the dynamic segment.
    """

    __slots__ = (
        "_names",
        "_relocations",
        "_starts",
        "_symbols",
        "_unwind",
        "fixed",
        "machine",
        "needed",
        "segments",
        "soname",
    )

    def __init__(self, fd: int) -> None:
        """Reads the file open as `fd`, wherever its position is.

        Raises MalformedElf for anything but a well-formed file, OSError where reading fails.
        """
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise MalformedElf("not a regular file")
        headers = self._program_headers(fd, info.st_size)
        loads = [h for h in headers if h[0] == _PT_LOAD]
        if sum(h[5] for h in loads) > MAX_LOADED:
            raise MalformedElf(f"it loads more than {MAX_LOADED >> 20} MiB")
        if any(h[3] + max(h[5], h[6]) > _TOP or h[2] + h[5] > info.st_size for h in loads):
            raise MalformedElf("a segment lies outside the file or the address space")
        self.segments = tuple(
            Segment(vaddr, offset, _pread(fd, size, offset), bool(flags & _PF_X))
            for _, flags, offset, vaddr, _, size, _, _ in loads
        )
        self._unwind = next((h[3] for h in headers if h[0] == _PT_GNU_EH_FRAME), None)
        self._starts: npt.NDArray[np.int32] | None = None
        dynamic = next((h for h in headers if h[0] == _PT_DYNAMIC), None)
        self._read_dynamic(b"" if dynamic is None else self.bytes_at(dynamic[3], dynamic[5]))

    def _program_headers(self, fd: int, size: int) -> list[tuple[int, ...]]:
        if size < _EHDR.size or (head := _pread(fd, _EHDR.size, 0))[:4] != b"\x7fELF":
            raise MalformedElf("not an ELF file")
        if head[4:6] != b"\x02\x01":
            raise MalformedElf("not a 64-bit little-endian ELF file")
        _, kind, self.machine, _, _, at, _, _, _, entry_size, count, _, _, _ = _EHDR.unpack(head)
        if kind not in (2, 3):  # ET_EXEC, ET_DYN
            raise MalformedElf("neither an executable nor a shared object")
        self.fixed = kind == 2
        if entry_size != _PHDR.size or not 0 < count <= MAX_SEGMENTS:
            raise MalformedElf(f"{count} program headers of {entry_size} bytes make no sense")
        if at + count * entry_size > size:
            raise MalformedElf("the program headers lie outside the file")
        return list(_PHDR.iter_unpack(_pread(fd, count * entry_size, at)))

    def _read_dynamic(self, table: bytes) -> None:
        tags: dict[int, int] = {}
        needed = []
        for tag, value in struct.iter_unpack("<qQ", table[: len(table) & ~15]):
            if tag == 0:  # DT_NULL
                break
            if tag == _DT_NEEDED:
                needed.append(value)
                if len(needed) > MAX_HITS:
                    raise MalformedElf("it needs too many libraries")
            tags.setdefault(tag, value)
        names, symbols = tags.get(_DT_STRTAB), tags.get(_DT_SYMTAB)
        self._names = b"" if names is None else self.bytes_at(names, tags.get(_DT_STRSZ, 0))
        self.needed = tuple(self._name(at) for at in needed)
        self.soname = self._name(tags[_DT_SONAME]) if _DT_SONAME in tags else None
        self._relocations = [
            self._table(tags[where], tags.get(size, 0) // _RELA.itemsize, _RELA)
            for where, size in ((_DT_RELA, _DT_RELASZ), (_DT_JMPREL, _DT_PLTRELSZ))
            if where in tags
        ]
        if sum(map(len, self._relocations)) > _MAX_RELOCATIONS:
            raise MalformedElf("it has too many relocations")
        count = 0 if symbols is None else self._symbol_count(tags)
        if count > _MAX_SYMBOLS:
            raise MalformedElf("it has too many dynamic symbols")
        self._symbols = self._table(symbols or 0, count, _SYM)

    def _symbol_count(self, tags: dict[int, int]) -> int:
        # No tag holds it: DT_HASH has it as nchain; DT_GNU_HASH covers the defined symbols, whose
        # last chain ends with an odd value; the undefined ones are those that relocations name.
        counts = [0]
        counts += [int(table["symbol"].max(initial=0)) + 1 for table in self._relocations]
        if _DT_HASH in tags:
            counts.append(struct.unpack("<II", self.bytes_at(tags[_DT_HASH], 8))[1])
        if (at := tags.get(_DT_GNU_HASH)) is not None:
            buckets, first, bloom, _ = struct.unpack("<IIII", self.bytes_at(at, 16))
            at += 16 + 8 * bloom
            heads = self._table(at, buckets, np.dtype("<u4"))
            last = int(heads.max(initial=0))
            if last >= first:
                at += 4 * buckets + 4 * (last - first)
                segment = self._segment(at)
                rest = min((segment.vaddr + len(segment.data) - at) // 4, _MAX_SYMBOLS)
                ends = np.flatnonzero(self._table(at, rest, np.dtype("<u4")) & 1)
                if not len(ends):
                    raise MalformedElf("the symbol hash table has no end")
                counts.append(last + int(ends[0]) + 1)
        return max(counts)

    def _name(self, at: int) -> str:
        end = self._names.find(b"\0", at, at + _MAX_NAME)
        if end < 0:
            raise MalformedElf("a name lies outside the string table")
        return self._names[at:end].decode("ascii", "backslashreplace")

    def _segment(self, vaddr: int) -> Segment:
        for segment in self.segments:
            if segment.vaddr <= vaddr < segment.vaddr + len(segment.data):
                return segment
        raise MalformedElf(f"address {vaddr:#x} is not in the file")

    def _table(self, vaddr: int, count: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """`count` entries at `vaddr`, a view of shape (count,)."""
        if not count:
            return np.empty(0, dtype)
        segment = self._segment(vaddr)
        at = vaddr - segment.vaddr
        if count * dtype.itemsize > len(segment.data) - at:
            raise MalformedElf(f"the table at address {vaddr:#x} does not fit into its segment")
        return np.frombuffer(segment.data, dtype, count, at)

    def bytes_at(self, vaddr: int, size: int) -> bytes:
        """The `size` bytes at `vaddr`; raises MalformedElf where the file has none."""
        if not size:
            return b""
        segment = self._segment(vaddr)
        at = vaddr - segment.vaddr
        if size > len(segment.data) - at:
            raise MalformedElf(f"{size} bytes at address {vaddr:#x} do not fit into their segment")
        return segment.data[at : at + size]

    def tail(self, vaddr: int, size: int) -> bytes:
        """The bytes at `vaddr`, at most `size`, fewer where the segment ends."""
        segment = self._segment(vaddr)
        at = vaddr - segment.vaddr
        return segment.data[at : at + size]

    def offset_of(self, vaddr: int) -> int:
        """The file offset of an address; raises MalformedElf where it is not in the file."""
        segment = self._segment(vaddr)
        return vaddr - segment.vaddr + segment.offset

    def vaddr_of(self, offset: int) -> int:
        """The address of a file offset; raises MalformedElf where no segment loads it."""
        for segment in self.segments:
            if segment.offset <= offset < segment.offset + len(segment.data):
                return offset - segment.offset + segment.vaddr
        raise MalformedElf(f"offset {offset:#x} is not loaded")

    def find(self, needle: bytes) -> list[int]:
        """The addresses of every occurrence of `needle`, at most `MAX_HITS` (else MalformedElf)."""
        found = []
        for segment in self.segments:
            at = segment.data.find(needle)
            while at >= 0:
                found.append(segment.vaddr + at)
                if len(found) > MAX_HITS:
                    raise MalformedElf(f"{needle!r} occurs too often")
                at = segment.data.find(needle, at + 1)
        return found

    def _symbols_named(self, name: str) -> npt.NDArray[np.void]:
        # The linker shares tails: "bar" may be the end of "foo_bar", so any place will do.
        needle = name.encode() + b"\0"
        places: list[int] = []
        at = self._names.find(needle)
        while at >= 0 and len(places) < 16:
            places.append(at)
            at = self._names.find(needle, at + 1)
        return self._symbols[np.isin(self._symbols["name"], places)]

    def mentions(self, name: str) -> bool:
        """Whether a dynamic symbol of that name exists, defined here or imported."""
        return len(self._symbols_named(name)) > 0

    def symbol(self, name: str) -> int | None:
        """The address of a dynamic symbol that this file defines, else None."""
        symbols = self._symbols_named(name)
        defined = symbols[(symbols["section"] != 0) & (symbols["value"] != 0)]
        return int(defined["value"][0]) if len(defined) else None

    def callee(self, vaddr: int) -> frozenset[str]:
        """Names of the dynamic symbols that the x86-64 call instruction at `vaddr` leads to.

        Understands `call rel32` to a function or to a PLT stub (with and without `endbr64`) and
        `call *slot(%rip)`. Aliases share an address, hence a set; empty where nothing is known.
        """
        code = self.bytes_at(vaddr, 6)
        if code[0] == 0xE8:
            target = vaddr + 5 + int.from_bytes(code[1:5], "little", signed=True)
            names = self._names_at(target)
            return names or self._stub(target)
        if code[:2] == b"\xff\x15":
            slot = vaddr + 6 + int.from_bytes(code[2:6], "little", signed=True)
            return self._slot(slot)
        return frozenset()

    def _stub(self, vaddr: int) -> frozenset[str]:
        # .plt and .plt.got: jmp *slot(%rip); .plt.sec: endbr64 before it, and bnd in old linkers.
        try:
            code = self.bytes_at(vaddr, 11)
        except MalformedElf:
            return frozenset()
        skip = 4 if code.startswith(b"\xf3\x0f\x1e\xfa") else 0
        skip += code[skip] == 0xF2
        if code[skip : skip + 2] != b"\xff\x25":
            return frozenset()
        disp = int.from_bytes(code[skip + 2 : skip + 6], "little", signed=True)
        return self._slot(vaddr + skip + 6 + disp)

    def _slot(self, vaddr: int) -> frozenset[str]:
        if vaddr < 0:
            return frozenset()
        for table in self._relocations:
            for relocation in table[table["slot"] == vaddr][:1]:
                if relocation["type"] == _R_X86_64_RELATIVE:
                    return self._names_at(int(relocation["addend"]))
                if 0 < (symbol := int(relocation["symbol"])) < len(self._symbols):
                    return frozenset((self._name(int(self._symbols["name"][symbol])),))
        return frozenset()

    def _names_at(self, vaddr: int) -> frozenset[str]:
        if vaddr < 0:
            return frozenset()
        here = self._symbols[(self._symbols["value"] == vaddr) & (self._symbols["section"] != 0)]
        return frozenset(self._name(int(symbol["name"])) for symbol in here[:16])

    def function(self, vaddr: int) -> tuple[int, int]:
        """[start, end) of the function, or cold part of one, that covers `vaddr`.

        From the search table in `.eh_frame_hdr` (LSB Core, "Exception Frames") and the entry it
        points to; raises MalformedElf where no entry covers the address.
        """
        if (header := self._unwind) is None:
            raise MalformedElf("no .eh_frame_hdr")
        version, _, count_format, table_format, _, count = struct.unpack(
            "<BBBBiI", self.bytes_at(header, 12)
        )
        # udata4, and pairs of datarel|sdata4: what every linker writes.
        if (version, count_format, table_format) != (1, 0x03, 0x3B):
            raise MalformedElf("the search table of .eh_frame_hdr has an unknown format")
        table = self._table(header + 12, count, np.dtype([("start", "<i4"), ("entry", "<i4")]))
        if self._starts is None:
            self._starts = np.ascontiguousarray(table["start"])
        row = int(np.searchsorted(self._starts, vaddr - header, side="right")) - 1
        if row >= 0:
            start = header + int(table["start"][row])
            end = start + self._entry_length(header + int(table["entry"][row]), start)
            if start <= vaddr < end:
                return start, end
        raise MalformedElf(f"no function covers address {vaddr:#x}")

    def _entry_length(self, entry: int, start: int) -> int:
        """Bytes of code that a frame entry covers, which must begin at `start`."""
        back: int
        first: int
        length: int
        _, back, first, length = struct.unpack("<IIiI", self.bytes_at(entry, 16))
        common = entry + 4 - back
        _, zero, version = struct.unpack("<IIB", self.bytes_at(common, 9))
        # "zR" with pcrel|sdata4 is what compilers write for C; anything else is refused.
        if (zero, version, self.bytes_at(common + 9, 3)) != (0, 1, b"zR\0"):
            raise MalformedElf("a frame entry has an unknown format")
        if self.bytes_at(common + 12, 5)[4] != 0x1B or entry + 8 + first != start:
            raise MalformedElf("a frame entry does not begin where the search table says")
        return length
