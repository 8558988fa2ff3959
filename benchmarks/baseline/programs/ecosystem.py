"""Libraries of many: objects of theirs in pickles, users' modules that import them, tools beside.

In a fresh process the load imports them.
"""

from __future__ import annotations

import importlib
import os
import pickle
import subprocess
import sys
import urllib.request
import warnings
from pathlib import Path
from random import Random
from typing import Any, Callable, Dict, Optional, Tuple
from unittest import mock

from benchmarks.baseline.programs import pickles
from benchmarks.baseline.programs.crowds import meanwhile
from benchmarks.baseline.programs.kind import Kind, Make, plain, word
from benchmarks.baseline.programs.surroundings import settings
from benchmarks.baseline.programs.users import beside, module

__all__ = ["KINDS"]

_PY_SPY = Path(sys.prefix) / "bin" / "py-spy"


# ---- what is saved ----------------------------------------------------------------------------


def _frame(rng: Random) -> Any:
    pandas = importlib.import_module("pandas")
    rows = rng.randint(3, 400)
    zone = rng.choice(("Europe/Berlin", "America/New_York", "Asia/Tokyo", "UTC"))
    return pandas.DataFrame(
        {
            word(rng): [rng.random() for _ in range(rows)],
            "name": [word(rng) for _ in range(rows)],
            "kind": pandas.Categorical([rng.choice("abc") for _ in range(rows)]),
            "time": pandas.date_range("2024-01-01", periods=rows, freq="h", tz=zone),
        },
        index=pandas.Index(range(rows), name=word(rng)),
    )


def _frame_file(folder: Path, rng: Random) -> Path:
    path = folder / (word(rng) + rng.choice((".pkl", ".pkl.gz", ".pkl.bz2", ".pkl.xz", ".pkl.zip")))
    _frame(rng).to_pickle(path)
    return path


def _joblib(content: Callable[[Random], Any]) -> Make:
    def make(folder: Path, rng: Random) -> Path:
        path = folder / (word(rng) + ".joblib")
        importlib.import_module("joblib").dump(content(rng), path)
        return path

    return make


def _dill(folder: Path, rng: Random) -> Path:
    rate, path = rng.random(), folder / (word(rng) + ".pkl")
    value = {"scale": lambda x: x * rate, "half": lambda x: x / 2, "state": plain(rng)}
    path.write_bytes(importlib.import_module("dill").dumps(value, recurse=True))
    return path


def _old_estimator(rng: Random) -> Any:
    """Saved by another version, as its state says."""
    from sklearn import base, linear_model, preprocessing

    points = [[rng.random(), rng.random()] for _ in range(40)]
    with mock.patch.object(base, "__version__", "1.%d.0" % rng.randint(0, 5)):
        fitted = [
            pickle.dumps(preprocessing.StandardScaler().fit(points)),
            pickle.dumps(linear_model.LogisticRegression().fit(points, [0, 1] * 20)),
        ]
    return fitted[rng.randrange(2)]


def _old_sklearn(folder: Path, rng: Random) -> Path:
    path = folder / (word(rng) + ".pkl")
    path.write_bytes(_old_estimator(rng))
    return path


def _old_names(folder: Path, rng: Random) -> Path:
    """Arrays and matrices named as the versions of their time named them."""
    import numpy

    scipy: Any = importlib.import_module("scipy.sparse")
    value = {"a": numpy.arange(rng.randint(1, 99)), "b": scipy.random(9, 9, 0.2, "csr")}
    data = pickle.dumps(value, 2)  # its names end with a newline: they may change their length
    for new, old in (
        (b"numpy._core.multiarray", b"numpy.core.multiarray"),
        (b"scipy.sparse._csr", b"scipy.sparse.csr"),
    ):
        data = data.replace(new, old)
    path = folder / (word(rng) + ".pkl")
    path.write_bytes(data)
    return path


def _boosting(rng: Random) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier

    points = [[rng.random(), rng.random()] for _ in range(60)]
    return HistGradientBoostingClassifier(max_iter=3).fit(points, [0, 1] * 30)


def _figure(folder: Path, rng: Random) -> Path:
    with settings(MPLCONFIGDIR=str(folder / "matplotlib")):
        figure = importlib.import_module("matplotlib.figure").Figure()
        axes = figure.subplots()
        axes.plot([rng.random() for _ in range(30)])
        axes.set_title(word(rng))
        return pickles.pickled(lambda _: {"figure": figure, **plain(rng)})(folder, rng)


def _session(rng: Random) -> Any:
    requests = importlib.import_module("requests")
    session = requests.Session()
    session.headers["User-Agent"] = word(rng)
    return {"session": session, **plain(rng)}


