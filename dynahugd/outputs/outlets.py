"""Where alerts and metrics go besides the log: the alert log, Alertmanager, the listener."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from dynahugd.config import AlertmanagerKeys, Config, DaemonKeys
from dynahugd.outputs.alertlog import AlertLog
from dynahugd.outputs.alertmanager import Alertmanagers
from dynahugd.outputs.clock import WallClock
from dynahugd.outputs.listener import Listener, open_to_others, web_config
from dynahugd.outputs.messages import Message, Say
from dynahugd.verdicts import Stage, Verdict, VerdictKind

__all__ = ["Outlets", "Watch"]


@dataclass(frozen=True, slots=True)
class Watch:
    """What the outlets ask of the daemon: its metrics, and how it does."""

    registry: CollectorRegistry
    healthy: Callable[[], bool]
    ready: Callable[[], bool]
    say: Say


class Outlets:
    """What is open now, by the configuration in force."""

    def __init__(self) -> None:
        self._daemon = DaemonKeys(listen="", alert_log="")
        self._keys = AlertmanagerKeys()
        self._clock = WallClock()
        self._alert_log: AlertLog | None = None
        self._listener: Listener | None = None
        self._alertmanagers: Alertmanagers | None = None

    def change(self, config: Config, watch: Watch) -> None:
        """Open what a configuration asks for and close what it does not, or leave all as it is.

        Raises
        ------
        DynahugError : when something cannot be opened; then nothing has changed.
        """
        before, after, keys = self._daemon, config.daemon, config.alertmanager
        alert_log, listener, alertmanagers = self._alert_log, self._listener, self._alertmanagers
        with ExitStack() as opened:
            if after.alert_log != before.alert_log:
                alert_log = AlertLog(after.alert_log) if after.alert_log else None
                if alert_log is not None:
                    opened.callback(alert_log.close)
            web = web_config(after.web_config)
            if after.listen != before.listen:
                listener = None
                if after.listen:
                    listener = Listener(
                        after.listen, watch.registry, watch.healthy, watch.ready, web, watch.say
                    )
                    opened.callback(listener.close)
            if keys != self._keys or after.listen != before.listen:
                port = listener.port if listener is not None else 0
                alertmanagers = Alertmanagers(
                    keys, f"{socket.gethostname()}:{port}", watch.say, self._clock
                )
            opened.pop_all()
        # From here on nothing can fail.
        if alertmanagers is not None and alertmanagers is not self._alertmanagers:
            alertmanagers.start(self._alertmanagers)
        for old, new in ((self._alert_log, alert_log), (self._listener, listener)):
            if old is not None and old is not new:
                old.close()
        if listener is not None:
            if listener is self._listener and after.web_config != before.web_config:
                listener.use(web)
            if (after.listen, after.web_config) != (before.listen, before.web_config):
                scheme = "https" if web is not None and web.context is not None else "http"
                host = after.listen.rpartition(":")[0]
                watch.say(
                    Message.LISTENING, f"metrics at {scheme}://{host}:{listener.port}/metrics"
                )
                if open_to_others(after.listen, web):
                    watch.say(
                        Message.LISTENER_OPEN,
                        f"anyone who reaches {after.listen} can read the metrics: set "
                        "daemon.web_config (TLS, users), or listen on 127.0.0.1",
                    )
        self._daemon, self._keys = after, keys
        self._alert_log, self._listener = alert_log, listener
        self._alertmanagers = alertmanagers

    def take(self, verdict: Verdict) -> None:
        """Pass on an alert, and the last word on its load.

        Raises
        ------
        OSError : when the alert log cannot be written.
        """
        if self._alertmanagers is not None:
            self._alertmanagers.take(verdict)
        # The alert does not wait for what the load does next; the last word has all of it.
        last = verdict.stage is Stage.OVER and verdict.kind is VerdictKind.ANOMALOUS
        if self._alert_log is not None and (last or verdict.stage is Stage.ALERT):
            self._alert_log.write(verdict, self._clock)

    def pushes(self) -> dict[tuple[str, str], int]:
        """Requests to each Alertmanager, by result."""
        return self._alertmanagers.pushes() if self._alertmanagers is not None else {}

    def close(self) -> None:
        """Close everything; alerts that no Alertmanager has yet are sent once more."""
        if self._alertmanagers is not None:
            self._alertmanagers.close()
        if self._listener is not None:
            self._listener.close()
        if self._alert_log is not None:
            self._alert_log.close()
