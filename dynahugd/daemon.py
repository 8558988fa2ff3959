"""The daemon: the one loop from the ring to the outputs."""

from __future__ import annotations

import os
import platform
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime

from dynahugd import __version__
from dynahugd.baseline import Baseline
from dynahugd.baseline.files import digest
from dynahugd.baseline.learning import Learner, learn, resume
from dynahugd.config import Config
from dynahugd.errors import DynahugError
from dynahugd.escape import escape
from dynahugd.outputs.clock import WallClock
from dynahugd.outputs.log import Log
from dynahugd.outputs.messages import Message
from dynahugd.outputs.metrics import Snapshot, registry
from dynahugd.outputs.outlets import Outlets, Watch
from dynahugd.outputs.service import Service
from dynahugd.outputs.tally import Tally
from dynahugd.pipeline import Pipeline, Rules
from dynahugd.probes import syscalls
from dynahugd.probes.interpreter import Coverage, Interpreter
from dynahugd.probes.maps import Sizes
from dynahugd.probes.probe import Options, Probe
from dynahugd.verdicts import Stage, Verdict, VerdictKind

__all__ = ["Daemon", "Setup", "probe_options", "rules"]

#: Seconds in which the loop has to come round to be called healthy, and in which it does.
_HEALTHY, _TURN = 10.0, 5.0

#: Seconds between two looks at what is said at most that often.
_TELL_EVERY = 1.0


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
        quiet=config.probe.quiet,
        rest=config.probe.rest,
    )


def rules(config: Config) -> Rules:
    """The part of the configuration that the verdicts need."""
    return Rules(config.verdict.alpha, config.verdict.window, config.probe.linger)


def _give_way() -> None:
    """Take no processor away from what is watched: one that is idle, or the next turn, will do.

    The kernel may wake the reader where a record was written, and a batch takes longer than a
    small load. Who has chosen a policy, the unit or a user, is left with it.
    """
    for task in map(int, os.listdir("/proc/self/task")):  # numpy has threads of its own
        if os.sched_getscheduler(task) == os.SCHED_OTHER:
            with suppress(OSError):  # a filter of system calls may refuse it
                os.sched_setscheduler(task, os.SCHED_BATCH, os.sched_param(0))


@dataclass(frozen=True, slots=True)
class Setup:
    """What the daemon is to do, read and checked: the configuration and the baseline it names.

    ``source`` is what the baseline is called.
    """

    config: Config
    baseline: Baseline
    source: str


def _needs_restart(before: Config, after: Config) -> list[str]:
    """What differs and is taken over at the next start only, as text."""
    return [
        name
        for name, old, new in (
            ("probe.loader", before.probe.loader, after.probe.loader),
            ("daemon.log_format", before.daemon.log_format, after.daemon.log_format),
            ("[tables]", before.tables, after.tables),
        )
        if old != new
    ]


