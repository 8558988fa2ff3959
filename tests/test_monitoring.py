"""What operators are given for Prometheus, Alertmanager and Grafana, tried in the real servers."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client import start_http_server

from dynahugd import cli
from dynahugd.commands import COMMANDS
from dynahugd.config import Config
from dynahugd.outputs.messages import Message
from dynahugd.outputs.metrics import Snapshot, registry
from tests import servers
from tests.behaviours import TABLE, perform
from tests.harness import RunningDaemon
from tests.servers import MONITORING, Alertmanager, Prometheus, wait_for
from tests.test_outputs import a_verdict, busy_tally, snapshot

RUNBOOKS = MONITORING.parent / "docs" / "runbooks"
BEHAVIOURS = {behaviour.name: behaviour for behaviour in TABLE}


def load(name: str) -> Any:
    """A file of the folder, as data; JSON is YAML."""
    return yaml.safe_load((MONITORING / name).read_text())


def rules(name: str) -> list[dict[str, Any]]:
    """All rules of a file."""
    return [rule for group in load(name)["groups"] for rule in group["rules"]]


ALERTS = rules("alerts.yml")
RECORDS = rules("recording.yml")
TESTS = [test for path in MONITORING.glob("*.test.yml") for test in load(path.name)["tests"]]
DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text())

#: What Grafana puts in the place of its variables.
VARIABLES = {"$job": "dynahugd", "$instance": ".*", "$__range": "5m", "$__rate_interval": "1m"}


def filled_in(expression: str) -> str:
    """An expression of the dashboard as Prometheus gets it."""
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    assert "$" not in expression
    return expression


@dataclass(frozen=True, slots=True)
class Query:
    """A query of the dashboard.

    Attributes
    ----------
    labels : what its legend or its table shows of each series.
    """

    panel: str
    expression: str
    instant: bool
    labels: frozenset[str]


def queries() -> list[Query]:
    """All queries of the dashboard's panels."""
    return [
        Query(
            panel["title"],
            filled_in(target["expr"]),
            target.get("instant", False),
            frozenset(re.findall(r"{{(\w+)}}", target.get("legendFormat", ""))),
        )
        for panel in DASHBOARD["panels"]
        for target in panel["targets"]
    ]


# ----------------------------------------------------------------------- checked by their own tools


def accepted(*command: str) -> str:
    """What a tool says that must not complain."""
    done = subprocess.run(command, cwd=MONITORING, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_rules_are_valid_and_do_what_their_tests_say() -> None:
    accepted("promtool", "check", "rules", "alerts.yml", "recording.yml")
    tests = sorted(path.name for path in MONITORING.glob("*.test.yml"))
    accepted("promtool", "test", "rules", *tests)


def test_the_example_configurations_are_valid() -> None:
    assert "2 rule files found" in accepted("promtool", "check", "config", "prometheus.yml")
    assert "3 receivers" in accepted("amtool", "check-config", "alertmanager.yml")


@pytest.mark.parametrize(
    ("receiver", "labels"),
    [
        ("pager", "alertname=DynahugdAnomalousLoad severity=critical"),
        ("tickets", "alertname=DynahugdNotReady severity=warning"),
        ("digest", "alertname=DynahugdNoLoads severity=info"),
    ],
)
def test_alerts_go_where_their_severity_says(receiver: str, labels: str) -> None:
    verify = f"--verify.receivers={receiver}"
    routes = "amtool config routes test --config.file=alertmanager.yml"
    accepted(*routes.split(), verify, *labels.split())


# -------------------------------------------------------------------------------------- every alert


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: str(rule["alert"]))
def test_every_alert_tells_how_bad_it_is_what_it_is_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    base, _, page = rule["annotations"]["runbook_url"].rpartition("/")
    assert base == "https://github.com/dynahugd/dynahugd/blob/main/docs/runbooks"
    assert (RUNBOOKS / page).read_text().startswith(f"# {rule['alert']}\n")


