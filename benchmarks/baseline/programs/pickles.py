"""Pickles by the standard library alone: protocols, containers, openers, contents, failures."""

from __future__ import annotations

import argparse
import array
import bz2
import collections
import copyreg
import datetime
import decimal
import fractions
import functools
import gzip
import hashlib
import http
import io
import ipaddress
import itertools
import json
import logging
import lzma
import math
import mmap
import operator
import os
import pathlib
import pickle
import re
import shelve
import statistics
import string
import sys
import tarfile
import time
import traceback
import types
import typing
import uuid
import zipfile
from pathlib import Path
from random import Random
from typing import Any, Callable, Iterable, Sequence, Tuple, Type

from benchmarks.baseline.programs.kind import Kind, Load, Make, plain, weights, word

__all__ = ["KINDS", "failing", "load", "pickled", "types_of"]

_SUFFIXES = (".pkl", ".pickle", ".sav", ".bin", ".ckpt", ".model")
_EXTENSION = 244
_ITEMS = 40


def pickled(
    content: Callable[[Random], Any] = plain,
    protocol: int = 4,
    opener: Callable[..., Any] = open,
    suffixes: Sequence[str] = _SUFFIXES,
) -> Make:
    """A maker of a pickle file."""

    def make(folder: Path, rng: Random) -> Path:
        path = folder / (word(rng) + rng.choice(suffixes))
        with opener(path, "wb") as file:
            pickle.dump(content(rng), file, protocol)
        return path

    return make


def _raw(data: Callable[[Random], bytes]) -> Make:
    def make(folder: Path, rng: Random) -> Path:
        path = folder / (word(rng) + ".pkl")
        path.write_bytes(data(rng))
        return path

    return make


# ---- contents ---------------------------------------------------------------------------------


def _big(rng: Random) -> Any:
    return [rng.random() for _ in range(rng.randrange(200_000, 900_000))]


def _deep(rng: Random) -> Any:
    value: Any = []
    for _ in range(rng.randrange(50, 150)):
        value = [value, rng.random()]
    return value


def types_of(rng: Random) -> Any:
    """Objects of the standard library's classes, as checkpoints carry them."""
    values = [
        datetime.datetime(2024, 2, rng.randint(1, 29), 12, tzinfo=datetime.timezone.utc),
        datetime.timedelta(hours=rng.randrange(99)),
        datetime.date(2023, 1, rng.randint(1, 31)),
        decimal.Decimal(rng.randrange(10**6)) / 100,
        fractions.Fraction(rng.randint(1, 9), 7),
        uuid.UUID(int=rng.getrandbits(128)),
        collections.OrderedDict(weights(rng, 20)),
        collections.Counter(word(rng)),
        collections.defaultdict(list, {word(rng): [1]}),
        collections.deque([rng.random()], maxlen=9),
        pathlib.PurePosixPath("runs") / word(rng),
        pathlib.Path("checkpoints") / word(rng),
        argparse.Namespace(lr=rng.random(), name=word(rng)),
        types.SimpleNamespace(depth=rng.randrange(9)),
        complex(0, rng.random()),
        {1, rng.randrange(99)},
        frozenset({3, 4}),
        range(rng.randrange(9)),
        slice(1, rng.randrange(9)),
        bytearray(word(rng).encode()),
        Random(rng.random()),
        rng.getstate(),
        itertools.count(rng.randrange(9)) if sys.version_info < (3, 12) else 0,
        http.HTTPStatus(rng.choice([200, 404])),
        re.compile(r"\w+", re.IGNORECASE),
        re.MULTILINE,
        operator.attrgetter(word(rng)),
        logging.getLogger(word(rng)),
        array.array("f", [rng.random()]),
        ipaddress.ip_network("10.0.0.0/8"),
        typing.List[int],
        string.Template("$" + word(rng)),
    ]
    return {"weights": weights(rng), "extra": rng.sample(values, rng.randint(4, len(values)))}


def _callables(rng: Random) -> Any:
    return rng.sample(
        [
            math.sqrt,
            json.dumps,
            statistics.mean,
            len,
            dict,
            collections.OrderedDict,
            operator.itemgetter(rng.randrange(9)),
            operator.add,
            functools.partial(int, base=2),
            functools.partial(round, ndigits=rng.randrange(9)),
            os.path.basename,
        ],
        5,
    )


def _exceptions(rng: Random) -> Any:
    return [
        ValueError(word(rng)),
        KeyError(word(rng)),
        OSError(2, "No such file", word(rng)),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
        pickle.PickleError("stale"),
        json.JSONDecodeError("expected value", word(rng), 0),
    ]