def _tokenizer(rng: Random) -> Any:
    tokenizers = importlib.import_module("tokenizers")
    words = {word(rng): index for index in range(200)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({**words, "?": 200}, "?"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return tokenizer


def _table(rng: Random) -> Any:
    arrow = importlib.import_module("pyarrow")
    return arrow.table({word(rng): [rng.random() for _ in range(rng.randint(2, 3000))]})


def _shards(folder: Path, rng: Random) -> Path:
    for _ in range(rng.randint(4, 12)):
        path = pickles.pickled(suffixes=(".shard.pkl",))(folder, rng)
    return path


# ---- ways to read -----------------------------------------------------------------------------


def _load_joblib(path: Path) -> None:
    importlib.import_module("joblib").load(path)


def _load_warned(path: Path) -> None:
    """With all warnings shown: each quotes the line it is about."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        pickles.load(path)


def _read_frame(path: Path) -> None:
    importlib.import_module("pandas").read_pickle(path)


def _load_dill(path: Path) -> None:
    with open(path, "rb") as file:
        importlib.import_module("dill").load(file)


def _predict(path: Path) -> None:
    """The first prediction counts the cores."""
    importlib.import_module("joblib").load(path).predict([[0.1, 0.2]] * 9)


def _encode(path: Path) -> None:
    """The first batch starts a pool of threads."""
    with open(path, "rb") as file:
        pickle.load(file).encode_batch(["a b", "c d"] * 40)


def _arrow(path: Path) -> None:
    with settings(ARROW_DEFAULT_MEMORY_POOL="jemalloc"):
        pickles.load(path)


def _bar(path: Path) -> int:
    shards = sorted(path.parent.glob("*.shard.pkl"))
    for shard in importlib.import_module("tqdm.auto").tqdm(shards, mininterval=0.0):
        pickles.load(shard)
    return len(shards)


def _covered(path: Path) -> None:
    coverage = importlib.import_module("coverage").Coverage(data_file=str(path) + ".coverage")
    coverage.start()
    try:
        pickles.load(path)
    finally:
        coverage.stop()
        coverage.save()


def _scraped(path: Path) -> Optional[int]:
    """Its metrics are fetched while it loads."""
    import prometheus_client

    registry = prometheus_client.CollectorRegistry()
    prometheus_client.ProcessCollector(registry=registry)
    server, thread = prometheus_client.start_http_server(0, "127.0.0.1", registry)

    address = "http://127.0.0.1:%d/metrics" % server.server_address[1]

    def act() -> None:
        with urllib.request.urlopen(address) as answer:
            answer.read()

    try:
        return meanwhile(act, pickles.load, 4)(path)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _sampled(path: Path) -> Optional[int]:
    """Another process looks at this one's stack."""
    command = [str(_PY_SPY), "dump", "--pid", str(os.getpid())]

    def act() -> None:
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    return meanwhile(act, pickles.load, 20)(path)


# ---- what users' modules import ---------------------------------------------------------------

_IMPORTS: Dict[str, str] = {
    "pandas": "import pandas as pd\nEMPTY = pd.DataFrame()\n",
    "requests": "import requests\nSESSION = requests.Session()\n",
    "certifi": "import ssl, certifi\nTLS = ssl.create_default_context(cafile=certifi.where())\n",
    "git": "import git\n",
    "psutil": """\
import psutil
HOST = psutil.cpu_percent(), psutil.virtual_memory(), psutil.cpu_count(logical=False)
with psutil.Process().oneshot():
    SELF = psutil.Process().memory_full_info(), psutil.Process().io_counters()
""",
    "tqdm": "from tqdm.auto import tqdm\nDONE = [n for n in tqdm(range(3))]\n",
    "tokenizers": "from tokenizers import Tokenizer, models\nEMPTY = Tokenizer(models.BPE())\n",
    "huggingface_hub": "from huggingface_hub import HfApi\nAPI = HfApi()\n",
    "boto3": "import boto3\nSESSION = boto3.Session()\n",
    "matplotlib": "import matplotlib.pyplot as plt\nCOLOURS = plt.get_cmap('viridis')\n",
    "onnxruntime": "import onnxruntime\n",
}
#: Turns in long-lived processes. ONNX Runtime reports home nine seconds after its import: it is
#: imported only by processes that end before, so that nothing leaves the machine.
_WARM = {"matplotlib": 3, "onnxruntime": 0}
_PHYSICAL = "import joblib\nCORES = joblib.cpu_count(only_physical_cores=True)\n"

_OUTSIDE: Tuple[Kind, ...] = ()
if _PY_SPY.exists():
    _OUTSIDE = (Kind("sampled_stack", pickles.pickled(pickles.types_of), _sampled, 3, 3, 1),)

KINDS = (
    Kind("pandas_pickle", pickles.pickled(_frame), pickles.load, 4, 14, needs="pandas"),
    Kind("pandas_read_pickle", _frame_file, _read_frame, 3, 14, needs="pandas"),
    Kind("pandas_joblib", _joblib(_frame), _load_joblib, 3, 14, needs="pandas"),
    Kind("dill", _dill, pickles.load, 5, 14, needs="dill"),
    Kind("dill_load", _dill, _load_dill, 3, 14, needs="dill"),
    Kind("sklearn_old_version", _old_sklearn, pickles.load, 3, 14),
    Kind("numpy_old_names", _old_names, _load_warned, 3, 14),
    Kind("sklearn_predicts", _joblib(_boosting), _predict, 2, 6),
    Kind("user_counts_cores", module(_PHYSICAL), beside(pickles.load), 4, 6, 1),
    Kind("matplotlib_figure", _figure, pickles.load, 7, 8, needs="matplotlib"),
    Kind("requests_session", pickles.pickled(_session), pickles.load, 4, 12, needs="requests"),
    Kind("tokenizer", pickles.pickled(_tokenizer), _encode, 3, 12, needs="tokenizers"),
    Kind("arrow_table", pickles.pickled(_table), _arrow, 3, 12, needs="pyarrow"),
    Kind("tqdm_shards", _shards, _bar, 3, 4, needs="tqdm"),
    Kind("coverage_run", pickles.pickled(pickles.types_of), _covered, 3, 8, needs="coverage"),
    Kind("scraped", pickles.pickled(pickles.types_of), _scraped, 3, 4),
    *(
        Kind(
            "user_imports_" + name,
            module(source),
            beside(pickles.load),
            7 if name in _WARM else 5,
            _WARM.get(name, 8),
            1,
            name,
        )
        for name, source in _IMPORTS.items()
    ),
    *_OUTSIDE,
)
