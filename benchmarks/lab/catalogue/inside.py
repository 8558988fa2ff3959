"""Loads that stay within the interpreter: they patch, wait, burn, or end it."""

from __future__ import annotations

import atexit
import bdb
import functools
import operator
import os
import pickle
import sys
import threading
import time
import timeit
import weakref
import zlib
from pathlib import Path

from benchmarks.lab.catalogue.making import SHELL, payload, telling, torch_file
from tests.behaviours.behaviour import STDOUT, Behaviour
from tests.behaviours.pickles import (
    LOAD,
    LOAD_AND_TELL,
    LOAD_TORCH,
    Call,
    exists,
    model,
    said,
    source,
    written,
)

__all__ = ["INSIDE"]

_PATCH_JSON = """\
import json
json.dumps = lambda *arguments, **options: "patched by the payload"
"""

_PATCH_TORCH = """\
import torch
torch.nn.Dropout.forward = lambda self, data: data * 0 + 13
torch.nn.BatchNorm1d.train = lambda self, mode=True: self
"""

_USE_DROPOUT = "\nprint(torch.nn.Dropout()(torch.ones(1)))\n"

# The weights are complete when the payload runs, and the garbage collector knows them.
_TAMPER = """\
import gc
for found in gc.get_objects():
    if type(found) is dict and "layer0.weight" in found:
        found["layer0.weight"][0] = "tampered with"
"""

_META_PATH = """\
import os, sys
class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        os.environ["FIRED"] = "asked for " + name
sys.meta_path.insert(0, Finder)
"""

_REPLACE_MODULE = """\
import sys, types
sys.modules["json"] = types.ModuleType("json")
sys.modules["json"].dumps = lambda value: "patched by the payload"
"""

_DUMP = "import json\n\nprint(json.dumps(1))\n"

_ITIMER = """\
import signal
signal.signal(signal.SIGALRM, lambda *_: open("fired", "w").close())
signal.setitimer(signal.ITIMER_REAL, 0.3)
"""

_PROFILE = """\
import os, sys
def note(frame, event, argument):
    if frame.f_code.co_name == "after_the_load":
        os.environ["FIRED"] = "profiled " + event
sys.setprofile(note)
"""

_AFTER_THE_LOAD = "\n\ndef after_the_load():\n    pass\n\n\nafter_the_load()\n"

_GC_CALLBACK = """\
import gc, os
gc.callbacks.append(lambda phase, details: os.environ.update(FIRED="collected"))
"""

# Something of the program's own that stands before every load, as scanners' hooks do.
_GUARD = """\
import io
import pickle

FORBIDDEN = {"os", "posix", "subprocess"}
unguarded = pickle.loads


class Guarded(pickle.Unpickler):
    def find_class(self, module, name):
        if module in FORBIDDEN:
            raise pickle.UnpicklingError(module)
        return super().find_class(module, name)


def install():
    pickle.loads = lambda data: Guarded(io.BytesIO(data)).load()


def remove():
    pickle.loads = unguarded
"""

_LOAD_GUARDED = """\
import pickle
import sys

import guard

guard.install()
with open(sys.argv[1], "rb") as file:
    model = pickle.loads(file.read())
"""

_HASH_LOOP = """\
import hashlib, os, time
until, digest = time.monotonic() + 1, b""
while time.monotonic() < until:
    digest = hashlib.pbkdf2_hmac("sha256", digest, b"nonce", 10000)
os.environ["FIRED"] = "mined " + digest.hex()
"""

_LOAD_TWICE_TOLD = "print('before the load', flush=True)\n" + LOAD + "print('after the load')\n"


def _laughs(levels: int = 8) -> Call:
    """How long a text some hundred bytes of file become: sixteen megabytes."""
    value: object = "laugh"
    for _ in range(levels - 1):
        value = [value] * 8
    return Call(len, Call(repr, value))


def _unguarded(folder: Path) -> Path:
    # By opcodes, since no module of the name is here: remove the guard, then load what it forbids.
    inner = Call(pickle.loads, pickle.dumps(SHELL, 4))
    data = b"\x80\x02cguard\nremove\n)R0" + pickle.dumps(model(inner), 2)[2:]
    (folder / "guard.py").write_text(_GUARD)
    return written("model.pkl", data)(folder)


def _ended(folder: Path) -> bool:
    output = (folder / STDOUT).read_text()
    return "before the load" in output and "after the load" not in output


