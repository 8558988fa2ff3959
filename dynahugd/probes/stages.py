"""Stages: what is on the way of the host's system calls, as little as what goes on allows.

A program on every system call is felt by every process, one on chosen calls much less, and even
that is more than nothing:

- *resting*: no ML process lives. Nothing but the births, executions and ends of tasks is looked at.
- *watching*: some live, but none has begun lately, or loaded. Opens, closes and telling calls have
  tracepoints of their own, so that nothing of a load is missed that it begins with.
- *counting*: every call is looked at, and counts if it belongs to a load.

Up it goes at once, by ``wake``; down after a while, a step at a time, by ``turn``. To attach to a
call takes 0.2 ms. To detach takes 40 to 70 ms, one after the other, in which the kernel waits for
all processors: a thread does it.
"""

from __future__ import annotations

import math
import os
import threading
import time
from enum import StrEnum

from dynahugd.probes import attach, layout, syscalls
from dynahugd.probes.loaders import Programs
from dynahugd.probes.maps import Maps
from dynahugd.probes.syscalls import Action

__all__ = ["ProbeStage", "Stages"]

#: What has no tracepoint of its own: reads, which are most of what other processes do.
_UNSEEN = (Action.NOTHING, Action.TOUCH, Action.IGNORE)


class ProbeStage(StrEnum):
    """How much is attached: the label ``stage`` of the metric."""

    RESTING = "resting"
    WATCHING = "watching"
    COUNTING = "counting"


class Stages:
    """Attaches to system calls, and detaches, as loads come and go.

    Attributes
    ----------
    quiet : seconds without a load or a new ML process after which calls are no longer counted.
    rest : seconds without an ML process after which none are watched.
    """

    def __init__(self, programs: Programs, maps: Maps, quiet: float, rest: float) -> None:
        self.quiet, self.rest = quiet, rest
        self._programs = programs
        self._maps = maps
        self._opens: list[int] = []
        self._counting: int | None = None
        #: Descriptors by the number of each call that has a tracepoint of its own.
        self._apart: dict[int, list[int]] = {}
        self._can_watch = True
        self._detaching: threading.Thread | None = None
        self._busy = self._tracked = -math.inf

    @property
    def stage(self) -> ProbeStage:
        """How much is attached now."""
        if not self._opens:
            return ProbeStage.RESTING
        return ProbeStage.WATCHING if self._counting is None else ProbeStage.COUNTING

    @property
    def detaching(self) -> bool:
        """Whether the kernel has not yet let go of all that was left."""
        return self._detaching is not None and self._detaching.is_alive()

    def wake(self) -> None:
        """A load begins, or a new ML process: count from now on.

        Raises
        ------
        DynahugError : the kernel refuses.
        """
        since = self._maps.config
        if self._counting is None:
            self._counting = attach.attach_counting(self._programs)
        if not self._opens:
            if self._detaching is not None:
                self._detaching.join()  # a program is attached to an event once
            self._opens, self._can_watch = attach.attach_opens(self._programs)
        now = time.monotonic_ns()
        if since["watched"][0] == layout.NEVER:
            since["watched"] = now
        if since["counted"][0] == layout.NEVER:
            since["counted"] = now
        self._busy = self._tracked = now / 1e9

    def turn(self, now: float, tracked: bool, loading: bool) -> None:
        """Go down a step where it is time to.

        Parameters
        ----------
        now : CLOCK_MONOTONIC, s.
        tracked : an ML process lives, or a descendant of a load.
        loading : a load is open, or its descendants are followed.
        """
        if loading or (tracked and not self._opens):
            self.wake()  # the record that should have done so may be lost
        if tracked:
            self._tracked = now
        if not self._opens or self.detaching:
            return
        if now - self._tracked > self.rest:
            self._stand_down()
        elif self._counting is not None and self._can_watch and now - self._busy > self.quiet:
            self._quieten()

    def _quieten(self) -> None:
        """From counting to watching."""
        if not self._apart:
            self._attach_calls()
        elif self._maps.config["counted"][0] != layout.NEVER:
            # A load that begins before the next turn will say that it is not counted whole.
            self._maps.config["counted"] = layout.NEVER
        elif self._counting is not None:
            os.close(self._counting)
            self._counting = None

    def _attach_calls(self) -> None:
        numbers = syscalls.numbers(syscalls.machine())
        for name, action in syscalls.ACTIONS.items():
            if name not in numbers or action in _UNSEEN:
                continue
            try:
                fds = attach.attach_call(self._programs, name)
            except OSError:
                self._can_watch = False  # then every call is looked at for as long as it takes
                return
            if fds:
                self._apart[numbers[name]] = fds
                self._maps.set_action(numbers[name], action, apart=True)

    def _stand_down(self) -> None:
        """From counting or watching to resting; between the two, counting takes over."""
        if self._apart:
            if self._counting is None:
                self._counting = attach.attach_counting(self._programs)
            names = syscalls.names(syscalls.machine())
            for number in self._apart:
                self._maps.set_action(number, syscalls.ACTIONS[names[number]])
            self._detach([fd for fds in self._apart.values() for fd in fds])
            self._apart.clear()
            return
        config = self._maps.config
        config["watched"] = config["counted"] = layout.NEVER
        if self._counting is not None:
            os.close(self._counting)
            self._counting = None
        self._detach(self._opens)
        self._opens = []

    def _detach(self, fds: list[int]) -> None:
        self._detaching = threading.Thread(target=attach.detach, args=(fds,), name="detach")
        self._detaching.start()

    def close(self) -> None:
        """Detach from all system calls; after watching, the kernel takes seconds for it."""
        if self._detaching is not None:
            self._detaching.join()
        if self._counting is not None:
            os.close(self._counting)
            self._counting = None
        attach.detach([fd for fds in self._apart.values() for fd in fds])
        self._apart.clear()
        attach.detach(self._opens)
        self._opens = []
