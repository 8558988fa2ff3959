"""Processes that were started while nothing watched what they open.

A program that embeds an interpreter is known by the library that it opens or, if that library is
known already, by the probe in it. While nothing is on the way of system calls, nobody sees it open
one that is new: so each process that has executed a program is looked at some times in its first
half minute.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

__all__ = ["Newcomers"]

#: Seconds from one look at a process to the next.
_WAITS = (0.0, 1.0, 4.0, 25.0)

#: Processes that wait for a look, at each of these; looks in one turn, 50 us each.
_WAITING, _AT_ONCE = 4096, 32


class Newcomers:
    """Looks at new processes.

    Parameters
    ----------
    arrived : the processes (tgids) that have executed a program since the last call.
    look : whether a process is an ML process.
    """

    def __init__(self, arrived: Callable[[], list[int]], look: Callable[[int], bool]) -> None:
        self._arrived, self._look = arrived, look
        self._queues: tuple[deque[tuple[float, int]], ...] = tuple(
            deque(maxlen=_WAITING) for _ in _WAITS
        )

    def turn(self, now: float) -> list[int]:
        """Look at those whose time has come; the ML processes among them.

        Parameters
        ----------
        now : CLOCK_MONOTONIC, s.
        """
        self._queues[0].extend((now, tgid) for tgid in self._arrived())
        found = []
        left = _AT_ONCE
        for number, queue in enumerate(self._queues):
            while queue and left and queue[0][0] <= now:
                left -= 1
                _, tgid = queue.popleft()
                if self._look(tgid):
                    found.append(tgid)
                elif number + 1 < len(_WAITS):
                    self._queues[number + 1].append((now + _WAITS[number + 1], tgid))
        return found
