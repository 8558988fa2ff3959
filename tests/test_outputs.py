"""Outputs: lines for people, JSON for programs, metrics for Prometheus - none of them breakable."""

from __future__ import annotations

import json
import math
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from dynahugd.baseline import Reason, Score
from dynahugd.errors import DynahugError
from dynahugd.loads import Load
from dynahugd.outputs.alertlog import AlertLog
from dynahugd.outputs.clock import WallClock
from dynahugd.outputs.metrics import METRICS, Snapshot, documentation, registry
from dynahugd.outputs.tally import Histogram, Tally
from dynahugd.outputs.text import as_object, as_text
from dynahugd.probes.batch import Batch
from dynahugd.probes.formats import FORMATS
from dynahugd.probes.layout import RECORD, Bank, Kind, Loss
from dynahugd.probes.stages import ProbeStage
from dynahugd.probes.usage import Usage
from dynahugd.verdicts import Evidence, Stage, Verdict, VerdictKind

HOSTILE = os.fsdecode(b'/m/\x1b[2J\r\n{"verdict": "benign"}\xff\xe2\x80\xae%s\\')
ESCAPED = '/m/\\x1b[2J\\x0d\\x0a{"verdict": "benign"}\\xff\\u202e%s\\\\'
CLOCK = WallClock(offset=1_777_887_000_000_000_000)  # 2026-05-04T09:30:00Z at boot

SCORE = Score(
    61.5,
    3e-7,
    "pickle-1",
    (
        Reason("execute.shell", 1, 0, 0, 120, 53.4),
        Reason("child.connect.public", 3, 0, 0, 120, 53.0),
        Reason("calls.read", 9000, 5, 70, 120, 4.2),
    ),
)
EVIDENCE = (
    Evidence(1_000_123_000, "execute.shell", "execve", f"execve {HOSTILE}"),
    Evidence(1_000_200_000, "child.connect.public", "connect", "connect 8.8.8.8:53"),
)


def a_verdict(
    kind: VerdictKind = VerdictKind.ANOMALOUS,
    stage: Stage = Stage.ALERT,
    path: str = "/models/m.pkl",
    form: str = "pickle",
    p_value: float = 3e-7,
    latency: float | None = 0.004,
    note: str = "",
) -> Verdict:
    """A verdict on a load of one second."""
    counters = np.zeros((3, 512), np.uint64)
    counters[Bank.OUTSIDE, 0], counters[Bank.CHILDREN, 1] = 40, 2
    load = Load(
        id=0xABC,
        begin=1_000_000_000,
        end=2_000_000_000,
        tgid=40,
        tid=41,
        uid=1000,
        comm="python3",
        cgroup=2**63,
        exe="/usr/bin/python3",
        path=path,
        format=form,
        counters=counters,
    )
    anomalous = kind is VerdictKind.ANOMALOUS
    return Verdict(
        load,
        stage,
        kind,
        1_500_000_000,
        replace(SCORE, p_value=p_value),
        EVIDENCE if anomalous else (),
        latency,
        note,
    )


# -------------------------------------------------------------------------------------------- text


def test_a_verdict_is_a_line_and_an_anomaly_has_a_line_for_each_reason() -> None:
    first, *reasons = as_text(a_verdict(), CLOCK).splitlines()
    local = CLOCK.at(1_500_000_000).astimezone().strftime("%H:%M:%S")
    assert first == (f"{local}.500 ANOMALOUS    p=3e-07 pickle       python3[40] /models/m.pkl")
    assert reasons == [
        "    executed a program of class shell; none of 120 benign loads like it ever did: execve "
        + ESCAPED,
        "    a child connected to an address of class public 3 times; none of 120 benign loads "
        "like it ever did: connect 8.8.8.8:53",
        "    called read 9000 times; benign loads like it 5 to 70 times (120 loads)",
    ]
    benign = as_text(a_verdict(VerdictKind.BENIGN, p_value=0.5, path=""), CLOCK)
    assert benign.endswith(" benign       p=0.5 pickle       python3[40] (no file)")
    lost = a_verdict(VerdictKind.INCONCLUSIVE, note="3 records of this load were lost")
    assert as_text(lost, CLOCK).endswith("/models/m.pkl (3 records of this load were lost)")


