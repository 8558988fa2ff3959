"""Debian's Prometheus and Alertmanager as child processes, and a receiver of webhooks, on loopback.

They run with the files of ``monitoring/``: what an operator is given is what is tried.
"""

from __future__ import annotations

import json
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

import urllib3
import yaml

__all__ = [
    "MONITORING",
    "Alertmanager",
    "Prometheus",
    "alertmanager",
    "free_port",
    "prometheus",
    "wait_for",
    "webhook",
]

MONITORING = Path(__file__).parents[1] / "monitoring"

#: Somebody else may take a port between our finding it free and the server's start.
_ATTEMPTS = 3
_HTTP = urllib3.PoolManager(retries=False, timeout=10.0)
_T = TypeVar("_T")


def wait_for(look: Callable[[], _T], what: str, timeout: float = 15.0) -> _T:
    """What a function returns, as soon as that is true.

    Raises
    ------
    AssertionError : it was not within ``timeout`` seconds.
    """
    end = time.monotonic() + timeout
    while not (found := look()):
        if time.monotonic() > end:
            raise AssertionError(f"no {what} within {timeout} s")
        time.sleep(0.02)
    return found


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _serving(folder: Path, command: Callable[[int], list[str]]) -> Iterator[str]:
    """Start a server and wait until it is ready; its base address."""
    log = folder / "log"
    for _ in range(_ATTEMPTS):
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        with log.open("wb") as out:
            process = subprocess.Popen(command(port), cwd=folder, stdout=out, stderr=out)

        def ready(process: subprocess.Popen[bytes] = process, url: str = url) -> bool:
            try:
                return (
                    process.poll() is not None
                    or _HTTP.request("GET", f"{url}/-/ready").status == 200
                )
            except urllib3.exceptions.HTTPError:
                return False

        try:
            wait_for(ready, f"server ready on port {port}")
            if process.poll() is None:
                yield url
                return
        finally:
            process.terminate()
            process.wait(30)
    raise AssertionError(f"{command(0)[0]} does not start: {log.read_text()[-2000:]}")


def _get(url: str, **parameters: str) -> Any:
    answer = _HTTP.request("GET", url, fields=parameters)
    if answer.status != 200:
        raise AssertionError(f"{url} {parameters}: {answer.status} {answer.data[:500]!r}")
    return answer.json()


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A running Prometheus."""

    url: str

    def query(self, expression: str) -> list[dict[str, Any]]:
        """An instant query: elements with ``metric`` and ``value``."""
        data = _get(f"{self.url}/api/v1/query", query=expression)["data"]
        assert data["resultType"] == "vector", f"{expression} is no vector"
        return list(data["result"])

    def query_range(self, expression: str, seconds: int) -> list[dict[str, Any]]:
        """A range query over the last so many seconds: elements with ``metric`` and ``values``."""
        now = time.time()
        answer = _get(
            f"{self.url}/api/v1/query_range",
            query=expression,
            start=f"{now - seconds}",
            end=f"{now}",
            step="1",
        )
        return list(answer["data"]["result"])

    def series(self, selector: str) -> list[dict[str, str]]:
        """The labels of each series that a selector selects; ``__name__`` is one of them."""
        return list(_get(f"{self.url}/api/v1/series", **{"match[]": selector})["data"])


@dataclass(frozen=True, slots=True)
class Alertmanager:
    """A running Alertmanager."""

    url: str

    def alerts(self, name: str) -> list[dict[str, Any]]:
        """The active alerts of a name, as its API gives them."""
        return list(_get(f"{self.url}/api/v2/alerts", filter=f'alertname="{name}"'))


@contextmanager
def prometheus(
    folder: Path, target: str, alertmanager: str = "127.0.0.1:1", interval: int = 1
) -> Iterator[Prometheus]:
    """A Prometheus with the files of ``monitoring/``.

    Parameters
    ----------
    folder : a new one is made here.
    target, alertmanager : HOST:PORT of what it scrapes, and of where it sends alerts.
    interval : seconds between two scrapes, and between two evaluations of the rules.
    """
    folder.mkdir()
    config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    config["global"] |= {"scrape_interval": f"{interval}s", "evaluation_interval": f"{interval}s"}
    config["rule_files"] = [str(MONITORING / name) for name in config["rule_files"]]
    config["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] = [alertmanager]
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [target]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    with _serving(
        folder,
        lambda port: [
            "prometheus",
            "--config.file=prometheus.yml",
            "--storage.tsdb.path=data",
            f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=warn",
        ],
    ) as url:
        yield Prometheus(url)


@contextmanager
def alertmanager(folder: Path, receiver: str = "http://127.0.0.1:1") -> Iterator[Alertmanager]:
    """An Alertmanager with the routes of ``monitoring/``, without a cluster.

    Parameters
    ----------
    folder : a new one is made here.
    receiver : base address of the webhooks; the receiver's name is added as path.
    """
    folder.mkdir()
    config = yaml.safe_load((MONITORING / "alertmanager.yml").read_text())
    for item in config["receivers"]:
        item["webhook_configs"][0]["url"] = f"{receiver}/{item['name']}"
    (folder / "alertmanager.yml").write_text(yaml.safe_dump(config))
    with _serving(
        folder,
        lambda port: [
            "prometheus-alertmanager",
            "--config.file=alertmanager.yml",
            "--storage.path=data",
            f"--web.listen-address=127.0.0.1:{port}",
            "--cluster.listen-address=",
            "--log.level=warn",
        ],
    ) as url:
        yield Alertmanager(url)


Notification = tuple[float, str, dict[str, Any]]


@contextmanager
def webhook() -> Iterator[tuple[str, list[Notification]]]:
    """A receiver of Alertmanager's webhooks: base address, and (Unix time, path, body) of each."""
    received: list[Notification] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append((time.time(), self.path, json.loads(body)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", received
    finally:
        server.shutdown()
        server.server_close()
