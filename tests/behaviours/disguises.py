"""Payloads by how they hide: containers, opcodes, names, time, and the company they keep."""

from __future__ import annotations

import base64
import importlib
import operator
import os
import pickle
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from .behaviour import Behaviour
from .libraries import library
from .pickles import (
    LOAD,
    LOAD_JOBLIB,
    LOAD_TORCH,
    Call,
    exists,
    model,
    pickled,
    said,
    source,
    written,
)

__all__ = ["DISGUISED"]

_SHELL = Call(os.system, "echo hello > fired")
_WRITE = source("with open('fired', 'w') as file: file.write('hello')")

# Code objects are marshalled by the interpreter that will load them: the format is its own.
# Opcodes: types.FunctionType(marshal.loads(CODE), globals())().
_PREPARE_MARSHALLED = """\
import marshal
import struct
import sys

code = compile("import os\\nos.system('echo hello > fired')", "hook", "exec")
data = marshal.dumps(code)
with open(sys.argv[1], "wb") as file:
    file.write(b"\\x80\\x03" + b"ctypes\\nFunctionType\\n" + b"cmarshal\\nloads\\n")
    file.write(b"B" + struct.pack("<I", len(data)) + data + b"\\x85R")
    file.write(b"cbuiltins\\nglobals\\n)R" + b"\\x86R" + b")R.")
"""

_EXTENSION_CODE = 201

_LOAD_EXTENSION = f"""\
import copyreg
import os
import pickle
import sys

copyreg.add_extension(os.system.__module__, "system", {_EXTENSION_CODE})
with open(sys.argv[1], "rb") as file:
    model = pickle.load(file)
"""

_LOAD_STDIN = """\
import base64
import os
import pickle
import sys

model = pickle.loads(base64.b64decode(sys.stdin.buffer.read()))
print(model["notes"])
"""

# The clock is read through the vDSO: no system call.
_COMPUTE = """\
import time
until = time.monotonic() + 10
while time.monotonic() < until:
    sum(range(100000))
"""


def _raw(*opcodes: bytes) -> Callable[[Path], Path]:
    return written("model.pkl", b"".join(opcodes))


def _request(folder: Path) -> Path:
    """What a client would send: a pickle in base64, in no file that the loader opens."""
    file = Call(open, Call(os.path.expanduser, "~/.aws/credentials"))
    stolen = Call(operator.methodcaller("read"), file)
    path = folder / "request.txt"
    path.write_bytes(base64.b64encode(pickle.dumps(model(stolen), 4)))
    return path


def _object_array(folder: Path) -> Path:
    numpy = library("numpy")
    path = folder / "model.npy"
    numpy.save(path, numpy.array([_SHELL, 1], dtype=object), allow_pickle=True)
    return path


def _joblib(compress: tuple[str, int] | int) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        numpy = library("numpy")
        path = folder / "model.joblib"
        value = {"coefficients": numpy.arange(256.0), "notes": _WRITE}
        library("joblib").dump(value, path, compress=compress)
        return path

    return make


def _torch(zipped: bool) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        torch = library("torch")
        path = folder / "model.pt"
        value = {"layer.weight": torch.arange(256.0), "notes": _SHELL}
        torch.save(value, path, _use_new_zipfile_serialization=zipped)
        return path

    return make


def _estimator_and(notes: Call) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        linear = library("sklearn.linear_model")
        estimator = linear.LogisticRegression().fit([[0.0], [1.0]], [0, 1])
        return pickled({"estimator": estimator, "notes": notes})(folder)

    return make


def _disguised(
    name: str,
    shows: str,
    make: Callable[[Path], Path],
    loader: str = LOAD,
    needs: tuple[str, ...] = (),
    slow: bool = False,
) -> Behaviour:
    return Behaviour(name, True, shows, loader, make, fired=exists("fired"), needs=needs, slow=slow)


_LOAD_NUMPY = """\
import sys

import numpy

model = numpy.load(sys.argv[1], allow_pickle=True)
"""

