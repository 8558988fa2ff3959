"""The reader of the ring beside those of bcc and libbpf: records a second, CPU a record."""

from __future__ import annotations

import ctypes
import importlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cost.conditions import Condition, interleave
from benchmarks.cost.figures import Goal, Row, Samples, Section, Table, count, seconds
from benchmarks.cost.level import Level
from benchmarks.cost.programs import compile_bpf, compile_c
from dynahugd.probes import kernel
from dynahugd.probes.kernel import MapType
from dynahugd.probes.probe import BREATH
from dynahugd.probes.ring import Ring

__all__ = ["Task", "measure", "read_for"]

_ABOUT = """
A program in the kernel submits records as large as the daemon's; one or two processes run it, and
another one reads, adding up the first number of each record; dynahugd's pauses between two batches
for 2 ms, as in the daemon. "At its best": producers go on as the
reader makes room, so that nothing is lost and the rate is what reader and producers reach together
on the cores that there are. "At 2 M/s" and "at 100 k/s": producers keep that rate, and what finds
no room is lost. CPU is user and system time of the reader.
"""
_SIZE = 8 << 20
_READERS = ("dynahugd", "libbpf, callback", "bcc, callback")
_FAST = 2_000_000
_RATES = {0: "at its best", _FAST: "at 2 M/s", 100_000: "at 100 k/s"}

#: Reads what there is, waits for a moment if there is nothing; the number of records.
Read = Callable[[], int]


def _libbpf() -> Any:
    lib = ctypes.CDLL("libbpf.so.1", use_errno=True)
    pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
    for name, result, arguments in (
        ("bpf_object__open_file", pointer, [text, pointer]),
        ("bpf_object__load", number, [pointer]),
        ("bpf_object__find_map_by_name", pointer, [pointer, text]),
        ("bpf_map__reuse_fd", number, [pointer, number]),
        ("bpf_object__find_program_by_name", pointer, [pointer, text]),
        ("bpf_program__fd", number, [pointer]),
        ("ring_buffer__new", pointer, [number, pointer, pointer, pointer]),
        ("ring_buffer__poll", number, [pointer, number]),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


@dataclass(slots=True)
class _Sum:
    """What a callback adds up."""

    records: int = 0
    first: int = 0

    def take(self, context: object, data: int, size: int) -> int:
        """A record of a callback reader."""
        self.records += 1
        self.first += ctypes.c_uint64.from_address(data).value
        return 0

    def counted(self, poll: Callable[[], object]) -> int:
        """Number of records that a poll has brought."""
        before = self.records
        poll()
        return self.records - before


def _dynahugd() -> tuple[int, Read]:
    fd = kernel.create_map(MapType.RINGBUF, 0, 0, _SIZE, 0, "bench_ring")
    ring = Ring(fd, _SIZE)

    def read() -> int:
        ring.wait(0.05)
        records = ring.read()
        int(records["time"].sum(dtype=np.uint64))
        if records.size:
            time.sleep(BREATH)
        return len(records)

    return fd, read


def _by_libbpf() -> tuple[int, Read]:
    lib, total = _libbpf(), _Sum()
    fd = kernel.create_map(MapType.RINGBUF, 0, 0, _SIZE, 0, "bench_ring")
    kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
    callback = kind(total.take)
    ring = lib.ring_buffer__new(fd, callback, None, None)
    return fd, lambda: total.counted(lambda: (lib.ring_buffer__poll(ring, 50), callback))


def _by_bcc() -> tuple[int, Read]:
    total = _Sum()
    bcc = importlib.import_module("bcc")
    module = bcc.BPF(text=f"BPF_RINGBUF_OUTPUT(ring, {_SIZE // 4096});")
    module["ring"].open_ring_buffer(total.take)
    fd: int = module["ring"].map_fd
    return fd, lambda: total.counted(lambda: module.ring_buffer_poll(50))


_MAKE = dict(zip(_READERS, (_dynahugd, _by_libbpf, _by_bcc), strict=True))


@dataclass(frozen=True, slots=True)
class Task:
    """What is to be read.

    Attributes
    ----------
    program, producer : the compiled object and executable.
    rate : records a second of all producers; 0: as many as are read.
    length : seconds.
    """

    program: str
    producer: str
    rate: int
    producers: int
    length: float


def read_for(reader: str, task: Task) -> dict[str, float]:
    """Read in this process: records a second, how many were lost, CPU seconds a record."""
    ring, read = _MAKE[reader]()
    lib = _libbpf()
    handle = lib.bpf_object__open_file(task.program.encode(), None)
    lib.bpf_map__reuse_fd(lib.bpf_object__find_map_by_name(handle, b"ring"), ring)
    if lib.bpf_object__load(handle):
        raise RuntimeError("the kernel refuses the producer's program")
    fd = lib.bpf_program__fd(lib.bpf_object__find_program_by_name(handle, b"produce"))
    command = [task.producer, str(fd), str(task.rate / task.producers), str(task.length)]
    before, total = time.process_time(), 0
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, pass_fds=(fd,))
        for _ in range(task.producers)
    ]
    while any(process.poll() is None for process in running):
        total += read()
    while more := read():
        total += more
    cpu = time.process_time() - before
    said = [process.communicate()[0].split() for process in running]
    submitted, lost = (sum(int(words[place]) for words in said) for place in (0, 1))
    if total != submitted:
        raise RuntimeError(f"{submitted} records were submitted, {total} read")
    length = max(float(words[2]) for words in said)
    return {"rate": submitted / length, "lost": lost, "cpu": cpu / max(total, 1)}


