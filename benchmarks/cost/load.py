"""A load: how long it takes, itself and the whole process around it."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from benchmarks.cost.conditions import AGAIN, DAEMON, NOTHING, Condition, interleave
from benchmarks.cost.figures import Goal, Row, Samples, Section, Table, compare, seconds
from benchmarks.cost.level import Level
from benchmarks.cost.machine import available_memory
from benchmarks.cost.tracers import tracers

__all__ = ["measure"]

_ABOUT = """
A process loads a file of the page cache some times; the time of a load is the median of these, of
the first one alone where it imports. The process is timed from its start to its end: it begins by
importing torch, or what it needs. bpftrace counts by system call, on the whole host; strace and
perf start the process. Cells: median over the rounds, and the median of the ratio to "nothing"
within each round, with half of the distance between its quartiles; "nothing, again" shows what two
equal conditions differ by.
"""
_GLOBALS = 10_000
#: Bytes that files and tensors take.
_ROOM = 5 << 30
_BIG, _SHARDED = 100_000_000, 10
_MANY, _IMPORT = "many.pkl", "import.pkl"

_MAKE = """
import joblib, numpy, sys, torch
folder, big, shards = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
def state(size):
    return {f"layer{i}.weight": torch.rand(size // 40) for i in range(10)}
torch.save(state(20_000), f"{folder}/small.pt")
torch.save(state(big), f"{folder}/big.pt")
for i in range(shards):
    torch.save(state(big), f"{folder}/shard-{i:02}.bin")
joblib.dump(numpy.random.default_rng(0).random(big // 8), f"{folder}/big.joblib")
"""
_LOAD = """
import json, sys, time
{imports}
seconds = []
for _ in range(int(sys.argv[2])):
    begun = time.perf_counter()
    {call}
    seconds.append(time.perf_counter() - begun)
print(json.dumps(seconds))
"""
_UNPICKLE = "with open(sys.argv[1], 'rb') as file: pickle.load(file)"
_TORCH, _JOBLIB = "torch.load(sys.argv[1])", "joblib.load(sys.argv[1])"
_SHARDS = "state = [torch.load(sys.argv[1] + f'/shard-{i:02}.bin') for i in range(%d)]"


@dataclass(frozen=True, slots=True)
class _Case:
    """A program: what it imports first, its statement that loads, of what, how often."""

    name: str
    imports: str
    call: str
    file: str
    repeats: int
    most: float | None  # goal: ratio of the load to nothing


def _cases(level: Level, shards: int) -> list[_Case]:
    globals_ = _Case(f"pickle of {_GLOBALS:,} globals", "import pickle", _UNPICKLE, _MANY, 15, None)
    if level is Level.TINY:
        return [globals_]
    return [
        _Case("torch.load, 20 KB", "import torch", _TORCH, "small.pt", 300, 1.05),
        _Case("torch.load, 100 MB", "import torch", _TORCH, "big.pt", 15, 1.01),
        _Case(f"torch.load, 1 GB in {shards} files", "import torch", _SHARDS % shards, "", 3, 1.01),
        _Case("joblib, 100 MB", "import joblib", _JOBLIB, "big.joblib", 15, 1.01),
        globals_,
        _Case("import of transformers", "import pickle, torch", _UNPICKLE, _IMPORT, 1, None),
    ]


def _make(folder: Path, with_torch: bool, shards: int) -> None:
    (folder / _MANY).write_bytes(b"ccollections\nOrderedDict\n0" * _GLOBALS + b"N.")
    (folder / _IMPORT).write_bytes(b"ctransformers.models.bert.modeling_bert\nBertModel\n.")
    if with_torch:
        arguments = [str(folder), str(_BIG), str(shards)]
        subprocess.run([sys.executable, "-c", _MAKE, *arguments], check=True)


def _perform(case: _Case, folder: Path, prefix: Sequence[str]) -> tuple[float, float]:
    """Seconds of the load and of the process."""
    source = _LOAD.format(imports=case.imports, call=case.call)
    command = [*prefix, sys.executable, "-c", source, str(folder / case.file), str(case.repeats)]
    begun = time.perf_counter()
    done = subprocess.run(
        command,
        capture_output=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    whole = time.perf_counter() - begun
    # strace 6.1 crashes in its summary when it does not know a system call, such as the one by
    # which a return probe returns since Linux 6.11; by then the load is over.
    if not done.stdout:
        raise RuntimeError(f"{' '.join(command[:3])} failed: {done.stderr.decode()[-2000:]}")
    return statistics.median(json.loads(done.stdout)), whole


def _whole(case: str) -> str:
    return f"process: {case}"


def _measured(
    cases: Sequence[_Case], folder: Path, conditions: Sequence[Condition], rounds: int
) -> Samples:
    def perform(condition: Condition) -> dict[str, float]:
        values = {}
        for case in cases:
            values[case.name], values[_whole(case.name)] = _perform(case, folder, condition.prefix)
        return values

    for case in cases:  # the files of its imports, too, are in the page cache from then on
        _perform(case, folder, ())
    return interleave(conditions, rounds, perform)


def _goal(case: _Case, samples: Samples) -> Goal | None:
    if case.most is not None:
        ratio = samples.ratio(case.name, DAEMON.name, NOTHING.name)
        return Goal(f"<= {case.most:.2f}x", ratio.median, case.most, f"{ratio.median:.3f}x")
    if case.file == _MANY:
        more = samples.difference(case.name, DAEMON.name, NOTHING.name) / _GLOBALS
        return Goal("<= 1.5 us more a global", more, 1.5e-6, seconds(more))
    return None


def _chosen(level: Level, folder: Path) -> tuple[list[_Case], list[str]]:
    """The cases that can be had here, and notes on the others."""
    cases, notes = _cases(level, _SHARDED), []
    free = min(shutil.disk_usage(folder).free, available_memory())
    if free < _ROOM:
        notes.append(f"1 GB was left out: {free >> 20} MiB of disk or memory are free")
        cases = [case for case in cases if case.file]
    if find_spec("transformers") is None:
        notes.append("the import of transformers was left out: it is not installed")
        cases = [case for case in cases if case.file != _IMPORT]
    return cases, notes


def measure(level: Level, folder: Path) -> Section:
    """Measure loads under nothing, the daemon, and tracers; files go below the folder."""
    cases, notes = _chosen(level, folder)
    sharded = any(not case.file for case in cases)
    _make(folder, level is not Level.TINY, _SHARDED if sharded else 0)
    others, refused = tracers(level.pick(5, 2, 1))
    conditions = [NOTHING, AGAIN, DAEMON, *others]
    names = [condition.name for condition in conditions]
    itself: list[Row] = []
    process: list[Row] = []
    header: tuple[str, ...] = ()
    # What takes long, and differs by little from round to round, is measured less often.
    slow = [case for case in cases if case.file == _IMPORT]
    quick = [case for case in cases if case not in slow]
    for group, rounds in ((quick, level.pick(21, 2, 1)), (slow, level.pick(3, 1, 1))):
        if not group:
            continue
        samples = _measured(group, folder, conditions, rounds)
        goals = {case.name: _goal(case, samples) for case in group}
        header, rows = compare(samples, list(goals), names, goal=goals.get)
        itself += rows
        _, rows = compare(samples, [_whole(name) for name in goals], names)
        process += [Row((name, *row.cells[1:])) for name, row in zip(goals, rows, strict=True)]
    return Section(
        "A load",
        _ABOUT,
        (
            Table("The load itself", header, tuple(itself)),
            Table("The process", header, tuple(process)),
        ),
        (*notes, *refused),
    )
