"""Where CPython unpickles: probe sites in an interpreter or in a shared `_pickle`, stripped or not.

What is known of the functions, for CPython 3.8 to 3.13 (Modules/_pickle.c):

- `load(UnpicklerObject *)`, from 3.12 `load(PickleState *, UnpicklerObject *)`, runs every opcode
  of one pickle; `pickle.load`, `pickle.loads` and `Unpickler.load` all call it. It is static, so a
  compiler may drop or move its parameters: do not read them. Its result is kept: NULL (0) when the
  load raises, else the object. A uretprobe at the entry fires on every return, raising or not,
  because C code unwinds by returning.
- `find_class` calls `PySys_Audit("pickle.find_class", "OO", module, name)` before anything is
  imported. At that call instruction the 3rd and 4th argument (rdx, rcx) are the `module` and `name`
  objects: `str` when a pickle named them, but any object at all when Python code calls
  `Unpickler.find_class(a, b)` itself. A subclass that overrides `find_class` passes here only if
  it calls the one of its base class.
- In a profile-guided build the compiler splits `load` into a hot and a cold part with a frame
  entry each. Only the hot part is entered by calls.
"""

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dynahugd.errors import DynahugError
from dynahugd.probes.elf import EM_AARCH64, EM_X86_64, MAX_HITS, Elf, MalformedElf

__all__ = [
    "LAYOUTS",
    "STR_COMPACT_ASCII",
    "STR_LENGTH_OFFSET",
    "STR_STATE_OFFSET",
    "Layout",
    "Runtime",
    "SitesNotFound",
    "find_sites",
]

# The head of every `str` (Include/cpython/unicodeobject.h): length in characters as int64, state as
# uint32, of which these bits say "compact" and "ascii". The same from 3.8 to 3.13.
STR_LENGTH_OFFSET = 16
STR_STATE_OFFSET = 32
STR_COMPACT_ASCII = 0x60


@dataclass(frozen=True, slots=True)
class Layout:
    """What differs between versions: where text starts in a `str`, and what gives it away."""

    text_offset: int
    wide_text_offset: int
    module_call: (
        str  # a function that a shared _pickle of these versions imports, the others do not
    )


# 3.12 dropped `wstr` from str objects (PEP 623) and made _pickle a multi-phase module (PEP 489).
_WITH_WSTR = Layout(48, 72, "PyState_FindModule")
_WITHOUT_WSTR = Layout(40, 56, "PyModuleDef_Init")
LAYOUTS = {
    (3, 8): _WITH_WSTR,
    (3, 9): _WITH_WSTR,
    (3, 10): _WITH_WSTR,
    (3, 11): _WITH_WSTR,
    (3, 12): _WITHOUT_WSTR,
    (3, 13): _WITHOUT_WSTR,
}
# Builds whose object heads differ, by a symbol that only they have (or import): Py_DECREF calls the
# first in free-threaded builds, Py_TRACE_REFS renames the second.
_OTHER_BUILDS = {
    "_Py_DecRefShared": "free-threaded CPython",
    "PyModule_Create2TraceRefs": "CPython with Py_TRACE_REFS",
}
_FIND_CLASS = b"pickle.find_class\0"
_INVALID_KEY = b"invalid load key, '%c'.\0"
_VERSIONED_NAME = re.compile(r"python-?3\.?(\d{1,2})([a-z]*)")
_LOAD_TO_CALL = 64  # bytes from the load of the string to the call; at most 20 in builds seen
_CHUNK = 1 << 18  # bytes scanned at a time: the temporary arrays stay in the second-level cache
_RDI = 7
# What a hostile file can cost: every reference makes for a scan of all code. One of each is seen.
_MAX_CODE, _MAX_ANCHORS = 64 << 20, 2

Code = npt.NDArray[np.uint8]
Positions = npt.NDArray[np.int64]