def hostile_verdict(text: str) -> Verdict:
    """A verdict all of whose text is hostile."""
    verdict = a_verdict(path=text)
    verdict.load.comm = verdict.load.exe = text
    evidence = tuple(replace(item, detail=text) for item in EVIDENCE)
    return replace(verdict, evidence=evidence)


@given(st.one_of(st.binary(max_size=60).map(os.fsdecode), st.text(max_size=30)))
@settings(deadline=None)
def test_hostile_text_makes_no_lines_and_no_json_of_its_own(text: str) -> None:
    verdict = hostile_verdict(text)
    lines = as_text(verdict, CLOCK).split("\n")
    assert len(lines) == 4
    assert all(line.isprintable() for line in lines)
    line = json.dumps(as_object(verdict, CLOCK), ensure_ascii=False)
    assert line.isprintable()
    assert json.loads(line.encode())["verdict"] == "anomalous"


def texts_of(value: object) -> list[str]:
    """All texts in an object."""
    if isinstance(value, dict):
        return [text for part in value.values() for text in texts_of(part)]
    if isinstance(value, list):
        return [text for part in value for text in texts_of(part)]
    return [value] if isinstance(value, str) else []


def test_text_has_a_limit() -> None:
    verdict = hostile_verdict("\x1b" * 100_000)
    assert len(as_text(verdict, CLOCK)) < 2 * 4096 + 3 * 400
    assert all(len(part) <= 4096 for part in texts_of(as_object(verdict, CLOCK)))


def test_the_object_has_all_documented_fields() -> None:
    assert as_object(a_verdict(path=HOSTILE), CLOCK) == {
        "time": "2026-05-04T09:30:01.500000Z",
        "stage": "alert",
        "load_id": "0000000000000abc",
        "tgid": 40,
        "tid": 41,
        "comm": "python3",
        "exe": "/usr/bin/python3",
        "uid": 1000,
        "cgroup": 2**63,
        "path": ESCAPED,
        "format": "pickle",
        "verdict": "anomalous",
        "p_value": 3e-7,
        "score": 61.5,
        "cluster": "pickle-1",
        "reasons": [
            {
                "feature": "execute.shell",
                "value": 1,
                "benign": [0, 0],
                "benign_loads": 120,
                "words": "executed a program of class shell; none of 120 benign loads like it ever "
                "did",
            },
            {
                "feature": "child.connect.public",
                "value": 3,
                "benign": [0, 0],
                "benign_loads": 120,
                "words": "a child connected to an address of class public 3 times; none of 120 "
                "benign loads like it ever did",
            },
            {
                "feature": "calls.read",
                "value": 9000,
                "benign": [5, 70],
                "benign_loads": 120,
                "words": "called read 9000 times; benign loads like it 5 to 70 times (120 loads)",
            },
        ],
        "evidence": [
            {
                "time": "2026-05-04T09:30:01.000123Z",
                "kind": "execve",
                "detail": f"execve {ESCAPED}",
            },
            {
                "time": "2026-05-04T09:30:01.000200Z",
                "kind": "connect",
                "detail": "connect 8.8.8.8:53",
            },
        ],
        "note": "",
    }


def test_kernel_times_are_told_as_now() -> None:
    assert abs(WallClock().at(time.monotonic_ns()).timestamp() - time.time()) < 1


# --------------------------------------------------------------------------------------- alert log


def lines_of(path: Path) -> list[str]:
    """The paths of the loads that a log names, line by line."""
    return [json.loads(line)["path"] for line in path.read_text().splitlines()]


def test_alerts_are_appended_and_a_log_that_was_moved_away_is_begun_anew(tmp_path: Path) -> None:
    path, moved = tmp_path / "alerts.jsonl", tmp_path / "alerts.jsonl.1"
    path.write_text('{"path": "before"}\n')
    log = AlertLog(str(path))
    log.write(a_verdict(path="one\n"), CLOCK)
    path.rename(moved)
    log.write(a_verdict(path="two"), CLOCK)
    log.write(a_verdict(path="three"), CLOCK)
    path.unlink()
    log.write(a_verdict(path="four"), CLOCK)
    path.rename(moved.with_suffix(".2"))
    path.touch()  # by the program that rotates
    log.write(a_verdict(path="five"), CLOCK)
    log.close()
    assert lines_of(moved) == ["before", "one\\x0a"]
    assert lines_of(moved.with_suffix(".2")) == ["four"]
    assert lines_of(path) == ["five"]
    mode = moved.with_suffix(".2").stat().st_mode
    assert mode & 0o027 == 0, "alerts are not everybody's"


