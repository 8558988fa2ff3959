"""Benign loads of arrays: numpy, joblib, safetensors, HDF5."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .behaviour import Behaviour
from .libraries import library
from .pickles import WEIGHTS

__all__ = ["ARRAYS", "hdf5", "npz"]


def _load(module: str, call: str) -> str:
    return f"import sys\n\nimport {module}\n\nmodel = {module}.{call}\n"


def _load_arrays(options: str) -> str:
    return f"""\
import sys

import numpy

with numpy.load(sys.argv[1]{options}) as file:
    model = {{name: file[name] for name in file.files}}
"""


def _npy(folder: Path) -> Path:
    path = folder / "model.npy"
    numpy = library("numpy")
    numpy.save(path, numpy.arange(4096.0))
    return path


def npz(objects: bool) -> Callable[[Path], Path]:
    """A maker of a zip of eight arrays, and one of objects."""

    def make(folder: Path) -> Path:
        numpy = library("numpy")
        arrays = {f"layer{index}": numpy.arange(256.0) + index for index in range(8)}
        if objects:
            arrays["names"] = numpy.array(["a", {"b": 1}, None], dtype=object)
        path = folder / "model.npz"
        numpy.savez(path, **arrays)
        return path

    return make


def _joblib(compress: tuple[str, int] | int) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        numpy = library("numpy")
        path = folder / "model.joblib"
        value = {"weights": WEIGHTS, "coefficients": numpy.arange(4096.0)}
        library("joblib").dump(value, path, compress=compress)
        return path

    return make


def _safetensors(folder: Path) -> Path:
    numpy = library("numpy")
    path = folder / "model.safetensors"
    tensors = {f"layer{index}.weight": numpy.arange(1024.0) for index in range(4)}
    library("safetensors.numpy").save_file(tensors, path)
    return path


def hdf5(folder: Path) -> Path:
    """Write eight data sets of numbers."""
    path = folder / "model.h5"
    with library("h5py").File(path, "w") as file:
        for index in range(8):
            file[f"layer{index}"] = library("numpy").arange(1024.0)
    return path


_LOAD_HDF5 = """\
import sys

import h5py

with h5py.File(sys.argv[1], "r") as file:
    model = {name: file[name][:] for name in file}
"""


def _array(
    name: str, shows: str, make: Callable[[Path], Path], loader: str, *needs: str
) -> Behaviour:
    return Behaviour(name, False, shows, loader, make, needs=("numpy", *needs))


_LOAD_JOBLIB = _load("joblib", "load(sys.argv[1])")

ARRAYS: tuple[Behaviour, ...] = (
    _array("npy", "an array: a header and one read", _npy, _load("numpy", "load(sys.argv[1])")),
    _array("npz", "a zip of arrays", npz(objects=False), _load_arrays("")),
    _array(
        "npz_objects",
        "a zip of arrays, one of them a pickle of plain objects",
        npz(objects=True),
        _load_arrays(", allow_pickle=True"),
    ),
    _array("joblib_plain", "joblib's pure-Python unpickler", _joblib(0), _LOAD_JOBLIB, "joblib"),
    _array("joblib_zlib", "the same, decompressed", _joblib(("zlib", 3)), _LOAD_JOBLIB, "joblib"),
    _array(
        "joblib_lzma",
        "the same; the decompressor is a shared object opened on the way",
        _joblib(("lzma", 3)),
        _LOAD_JOBLIB,
        "joblib",
    ),
    _array(
        "joblib_mmap",
        "the file mapped a second time for its array",
        _joblib(0),
        _load("joblib", 'load(sys.argv[1], mmap_mode="r")'),
        "joblib",
    ),
    _array(
        "safetensors",
        "a header and an mmap: next to nothing",
        _safetensors,
        _load("safetensors.numpy", "load_file(sys.argv[1])"),
        "safetensors",
    ),
    _array("hdf5", "reads by libhdf5, positioned", hdf5, _LOAD_HDF5, "h5py"),
)
