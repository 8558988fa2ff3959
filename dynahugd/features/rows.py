"""From a load to rows of counts: the whole load, and a sliding window over its last second."""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from dynahugd.features.classes import Classifier
from dynahugd.loads import Act, Load
from dynahugd.probes.layout import Bank
from dynahugd.probes.syscalls import ACTIONS, Action

__all__ = [
    "CALLS",
    "CONTEXT",
    "Row",
    "RowBuilder",
    "is_context",
    "is_mild",
    "is_ordinary",
    "is_usual",
]

#: With what the columns begin that count system calls.
CALLS = "calls."

#: What tells which kind of load this is, rather than what it does: the clusters are found in these.
CONTEXT = re.compile(
    r"^(format\.|read\.(python|system|source|proc|sys)$"
    r"|calls\.(read|pread64|lseek|mmap|munmap|brk|newfstatat|openat|close|fstat|stat)$)"
)

#: Columns whose first appearance is weak evidence: ordinary work, which differs from host to host.
_MILD = re.compile(
    r"^((child\.)?(read|seek)\.(python|system|source|proc|sys|device|cache|model|shm|shared|temporary|home"
    r"|dotfile|other|accounts)"
    r"|(child\.)?(map\.(python|system|cache))"
    r"|(child\.)?attempt\..*|(child\.)?birth\.thread|(child\.)?call\.prctl_(name|dumpable|deathsig)"
    r"|(child\.)?(write|folder|rename|remove|mode|link)\.(bytecode|device|cache|shared)"
    r"|(child\.)?(connect|send)\.(unix_system|unix_queue|netlink|none)"
    r"|global\.(standard|library|package)|calls\..*|format\..*)$"
)

#: Columns of what honest libraries do now and then, in any kind of load: ask the machine what it is
#: (uname, lscpu, ldconfig; a bind to a loopback port of the kernel's choice, for whether there is
#: IPv6), start a process, or cut a file that they have open for writing. What such a process does,
#: a listen, or the writing have columns of their own.
_USUAL = re.compile(r"^(child\.)?(birth\.process|execute\.inquiry|bind\.chosen|call\.ftruncate)$")

#: Calls that are telling only by their arguments, which the acts' columns count.
_COUNTED_AS_ACTS = frozenset(
    name
    for name, action in ACTIONS.items()
    if action >= Action.PLAIN and action not in (Action.ADDR4, Action.MSG1)
)


def is_context(column: str) -> bool:
    """Whether a column tells the kind of load."""
    return CONTEXT.match(column) is not None


def is_mild(column: str) -> bool:
    """Whether a column that no benign load of a cluster showed is weak evidence only."""
    return _MILD.match(column) is not None


def is_usual(column: str) -> bool:
    """Whether a column that no benign load of a cluster showed is some evidence, but not enough."""
    return _USUAL.match(column) is not None


def is_ordinary(column: str) -> bool:
    """Whether a column is no evidence, or not enough: all others decide."""
    return is_mild(column) or is_usual(column)


@dataclass(frozen=True, slots=True)
class Row:
    """Counts by column name. ``window`` is ``whole`` or the length such as ``1s``.

    ``partial``: there may have been more system calls than ``calls.*`` say.
    """

    window: str
    counts: dict[str, int]
    partial: bool = False


#: Acts remembered for the window: a payload may make millions, and the last ones tell enough.
_RECENT = 65536


_NOTHING = np.zeros(0, np.uint64)


@dataclass(slots=True)
class _State:
    columns: Counter[str] = field(default_factory=Counter)
    first: dict[str, Act] = field(default_factory=dict)
    recent: deque[tuple[int, str]] = field(default_factory=lambda: deque(maxlen=_RECENT))
    snapshots: deque[tuple[int, npt.NDArray[np.uint64]]] = field(default_factory=deque)
    # The row of the whole load and its calls, until something happens; what they were made of.
    whole: Row | None = None
    calls: npt.NDArray[np.uint64] = field(default_factory=lambda: _NOTHING)
    counters: npt.NDArray[np.uint64] | None = None
    format: str = ""


class RowBuilder:
    """Accumulates what each load does and builds its rows.

    Parameters
    ----------
    classifier : names the columns of acts.
    names : names of the system calls by number.
    window : length of the sliding window in ns.
    """

    def __init__(self, classifier: Classifier, names: list[str], window: int) -> None:
        self.classifier = classifier
        self._columns = ["" if name in _COUNTED_AS_ACTS else f"{CALLS}{name}" for name in names]
        self.window = window
        self._states: dict[int, _State] = {}

    def _state(self, load: Load) -> _State:
        state = self._states.get(load.id)
        if state is None:
            state = self._states[load.id] = _State()
        return state

    def add(self, load: Load, acts: Iterable[Act]) -> None:
        """Take in acts of a load."""
        state = self._state(load)
        for act in acts:
            if not load.holds(act):
                continue
            column = self.classifier.column(load, act)
            if column is None:
                continue
            state.columns[column] += 1
            state.first.setdefault(column, act)
            state.recent.append((act.time, column))
            state.whole = None

    def evidence(self, load: Load) -> dict[str, Act]:
        """The first act of each column."""
        state = self._states.get(load.id)
        return state.first if state else {}

    def columns(self, load: Load) -> Counter[str]:
        """Acts of the whole load by column."""
        state = self._states.get(load.id)
        return state.columns if state else Counter()

    def forget(self, load: Load) -> None:
        """The load is over."""
        self._states.pop(load.id, None)

    def build(self, load: Load, now: int) -> list[Row]:
        """The rows of a load as it is now; the second only once the load outlasts the window.

        The first is the same object as before while nothing has happened.
        """
        state = self._state(load)
        if state.counters is not load.counters or state.format != load.format:
            state.counters, state.format = load.counters, load.format
            state.calls, state.whole = load.calls(), None
        calls = state.calls
        if state.whole is None or state.whole.partial != load.uncounted:
            counts = self._counts(load, calls, state.columns)
            state.whole = Row("whole", counts, load.uncounted)
        rows = [state.whole]
        state.snapshots.append((now, calls))
        while len(state.snapshots) > 1 and state.snapshots[1][0] <= now - self.window:
            state.snapshots.popleft()
        while state.recent and state.recent[0][0] < now - self.window:
            state.recent.popleft()
        if now - load.begin > self.window:
            earlier = state.snapshots[0][1]
            recent = Counter(column for _, column in state.recent)
            label = f"{self.window / 1e9:g}s"
            counts = self._counts(load, calls - earlier, recent)
            rows.append(Row(label, counts, load.uncounted))
        return rows

    def _counts(
        self, load: Load, calls: npt.NDArray[np.uint64], acts: Counter[str]
    ) -> dict[str, int]:
        counts = {f"format.{load.format}": 1}
        numbers = np.flatnonzero(calls)
        for number, count in zip(numbers.tolist(), calls[numbers].tolist(), strict=True):
            if column := self._columns[number]:
                counts[column] = count
        counts.update(acts)
        return counts


def total_calls(load: Load) -> int:
    """All calls counted for a load, descendants included."""
    return int(load.counters[Bank.OUTSIDE : Bank.CHILDREN + 1].sum())
