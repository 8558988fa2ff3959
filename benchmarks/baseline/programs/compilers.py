"""Code that is compiled when a model is loaded: numba, torch's compiler."""

from __future__ import annotations

import importlib
import pickle
import shutil
from pathlib import Path
from random import Random
from typing import Any, Dict, Tuple

from benchmarks.baseline.programs import pickles
from benchmarks.baseline.programs.kind import Kind, plain, word
from benchmarks.baseline.programs.users import beside, module

__all__ = ["KINDS"]

_JIT = """\
import math
import numba


@numba.njit("f8(f8[:])"{options})
def norm(values):
    total = 0.0
    for value in values:
        total += value * value
    return math.sqrt(total)
"""

def _function(folder: Path, rng: Random) -> Path:
    """A function compiled already: who unpickles it compiles it again."""
    numba = importlib.import_module("numba")
    names: Dict[str, Any] = {}
    exec("def scale(x):\n    return x * %r\n" % rng.random(), names)
    function = numba.njit("f8(f8)")(names["scale"])
    path = folder / (word(rng) + ".pkl")
    path.write_bytes(pickle.dumps({"scale": function, **plain(rng)}))
    return path


def _shape(rng: Random) -> Tuple[int, int]:
    return rng.randint(2, 60), rng.randint(2, 60)


def _weights(folder: Path, rng: Random) -> Path:
    import torch

    path = folder / (word(rng) + ".pt")
    torch.save(torch.nn.Linear(*_shape(rng)).state_dict(), path)
    return path


def _compiled(path: Path) -> None:
    import torch

    state = torch.load(path)
    outputs, inputs = state["weight"].shape
    net = torch.nn.Sequential(torch.nn.Linear(inputs, outputs), torch.nn.GELU())
    net[0].load_state_dict(state)
    compiled: Any = torch.compile(net)
    compiled(torch.ones(2, inputs))


_BUILT: Tuple[Kind, ...] = ()
if shutil.which("g++"):
    _BUILT = (Kind("torch_compiled", _weights, _compiled, 2, 0, 1),)

KINDS = (
    Kind("numba_function", _function, pickles.load, 5, 8, 2, "numba"),
    Kind(
        "user_imports_numba",
        module(_JIT.format(options="")),
        beside(pickles.load),
        6,
        8,
        1,
        "numba",
    ),
    Kind(
        "user_caches_numba",
        module(_JIT.format(options=", cache=True")),
        beside(pickles.load),
        6,
        8,
        1,
        "numba",
    ),
    *_BUILT,
)
