"""From batches to loads: the one place that knows when a load begins, changes and is over."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from dynahugd.loads.load import Act, Load
from dynahugd.probes import layout
from dynahugd.probes.batch import Batch
from dynahugd.probes.layout import HALF, Bank, Exact, Flag, Kind, Reason, Record, Slot, State

__all__ = ["Tracker", "Update"]

_KINDS = {kind.value: kind for kind in Kind}
_TELLING = {Kind.OPEN.value, Kind.CALL.value, Kind.GLOBAL.value, Kind.BIRTH.value, Kind.EXEC.value}
# The flags as plain numbers: an operation on an enumeration's members takes a microsecond.
_INSIDE, _DESCENDANT, _AFTER = Flag.INSIDE.value, Flag.DESCENDANT.value, Flag.AFTER.value
_TRUNCATED = Flag.TRUNCATED.value
_ODD = (Flag.TRUNCATED | Flag.UNREADABLE | Flag.WIDE).value

#: How long the record of a load's begin may be behind the table of loads, in ns.
_PATIENCE = 1_000_000_000
_WIDTHS = {1: "latin-1", 2: "utf-16-le", 4: "utf-32-le"}


@dataclass(slots=True)
class Update:
    """A load that changed.

    Attributes
    ----------
    acts : telling acts since the update before.
    ended : its span ended with this update.
    over : it and its descendants are over: nothing more will come.
    """

    load: Load
    acts: list[Act] = field(default_factory=list)
    ended: bool = False
    over: bool = False


def _decode(raw: bytes) -> str:
    return os.fsdecode(raw.split(b"\0", 1)[0])


def _name(raw: bytes, characters: int, width: int) -> str:
    data = raw[: min(characters * (width or 1), HALF - 1)]
    return data.decode(_WIDTHS.get(width, "ascii"), errors="backslashreplace")


class Tracker:
    """Keeps one object per load.

    Parameters
    ----------
    names : names of the system calls by number, of the architecture that recorded.
    linger : ns that descendants are followed after the span's end.
    finish : called with a load's id when it is over, so that its slot can be reused.
    """

    def __init__(
        self, names: list[str], linger: int, finish: Callable[[int], None] = lambda _: None
    ) -> None:
        self._names = names
        self.linger = linger
        self._finish = finish
        self.open: dict[int, Load] = {}
        self._closing: dict[int, Load] = {}  # those of which the span has ended
        self._done: set[int] = set()
        # The table of loads is read after the ring: it may tell the end of a load whose last
        # records come with the next batch. So an end that the table alone tells, and that nothing
        # more will come, hold one batch later.
        self._ended: set[int] = set()
        self._leaving: set[int] = set()

    def update(self, batch: Batch) -> list[Update]:
        """Take a batch in; the loads that changed, each once."""
        updates: dict[int, Update] = {}
        facts = {fact.load: fact for fact in batch.facts}
        for record in layout.records(batch.records):
            load_id, kind = record.load, record.kind
            if not load_id:
                continue
            load = self.open.get(load_id)
            if load is None:
                if load_id in self._done:
                    continue
                load = self._begin(record)
            update = updates.get(load_id)
            if update is None:
                update = updates[load_id] = Update(load)
            if kind == Kind.BEGIN:
                load.begin = int(record.args[2])
                load.uncounted = bool(record.flags & Flag.UNCOUNTED)
                fact = facts.get(load_id)
                if fact is not None:
                    load.exe, load.cwd = fact.exe, fact.cwd
                    load.path, load.format = fact.path, fact.format
            elif kind == Kind.END:
                if not load.end:
                    load.end, load.reason = record.time, int(record.args[0])
                    self._closing[load_id] = load
                    update.ended = True
            elif kind in _TELLING:
                act = self._act(record)
                load.inside = load.inside or act.inside
                update.acts.append(act)
                load.remember(act)
        self._take_states(batch, updates)
        self._close(batch.time, updates)
        return list(updates.values())

    def _begin(self, record: Record) -> Load:
        memory = bool(record.flags & Flag.MEMORY)
        load = Load(
            id=record.load,
            begin=record.time,
            tgid=record.tgid,
            tid=record.tid,
            uid=record.uid,
            comm=_decode(record.comm),
            cgroup=record.cgroup,
            format="memory" if memory else "unknown",
            memory=memory,
        )
        self.open[load.id] = load
        return load

    def _act(self, record: Record) -> Act:
        kind, flags, raw = _KINDS[record.kind], record.flags, record.text
        args = record.args.tolist()
        if kind is Kind.GLOBAL:
            text = _name(raw, args[0], args[2] >> 8 & 0xFF)
            second = _name(raw[HALF:], args[1], args[2] & 0xFF)
        elif flags & _TRUNCATED:
            text, second = _decode(raw[:HALF]) + "…" + _decode(raw[HALF:]), ""
        elif kind in (Kind.OPEN, Kind.EXEC):
            text, second = _decode(raw), ""  # behind its NUL lies what was there before
        else:
            text, second = _decode(raw), _decode(raw[HALF:])
            if len(text) >= HALF:
                second = ""  # one long text, not two
        return Act(
            time=record.time,
            kind=kind,
            call=self._names[record.nr] if kind in (Kind.CALL, Kind.OPEN) else "",
            tid=record.tid,
            inside=bool(flags & _INSIDE),
            descendant=bool(flags & _DESCENDANT),
            after=bool(flags & _AFTER),
            ret=record.ret,
            args=(args[0], args[1], args[2]),
            text=text,
            second=second,
            raw=raw[: record.length] if kind is Kind.CALL else b"",
            odd=bool(flags & _ODD),
        )

    def _take_states(self, batch: Batch, updates: dict[int, Update]) -> None:
        # Counters only grow: a sum that is the same says that nothing was counted.
        sums = batch.counters.sum(axis=2)
        counted = zip(sums.sum(axis=1).tolist(), (sums[:, Bank.WITHIN] > 0).tolist(), strict=True)
        for place, (state, (total, within)) in enumerate(
            zip(layout.slots(batch.states), counted, strict=True)
        ):
            load_id = state.id
            load = self.open.get(load_id)
            if load is None:
                # Its records may be on their way: the id says when the load was made.
                made = load_id >> 16 << 10
                if load_id in self._done or not batch.hop or batch.time - made < _PATIENCE:
                    continue
                load = self._adopt(state)
            if total != load.counted:
                # A copy, or the counters of one load would keep those of its whole batch alive.
                load.counters, load.counted = batch.counters[place].copy(), total
                updates.setdefault(load_id, Update(load))
            load.inside |= within
            self._take_state(batch.time, load, state, updates)

    def _adopt(self, state: Slot) -> Load:
        """A load whose begin was lost: known from the table of loads alone."""
        load = Load(
            id=state.id,
            begin=state.begin,
            tgid=state.tgid,
            tid=state.tid,
            uid=state.uid,
            memory=bool(state.memory),
            lost=1,
        )
        self.open[load.id] = load
        return load

    def _take_state(self, time: int, load: Load, state: Slot, updates: dict[int, Update]) -> None:
        load.lost = max(load.lost, state.lost)
        load.refs = state.refs
        load.exact |= state.exact == Exact.EXACT
        if state.exact and load.format == "unknown":
            load.format = "pickle"  # its file was out of reach, but the unpickler has read it
        load.inside |= state.exact == Exact.UNPROVEN
        if state.state == State.ENDED and not load.end:
            if load.id in self._ended:
                # Ended from user space, or the record of the end was lost.
                load.end, load.reason = time, state.reason
                self._closing[load.id] = load
                updates.setdefault(load.id, Update(load)).ended = True
            self._ended.add(load.id)

    def _close(self, time: int, updates: dict[int, Update]) -> None:
        for load in list(self._closing.values()):
            if load.id in self._leaving or time - load.end > self.linger:
                update = updates.setdefault(load.id, Update(load))
                update.over = True
                self._forget(load)
            elif load.refs == 0:
                self._leaving.add(load.id)

    def _forget(self, load: Load) -> None:
        del self.open[load.id], self._closing[load.id]
        self._ended.discard(load.id)
        self._leaving.discard(load.id)
        self._done.add(load.id)
        if len(self._done) > 65536:
            self._done = set(sorted(self._done)[32768:])
        self._finish(load.id)

    def cut_short(self, time: int) -> Iterator[Update]:
        """The daemon stops: whatever is open now was watched in part only."""
        for load in list(self.open.values()):
            if not load.end:
                load.end, load.reason = time, Reason.IDLE
                load.cut = "the daemon stopped during the load"
            yield Update(load, ended=True, over=True)
            del self.open[load.id]
