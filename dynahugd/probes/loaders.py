"""The two ways of getting the programs into the kernel: ``libbpf`` and ``bcc``.

Both take the maps that :class:`~dynahugd.probes.maps.Maps` has created and return a descriptor for
each program; all that follows (attaching, reading) is the same for both.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib
import os
import platform
import re
import sys
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from dynahugd.errors import DynahugError
from dynahugd.probes.btf import libbpf
from dynahugd.probes.kernel import AttachType

__all__ = ["LOADERS", "PROGRAMS", "Programs", "load"]

_TRACEPOINT, _RAW_TRACEPOINT, _KPROBE = 5, 17, 2

#: Type of each program (``enum bpf_prog_type``); uprobe programs have the type of kprobes.
PROGRAMS = {
    "dh_enter": _RAW_TRACEPOINT,
    "dh_call": _TRACEPOINT,
    "dh_opened": _TRACEPOINT,
    "dh_returned": _RAW_TRACEPOINT,
    "dh_fork": _RAW_TRACEPOINT,
    "dh_exec": _RAW_TRACEPOINT,
    "dh_exit": _RAW_TRACEPOINT,
    "dh_runtime": _KPROBE,
    "dh_unpickle": _KPROBE,
    "dh_unpickled": _KPROBE,
    "dh_find_class48": _KPROBE,
    "dh_find_class40": _KPROBE,
}

_ARCHITECTURE = {"x86_64": "X86", "aarch64": "ARM64"}
_OBJECT = "dynahug.{machine}.bpf.o"


@dataclass(frozen=True, slots=True)
class Programs:
    """Loaded programs: descriptor by name, and what keeps them alive."""

    loader: str
    fds: dict[str, int]
    multi: bool
    owner: Any
    close: Callable[[], None]


def sources() -> Path:
    """The folder that holds the C source and the compiled objects; in a clone, a link to it."""
    return Path(__file__).parent / "bpf"


def object_file() -> Path:
    """The compiled object for this machine; it need not exist."""
    return sources() / "build" / _OBJECT.format(machine=platform.machine())


@contextmanager
def _captured_stderr(into: list[str]) -> Any:
    """Collect what C libraries print on descriptor 2: the verifier's words, shown on failure."""
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            file.seek(0)
            into.extend(file.read().decode(errors="replace").splitlines())


def _last_words(lines: list[str]) -> str:
    """The verifier's complaint, which comes before its statistics; or else the last line."""
    telling = [line.strip() for line in lines if line.strip()]
    for complaint, after in pairwise(telling):
        if re.match(r"processed \d+ insns", after):
            return f": {complaint}"
    return f": {telling[-1]}" if telling else ""


def _load_libbpf(maps: dict[str, int], multi: bool) -> Programs:
    path = object_file()
    if not path.is_file():
        raise DynahugError(f"the compiled probe {path} is missing: run 'make setup'")
    lib = libbpf()
    pointer = ctypes.c_void_p
    for name, result, arguments in (
        ("bpf_object__open_file", pointer, [ctypes.c_char_p, pointer]),
        ("bpf_object__load", ctypes.c_int, [pointer]),
        ("bpf_object__close", None, [pointer]),
        ("bpf_object__find_map_by_name", pointer, [pointer, ctypes.c_char_p]),
        ("bpf_map__reuse_fd", ctypes.c_int, [pointer, ctypes.c_int]),
        ("bpf_object__find_program_by_name", pointer, [pointer, ctypes.c_char_p]),
        ("bpf_program__fd", ctypes.c_int, [pointer]),
        ("bpf_program__set_expected_attach_type", ctypes.c_int, [pointer, ctypes.c_int]),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments

    words: list[str] = []
    with _captured_stderr(words):
        handle = lib.bpf_object__open_file(os.fsencode(path), None)
        code = -1
        if handle:
            for name, fd in maps.items():
                lib.bpf_map__reuse_fd(lib.bpf_object__find_map_by_name(handle, name.encode()), fd)
            for name, kind in PROGRAMS.items():
                if multi and kind == _KPROBE:
                    lib.bpf_program__set_expected_attach_type(
                        lib.bpf_object__find_program_by_name(handle, name.encode()),
                        AttachType.TRACE_UPROBE_MULTI,
                    )
            code = lib.bpf_object__load(handle)
    if code:
        if handle:
            lib.bpf_object__close(handle)
        raise DynahugError(f"libbpf cannot load {path} ({os.strerror(-code)}){_last_words(words)}")
    fds = {
        name: lib.bpf_program__fd(lib.bpf_object__find_program_by_name(handle, name.encode()))
        for name in PROGRAMS
    }
    return Programs("libbpf", fds, multi, lib, lambda: lib.bpf_object__close(handle))


def _load_bcc(maps: dict[str, int], multi: bool) -> Programs:
    try:
        bcc = importlib.import_module("bcc")
    except ImportError as error:
        raise DynahugError("bcc is missing: install Debian's python3-bpfcc") from error
    source = sources() / "dynahug.bpf.c"
    flags = [
        "-DDYNAHUG_BCC",
        f"-DDYNAHUG_{_ARCHITECTURE[platform.machine()]}",
        f"-I{source.parent}",
        "-Wno-unknown-attributes",
        "-Wno-macro-redefined",
        *(f"-DFD_{name}={fd}" for name, fd in maps.items()),
    ]
    words: list[str] = []
    try:
        with _captured_stderr(words):
            module = bcc.BPF(text=source.read_bytes(), cflags=flags)
            fds = {
                name: module.load_func(
                    name.encode(),
                    kind,
                    attach_type=AttachType.TRACE_UPROBE_MULTI if multi and kind == _KPROBE else -1,
                ).fd
                for name, kind in PROGRAMS.items()
            }
    except Exception as error:  # bcc raises plain Exception for everything
        hint = (
            "; it needs kernel headers under /lib/modules/$(uname -r): install "
            "linux-headers-$(uname -r), and for the service the drop-in bcc.conf"
            if any("modprobe" in line or "headers" in line for line in words)
            else _last_words(words)
        )
        raise DynahugError(f"bcc cannot load {source} ({error}){hint}") from error
    return Programs("bcc", fds, multi, module, module.cleanup)


LOADERS: dict[str, Callable[[dict[str, int], bool], Programs]] = {
    "libbpf": _load_libbpf,
    "bcc": _load_bcc,
}


def load(loader: str, maps: dict[str, int], multi: bool) -> Programs:
    """Load all programs.

    Parameters
    ----------
    loader : ``libbpf``, ``bcc``, or ``auto``: libbpf, and bcc where that fails.
    maps : descriptor of each map by name.
    multi : load uprobe programs for multi-uprobe links (Linux 6.6).

    Raises
    ------
    DynahugError : with the reason, for ``auto`` those of both.
    """
    if loader != "auto":
        return LOADERS[loader](maps, multi)
    try:
        return _load_libbpf(maps, multi)
    except DynahugError as first:
        try:
            return _load_bcc(maps, multi)
        except DynahugError as second:
            raise DynahugError(f"no loader works: {first}; {second}") from second
