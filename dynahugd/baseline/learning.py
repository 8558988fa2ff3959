"""Learning on the host: a baseline extended by the ordinary work of the loads of this host.

Ordinary work is what differs between hosts: system calls, imports, threads (``is_ordinary``). What
decides (a program executed, a peer, a file written, a capable global) is judged by the baseline
underneath as before, whatever is learned: a load that shows more of it than benign loads do is not
learned from at all. Of the others

- rows that lie outside a cluster, where several processes vouch for them, become further support
  vectors of it (their weight makes a row like them lie on the boundary);
- ordinary columns that the cluster did not know, and globals, become known by the same vote;
- their scores, each load's when it was held out, join those that p-values are read from.

One process has one vote and a few loads; where several users load models, no user's processes
suffice alone. The baseline underneath stays whole: its vectors, its scores, its ranges. Each time
it is extended anew, so that nothing creeps from one learning to the next. Numpy alone.
"""

from __future__ import annotations

import platform
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from dynahugd import __version__
from dynahugd.baseline import files
from dynahugd.baseline.detector import Calibration, Cluster, Detector, Floats
from dynahugd.baseline.model import Baseline, novelty
from dynahugd.errors import DynahugError
from dynahugd.escape import escape
from dynahugd.features import Classifier, Row, is_ordinary
from dynahugd.loads import Load

__all__ = ["LEAST", "Learner", "Lesson", "extend", "learn", "objection", "resume"]

#: So many loads are the fewest to learn from.
LEAST = 50
#: So many processes have to show what is learned.
QUORUM = 3
#: Loads of one process that count, rows of one load, and loads that are kept.
_OF_PROCESS, _ROWS, _KEPT = 12, 6, 2000
#: Where each of two users has this share of the loads, one user has a vote less than it takes.
_SHARED = 0.1
#: A load that scores more stays strange, however many are like it: half of what one column of
#: evidence adds, so that evidence decides where all loads of the host are as strange as that.
_CEILING = 10.0
#: Support vectors that a cluster is given at most, and rows that these are chosen among.
_VECTORS, _OUTSIDE = 64, 1000
#: What a baseline must never become deaf to.
_ALARMING = (
    "execute.shell",
    "child.execute.shell",
    "connect.public",
    "read.credentials",
    "write.startup",
    "map.anonymous",
    "global.capable",
)
#: Rows that this is tried on.
_TRIED = 50


@dataclass(frozen=True, slots=True)
class Lesson:
    """A load that may be learned from.

    Attributes
    ----------
    process, user : who performed it.
    counts : float32, shape (rows, columns of the baseline).
    foreign : ordinary columns that the baseline does not have, of each row.
    globals : pairs (module, name) that it resolved.
    """

    process: int
    user: int
    counts: npt.NDArray[np.float32]
    foreign: tuple[Mapping[str, int], ...]
    globals: frozenset[tuple[str, str]]


@dataclass(slots=True)
class Learner:
    """Keeps lessons: of more than can be kept, an even sample.

    Attributes
    ----------
    base : the baseline that is extended; not one that was extended so itself.
    taken, refused : loads learned from, and loads that showed what is never learned.
    """

    base: Baseline
    lessons: list[Lesson] = field(default_factory=list)
    taken: int = 0
    refused: int = 0
    _processes: Counter[int] = field(default_factory=Counter)
    _random: random.Random = field(default_factory=lambda: random.Random(0))

    def __post_init__(self) -> None:
        if "learned_base" in self.base.metadata:
            raise DynahugError(
                "the baseline to learn on top of was itself learned on a host, and would creep: "
                "name the one underneath"
            )

    def take(self, load: Load, rows: Sequence[Row]) -> None:
        """Take in a load that is over, unless it is incomplete, or shows what is never learned."""
        incomplete = load.lost or load.cut or load.uncounted or not rows
        if incomplete or self._processes[load.tgid] >= _OF_PROCESS:
            return
        lesson = _lesson(self.base, load, rows)
        if lesson is None:
            self.refused += 1
            return
        self._processes[load.tgid] += 1
        self.taken += 1
        if len(self.lessons) < _KEPT:
            self.lessons.append(lesson)
        elif (place := self._random.randrange(self.taken)) < _KEPT:
            self.lessons[place] = lesson

    def clear(self) -> None:
        """Begin anew."""
        self.lessons.clear()
        self._processes.clear()
        self.taken = self.refused = 0


