"""The rest of the host: system calls, a server, a training step, with and without the daemon."""

from __future__ import annotations

import csv
import json
import os
import pickle
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from benchmarks.cost.figures import Goal, Row, Samples, Section, Table, seconds
from benchmarks.cost.level import Level
from benchmarks.cost.plan import STAGE, TASKS, Measurement, State, script
from benchmarks.cost.programs import compile_bpf, compile_c
from tests.servers import free_port

__all__ = ["become", "measure"]

_ABOUT = """
Measured by a shell that starts C programs, because a Python that only waits is an ML process to
the daemon already; the training step and the DataLoader are ML processes themselves. What is
measured is bound to core 0, so that a ratio is one of CPU time; the daemon runs where the
scheduler puts it. "Idle": a Python lives that has loaded a pickle and sleeps. "Loads": a Python on
core 1 loads a pickle of 100 MB all the time; its base is the same without the daemon. Redis:
redis-server and redis-benchmark (GET and SET by 20 connections) on loopback. A system call "of an
ML process" is one of a C program whose name begins with "python". The daemon attaches to system
calls in stages, here a second after there is less to be seen instead of half a minute; C programs
that are ML processes are new when they are measured, so that all their calls are looked at;
training and the DataLoader are measured {wait} s after their workers have begun a second epoch.
Images: batches of 32 of 3x224x224 pixels, normalised and flipped. Tiny batches: 16 rows of 64
numbers, nothing done to them, so that all time goes into messages between processes; no goal, for
it is no workload of anyone's. "A tracepoint" is a program that does nothing on a call that nobody
makes, "an empty program" one on every call: less cannot be attached.
"""
_OFF, _AGAIN, _ONE, _EVERY, _NONE, _IDLE, _LOADS_OFF, _LOADS = (
    "no daemon",
    "no daemon, again",
    "no daemon, a tracepoint",
    "no daemon, an empty program",
    "daemon, no ML process",
    "daemon, idle ML process",
    "loads, no daemon",
    "loads, daemon",
)
_SLEEPS = """
import pickle, sys, time
with open(sys.argv[1], "rb") as file: pickle.load(file)
print("asleep", flush=True)
time.sleep(1e6)
"""
_LOADS_ON = """
import pickle, sys
for turn in range(10**9):
    with open(sys.argv[1], "rb") as file: pickle.load(file)
    if turn == 1: print("loading", flush=True)
"""
_TRAINS = """
import os, statistics, sys, time, torch
from torch.utils.data import DataLoader, Dataset, TensorDataset
torch.set_num_threads(1)
steps, batches, wait = map(int, sys.argv[1:])
def timed(work, times):
    begun = time.perf_counter()
    work()
    times.append(time.perf_counter() - begun)
model = torch.nn.Sequential(torch.nn.Linear(256, 512), torch.nn.ReLU(), torch.nn.Linear(512, 10))
optimizer = torch.optim.SGD(model.parameters(), 0.01)
x, y = torch.rand(128, 256), torch.randint(10, (128,))
def step():
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
class Images(Dataset):
    pixels = torch.randint(256, (8, 3, 224, 224), dtype=torch.uint8)
    def __len__(self): return 2 * batches
    def __getitem__(self, place):
        return self.pixels[place % 8].float().div_(255).sub_(0.45).div_(0.23).flip(2), place % 10
rows = TensorDataset(torch.rand(16 * batches, 64), torch.zeros(16 * batches))
loaders = [
    DataLoader(data, batch_size=size, num_workers=4, persistent_workers=True)
    for data, size in ((Images(), 32), (rows, 16))
]
def epoch(loader):
    for _ in loader: pass
for loader in 2 * loaders: epoch(loader)  # starts the workers, and has them resume once
time.sleep(wait)
taken = [[], [], []]
for _ in range(steps): timed(step, taken[0])
for _ in range(2):
    for loader, times in zip(loaders, taken[1:]): timed(lambda: epoch(loader), times)
print(*map(statistics.median, taken))
"""
_ORDINARY, _OF_ML, _IN_LOAD = (
    "getppid",
    "getppid of an ML process",
    "getppid of an ML process, a model file open",
)
_REDIS, _STEP = "redis, a request", "training step"
_EPOCH = "DataLoader, 4 workers, an epoch of images"
_TINY_EPOCH = "DataLoader, 4 workers, an epoch of tiny batches"
_TRAINING = "training"
#: Seconds that the daemon has to go down to its stage: some hops for each step.
_WAIT = 12
#: Ratio at most, by case and condition. What should cost nothing may differ by half a percent,
#: which is less than two equal conditions often differ by.
_GOALS = {
    (_ORDINARY, _NONE): 1.005,
    (_REDIS, _NONE): 1.005,
    (_REDIS, _IDLE): 1.01,
    (_REDIS, _LOADS): 1.03,
    (_STEP, _IDLE): 1.01,
    (_STEP, _LOADS): 1.03,
    (_EPOCH, _IDLE): 1.01,
    (_EPOCH, _LOADS): 1.03,
}


def _states(folder: Path, model: Path) -> list[State]:
    last = str((os.cpu_count() or 1) - 1)
    sleeps = (sys.executable, "-c", _SLEEPS, str(model.with_name("small.pkl")))
    loads = ("taskset", "-c", last, sys.executable, "-c", _LOADS_ON, str(model))
    return [
        State(_OFF, False),
        State(_AGAIN, False),
        State(_ONE, False, (str(folder / "least"), str(folder / "least.o"), "one")),
        State(_EVERY, False, (str(folder / "least"), str(folder / "least.o"), "every")),
        State(_NONE, True),
        State(_IDLE, True, sleeps),
        State(_LOADS_OFF, False, loads),
        State(_LOADS, True, loads),
    ]


