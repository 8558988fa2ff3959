"""Arrays: numpy, joblib, safetensors, HDF5, cloudpickle; each imported by its first load."""

from __future__ import annotations

import importlib
import pickle
import statistics
import tempfile
from pathlib import Path
from random import Random
from typing import Any, Callable, Dict

from benchmarks.baseline.programs import pickles
from benchmarks.baseline.programs.crowds import busy, forked
from benchmarks.baseline.programs.kind import Kind, Load, Make, plain, word

__all__ = ["KINDS"]

_OPEN: Dict[str, Any] = {}


# ---- what is saved ----------------------------------------------------------------------------


def _arrays(rng: Random, most: int = 20000) -> Dict[str, Any]:
    import numpy

    kinds = ("f4", "f8", "i8", "u1", "f2", "c8")
    return {
        word(rng, 2) + ".weight": numpy.arange(rng.randint(1, most)).astype(rng.choice(kinds))
        for _ in range(rng.randint(1, 12))
    }


def _objects(rng: Random) -> Any:
    import numpy

    return numpy.array([word(rng), {"a": rng.random()}, None, pickles.types_of(rng)], dtype=object)


def _mixed(rng: Random) -> Any:
    import numpy

    return {
        "arrays": _arrays(rng),
        "scalar": numpy.float64(rng.random()),
        "dtype": numpy.dtype([("x", "f4"), ("name", "U8")]),
        "generator": numpy.random.default_rng(rng.randrange(99)),
        "state": numpy.random.RandomState(rng.randrange(99)),
        "masked": numpy.ma.masked_less(numpy.arange(5), 2),
        "records": numpy.zeros(3, [("x", "f4"), ("name", "U8")]),
        "fortran": numpy.asfortranarray(numpy.ones((4, 3))),
        "extra": pickles.types_of(rng),
    }


def _saved(suffix: str, save: Callable[[Path, Random], Any]) -> Make:
    def make(folder: Path, rng: Random) -> Path:
        path = folder / (word(rng) + suffix)
        save(path, rng)
        return path

    return make


def _npy(path: Path, rng: Random) -> None:
    import numpy

    numpy.save(path, next(iter(_arrays(rng, 10 ** rng.randint(1, 6)).values())))


def _npy_objects(path: Path, rng: Random) -> None:
    import numpy

    numpy.save(path, _objects(rng), allow_pickle=True)


def _npz(compressed: bool = False, objects: bool = False) -> Callable[[Path, Random], Any]:
    def save(path: Path, rng: Random) -> None:
        import numpy

        arrays = {**_arrays(rng), **({"names": _objects(rng)} if objects else {})}
        (numpy.savez_compressed if compressed else numpy.savez)(path, **arrays)

    return save


def _joblib(compress: Any) -> Callable[[Path, Random], Any]:
    def save(path: Path, rng: Random) -> None:
        import joblib

        joblib.dump(_mixed(rng), path, compress=compress)

    return save


def _safetensors(path: Path, rng: Random) -> None:
    import safetensors.numpy

    known = ("f4", "f8", "i8", "u1", "f2")
    arrays = {name: array for name, array in _arrays(rng).items() if array.dtype.str[1:] in known}
    safetensors.numpy.save_file(arrays or {"w": _arrays(rng, 9).popitem()[1].real}, path)


def _hdf5(most: int, **options: Any) -> Callable[[Path, Random], Any]:
    def save(path: Path, rng: Random) -> None:
        import h5py

        with h5py.File(path, "w") as file:
            file.attrs["model_config"] = word(rng) * 50
            for index in range(rng.randint(2, most)):
                group = file.require_group("layer%d" % (index % 7))
                name, array = _arrays(rng, 3000).popitem()
                group.create_dataset("%s%d" % (name, index), data=array, **options)

    return save


def _by_value(path: Path, rng: Random) -> None:
    cloudpickle = importlib.import_module("cloudpickle")
    rate = rng.random()
    value = {"scale": lambda x: x * rate, "mean": statistics.mean, "state": plain(rng)}
    path.write_bytes(cloudpickle.dumps(value))


def _out_of_band(folder: Path, rng: Random) -> Path:
    path = folder / (word(rng) + ".pkl")
    with open(path, "wb") as file:
        pickle.dump(_mixed(rng), file, 5)
    return path


# ---- ways to read -----------------------------------------------------------------------------


def _numpy(**options: Any) -> Load:
    def load(path: Path) -> None:
        import numpy

        loaded = numpy.load(path, **options)
        if path.suffix == ".npz":
            with loaded as file:
                assert [file[name] for name in file.files]
        else:
            loaded.ravel()[-1:].tolist()

    return load


def _npz_kept(path: Path) -> None:
    import numpy

    _OPEN["npz"] = numpy.load(path)
    _OPEN["npz"][_OPEN["npz"].files[0]]


def _load_joblib(**options: Any) -> Load:
    def load(path: Path) -> None:
        import joblib

        joblib.load(path, **options)

    return load