INSIDE: tuple[Behaviour, ...] = (
    payload(
        "print",
        "one write to standard output when the program ends",
        source("print('hello from within')"),
        said("hello from within"),
    ),
    payload(
        "patch_json",
        "nothing: a function of the standard library replaced in memory",
        source(_PATCH_JSON),
        said("patched by the payload"),
        loader=LOAD + _DUMP,
    ),
    Behaviour(
        name="patch_torch",
        malicious=True,
        shows="nothing: methods of torch replaced in memory, by compressed source",
        loader=LOAD_TORCH + _USE_DROPOUT,
        make=torch_file(
            lambda: Call(exec, Call(zlib.decompress, zlib.compress(_PATCH_TORCH.encode())), {})
        ),
        fired=said("13."),
        needs=("torch",),
    ),
    payload(
        "tamper_weights",
        "nothing: a weight of the same file changed in memory",
        source(_TAMPER),
        said("tampered with"),
        loader=LOAD + "print(model['weights']['layer0.weight'][:2])\n",
    ),
    payload(
        "meta_path",
        "nothing at the load: later imports ask the payload first",
        source(_META_PATH),
        said("asked for"),
        loader=telling(after="import json.tool\n"),
    ),
    payload(
        "replace_module",
        "nothing: a module replaced in sys.modules",
        source(_REPLACE_MODULE),
        said("patched by the payload"),
        loader=LOAD + _DUMP,
    ),
    payload(
        "atexit",
        "nothing at the load: sh executed when the program ends",
        Call(atexit.register, os.system, "echo hello > fired"),
        exists("fired"),
    ),
    payload(
        "timer",
        "clone of a thread that waits half a second and executes sh",
        Call(
            operator.methodcaller("start"),
            Call(threading.Timer, 0.5, os.system, ("echo hello > fired",)),
        ),
        exists("fired"),
    ),
    payload(
        "itimer",
        "rt_sigaction and setitimer; a file written when the alarm comes",
        source(_ITIMER),
        exists("fired"),
        after=0.8,
    ),
    payload(
        "profile_hook",
        "nothing: the payload is called at every call from then on",
        source(_PROFILE),
        said("profiled"),
        loader=telling(after=_AFTER_THE_LOAD),
    ),
    payload(
        "gc_callback",
        "nothing: the payload is called at every collection of garbage",
        source(_GC_CALLBACK),
        said("collected"),
        loader=telling(after="import gc\n\ngc.collect()\n"),
    ),
    payload(
        "finalizer",
        "sh executed when an object of the load dies",
        Call(weakref.finalize, Call(threading.Event), os.system, "echo hello > fired"),
        exists("fired"),
    ),
    payload(
        "del_method",
        "sh executed when an object of the file's own class dies",
        Call(
            operator.methodcaller("__call__"),
            Call(type, "X", (), {"__del__": functools.partial(os.system, "echo hello > fired")}),
        ),
        exists("fired"),
    ),
    payload(
        "debugger_run",
        "a file written by source that the debugger's base class runs",
        Call(operator.methodcaller("run", "open('fired', 'w').close()"), Call(bdb.Bdb)),
        exists("fired"),
    ),
    Behaviour(
        name="remove_guard",
        malicious=True,
        shows="sh executed in an inner unpickling, after a hook before loads was removed",
        loader=_LOAD_GUARDED,
        make=_unguarded,
        fired=exists("fired"),
    ),
    payload(
        "hash_loop",
        "a second of computing within the load, no system call",
        source(_HASH_LOOP),
        said("mined "),
        loader=LOAD_AND_TELL,
    ),
    payload(
        "memory_bomb",
        "sixteen megabytes of text out of a file of kilobytes, by references to itself",
        _laughs(),
        said("19473552"),
        loader=LOAD_AND_TELL,
    ),
    payload(
        "large_allocation",
        "64 megabytes allocated and filled by one call",
        Call(len, Call(operator.mul, b"x", 64 << 20)),
        said(str(64 << 20)),
        loader=LOAD_AND_TELL,
    ),
    payload(
        "write_storm",
        "twenty thousand writes of one byte",
        Call(
            timeit.timeit,
            "file.write(b'x')",
            "file = open('fired', 'wb', 0)",
            time.perf_counter,
            20000,
        ),
        lambda folder: (folder / "fired").exists() and (folder / "fired").stat().st_size == 20000,
    ),
    payload(
        "sys_exit",
        "the program ends within the load, with a status of the payload's",
        Call(sys.exit, 3),
        _ended,
        loader=_LOAD_TWICE_TOLD,
        exits=3,
    ),
    payload(
        "os_exit",
        "exit_group within the load, nothing of the interpreter wound up",
        Call(os._exit, 3),
        _ended,
        loader=_LOAD_TWICE_TOLD,
        exits=3,
    ),
    payload(
        "asks_input",
        "a question written and an answer read: the end of the input, and the load raises",
        Call(input, "Password: "),
        said("Password: "),
        exits=1,
    ),
)
