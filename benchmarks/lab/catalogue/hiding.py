"""Payloads by how they hide from whoever reads the file; what they do is plain."""

from __future__ import annotations

import importlib
import io
import operator
import pickle
import runpy
import tarfile
import zipfile
import zipimport
from importlib.machinery import SourceFileLoader
from pathlib import Path

from benchmarks.lab.catalogue.making import (
    SHELL,
    WRITE,
    Maker,
    payload,
    torch_file,
)
from tests.behaviours.behaviour import Behaviour
from tests.behaviours.libraries import library
from tests.behaviours.pickles import (
    LOAD,
    LOAD_JOBLIB,
    LOAD_TORCH,
    WEIGHTS,
    Call,
    exists,
    model,
    pickled,
    source,
    written,
)

__all__ = ["HIDING"]

_LAYERS = "with open('fired', 'w') as file: file.write('hello')\n"

_LOAD_NPZ = """\
import sys

import numpy

with numpy.load(sys.argv[1], allow_pickle=True) as archive:
    model = {name: archive[name] for name in archive.files}
"""

_LOAD_PACKAGE = """\
import sys

from torch.package import PackageImporter

model = PackageImporter(sys.argv[1]).load_pickle("model", "model.pkl")
"""

_RAISE = source(f"{_LAYERS}raise KeyError('layer5.weight')")

#: ``json.codecs.builtins.__import__("os")``, whose result is dropped.
_DOTTED = b"\x80\x04\x8c\x04json\x8c\x1acodecs.builtins.__import__\x93\x8c\x02os\x85R0"


def _spelled_out(*opcodes: bytes) -> Maker:
    return written("model.pkl", b"".join(opcodes))


def _joblib(method: str) -> Maker:
    def make(folder: Path) -> Path:
        numpy = library("numpy")
        path = folder / "model.joblib"
        value = {"coefficients": numpy.arange(256.0), "notes": WRITE}
        library("joblib").dump(value, path, compress=(method, 3))
        return path

    return make


def _npz(folder: Path) -> Path:
    numpy = library("numpy")
    path = folder / "model.npz"
    notes = numpy.array([SHELL, 1], dtype=object)
    numpy.savez(path, weights=numpy.arange(64.0), notes=notes)
    return path


def _zipped_module(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "layers.zip", "w") as archive:
        archive.writestr(zipfile.ZipInfo("layers.py"), _LAYERS)
    importer = Call(zipimport.zipimporter, "layers.zip")
    return pickled(model(Call(operator.methodcaller("load_module", "layers"), importer)))(folder)


def _tape(folder: Path) -> Path:
    """A checkpoint of the oldest format, a tape of three pickles; the first one is no number."""
    path = folder / "model.pt"
    parts = {"sys_info": {}, "pickle": {}, "tensors": 0, "storages": SHELL}
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tape:
        for name, value in parts.items():
            data = pickle.dumps(value, 2)
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tape.addfile(entry, io.BytesIO(data))
    return path


def _magic_number(folder: Path) -> Path:
    """The first pickle of a file of the second format, which has to be a number, calls first."""
    path = torch_file(lambda: None, zipped=False)(folder)
    data = path.read_bytes()
    first = io.BytesIO(data)
    pickle.load(first)  # ours, written by torch a moment ago: an integer
    number = data[2 : first.tell()]
    shell = pickle.dumps(SHELL, 2)[:-1]
    path.write_bytes(shell + b"0" + number + data[first.tell() :])
    return path


def _in_tensor(folder: Path) -> Path:
    torch = library("torch")
    tensor = torch.frombuffer(bytearray(_LAYERS.encode()), dtype=torch.uint8)
    text = Call(bytes, Call(operator.methodcaller("tolist"), tensor))
    path = folder / "model.pt"
    torch.save({"weight": tensor, "notes": Call(exec, text, {})}, path)
    return path


def _packaged(folder: Path) -> Path:
    """Source code that the file brings along, and torch compiles."""
    package = library("torch.package")
    path = folder / "model.pt"
    with package.PackageExporter(str(path)) as exporter:
        exporter.save_source_string("layers", f"{_LAYERS}\n\nclass Net:\n    pass\n")
        exporter.save_source_string(
            "start", "import layers\n\n\ndef make():\n    return layers.Net()\n"
        )
        exporter.save_binary("model", "model.pkl", b"\x80\x02cstart\nmake\n)R.")
    return path


def _cloudpickled(folder: Path) -> Path:
    cloudpickle = library("cloudpickle")
    scope: dict[str, object] = {"__name__": "__main__"}
    exec("class Net:\n    def __setstate__(self, state):\n        " + _LAYERS, scope)
    net = scope["Net"]
    assert isinstance(net, type)
    value = net()
    value.__dict__["weights"] = WEIGHTS
    return written("model.pkl", cloudpickle.dumps(value, 4))(folder)


