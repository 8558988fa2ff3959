"""Benign loads of torch checkpoints, whole and in shards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from .behaviour import Behaviour
from .libraries import library

__all__ = ["TORCH", "torch_state"]


def _load_torch(options: str) -> str:
    return f"import sys\n\nimport torch\n\nmodel = torch.load(sys.argv[1]{options})\n"


def _tensors(count: int, size: int) -> dict[str, Any]:
    torch = library("torch")
    return {f"layer{index}.weight": torch.arange(float(size)) + index for index in range(count)}


def torch_state(count: int, size: int, zipped: bool = True) -> Callable[[Path], Path]:
    """A maker of a checkpoint of `count` tensors of `size` numbers each."""

    def make(folder: Path) -> Path:
        path = folder / "model.pt"
        state = _tensors(count, size)
        library("torch").save(state, path, _use_new_zipfile_serialization=zipped)
        return path

    return make


def _torch_module(folder: Path) -> Path:
    torch = library("torch")
    net = torch.nn.Sequential(torch.nn.Linear(16, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    path = folder / "model.pth"
    torch.save(net, path)
    return path


def _torch_shards(folder: Path) -> Path:
    shards = folder / "shards"
    shards.mkdir()
    for index in range(6):
        library("torch").save(_tensors(8, 1024), shards / f"model-{index}-of-6.pt")
    return shards


_LOAD_SHARDS = """\
import pathlib
import sys

import torch

state = {}
for shard in sorted(pathlib.Path(sys.argv[1]).glob("*.pt")):
    state.update(torch.load(shard))
"""


def _torch(
    name: str,
    shows: str,
    make: Callable[[Path], Path],
    options: str = "",
) -> Behaviour:
    return Behaviour(name, False, shows, _load_torch(options), make, needs=("torch",))


TORCH: tuple[Behaviour, ...] = (
    _torch(
        "torch_zip_state_dict",
        "a small zip checkpoint read through torch's restricted unpickler",
        torch_state(8, 256),
        ", weights_only=True",
    ),
    _torch(
        "torch_zip_unrestricted",
        "the same checkpoint read through the C unpickler",
        torch_state(8, 256),
        ", weights_only=False",
    ),
    _torch(
        "torch_legacy_state_dict",
        "many small reads and seeks: the format before 1.6",
        torch_state(8, 256, zipped=False),
    ),
    _torch(
        "torch_mmap",
        "a file-backed mmap instead of reads",
        torch_state(8, 65536),
        ", mmap=True",
    ),
    _torch(
        "torch_full_module",
        "a pickled torch.nn.Sequential: torch's own classes as globals",
        _torch_module,
        ", weights_only=False",
    ),
    _torch("torch_many_tensors", "500 small tensors: many reads", torch_state(500, 16)),
    _torch("torch_large_tensor", "64 MB in few, huge reads", torch_state(1, 16 << 20)),
    Behaviour(
        name="torch_shards",
        malicious=False,
        shows="six checkpoints one after the other",
        loader=_LOAD_SHARDS,
        make=_torch_shards,
        needs=("torch",),
    ),
)