DISGUISED: tuple[Behaviour, ...] = (
    Behaviour(
        name="marshalled",
        malicious=True,
        shows="globals types.FunctionType and marshal.loads; sh executed",
        loader=LOAD,
        make=written("model.pkl", b""),
        prepare=_PREPARE_MARSHALLED,
        fired=exists("fired"),
    ),
    _disguised(
        "nested_pickle",
        "an unpickling within an unpickling; sh executed in the inner one",
        pickled(model(Call(pickle.loads, pickle.dumps(_SHELL, 4)))),
    ),
    _disguised(
        "laundered_global",
        "no global names os.system: importlib.import_module and operator.methodcaller",
        pickled(
            model(
                Call(
                    operator.methodcaller("system", "echo hello > fired"),
                    Call(importlib.import_module, "os"),
                )
            )
        ),
    ),
    _disguised(
        "inst_opcode",
        "opcode INST of protocol 0 resolves the global; sh executed",
        _raw(b"(S'echo hello > fired'\nios\nsystem\n."),
    ),
    _disguised(
        "extension_registry",
        "opcode EXT1: os.system is a number in the file; sh executed",
        _raw(b"\x80\x02\x82", bytes([_EXTENSION_CODE]), b"U\x12echo hello > fired\x85R."),
        loader=_LOAD_EXTENSION,
    ),
    Behaviour(
        name="raises_after",
        malicious=True,
        shows="sh executed, then the unpickler stops at an invalid opcode",
        loader=LOAD,
        # Protocol 2 has no frames, so what follows the payload is not looked at before it.
        make=_raw(pickle.dumps(_SHELL, 2)[:-1], b"\xff"),
        fired=exists("fired"),
        exits=1,
    ),
    _disguised(
        "no_suffix",
        "sh executed while a file called 'weights' is read",
        pickled(model(_SHELL), name="weights"),
    ),
    _disguised(
        "unknown_suffix",
        "a file written while a file called 'model.xyz' is read",
        pickled(model(_WRITE), name="model.xyz"),
    ),
    Behaviour(
        name="pickle_from_stdin",
        malicious=True,
        shows="~/.aws/credentials read while no model file is open",
        loader=_LOAD_STDIN,
        make=_request,
        fired=said("FAKE-ACCESS-KEY"),
        piped=True,
    ),
    _disguised(
        "payload_in_npy",
        "sh executed in the pickle that an .npy file of objects carries",
        _object_array,
        loader=_LOAD_NUMPY,
        needs=("numpy",),
    ),
    _disguised(
        "payload_in_joblib",
        "a file written within joblib's pure-Python unpickler",
        _joblib(0),
        loader=LOAD_JOBLIB,
        needs=("joblib", "numpy"),
    ),
    _disguised(
        "payload_in_joblib_zlib",
        "the same from a file that is compressed throughout",
        _joblib(("zlib", 3)),
        loader=LOAD_JOBLIB,
        needs=("joblib", "numpy"),
    ),
    _disguised(
        "payload_in_torch_zip",
        "sh executed while torch.load reads a zip checkpoint",
        _torch(zipped=True),
        loader=LOAD_TORCH,
        needs=("torch",),
    ),
    _disguised(
        "payload_in_torch_legacy",
        "sh executed while torch.load reads a checkpoint of the format before 1.6",
        _torch(zipped=False),
        loader=LOAD_TORCH,
        needs=("torch",),
    ),
    _disguised(
        "cold_import_then_write",
        "a file written after the 20,000 calls of a cold scikit-learn import in the same pickle",
        _estimator_and(_WRITE),
        needs=("sklearn",),
    ),
    _disguised(
        "cold_import_then_exec",
        "touch executed after a cold scikit-learn import in the same pickle",
        _estimator_and(Call(subprocess.run, ["touch", "fired"])),
        needs=("sklearn",),
    ),
    _disguised(
        "sleeps_first",
        "ten seconds asleep within the pickle, then sh executed",
        pickled(model([Call(time.sleep, 10), _SHELL])),
        slow=True,
    ),
    _disguised(
        "computes_first",
        "ten seconds within the pickle without a system call, then a file written",
        pickled(model([source(_COMPUTE), _WRITE])),
        slow=True,
    ),
)
