"""Pickles of classes from the user's own modules, which the load imports.

Names are new each time: that a class is unknown is no evidence.
"""

from __future__ import annotations

import gzip
import importlib
import json
import pickle
import sys
import types
from pathlib import Path
from random import Random
from typing import Any, Callable

from benchmarks.baseline.programs import pickles
from benchmarks.baseline.programs.effects import CLASSES, IMPORTS
from benchmarks.baseline.programs.kind import Kind, Load, Make, plain, user_name, word

__all__ = ["KINDS", "beside", "module", "worker"]

_CLASS = """\
class Layers{base}:
    def __init__(self, weights=()):
        self.weights = weights
"""


def _instance(name: str, source: str, rng: Random) -> Any:
    """An instance of the module's class, made without importing the module."""
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        sys.modules[".".join(parts[:depth])] = types.ModuleType(".".join(parts[:depth]))
    exec(source, sys.modules[name].__dict__)
    made: Any = sys.modules[name]
    return made.Layers([rng.random() for _ in range(rng.randrange(200))])


def module(
    imports: str = "", body: str = "", base: str = "", dump: Callable[..., None] = pickle.dump
) -> Make:
    """A maker of a module or package, and of a pickle of its class beside it."""

    def make(folder: Path, rng: Random) -> Path:
        name, package = user_name(rng), rng.random() < 0.4 or "pkgutil" in imports
        text = _CLASS.format(base=base) + body
        if package:
            (folder / name).mkdir()
            (folder / name / "shapes.py").write_text("SHAPES = {'small': (8, 8)}\n")
            (folder / name / "layers.py").write_text("from .shapes import SHAPES\n\n\n" + text)
            (folder / name / "__init__.py").write_text("%s\nfrom .layers import Layers\n" % imports)
        else:
            (folder / (name + ".py")).write_text("%s\n\n%s" % (imports, text))
        home = folder / name if package else folder
        (home / "settings.json").write_text(json.dumps({"rate": rng.random()}))
        with gzip.open(home / "vocabulary.txt.gz", "wt") as file:
            file.write(" ".join(word(rng) for _ in range(200)))
        path = folder / (word(rng) + rng.choice((".pkl", ".pickle", ".model")))
        known = set(sys.modules)
        try:
            value = _instance(name + ".layers" if package else name, text, rng)
            with open(path, "wb") as out:
                dump({"model": value, **plain(rng)}, out, rng.choice((2, 4)))
        finally:
            for stub in set(sys.modules) - known:
                if stub.split(".")[0] == name:
                    del sys.modules[stub]
        return path

    return make


def beside(attempt: Load) -> Load:
    """Load with the model's folder importable, as it is for a script that lies there."""

    def read(path: Path) -> Any:
        sys.path.insert(0, str(path.parent))
        importlib.invalidate_caches()
        try:
            return attempt(path)
        finally:
            sys.path.remove(str(path.parent))

    return read


def worker(folder: Path, rng: Random) -> Path:
    """A pickle, and the user's module with a function that loads it."""
    text = "import pickle\n\n\ndef work(path):\n    with open(path, 'rb') as file:\n"
    (folder / (user_name(rng) + ".py")).write_text(text + "        return len(pickle.load(file))\n")
    return pickles.pickled()(folder, rng)


def _row(name: str, make: Make, load: Load = pickles.load) -> Kind:
    return Kind(name, make, beside(load), 11, 15, 1)


_RAISES = pickles.failing(pickles.load, ValueError)

KINDS = (
    *(_row("import_" + name, module(source)) for name, source in IMPORTS.items()),
    *(
        _row("class_" + name, module("", body), _RAISES if "raises" in name else pickles.load)
        for name, body in CLASSES.items()
    ),
    _row(
        "import_fails",
        module('raise ImportError("needs a GPU")\n'),
        pickles.failing(pickles.load, ImportError),
    ),
)
