"""The daemon: the one loop from the ring to the outputs."""

from __future__ import annotations

import os
import platform
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from dynahugd import __version__
from dynahugd.baseline import Baseline
from dynahugd.baseline.learning import Learner, learn, resume
from dynahugd.config import Config
from dynahugd.errors import DynahugError
from dynahugd.escape import escape
from dynahugd.outputs.alertlog import AlertLog
from dynahugd.outputs.clock import WallClock
from dynahugd.outputs.listener import Listener
from dynahugd.outputs.metrics import Snapshot, registry
from dynahugd.outputs.tally import Tally
from dynahugd.outputs.text import as_object, as_text
from dynahugd.pipeline import Pipeline, Rules
from dynahugd.probes import syscalls
from dynahugd.probes.interpreters import Coverage, Interpreter
from dynahugd.probes.maps import Sizes
from dynahugd.probes.probe import Options, Probe
from dynahugd.verdicts import Stage, Verdict, VerdictKind

__all__ = ["Daemon", "probe_options", "rules"]

#: The loop has to come round this often to be called healthy, in seconds.
_HEALTHY = 10.0


def probe_options(config: Config) -> Options:
    """The part of the configuration that the probe needs."""
    tables = config.tables
    return Options(
        loader=config.probe.loader,
        sizes=Sizes(
            tables.max_loads,
            tables.max_tasks,
            tables.max_files,
            tables.max_globals,
            tables.ring_bytes,
        ),
        suffixes=tuple(config.probe.suffixes),
        wrappers=tuple(config.probe.wrappers),
        hop=config.probe.hop,
        idle=config.probe.idle,
    )


def rules(config: Config) -> Rules:
    """The part of the configuration that the verdicts need."""
    return Rules(config.verdict.alpha, config.verdict.window, config.probe.linger)


