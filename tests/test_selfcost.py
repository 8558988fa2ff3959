"""What a daemon says that it costs, beside what the kernel and its tools say of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dynahugd.baseline import embedded
from dynahugd.probes import kernel
from dynahugd.probes.kernel import MapType
from dynahugd.probes.layout import RECORD
from tests.harness import RunningDaemon

pytestmark = pytest.mark.ebpf

HEADER = 8  # bytes before each record in the ring
STATISTICS = Path("/proc/sys/kernel/bpf_stats_enabled")
HOLDS = """
import sys
held = open(sys.argv[1], "rb")
print(flush=True)
sys.stdin.read()
"""


def samples(daemon: RunningDaemon) -> dict[str, float]:
    """All samples of one scrape, by name with labels."""
    lines = daemon.get("/metrics")[1].splitlines()
    split = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in split}


def until(condition: Callable[[], bool]) -> bool:
    """Whether a condition comes true within some seconds."""
    end = time.monotonic() + 10
    while not (met := condition()) and time.monotonic() < end:
        time.sleep(0.05)
    return met


def held_by(daemon: RunningDaemon, kind: str) -> list[dict[str, object]]:
    """Maps or programs that a daemon holds (``map``, ``prog``), as bpftool shows them."""
    shown = json.loads(subprocess.check_output(["bpftool", "--json", kind, "show"]))
    pid = daemon.process.pid
    texts = (info.read_text() for info in Path(f"/proc/{pid}/fdinfo").iterdir())
    own = {found[1] for text in texts if (found := re.search(rf"{kind}_id:\s*(\d+)", text))}
    return [item for item in shown if str(item["id"]) in own]


@contextmanager
def holding(path: Path) -> Iterator[None]:
    """A Python that has a file open."""
    command = [sys.executable, "-c", HOLDS, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield
        process.communicate()


def test_cpu_and_memory_are_those_of_the_process(daemon: RunningDaemon) -> None:
    now = samples(daemon)
    modes = [
        now[f'dynahugd_self_cpu_seconds_total{{mode="{mode}"}}'] for mode in ("user", "system")
    ]
    assert all(modes)
    assert sum(modes) == pytest.approx(now["process_cpu_seconds_total"], abs=0.1)
    parts = [now[f'dynahugd_self_memory_bytes{{part="{part}"}}'] for part in ("private", "mapped")]
    assert all(parts)
    assert sum(parts) == pytest.approx(now["process_resident_memory_bytes"], rel=0.05)


def test_memory_in_the_kernel_is_that_of_its_maps_and_programs(daemon: RunningDaemon) -> None:
    held = held_by(daemon, "map") + held_by(daemon, "prog")
    charged = sum(int(str(item["bytes_memlock"])) for item in held)
    # bcc keeps maps of its own.
    assert 0 < samples(daemon)['dynahugd_self_memory_bytes{part="kernel"}'] <= charged
    assert samples(daemon)['dynahugd_self_memory_bytes{part="kernel"}'] > 0.9 * charged


def test_an_open_model_fills_the_tables_until_it_is_closed(
    daemon: RunningDaemon, tmp_path: Path
) -> None:
    def used(table: str) -> float:
        return samples(daemon)[f'dynahugd_self_table_entries{{table="{table}"}}']

    model = tmp_path / "model.pt"
    model.write_bytes(b"\x80\x02N.")
    daemon.settle()
    before = {table: used(table) for table in ("loads", "tasks", "files")}
    with holding(model):
        assert until(lambda: all(used(table) > before[table] for table in before))
    assert until(lambda: all(used(table) <= before[table] for table in before))


def test_all_globals_of_the_baseline_are_in_the_table(daemon: RunningDaemon) -> None:
    now = samples(daemon)
    # Some are longer than a key holds; benign messages of this host may have added some.
    known = len(embedded().known_globals)
    assert now['dynahugd_self_table_entries{table="globals"}'] == pytest.approx(known, rel=0.1)


def test_the_room_in_the_tables_is_what_the_configuration_says(tmp_path: Path) -> None:
    file = tmp_path / "dynahugd.toml"
    file.write_text(
        "[tables]\nmax_loads = 65\nmax_tasks = 4097\nmax_files = 129\nmax_globals = 8193\n"
        "ring_bytes = 65536\n"
    )
    with RunningDaemon(tmp_path, "--config", str(file)) as daemon:
        now = samples(daemon)
    room = "dynahugd_self_table_max_entries"
    tables = {"loads": 65, "tasks": 4097, "files": 129, "globals": 8193}
    assert {table: now[f'{room}{{table="{table}"}}'] for table in tables} == tables
    assert now["dynahugd_self_ring_max_bytes"] == 65536


def test_what_was_read_is_all_records(daemon: RunningDaemon, tmp_path: Path) -> None:
    def read_and_counted() -> tuple[float, float]:
        now = samples(daemon)
        records = sum(now[name] for name in now if name.startswith("dynahugd_records_total{"))
        return now["dynahugd_self_ring_read_bytes_total"], records * (RECORD.itemsize + HEADER)

    model = tmp_path / "model.pt"
    model.write_bytes(b"\x80\x02N.")
    before, _ = read_and_counted()
    with holding(model):
        pass
    assert until(lambda: read_and_counted()[0] > before)
    # A scrape may fall between reading records and counting them.
    assert until(lambda: len(set(read_and_counted())) == 1)
    assert until(lambda: samples(daemon)["dynahugd_self_ring_bytes"] == 0)


def test_programs_are_timed_only_while_the_kernel_does_so(daemon: RunningDaemon) -> None:
    def timed() -> dict[str, float]:
        return {name: value for name, value in samples(daemon).items() if "_program_" in name}

    runs = 'dynahugd_self_program_runs_total{program="dh_exec"}'
    spent = 'dynahugd_self_program_seconds_total{program="dh_exec"}'
    before = STATISTICS.read_text()
    try:
        STATISTICS.write_text("1")
        first = timed()
        for _ in range(10):
            subprocess.run(["true"], check=True)
        later = timed()
        assert later[runs] >= first[runs] + 10
        assert 0 < later[spent] - first[spent] < 1
        told = {item["name"]: item.get("run_cnt", 0) for item in held_by(daemon, "prog")}
        assert timed()[runs] >= int(str(told["dh_exec"])) >= later[runs]
        STATISTICS.write_text("0")
        assert timed() == {}
    finally:
        STATISTICS.write_text(before)


@pytest.mark.parametrize("elements", [0, 1, 1000])
def test_elements_of_a_map_are_counted(elements: int) -> None:
    fd = kernel.create_map(MapType.HASH, 4, 8, 1000, 0, "test")
    for number in range(elements):
        kernel.update_element(fd, number.to_bytes(4, "little"), bytes(8))
    assert kernel.count_elements(fd, 4, 8, 1000) == elements
    os.close(fd)