@dataclass(slots=True)
class Daemon:
    """Watches until it is told to stop.

    Attributes
    ----------
    configure : reads and checks the configuration; called once more at each reload.
    setup : what is in force.
    baseline, source : what is judged by: the setup's, or what was learned on top of it.
    """

    configure: Callable[[], Setup]
    setup: Setup
    log: Log
    tally: Tally = field(default_factory=Tally)
    baseline: Baseline = field(init=False)
    source: str = field(init=False)
    _learner: Learner | None = None
    _stop: bool = False
    _reload: bool = False
    _ready: bool = False
    _last_turn: float = 0.0
    _wake: Callable[[], None] | None = None

    def run(self) -> None:
        """Attach, watch, and detach at SIGTERM or SIGINT; read the configuration at SIGHUP.

        Raises
        ------
        DynahugError : when something that was asked for cannot be had.
        """
        started = time.monotonic()
        _give_way()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        service = Service()
        config = self.setup.config
        outlets = Outlets()
        probe = Probe(probe_options(config), self._report)
        self._wake = probe.wake
        try:
            self._judge_by(self.setup, self._learner_for(self.setup))
            names = syscalls.names(syscalls.machine())
            pipeline = Pipeline(self.baseline, names, rules(config), probe.finish, self._learner)
            watch = Watch(
                registry(lambda: self._snapshot(probe, pipeline, outlets)),
                lambda: time.monotonic() - self._last_turn < _HEALTHY,
                lambda: self._ready,
                self.log.say,
            )
            outlets.change(config, watch)
            self.log.say(
                Message.STARTING,
                f"loader {probe.loader} on Linux {platform.release()} {platform.machine()}; "
                f"baseline {escape(self.source)}: {self.baseline.metadata.get('loads', 0)} loads "
                f"in {len(self.baseline.clusters)} clusters",
            )
            probe.know_globals(self.baseline.known_globals)
            probe.cover_host()
            self._ready = True
            self._last_turn = time.monotonic()
            self.log.say(
                Message.READY,
                f"ready after {time.monotonic() - started:.2f} s: watching every model load",
            )
            service.ready()
            self._watch(probe, pipeline, outlets, watch, service)
        finally:
            self._wake = None
            service.stopping()
            probe.close()
            outlets.close()

    def _watch(
        self, probe: Probe, pipeline: Pipeline, outlets: Outlets, watch: Watch, service: Service
    ) -> None:
        clock = WallClock()
        seen_lost = probe.lost()
        told = 0.0
        while not self._stop:
            if self._reload:
                self._reload = False
                service.reloading()
                self._take_over(probe, pipeline, outlets, watch)
                service.ready()
            batch = probe.read(_TURN)
            self._last_turn = time.monotonic()
            service.alive()
            self.tally.take_batch(batch)
            for verdict in pipeline.process(batch, time.monotonic_ns):
                self._deliver(verdict, probe, outlets)
            if self._learner is not None and self._learner.taken >= self.setup.config.learn.loads:
                self._learn(self._learner, probe, pipeline)
            if batch.hop:
                lost = probe.lost()
                for loss, count in lost.items():
                    if count > seen_lost[loss]:
                        self.log.say(
                            Message.RECORDS_LOST,
                            f"lost {count - seen_lost[loss]} ({loss.name.lower()}): see "
                            "dynahugd_records_lost_total",
                        )
                seen_lost = lost
            if self._last_turn - told >= _TELL_EVERY:
                told = self._last_turn
                self.log.turn()
                service.status(self.tally.summary(clock))
        for verdict in pipeline.stop(time.monotonic_ns()):
            self._deliver(verdict, probe, outlets)
        self.log.say(Message.STOPPING, f"stopped: {self.tally.summary(clock)}")

    def _deliver(self, verdict: Verdict, probe: Probe, outlets: Outlets) -> None:
        self.tally.take_verdict(verdict)
        try:
            outlets.take(verdict)
        except OSError as error:
            self.log.say(
                Message.ALERT_LOG_FAILED, f"the alert log cannot be written: {error.strerror}"
            )
        self.log.show(verdict)
        over = verdict.stage is Stage.OVER
        if over and verdict.kind is VerdictKind.BENIGN and verdict.load.memory:
            # The next message with the same globals costs nothing.
            probe.know_globals(verdict.load.globals())

    def _take_over(self, probe: Probe, pipeline: Pipeline, outlets: Outlets, watch: Watch) -> None:
        """Read the configuration again and take it over whole, or nothing of it."""
        try:
            setup = self.configure()
            learner = self._learner_for(setup)
            outlets.change(setup.config, watch)
        except DynahugError as error:
            self.tally.configured = False
            self.log.say(Message.RELOAD_REFUSED, f"not reloaded, nothing has changed: {error}")
            return
        later = _needs_restart(self.setup.config, setup.config)
        self._judge_by(setup, learner)
        pipeline.adopt(self.baseline, rules(setup.config), learner)
        probe.adopt(probe_options(setup.config))
        probe.know_globals(self.baseline.known_globals)
        self.tally.configured, self.tally.configured_time = True, time.time()
        self.log.say(
            Message.RELOADED,
            f"reloaded; baseline {escape(self.source)}"
            + (f"; in force at the next start: {', '.join(later)}" if later else ""),
        )

    def _learner_for(self, setup: Setup) -> Learner | None:
        """Who learns on top of the baseline: the one who does so already, if it is the same.

        Raises
        ------
        DynahugError : when nothing can be learned on top of it.
        """
        if not setup.config.learn.file:
            return None
        now = self._learner
        if now is not None and digest(now.base) == digest(setup.baseline):
            return now
        return Learner(setup.baseline)

    def _judge_by(self, setup: Setup, learner: Learner | None) -> None:
        """Judge by a setup's baseline, or by what was learned on top of it before."""
        self.setup, self._learner = setup, learner
        self.baseline, self.source = setup.baseline, setup.source
        path = setup.config.learn.file
        if learner is not None and os.path.lexists(path):
            try:
                self.baseline, self.source = resume(learner.base, path), path
            except DynahugError as error:
                self.log.say(Message.LEARNING_REFUSED, str(error))

    def _learn(self, learner: Learner, probe: Probe, pipeline: Pipeline) -> None:
        """Take over what the lessons teach; if they are no good, begin anew."""
        config = self.setup.config
        path = config.learn.file
        try:
            self.baseline = learn(learner, config.verdict.alpha, path)
        except DynahugError as error:
            self.log.say(Message.LEARNING_REFUSED, str(error))
            self.tally.learnings[False] += 1
        else:
            self.source = path
            self.tally.learnings[True] += 1
            pipeline.adopt(self.baseline)
            probe.know_globals(self.baseline.known_globals)
            self.log.say(
                Message.LEARNED,
                f"learned from {len(learner.lessons)} loads of this host: {escape(path)}",
            )
        learner.clear()

    def _on_signal(self, number: int, frame: object) -> None:
        if number == signal.SIGHUP:
            self._reload = True
        else:
            self._stop = True
        if self._wake is not None:
            self._wake()

    def _report(self, item: Interpreter) -> None:
        path = escape(item.path)
        if item.coverage is Coverage.ATTACHED:
            version = ".".join(map(str, item.version or ()))
            what = "unpickler" if item.unpickler else "interpreter without a built-in unpickler"
            self.log.say(
                Message.INTERPRETER_ATTACHED, f"attached to {path}: CPython {version}, {what}"
            )
        elif item.coverage is Coverage.NOT_COVERED:
            self.log.say(
                Message.INTERPRETER_NOT_COVERED, f"cannot see into {path}: {escape(item.reason)}"
            )
        else:
            self.log.say(Message.INTERPRETER_RELEASED, f"released {path}: the file is gone")

    def _snapshot(self, probe: Probe, pipeline: Pipeline, outlets: Outlets) -> Snapshot:
        counted = probe.interpreters.count()
        metadata = self.baseline.metadata
        try:
            trained = datetime.fromisoformat(str(metadata.get("trained", ""))).timestamp()
        except ValueError:
            trained = 0.0
        return Snapshot(
            self.tally,
            pipeline.open_loads,
            probe.lost(),
            probe.stages.stage,
            {state.value: counted[state] for state in Coverage},
            {
                "version": __version__,
                "python": platform.python_version(),
                "kernel": platform.release(),
                "loader": probe.loader,
            },
            {
                "source": self.source,
                "loads": str(metadata.get("loads", 0)),
                "clusters": str(len(self.baseline.clusters)),
                "learned_loads": str(metadata.get("learned_loads", 0)),
            },
            trained,
            self._ready,
            outlets.pushes(),
            probe.meter.read(),
        )
