"""From batches to verdicts: shared by the daemon, ``replay`` and ``train``.

Batch -> Tracker (loads) -> RowBuilder (rows) -> Baseline (scores) -> Verdict
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from dynahugd.baseline import Baseline, Score
from dynahugd.baseline.learning import Learner
from dynahugd.baseline.scorer import Scorer
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


#: Loads whose rows are scored together: an alert does not wait for more than these.
_TOGETHER = 64


@dataclass(slots=True)
class _Progress:
    worst: Score | None = None
    alerted: bool = False
    ended: bool = False
    rows: list[Row] = field(default_factory=list)

    def take(self, scores: list[Score]) -> None:
        """Take in the scores of the rows that the load has now."""
        worst = max(scores, key=lambda score: -score.p_value)
        if (
            self.worst is None
            or worst.p_value < self.worst.p_value
            or (worst.p_value == self.worst.p_value and worst.score > self.worst.score)
        ):
            self.worst = worst

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
        self._scorer = Scorer(baseline)
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
        self._scorer = Scorer(baseline)
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
        updates = self._tracker.update(batch)
        yield from self._take(updates, batch.time, clock or (lambda: batch.time))

    def stop(self, time: int) -> Iterator[Verdict]:
        """Verdicts on what is open when the daemon stops."""
        yield from self._take(list(self._tracker.cut_short(time)), time, lambda: time)

    def _take(
        self, updates: list[Update], time: int, clock: Callable[[], int]
    ) -> Iterator[Verdict]:
        for first in range(0, len(updates), _TOGETHER):
            some = updates[first : first + _TOGETHER]
            self._score(some, time)
            for update in some:
                yield from self._judge(update, clock)

    def _score(self, updates: list[Update], time: int) -> None:
        """Score the rows of some loads together."""
        built: list[tuple[_Progress, list[Row]]] = []
        for update in updates:
            load = update.load
            self._builder.add(load, update.acts)
            if not load.is_model:
                continue
            progress = self._progress.get(load.id)
            if progress is None:
                progress = self._progress[load.id] = _Progress()
            rows = self._builder.build(load, time)
            if self._learner is not None:
                progress.keep(rows)
            built.append((progress, rows))
        scores = iter(self._scorer.scores(row for _, rows in built for row in rows))
        for progress, rows in built:
            progress.take([next(scores) for _ in rows])

    def _judge(self, update: Update, clock: Callable[[], int]) -> Iterator[Verdict]:
        load, progress = update.load, self._progress.get(update.load.id)
        if progress is not None and progress.worst is not None:
            worst = progress.worst
            kind, _ = judge(load, worst, self._rules.alpha)
            if kind is VerdictKind.ANOMALOUS and not progress.alerted:
                progress.alerted = True
                yield self._verdict(load, worst, Stage.ALERT, clock())
            if load.end and not progress.ended:
                progress.ended = True
                yield self._verdict(load, worst, Stage.ENDED, clock())
            if update.over:
                yield self._verdict(load, worst, Stage.OVER, clock())
                if self._learner is not None:
                    self._learner.take(load, progress.rows)
        if update.over:
            self._progress.pop(load.id, None)
            self._builder.forget(load)

    def _verdict(self, load: Load, worst: Score, stage: Stage, now: int) -> Verdict:
        kind, note = judge(load, worst, self._rules.alpha)
        evidence = evidence_for(worst.reasons, self._builder.evidence(load))
        latency = (now - evidence[0].time) / 1e9 if evidence else None
        return Verdict(load, stage, kind, now, worst, evidence, latency, note)


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
