"""The log: what is worth a line, in each of its forms, and how much of it."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import replace

import pytest

from dynahugd.baseline import Reason
from dynahugd.outputs.journal import connected
from dynahugd.outputs.log import JsonLines, Limiter, Log, PlainLines, open_log
from dynahugd.outputs.messages import Message
from dynahugd.verdicts import Stage, Verdict, VerdictKind
from tests.test_outputs import HOSTILE, SCORE, a_verdict, hostile_verdict

Captured = pytest.CaptureFixture[str]


def stages(kind: VerdictKind, more: bool = False) -> list[Verdict]:
    """The verdicts on one load, in their order."""
    ended, over = (a_verdict(kind, stage) for stage in (Stage.ENDED, Stage.OVER))
    if more:
        late = Reason("child.execute.shell", 1, 0, 0, 120, 50.0)
        over = replace(over, score=replace(SCORE, reasons=(*SCORE.reasons, late)))
    alert = [a_verdict(kind, Stage.ALERT)] if kind is VerdictKind.ANOMALOUS else []
    return [*alert, ended, over]


def test_people_get_one_line_a_load_and_one_more_for_what_it_did_since(capsys: Captured) -> None:
    log = Log(PlainLines())
    for kind, more, lines in (
        (VerdictKind.BENIGN, False, [1, 0]),
        (VerdictKind.INCONCLUSIVE, False, [1, 0]),
        (VerdictKind.ANOMALOUS, False, [4, 0, 0]),
        (VerdictKind.ANOMALOUS, True, [4, 0, 2]),
    ):
        seen = []
        for verdict in stages(kind, more):
            log.show(verdict)
            seen.append(len(capsys.readouterr().out.splitlines()))
        assert seen == lines


def test_programs_get_every_verdict_but_an_end_that_tells_nothing_new(capsys: Captured) -> None:
    log = Log(JsonLines())
    for kind in VerdictKind:
        for verdict in stages(kind):
            log.show(verdict)
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(item["verdict"], item["stage"]) for item in told] == [
        ("benign", "ended"),
        ("anomalous", "alert"),
        ("anomalous", "ended"),
        ("anomalous", "over"),
        ("inconclusive", "ended"),
    ]


def test_messages_go_to_standard_error_as_text_or_as_objects(capsys: Captured) -> None:
    Log(PlainLines()).say(Message.READY, "ready")
    assert capsys.readouterr() == ("", "ready\n")
    Log(JsonLines()).say(Message.RECORDS_LOST, "lost 3")
    out, err = capsys.readouterr()
    assert out == ""
    entry = json.loads(err)
    assert entry.pop("time").endswith("Z")
    assert entry == {
        "level": "warning",
        "message": "records_lost",
        "message_id": Message.RECORDS_LOST.id,
        "text": "lost 3",
    }


def test_too_many_of_a_kind_are_counted_and_those_of_another_user_shown(capsys: Captured) -> None:
    now = [0.0]
    log = Log(PlainLines(), Limiter(most=2, period=60, clock=lambda: now[0]))
    log.turn()
    for number in range(5):
        log.say(Message.RECORDS_LOST, f"lost {number}")
        verdict = a_verdict()
        verdict.load.id = number
        log.show(verdict)
    other = a_verdict(path="/home/other/m.pkl")
    other.load.uid = 7
    log.show(other)
    out, err = capsys.readouterr()
    assert err.splitlines() == ["lost 0", "lost 1"]
    assert out.count("ANOMALOUS") == 3
    assert "/home/other/m.pkl" in out
    log.turn()
    assert capsys.readouterr() == ("", "")
    now[0] = 60
    log.turn()
    assert capsys.readouterr().err.splitlines() == [
        "3 more of a kind were not printed: Records from the kernel were lost",
        "3 more of a kind were not printed: A model load is unlike benign loads",
    ]
    log.say(Message.RECORDS_LOST, "lost again")
    now[0] = 120
    log.turn()
    assert capsys.readouterr().err == "lost again\n"


def test_programs_get_all_that_there_is(capsys: Captured) -> None:
    log = Log(JsonLines(), Limiter(most=1))
    for _ in range(5):
        log.show(a_verdict())
    assert len(capsys.readouterr().out.splitlines()) == 5


def test_hostile_text_stays_on_its_line(capsys: Captured) -> None:
    Log(PlainLines()).show(hostile_verdict(HOSTILE))
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 4
    assert all(line.isprintable() for line in out.split("\n"))


def test_lines_of_several_threads_do_not_mix(capfd: pytest.CaptureFixture[str]) -> None:
    log = Log(PlainLines(), Limiter(most=10_000))
    text = "x" * 300

    def talk() -> None:
        for _ in range(200):
            log.say(Message.READY, text)

    threads = [threading.Thread(target=talk) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert capfd.readouterr().err.splitlines() == [text] * 800


def test_the_journal_is_chosen_only_where_standard_error_is_its_stream(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    status = os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    assert connected()
    # Inherited by a child whose standard error went elsewhere.
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino + 1}")
    assert not connected()
    open_log("auto").say(Message.READY, "here")
    assert capsys.readouterr().err == "here\n"
    monkeypatch.delenv("JOURNAL_STREAM")
    assert not connected()