@pytest.mark.parametrize("name", sorted({rule["alert"] for rule in ALERTS}))
def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not(name: str) -> None:
    cases = [
        case
        for test in TESTS
        for case in test.get("alert_rule_test", [])
        if case["alertname"] == name
    ]
    assert {bool(case["exp_alerts"]) for case in cases} == {True, False}
    severities = {alert["exp_labels"]["severity"] for case in cases for alert in case["exp_alerts"]}
    assert severities == {rule["labels"]["severity"] for rule in ALERTS if rule["alert"] == name}


@pytest.mark.parametrize("name", [rule["record"] for rule in RECORDS])
def test_every_recording_rule_is_tested_and_used(name: str) -> None:
    tested = {case["expr"] for test in TESTS for case in test.get("promql_expr_test", [])}
    assert name in tested
    used = [query.expression for query in queries()]
    assert any(name in expression for expression in used)


# ------------------------------------------------------------------- runbooks and what they mention


@pytest.mark.parametrize("page", sorted(RUNBOOKS.glob("*.md")), ids=lambda page: page.stem)
def test_a_runbook_mentions_only_what_there_is(page: Path) -> None:
    text = page.read_text()
    known = {message.id for message in Message}
    assert set(re.findall(r"MESSAGE_ID=(\w+)", text)) <= known
    config = Config()
    tables = [item.name for item in fields(config)]
    keys = {f"{table}.{key.name}" for table in tables for key in fields(getattr(config, table))}
    assert set(re.findall(rf"`((?:{'|'.join(tables)})\.\w+)", text)) <= keys
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert (RUNBOOKS / target).exists(), target
    for command in re.findall(r"^    (dynahugd .+)$|`(dynahugd [^`]+)`", text, re.MULTILINE):
        _, name, *arguments = shlex.split("".join(command).split(" | ")[0])
        assert name in COMMANDS
        if arguments:
            cli.parser().parse_args([name, *arguments])


def test_the_pages_that_messages_name_exist() -> None:
    named = {
        page
        for message in Message
        for page in re.findall(r"docs/runbooks/([\w-]+\.md)", message.help)
    }
    assert named
    assert named <= {page.name for page in RUNBOOKS.glob("*.md")}


# -------------------------------------------------- only metrics and labels that the daemon exposes


