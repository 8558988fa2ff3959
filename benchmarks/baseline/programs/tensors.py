"""torch: every format and way to read it, programs around it, and torch imported by a load."""

from __future__ import annotations

import array
import collections
import concurrent.futures
import importlib
import inspect
import io
import json
import pickle
import socket
import struct
import tarfile
from pathlib import Path
from random import Random
from typing import Any, Callable, Dict, NamedTuple

from benchmarks.baseline.programs import pickles
from benchmarks.baseline.programs.crowds import busy, forked
from benchmarks.baseline.programs.kind import Kind, Load, Make, plain, word
from benchmarks.baseline.programs.surroundings import settings
from benchmarks.baseline.programs.users import beside, module

__all__ = ["KINDS"]


# ---- what is saved ----------------------------------------------------------------------------


class _Key(NamedTuple):
    number: int


class _Named(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        return "%d" % obj.number if isinstance(obj, _Key) else None


def _state(count: int = 24, most: int = 4000) -> Callable[[Random], Any]:
    def make(rng: Random) -> Dict[str, Any]:
        import torch

        kinds = (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool)
        return {
            word(rng, 2) + ".weight": torch.ones(rng.randint(1, most)).to(rng.choice(kinds))
            for _ in range(rng.randint(1, count))
        }

    return make


def _large(rng: Random) -> Any:
    import torch

    return {"weight": torch.zeros(rng.randrange(25_000_000, 75_000_000))}


def _net() -> Any:
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)
    )


def _module(rng: Random) -> Any:
    from torch import nn

    layer = nn.TransformerEncoderLayer(8, 2, 16)
    choices = (_net(), nn.LSTM(4, rng.randint(1, 9)), layer, nn.Embedding(rng.randint(1, 99), 4))
    return rng.choice(choices)


def _checkpoint(rng: Random) -> Any:
    import torch

    net = _net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=rng.random())
    net(torch.ones(2, 1, 4, 4)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 5)
    return {
        "model": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "epoch": rng.randrange(99),
        "random": torch.get_rng_state(),
    }


def _nested(rng: Random) -> Any:
    import numpy
    import torch

    return {
        **_checkpoint(rng),
        "arguments": pickles.types_of(rng),
        "numpy": numpy.random.get_state(),
        "metrics": numpy.arange(rng.randint(1, 99)),
        "best": numpy.float64(rng.random()),
        "parameter": torch.nn.Parameter(torch.ones(3)),
        "sparse": torch.eye(3).to_sparse(),
        "device": torch.device("cpu"),
        "size": torch.Size([1, 2]),
    }


def _saved(make: Callable[[Random], Any], suffix: str = ".pt", **options: Any) -> Make:
    def save(folder: Path, rng: Random) -> Path:
        import torch

        path = folder / (word(rng) + rng.choice((suffix, ".pth", ".bin", ".ckpt")))
        torch.save(make(rng), path, **options)
        return path

    return save


def _shards(folder: Path, rng: Random) -> Path:
    import torch

    shards, index = rng.randint(10, 40), {}
    for number in range(shards):
        name = "pytorch_model-%05d-of-%05d.bin" % (number + 1, shards)
        state = _state(6, 900)(rng)
        torch.save(state, folder / name)
        index.update(dict.fromkeys(state, name))
    path = folder / "pytorch_model.bin.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return path


def _safe_shards(folder: Path, rng: Random) -> Path:
    import safetensors.torch

    for number in range(rng.randint(2, 8)):
        name = "model-%05d.safetensors" % number
        safetensors.torch.save_file(_state()(rng), folder / name, {"format": "pt"})
    return folder / "model-00000.safetensors"


def _script(folder: Path, rng: Random) -> Path:
    import torch

    path = folder / (word(rng) + ".pt")
    jit: Any = torch.jit  # untyped
    jit.save(jit.trace(_net().eval(), torch.ones(1, 1, 4, 4)), path)
    return path