# ---- ways to read -----------------------------------------------------------------------------


def load(path: Path) -> None:
    """The plainest load."""
    with open(path, "rb") as file:
        pickle.load(file)


def _opened(opener: Callable[..., Any]) -> Load:
    def read(path: Path) -> None:
        with opener(path, "rb") as file:
            pickle.load(file)

    return read


def _pure_python(path: Path) -> None:
    with open(path, "rb") as file:
        pickle._Unpickler(file).load()


class _Restricted(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] in ("os", "posix", "subprocess", "sys"):
            raise pickle.UnpicklingError("%s.%s is not allowed" % (module, name))
        return super().find_class(module, name)

    def persistent_load(self, pid: Any) -> Any:
        return ("layer", pid)


class _Persistent(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        return "%d" % len(obj) if isinstance(obj, list) else None


def _restricted(path: Path) -> None:
    with open(path, "rb") as file:
        _Restricted(file).load()


def _persistent(folder: Path, rng: Random) -> Path:
    path = folder / (word(rng) + ".pkl")
    with open(path, "wb") as file:
        _Persistent(file).dump(plain(rng))
    return path


def _bytes_closed(path: Path) -> None:
    pickle.loads(path.read_bytes())


def _bytes_open(path: Path) -> None:
    with open(path, "rb") as file:
        pickle.loads(file.read())


def _bytes_io(path: Path) -> None:
    pickle.load(io.BytesIO(path.read_bytes()))


def _descriptor(path: Path) -> None:
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC), "rb", 0) as file:
        pickle.load(file)


def _mapped(path: Path) -> None:
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as pages:
        pickle.loads(pages)


def _sniffed(path: Path) -> None:
    """Sized, hashed and looked at before it is loaded, as hubs and caches do."""
    if path.stat().st_size > 0 and not path.is_symlink():
        with open(path, "rb") as file:
            hashlib.sha256(file.read()).hexdigest()
            file.seek(0)
            assert file.read(2)[:1] == b"\x80"
            file.seek(0)
            pickle.load(file)


def _slow(path: Path) -> None:
    """Pauses around the load: a lock, a progress bar, a slow disk."""
    pause = (path.stat().st_size % 97) / 60
    with open(path, "rb") as file:
        time.sleep(pause)
        pickle.load(file)
        time.sleep(pause / 4)


def _many(folder: Path, rng: Random) -> Path:
    path = folder / (word(rng) + ".pkl")
    with open(path, "wb") as file:
        for _ in range(_ITEMS):
            pickle.dump({"step": rng.random(), "name": word(rng)}, file, 4)
    return path


def _load_many(path: Path) -> None:
    with open(path, "rb") as file:
        for _ in range(_ITEMS):
            pickle.load(file)


def _out_of_band(folder: Path, rng: Random) -> Path:
    path = folder / (word(rng) + ".pkl")
    value = [pickle.PickleBuffer(bytearray(os.urandom(rng.randrange(1, 9000)))) for _ in range(4)]
    buffers: Any = []
    path.write_bytes(pickle.dumps(value, 5, buffer_callback=buffers.append))
    for index, buffer in enumerate(buffers):
        path.with_suffix(".%d.buf" % index).write_bytes(buffer.raw())
    return path


def _load_out_of_band(path: Path) -> None:
    buffers = [found.read_bytes() for found in sorted(path.parent.glob("*.buf"))]
    with open(path, "rb") as file:
        pickle.load(file, buffers=buffers)


def _extended() -> None:
    # A number of the private range for a class, which the loader has to register too.
    if _EXTENSION not in copyreg._inverted_registry:  # type: ignore[attr-defined]
        copyreg.add_extension("collections", "OrderedDict", _EXTENSION)


def _extension(folder: Path, rng: Random) -> Path:
    _extended()
    try:
        return pickled(types_of, 2)(folder, rng)
    finally:
        copyreg.remove_extension("collections", "OrderedDict", _EXTENSION)


def _load_extension(path: Path) -> None:
    _extended()
    try:
        load(path)
    finally:
        copyreg.remove_extension("collections", "OrderedDict", _EXTENSION)


def _shelf(folder: Path, rng: Random) -> Path:
    path = folder / (word(rng) + ".pkl")
    with shelve.open(str(path)) as shelf:
        for _ in range(5):
            shelf[word(rng)] = types_of(rng)
    return path


