"""The probe: everything that is attached, read as batches."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from dynahugd.probes import attach, btf, layout, loaders
from dynahugd.probes.batch import Batch, Fact
from dynahugd.probes.formats import DATA_ONLY, identify, read_head
from dynahugd.probes.interpreter import Interpreter
from dynahugd.probes.interpreters import Interpreters
from dynahugd.probes.layout import Flag, Kind, Loss, Record, State
from dynahugd.probes.maps import Maps, Sizes
from dynahugd.probes.newcomers import Newcomers
from dynahugd.probes.ring import Ring
from dynahugd.probes.stages import ProbeStage, Stages
from dynahugd.probes.usage import Meter

__all__ = ["BREATH", "Options", "Probe", "decode"]

_SLOT = 0xFFFF

# As plain numbers: to compare an array with an enumeration's member takes 1.4 us more.
_BEGIN, _RUNTIME, _FREE = Kind.BEGIN.value, Kind.RUNTIME.value, State.FREE.value

#: The text of such a record is not the whole path.
_BROKEN = (Flag.TRUNCATED | Flag.UNREADABLE).value

#: How often the interpreters' files are looked at, and whether anyone is tracked, in seconds.
_RELEASE_EVERY, _LIVING_EVERY = 10.0, 1.0

#: CPU time that an interpreter takes at least from its execution to its first line, in ns: CPython
#: takes 5 to 10 ms, without its library as well.
_HEADSTART = 5_000_000

#: While no load is open there is a hop where there would be ten: what a daemon that does nothing
#: costs is how often it wakes up, with nothing of it left in the processor's caches.
_REST = 10

#: Least seconds from one batch of records to the next. They come in bursts, and a batch costs what
#: ten records do. The first one of a burst does not wait: who sent it may be gone soon.
BREATH = 0.002


@dataclass(frozen=True, slots=True)
class Options:
    """What the probe can be told.

    Attributes
    ----------
    loader : ``auto``, ``libbpf`` or ``bcc``.
    suffixes, wrappers : suffixes that tell a model file; suffixes (``gz``) before which the one
        before decides.
    hop : seconds between two looks at all open loads.
    idle : seconds after which a load whose descriptor is left alone has ended.
    quiet, rest : seconds without a load, and without an ML process, after which less is attached;
        see :mod:`dynahugd.probes.stages`.
    """

    loader: str = "auto"
    sizes: Sizes = field(default_factory=Sizes)
    suffixes: tuple[str, ...] = ()
    wrappers: tuple[str, ...] = ()
    hop: float = 0.25
    idle: float = 30.0
    rejoin: float = 1.0
    quiet: float = 30.0
    rest: float = 30.0


#: Processes whose executable is remembered.
_EXES = 4096


def decode(text: bytes) -> str:
    """Bytes of a watched process as text that can be encoded back (surrogate escapes)."""
    return os.fsdecode(text.split(b"\0", 1)[0])


def _readlink(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _has_run(tgid: int) -> float:
    """CPU time that the first thread of a process has had, in ns; inf when it is gone."""
    try:
        with open(f"/proc/{tgid}/schedstat") as schedstat:
            return int(schedstat.read().split()[0])
    except (OSError, ValueError, IndexError):
        return math.inf


class Probe:
    """Loads and attaches the programs, and yields batches until it is closed.

    Attributes
    ----------
    meter : measures what the kernel side takes.

    Raises
    ------
    DynahugError : when the kernel or the host cannot do it, with the next step.
    """

    def __init__(
        self, options: Options, report: Callable[[Interpreter], None] = lambda _: None
    ) -> None:
        self.options = options
        self.maps = Maps(options.sizes)
        self._attached: list[int] = []
        self._programs: loaders.Programs | None = None
        try:
            self.maps.configure(btf.offsets(), int(options.rejoin * 1e9))
            self.maps.set_suffixes(options.suffixes, options.wrappers)
            self._programs = loaders.load(options.loader, self.maps.fds, attach.multi_uprobes())
            self._ring = Ring(self.maps.fds["ring"], options.sizes.ring)
            self.meter = Meter(self.maps, self._ring, self._programs.fds)
            self.interpreters = Interpreters(self._programs, report)
            self._attached = attach.attach_tasks(self._programs)
            self.stages = Stages(self._programs, self.maps, options.quiet, options.rest)
            self.stages.wake()
        except BaseException:
            self.close()
            raise
        self._exes: dict[int, str] = {}
        self._anyone = False
        self._next_batch = self._next_hop = time.monotonic()
        self._next_release = time.monotonic() + _RELEASE_EVERY
        self._next_living = time.monotonic()
        self._newcomers = Newcomers(self.maps.newcomers, self.interpreters.look)

    @property
    def loader(self) -> str:
        """The loader in use."""
        return self._programs.loader if self._programs else ""

    def cover_host(self) -> None:
        """Attach to the interpreters that run now or are installed; track the former."""
        self.interpreters.cover_installed()
        for tgid in self.interpreters.scan():
            self._track(tgid)

    def _track(self, tgid: int) -> None:
        """Track a process that was running already, and watch its calls from now on."""
        try:
            for tid in os.listdir(f"/proc/{tgid}/task"):
                self.maps.track(tgid, int(tid))
        except OSError:
            return
        self.stages.wake()

    def adopt(self, options: Options) -> None:
        """Watch by other options from now on; loader and sizes stay as they are."""
        self.maps.set_suffixes(options.suffixes, options.wrappers)
        self.options = replace(options, loader=self.options.loader, sizes=self.options.sizes)
        self.stages.quiet, self.stages.rest = options.quiet, options.rest

    def know_globals(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Globals (module, name) that make no load of an unpickling without a file."""
        for module, name in pairs:
            self.maps.know_global(os.fsencode(module), os.fsencode(name))

    def read(self, timeout: float | None = None) -> Batch:
        """Wait for records or for the next hop, whichever is first, and return a batch."""
        now = time.monotonic()
        if now < self._next_batch:
            time.sleep(self._next_batch - now)
        pause = max(0.0, self._next_hop - now)
        self._ring.wait(pause if timeout is None else min(pause, timeout))
        records = self._ring.read()
        kinds = records["kind"]
        telling = records[(kinds == _BEGIN) | (kinds == _RUNTIME)]
        if telling.size:
            self._wake(telling)
        now = time.monotonic()
        if records.size:
            self._next_batch = now + BREATH
            self._next_hop = min(self._next_hop, now + self.options.hop)
        hop = now >= self._next_hop
        if hop:
            self._next_hop = now + self.options.hop
            self._end_idle(int(now * 1e9))
            self._turn(now)
            if now >= self._next_release:
                self._next_release = now + _RELEASE_EVERY
                self.interpreters.release_gone()
        begins = layout.records(telling[telling["kind"] == _BEGIN])
        shown = layout.records(telling[telling["kind"] == _RUNTIME])
        runtimes = dict.fromkeys((record.tgid, decode(record.text)) for record in shown)
        # First what goes with its process: to look into an interpreter takes longer than some live.
        for tgid, text in runtimes:
            self._remember_exe(tgid, text)
        facts = self._facts(begins)
        for tgid, text in runtimes:
            self.interpreters.consider(tgid, text)
        slots = self._slots(records, hop)
        if hop and not slots.size:
            self._next_hop = now + _REST * self.options.hop
        return Batch(
            time.monotonic_ns(),
            hop,
            records,
            self.maps.loads[slots],
            self.maps.counters[slots],
            facts,
            self.maps.losses.copy(),
        )

    def _wake(self, telling: npt.NDArray[np.void]) -> None:
        """Count from now on; if nothing was watched when an ML process began, was it in time?"""
        rested = self.stages.stage is ProbeStage.RESTING
        self.stages.wake()
        if rested:
            late = sum(_has_run(tgid) > _HEADSTART for tgid in set(telling["tgid"].tolist()))
            self.maps.losses[Loss.LATE] += late

    def _turn(self, now: float) -> None:
        """Attach to less, if there is less to be seen."""
        for tgid in self._newcomers.turn(now):
            self._track(tgid)
        if now >= self._next_living:
            self._next_living = now + _LIVING_EVERY
            self._anyone = self.maps.anyone()
        self.stages.turn(now, self._anyone, bool((self.maps.loads["state"] != _FREE).any()))

    def wake(self) -> None:
        """Have the read that waits, or else the next one, return at once; for signal handlers."""
        self._ring.wake()

    def _remember_exe(self, tgid: int, shown: str) -> None:
        """Short-lived processes are gone before their load is looked at.

        One that is gone already is known by what it executed, as it called it.
        """
        exe = _readlink(f"/proc/{tgid}/exe")
        if not exe and os.path.basename(shown).startswith("python"):
            exe = os.path.realpath(shown) if shown.startswith("/") else shown
        if exe:
            while len(self._exes) >= _EXES:
                del self._exes[next(iter(self._exes))]
            self._exes[tgid] = exe

    def _slots(self, records: npt.NDArray[np.void], hop: bool) -> npt.NDArray[np.intp]:
        if hop:
            return np.flatnonzero(self.maps.loads["state"] != _FREE)
        # Not np.unique: at its first call it imports numpy.ma, and for a few records it is slow.
        ids = sorted(set(records["load"].tolist()) - {0})
        slots = np.array([load & _SLOT for load in ids], np.intp)
        known = slots < self.options.sizes.loads
        slots = slots[known]
        held = self.maps.loads["id"][slots] == np.array(ids, np.uint64)[known]
        return np.asarray(slots[held])

    def _end_idle(self, now: int) -> None:
        """End the loads whose thread has left the descriptor alone, or whose process is gone."""
        loads = self.maps.loads
        idle = (loads["state"] == State.OPENED.value) & (loads["inside"] == 0)
        rested = now - loads["active"].astype(np.int64) > int(1e9)
        for slot in np.flatnonzero(idle & rested & (loads["memory"] == 0)):
            load = loads[slot]
            if now - int(load["active"]) > self.options.idle * 1e9:
                load["reason"] = layout.Reason.IDLE
            elif os.path.exists(f"/proc/{load['tgid']}"):
                continue
            else:
                load["reason"] = layout.Reason.EXITED
            load["state"] = State.ENDED

    def _facts(self, begins: Iterable[Record]) -> tuple[Fact, ...]:
        """What there is to know of loads that begin. The same question is asked once."""
        known: dict[tuple[object, ...], Fact] = {}
        facts = []
        for record in begins:
            question = (record.tgid, record.flags, int(record.args[0]), record.text)
            fact = known.get(question)
            if fact is None:
                fact = known[question] = self._fact(record)
            load = record.load
            facts.append(replace(fact, load=load))
            slot = load & _SLOT
            if fact.format in DATA_ONLY and int(self.maps.loads[slot]["id"]) == load:
                self.maps.loads[slot]["quiet"] = 1
        return tuple(facts)

    def _fact(self, record: Record) -> Fact:
        tgid, load = record.tgid, record.load
        exe = _readlink(f"/proc/{tgid}/exe") or self._exes.get(tgid, "")
        cwd = _readlink(f"/proc/{tgid}/cwd")
        if record.flags & Flag.MEMORY.value:
            return Fact(load, exe, cwd, "", "memory")
        text = record.text
        descriptor = f"/proc/{tgid}/fd/{int(record.args[0])}"
        path = decode(text)
        if record.flags & _BROKEN:
            path = _readlink(descriptor) or decode(text[: layout.HALF]) + "…" + decode(
                text[layout.HALF :]
            )
        elif not path.startswith("/"):
            path = os.path.join(cwd, path)
        head = read_head(f"/proc/{tgid}/root{path}")
        if head is None:
            # Of a process that is gone, as the host has it: the service's own view has no /home.
            candidates = [f"/proc/1/root{path}", path]
            # By now the descriptor may be another file's: it serves where it has the same name.
            name = _readlink(descriptor).removesuffix(" (deleted)")
            if os.path.basename(name) == os.path.basename(path):
                candidates.insert(0, descriptor)
            head = read_head(*candidates)
        return Fact(load, exe, cwd, path, identify(head, path))

    def finish(self, load: int) -> None:
        """Give the slot of a load back. The load is over for everyone, descendants included."""
        slot = load & _SLOT
        state = self.maps.loads[slot]
        if int(state["id"]) != load:
            return
        if not state["memory"]:
            self.maps.forget_file(int(state["tgid"]), int(state["fd"]), load)
        self.maps.release(slot)

    def lost(self) -> dict[Loss, int]:
        """Total losses by reason."""
        return {loss: int(self.maps.losses[loss]) for loss in Loss}

    def close(self) -> None:
        """Detach everything, newest first."""
        if hasattr(self, "stages"):
            self.stages.close()
        attach.detach(reversed(self._attached))
        self._attached.clear()
        if hasattr(self, "interpreters"):
            self.interpreters.close()
        if hasattr(self, "_ring"):
            self._ring.close()
        if self._programs is not None:
            self._programs.close()
            self._programs = None
        self.maps.close()