def _measurements(level: Level, folder: Path, port: int) -> list[Measurement]:
    calls = level.pick("200000", "100000", "1000")
    requests = level.pick("60000", "20000", "1000")
    steps, batches = level.pick("600", "200", "1"), level.pick("600", "300", "10")
    small = str(folder / "small.pkl")
    ordinary, of_ml = str(folder / "getppid"), str(folder / "python-getppid")
    alone = frozenset({_OFF, _AGAIN, _IDLE})
    with_ml = frozenset({_OFF, _AGAIN, _IDLE, _LOADS_OFF, _LOADS})
    redis = ("redis-benchmark", "-p", str(port), "-t", "get,set", "-c", "20", "-n", requests)
    found = [
        Measurement(_ORDINARY, (ordinary, calls)),
        Measurement(_OF_ML, (of_ml, calls), alone, True),
        Measurement(_IN_LOAD, (of_ml, calls, small), alone, True),
        Measurement(_REDIS, (*redis, "--csv")),
    ]
    if level is not Level.TINY:
        training = (sys.executable, "-W", "ignore", "-c", _TRAINS, steps, batches, str(_WAIT))
        found.append(Measurement(_TRAINING, training, with_ml, True))
    return [replace(item, command=("taskset", "-c", "0", *item.command)) for item in found]


def become(level: Level, folder: Path, then: Sequence[str]) -> NoReturn:
    """Measure as a shell, into the folder, and then become another program."""
    compile_c("getppid", folder / "getppid")
    compile_c("getppid", folder / "python-getppid")
    compile_bpf("least", folder / "least.o")
    compile_c("least", folder / "least", "bpf")
    (folder / "small.pkl").write_bytes(pickle.dumps(list(range(100))))
    model = folder / "model.pkl"
    model.write_bytes(pickle.dumps(os.urandom(level.pick(100_000_000, 100_000_000, 1_000_000))))
    port = free_port()
    server = ("redis-server", "--bind", "127.0.0.1", "--port", str(port), "--save", "")
    text = script(
        folder,
        _states(folder, model),
        _measurements(level, folder, port),
        level.pick(5, 2, 1),
        level.pick(_WAIT, _WAIT, 1),
        (("taskset", "-c", "0", *server), "Ready to accept"),
        then,
    )
    plan = folder / "plan.sh"
    plan.write_text(text)
    os.execv("/bin/sh", ["/bin/sh", str(plan)])


def _figures(file: Path) -> dict[str, float]:
    """Seconds by case, of what a measurement has printed."""
    text = file.read_text()
    if file.name == _REDIS:
        rates = [float(row["rps"]) for row in csv.DictReader(text.splitlines())]
        return {_REDIS: statistics.mean(1 / rate for rate in rates)}
    if file.name == _TRAINING:
        return dict(zip((_STEP, _EPOCH, _TINY_EPOCH), map(float, text.split()), strict=True))
    return {file.name: float(text) / 1e9}


def _read(folder: Path) -> tuple[Samples, dict[str, list[int]], dict[str, set[str]]]:
    """All samples; the numbers of tasks that the daemon tracked, and its stages, by condition."""
    samples = Samples()
    tasks: dict[str, list[int]] = {}
    stages: dict[str, set[str]] = {}
    for file in sorted(folder.glob("[0-9]*/*/*")):
        turn, condition = int(file.parts[-3]), file.parts[-2]
        if file.name == TASKS:
            with suppress(ValueError):  # the daemon has no such map
                tracked = len(json.loads(file.read_text()))
                tasks.setdefault(condition, []).append(tracked)
        elif file.name == STAGE:
            stages.setdefault(condition, set()).add(", later ".join(file.read_text().split()))
        elif file.name not in ("program", "daemon"):
            for case, value in _figures(file).items():
                samples.add(case, condition, turn, value)
    return samples, tasks, stages


def _rows(samples: Samples) -> Iterator[Row]:
    """A row for each case and condition; a condition with loads has a base of its own."""
    for case in (_ORDINARY, _OF_ML, _IN_LOAD, _REDIS, _STEP, _EPOCH, _TINY_EPOCH):
        for condition in (_AGAIN, _ONE, _EVERY, _NONE, _IDLE, _LOADS):
            base = _LOADS_OFF if condition == _LOADS else _OFF
            if samples.rounds(case, condition):
                ratio = samples.ratio(case, condition, base)
                most = _GOALS.get((case, condition))
                figure = f"{ratio.median:.3f}x"
                goal = Goal(f"<= {most:.3f}x", ratio.median, most, figure) if most else None
                cells = (
                    case,
                    condition,
                    seconds(samples.median(case, base)),
                    seconds(samples.median(case, condition)),
                    str(ratio),
                    seconds(samples.difference(case, condition, base)),
                    str(ratio.rounds),
                )
                yield Row(cells, goal, {"more": samples.difference(case, condition, base)})


def measure(results: Path) -> Section:
    """What the shell has measured into a folder."""
    samples, tasks, stages = _read(results)
    notes = [
        f'the daemon tracked {min(found)} to {max(found)} tasks under "{condition}" '
        "(`bpftool map dump`)"
        for condition, found in tasks.items()
    ]
    notes += [
        f'its stage was {" or ".join(sorted(found))} under "{condition}"'
        for condition, found in stages.items()
    ]
    if max(tasks.get(_NONE, [0])) > 0:
        notes.append(
            f'**other ML processes lived under "{_NONE}": look at these figures on a host without**'
        )
    header = ("", "condition", "without the daemon", "with it", "ratio", "difference", "rounds")
    return Section(
        "The rest of the host",
        _ABOUT.format(wait=_WAIT),
        (Table("", header, tuple(_rows(samples))),),
        tuple(notes),
    )