class SitesNotFound(DynahugError):
    """The file offers no probe sites; the sentence says which file, and what was not found."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """Probe sites of one file; all sites are file offsets in bytes, None where the file has none.

    Attributes
    ----------
    version : (major, minor) of CPython
    load : entry of `load` (its hot part)
    find_class : the call instruction to `PySys_Audit` for "pickle.find_class"
    initialize : entry of the exported `Py_InitializeFromConfig`
    text_offset : bytes from a compact-ASCII `str` to its text
    wide_text_offset : the same for other compact `str` (UCS1, UCS2, UCS4)
    libpython : the library that this file needs, where it holds no interpreter of its own
    """

    version: tuple[int, int]
    load: int | None
    find_class: int | None
    initialize: int | None
    text_offset: int
    wide_text_offset: int
    libpython: str | None


def find_sites(file: int | str | os.PathLike[str], name: str | None = None) -> Runtime:
    """Find the probe sites of an interpreter, a `libpython*.so` or a `_pickle*.so`.

    Parameters
    ----------
    file : a path, or a descriptor open for reading (its position is neither used nor moved)
    name : the file's own name, of use only where the file does not tell its version; default: what
        the kernel calls the descriptor

    Raises
    ------
    SitesNotFound
        for every file that is not supported: not readable, malformed, not CPython, of an unknown
        version or build, or without one of the sites that it should have
    """
    if not isinstance(file, int):
        try:
            # O_NONBLOCK: the path may have become a FIFO since it was seen.
            fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        except (OSError, ValueError) as error:
            reason = (isinstance(error, OSError) and error.strerror) or "not a path"
            raise SitesNotFound(f"{os.fspath(file)!a}: cannot be opened: {reason}") from error
        try:
            return find_sites(fd, name)
        finally:
            os.close(fd)
    label = f"descriptor {file}"
    try:
        label = os.readlink(f"/proc/self/fd/{file}")
        return _sites(Elf(file), os.path.basename(label) if name is None else name)
    except MalformedElf as error:
        raise SitesNotFound(f"{label!a}: {error}") from error
    except OSError as error:
        raise SitesNotFound(f"{label!a}: cannot be read: {error.strerror}") from error


def _sites(elf: Elf, name: str) -> Runtime:
    if elf.machine == EM_AARCH64:
        raise MalformedElf("not supported on arm64 yet")
    if elf.machine != EM_X86_64:
        raise MalformedElf(f"machine {elf.machine} is not supported, only x86-64 is")
    libpython = next((lib for lib in elf.needed if lib.startswith("libpython3")), None)
    interpreter, initialize = elf.symbol("Py_Main"), elf.symbol("Py_InitializeFromConfig")
    audit_names, key_names = elf.find(_FIND_CLASS), elf.find(_INVALID_KEY)
    has_pickle = bool(audit_names or key_names)
    if max(len(audit_names), len(key_names)) > _MAX_ANCHORS:
        raise MalformedElf("too many copies of the texts of _pickle")
    if not has_pickle and interpreter is None and libpython is None:
        raise MalformedElf("no CPython interpreter and no _pickle module found")
    version = _version(elf, libpython, name)
    if sum(len(segment.data) for segment in elf.segments if segment.executable) > _MAX_CODE:
        raise MalformedElf(f"more than {_MAX_CODE >> 20} MiB of code is not searched")
    layout = LAYOUTS[version]
    load = find_class = None
    if has_pickle:
        _check_module(elf, version)
        find_class = _site(elf, _find_class_call(elf, audit_names))
        load = _site(elf, _load_entry(elf, key_names))
    return Runtime(
        version=version,
        load=load,
        find_class=find_class,
        initialize=None if initialize is None else _site(elf, initialize),
        text_offset=layout.text_offset,
        wide_text_offset=layout.wide_text_offset,
        libpython=libpython if interpreter is None and not has_pickle else None,
    )


def _site(elf: Elf, vaddr: int) -> int:
    """The file offset for a probe at `vaddr`, which must be in code that has a frame entry."""
    elf.function(vaddr)
    offset = elf.offset_of(vaddr)
    if not any(s.executable and s.offset <= offset < s.offset + len(s.data) for s in elf.segments):
        raise MalformedElf("a site is not in code")
    return offset


def _version(elf: Elf, libpython: str | None, name: str) -> tuple[int, int]:
    """The version that all evidence in the file agrees on, else the one that `name` tells."""
    for symbol, build in _OTHER_BUILDS.items():
        if elf.mentions(symbol):
            raise MalformedElf(f"{build} is not supported")
    found = set()
    if (constant := elf.symbol("Py_Version")) is not None:  # since 3.11: PY_VERSION_HEX, 0x030b02f0
        _, minor, major = elf.bytes_at(constant + 1, 3)
        found.add((major, minor))
    for tag in elf.find(b"\0cpython-3"):  # sys.implementation.cache_tag
        if digits := re.match(rb"\d{1,2}(?=\0)", elf.tail(tag + 10, 3)):
            found.add((3, int(digits[0])))
    libraries = [text for text in (elf.soname, libpython) if text is not None]
    for text in libraries if found or libraries else [name]:
        if said := _VERSIONED_NAME.search(text):
            if "t" in said[2]:
                raise MalformedElf("free-threaded CPython is not supported")
            found.add((3, int(said[1])))
    if not found:
        raise MalformedElf("neither the file nor its name tells its CPython version")
    said_versions = " and ".join(f"{major}.{minor}" for major, minor in sorted(found))
    if len(found) > 1:
        raise MalformedElf(f"it claims to be CPython {said_versions} at once")
    version = found.pop()
    if version not in LAYOUTS:
        raise MalformedElf(f"CPython {said_versions} is not supported, only 3.8 to 3.13 are")
    return version


def _check_module(elf: Elf, version: tuple[int, int]) -> None:
    """Refuse a shared `_pickle` whose imports contradict the version that its name tells."""
    if elf.symbol("PySys_Audit") is None and not elf.mentions(LAYOUTS[version].module_call):
        raise MalformedElf(f"it is not built as CPython {version[0]}.{version[1]} builds _pickle")


def _find_class_call(elf: Elf, strings: Iterable[int]) -> int:
    """The address of the call of `PySys_Audit` that follows the load of the event's name."""
    loads = [
        at for string in strings for at, number in _address_loads(elf, string) if number == _RDI
    ]
    if not 0 < len(loads) <= _MAX_ANCHORS:
        raise MalformedElf(f"{len(loads)} instructions pass 'pickle.find_class', not one")
    calls = set()
    for at in loads:
        _, end = elf.function(at)
        # The first byte sequence that is a call to PySys_Audit is one: by chance it would need to
        # hit one address in 2^32. A prefix before it (addr32, which the linker puts before a call
        # that it has relaxed) does not matter: the trap's address is that of the opcode, too.
        for call in range(at + 5, min(at + _LOAD_TO_CALL, end - 4)):
            if "PySys_Audit" in elf.callee(call):
                calls.add(call)
                break
    if len(calls) != 1:
        raise MalformedElf(f"{len(calls)} calls of PySys_Audit for 'pickle.find_class', not one")
    return calls.pop()


