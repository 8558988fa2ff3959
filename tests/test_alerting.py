"""Alerts by both ways at once: pushed by the daemon, and made of its metrics by Prometheus."""

from __future__ import annotations

import signal
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests import servers
from tests.harness import LOAD, RunningDaemon, run, system
from tests.servers import wait_for

pytestmark = pytest.mark.ebpf

ALERT = "DynahugdAnomalousLoad"


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    """A pickle that runs a program."""
    path = tmp_path / "evil.pkl"
    path.write_bytes(system("true"))
    return path


def of_pickles(manager: servers.Alertmanager) -> list[dict[str, Any]]:
    """The alert of loads of this format: other loads of this host have others."""
    return [alert for alert in manager.alerts(ALERT) if alert["labels"]["format"] == "pickle"]


def sent_by(prometheus: servers.Prometheus) -> float:
    """Alerts that Prometheus has sent."""
    with urllib.request.urlopen(f"{prometheus.url}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    samples = (
        line for line in text.splitlines() if line.startswith("prometheus_notifications_sent")
    )
    return sum(float(line.rsplit(" ", 1)[1]) for line in samples)


def test_what_is_pushed_and_what_the_rules_make_is_one_alert(tmp_path: Path, evil: Path) -> None:
    address = f"127.0.0.1:{servers.free_port()}"
    file = tmp_path / "dynahugd.toml"
    with servers.alertmanager(tmp_path / "alertmanager") as manager:
        file.write_text(f'[alertmanager]\nurls = ["{manager.url}"]\ninstance = "{address}"\n')
        with (
            RunningDaemon(tmp_path, "--config", str(file), "--listen", address),
            servers.prometheus(
                tmp_path / "prometheus", address, manager.url.removeprefix("http://")
            ) as prometheus,
        ):
            wait_for(lambda: prometheus.query("dynahugd_ready == 1"), "scrape")
            pid = run(LOAD, evil)
            pushed = wait_for(lambda: of_pickles(manager), "pushed alert")
            text = pushed[0]["annotations"]["description"]
            assert f"[{pid}]" in text
            assert str(evil) in text
            assert "os.system" in text
            firing = f'ALERTS{{alertname="{ALERT}",alertstate="firing",format="pickle"}}'
            wait_for(lambda: prometheus.query(firing), "firing rule")
            wait_for(lambda: sent_by(prometheus) > 0, "notification by Prometheus")
            wait_for(
                lambda: str(evil) in of_pickles(manager)[0]["annotations"]["description"],
                "the daemon's description",
                30,
            )
            assert len(of_pickles(manager)) == 1


def test_a_reload_turns_pushing_on_off_and_elsewhere(tmp_path: Path, evil: Path) -> None:
    file = tmp_path / "dynahugd.toml"
    file.write_text("")

    def reload(daemon: RunningDaemon, text: str) -> None:
        before = len(daemon.said)
        file.write_text(text)
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait(
            lambda: any(line.startswith("reloaded") for line in daemon.said[before:]), 10, "reload"
        )

    with (
        servers.alertmanager(tmp_path / "one") as one,
        servers.alertmanager(tmp_path / "two") as two,
        RunningDaemon(tmp_path, "--config", str(file)) as daemon,
    ):
        reload(daemon, f'[alertmanager]\nurls = ["{one.url}"]\n')
        run(LOAD, evil)
        wait_for(lambda: of_pickles(one), "alert")
        # What is active goes where the configuration says now.
        reload(daemon, f'[alertmanager]\nurls = ["{two.url}"]\n')
        wait_for(lambda: of_pickles(two), "alert at the other one")
        name = two.url.removeprefix("http://")
        sample = f'dynahugd_alertmanager_pushes_total{{alertmanager="{name}",result="taken"}}'
        assert daemon.metric(sample) >= 1
        reload(daemon, "")
        assert "dynahugd_alertmanager_pushes_total{" not in daemon.get("/metrics")[1]


def test_an_alertmanager_that_is_not_there_is_said_once_and_delays_nothing(
    tmp_path: Path, evil: Path
) -> None:
    address = f"127.0.0.1:{servers.free_port()}"
    file = tmp_path / "dynahugd.toml"
    file.write_text(f'[alertmanager]\nurls = ["http://{address}"]\n')
    with RunningDaemon(tmp_path, "--config", str(file)) as daemon:
        for _ in range(3):
            alert = daemon.expect(run(LOAD, evil), "alert")
            assert alert["path"] == str(evil)
        daemon.wait(
            lambda: any("does not take alerts" in line for line in daemon.said), 10, "word of it"
        )
        daemon.settle()
        said = [line for line in daemon.said if "does not take alerts" in line]
        assert said == [f"Alertmanager {address} does not take alerts: Connection refused"]
        assert daemon.stop() == 0