def _joblib_file(path: Path) -> None:
    import joblib

    with open(path, "rb") as file:
        joblib.load(file)


def _parallel(path: Path) -> int:
    """Loads in loky's workers, which are executed, not forked."""
    import joblib
    from joblib.externals.loky import get_reusable_executor

    done = joblib.Parallel(n_jobs=2)(joblib.delayed(joblib.load)(str(path)) for _ in range(4))
    get_reusable_executor().shutdown(wait=True)
    return len(done)


def _memory(path: Path) -> None:
    """A cached result of joblib.Memory: stored by the first call, loaded by the second."""
    import joblib

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        cached = joblib.Memory(folder, verbose=0).cache(statistics.mean)
        assert cached(list(path.read_bytes())) == cached(list(path.read_bytes()))


def _safe(path: Path) -> None:
    import safetensors.numpy

    safetensors.numpy.load_file(path)


def _safe_open(path: Path) -> None:
    import safetensors

    with safetensors.safe_open(path, framework="numpy") as file:
        for name in file.keys():
            file.get_slice(name)[:1]
            file.get_tensor(name)


def _read_hdf5(path: Path) -> None:
    import h5py

    with h5py.File(path, "r") as file:
        file.visititems(lambda _, node: node[()] if isinstance(node, h5py.Dataset) else None)
        dict(file.attrs)


def _hdf5_kept(path: Path) -> None:
    import h5py

    _OPEN["hdf5"] = h5py.File(path, "r")
    _OPEN["hdf5"].visit(str)


def _legacy_keras(path: Path) -> None:
    """Opened twice: for the configuration, then for the weights."""
    _hdf5_kept(path)
    _OPEN.pop("hdf5").close()
    _read_hdf5(path)


_COMPRESSED = {"zlib": "", "gzip": "", "bz2": "", "lzma": "", "xz": "", "lz4": "lz4"}

KINDS = (
    Kind("npy", _saved(".npy", _npy), _numpy()),
    Kind("npy_memmap", _saved(".npy", _npy), _numpy(mmap_mode="r")),
    Kind("npy_objects", _saved(".npy", _npy_objects), _numpy(allow_pickle=True)),
    Kind("npy_refused", _saved(".npy", _npy_objects), pickles.failing(_numpy(), ValueError)),
    Kind("npz", _saved(".npz", _npz()), _numpy()),
    Kind("npz_compressed", _saved(".npz", _npz(compressed=True)), _numpy()),
    Kind("npz_objects", _saved(".npz", _npz(objects=True)), _numpy(allow_pickle=True)),
    Kind("npz_kept_open", _saved(".npz", _npz()), _npz_kept),
    Kind("npz_busy", _saved(".npz", _npz()), busy(_numpy(), 4), 3, 6),
    Kind("numpy_pickle", pickles.pickled(_mixed), pickles.load, 15, 20),
    Kind("numpy_pickle_protocol_2", pickles.pickled(_mixed, 2), pickles.load, 10, 16),
    Kind("numpy_pickle_5", _out_of_band, pickles.load),
    Kind("joblib_plain", _saved(".joblib", _joblib(0)), _load_joblib(), 12, 20),
    Kind("joblib_pkl", _saved(".pkl", _joblib(0)), _load_joblib()),
    *(
        Kind("joblib_" + name, _saved(".joblib", _joblib((name, 3))), _load_joblib(), needs=needs)
        for name, needs in _COMPRESSED.items()
    ),
    Kind("joblib_mmap", _saved(".joblib", _joblib(0)), _load_joblib(mmap_mode="r")),
    Kind("joblib_file_object", _saved(".joblib", _joblib(0)), _joblib_file),
    Kind("joblib_parallel", _saved(".joblib", _joblib(0)), _parallel, 4, 4),
    Kind("joblib_memory", pickles.pickled(), _memory, 6, 20),
    Kind("joblib_forked", _saved(".joblib", _joblib(0)), forked(_load_joblib()), 5, 20),
    Kind("joblib_busy", _saved(".joblib", _joblib(0)), busy(_load_joblib(), 4), 3, 6),
    Kind("safetensors", _saved(".safetensors", _safetensors), _safe),
    Kind("safetensors_open", _saved(".safetensors", _safetensors), _safe_open),
    Kind("hdf5", _saved(".h5", _hdf5(8)), _read_hdf5),
    Kind("hdf5_many", _saved(".hdf5", _hdf5(120)), _read_hdf5),
    Kind("hdf5_compressed", _saved(".h5", _hdf5(20, compression="gzip")), _read_hdf5),
    Kind("hdf5_kept_open", _saved(".h5", _hdf5(8)), _hdf5_kept),
    Kind("hdf5_twice", _saved(".keras", _hdf5(8)), _legacy_keras),
    Kind("hdf5_busy", _saved(".h5", _hdf5(8)), busy(_read_hdf5, 4), 3, 6),
    Kind("cloudpickle", _saved(".pkl", _by_value), pickles.load, 8, 20, needs="cloudpickle"),
)
