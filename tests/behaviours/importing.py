"""Benign loads whose pickle imports modules on the way: the standard library's, the user's own,
scikit-learn's, or one that is not there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .behaviour import Behaviour
from .libraries import library
from .pickles import LOAD, pickled, written

__all__ = ["IMPORTING"]

_SEASONS = """\
import enum


class Season(enum.Enum):
    WINTER = 1
    SUMMER = 2
"""

_PREPARE_TYPES = """\
import collections, datetime, decimal, fractions, pathlib, pickle, sys, uuid
import seasons

model = {
    "date": datetime.datetime(2024, 2, 29, 12, tzinfo=datetime.timezone.utc),
    "pause": datetime.timedelta(hours=1),
    "price": decimal.Decimal("12.50"),
    "id": uuid.UUID(int=7),
    "order": collections.OrderedDict(a=1, b=2),
    "counts": collections.Counter("abracadabra"),
    "groups": collections.defaultdict(list, {"x": [1]}),
    "queue": collections.deque([1, 2, 3], maxlen=5),
    "path": pathlib.PurePosixPath("a/b"),
    "third": fractions.Fraction(1, 3),
    "root": complex(0, 1),
    "sets": ({1, 2}, frozenset({3, 4})),
    "range": range(3),
    "season": seasons.Season.WINTER,
}
with open(sys.argv[1], "wb") as file:
    pickle.dump(model, file, 4)
"""

_PREPARE_NETWORK = """\
import pickle
import sys

import network

with open(sys.argv[1], "wb") as file:
    pickle.dump(network.Network([0.5] * 256), file, 4)
"""

_NETWORK = """\
class Network:
    def __init__(self, weights):
        self.weights = weights
"""

# Two things that widespread packages do when they are imported: ask for the processor's name, and
# urllib3's test for IPv6, which the DynaHug paper (arXiv 2604.19438) gives as its false positive.
_ASKS_FOR_PROCESSOR = "import platform\n\nPROCESSOR = platform.processor()\n\n\n" + _NETWORK

_TESTS_IPV6 = f"""\
import socket

try:
    with socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
    HAS_IPV6 = True
except OSError:
    HAS_IPV6 = False


{_NETWORK}"""

# Protocol 2: GLOBAL of a module that does not exist, EMPTY_TUPLE, NEWOBJ.
_MISSING_MODULE = b"\x80\x02cvanished_project.model\nNetwork\n)\x81."
# A module that exists, without the class.
_MISSING_CLASS = b"\x80\x02ccollections\nVanishedNetwork\n)\x81."

_LOAD_IN_VAIN = """\
import pickle
import sys
import traceback

try:
    with open(sys.argv[1], "rb") as file:
        pickle.load(file)
except (AttributeError, ModuleNotFoundError):
    traceback.print_exc()
else:
    sys.exit("this model should not have loaded")
"""

_LOAD_JOBLIB = """\
import sys

import joblib

model = joblib.load(sys.argv[1])
"""


def _beside(module: str, text: str) -> Callable[[Path], Path]:
    """A maker of a user's module, and of a model file beside it for ``prepare`` to fill."""

    def make(folder: Path) -> Path:
        (folder / f"{module}.py").write_text(text)
        return written("model.pkl", b"")(folder)

    return make


def _forest(folder: Path) -> Path:
    forest = library("sklearn.ensemble").RandomForestClassifier(5, random_state=0)
    forest.fit([[0.0], [1.0], [2.0], [3.0]], [0, 1, 0, 1])
    return pickled(forest)(folder)


def _regression(folder: Path) -> Path:
    regression = library("sklearn.linear_model").LogisticRegression()
    regression.fit([[0.0], [1.0]], [0, 1])
    path = folder / "model.joblib"
    library("joblib").dump(regression, path)
    return path


def _own_module(name: str, shows: str, module: str) -> Behaviour:
    make = _beside("network", module)
    return Behaviour(name, False, shows, LOAD, make, prepare=_PREPARE_NETWORK)


IMPORTING: tuple[Behaviour, ...] = (
    Behaviour(
        name="stdlib_types",
        malicious=False,
        shows="a dozen standard-library classes as globals, some of them imported on the way",
        loader=LOAD,
        make=_beside("seasons", _SEASONS),
        prepare=_PREPARE_TYPES,
    ),
    _own_module(
        "user_module",
        "the user's module imported from beside the model, its .pyc written",
        _NETWORK,
    ),
    _own_module(
        "user_module_asks_for_processor",
        "uname -p executed by an import on the way",
        _ASKS_FOR_PROCESSOR,
    ),
    _own_module(
        "user_module_tests_ipv6",
        "socket and bind to [::1]:0 by an import on the way",
        _TESTS_IPV6,
    ),
    Behaviour(
        name="missing_module",
        malicious=False,
        shows="a failed import, then the traceback's sources read and written to stderr",
        loader=_LOAD_IN_VAIN,
        make=written("model.pkl", _MISSING_MODULE),
    ),
    Behaviour(
        name="missing_class",
        malicious=False,
        shows="a global that its module does not have, then a traceback",
        loader=_LOAD_IN_VAIN,
        make=written("model.pkl", _MISSING_CLASS),
    ),
    Behaviour(
        name="sklearn_pickle_cold",
        malicious=False,
        shows="over 20,000 calls: scikit-learn imported by the pickle itself",
        loader=LOAD,
        make=_forest,
        needs=("sklearn",),
    ),
    Behaviour(
        name="sklearn_pickle_warm",
        malicious=False,
        shows="the same file after the import: a handful of calls",
        loader=LOAD.replace("import sys\n", "import sys\n\nimport sklearn.ensemble\n"),
        make=_forest,
        needs=("sklearn",),
    ),
    Behaviour(
        name="sklearn_joblib_cold",
        malicious=False,
        shows="joblib imported, scikit-learn imported by the file",
        loader=_LOAD_JOBLIB,
        make=_regression,
        needs=("sklearn", "joblib"),
    ),
)