def _elsewhere(reader: str, task: Task) -> dict[str, float]:
    """Read in a process of its own."""
    text = json.dumps([reader, asdict(task)])
    command = [sys.executable, "-m", "benchmarks.cost.reader", text]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return {name: float(value) for name, value in json.loads(done.stdout).items()}


def measure(level: Level, folder: Path) -> Section:
    """Measure the three readers under one and two producers at three rates."""
    program = compile_bpf("produce", folder / "produce.bpf.o")
    producer = compile_c("produce", folder / "produce")
    tasks = [
        Task(str(program), str(producer), rate, producers, level.pick(1.5, 0.7, 0.1))
        for producers in level.pick((1, 2), (1, 2), (1,))
        for rate in _RATES
    ]

    def perform(condition: Condition) -> dict[str, float]:
        return {
            f"{name} {task.rate} {task.producers}": value
            for task in tasks
            for name, value in _elsewhere(condition.name, task).items()
        }

    samples = interleave([Condition(name) for name in _READERS], level.pick(3, 1, 1), perform)
    rows = [_row(samples, task, reader) for task in tasks for reader in _READERS]
    header = (
        "producers",
        "",
        "reader",
        "records/s",
        "lost",
        "CPU a record",
        "beside libbpf",
        "rounds",
    )
    return Section("The reader of the ring", _ABOUT, (Table("", header, tuple(rows)),))


def _row(samples: Samples, task: Task, reader: str) -> Row:
    rate, lost, cpu = (f"{name} {task.rate} {task.producers}" for name in ("rate", "lost", "cpu"))
    goal = None
    taken = samples.median(cpu, reader)
    if reader == _READERS[0] and task.rate == _FAST:
        # A rate that was not kept, or records that were lost, are as bad as any time.
        kept = samples.median(rate, reader) > 0.95 * _FAST and not samples.median(lost, reader)
        shown = seconds(taken) + ("" if kept else ", rate not kept, or records lost")
        goal = Goal("<= 25 ns a record", taken if kept else float("inf"), 25e-9, shown)
    cells = (
        str(task.producers),
        _RATES[task.rate],
        reader,
        count(samples.median(rate, reader)),
        count(samples.median(lost, reader)),
        seconds(taken),
        str(samples.ratio(cpu, reader, _READERS[1])),
        str(samples.rounds(cpu, reader)),
    )
    return Row(cells, goal)


if __name__ == "__main__":
    _reader, _task = json.loads(sys.argv[1])
    print(json.dumps(read_for(_reader, Task(**_task))))
