"""Where alerts and metrics go besides the log: the alert log, Alertmanager, the listener."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from dynahugd.config import Config, DaemonKeys
from dynahugd.outputs.alertlog import AlertLog
from dynahugd.outputs.clock import WallClock
from dynahugd.outputs.listener import Listener
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
        self._clock = WallClock()
        self._alert_log: AlertLog | None = None
        self._listener: Listener | None = None

    def change(self, config: Config, watch: Watch) -> None:
        """Open what a configuration asks for and close what it does not, or leave all as it is.

        Raises
        ------
        DynahugError : when something cannot be opened; then nothing has changed.
        """
        before, after = self._daemon, config.daemon
        replaced = ExitStack()
        with ExitStack() as opened:
            alert_log, listener = self._alert_log, self._listener
            if after.alert_log != before.alert_log:
                alert_log = None
                if after.alert_log:
                    alert_log = AlertLog(after.alert_log)
                    opened.callback(alert_log.close)
                if self._alert_log is not None:
                    replaced.callback(self._alert_log.close)
            if after.listen != before.listen:
                listener = None
                if after.listen:
                    listener = Listener(after.listen, watch.registry, watch.healthy, watch.ready)
                    opened.callback(listener.close)
                    host = after.listen.rpartition(":")[0]
                    watch.say(
                        Message.LISTENING, f"metrics at http://{host}:{listener.port}/metrics"
                    )
                if self._listener is not None:
                    replaced.callback(self._listener.close)
            opened.pop_all()
        self._daemon, self._alert_log, self._listener = after, alert_log, listener
        replaced.close()

    def take(self, verdict: Verdict) -> None:
        """Pass on an alert, and the last word on its load.

        Raises
        ------
        OSError : when the alert log cannot be written.
        """
        # The alert does not wait for what the load does next; the last word has all of it.
        last = verdict.stage is Stage.OVER and verdict.kind is VerdictKind.ANOMALOUS
        if self._alert_log is not None and (last or verdict.stage is Stage.ALERT):
            self._alert_log.write(verdict, self._clock)

    def pushes(self) -> dict[tuple[str, str], int]:
        """Requests to each Alertmanager, by result."""
        return {}

    def close(self) -> None:
        """Close everything."""
        if self._listener is not None:
            self._listener.close()
        if self._alert_log is not None:
            self._alert_log.close()