def _load_shelf(path: Path) -> int:
    with shelve.open(str(path), "r") as shelf:
        return len([shelf[name] for name in shelf])


def _archived(folder: Path, rng: Random) -> Path:
    inner = pickled()(folder, rng)
    if rng.random() < 0.5:
        path = folder / (word(rng) + ".mar")
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(inner, "model.pkl")
    else:
        path = folder / (word(rng) + ".pkl.tar")
        with tarfile.open(path, "w") as tape:
            tape.add(inner, "model.pkl")
    inner.unlink()
    return path


def _load_archived(path: Path) -> None:
    if path.suffix == ".mar":
        with zipfile.ZipFile(path) as archive, archive.open("model.pkl") as file:
            pickle.load(file)
    else:
        with tarfile.open(path) as tape:
            member: Any = tape.extractfile("model.pkl")
            pickle.load(member)


# ---- failures ---------------------------------------------------------------------------------


def failing(attempt: Load, *errors: Type[BaseException]) -> Load:
    """A load that is expected to fail, and is reported as programs report it."""

    def read(path: Path) -> None:
        try:
            attempt(path)
        except errors:
            traceback.print_exc()
        else:
            raise AssertionError("this load should have failed")

    return read


def _truncated(rng: Random) -> bytes:
    data = pickle.dumps(plain(rng), 4)
    return data[: rng.randrange(12, len(data) - 1)]


def _missing_module(rng: Random) -> bytes:
    return b"\x80\x02c%s.model\n%s\n)\x81." % (word(rng).encode(), word(rng).title().encode())


def _missing_class(rng: Random) -> bytes:
    return b"\x80\x02ccollections\n%s\n)\x81." % word(rng).title().encode()


def _no_pickle(rng: Random) -> bytes:
    return b"\xff\xfe" + rng.choice((b"<html>not found</html>", b"", b"version https://lfs"))


_BAD: Tuple[Type[BaseException], ...] = (pickle.UnpicklingError, EOFError, ValueError)
_VALUES: Iterable[int] = range(6)

KINDS = (
    *(Kind("pickle_protocol_%d" % p, pickled(plain, p), load) for p in _VALUES),
    *(Kind("pickle_types_%d" % p, pickled(types_of, p), load) for p in _VALUES),
    Kind("pickle_pure_python", pickled(types_of), _pure_python),
    Kind("pickle_restricted", pickled(types_of), _restricted),
    Kind("pickle_persistent_ids", _persistent, _restricted),
    Kind("pickle_big", pickled(_big), load, 5, 20),
    Kind("pickle_small", pickled(lambda rng: rng.random()), load),
    Kind("pickle_deep", pickled(_deep), load),
    Kind("pickle_bytes_closed", pickled(types_of), _bytes_closed),
    Kind("pickle_bytes_open", pickled(types_of), _bytes_open),
    Kind("pickle_bytes_io", pickled(types_of), _bytes_io),
    Kind("pickle_unbuffered", pickled(types_of), _descriptor),
    Kind("pickle_mapped", pickled(types_of), _mapped),
    Kind("pickle_sniffed", pickled(types_of), _sniffed),
    Kind("pickle_slow", pickled(), _slow, 8, 18),
    Kind("pickle_no_suffix", pickled(types_of, suffixes=("", ".p", ".dat")), load),
    Kind(
        "pickle_gzip", pickled(types_of, 4, gzip.open, (".pkl.gz", ".bin.gz")), _opened(gzip.open)
    ),
    Kind("pickle_bz2", pickled(types_of, 4, bz2.open, (".pkl.bz2",)), _opened(bz2.open)),
    Kind("pickle_lzma", pickled(types_of, 4, lzma.open, (".pkl.xz",)), _opened(lzma.open)),
    Kind("pickle_archived", _archived, _load_archived),
    Kind("pickle_many_in_one", _many, _load_many),
    Kind("pickle_out_of_band", _out_of_band, _load_out_of_band),
    Kind("pickle_extension_codes", _extension, _load_extension),
    Kind("pickle_shelve", _shelf, _load_shelf, 14, 21),
    Kind("pickle_callables", pickled(_callables), load),
    Kind("pickle_exceptions", pickled(_exceptions), load),
    Kind("fails_truncated", _raw(_truncated), failing(load, *_BAD)),
    Kind("fails_no_pickle", _raw(_no_pickle), failing(load, *_BAD)),
    Kind("fails_missing_module", _raw(_missing_module), failing(load, ImportError)),
    Kind("fails_missing_class", _raw(_missing_class), failing(load, AttributeError)),
)