def test_two_logs_of_one_file_do_not_mix_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "alerts.jsonl"
    logs = [AlertLog(str(path)) for _ in range(2)]

    def alert(log: AlertLog) -> None:
        for _ in range(200):
            log.write(a_verdict(path="x" * 3000), CLOCK)

    threads = [threading.Thread(target=alert, args=(log,)) for log in logs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lines_of(path) == ["x" * 3000] * 400


def test_a_log_that_cannot_be_opened_is_a_users_error(tmp_path: Path) -> None:
    for name, word in (("no\n/alerts", "No such file"), (".", "Is a directory")):
        with pytest.raises(DynahugError, match=word) as caught:
            AlertLog(f"{tmp_path}/{name}")
        assert str(caught.value).isprintable()


def test_a_log_that_cannot_be_written_now_can_be_later(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    log = AlertLog(f"{folder}/alerts.jsonl")
    folder.rename(tmp_path / "away")
    for _ in range(2):
        with pytest.raises(OSError, match="No such file"):
            log.write(a_verdict(), CLOCK)
    folder.mkdir()
    log.write(a_verdict(path="later"), CLOCK)
    assert lines_of(folder / "alerts.jsonl") == ["later"]
    full = AlertLog("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        full.write(a_verdict(), CLOCK)


# ----------------------------------------------------------------------------------------- metrics


def busy_tally() -> Tally:
    """A tally after a few batches and verdicts."""
    tally = Tally()
    records = np.zeros(5, RECORD)
    records["kind"] = [Kind.BEGIN, Kind.CALL, Kind.CALL, Kind.CALL, Kind.END]
    tally.take_batch(Batch(0, True, records))
    tally.take_batch(Batch(0, True, records[:0]))
    for form, kind, p_value in (
        ("pickle", VerdictKind.ANOMALOUS, 1e-12),
        ("pickle", VerdictKind.BENIGN, 1.0),
        ("pickle", VerdictKind.BENIGN, 0.09),
        ("memory", VerdictKind.INCONCLUSIVE, 0.5),
    ):
        stages = [Stage.ALERT] if kind is VerdictKind.ANOMALOUS else []
        for stage in (*stages, Stage.ENDED, Stage.OVER):
            tally.take_verdict(a_verdict(kind, stage, form=form, p_value=p_value))
    return tally


def snapshot(tally: Tally) -> Snapshot:
    """What the daemon would tell."""
    return Snapshot(
        tally,
        2,
        {loss: 10 + loss for loss in Loss},
        ProbeStage.WATCHING,
        {"attached": 3, "not_covered": 1, "released": 0},
        {"version": "0.1", "python": "3.11", "kernel": "6", "loader": "libbpf"},
        {"source": HOSTILE, "loads": "9", "clusters": "2", "learned_loads": "0"},
        1.5e9,
        True,
        {("alerts.example:9093", "taken"): 7, ("alerts.example:9093", "failed"): 1},
        Usage(
            {"loads": (2, 1024), "tasks": (30, 16384), "files": (1, 16384), "globals": (4, 65536)},
            waiting=360,
            ring=8 << 20,
            read=36000,
            memory=32 << 20,
            programs={"dh_enter": (0.25, 1000), "dh_exec": (0.5, 10)},
        ),
    )


def exposed(tally: Tally) -> dict[str, Metric]:
    """The metrics as a scraper parses them, by name."""
    text = generate_latest(registry(lambda: snapshot(tally))).decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


def value(family: Metric, **labels: str) -> float:
    """The one sample with these labels."""
    (sample,) = (sample for sample in family.samples if sample.labels == labels)
    return sample.value


def test_every_metric_is_exposed_from_the_start_with_its_type_help_and_labels() -> None:
    families = exposed(Tally())
    extra = {"histogram": {"le"}}
    for metric in METRICS:
        # The parser of the text format knows no infos: to it these are gauges of value 1.
        name = metric.name + ("_info" if metric.kind == "info" else "")
        family = families[name]
        assert family.type == {"info": "gauge"}.get(metric.kind, metric.kind)
        assert family.documentation == metric.help
        assert family.samples
        labels = {label for sample in family.samples for label in sample.labels}
        if metric.kind != "info":
            assert labels == set(metric.labels) | extra.get(metric.kind, set())
        assert f"`{name}" in documentation()
    own = {name for name in families if name.startswith("dynahugd_")}
    assert len(own) == len(METRICS)
    assert "process_resident_memory_bytes" in families


def test_metrics_say_what_was_counted() -> None:
    families = exposed(busy_tally())
    loads = families["dynahugd_loads"]
    assert value(loads, format="pickle", verdict="benign") == 2
    assert value(loads, format="pickle", verdict="anomalous") == 1
    assert value(loads, format="memory", verdict="inconclusive") == 1
    assert value(families["dynahugd_alerts"], format="pickle") == 1
    assert sum(sample.value for sample in families["dynahugd_alerts"].samples) == 1
    assert value(families["dynahugd_loads_open"]) == 2
    assert value(families["dynahugd_syscalls"]) == 4 * 42
    assert value(families["dynahugd_records"], kind="call") == 3
    assert value(families["dynahugd_records"], kind="exec") == 0
    assert value(families["dynahugd_records_lost"], reason="depth") == 14
    assert value(families["dynahugd_interpreters"], state="not_covered") == 1
    assert value(families["dynahugd_baseline_trained_timestamp_seconds"]) == 1.5e9
    info = families["dynahugd_baseline_info"].samples[0].labels
    assert info == {"source": ESCAPED, "loads": "9", "clusters": "2", "learned_loads": "0"}
    assert value(families["dynahugd_baseline_drift_ratio"]) == 0


def test_drift_is_the_share_of_far_loads_among_the_latest_that_did_not_alert() -> None:
    tally = Tally()
    assert tally.drift() == 0
    for kind, p_value, count in (
        (VerdictKind.BENIGN, 0.005, 2000),
        (VerdictKind.BENIGN, 0.5, 900),
        (VerdictKind.BENIGN, 0.01, 100),
        (VerdictKind.ANOMALOUS, 1e-9, 500),
    ):
        for _ in range(count):
            tally.take_verdict(a_verdict(kind, Stage.OVER, p_value=p_value))
    assert tally.drift() == 0.1


def test_labels_are_bounded_whatever_is_loaded() -> None:
    def series(tally: Tally) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
        return {
            (sample.name, tuple(sorted(sample.labels.items())))
            for name, family in exposed(tally).items()
            if name.startswith("dynahugd_")
            for sample in family.samples
        }

    tally = busy_tally()
    for number in range(50):
        for kind in VerdictKind:
            for stage in Stage:
                form = FORMATS[number % len(FORMATS)]
                tally.take_verdict(a_verdict(kind, stage, path=f"/m/{number}", form=form))
    assert series(tally) == series(Tally())
    assert len(series(tally)) < 160


@pytest.mark.parametrize(
    ("name", "count", "total"),
    [
        ("dynahugd_load_duration_seconds", 4, 4.0),
        ("dynahugd_detection_latency_seconds", 1, 0.004),
        ("dynahugd_anomaly_score", 4, 12 - math.log10(0.09) - math.log10(0.5)),
    ],
)
def test_histograms_are_cumulative(name: str, count: int, total: float) -> None:
    samples = exposed(busy_tally())[name].samples
    buckets = [(float(s.labels["le"]), s.value) for s in samples if s.name.endswith("_bucket")]
    assert buckets == sorted(buckets)
    assert [number for _, number in buckets] == sorted(number for _, number in buckets)
    assert buckets[-1] == (math.inf, count)
    rest = {s.name.removeprefix(name): s.value for s in samples if not s.labels}
    assert rest["_count"] == count
    assert rest["_sum"] == pytest.approx(total)


@given(st.lists(st.floats(-10, 10), max_size=50))
@settings(deadline=None)
def test_a_bucket_counts_what_is_at_most_its_bound(values: list[float]) -> None:
    histogram = Histogram((-1.0, 0.0, 2.5))
    for item in values:
        histogram.observe(item)
    for position, bound in enumerate((*histogram.bounds, math.inf)):
        assert sum(histogram.counts[: position + 1]) == sum(item <= bound for item in values)
