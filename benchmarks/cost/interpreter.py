"""The interpreter: messages between processes, deepcopy, id()."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

from benchmarks.cost.conditions import AGAIN, DAEMON, NOTHING, Condition, interleave
from benchmarks.cost.figures import Goal, Samples, Section, Table, compare, seconds
from benchmarks.cost.level import Level
from benchmarks.cost.tracers import audit_probe, bpftrace

__all__ = ["measure"]

_ABOUT = """
Time of one operation, in a process of its own for each cell and round. "uprobe on PySys_Audit" is
bpftrace counting there: what one would hook to see the globals of pickles without looking for the
one call in the unpickler, and what `id()` and `copy.deepcopy` pass through as well. A message
names one global that benign pickles name, too. The queue hands a tensor of four numbers to another
process.
"""
_LOADS = """
import collections, pickle
message = pickle.dumps({value})
def work(n):
    for _ in range(n): pickle.loads(message)
"""
_DEEPCOPY = """
import copy
tree = [[{str(k): [k, (k,)] for k in range(10)} for _ in range(10)] for _ in range(10)]
def work(n):
    for _ in range(n): copy.deepcopy(tree)
"""
_ID = """
def work(n):
    for _ in range(n): id(n)
"""
_QUEUE = """
import torch, torch.multiprocessing as mp
mp.set_sharing_strategy("file_system")
def send(n, queue, done):
    for i in range(n): queue.put(torch.full((4,), i))
    done.wait()
def work(n):
    queue, done = mp.Queue(), mp.Event()
    mp.Process(target=send, args=(n, queue, done)).start()
    for _ in range(n): queue.get()
    done.set()
"""
#: In parts, so that what is far slower than expected does not last for minutes.
_TIMED = """
import sys, time
n, parts, done = int(sys.argv[1]), int(sys.argv[2]), 0
begun = time.perf_counter()
while done < n and time.perf_counter() - begun < 2:
    work(n // parts)
    done += n // parts
print((time.perf_counter() - begun) / done)
"""
_NONE, _ONE, _TWO = (f"pickle.loads, {n} global{s}" for n, s in (("no", "s"), (1, ""), (2, "s")))
_COPY, _IDENTITY, _MESSAGE = "copy.deepcopy of 4,000 objects", "id()", "tensor through a queue"
_VALUES = {
    _NONE: "{'a': 1}",
    _ONE: "collections.OrderedDict(a=1)",
    _TWO: "(collections.OrderedDict(a=1), collections.deque((1,)))",
}
_AUDIT = "uprobe on PySys_Audit"


def _programs(level: Level) -> dict[str, tuple[str, int, int]]:
    """Source, number of operations and of their parts, by case."""
    million, fewer = level.pick((1_000_000, 300_000), (200_000, 100_000), (2_000, 2_000))
    programs = {
        _ONE: (_LOADS.format(value=_VALUES[_ONE]), million, 100),
        _NONE: (_LOADS.format(value=_VALUES[_NONE]), fewer, 100),
        _TWO: (_LOADS.format(value=_VALUES[_TWO]), fewer, 100),
        _COPY: (_DEEPCOPY, level.pick(200, 50, 2), level.pick(100, 50, 2)),
        _IDENTITY: (_ID, level.pick(3_000_000, 1_000_000, 2_000), 100),
    }
    if level is not Level.TINY:
        programs[_MESSAGE] = (_QUEUE, level.pick(4_000, 2_000, 0), 1)
    return programs


def _operation(source: str, number: int, parts: int) -> float:
    """Seconds of one."""
    command = [sys.executable, "-c", source + _TIMED, str(number), str(parts)]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def _goals(samples: Samples) -> dict[str, Goal]:
    more = {
        case: samples.difference(case, DAEMON.name, NOTHING.name) for case in (_NONE, _ONE, _TWO)
    }
    by_global = more[_TWO] - more[_ONE]
    goals = {
        _NONE: Goal("<= 2 us more an unpickling", more[_NONE], 2e-6, seconds(more[_NONE])),
        _TWO: Goal("<= 1.5 us more a second global", by_global, 1.5e-6, seconds(by_global)),
    }
    for case in (_COPY, _IDENTITY):
        ratio = samples.ratio(case, DAEMON.name, NOTHING.name).median
        goals[case] = Goal("0 % (<= 1.005x)", ratio, 1.005, f"{ratio:.3f}x")
    return goals


def measure(level: Level, folder: Path) -> Section:
    """Measure under nothing, the daemon, and a uprobe of bpftrace."""
    probe = audit_probe(os.path.realpath(sys.executable))
    conditions = [NOTHING, AGAIN, DAEMON, Condition(_AUDIT, partial(bpftrace, probe))]
    programs = _programs(level)

    def perform(condition: Condition) -> dict[str, float]:
        return {case: _operation(*program) for case, program in programs.items()}

    samples = interleave(conditions, level.pick(5, 2, 1), perform)
    names = [condition.name for condition in conditions]
    header, rows = compare(samples, list(programs), names, goal=_goals(samples).get)
    return Section("The interpreter", _ABOUT, (Table("", header, rows),))
