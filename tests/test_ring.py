"""Reading a ring that a program in the kernel fills: what it discards, what it has not finished."""

from __future__ import annotations

import ctypes
import os
import struct
import threading
from collections.abc import Iterator
from typing import Any

import bcc
import pytest

from dynahugd.probes import syscalls
from dynahugd.probes.layout import RECORD
from dynahugd.probes.ring import Ring

pytestmark = pytest.mark.ebpf

PAGES = 4
SIZE = PAGES << 12  # 45 records, and room for a part of one
TEST_RUN = 10  # BPF_PROG_TEST_RUN
SOURCE = """
struct record { u64 time; u8 rest[SIZE - 8]; };
BPF_RINGBUF_OUTPUT(ring, PAGES);
BPF_ARRAY(last, u64, 1);

int every_third_discarded(struct __sk_buff *skb)
{
	int zero = 0;
	u64 *number = last.lookup(&zero);
	struct record *r;

	if (!number)
		return 0;
	r = ring.ringbuf_reserve(sizeof(*r));
	if (!r)
		return 0;
	r->time = ++*number;
	if (*number % 3 == 0)
		ring.ringbuf_discard(r, 0);
	else
		ring.ringbuf_submit(r, 0);
	return 0;
}

int second_before_first(struct __sk_buff *skb)
{
	struct record *first, *second;
	int i;

	first = ring.ringbuf_reserve(sizeof(*first));
	if (!first)
		return 0;
	second = ring.ringbuf_reserve(sizeof(*second));
	if (second) {
		second->time = 2;
		ring.ringbuf_submit(second, 0);
	}
	for (i = 0; i < 20000; i++)
		bpf_ktime_get_ns();
	first->time = 1;
	ring.ringbuf_submit(first, 0);
	return 0;
}
"""


class Filled:
    """A ring, and programs that fill it."""

    def __init__(self) -> None:
        source = SOURCE.replace("SIZE", str(RECORD.itemsize)).replace("PAGES", str(PAGES))
        self._module: Any = bcc.BPF(text=source.encode())
        self.ring = Ring(self._module[b"ring"].map_fd, SIZE)

    def run(self, program: str, times: int = 1) -> None:
        """Have a program run some times."""
        fd = self._module.load_func(program.encode(), bcc.BPF.SOCKET_FILTER).fd
        packet = ctypes.create_string_buffer(64)
        attributes = struct.pack(
            "<4I2Q2I", fd, 0, len(packet), 0, ctypes.addressof(packet), 0, times, 0
        )
        number = syscalls.numbers(syscalls.machine())["bpf"]
        result = ctypes.CDLL(None, use_errno=True).syscall(
            number, TEST_RUN, attributes, len(attributes)
        )
        assert result == 0, os.strerror(ctypes.get_errno())

    def read(self) -> list[int]:
        """What is in the ring."""
        times: list[int] = self.ring.read()["time"].tolist()
        return times


@pytest.fixture
def filled() -> Iterator[Filled]:
    """A ring with nothing in it yet."""
    filled = Filled()
    yield filled
    filled.ring.close()


def test_what_is_discarded_is_left_out_wherever_the_ring_begins_anew(filled: Filled) -> None:
    found = []
    for _ in range(10):
        filled.run("every_third_discarded", 30)
        while filled.ring.positions()[0]:
            found += filled.read()
    assert found == [number for number in range(1, 301) if number % 3]


def test_a_full_ring_is_read_to_its_last_record(filled: Filled) -> None:
    filled.run("every_third_discarded", 100)
    found = filled.read() + filled.read()
    assert found == [number for number in range(1, SIZE // (RECORD.itemsize + 8) + 1) if number % 3]
    assert filled.ring.positions()[0] == 0


def test_a_record_that_is_being_written_holds_back_those_behind_it(filled: Filled) -> None:
    waited = 0
    for _ in range(20):
        found = []
        writer = threading.Thread(target=filled.run, args=("second_before_first",))
        writer.start()
        while writer.is_alive() or filled.ring.positions()[0]:
            if filled.ring.positions()[0]:
                records = filled.read()
                waited += not records
                found += records
        assert found == [1, 2]
    assert waited, "nobody looked while a record was being written"
