"""Reading the ring buffer in batches, without a callback per record.

The layout is that of ``kernel/bpf/ringbuf.c``: a page with the consumer's position, a page with the
producer's, then the data, mapped twice in a row so that a record never wraps. Every record has a
header of 8 bytes: its length, with the top bits for *busy* (being written) and *discarded*.

Memory order: the producer writes the record, clears the busy bit and moves its position with a
release store; the kernel's contract asks the consumer for an acquire load of both. On x86-64 loads
are not reordered with loads, so plain loads do. arm64 may reorder them: a record could be read
before the header that declares it complete. Between reading the headers and reading the records we
make a system call-free but full barrier available to Python: a lock acquire and release, which is
an acquire-release pair on every architecture that CPython supports. The consumer's position is
published after the copy; a store cannot move before the loads it depends on in program order on
x86-64, and the same lock orders it on arm64.
"""

from __future__ import annotations

import mmap
import os
import select
import threading
from typing import Any

import numpy as np
import numpy.typing as npt

from dynahugd.probes import layout

__all__ = ["Ring"]

_BUSY = np.uint32(1 << 31)
_DISCARDED = np.uint32(1 << 30)
_HEADER = 8
_TRIES = 100


class Ring:
    """The consumer's side of one BPF ring buffer that holds records of one size.

    Parameters
    ----------
    fd : descriptor of the map.
    size : bytes of its data, a power of two.
    dtype : what a record looks like; its size is a multiple of 8 bytes, less than a page.

    Attributes
    ----------
    size : bytes of its data.
    """

    def __init__(self, fd: int, size: int, dtype: np.dtype[np.void] = layout.RECORD) -> None:
        page = mmap.PAGESIZE
        self._dtype = dtype
        self._stride = dtype.itemsize + _HEADER
        self.size = size
        self._mask = size - 1
        self._consumer_area = mmap.mmap(fd, page)
        # Of the second copy only what the last record needs: all that is mapped counts as resident.
        self._producer_area = mmap.mmap(
            fd, page + size + page, mmap.MAP_SHARED, mmap.PROT_READ, offset=page
        )
        self._consumer = np.frombuffer(self._consumer_area, np.uint64, 1)
        self._producer = np.frombuffer(self._producer_area, np.uint64, 1)
        self._data = np.frombuffer(self._producer_area, np.uint8, size + page, page)
        self._barrier = threading.Lock()
        self._poll = select.epoll()
        self._poll.register(fd, select.EPOLLIN)
        self._woken = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll.register(self._woken, select.EPOLLIN)

    def wait(self, seconds: float) -> None:
        """Sleep until there are records, the time is over, or somebody wakes us."""
        for fd, _ in self._poll.poll(max(seconds, 0.0)):
            if fd == self._woken:
                os.eventfd_read(fd)

    def wake(self) -> None:
        """End the wait that lasts, or else the next one; for signal handlers and other threads.

        A signal alone does not: Python goes on with what it has interrupted (PEP 475).
        """
        os.eventfd_write(self._woken, 1)

    def read(self) -> npt.NDArray[np.void]:
        """All complete records, oldest first, as a copy; shape (n,), n may be 0.

        Those behind the end of the data come with the next call.

        Waits some microseconds for a record that is still being written, then stops before it, as
        the kernel's own consumer does.
        """
        consumed = int(self._consumer[0])
        with self._barrier:
            available = int(self._producer[0]) - consumed
        start = consumed & self._mask
        count = min(available // self._stride, -((start - self.size) // self._stride))
        if count <= 0:
            return np.empty(0, self._dtype)
        headers = self._strided(np.dtype(np.uint32), start, count)
        # Copied as plain bytes: as structures, records would take twice as long.
        whole = self._strided(np.dtype((np.void, self._dtype.itemsize)), start + _HEADER, count)
        for _ in range(_TRIES):
            states = headers & (_BUSY | _DISCARDED)
            worst = int(states.max())
            if worst < _BUSY:
                break
        with self._barrier:
            if worst:
                busy = np.flatnonzero(states & _BUSY)
                if busy.size:
                    count = int(busy[0])
                records = whole[np.flatnonzero(states[:count] == 0)]
            else:
                records = whole.copy()
        self._consumer[0] = consumed + count * self._stride
        return records.view(self._dtype)

    def _strided(self, dtype: np.dtype[Any], start: int, count: int) -> npt.NDArray[Any]:
        """One item of each of some records, in place."""
        return np.ndarray((count,), dtype, self._data, start, (self._stride,))

    def positions(self) -> tuple[int, int]:
        """Bytes, headers included, that wait to be read, and that were read so far."""
        read = int(self._consumer[0])
        return max(int(self._producer[0]) - read, 0), read

    def close(self) -> None:
        """Stop waiting; the mappings go with the object."""
        self._poll.close()
        os.close(self._woken)