@pytest.fixture(scope="module")
def exposition(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that scrapes the daemon's metrics and evaluates the rules on them.

    All but the labels of infos, which a daemon makes itself: see the tests of a real one.
    """
    tally = busy_tally()

    def busier() -> Snapshot:
        tally.take_verdict(a_verdict())
        return snapshot(tally)

    server, _ = start_http_server(0, "127.0.0.1", registry(busier))
    folder = tmp_path_factory.mktemp("exposition") / "prometheus"
    with servers.prometheus(folder, f"127.0.0.1:{server.server_port}") as running:
        # The last to come of what is made by rules, and of rules upon these.
        for name in [*(rule["record"] for rule in RECORDS), 'ALERTS{alertstate="firing"}']:
            wait_for(partial(running.series, name), name)
        yield running
    server.shutdown()


@dataclass(slots=True)
class Names:
    """What of an expression is not there, in a Prometheus that has all there is.

    By the parser's tree: metrics, label matchers, and labels by which is grouped or matched.
    """

    prometheus: Prometheus

    def missing(self, expression: str) -> list[str]:
        """Selectors that select nothing, and labels that no series has."""
        wrong: list[str] = []

        def visit(node: promql_parser.Expr) -> None:
            if isinstance(node, promql_parser.VectorSelector):
                unknown = {item.name for item in node.matchers.matchers} - self._labels(node)
                if unknown or not self.prometheus.series(node.prettify()):
                    wrong.append(f"{node.prettify()} {unknown or ''}".strip())
            elif isinstance(node, promql_parser.AggregateExpr) and node.modifier:
                self._grouped(node.modifier.labels, [node.expr], wrong)
            elif isinstance(node, promql_parser.BinaryExpr) and node.modifier:
                labels = node.modifier.matching.labels if node.modifier.matching else []
                self._grouped(labels, [node.lhs], wrong)
                self._grouped(labels, [node.rhs], wrong)

        promql_parser.walk(promql_parser.parse(expression), visit)
        return wrong

    def _grouped(
        self, labels: list[str], operands: list[promql_parser.Expr], wrong: list[str]
    ) -> None:
        known: set[str] = set()

        def visit(node: promql_parser.Expr) -> None:
            if isinstance(node, promql_parser.VectorSelector):
                known.update(self._labels(node))

        for operand in operands:
            promql_parser.walk(operand, visit)
        wrong.extend(sorted(set(labels) - known))

    def _labels(self, node: promql_parser.VectorSelector) -> set[str]:
        found = self.prometheus.series(str(node.name))
        return {label for series in found for label in series}


def expressions() -> dict[str, str]:
    """Every expression of the folder, by where it is."""
    found = {f"alert {number} {rule['alert']}": rule["expr"] for number, rule in enumerate(ALERTS)}
    found |= {f"record {rule['record']}": rule["expr"] for rule in RECORDS}
    return found | {
        f"panel {number} {query.panel}": query.expression for number, query in enumerate(queries())
    }


@pytest.mark.parametrize("where", expressions())
def test_an_expression_names_only_what_is_exposed(exposition: Prometheus, where: str) -> None:
    assert Names(exposition).missing(expressions()[where]) == []


@pytest.mark.parametrize(
    ("expression", "missing"),
    [
        ("rate(dynahugd_load_total[5m])", ["dynahugd_load_total"]),
        ('dynahugd_loads_total{verdict="odd"}', ['dynahugd_loads_total{verdict="odd"}']),
        ('dynahugd_loads_total{pid!="1"}', ["dynahugd_loads_total{pid!=\"1\"} {'pid'}"]),
        ("sum by (path) (dynahugd_loads_total)", ["path"]),
        ("dynahugd_ready * on (user) dynahugd_loads_open", ["user", "user"]),
    ],
)
def test_what_is_not_exposed_is_noticed(
    exposition: Prometheus, expression: str, missing: list[str]
) -> None:
    assert Names(exposition).missing(expression) == missing


def test_the_series_of_the_rules_tests_are_such_as_the_daemon_exposes(
    exposition: Prometheus,
) -> None:
    # Labels of targets are whatever an operator gives them, and Alertmanagers are called anything.
    free = {"job", "instance", "rack", "alertmanager"}
    wrong = []
    for series in {item["series"] for test in TESTS for item in test["input_series"]}:
        given = promql_parser.parse(series)
        assert isinstance(given, promql_parser.VectorSelector)
        labels = {item.name: item.value for item in given.matchers.matchers}
        fixed = ",".join(f'{name}="{value}"' for name, value in labels.items() if name not in free)
        found = exposition.series(f"{given.name}{{{fixed}}}")
        if not any(set(labels) - {"rack"} == set(item) - {"__name__"} for item in found):
            wrong.append(series)
    assert wrong == []


def test_the_dashboard_lists_jobs_and_hosts_by_what_is_exposed(exposition: Prometheus) -> None:
    lists = [item for item in DASHBOARD["templating"]["list"] if item["type"] == "query"]
    assert [item["name"] for item in lists] == ["job", "instance"]
    for item in lists:
        asked = re.fullmatch(r"label_values\((.+), (\w+)\)", item["query"]["query"])
        assert asked
        assert all(asked[2] in series for series in exposition.series(filled_in(asked[1])))
        assert exposition.series(filled_in(asked[1]))


# -------------------------------------------------------- a real daemon, and all the way to a pager


@dataclass(frozen=True, slots=True)
class Site:
    """A daemon, what watches it, and what came of one benign and one malicious load.

    Attributes
    ----------
    begun : Unix time at which the process of the malicious load was started.
    """

    daemon: RunningDaemon
    prometheus: Prometheus
    alertmanager: Alertmanager
    received: list[servers.Notification]
    begun: float


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """All of it started, scraped, and the two loads performed."""
    folder = tmp_path_factory.mktemp("site")
    with ExitStack() as stack:
        daemon = stack.enter_context(RunningDaemon(folder, linger=0.5))
        receiver, received = stack.enter_context(servers.webhook())
        manager = stack.enter_context(servers.alertmanager(folder / "alertmanager", receiver))
        running = stack.enter_context(
            servers.prometheus(
                folder / "prometheus",
                daemon.url.removeprefix("http://"),
                manager.url.removeprefix("http://"),
            )
        )
        wait_for(lambda: running.query("dynahugd_ready == 1"), "scrape")
        perform(BEHAVIOURS["stdlib_types"], folder / "benign")
        begun = perform(BEHAVIOURS["os_system"], folder / "malicious").started
        yield Site(daemon, running, manager, received, begun)


@pytest.mark.ebpf
def test_a_malicious_load_reaches_alertmanager_and_a_receiver(
    site: Site, record_property: Callable[[str, object], None]
) -> None:
    def alerts() -> list[dict[str, Any]]:
        found = site.alertmanager.alerts("DynahugdAnomalousLoad")
        return [alert for alert in found if alert["labels"]["format"] == "pickle"]

    (alert,) = wait_for(alerts, "alert at Alertmanager")
    seconds = time.time() - site.begun
    assert alert["labels"] == {
        "alertname": "DynahugdAnomalousLoad",
        "severity": "critical",
        "job": "dynahugd",
        "instance": site.daemon.url.removeprefix("http://"),
        "format": "pickle",
    }
    assert alert["receivers"] == [{"name": "pager"}]
    assert alert["annotations"]["runbook_url"].endswith("/anomalous-load.md")

    def pages() -> list[float]:
        return [
            when
            for when, path, body in site.received
            if path == "/pager" and alert["labels"] in [item["labels"] for item in body["alerts"]]
        ]

    paged = wait_for(pages, "notification at the receiver")[0] - site.begun
    for name, value in (("seconds_to_alertmanager", seconds), ("seconds_to_receiver", paged)):
        record_property(name, round(value, 2))
        print(f"{name}: {value:.2f}")


#: Panels that show nothing, and why that is as it should be.
EMPTY = {
    "Pushes to Alertmanager a second": "this daemon is not configured to push",
}


@pytest.mark.ebpf
def test_a_real_daemon_exposes_all_that_is_named(site: Site) -> None:
    names = Names(site.prometheus)
    pushes = "dynahugd_alertmanager_pushes_total"  # this daemon is not configured to push

    def missing() -> dict[str, list[str]]:
        found = [text for text in expressions().values() if pushes not in text]
        return {text: wrong for text in found if (wrong := names.missing(text))}

    end = time.monotonic() + 15  # what rules record comes a second or two later
    while missing() and time.monotonic() < end:
        time.sleep(0.1)
    assert missing() == {}


@pytest.mark.ebpf
def test_every_panel_shows_something(site: Site) -> None:
    def shown(query: Query) -> bool:
        if query.instant:
            found = site.prometheus.query(query.expression)
            values = [element["value"] for element in found]
        else:
            found = site.prometheus.query_range(query.expression, 60)
            values = [value for element in found for value in element["values"]]
        assert all(query.labels <= set(element["metric"]) for element in found), query
        return any(value != "NaN" for _, value in values)

    left = {query for query in queries() if query.panel not in EMPTY}

    def all_shown() -> bool:
        left.difference_update([query for query in left if shown(query)])
        return not left

    try:
        wait_for(all_shown, "data for every panel")
    except AssertionError:
        pytest.fail(f"no data for {sorted(query.expression for query in left)}")
    assert not [query for query in queries() if query.panel in EMPTY and shown(query)]


@pytest.mark.ebpf
def test_nothing_but_the_malicious_load_is_a_reason_to_page(site: Site) -> None:
    wait_for(lambda: site.prometheus.query('ALERTS{alertstate="firing"}'), "alert that fires")
    critical = site.prometheus.query('ALERTS{severity="critical"}')
    assert {item["metric"]["alertname"] for item in critical} == {"DynahugdAnomalousLoad"}
