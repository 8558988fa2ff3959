"""Loads that leave Python: shared objects, the C library, machine code."""

from __future__ import annotations

import ctypes
import importlib
import operator
from collections.abc import Callable
from pathlib import Path

from benchmarks.lab.catalogue.making import TELL, payload, torch_file
from tests.behaviours.behaviour import Behaviour
from tests.behaviours.libraries import library
from tests.behaviours.payloads import shared_object
from tests.behaviours.pickles import LOAD, LOAD_TORCH, Call, exists, model, pickled, said, source

__all__ = ["NATIVE"]

_SHOW_MAPS = "\nprint(open('/proc/self/maps').read())\n"

# The interpreter's SQLite, reached below the module sqlite3: that can be built without a way to
# load extensions.
_EXTENSION = """\
import _sqlite3, ctypes, os
sqlite = ctypes.CDLL(_sqlite3.__file__)
store, error = ctypes.c_void_p(), ctypes.c_char_p()
sqlite.sqlite3_open(b":memory:", ctypes.byref(store))
sqlite.sqlite3_enable_load_extension(store, 1)
sqlite.sqlite3_load_extension(store, b"./libdropped.so", None, ctypes.byref(error))
os.environ["FIRED"] = error.value.decode()
sqlite.sqlite3_close(store)
"""

# A function that returns 42, for both architectures.
_MACHINE_CODE = """\
import ctypes, mmap, os
code = {"x86_64": "b82a000000c3", "aarch64": "40058052c0035fd6"}[os.uname().machine]
page = mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, 7)
page.write(bytes.fromhex(code))
address = ctypes.addressof(ctypes.c_char.from_buffer(page))
os.environ["FIRED"] = "machine code gave %d" % ctypes.CFUNCTYPE(ctypes.c_int)(address)()
"""

# Without a core dump.
_CRASH = """\
import ctypes, resource
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
open("fired", "w").close()
ctypes.string_at(0)
"""


def _drop() -> Call:
    file = Call(open, "libdropped.so", "wb", 0)
    return Call(operator.methodcaller("write", shared_object()), file)


def _torch_ops() -> list[Call]:
    torch = Call(importlib.import_module, "torch")
    load = operator.methodcaller("load_library", "./libdropped.so")
    return [_drop(), Call(load, Call(operator.attrgetter("ops"), torch))]


def _ctypeslib() -> list[Call]:
    load = library("numpy.ctypeslib").load_library
    return [_drop(), Call(load, "libdropped", ".")]


def _late(notes: Callable[[], object]) -> Callable[[Path], Path]:
    """A maker whose notes need a compiler or a library."""
    return lambda folder: pickled(model(notes()))(folder)


NATIVE: tuple[Behaviour, ...] = (
    Behaviour(
        name="torch_load_library",
        malicious=True,
        shows="a shared object written to the working directory, mapped executable by torch.ops",
        loader=LOAD_TORCH + _SHOW_MAPS,
        make=torch_file(_torch_ops),
        fired=said("libdropped.so"),
        needs=("torch",),
    ),
    Behaviour(
        name="numpy_load_library",
        malicious=True,
        shows="a shared object written to the working directory, mapped executable by numpy",
        loader=LOAD + _SHOW_MAPS,
        make=_late(_ctypeslib),
        fired=said("libdropped.so"),
        needs=("numpy",),
    ),
    Behaviour(
        name="sqlite_extension",
        malicious=True,
        shows="a shared object written to the working directory, opened by SQLite, and refused",
        loader=LOAD + TELL,
        make=_late(lambda: [_drop(), source(_EXTENSION)]),
        fired=said("undefined symbol"),
    ),
    payload(
        "libc_system",
        "execve of sh through the C library, no audit event of os.system",
        Call(operator.methodcaller("system", b"echo hello > fired"), Call(ctypes.CDLL, None)),
        exists("fired"),
    ),
    payload(
        "machine_code",
        "one mmap, readable, writable and executable; what is written there is called",
        source(_MACHINE_CODE),
        said("machine code gave 42"),
        loader=LOAD + TELL,
    ),
    payload(
        "crash",
        "the loading process dies of a segmentation fault within the load",
        source(_CRASH),
        exists("fired"),
        exits=-11,
    ),
)