def _load_entry(elf: Elf, strings: Iterable[int]) -> int:
    """The address where `load` is entered: its hot part, if it was split."""
    loads = [at for string in strings for at, _ in _address_loads(elf, string)]
    parts = {elf.function(at) for at in loads}
    if len(parts) != 1:
        raise MalformedElf(f"{len(parts)} functions refer to 'invalid load key', not one")
    start, end = parts.pop()
    if not _calls_to(elf, start):
        # Nobody calls a cold part; its hot part is where the jumps into it come from.
        sources = [at for at in _jumps_into(elf, start, end) if not start <= at < end]
        hot = {elf.function(at) for at in sources}
        if len(hot) != 1:
            raise MalformedElf(f"{len(hot)} functions jump into the cold part of load, not one")
        start, end = hot.pop()
        if not _calls_to(elf, start):
            raise MalformedElf("no call enters the function that looks like load")
    return start


def _address_loads(elf: Elf, target: int) -> list[tuple[int, int]]:
    """(address, register number) of every instruction that puts `target` into a register.

    Understands `lea r64,[rip+d]` and, in executables at fixed addresses, `mov r32,imm32`.
    """
    found = []
    for at in _relative(elf, _leas, 3, target, target + 1):
        rex, _, modrm = elf.bytes_at(at, 3)
        found.append((at, (modrm >> 3 & 7) + 8 * (rex == 0x4C)))
    if elf.fixed and target < 1 << 32:
        for segment in elf.segments:
            if not segment.executable:
                continue
            needle = target.to_bytes(4, "little")
            at = segment.data.find(needle, 2)
            while at >= 0 and len(found) <= MAX_HITS:
                opcode, extended = segment.data[at - 1], segment.data[at - 2] == 0x41  # REX.B
                if opcode & 0xF8 == 0xB8:
                    register = (opcode & 7) + 8 * extended
                    found.append((segment.vaddr + at - 1 - extended, register))
                at = segment.data.find(needle, at + 1)
    return found


def _calls_to(elf: Elf, target: int) -> list[int]:
    """Addresses of `call rel32` instructions to `target`."""
    return _relative(elf, lambda code: np.flatnonzero(code == 0xE8), 1, target, target + 1)


def _jumps_into(elf: Elf, start: int, end: int) -> list[int]:
    """Addresses of `jmp rel32` and `jcc rel32` instructions whose target is in [start, end)."""
    jumps = _relative(elf, lambda code: np.flatnonzero(code == 0xE9), 1, start, end)
    return jumps + _relative(elf, _conditional_jumps, 2, start, end)


def _leas(code: Code) -> Positions:
    """Positions of `lea r64,[rip+d]`: REX.W with or without R, 8D, mod 0 rm 5."""
    at = np.flatnonzero(code[1:-1] == 0x8D)
    found: Positions = at[(code[at] & 0xFB == 0x48) & (code[at + 2] & 0xC7 == 0x05)]
    return found


def _conditional_jumps(code: Code) -> Positions:
    at = np.flatnonzero(code[:-1] == 0x0F)
    found: Positions = at[code[at + 1] & 0xF0 == 0x80]
    return found


def _relative(
    elf: Elf, opcodes: Callable[[Code], Positions], field: int, low: int, high: int
) -> list[int]:
    """Addresses of `opcodes` whose rel32, `field` bytes on, leads into [low, high).

    Looks at every byte, whether or not an instruction starts there: a hit by chance needs 4 bytes
    that lead to the target. Callers check what the hit is part of.
    """
    found: list[int] = []
    for segment in elf.segments:
        if not segment.executable:
            continue
        for start in range(0, len(segment.data) - field - 3, _CHUNK):
            size = min(_CHUNK + field + 3, len(segment.data) - start)
            code = np.frombuffer(segment.data, np.uint8, size, start)
            # An int32 at every byte, aligned or not: a view, nothing is copied.
            words: npt.NDArray[np.int32] = np.ndarray(
                (size - 3,), np.dtype("<i4"), segment.data, start, (1,)
            )
            at = opcodes(code)
            at = at[at < size - field - 3]
            base = segment.vaddr + start
            target = at + words[at + field] + (base + field + 4)
            found.extend((base + at[(target >= low) & (target < high)]).tolist())
            if len(found) > MAX_HITS:
                raise MalformedElf(f"more than {MAX_HITS} instructions refer to {low:#x}")
    return found