HIDING: tuple[Behaviour, ...] = (
    payload(
        "run_path",
        "a script beside the model is read, compiled and run; it writes a file",
        Call(runpy.run_path, "layers.py"),
        exists("fired"),
        files={"layers.py": _LAYERS},
    ),
    payload(
        "source_file_loader",
        "the same through importlib's loader of source files",
        Call(
            operator.methodcaller("load_module"),
            Call(SourceFileLoader, "layers", "layers.txt"),
        ),
        exists("fired"),
        files={"layers.txt": _LAYERS},
    ),
    Behaviour(
        "zip_import",
        True,
        "a module imported from a zip file beside the model; it writes a file",
        LOAD,
        _zipped_module,
        fired=exists("fired"),
    ),
    payload(
        "attribute_chain",
        "no global but operator's and importlib's; sh executed",
        Call(
            operator.methodcaller("__call__", "echo hello > fired"),
            Call(operator.attrgetter("system"), Call(importlib.import_module, "posix")),
        ),
        exists("fired"),
    ),
    payload(
        "through_spec",
        "a module built from its spec, and a function taken from its dictionary; sh executed",
        Call(
            operator.methodcaller("__call__", "echo hello > fired"),
            Call(
                operator.itemgetter("system"),
                Call(vars, Call(importlib.import_module, "os")),
            ),
        ),
        exists("fired"),
    ),
    Behaviour(
        "dotted_global",
        True,
        "one global of json with a dotted name, which reaches __import__; a file written",
        LOAD,
        _spelled_out(
            _DOTTED,
            pickle.dumps(model(WRITE), 4)[2:],
        ),
        fired=exists("fired"),
    ),
    payload(
        "function_of_code",
        "a function made of a compiled code object, without exec; a file written",
        Call(
            operator.methodcaller("__call__"),
            Call(
                operator.methodcaller(
                    "FunctionType",
                    Call(compile, _LAYERS, "layers", "exec"),
                    Call(vars, Call(importlib.import_module, "builtins")),
                ),
                Call(importlib.import_module, "types"),
            ),
        ),
        exists("fired"),
    ),
    payload(
        "raises_in_payload",
        "a file written, then an exception of the payload's own: the load looks like a broken file",
        _RAISE,
        exists("fired"),
        exits=1,
    ),
    Behaviour(
        "other_suffix",
        True,
        "sh executed while a file called 'model.txt' is read",
        LOAD,
        pickled(model(SHELL), name="model.txt"),
        fired=exists("fired"),
    ),
    Behaviour(
        "upper_case_suffix",
        True,
        "a file written while a file called 'MODEL.PKL' is read",
        LOAD,
        pickled(model(WRITE), name="MODEL.PKL"),
        fired=exists("fired"),
    ),
    *(
        Behaviour(
            f"payload_in_joblib_{method}",
            True,
            f"a file written within joblib's unpickler, from a file that {method} compressed",
            LOAD_JOBLIB,
            _joblib(method),
            fired=exists("fired"),
            needs=("joblib", "numpy"),
        )
        for method in ("gzip", "bz2", "xz", "lzma")
    ),
    Behaviour(
        "payload_in_npz",
        True,
        "sh executed in the pickle that one array of an archive is",
        _LOAD_NPZ,
        _npz,
        fired=exists("fired"),
        needs=("numpy",),
    ),
    Behaviour(
        "payload_in_torch_tar",
        True,
        "a tape unpacked into a temporary folder, and sh executed by its first pickle",
        LOAD_TORCH,
        _tape,
        fired=exists("fired"),
        exits=1,
        needs=("torch",),
    ),
    Behaviour(
        "payload_in_magic_number",
        True,
        "sh executed by the pickle of which torch reads the file's magic number",
        LOAD_TORCH,
        _magic_number,
        fired=exists("fired"),
        needs=("torch",),
    ),
    Behaviour(
        "payload_in_tensor",
        True,
        "source code taken from a tensor's bytes, compiled and run; a file written",
        LOAD_TORCH,
        _in_tensor,
        fired=exists("fired"),
        needs=("torch",),
    ),
    Behaviour(
        "torch_package",
        True,
        "source code in the file, compiled by torch.package; a file written",
        _LOAD_PACKAGE,
        _packaged,
        fired=exists("fired"),
        needs=("torch",),
    ),
    Behaviour(
        "cloudpickled_class",
        True,
        "a class that comes with the pickle writes a file as its state is set",
        LOAD,
        _cloudpickled,
        fired=exists("fired"),
        needs=("cloudpickle",),
    ),
)