@dataclass(slots=True)
class Daemon:
    """Watches until it is told to stop.

    Attributes
    ----------
    say : prints a line of the program's own.
    show : prints a verdict.
    """

    config: Config
    baseline: Baseline
    baseline_source: str
    say: Callable[[str], None]
    show: Callable[[Verdict], None]
    tally: Tally = field(default_factory=Tally)
    _learner: Learner | None = None
    _stop: bool = False
    _ready: bool = False
    _last_turn: float = 0.0

    def run(self) -> None:
        """Attach, watch, and detach at SIGTERM or SIGINT.

        Raises
        ------
        DynahugError : when something that was asked for cannot be had.
        """
        started = time.monotonic()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        log = AlertLog(self.config.daemon.alert_log) if self.config.daemon.alert_log else None
        probe = Probe(probe_options(self.config), self._report)
        listener = None
        try:
            if self.config.learn.file:
                self._resume()
            names = syscalls.names(syscalls.machine())
            pipeline = Pipeline(
                self.baseline, names, rules(self.config), probe.finish, self._learner
            )
            self.say(
                f"loader {probe.loader} on Linux {platform.release()} {platform.machine()}; "
                f"baseline {escape(self.baseline_source)}: "
                f"{self.baseline.metadata.get('loads', 0)} loads "
                f"in {len(self.baseline.clusters)} clusters"
            )
            if self.config.daemon.listen:
                listener = Listener(
                    self.config.daemon.listen,
                    registry(lambda: self._snapshot(probe, pipeline)),
                    lambda: time.monotonic() - self._last_turn < _HEALTHY,
                    lambda: self._ready,
                )
                host = self.config.daemon.listen.rpartition(":")[0]
                self.say(f"metrics at http://{host}:{listener.port}/metrics")
            probe.know_globals(self.baseline.known_globals)
            probe.cover_host()
            self._ready = True
            self._last_turn = time.monotonic()
            self.say(f"ready after {time.monotonic() - started:.2f} s: watching every model load")
            _notify("READY=1")
            self._watch(probe, pipeline, log)
        finally:
            _notify("STOPPING=1")
            if listener is not None:
                listener.close()
            probe.close()
            if log is not None:
                log.close()

    def _watch(self, probe: Probe, pipeline: Pipeline, log: AlertLog | None) -> None:
        clock = WallClock()
        seen_lost = probe.lost()
        while not self._stop:
            batch = probe.read(0.25)
            self._last_turn = time.monotonic()
            self.tally.take_batch(batch)
            for verdict in pipeline.process(batch, time.monotonic_ns):
                self._deliver(verdict, probe, log, clock)
            if self._learner is not None and self._learner.taken >= self.config.learn.loads:
                self._learn(self._learner, probe, pipeline)
            if batch.hop:
                lost = probe.lost()
                for loss, count in lost.items():
                    if count > seen_lost[loss]:
                        self.say(
                            f"lost {count - seen_lost[loss]} ({loss.name.lower()}): see "
                            "dynahugd_records_lost_total"
                        )
                seen_lost = lost
        for verdict in pipeline.stop(time.monotonic_ns()):
            self._deliver(verdict, probe, log, clock)

    def _resume(self) -> None:
        """Learn on top of the baseline, and take over what was learned before."""
        self._learner = Learner(self.baseline)
        path = self.config.learn.file
        if os.path.lexists(path):
            try:
                self.baseline = resume(self._learner.base, path)
            except DynahugError as error:
                self.say(str(error))
            else:
                self.baseline_source = path

    def _learn(self, learner: Learner, probe: Probe, pipeline: Pipeline) -> None:
        """Take over what the lessons teach; if they are no good, begin anew."""
        path = self.config.learn.file
        try:
            self.baseline = learn(learner, self.config.verdict.alpha, path)
        except DynahugError as error:
            self.say(str(error))
            self.tally.learnings[False] += 1
        else:
            self.baseline_source = path
            self.tally.learnings[True] += 1
            pipeline.adopt(self.baseline)
            probe.know_globals(self.baseline.known_globals)
            self.say(f"learned from {len(learner.lessons)} loads of this host: {escape(path)}")
        learner.clear()

    def _deliver(
        self, verdict: Verdict, probe: Probe, log: AlertLog | None, clock: WallClock
    ) -> None:
        self.tally.take_verdict(verdict)
        # The alert does not wait for what the load does next; the last word has all of it.
        last = verdict.stage is Stage.OVER and verdict.kind is VerdictKind.ANOMALOUS
        if log is not None and (last or verdict.stage is Stage.ALERT):
            try:
                log.write(verdict, clock)
            except OSError as error:
                self.say(f"the alert log cannot be written: {error.strerror}")
        if verdict.stage is not Stage.OVER or last:
            self.show(verdict)
        elif verdict.kind is VerdictKind.BENIGN and verdict.load.memory:
            # The next message with the same globals costs nothing.
            probe.know_globals(verdict.load.globals())

    def _on_signal(self, number: int, frame: object) -> None:
        self._stop = True

    def _report(self, item: Interpreter) -> None:
        path = escape(item.path)
        if item.coverage is Coverage.ATTACHED:
            version = ".".join(map(str, item.version or ()))
            what = "unpickler" if item.unpickler else "interpreter without a built-in unpickler"
            self.say(f"attached to {path}: CPython {version}, {what}")
        elif item.coverage is Coverage.NOT_COVERED:
            self.say(f"cannot see into {path}: {item.reason}")
        else:
            self.say(f"released {path}: the file is gone")

    def _snapshot(self, probe: Probe, pipeline: Pipeline) -> Snapshot:
        counted = probe.interpreters.count()
        trained = str(self.baseline.metadata.get("trained", ""))
        try:
            timestamp = datetime.fromisoformat(trained).timestamp()
        except ValueError:
            timestamp = 0.0
        return Snapshot(
            self.tally,
            pipeline.open_loads,
            probe.lost(),
            {state.value: counted[state] for state in Coverage},
            {
                "version": __version__,
                "python": platform.python_version(),
                "kernel": platform.release(),
                "loader": probe.loader,
            },
            {
                "source": self.baseline_source,
                "loads": str(self.baseline.metadata.get("loads", 0)),
                "clusters": str(len(self.baseline.clusters)),
                "learned_loads": str(self.baseline.metadata.get("learned_loads", 0)),
            },
            timestamp,
            self._ready,
            {},
        )


def _notify(message: str) -> None:
    """Tell systemd, where it asked to be told."""
    if "NOTIFY_SOCKET" in os.environ:
        try:
            from systemd import daemon
        except ImportError as error:
            raise DynahugError("systemd-python is missing: install python3-systemd") from error
        daemon.notify(message)


def printers(as_json: bool) -> tuple[Callable[[str], None], Callable[[Verdict], None]]:
    """How to print lines and verdicts on standard output: text, or JSON."""
    import json

    clock = WallClock()

    def out(text: str) -> None:
        print(text, flush=True)

    if as_json:
        return (
            lambda text: print(text, file=sys.stderr, flush=True),
            lambda verdict: out(json.dumps(as_object(verdict, clock))),
        )

    told: dict[int, set[str]] = {}

    def show(verdict: Verdict) -> None:
        # One line a load: an anomalous one has it at the alert, and one more when it is over if
        # there is more to tell.
        load = verdict.load.id
        reasons = {reason.feature for reason in verdict.score.reasons}
        if verdict.stage is Stage.ALERT:
            told[load] = reasons
            out(as_text(verdict, clock))
        elif verdict.kind is not VerdictKind.ANOMALOUS:
            out(as_text(verdict, clock))
        elif verdict.stage is Stage.OVER:
            earlier = told.pop(load)
            if reasons - earlier:
                out(as_text(verdict, clock, earlier))

    return out, show
