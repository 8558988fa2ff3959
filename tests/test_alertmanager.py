"""Alerts pushed to a real Alertmanager, and to servers that fail in every way."""

from __future__ import annotations

import itertools
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import bcrypt
import pytest
import trustme
import urllib3
import yaml
from cryptography.hazmat.primitives import serialization
from hypothesis import given, settings
from hypothesis import strategies as st

from dynahugd.baseline import Reason, Score
from dynahugd.config import AlertmanagerKeys
from dynahugd.errors import DynahugError
from dynahugd.loads import Load
from dynahugd.outputs.alertmanager import Alertmanagers, Pace
from dynahugd.outputs.alerts import ActiveAlerts
from dynahugd.outputs.clock import WallClock
from dynahugd.outputs.messages import Message
from dynahugd.verdicts import Evidence, Stage, Verdict, VerdictKind
from tests.servers import free_port

QUICK = Pace(gap=0.02, again=0.2, idle=0.2, retry=0.05, longest=0.2)
KEYS = AlertmanagerKeys(timeout=5.0)
RUNBOOK = "https://github.com/dynahugd/dynahugd/blob/main/docs/runbooks/anomalous-load.md"
HOSTILE = os.fsdecode(b'/m/\x1b[2J\r\n"}]{{ .Labels }}\xff\xe2\x80\xae%s\\')
ESCAPED = '/m/\\x1b[2J\\x0d\\x0a"}]{{ .Labels }}\\xff\\u202e%s\\\\'

SHELL = Reason("execute.shell", 1, 0, 0, 120, 53.4)
CONNECT = Reason("child.connect.public", 3, 0, 0, 120, 53.0)
SAW = Evidence(1_000_123_000, "execute.shell", "execve", "execve /bin/sh")


def a_verdict(
    number: int = 0xABC,
    path: str = "/models/m.pkl",
    form: str = "pickle",
    stage: Stage = Stage.ALERT,
    kind: VerdictKind = VerdictKind.ANOMALOUS,
    reasons: tuple[Reason, ...] = (SHELL,),
) -> Verdict:
    """A verdict of now."""
    load = Load(id=number, begin=1, tgid=40, uid=1000, comm="python3", path=path, format=form)
    now = time.monotonic_ns()
    return Verdict(load, stage, kind, now, Score(61.5, 3e-7, "c", reasons), (SAW,), 0.004, "")


def wait(condition: Callable[[], object], what: str, seconds: float = 15) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"no {what} within {seconds} s"
        time.sleep(0.01)


class Said(list[tuple[Message, str]]):
    """What was said, as a ``Say``."""

    def __call__(self, message: Message, text: str) -> None:
        self.append((message, text))

    def texts(self, message: Message) -> list[str]:
        """All texts of a kind of message."""
        return [text for kind, text in self if kind is message]


# ------------------------------------------------------------------------- the other side: real


class RunningAlertmanager:
    """Debian's Alertmanager on loopback, without a cluster."""

    def __init__(
        self,
        folder: Path,
        *options: str,
        port: int = 0,
        prefix: str = "",
        tls: ssl.SSLContext | None = None,
        user: str = "",
    ) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "am.yml").write_text("route: {receiver: none}\nreceivers: [{name: none}]\n")
        self.port = port or free_port()
        self.url = f"{'https' if tls else 'http'}://localhost:{self.port}{prefix}"
        self._http = urllib3.PoolManager(
            ssl_context=tls, headers=urllib3.make_headers(basic_auth=user) if user else None
        )
        self.process = subprocess.Popen(
            [
                "prometheus-alertmanager",
                f"--config.file={folder / 'am.yml'}",
                f"--storage.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{self.port}",
                f"--web.route-prefix={prefix}/",
                "--cluster.listen-address=",
                "--log.level=error",
                *options,
            ]
        )
        wait(self._ready, "Alertmanager")

    def _ready(self) -> bool:
        assert self.process.poll() is None
        try:
            return self._http.request("GET", self.url + "/-/ready", retries=False).status == 200
        except urllib3.exceptions.HTTPError:
            return False

    def alerts(self) -> list[dict[str, Any]]:
        """The alerts that are active."""
        answer = self._http.request("GET", self.url + "/api/v2/alerts")
        found: list[dict[str, Any]] = json.loads(answer.data)
        return found

    def post(self, *alerts: dict[str, Any]) -> None:
        """Send alerts, as another client would."""
        answer = self._http.request(
            "POST",
            self.url + "/api/v2/alerts",
            body=json.dumps(alerts),
            headers={"Content-Type": "application/json"},
        )
        assert answer.status == 200, answer.data

    def stop(self) -> None:
        """End it; it forgets its alerts."""
        self.process.kill()
        self.process.wait()


@pytest.fixture
def scope() -> Iterator[ExitStack]:
    """What is to be ended after a test, the latest first."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def alertmanager(tmp_path: Path, scope: ExitStack) -> RunningAlertmanager:
    """An Alertmanager of the test's own."""
    running = RunningAlertmanager(tmp_path / "am")
    scope.callback(running.stop)
    return running


def pushing(
    scope: ExitStack,
    keys: AlertmanagerKeys,
    *urls: str,
    say: Said | None = None,
    pace: Pace = QUICK,
) -> Alertmanagers:
    """The part under test, started."""
    made = Alertmanagers(
        replace(keys, urls=urls), "gpu-7:9797", Said() if say is None else say, WallClock(), pace
    )
    made.start()
    scope.callback(made.close, 0)
    return made