def _tar(folder: Path, rng: Random) -> Path:
    """The format before torch 0.1.10: a tape of storages, tensors, and the pickle naming them."""
    import torch

    path, count = folder / (word(rng) + ".pth.tar"), rng.randint(1, 12)
    storages, tensors = io.BytesIO(pickle.dumps(count, 2)), io.BytesIO(pickle.dumps(count, 2))
    storages.seek(0, io.SEEK_END)
    tensors.seek(0, io.SEEK_END)
    for key in range(count):
        size = rng.randint(1, 900)
        data = array.array("f", [rng.random() for _ in range(size)])
        pickle.dump((key, "cpu", torch.FloatStorage), storages, 2)
        storages.write(struct.pack("<q", size) + data.tobytes())
        pickle.dump((key, key, torch.FloatTensor), tensors, 2)
        # Dimensions (and four bytes of nothing), sizes, strides, offset.
        tensors.write(struct.pack("<iiqqq", 1, 0, size, 1, 0))
    pickle.dump([], storages, 2)  # views of other storages
    names = io.BytesIO()
    pickler = _Named(names, 2)
    pickler.dump(collections.OrderedDict((word(rng), _Key(key)) for key in range(count)))
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tape:
        for name, part in (("storages", storages), ("tensors", tensors), ("pickle", names)):
            entry = tarfile.TarInfo(name)
            entry.size = len(part.getvalue())
            tape.addfile(entry, io.BytesIO(part.getvalue()))
    return path


def _torn(folder: Path, rng: Random) -> Path:
    path = _saved(_state())(folder, rng)
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(100, len(data) - 30)])
    return path


def _joblib(folder: Path, rng: Random) -> Path:
    import joblib

    path = folder / (word(rng) + ".joblib")
    joblib.dump({"state": _state()(rng), **plain(rng)}, path)
    return path


# ---- ways to read -----------------------------------------------------------------------------


def _load(**options: Any) -> Load:
    def load(path: Path) -> None:
        import torch

        # An older torch is asked for what it knows.
        known = inspect.signature(torch.load).parameters
        torch.load(path, **{name: value for name, value in options.items() if name in known})

    return load


def _file_object(path: Path) -> None:
    import torch

    with open(path, "rb") as file:
        torch.load(file)


def _bytes_io(path: Path) -> None:
    import torch

    torch.load(io.BytesIO(path.read_bytes()))


def _into_net(path: Path) -> None:
    import torch

    net = _net()
    net.load_state_dict(torch.load(path, map_location=torch.device("cpu"))["model"])
    net.eval()(torch.ones(1, 1, 4, 4))


def _load_shards(path: Path) -> int:
    names = sorted(set(json.loads(path.read_text())["weight_map"].values()))
    load = _load(map_location="cpu", mmap=len(names) % 2 == 0)
    for name in names:
        load(path.parent / name)
    return len(names)


def _load_safe(path: Path) -> int:
    import safetensors
    import safetensors.torch

    shards = sorted(path.parent.glob("*.safetensors"))
    for shard in shards[::2]:
        safetensors.torch.load_file(shard)
    for shard in shards[1::2]:
        with safetensors.safe_open(shard, "pt") as file:
            assert [file.get_tensor(name) for name in file.keys()]
    return len(shards)


def _load_script(path: Path) -> None:
    import torch

    jit: Any = torch.jit  # untyped
    jit.load(str(path), map_location="cpu")(torch.ones(1, 1, 4, 4))


def _load_joblib(path: Path) -> None:
    import joblib

    joblib.load(path)


def _threads(path: Path) -> int:
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        return len(list(pool.map(_load(), [path] * 8)))


def _data_loader(path: Path) -> None:
    """Workers made before the load hand over tensors while it happens."""
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    workers = 2 + path.stat().st_size % 3
    samples = TensorDataset(torch.arange(96.0).reshape(24, 4))
    batches = iter(DataLoader(samples, batch_size=2, num_workers=workers))
    next(batches)
    torch.load(path)
    assert len(list(batches)) == 11


def _tensor_queue(path: Path) -> None:
    """Tensors through another process' queues, in shared memory."""
    import torch
    import torch.multiprocessing

    context = torch.multiprocessing.get_context("fork")
    tasks, results = context.Queue(), context.Queue()

    def serve() -> None:
        for tensor in iter(tasks.get, None):
            results.put(tensor * 2)

    process = context.Process(target=serve)
    process.start()
    for turn in range(8):
        tasks.put(torch.full((16,), float(turn)))
        if turn == 4:
            torch.load(path)
        assert results.get()[0] == 2 * turn
    tasks.put(None)
    process.join()