def learn(learner: Learner, alpha: float, path: str) -> Baseline:
    """Extend the learner's base by its lessons, and write the result, unless it is no good.

    Parameters
    ----------
    alpha : p-value of an alert.

    Raises
    ------
    DynahugError : there is too little to learn from, it does not validate, or cannot be written.
    """
    lessons = learner.lessons
    provenance = {
        "learned": datetime.now(UTC).isoformat(timespec="seconds"),
        "learned_on": platform.node(),
        "learned_kernel": platform.release(),
        "learned_with": __version__,
        "learned_loads": len(lessons),
        "learned_processes": len({lesson.process for lesson in lessons}),
        "learned_users": len({lesson.user for lesson in lessons}),
        "learned_not_from": learner.refused,
        "learned_base": files.digest(learner.base),
    }
    learned = extend(learner.base, lessons, provenance)
    if why := objection(learner.base, learned, lessons, alpha):
        raise DynahugError(f"what was learned is not taken over: {why}")
    files.write(learned, path)
    return files.read(path)  # what is in force now is what will be read at the next start


def resume(base: Baseline, path: str) -> Baseline:
    """What was learned on top of this base before.

    Raises
    ------
    DynahugError : it cannot be read, or was learned on top of another base.
    """
    learned = files.read(path)
    if learned.metadata.get("learned_base") != files.digest(base):
        raise DynahugError(f"{escape(path)} was learned on top of another baseline: learn again")
    return learned


def _lesson(base: Baseline, load: Load, rows: Sequence[Row]) -> Lesson | None:
    """The lesson of a load, or None where a row shows evidence beyond what benign loads show."""
    counts = np.zeros((len(rows), len(base.columns)))
    foreign = []
    for place, row in enumerate(rows):
        counts[place : place + 1], others = base.vector(row.counts)
        if not all(is_ordinary(name) for name in others):
            return None
        foreign.append(others)
    evidence = ~_ordinary(base.columns)
    labels = base.detector.assign(counts)
    for label in np.unique(labels):
        own = counts[labels == label]
        beyond = (base.detector.novel(own, int(label)) > 0) | (own > base.clusters[label].high)
        if (beyond & evidence).any():
            return None
    whole = max((i for i, row in enumerate(rows) if row.window == "whole"), default=0)
    evenly = np.linspace(0, len(rows) - 1, min(_ROWS, len(rows))).astype(int)
    kept = sorted({whole, *evenly.tolist()})
    return Lesson(
        load.tgid,
        load.uid,
        counts[kept].astype(np.float32),
        tuple(foreign[place] for place in kept),
        frozenset(load.globals()),
    )


def _ordinary(columns: Iterable[str]) -> npt.NDArray[np.bool_]:
    return np.array([is_ordinary(name) for name in columns], bool)


