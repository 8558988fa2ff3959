"""A load and the telling acts in it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from dynahugd.probes.formats import DATA_ONLY
from dynahugd.probes.layout import BANKS, Bank, Kind

__all__ = ["Act", "Load"]

#: Descriptors of files remembered for naming what is mapped as code.
_OPEN_FILES = 256
#: Acts of a load that are kept: a payload may make millions. Their counts are kept elsewhere.
_ACTS = 16384


@dataclass(frozen=True, slots=True)
class Act:
    """One telling thing that a load did. Texts are hostile and may hold surrogate escapes.

    Attributes
    ----------
    time : CLOCK_MONOTONIC, ns.
    kind : of the record: a call, an opened file, a resolved global, a birth, another program.
    call : name of the system call, for calls and opens.
    tid : thread.
    inside : in an unpickling, or by a descendant born in one.
    descendant : by a thread or process that the load created.
    after : after the span's end.
    ret : of an open: descriptor or negative errno.
    args : three numbers, by kind (``bpf/dynahug.h``).
    text, second : path, address bytes or module; second path or name.
    raw : the text as bytes: socket addresses.
    odd : the text was truncated, unreadable, or not ASCII where names are.
    """

    time: int
    kind: Kind
    call: str
    tid: int
    inside: bool
    descendant: bool
    after: bool
    ret: int
    args: tuple[int, int, int]
    text: str
    second: str
    raw: bytes
    odd: bool


#: Counters of a load before they are read: one array for all, as 12 KiB a load are not for nothing.
_UNCOUNTED = np.zeros((BANKS, 512), np.uint64)
_UNCOUNTED.flags.writeable = False


@dataclass(slots=True, eq=False)
class Load:
    """One load, from its begin to the end of its last descendant.

    Attributes
    ----------
    begin, end : CLOCK_MONOTONIC, ns; end is 0 while the span lasts.
    counters : uint64, shape (3, 512): calls by bank (outside, within, children) and number.
    counted : sum of the counters.
    lost : records of this load that were lost.
    refs : living descendants.
    exact : the unpickler itself read the file: only what happens inside it is the load.
    uncounted : its system calls were counted only from some time after its begin on.
    cut : why the load cannot be called benign although nothing speaks against it.
    """

    id: int
    begin: int
    tgid: int = 0
    tid: int = 0
    uid: int = 0
    comm: str = ""
    cgroup: int = 0
    exe: str = ""
    cwd: str = ""
    path: str = ""
    format: str = "unknown"
    memory: bool = False
    end: int = 0
    reason: int = 0
    lost: int = 0
    refs: int = 0
    exact: bool = False
    inside: bool = False
    uncounted: bool = False
    cut: str = ""
    counters: npt.NDArray[np.uint64] = field(default_factory=lambda: _UNCOUNTED)
    counted: int = 0
    acts: list[Act] = field(default_factory=list)
    files: dict[tuple[int, int], str] = field(default_factory=dict)
    _order: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=_OPEN_FILES))

    @property
    def data_only(self) -> bool:
        """Whether the format holds no code, so that only unpicklings inside it count."""
        return self.format in DATA_ONLY

    @property
    def is_model(self) -> bool:
        """Whether this is a load at all: a suffix alone does not make a model of a file."""
        return self.format != "unknown" or self.exact or self.inside or self.lost > 0

    def holds(self, act: Act) -> bool:
        """Whether an act is held against the load.

        What the thread does outside any unpickling is the load's only where the format can run
        code outside of one: a pure-Python unpickler.
        """
        return act.inside or not (self.data_only or (self.format == "unknown" and not self.exact))

    def calls(self) -> npt.NDArray[np.uint64]:
        """Calls of the loading thread that count, by number; shape (512,)."""
        within = self.counters[Bank.WITHIN]
        return np.asarray(within if self.data_only else within + self.counters[Bank.OUTSIDE])

    def globals(self) -> set[tuple[str, str]]:
        """Pairs (module, name) that its pickles resolved, as far as they are plain text."""
        return {
            (act.text, act.second) for act in self.acts if act.kind is Kind.GLOBAL and not act.odd
        }

    def remember(self, act: Act) -> None:
        """Keep an act, up to a limit."""
        if len(self.acts) < _ACTS:
            self.acts.append(act)

    def remember_file(self, tid: int, fd: int, path: str) -> None:
        """Note what a descriptor is, for the map of executable memory that may follow."""
        if len(self._order) == _OPEN_FILES:
            self.files.pop(self._order[0], None)
        self._order.append((tid, fd))
        self.files[(tid, fd)] = path
