"""Pickles that call things, and the proofs that they did.

A payload must resolve in a process that cannot import this package: everything here is pickled as
calls of standard-library functions, or written opcode by opcode.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .behaviour import STDOUT
from .loopback import ARRIVALS

__all__ = [
    "LOAD",
    "LOAD_AND_TELL",
    "LOAD_JOBLIB",
    "LOAD_TORCH",
    "WEIGHTS",
    "Call",
    "arrived",
    "exists",
    "gone",
    "holds",
    "model",
    "pickled",
    "said",
    "source",
    "written",
]

WEIGHTS = {f"layer{index}.weight": [step / 8 for step in range(64)] for index in range(4)}

#: The plainest loader.
LOAD = """\
import pickle
import sys

with open(sys.argv[1], "rb") as file:
    model = pickle.load(file)
"""

#: The same, then prints what the payload left in memory: the proof for payloads that must not
#: make a system call more than they are about.
LOAD_AND_TELL = (
    LOAD
    + """\
import os

print(model["notes"], os.environ.get("FIRED"))
"""
)

LOAD_JOBLIB = """\
import sys

import joblib

model = joblib.load(sys.argv[1])
"""

#: torch's, unrestricted; before 1.13 torch knew no other way.
LOAD_TORCH = """\
import inspect
import sys

import torch

known = inspect.signature(torch.load).parameters
model = torch.load(sys.argv[1], **({"weights_only": False} if "weights_only" in known else {}))
"""


class Call:
    """Pickles as a call: the unpickler calls `function` with `arguments`, and keeps the result.

    Arguments may be calls themselves. `function` must be importable by its name, or be an object
    such as `operator.methodcaller` that pickles as a call.
    """

    __slots__ = ("arguments", "function")

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.function = function
        self.arguments = arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        return self.function, self.arguments


def source(text: str) -> Call:
    """Run Python source from within the unpickler, in a namespace of its own."""
    return Call(exec, text, {})


def model(notes: object) -> dict[str, object]:
    """Something like a model, that carries `notes`, which may be a `Call`."""
    return {"weights": WEIGHTS, "notes": notes}


def written(
    name: str, data: bytes, beside: Mapping[str, str] | None = None
) -> Callable[[Path], Path]:
    """A maker of one file, and of text files beside it: name to text."""

    def make(folder: Path) -> Path:
        for other, text in (beside or {}).items():
            (folder / other).write_text(text)
        path = folder / name
        path.write_bytes(data)
        return path

    return make


def pickled(
    value: object,
    name: str = "model.pkl",
    protocol: int = 4,
    beside: Mapping[str, str] | None = None,
) -> Callable[[Path], Path]:
    """A maker of a pickle file of `value`; see `written` for `beside`."""
    return written(name, pickle.dumps(value, protocol), beside)


def exists(name: str) -> Callable[[Path], bool]:
    """Proof: a file of this name is in the folder."""
    return lambda folder: (folder / name).exists()


def gone(name: str) -> Callable[[Path], bool]:
    """Proof: the file of this name, which the maker wrote, is no longer in the folder."""
    return lambda folder: not (folder / name).exists()


def holds(name: str, text: str) -> Callable[[Path], bool]:
    """Proof: a file of this name is in the folder and has the text in it."""
    return lambda folder: (folder / name).exists() and text in (folder / name).read_text()


def said(text: str) -> Callable[[Path], bool]:
    """Proof: the loading program printed the text."""
    return holds(STDOUT, text)


def arrived(text: str) -> Callable[[Path], bool]:
    """Proof: the harness' listener got this, ``tcp TEXT`` or ``udp TEXT``."""
    return holds(ARRIVALS, text)
