"""The benchmarks of the daemon's cost: what they make of samples, and that the cheap ones run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.cost.conditions import Condition, interleave
from benchmarks.cost.figures import Goal, Row, Samples, Table, compare, count, seconds
from benchmarks.cost.watching import Daemon, tracked_tasks, watching

#: What the benchmarks need besides what the tests have.
MISSING = [name for name in ("redis-server", "bpftrace", "strace") if shutil.which(name) is None]


def samples_of(**conditions: list[float]) -> Samples:
    """Samples of one case by condition."""
    samples = Samples()
    for condition, values in conditions.items():
        for turn, value in enumerate(values):
            samples.add("case", condition, turn, value)
    return samples


def test_a_ratio_is_taken_within_each_round() -> None:
    samples = samples_of(base=[1.0, 10.0, 100.0], other=[2.0, 20.0, 200.0])
    ratio = samples.ratio("case", "other", "base")
    assert (ratio.median, ratio.spread, ratio.rounds) == (2.0, 0.0, 3)
    assert samples.difference("case", "other", "base") == 10.0


def test_a_condition_that_sits_out_rounds_is_compared_in_its_own_alone() -> None:
    assert samples_of(base=[1.0, 5.0, 5.0], other=[3.0]).ratio("case", "other", "base").median == 3


def test_conditions_take_turns_in_alternating_order() -> None:
    order = []

    def measure(condition: Condition) -> dict[str, float]:
        order.append(condition.name)
        return {"case": 1.0}

    conditions = [Condition("a"), Condition("b", every=2), Condition("c")]
    samples = interleave(conditions, 3, measure)
    assert "".join(order) == "abc" + "ca" + "abc"
    assert samples.rounds("case", "b") == 2


def test_a_comparison_has_a_column_for_each_condition() -> None:
    samples = samples_of(base=[1e-3, 1e-3], other=[2e-3, 3e-3])
    header, (row,) = compare(samples, ["case"], ["base", "other", "absent"])
    assert header == ("", "base", "other", "absent", "rounds")
    assert row.cells == ("case", "1.00 ms", "2.50 ms (2.500x ±0.250)", "-", "2")


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (seconds(1.234), "1.23 s"),
        (seconds(0.1), "100 ms"),
        (seconds(25e-9), "25.0 ns"),
        (seconds(-2e-6), "-2.00 us"),
        (seconds(0), "0.00 ns"),
        (count(50_000), "50.0 k"),
        (count(7), "7"),
        (count(2.5e6), "2.50 M"),
    ],
)
def test_figures_have_units(shown: str, text: str) -> None:
    assert shown == text


def test_a_table_says_whether_goals_are_met() -> None:
    rows = (
        Row(("a", "1"), Goal("<= 2", 1, 2, "1")),
        Row(("b", "3"), Goal("<= 2", 3, 2, "3")),
        Row(("c", "-")),
    )
    assert list(Table("", ("", "figure"), rows).lines()) == [
        "|  | figure | goal | result |",
        "|---|---|---|---|",
        "| a | 1 | <= 2 | met: 1 |",
        "| b | 3 | <= 2 | missed: 3 |",
        "| c | - | - | - |",
        "",
    ]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of the cheap parts, in the smallest size."""
    if MISSING and "CI" not in os.environ:
        pytest.skip(f"needs {', '.join(MISSING)}")
    parts = ["box", "load", "interpreter", "kernel", "reader", "alerts"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.cost", "--tiny", "--only", *parts],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def table_of(page: str, title: str) -> list[list[str]]:
    """Cells of the first table of a section, its header first."""
    section = page.split(f"\n## {title}\n", 1)[1]
    lines = re.search(r"(?:^\|.*\n)+", section, re.MULTILINE)
    assert lines, title
    rows = [line.strip("|").split("|") for line in lines[0].splitlines()]
    return [[cell.strip() for cell in row] for row in (rows[0], *rows[2:])]


@pytest.mark.ebpf
def test_the_page_names_the_machine_and_every_goal_that_is_missed(page: str) -> None:
    assert f"{os.cpu_count()} cores" in page
    assert os.uname().release in page
    said = re.search(r"^(\d+) of (\d+) goals are met", page, re.MULTILINE)
    assert said
    assert page.count("| missed: ") == int(said[2]) - int(said[1])
    listed = page.split("Missed:\n")[1].split("\n## ")[0]
    assert listed.count("\n- ") == page.count("| missed: ")


@pytest.mark.ebpf
@pytest.mark.parametrize(
    ("section", "conditions"),
    [
        ("A load", ["nothing", "nothing, again", "dynahugd", "strace -f -c", "bpftrace"]),
        ("The interpreter", ["nothing", "nothing, again", "dynahugd", "uprobe on PySys_Audit"]),
    ],
)
def test_what_a_user_would_take_instead_stands_beside(
    page: str, section: str, conditions: list[str]
) -> None:
    header, *rows = table_of(page, section)
    assert header[1 : 1 + len(conditions)] == conditions
    assert header[-3:] == ["rounds", "goal", "result"]
    for row in rows:
        assert re.match(r"[\d.]+ [nmu]?s$", row[1])
        for cell in row[2 : 1 + len(conditions)]:
            assert re.match(r"[\d.]+ [nmu]?s \([\d.]+x( ±[\d.]+)?\)$", cell), cell


@pytest.mark.ebpf
def test_the_rest_of_the_host_is_measured_with_and_without_ml_processes(page: str) -> None:
    _, *rows = table_of(page, "The rest of the host")
    conditions = {f"no daemon, {other}" for other in ("again", "a tracepoint", "an empty program")}
    conditions |= {"daemon, no ML process", "daemon, idle ML process", "loads, daemon"}
    for case in ("getppid", "redis, a request"):
        assert {row[1] for row in rows if row[0] == case} == conditions
    assert 'its stage was counting, later counting under "loads, daemon"' in page
    # These tests are an ML process themselves, and the page says so.
    assert re.search(r"tracked \d+ to \d+ tasks under \"daemon, no ML process\"", page)
    assert "**other ML processes lived" in page


@pytest.mark.ebpf
def test_each_reader_of_the_ring_reads_what_was_submitted(page: str) -> None:
    _, *rows = table_of(page, "The reader of the ring")
    assert {row[2] for row in rows} == {"dynahugd", "libbpf, callback", "bcc, callback"}
    at_best = [row for row in rows if row[1] == "at its best"]
    assert [row[4] for row in at_best] == ["0"] * 3


@pytest.mark.ebpf
def test_the_programs_of_the_kernel_side_are_timed(page: str) -> None:
    _, *rows = table_of(page, "The kernel side")
    assert {"`dh_enter`", "`dh_unpickle`", "`dh_unpickled`"} <= {row[0] for row in rows}


@pytest.mark.ebpf
def test_alerts_are_looked_for_in_the_log_and_in_the_metrics(page: str) -> None:
    _, *rows = table_of(page, "Time to alert")
    places = [(place, name) for place in ("the alert log", "/metrics") for name in ("p50", "p99")]
    assert [tuple(row[:2]) for row in rows if row[1] != "most"] == places


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """A daemon as the benchmarks run it."""
    with watching() as running:
        yield running


@pytest.mark.ebpf
def test_a_measured_daemon_tells_its_cpu_metrics_and_tasks(daemon: Daemon, tmp_path: Path) -> None:
    before = daemon.cpu()
    assert daemon.total("dynahugd_ready") == 1
    assert daemon.cpu() > before > 0
    assert (tracked_tasks(daemon.pid) or 0) > 0  # this process, at least