# ----------------------------------------------------------------------- the other side: failing


class Scripted:
    """An HTTP server that answers as it is told, and keeps the bodies that it got.

    Attributes
    ----------
    answer : writes the answer to a request.
    bodies : JSON of each request, and when it came.
    """

    def __init__(self, answer: Callable[[BaseHTTPRequestHandler], None]) -> None:
        self.answer = answer
        self.bodies: list[tuple[float, list[dict[str, Any]]]] = []
        self.headers: list[dict[str, str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.headers.append(dict(self.headers))
                outer.bodies.append((time.monotonic(), json.loads(body)))
                outer.answer(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                """A client that has gone."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()

    def with_alerts(self) -> list[list[dict[str, Any]]]:
        """Requests that held an alert."""
        return [body for _, body in self.bodies if body]


def status(
    code: int, body: bytes = b"", **headers: str
) -> Callable[[BaseHTTPRequestHandler], None]:
    """An answer of that status."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        handler.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def hang(handler: BaseHTTPRequestHandler) -> None:
    """No answer."""
    time.sleep(60)


def close_early(handler: BaseHTTPRequestHandler) -> None:
    """No answer, and good bye."""
    handler.connection.shutdown(socket.SHUT_RDWR)


def nonsense(handler: BaseHTTPRequestHandler) -> None:
    """An answer that is not HTTP."""
    handler.wfile.write(b"\x15\x03\x01\x00\x02\x02\x16\n" * 3)
    handler.connection.shutdown(socket.SHUT_RDWR)


def endless(handler: BaseHTTPRequestHandler) -> None:
    """An answer that never ends."""
    handler.wfile.write(b"HTTP/1.1 503 x\r\nContent-Encoding: gzip\r\n\r\n")
    while True:
        handler.wfile.write(b"\x1b" * 65536)


@pytest.fixture
def scripted(scope: ExitStack) -> Scripted:
    """A server that takes everything until it is told otherwise."""
    server = Scripted(status(200))
    scope.callback(server.stop)
    return server


# --------------------------------------------------------------------------------- what is pushed


def test_an_alert_has_the_labels_of_the_rule_and_tells_what_they_cannot(
    scope: ExitStack, alertmanager: RunningAlertmanager
) -> None:
    verdict = a_verdict(reasons=(SHELL, CONNECT))
    pushing(scope, KEYS, alertmanager.url).take(verdict)
    wait(alertmanager.alerts, "alert")
    (alert,) = alertmanager.alerts()
    began = WallClock().iso(verdict.time)
    assert alert["labels"] == {
        "alertname": "DynahugdAnomalousLoad",
        "severity": "critical",
        "job": "dynahugd",
        "instance": "gpu-7:9797",
        "format": "pickle",
    }
    description = alert["annotations"].pop("description").splitlines()
    assert description.pop().startswith(f"1 anomalous load of this format since {began[:19]}")
    assert description == [
        "python3[40] of user 1000 loaded /models/m.pkl (load 0000000000000abc):",
        "- executed a program of class shell; none of 120 benign loads like it ever did: "
        "execve /bin/sh",
        "- a child connected to an address of class public 3 times; none of 120 benign loads "
        "like it ever did",
    ]
    assert alert["annotations"] == {
        "summary": "The load of /models/m.pkl on gpu-7:9797 is unlike benign loads",
        "runbook_url": RUNBOOK,
    }
    starts, ends = (datetime.fromisoformat(alert[key]) for key in ("startsAt", "endsAt"))
    assert abs(starts - datetime.fromisoformat(began)) < timedelta(seconds=0.1)
    assert timedelta(seconds=600) <= ends - starts < timedelta(seconds=605)
    assert alert["status"]["state"] == "active"


def test_loads_of_a_format_are_one_alert_that_counts_them_and_names_the_latest(
    scope: ExitStack, alertmanager: RunningAlertmanager
) -> None:
    pushed = pushing(scope, KEYS, alertmanager.url)
    for number in range(7):
        pushed.take(a_verdict(number, f"/models/{number}.pkl"))
    pushed.take(a_verdict(99, "/models/x.npz", "npz"))

    def texts() -> dict[str, str]:
        return {
            alert["labels"]["format"]: alert["annotations"]["description"]
            for alert in alertmanager.alerts()
        }

    wait(lambda: "7 anomalous loads" in texts().get("pickle", "") and "npz" in texts(), "alerts")
    assert set(texts()) == {"pickle", "npz"}
    named = [line for line in texts()["pickle"].splitlines() if " loaded " in line]
    assert [line.split("/models/")[1][0] for line in named] == ["6", "5", "4", "3", "2"]


def test_the_last_word_on_a_load_completes_its_reasons(
    scope: ExitStack, alertmanager: RunningAlertmanager
) -> None:
    pushed = pushing(scope, KEYS, alertmanager.url)
    pushed.take(a_verdict())
    wait(alertmanager.alerts, "alert")
    # Its format may have become known since.
    pushed.take(a_verdict(stage=Stage.OVER, form="joblib", reasons=(SHELL, CONNECT)))
    wait(
        lambda: "a child connected" in alertmanager.alerts()[0]["annotations"]["description"],
        "reasons of the last word",
    )
    (alert,) = alertmanager.alerts()
    assert "1 anomalous load of" in alert["annotations"]["description"]


def test_what_is_no_alert_changes_nothing() -> None:
    alerts = ActiveAlerts()
    for stage in (Stage.ENDED, Stage.OVER):
        for kind in VerdictKind:
            assert not alerts.take(a_verdict(stage=stage, kind=kind), 0, 1)
    assert len(alerts) == alerts.revision == 0
    assert alerts.take(a_verdict(1), 0, 1)
    assert not alerts.take(a_verdict(2, stage=Stage.OVER), 0, 1)  # not, or no longer, told of
    assert not alerts.take(a_verdict(1, stage=Stage.OVER), 0, 1)  # no more than at the alert


def test_an_alert_ends_after_the_quiet_time_and_the_next_load_begins_another(
    scope: ExitStack, alertmanager: RunningAlertmanager
) -> None:
    pushed = pushing(scope, replace(KEYS, quiet=1.0), alertmanager.url)
    pushed.take(a_verdict(1))
    wait(alertmanager.alerts, "alert")
    wait(lambda: not alertmanager.alerts(), "end of the alert")
    again = a_verdict(2)
    pushed.take(again)
    wait(alertmanager.alerts, "second alert")
    (alert,) = alertmanager.alerts()
    assert "1 anomalous load of" in alert["annotations"]["description"]
    starts = datetime.fromisoformat(alert["startsAt"])
    assert abs(starts - WallClock().at(again.time)) < timedelta(seconds=0.1)


def test_hostile_text_stays_text(scope: ExitStack, alertmanager: RunningAlertmanager) -> None:
    verdict = a_verdict(path=HOSTILE)
    verdict.load.comm = HOSTILE
    pushing(scope, KEYS, alertmanager.url).take(verdict)
    wait(alertmanager.alerts, "alert")
    (alert,) = alertmanager.alerts()
    first, reason, last = alert["annotations"]["description"].splitlines()
    assert first == f"{ESCAPED}[40] of user 1000 loaded {ESCAPED} (load 0000000000000abc):"
    assert reason.endswith("execve /bin/sh")
    assert last.startswith("1 anomalous")


@given(st.one_of(st.binary(max_size=60).map(os.fsdecode), st.text(max_size=60)), st.integers(0, 3))
@settings(deadline=None)
def test_text_makes_no_lines_and_has_a_limit(text: str, power: int) -> None:
    alerts, text = ActiveAlerts(), text * 4**power
    for number in range(20):
        verdict = a_verdict(number, text, reasons=(SHELL,) * 20)
        verdict.load.comm = text
        alerts.take(replace(verdict, evidence=(replace(SAW, detail=text),)), 0, 1)
    (alert,) = alerts.objects({"instance": "i"}, WallClock(), 0, 1)
    lines = alert["annotations"]["description"].split("\n")
    assert len(lines) == 1 + 5 + 1 + 4
    assert all(line.isprintable() and len(line) < 500 for line in lines)
    assert alert["annotations"]["summary"].isprintable()
    assert len(alert["annotations"]["summary"]) < 500


# ------------------------------------------------------------------------- beside Prometheus' rule


def rule_alert(begin: timedelta, end: timedelta, **labels: str) -> dict[str, Any]:
    """The alert of the rule as Prometheus sends it; times from now."""
    now = datetime.now(UTC)
    own = {
        "alertname": "DynahugdAnomalousLoad",
        "severity": "critical",
        "job": "dynahugd",
        "instance": "gpu-7:9797",
        "format": "pickle",
    }
    return {
        "labels": own | labels,
        "annotations": {"summary": "of the rule"},
        "startsAt": (now + begin).isoformat(),
        "endsAt": (now + end).isoformat(),
        "generatorURL": "http://prometheus:9090/graph",
    }


def test_name_severity_and_runbook_are_those_of_the_rule() -> None:
    groups = yaml.safe_load(Path("monitoring/alerts.yml").read_text())["groups"]
    rules = {rule["alert"]: rule for group in groups for rule in group["rules"]}
    alerts = ActiveAlerts()
    alerts.take(a_verdict(), 0, 1)
    (alert,) = alerts.objects({"instance": "i"}, WallClock(), 0, 1)
    rule = rules[alert["labels"].pop("alertname")]
    assert rule["labels"] | {"instance": "i", "format": "pickle"} == alert["labels"]
    assert rule["annotations"]["runbook_url"] == alert["annotations"]["runbook_url"]


def test_it_is_one_alert_with_that_of_the_rule_and_its_annotations_come_back(
    scope: ExitStack, alertmanager: RunningAlertmanager
) -> None:
    # Prometheus adds an external label only where the alert has none of that name.
    keys = replace(KEYS, labels=("cluster=eu=1", "severity=none", "format=none", "job=none"))
    pushing(scope, keys, alertmanager.url).take(a_verdict())
    wait(alertmanager.alerts, "alert")
    alertmanager.post(rule_alert(timedelta(0), timedelta(minutes=4), cluster="eu=1"))
    assert len(alertmanager.alerts()) == 1
    wait(
        lambda: "of the rule" not in alertmanager.alerts()[0]["annotations"]["summary"],
        "annotations of the push",
    )
    assert len(alertmanager.alerts()) == 1


def test_a_late_word_that_an_earlier_alert_is_over_does_not_end_the_new_one(
    scope: ExitStack, alertmanager: RunningAlertmanager
) -> None:
    pushing(scope, KEYS, alertmanager.url).take(a_verdict())
    wait(alertmanager.alerts, "alert")
    # Prometheus repeats for a quarter of an hour that an alert is resolved.
    alertmanager.post(rule_alert(timedelta(hours=-2), timedelta(hours=-1)))
    wait(alertmanager.alerts, "alert once more")


def test_it_does_not_end_the_alert_that_prometheus_still_has(
    scope: ExitStack, alertmanager: RunningAlertmanager
) -> None:
    pushed = pushing(scope, replace(KEYS, quiet=0.5), alertmanager.url)
    pushed.take(a_verdict())
    wait(alertmanager.alerts, "alert")
    alertmanager.post(rule_alert(timedelta(0), timedelta(minutes=4)))
    done = pushed.pushes()["localhost:" + str(alertmanager.port), "taken"]
    wait(lambda: sum(pushed.pushes().values()) >= done + 6, "more requests")  # beyond its end
    assert len(alertmanager.alerts()) == 1


# ------------------------------------------------------------------- when Alertmanager is not there


def test_an_alert_waits_for_an_alertmanager_that_starts_later(
    scope: ExitStack, tmp_path: Path
) -> None:
    port, said = free_port(), Said()
    pushed = pushing(scope, replace(KEYS, quiet=0.5), f"http://localhost:{port}", say=said)
    pushed.take(a_verdict())
    time.sleep(0.7)  # the quiet time is over, but nobody has seen the alert
    late = RunningAlertmanager(tmp_path / "am", port=port)
    scope.callback(late.stop)
    wait(late.alerts, "alert")
    wait(lambda: len(said) > 1, "message")
    where = f"Alertmanager localhost:{port}"
    assert said == [
        (Message.ALERTMANAGER_FAILED, f"{where} does not take alerts: Connection refused"),
        (Message.ALERTMANAGER_BACK, f"{where} takes alerts again"),
    ]
    wait(lambda: not late.alerts(), "end of the alert")


def test_a_restarted_alertmanager_learns_its_alerts_again(scope: ExitStack, tmp_path: Path) -> None:
    first = RunningAlertmanager(tmp_path / "am")
    scope.callback(first.stop)
    pushing(scope, KEYS, first.url).take(a_verdict())
    wait(first.alerts, "alert")
    first.stop()
    second = RunningAlertmanager(tmp_path / "am", port=first.port)
    scope.callback(second.stop)
    wait(second.alerts, "alert")


def test_one_that_comes_back_after_another_took_an_alert_to_its_end_is_not_told(
    scope: ExitStack, scripted: Scripted
) -> None:
    other = Scripted(status(503))
    scope.callback(other.stop)
    pushed = pushing(scope, replace(KEYS, quiet=0.3), scripted.url, other.url)
    pushed.take(a_verdict())
    wait(scripted.with_alerts, "alert")
    wait(lambda: scripted.bodies[-1][1] == [], "end of the alert")
    seen = len(other.bodies)
    wait(lambda: len(other.bodies) > seen + 1, "two failures more")
    other.bodies.clear()
    other.answer = status(200)
    wait(lambda: pushed.pushes()[f"127.0.0.1:{other.port}", "taken"], "request taken")
    assert not other.with_alerts()


def test_each_instance_gets_every_alert_whatever_becomes_of_the_others(
    scope: ExitStack, scripted: Scripted, alertmanager: RunningAlertmanager
) -> None:
    scripted.answer = hang
    dead = f"http://127.0.0.1:{free_port()}"
    pushed = pushing(scope, KEYS, scripted.url, dead, alertmanager.url)
    wait(lambda: scripted.bodies, "request that hangs")
    for number in range(100):
        pushed.take(a_verdict(number))
    wait(alertmanager.alerts, "alert")
    assert len(scripted.bodies) == 1


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (status(500, b"\n oops\nmore"), "it answered 500 Internal Server Error: oops"),
        (status(400, b'"bad \x1b[2J \xff"'), 'it answered 400 Bad Request: "bad \\x1b[2J \\xff"'),
        (status(429), "it answered 429 Too Many Requests"),
        (status(599), "it answered 599"),
        (hang, "no answer within 0.2 s"),
        (close_early, "Remote end closed connection without response"),
        (endless, "it answered 503 Service Unavailable: " + "\\x1b" * 16),
        (nonsense, ""),
    ],
)
def test_why_an_instance_fails_is_said_once_and_in_one_line(
    scope: ExitStack,
    scripted: Scripted,
    answer: Callable[[BaseHTTPRequestHandler], None],
    reason: str,
) -> None:
    scripted.answer, said = answer, Said()
    pushed = pushing(scope, replace(KEYS, timeout=0.2), scripted.url, say=said)
    name = f"127.0.0.1:{scripted.port}"
    wait(lambda: pushed.pushes()[name, "failed"] >= 3, "three failures")
    assert pushed.pushes()[name, "taken"] == 0
    ((message, text),) = said
    assert message is Message.ALERTMANAGER_FAILED
    assert text.startswith(f"Alertmanager {name} does not take alerts: {reason}")
    assert text.isprintable()
    assert len(text) < 400


def test_a_redirect_is_not_followed(scope: ExitStack, scripted: Scripted) -> None:
    target, said = Scripted(status(200)), Said()
    scope.callback(target.stop)
    for code in (301, 302, 307, 308):
        scripted.answer = status(code, b"go away", Location=target.url)
        wanted = len(said) + 1
        if code == 301:
            pushing(scope, KEYS, scripted.url, say=said)
        wait(lambda: len(said) == wanted, "message")  # noqa: B023
        assert said[-1][1].partition("alerts: ")[2].startswith(f"it answered {code} ")
        assert said[-1][1].endswith(": redirects are not followed")
    assert target.bodies == []


def test_only_a_few_reasons_are_said_until_it_works_again(
    scope: ExitStack, scripted: Scripted
) -> None:
    said, numbers = Said(), iter(range(10**6))
    scripted.answer = lambda handler: status(500, b"request %d" % next(numbers))(handler)
    pushed = pushing(scope, KEYS, scripted.url, say=said)
    wait(lambda: sum(pushed.pushes().values()) >= 8, "eight failures")
    assert len(said) == 4
    scripted.answer = status(200)
    wait(lambda: said.texts(Message.ALERTMANAGER_BACK), "message")
    scripted.answer = status(500)
    wait(lambda: len(said) == 6, "message")


def test_a_refused_request_is_not_repeated_in_a_rush(scope: ExitStack, scripted: Scripted) -> None:
    scripted.answer = status(400)
    pace = Pace(gap=10, retry=0.1, longest=0.4)
    pushing(scope, KEYS, scripted.url, pace=pace).take(a_verdict())
    time.sleep(1.5)
    times = [when for when, _ in scripted.bodies]
    pauses = [after - before for before, after in itertools.pairwise(times)]
    assert pauses
    for pause, least in zip(pauses, (0.05, 0.1, 0.2, 0.2, 0.2, 0.2, 0.2), strict=False):
        assert pause >= least


def test_a_flood_of_loads_is_few_requests_and_loses_no_count(
    scope: ExitStack, scripted: Scripted
) -> None:
    pushed = pushing(scope, KEYS, scripted.url, pace=Pace(gap=0.3))
    wait(lambda: scripted.bodies, "first request")
    begun = time.monotonic()
    for number in range(2000):
        pushed.take(a_verdict(number))
    wait(
        lambda: (
            scripted.with_alerts()
            and "2000 anomalous" in scripted.bodies[-1][1][0]["annotations"]["description"]
        ),
        "last count",
    )
    assert len(scripted.bodies) <= 2 + (time.monotonic() - begun) / 0.3


def test_a_new_alert_does_not_wait_for_the_pause_of_an_earlier_failure(
    scope: ExitStack, scripted: Scripted
) -> None:
    scripted.answer = status(503)
    pushed = pushing(scope, KEYS, scripted.url, pace=Pace(gap=0.02, retry=1000, longest=1000))
    wait(lambda: scripted.bodies, "request")
    scripted.answer = status(200)
    pushed.take(a_verdict())
    wait(scripted.with_alerts, "alert")


def test_proxies_of_the_environment_are_not_asked(
    scope: ExitStack, scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("no_proxy", raising=False)
    pushing(scope, KEYS, scripted.url).take(a_verdict())
    wait(scripted.with_alerts, "alert")


def test_a_log_that_cannot_be_written_stops_no_alert(scope: ExitStack, scripted: Scripted) -> None:
    def say(message: Message, text: str) -> None:
        raise BrokenPipeError

    scripted.answer = status(503)
    made = Alertmanagers(replace(KEYS, urls=(scripted.url,)), "i", say, WallClock(), QUICK)
    made.start()
    scope.callback(made.close, 0)
    wait(lambda: scripted.bodies, "request")
    scripted.answer = status(200)
    made.take(a_verdict())
    wait(lambda: scripted.with_alerts(), "alert")


# ------------------------------------------------------------------- TLS, certificates, passwords


class Secured:
    """An Alertmanager that wants TLS, a client's certificate and a password; and files for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca, self.other_ca = trustme.CA(), trustme.CA()
        server, client = self.ca.issue_cert("localhost"), self.ca.issue_cert("client")
        stranger = self.other_ca.issue_cert("client")
        for name, certificate in (("server", server), ("client", client), ("stranger", stranger)):
            certificate.private_key_pem.write_to_path(str(folder / f"{name}.key"))
            certificate.cert_chain_pems[0].write_to_path(str(folder / f"{name}.pem"))
        self.ca.cert_pem.write_to_path(str(folder / "ca.pem"))
        self.other_ca.cert_pem.write_to_path(str(folder / "other.pem"))
        (folder / "password").write_text("s3cret:ü\r\nsecond line\n")
        (folder / "wrong").write_text("wrong\n")
        self.want("s3cret:ü")
        tls = ssl.create_default_context(cafile=str(folder / "ca.pem"))
        tls.load_cert_chain(folder / "client.pem", folder / "client.key")
        self.alertmanager = RunningAlertmanager(
            folder / "am",
            f"--web.config.file={folder / 'web.yml'}",
            prefix="/some/prefix",
            tls=tls,
            user="dyn:s3cret:ü".encode().decode("latin-1"),
        )
        self.keys = replace(
            KEYS,
            username="dyn",
            password_file=str(folder / "password"),
            ca_file=str(folder / "ca.pem"),
            cert_file=str(folder / "client.pem"),
            key_file=str(folder / "client.key"),
        )

    def want(self, password: str) -> None:
        """The password that is right from now on."""
        hashed = bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()
        new = self.folder / "web.new"
        new.write_text(
            json.dumps(
                {
                    "tls_server_config": {
                        "cert_file": str(self.folder / "server.pem"),
                        "key_file": str(self.folder / "server.key"),
                        "client_ca_file": str(self.folder / "ca.pem"),
                        "client_auth_type": "RequireAndVerifyClientCert",
                    },
                    "basic_auth_users": {"dyn": hashed},
                }
            )
        )
        new.rename(self.folder / "web.yml")


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """One for all tests of this part."""
    made = Secured(tmp_path_factory.mktemp("secured"))
    yield made
    made.alertmanager.stop()


def test_an_alert_arrives_by_tls_with_certificate_password_and_below_a_path(
    scope: ExitStack, secured: Secured
) -> None:
    pushing(scope, secured.keys, secured.alertmanager.url + "/").take(a_verdict())
    wait(secured.alertmanager.alerts, "alert")


@pytest.mark.parametrize(
    ("changes", "host", "reason"),
    [
        (
            {"ca_file": "other.pem"},
            "localhost",
            "its certificate is not trusted: unable to get local issuer certificate",
        ),
        (
            {"ca_file": ""},
            "localhost",
            "its certificate is not trusted: unable to get local issuer certificate",
        ),
        (
            {},
            "127.0.0.1",
            "its certificate is not trusted: IP address mismatch, certificate is not valid for "
            "'127.0.0.1'.",
        ),
        ({"password_file": "wrong"}, "localhost", "it answered 401 Unauthorized: Unauthorized"),
    ],
)
def test_what_is_wrong_with_tls_or_password_is_said_before_there_is_an_alert(
    scope: ExitStack, secured: Secured, changes: dict[str, str], host: str, reason: str
) -> None:
    said, port = Said(), secured.alertmanager.port
    files: dict[str, Any] = {
        key: str(secured.folder / name) if name else "" for key, name in changes.items()
    }
    pushed = pushing(
        scope, replace(secured.keys, **files), f"https://{host}:{port}/some/prefix", say=said
    )
    wait(lambda: sum(pushed.pushes().values()) >= 3, "three requests")
    where = f"Alertmanager {host}:{port} does not take alerts: "
    assert said == [(Message.ALERTMANAGER_FAILED, where + reason)]


@pytest.mark.parametrize("name", ["", "stranger"])
def test_that_a_certificate_is_missing_or_not_trusted_is_said(
    scope: ExitStack, secured: Secured, name: str
) -> None:
    said = Said()
    cert, key = (f"{secured.folder}/{name}.{suffix}" if name else "" for suffix in ("pem", "key"))
    keys = replace(secured.keys, cert_file=cert, key_file=key)
    pushed = pushing(scope, keys, secured.alertmanager.url, say=said)
    wait(lambda: sum(pushed.pushes().values()) >= 3, "three requests")
    # In TLS 1.3 a client learns of it while it sends: from the alert, or because sending fails.
    assert {text.partition(" alerts: ")[2] for _, text in said} <= {
        "tlsv13 alert certificate required",
        "sslv3 alert bad certificate",
        "it ended TLS early; it may want another alertmanager.cert_file",
        "Connection reset by peer",
    }
    assert len(said) == len(set(said)) > 0


def test_http_where_tls_is_wanted_is_said(scope: ExitStack, secured: Secured) -> None:
    said, port = Said(), secured.alertmanager.port
    pushing(scope, KEYS, f"http://localhost:{port}", say=said)
    wait(lambda: said, "message")
    assert said[0][1].endswith(
        "it answered 400 Bad Request: Client sent an HTTP request to an HTTPS server."
    )


def test_tls_where_http_is_served_is_said(scope: ExitStack, scripted: Scripted) -> None:
    said = Said()
    pushing(scope, KEYS, scripted.url.replace("http:", "https:"), say=said)
    wait(lambda: said, "message")
    assert said[0][1].endswith("does not take alerts: wrong version number")


def test_a_password_and_a_certificate_that_are_replaced_need_no_restart(
    scope: ExitStack, tmp_path: Path
) -> None:
    secured, said = Secured(tmp_path), Said()
    scope.callback(secured.alertmanager.stop)
    pushed = pushing(scope, secured.keys, secured.alertmanager.url, say=said)
    name = f"localhost:{secured.alertmanager.port}"
    wait(lambda: pushed.pushes()[name, "taken"], "request taken")
    secured.want("another")
    wait(lambda: len(said) == 1, "message of the password")
    (tmp_path / "password").write_text("another")
    wait(lambda: len(said) == 2, "message of the new password")
    (tmp_path / "client.pem").unlink()
    wait(lambda: len(said) == 3, "message of the certificate")
    fresh = secured.ca.issue_cert("client")
    fresh.private_key_pem.write_to_path(str(tmp_path / "client.key"))
    fresh.cert_chain_pems[0].write_to_path(str(tmp_path / "client.pem"))
    wait(lambda: said.texts(Message.ALERTMANAGER_BACK)[1:], "message of the new certificate")
    assert [text.partition(": ")[2] for text in said.texts(Message.ALERTMANAGER_FAILED)][:2] == [
        "it answered 401 Unauthorized: Unauthorized",
        f"cannot read alertmanager.cert_file {tmp_path}/client.pem: No such file or directory",
    ]
    assert not any("another" in text or "s3cret" in text for _, text in said)


FILES = {"rubbish": "no PEM", "empty": "\nsecond line\n", "password": "s3cret\n"}


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        (
            {"ca_file": "none"},
            "cannot read alertmanager.ca_file {}/none: No such file or directory",
        ),
        (
            {"ca_file": "rubbish"},
            "alertmanager.ca_file {}/rubbish cannot be used: no certificate or crl found; it has "
            "to hold certificates as PEM",
        ),
        ({"ca_file": "pipe"}, "alertmanager.ca_file {}/pipe is not a regular file"),
        (
            {"cert_file": "cert"},
            "alertmanager.cert_file {}/cert and its key cannot be used: PEM lib; both have to be "
            "PEM, the key without a passphrase",
        ),
        (
            {"cert_file": "cert", "key_file": "other"},
            "alertmanager.cert_file {}/cert and its key cannot be used: key values mismatch; both "
            "have to be PEM, the key without a passphrase",
        ),
        (
            {"cert_file": "cert", "key_file": "locked"},
            "alertmanager.cert_file {}/cert and its key cannot be used: PEM lib; both have to be "
            "PEM, the key without a passphrase",
        ),
        (
            {"cert_file": "cert", "key_file": "none"},
            "cannot read alertmanager.key_file {}/none: No such file or directory",
        ),
        ({"key_file": "other"}, "alertmanager.key_file needs alertmanager.cert_file"),
        (
            {"username": "u"},
            "alertmanager.username and alertmanager.password_file need each other: set both, or "
            "neither",
        ),
        (
            {"password_file": "password"},
            "alertmanager.username and alertmanager.password_file need each other: set both, or "
            "neither",
        ),
        (
            {"username": "u:v", "password_file": "password"},
            "alertmanager.username may not hold a colon",
        ),
        (
            {"username": "u", "password_file": "none"},
            "cannot read alertmanager.password_file {}/none: No such file or directory",
        ),
        (
            {"username": "u", "password_file": "empty"},
            "alertmanager.password_file {}/empty holds no password in its first line",
        ),
        (
            {"username": "u", "password_file": "pipe"},
            "alertmanager.password_file {}/pipe is not a regular file",
        ),
        (
            {"urls": "http://host:99999"},
            "alertmanager.urls: http://host:99999 is no address; write http://host:port or "
            "https://host:port",
        ),
        (
            {"urls": "http://host/?x"},
            "alertmanager.urls: http://host/?x may hold neither ? nor #",
        ),
    ],
)
def test_what_cannot_be_used_is_an_error_before_anything_is_sent(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], keys: dict[str, str], sentence: str
) -> None:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    ca = trustme.CA()
    good, other = ca.issue_cert("a"), ca.issue_cert("b")
    good.cert_chain_pems[0].write_to_path(str(tmp_path / "cert"))
    other.private_key_pem.write_to_path(str(tmp_path / "other"))
    key = serialization.load_pem_private_key(good.private_key_pem.bytes(), None)
    locked = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    (tmp_path / "locked").write_bytes(locked)
    os.mkfifo(tmp_path / "pipe")
    urls = (keys.pop("urls", "http://localhost:1"),)
    paths: dict[str, Any] = {
        key: str(tmp_path / name) for key, name in keys.items() if key.endswith("_file")
    }
    made = replace(KEYS, urls=urls, **(keys | paths))
    with pytest.raises(DynahugError) as caught:
        Alertmanagers(made, "i", Said(), WallClock())
    assert str(caught.value) == sentence.format(tmp_path)
    assert capfd.readouterr() == ("", "")  # nobody was asked for a passphrase


# ---------------------------------------------------------------------------------------- counters


def test_every_instance_and_result_counts_from_the_start() -> None:
    urls = (
        "http://10.0.0.1:9093",
        "http://10.0.0.1:9093/other",
        "https://am.example",
        "http://am.example/a/",
        "http://[::1]:9093",
    )
    made = Alertmanagers(replace(KEYS, urls=urls), "i", Said(), WallClock())
    names = ("10.0.0.1:9093", "am.example:443", "am.example:80", "[::1]:9093")
    assert made.pushes() == {(name, result): 0 for name in names for result in ("taken", "failed")}


def test_requests_are_counted_by_result(scope: ExitStack, scripted: Scripted) -> None:
    # Two addresses of one host and port are one in the metric, and a repeated one is one.
    pushed = pushing(scope, KEYS, scripted.url, scripted.url, scripted.url + "/other")
    name = f"127.0.0.1:{scripted.port}"
    wait(lambda: pushed.pushes()[name, "taken"] == 2, "two requests")
    scripted.answer = status(500)
    wait(lambda: pushed.pushes()[name, "failed"] >= 1, "failure")


def test_without_addresses_nothing_is_done_and_no_http_library_loaded() -> None:
    program = """
import sys
from dynahugd.config import AlertmanagerKeys
from dynahugd.outputs.alertmanager import Alertmanagers
from dynahugd.outputs.clock import WallClock
from tests.test_outputs import a_verdict
made = Alertmanagers(AlertmanagerKeys(), "i", print, WallClock())
made.start()
made.take(a_verdict())
made.close()
assert made.pushes() == {}
assert "urllib3" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


# ------------------------------------------------------------------------------- reload and the end


def test_a_reload_carries_alerts_counts_and_failures_over(
    scope: ExitStack, scripted: Scripted
) -> None:
    dead, said = f"127.0.0.1:{free_port()}", Said()
    keys = replace(KEYS, urls=(f"http://{dead}",))
    first = Alertmanagers(keys, "i", said, WallClock(), QUICK)
    first.start()
    first.take(a_verdict(1))
    wait(lambda: first.pushes()[dead, "failed"] >= 2, "failures")
    keys = replace(keys, urls=(f"http://{dead}", scripted.url), labels=("cluster=eu",))
    second = Alertmanagers(keys, "i", said, WallClock(), QUICK)
    second.start(first)
    scope.callback(second.close, 0)
    second.take(a_verdict(2))
    wait(
        lambda: (
            scripted.with_alerts()
            and "2 anomalous" in scripted.with_alerts()[-1][0]["annotations"]["description"]
        ),
        "both loads",
    )
    assert scripted.with_alerts()[-1][0]["labels"]["cluster"] == "eu"
    before = first.pushes()[dead, "failed"]
    wait(lambda: second.pushes()[dead, "failed"] > before >= 2, "further failures")
    assert len(said) == 1


def test_after_a_reload_the_old_threads_end(scope: ExitStack, scripted: Scripted) -> None:
    first = pushing(scope, KEYS, scripted.url)
    wait(lambda: scripted.bodies, "request")
    before = threading.active_count()
    second = Alertmanagers(replace(KEYS, urls=(scripted.url,)), "i", Said(), WallClock(), QUICK)
    second.start(first)
    scope.callback(second.close, 0)
    wait(lambda: threading.active_count() <= before, "end of the old thread")
    first.take(a_verdict())  # too late, and harmless
    scripted.bodies.clear()
    wait(lambda: len(scripted.bodies) > 2, "requests of the new thread")


def test_no_address_after_a_reload_means_no_requests(scope: ExitStack, scripted: Scripted) -> None:
    first = pushing(scope, KEYS, scripted.url)
    wait(lambda: scripted.bodies, "request")
    second = Alertmanagers(KEYS, "i", Said(), WallClock(), QUICK)
    second.start(first)
    time.sleep(0.1)
    scripted.bodies.clear()
    second.take(a_verdict())
    time.sleep(0.5)
    assert scripted.bodies == []


def test_the_end_gives_an_alert_that_nobody_has_one_more_chance(
    scope: ExitStack, scripted: Scripted
) -> None:
    scripted.answer = status(503)
    pushed = pushing(scope, KEYS, scripted.url, pace=Pace(gap=1000, retry=1000, longest=1000))
    wait(lambda: scripted.bodies, "request")
    pushed.take(a_verdict())
    scripted.answer = status(200)
    pushed.close(10)
    assert scripted.with_alerts()


def test_the_end_does_not_wait_for_a_request_that_tells_nothing_new(
    scope: ExitStack, scripted: Scripted
) -> None:
    scripted.answer = hang
    pushed = pushing(scope, replace(KEYS, timeout=60), scripted.url)
    wait(lambda: scripted.bodies, "request")
    begun = time.monotonic()
    pushed.close(30)
    assert time.monotonic() - begun < 10


def test_the_last_chance_is_one_request(scope: ExitStack, scripted: Scripted) -> None:
    scripted.answer = status(503)
    pushed = pushing(scope, KEYS, scripted.url, pace=Pace(gap=1000, retry=1000, longest=1000))
    wait(lambda: scripted.bodies, "request")
    pushed.take(a_verdict())
    pushed.close(1)
    time.sleep(0.2)
    assert len(scripted.with_alerts()) == 1


def test_after_the_end_nothing_is_sent(scope: ExitStack, scripted: Scripted) -> None:
    pushed = pushing(scope, KEYS, scripted.url, pace=Pace())
    pushed.take(a_verdict())
    wait(lambda: sum(pushed.pushes().values()) and scripted.with_alerts(), "alert")
    pushed.close()
    seen = len(scripted.bodies)
    time.sleep(0.3)
    assert len(scripted.bodies) == seen


def test_a_program_ends_in_time_though_an_alertmanager_hangs(
    scope: ExitStack, scripted: Scripted
) -> None:
    scripted.answer = hang
    program = f"""
from dynahugd.config import AlertmanagerKeys
from dynahugd.outputs.alertmanager import Alertmanagers
from dynahugd.outputs.clock import WallClock
from tests.test_outputs import a_verdict
keys = AlertmanagerKeys(urls=("{scripted.url}", "http://127.0.0.1:{free_port()}"), timeout=300.0)
made = Alertmanagers(keys, "i", lambda *said: None, WallClock())
made.start()
made.take(a_verdict())
made.close(0.5)
made.close(0.5)
print("closed")
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], check=True, timeout=20, capture_output=True, text=True
    )
    assert (ended.stdout, ended.stderr) == ("closed\n", "")


def test_nothing_is_said_after_the_end(scope: ExitStack, scripted: Scripted) -> None:
    def late(handler: BaseHTTPRequestHandler) -> None:
        time.sleep(0.5)
        status(503)(handler)

    scripted.answer, said = late, Said()
    pushed = pushing(scope, KEYS, scripted.url, say=said)
    wait(lambda: scripted.bodies, "request")
    pushed.close(0)
    time.sleep(0.8)
    assert said == []