@dataclass(frozen=True, slots=True)
class _Votes:
    """Who performed the loads, shapes (loads,), and how many votes a user has at most."""

    processes: npt.NDArray[np.int64]
    users: npt.NDArray[np.int64]
    most: int

    def of(self, loads: npt.NDArray[np.intp]) -> int:
        """Votes of some loads: one a process, up to ``most`` a user."""
        pairs = {(int(self.users[i]), int(self.processes[i])) for i in loads}
        return sum(min(n, self.most) for n in Counter(user for user, _ in pairs).values())

    def carried(self, shown: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Which columns enough loads show; shapes (loads, columns) -> (columns,)."""
        enough = np.zeros(shown.shape[1], bool)
        for column in np.flatnonzero(shown.sum(axis=0) >= QUORUM):
            enough[column] = self.of(np.flatnonzero(shown[:, column])) >= QUORUM
        return enough


def _votes(lessons: Sequence[Lesson]) -> _Votes:
    users = np.array([lesson.user for lesson in lessons], np.int64)
    _, sizes = np.unique(users, return_counts=True)
    shared = (sizes >= _SHARED * len(lessons)).sum() > 1
    processes = np.array([lesson.process for lesson in lessons], np.int64)
    return _Votes(processes, users, QUORUM - 1 if shared else QUORUM)


def extend(base: Baseline, lessons: Sequence[Lesson], metadata: Mapping[str, Any]) -> Baseline:
    """The baseline with what the lessons teach on top of it.

    Parameters
    ----------
    metadata : provenance, added to the base's.

    Raises
    ------
    DynahugError : with fewer than 50 loads, or of fewer than three processes.
    """
    if len(lessons) < LEAST:
        raise DynahugError(f"{len(lessons)} loads are too few to learn from: it takes {LEAST}")
    votes = _votes(lessons)
    if (processes := np.unique(votes.processes).size) < QUORUM:
        raise DynahugError(
            f"loads of {processes} processes are too few to learn from: it takes {QUORUM}"
        )
    names = sorted({name for lesson in lessons for row in lesson.foreign for name in row})
    counts, owner = _matrix((*base.columns, *names), lessons)
    enough = votes.carried(_by_load(counts, owner) > 0)[len(base.columns) :]
    columns = (*base.columns, *(name for name, good in zip(names, enough, strict=True) if good))
    counts, owner = _matrix(columns, lessons)
    wider = _widened(base.detector, columns, counts, owner, votes)
    half = np.random.default_rng(0).permutation(np.unique(votes.processes))
    second = np.isin(votes.processes, half[: half.size // 2])[owner]
    rows_scored = np.empty(len(counts))
    for test in (second, ~second):
        extended = _vouched(wider, counts[~test], owner[~test], votes)
        rows_scored[test] = extended.score(counts[test])[0]
    scores, labels = _strangest(rows_scored, wider.assign(counts), owner)
    detector = _recalibrated(_vouched(wider, counts, owner, votes), scores, labels, votes.users)
    classifier = Classifier(base.known_globals)
    pairs = sorted(
        pair
        for pair in {pair for lesson in lessons for pair in lesson.globals}
        if is_ordinary(classifier.global_column(*pair) or "")
    )
    named = np.array([[pair in lesson.globals for pair in pairs] for lesson in lessons], bool)
    known = votes.carried(named.reshape(len(lessons), len(pairs)))
    return Baseline(
        columns,
        detector,
        base.known_globals | {pair for pair, good in zip(pairs, known, strict=True) if good},
        dict(base.metadata) | dict(metadata),
    )


def _matrix(
    columns: Sequence[str], lessons: Sequence[Lesson]
) -> tuple[Floats, npt.NDArray[np.intp]]:
    """Counts of all rows in these columns, the base's first, and the load of each row."""
    owner = np.repeat(np.arange(len(lessons)), [len(lesson.counts) for lesson in lessons])
    counts = np.zeros((owner.size, len(columns)))
    known = lessons[0].counts.shape[1]
    counts[:, :known] = np.concatenate([lesson.counts for lesson in lessons])
    place = {name: i for i, name in enumerate(columns)}
    for row, others in enumerate(row for lesson in lessons for row in lesson.foreign):
        for name in others.keys() & place.keys():
            counts[row, place[name]] = others[name]
    return counts, owner


def _by_load(counts: Floats, owner: npt.NDArray[np.intp]) -> Floats:
    """The largest count of each load; rows of a load are neighbours."""
    starts = np.flatnonzero(np.diff(owner, prepend=-1))
    return np.asarray(np.maximum.reduceat(counts, starts, axis=0))


def _strangest(
    scores: Floats, labels: npt.NDArray[np.intp], owner: npt.NDArray[np.intp]
) -> tuple[Floats, npt.NDArray[np.intp]]:
    """Score of each load's strangest row, and that row's cluster."""
    order = np.lexsort((scores, owner))
    last = order[np.flatnonzero(np.diff(owner[order], append=owner.max() + 1))]
    return scores[last], labels[last]


def _widened(
    detector: Detector,
    columns: tuple[str, ...],
    counts: Floats,
    owner: npt.NDArray[np.intp],
    votes: _Votes,
) -> Detector:
    """The detector with the columns that it lacks, and with those known that enough loads show.

    It scores a row without such columns as before.
    """
    more = len(columns) - detector.presence.size
    ordinary = _ordinary(columns)
    labels = detector.assign(counts)
    clusters = []
    for label, cluster in enumerate(detector.clusters):
        own = np.flatnonzero(labels == label)
        shown = np.zeros(len(columns), bool)
        if own.size:
            loads = np.unique(owner[own])
            part = _Votes(votes.processes[loads], votes.users[loads], votes.most)
            shown = ordinary & part.carried(_by_load(counts[own], owner[own]) > 0)
        clusters.append(_knowing(cluster, np.append(cluster.seen, np.zeros(more, bool)), shown))
    shown = np.hstack([detector.shown, np.zeros((len(detector.shown), more), bool)])
    return replace(
        detector,
        clusters=tuple(clusters),
        shown=shown | ordinary,
        presence=np.array([novelty(name, True) for name in columns]),
    )


def _knowing(
    cluster: Cluster, seen: npt.NDArray[np.bool_], shown: npt.NDArray[np.bool_]
) -> Cluster:
    """The cluster with coordinates for more columns: log counts of unit variance, usually 0."""
    both = seen | shown
    old = seen[both]
    size = int(both.sum())

    def grown(values: Floats, rest: float) -> Floats:
        result = np.full(size, rest)
        result[old] = values
        return result

    whitening = np.eye(size)
    whitening[np.ix_(old, old)] = cluster.whitening
    vectors = np.zeros((len(cluster.vectors), size))
    vectors[:, old] = cluster.vectors
    more = np.zeros(both.size - cluster.low.size)
    return replace(
        cluster,
        seen=both,
        low=np.append(cluster.low, more),
        high=np.append(cluster.high, more),
        median=grown(cluster.median, 0.0),
        scale=grown(cluster.scale, 1.0),
        mean=grown(cluster.mean, 0.0),
        whitening=whitening,
        vectors=vectors,
    )


def _vouched(
    detector: Detector, counts: Floats, owner: npt.NDArray[np.intp], votes: _Votes
) -> Detector:
    """The detector with support vectors where enough loads lie outside of its clusters."""
    labels = detector.assign(counts)
    clusters = []
    for label, cluster in enumerate(detector.clusters):
        rows = np.flatnonzero(labels == label)
        outside = rows[cluster.strangeness(counts[rows]) > 0]
        outside = outside[:: outside.size // _OUTSIDE + 1]
        u = cluster.coordinates(counts[outside])
        square = (u**2).sum(axis=1)
        distance = square[:, None] + square[None, :] - 2 * u @ u.T
        near = np.exp(-cluster.gamma * np.maximum(distance, 0)) >= 0.5
        chosen: list[int] = []
        left = np.ones(len(u), bool)
        while left.any() and len(chosen) < _VECTORS:
            best = int((near & left).sum(axis=1).argmax())
            group = near[best] & left
            if votes.of(np.unique(owner[outside[group]])) >= QUORUM:
                chosen.append(best)
            left &= ~group
        clusters.append(
            replace(
                cluster,
                vectors=np.concatenate([cluster.vectors, u[chosen]]),
                weights=np.append(cluster.weights, np.full(len(chosen), cluster.rho)),
            )
        )
    return replace(detector, clusters=tuple(clusters))


def _recalibrated(
    detector: Detector, scores: Floats, labels: npt.NDArray[np.intp], users: npt.NDArray[np.int64]
) -> Detector:
    """The detector whose p-values are read from the host's held-out scores, too."""

    def joined(calibration: Calibration, own: npt.NDArray[np.bool_]) -> Calibration:
        fit = np.flatnonzero(own & (scores <= _CEILING))
        # One user has at most half a say beside others, and the host no more than the base.
        rank = np.zeros(len(scores), int)
        for user in np.unique(users[fit]):
            mine = fit[users[fit] == user]
            rank[mine] = np.random.default_rng(0).permutation(len(mine))
        fit = fit[np.argsort(rank[fit], kind="stable")][: calibration.scores.size]
        return Calibration(np.sort(np.append(calibration.scores, scores[fit])))

    return replace(
        detector,
        clusters=tuple(
            replace(cluster, calibration=joined(cluster.calibration, labels == label))
            for label, cluster in enumerate(detector.clusters)
        ),
        pool=joined(detector.pool, np.ones(len(scores), bool)),
    )


def objection(base: Baseline, learned: Baseline, lessons: Sequence[Lesson], alpha: float) -> str:
    """Why a learned baseline must not be taken over; empty when nothing speaks against it.

    It must not alert on more of the lessons than the base does, nor be deaf where the base is not:
    on some of their rows, one act of a kind that no benign load shows is tried at a time.
    """
    alarms = []
    for baseline in (base, learned):
        counts, owner = _matrix(baseline.columns, lessons)
        scores, labels = _strangest(*baseline.detector.score(counts), owner)
        alarms.append(int((baseline.detector.p_value(scores, labels) <= alpha).sum()))
    if alarms[1] > alarms[0]:
        return f"it alerts on {alarms[1]} of the host's own loads, and not on {alarms[0]}"
    step = max(len(lessons) // _TRIED, 1)
    for lesson in lessons[::step]:
        row = {
            name: int(count)
            for name, count in zip(base.columns, lesson.counts[-1], strict=True)
            if count
        }
        for name in _ALARMING:
            tried = Row("whole", row | {name: 1})
            before, after = (b.score(tried, reasons=False).p_value for b in (base, learned))
            if before <= alpha < after:
                return f"it no longer alerts on {name} in cluster {base.score(tried).cluster}"
    return ""