def _predict(path: Path) -> None:
    """The first large product after the load starts the threads of OpenMP."""
    import torch

    torch.load(path)
    square = torch.rand(400, 400)
    (square @ square + square.exp()).sum()


def _group(path: Path) -> None:
    """The first process of a group loads, and sends the weights to the other."""
    import torch
    import torch.multiprocessing

    distributed: Any = importlib.import_module("torch.distributed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = "tcp://127.0.0.1:%d" % probe.getsockname()[1]

    def join(rank: int) -> None:
        distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
        box = [torch.load(path) if rank == 0 else None]
        distributed.broadcast_object_list(box, 0)
        assert box[0]
        distributed.destroy_process_group()

    with settings(GLOO_SOCKET_IFNAME="lo"):
        process = torch.multiprocessing.get_context("fork").Process(target=join, args=(1,))
        process.start()
        join(0)
        process.join()
    if process.exitcode:
        raise ChildProcessError("the other process of the group failed")


_TORN = (RuntimeError, OSError, ValueError, pickle.UnpicklingError, EOFError)
_USER = "import torch\n\n_ZERO = torch.zeros(1)\n"

KINDS = (
    Kind("torch_restricted", _saved(_state()), _load(weights_only=True), 3, 30),
    Kind("torch_unrestricted", _saved(_state()), _load(weights_only=False), 3, 30),
    Kind("torch_legacy", _saved(_state(), _use_new_zipfile_serialization=False), _load(), 3, 30),
    Kind(
        "torch_legacy_unrestricted",
        _saved(_nested, _use_new_zipfile_serialization=False),
        _load(weights_only=False),
        2,
        25,
    ),
    Kind("torch_mmap", _saved(_state(12, 90000)), _load(mmap=True), 2, 25),
    Kind("torch_many_tensors", _saved(_state(600, 20)), _load(), 1, 25),
    Kind("torch_large", _saved(_large), _load(), 2, 23, 6),
    Kind("torch_large_mmap", _saved(_large), _load(mmap=True), 1, 24, 6),
    Kind("torch_module", _saved(_module), _load(weights_only=False), 3, 30),
    Kind("torch_checkpoint", _saved(_checkpoint), _load(map_location="cpu"), 2, 25),
    Kind("torch_into_net", _saved(_checkpoint), _into_net, 2, 25),
    Kind("torch_nested", _saved(_nested), _load(weights_only=False), 3, 30),
    Kind("torch_refused", _saved(_nested), pickles.failing(_load(), pickle.UnpicklingError), 2, 25),
    Kind("torch_torn", _torn, pickles.failing(_load(), *_TORN), 2, 25),
    Kind("torch_file_object", _saved(_state()), _file_object, 2, 25),
    Kind("torch_bytes_io", _saved(_state()), _bytes_io, 2, 25),
    Kind("torch_shards", _shards, _load_shards, 2, 6, 2),
    Kind("torch_script", _script, _load_script, 2, 25),
    Kind("torch_safetensors", _safe_shards, _load_safe, 2, 8),
    Kind("torch_threads", _saved(_state()), _threads, 1, 5),
    Kind("torch_forked", _saved(_state()), forked(_load()), 2, 23),
    Kind("torch_busy", _saved(_state()), busy(_load(), 4), 2, 8),
    Kind("torch_data_loader", _saved(_state()), _data_loader, 3, 22),
    Kind("torch_tensor_queue", _saved(_state()), _tensor_queue, 3, 22),
    Kind("torch_tar", _tar, _load(weights_only=False), 3, 18),
    Kind("torch_predicts", _saved(_state()), _predict, 3, 12),
    Kind("torch_group", _saved(_state()), _group, 3, 6),
    # In a fresh process the unpickler itself imports torch.
    Kind("torch_in_pickle", pickles.pickled(_state()), pickles.load, 10, 18),
    Kind("torch_in_joblib", _joblib, _load_joblib, 7, 18),
    Kind("user_imports_torch", module(_USER), beside(pickles.load), 9, 18, 1),
)
