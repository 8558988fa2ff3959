"""From batches to verdicts: shared by the daemon, ``replay`` and ``train``.

Batch -> Tracker (loads) -> RowBuilder (rows) -> Baseline (scores) -> Verdict
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from dynahugd.baseline import Baseline, Score
from dynahugd.baseline.learning import Learner
from dynahugd.features import Classifier, Row, RowBuilder
from dynahugd.loads import Load, Tracker, Update
from dynahugd.probes.batch import Batch
from dynahugd.verdicts import Stage, Verdict, VerdictKind, evidence_for, judge

__all__ = ["Pipeline", "Rules", "rows_of"]

#: Rows of an open load that are kept to be learned from.
_ROWS = 64


@dataclass(frozen=True, slots=True)
class Rules:
    """What a user can set about verdicts.

    Attributes
    ----------
    alpha : a p-value at or below it is an anomaly.
    window : seconds of the sliding window.
    linger : seconds that descendants are followed after the span.
    """

    alpha: float = 0.001
    window: float = 1.0
    linger: float = 30.0


@dataclass(slots=True)
class _Progress:
    worst: Score
    alerted: bool = False
    ended: bool = False
    rows: list[Row] = field(default_factory=list)

    def keep(self, rows: list[Row]) -> None:
        """Keep rows to learn from: of a long load ever fewer of the earlier ones."""
        self.rows += rows
        if len(self.rows) > _ROWS:
            del self.rows[: _ROWS // 2 : 2]


class Pipeline:
    """Scores loads as batches come in.

    Parameters
    ----------
    names : names of the system calls by number.
    finish : called with the id of each load that is over.
    learner : takes in the loads that are over, if there is one.
    """

    def __init__(
        self,
        baseline: Baseline,
        names: list[str],
        rules: Rules,
        finish: Callable[[int], None] = lambda _: None,
        learner: Learner | None = None,
    ) -> None:
        self._baseline = baseline
        self._rules = rules
        self._learner = learner
        self._tracker = Tracker(names, int(rules.linger * 1e9), finish)
        classifier = Classifier(baseline.known_globals)
        self._builder = RowBuilder(classifier, names, int(rules.window * 1e9))
        self._progress: dict[int, _Progress] = {}

    @property
    def open_loads(self) -> int:
        """Loads whose span lasts."""
        return sum(1 for load in self._tracker.open.values() if not load.end and load.is_model)

    def adopt(
        self, baseline: Baseline, rules: Rules | None = None, learner: Learner | None = None
    ) -> None:
        """Judge by another baseline from now on; open loads go on, and keep the worst so far.

        ``rules`` and ``learner`` stay as they are unless rules are given.
        """
        self._baseline = baseline
        self._builder.classifier = Classifier(baseline.known_globals)
        if rules is not None:
            self._rules, self._learner = rules, learner
            self._tracker.linger = int(rules.linger * 1e9)
            self._builder.window = int(rules.window * 1e9)

    def process(self, batch: Batch, clock: Callable[[], int] | None = None) -> Iterator[Verdict]:
        """Verdicts that this batch brings.

        Parameters
        ----------
        clock : CLOCK_MONOTONIC in ns at which a verdict is given; default: the batch's time, so
            that a replay says the same each time.
        """
        for update in self._tracker.update(batch):
            yield from self._judge(update, batch.time, clock or (lambda: batch.time))

    def stop(self, time: int) -> Iterator[Verdict]:
        """Verdicts on what is open when the daemon stops."""
        for update in self._tracker.cut_short(time):
            yield from self._judge(update, time, lambda: time)

    def _judge(self, update: Update, time: int, clock: Callable[[], int]) -> Iterator[Verdict]:
        load = update.load
        self._builder.add(load, update.acts)
        progress = self._progress.get(load.id)
        if load.is_model:
            rows = self._builder.build(load, time)
            scores = [self._baseline.score(row) for row in rows]
            worst = max(scores, key=lambda score: -score.p_value)
            if progress is None:
                progress = self._progress[load.id] = _Progress(worst)
            elif worst.p_value < progress.worst.p_value or (
                worst.p_value == progress.worst.p_value and worst.score > progress.worst.score
            ):
                progress.worst = worst
            if self._learner is not None:
                progress.keep(rows)
        if progress is not None:
            kind, _ = judge(load, progress.worst, self._rules.alpha)
            if kind is VerdictKind.ANOMALOUS and not progress.alerted:
                progress.alerted = True
                yield self._verdict(load, progress, Stage.ALERT, clock())
            if load.end and not progress.ended:
                progress.ended = True
                yield self._verdict(load, progress, Stage.ENDED, clock())
            if update.over:
                yield self._verdict(load, progress, Stage.OVER, clock())
                if self._learner is not None:
                    self._learner.take(load, progress.rows)
        if update.over:
            self._progress.pop(load.id, None)
            self._builder.forget(load)

    def _verdict(self, load: Load, progress: _Progress, stage: Stage, now: int) -> Verdict:
        kind, note = judge(load, progress.worst, self._rules.alpha)
        evidence = evidence_for(progress.worst.reasons, self._builder.evidence(load))
        latency = (now - evidence[0].time) / 1e9 if evidence else None
        return Verdict(load, stage, kind, now, progress.worst, evidence, latency, note)


def rows_of(
    batches: Iterator[Batch], names: list[str], classifier: Classifier, rules: Rules
) -> Iterator[tuple[Load, list[Row]]]:
    """All rows of each load of a recording, built when the daemon would build them."""
    tracker = Tracker(names, int(rules.linger * 1e9))
    builder = RowBuilder(classifier, names, int(rules.window * 1e9))
    rows: dict[int, list[Row]] = {}
    for batch in batches:
        for update in tracker.update(batch):
            load = update.load
            builder.add(load, update.acts)
            if load.is_model:
                rows.setdefault(load.id, []).extend(builder.build(load, batch.time))
            if update.over:
                builder.forget(load)
                if load.id in rows:
                    yield load, rows.pop(load.id)
