"""Benign loads in programs of several threads or processes, with queues between them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .behaviour import Behaviour
from .checkpoints import torch_state
from .pickles import WEIGHTS, pickled

__all__ = ["PROGRAMS"]

_WORKER_THREAD = """\
import pickle
import sys
import threading


def load():
    with open(sys.argv[1], "rb") as file:
        pickle.load(file)


thread = threading.Thread(target=load)
thread.start()
thread.join()
"""

_FOUR_THREADS = """\
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor


def load(path):
    with open(path, "rb") as file:
        return pickle.load(file)


with ThreadPoolExecutor(4) as pool:
    models = list(pool.map(load, [sys.argv[1]] * 40))
assert all(model == models[0] for model in models)
"""

_TORCH_THREADS = """\
import sys
from concurrent.futures import ThreadPoolExecutor

import torch

with ThreadPoolExecutor(4) as pool:
    models = list(pool.map(torch.load, [sys.argv[1]] * 12))
"""

_FORKED = """\
import os
import sys

import torch

child = os.fork()
if child == 0:
    status = 1
    try:
        model = torch.load(sys.argv[1])
        status = 0
    finally:
        os._exit(status)
sys.exit(os.waitpid(child, 0)[1] != 0)
"""

_DATA_LOADER = """\
import sys

import torch
from torch.utils.data import DataLoader, TensorDataset

if __name__ == "__main__":
    samples = TensorDataset(torch.arange(64.0).reshape(16, 4))
    batches = iter(DataLoader(samples, batch_size=2, num_workers=2))
    next(batches)
    model = torch.load(sys.argv[1])
    assert len(list(batches)) == 7
"""

_TENSOR_QUEUE = """\
import sys

import torch
import torch.multiprocessing as multiprocessing


def work(tasks, results):
    for tensor in iter(tasks.get, None):
        results.put(tensor * 2)


if __name__ == "__main__":
    tasks, results = multiprocessing.Queue(), multiprocessing.Queue()
    worker = multiprocessing.Process(target=work, args=(tasks, results))
    worker.start()
    for turn in range(8):
        tasks.put(torch.full((16,), float(turn)))
        assert results.get()[0] == 2 * turn
    model = torch.load(sys.argv[1])
    tasks.put(None)
    worker.join()
"""

_PLAIN_QUEUE = """\
import multiprocessing
import pickle
import sys


def work(tasks, results):
    for task in iter(tasks.get, None):
        results.put({"answer": task["question"] + 1})


if __name__ == "__main__":
    tasks, results = multiprocessing.Queue(), multiprocessing.Queue()
    worker = multiprocessing.Process(target=work, args=(tasks, results))
    worker.start()
    for turn in range(200):
        tasks.put({"question": turn})
        assert results.get() == {"answer": turn + 1}
    with open(sys.argv[1], "rb") as file:
        model = pickle.load(file)
    tasks.put(None)
    worker.join()
"""

_FROM_STDIN = """\
import pickle
import sys

model = pickle.loads(sys.stdin.buffer.read())
"""

_PICKLE = pickled(WEIGHTS)


def _program(
    name: str,
    shows: str,
    loader: str,
    make: Callable[[Path], Path] = _PICKLE,
    needs: tuple[str, ...] = (),
    piped: bool = False,
) -> Behaviour:
    return Behaviour(name, False, shows, loader, make, needs=needs, piped=piped)


def _torch_program(name: str, shows: str, loader: str) -> Behaviour:
    return _program(name, shows, loader, torch_state(8, 256), needs=("torch",))


PROGRAMS: tuple[Behaviour, ...] = (
    _program("worker_thread", "clone3 of a thread that loads", _WORKER_THREAD),
    _program("four_threads", "forty loads by four threads at once", _FOUR_THREADS),
    _torch_program("torch_four_threads", "twelve torch loads by four threads", _TORCH_THREADS),
    _torch_program(
        "forked_loader",
        "the load is in a forked child that neither executed Python nor opened a library",
        _FORKED,
    ),
    _torch_program(
        "data_loader",
        "two workers forked before the load, tensors unpickled from queues around it",
        _DATA_LOADER,
    ),
    _torch_program(
        "tensor_queue",
        "tensors passed to and from another process: unpicklings without a file",
        _TENSOR_QUEUE,
    ),
    _program("plain_queue", "400 unpicklings without a file, then a load", _PLAIN_QUEUE),
    _program("loads_from_stdin", "an unpickling without a file", _FROM_STDIN, piped=True),
)
