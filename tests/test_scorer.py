"""The detector: scikit-learn's numbers at run time, p-values that mean what they say."""

from __future__ import annotations

import itertools
import math
import statistics
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynahugd.baseline import Baseline, files
from dynahugd.baseline.detector import DECISIVE, MILD, TAIL, Calibration
from dynahugd.baseline.model import common_globals
from dynahugd.baseline.scorer import Scorer
from dynahugd.baseline.training import train
from dynahugd.errors import DynahugError
from dynahugd.features import Row

Floats = npt.NDArray[np.float64]
CLUSTERS, NU = 3, 0.01


def loads_of(number: int, seed: int) -> list[list[Row]]:
    """Benign loads of three kinds, as different in their calls as pickles, archives and torch."""
    rng = np.random.default_rng(seed)
    loads = []
    for kind in rng.integers(3, size=number):
        size = rng.lognormal(3 + kind, 0.5)
        counts = {
            f"format.{('pickle', 'npz', 'torch-zip')[kind]}": 1,
            "calls.read": 1 + rng.poisson(size),
            "calls.lseek": rng.poisson(size / 2),
            "global.package": 1 + rng.poisson(3 + 4 * kind),
        }
        if kind:
            counts["calls.mmap"] = rng.poisson(kind * 6)
            counts["read.python"] = rng.poisson(40 * kind)
        if kind == 2:
            counts["birth.thread"] = rng.poisson(2)
        whole = {name: int(count) for name, count in counts.items() if count}
        rows = [Row("whole", whole)]
        if rng.random() < 0.3:  # a load that lasts has rows of its last second, too
            rows.append(Row("1s", {name: (count + 1) // 2 for name, count in whole.items()}))
        loads.append(rows)
    return loads


def trained(loads: list[list[Row]]) -> Baseline:
    """A baseline of these loads."""
    return train(loads, frozenset({("numpy", "ndarray")}), {"loads": len(loads)}, CLUSTERS)


BENIGN = loads_of(600, seed=1)
FRESH = loads_of(3000, seed=2)


@pytest.fixture(scope="module")
def baseline() -> Baseline:
    """A baseline of 600 loads."""
    return trained(BENIGN)


def matrix_of(baseline: Baseline, loads: list[list[Row]]) -> Floats:
    """Counts of all rows in the baseline's columns."""
    return np.concatenate([baseline.vector(row.counts)[0] for rows in loads for row in rows])


def verdict(baseline: Baseline, rows: list[Row]) -> float:
    """A load's p-value: that of its worst row."""
    return min(baseline.score(row, reasons=False).p_value for row in rows)


def test_loads_are_gone_through_once_and_not_kept(baseline: Baseline) -> None:
    streamed = train(iter(BENIGN), baseline.known_globals, {"loads": len(BENIGN)}, CLUSTERS)
    assert files.digest(streamed) == files.digest(baseline)


def test_the_decision_is_scikit_learns_to_nine_digits(baseline: Baseline) -> None:
    from sklearn.svm import OneClassSVM

    training, fresh = matrix_of(baseline, BENIGN), matrix_of(baseline, FRESH[:300])
    far = fresh * 1000.0 + 7
    assert len(baseline.clusters) == 3
    for number, cluster in enumerate(baseline.clusters):
        own = training[baseline.detector.assign(training) == number]
        assert len(own) == cluster.rows
        svm = OneClassSVM(kernel="rbf", gamma=cluster.gamma, nu=NU)
        svm.fit(cluster.coordinates(own))
        for counts in (own, fresh, far):
            expected = svm.decision_function(cluster.coordinates(counts))
            found = cluster.decision(counts)
            assert np.abs(found - expected).max() < 1e-9
            # The strangeness has the sign that the decision has not.
            clear = np.abs(expected) > 1e-9
            assert (np.sign(cluster.strangeness(counts)) == -np.sign(expected))[clear].all()


def test_the_strangeness_goes_on_growing_where_the_decision_has_saturated(
    baseline: Baseline,
) -> None:
    cluster = baseline.clusters[0]
    away = np.zeros((40, len(baseline.columns)))
    away[:, np.flatnonzero(cluster.seen)[0]] = 1e3 * 10.0 ** np.arange(40)
    strangeness = cluster.strangeness(away)
    assert np.isfinite(strangeness).all()
    assert (np.diff(strangeness) > 0).all()
    assert np.allclose(cluster.decision(away[20:]), -cluster.rho)


def test_the_coordinates_have_no_correlation_and_at_most_unit_variance(baseline: Baseline) -> None:
    training = matrix_of(baseline, BENIGN)
    for number, cluster in enumerate(baseline.clusters):
        u = cluster.coordinates(training[baseline.detector.assign(training) == number])
        assert np.abs(u.mean(axis=0)).max() < 1e-9
        covariance = u.T @ u / len(u)
        # What other hosts may differ by is taken to lie on top of what the loads show.
        assert (np.diag(covariance) < 1).all()
        assert np.diag(covariance).max() > 0.3
        assert np.abs(covariance - np.diag(np.diag(covariance))).max() < 0.1


@pytest.mark.parametrize(
    ("column", "count", "alarm"),
    [
        ("calls.futex", 40, False),  # a contended lock
        ("calls.brk", 60, False),  # another allocator
        ("calls.lseek", 10**6, True),
        ("calls.write", 10**6, True),
    ],
)
def test_ordinary_calls_tell_only_in_floods(
    baseline: Baseline, column: str, count: int, alarm: bool
) -> None:
    median = sorted(BENIGN, key=lambda rows: verdict(baseline, rows))[len(BENIGN) // 2][0]
    score = baseline.score(Row("whole", median.counts | {column: count}))
    assert (score.p_value <= 0.001) == alarm


@pytest.mark.parametrize("column", ["execute.shell", "global.capable", "read.credentials"])
def test_a_column_that_no_benign_load_showed_is_decisive(baseline: Baseline, column: str) -> None:
    plain = BENIGN[0][0]
    once = baseline.score(Row("whole", plain.counts | {column: 1}))
    often = baseline.score(Row("whole", plain.counts | {column: 1000}))
    before = baseline.score(plain)
    assert once.score - before.score >= DECISIVE
    assert often.score > once.score
    assert often.p_value <= once.p_value < 1e-6 < before.p_value
    assert once.cluster == before.cluster
    reason = once.reasons[0]
    assert (reason.feature, reason.value, reason.low, reason.high) == (column, 1, 0, 0)
    assert reason.loads == next(c.loads for c in baseline.clusters if c.name == once.cluster)


def test_a_column_that_only_other_kinds_of_loads_showed_is_decisive_too() -> None:
    loads = loads_of(300, seed=3)
    for rows in loads:
        for row in rows:
            if "format.torch-zip" in row.counts:
                row.counts["execute.compiler"] = 1
    mixed = trained(loads)
    torch, pickle = (
        next(rows[0] for rows in loads if f"format.{name}" in rows[0].counts)
        for name in ("torch-zip", "pickle")
    )
    assert mixed.score(torch).p_value > 0.001
    compiling = Row("whole", pickle.counts | {"execute.compiler": 1})
    assert mixed.score(compiling).p_value < 1e-5
    assert mixed.score(compiling).reasons[0].feature == "execute.compiler"


def test_a_new_column_of_ordinary_work_is_weak_evidence(baseline: Baseline) -> None:
    median = sorted(BENIGN, key=lambda rows: verdict(baseline, rows))[len(BENIGN) // 2][0]
    before = baseline.score(median)
    after = baseline.score(Row("whole", median.counts | {"read.home": 1, "calls.getcwd": 2}))
    # Ordinary work comes in company: what it adds is its Euclidean norm, not its sum.
    assert 1 < (after.score - before.score) / (math.sqrt(2) * MILD) < 1.25
    assert after.p_value < before.p_value


def test_one_new_column_of_ordinary_work_is_no_anomaly(baseline: Baseline) -> None:
    median = sorted(BENIGN, key=lambda rows: verdict(baseline, rows))[len(BENIGN) // 2][0]
    assert baseline.score(Row("whole", median.counts | {"read.home": 1})).p_value > 0.001


def test_what_honest_libraries_do_now_and_then_is_no_anomaly(baseline: Baseline) -> None:
    median = sorted(BENIGN, key=lambda rows: verdict(baseline, rows))[len(BENIGN) // 2][0]
    asks = {"birth.process": 1, "child.execute.inquiry": 1}
    assert baseline.score(Row("whole", median.counts | asks)).p_value > 1e-4
    runs = {"birth.process": 1, "child.execute.shell": 1}
    assert baseline.score(Row("whole", median.counts | runs)).p_value < 1e-4


def test_a_count_out_of_range_is_a_reason_with_the_benign_range(baseline: Baseline) -> None:
    plain = BENIGN[0][0]
    score = baseline.score(Row("whole", plain.counts | {"calls.lseek": 10**6}))
    reason = next(reason for reason in score.reasons if reason.feature == "calls.lseek")
    cluster = next(cluster for cluster in baseline.clusters if cluster.name == score.cluster)
    column = baseline.columns.index("calls.lseek")
    assert (reason.low, reason.high) == (cluster.low[column], cluster.high[column])
    assert reason.value == 10**6
    assert score.p_value < 0.001
    assert baseline.score(plain, reasons=False).reasons == ()


def test_rows_that_are_scored_together_have_the_scores_of_each_alone(baseline: Baseline) -> None:
    strange = [
        {"execute.shell": 1, "connect.public": 2},  # in no column of the baseline
        {"connect.public": 2, "execute.shell": 1, "calls.getcwd": 7},
        {"birth.thread": 50},  # of another cluster
        {"calls.lseek": 10**6},
        {},
    ]
    rows = [
        replace(row, counts=row.counts | more, partial=partial)
        for (row, *_), more, partial in zip(
            FRESH[:200], itertools.cycle(strange), itertools.cycle([False, False, True])
        )
    ]
    assert baseline.scores([]) == []
    together = baseline.scores(rows)
    for row, one in zip(rows, together, strict=True):
        alone = baseline.score(row)
        assert one.score == pytest.approx(alone.score, rel=1e-12, abs=1e-12)
        assert one.p_value == pytest.approx(alone.p_value, rel=1e-12, abs=0)
        assert one.cluster == alone.cluster
        weights = [reason.weight for reason in alone.reasons]
        assert [reason.weight for reason in one.reasons] == pytest.approx(weights, rel=1e-12)
        assert [replace(reason, weight=0.0) for reason in one.reasons] == [
            replace(reason, weight=0.0) for reason in alone.reasons
        ]


def test_calls_that_a_partial_row_lacks_are_not_held_against_it(baseline: Baseline) -> None:
    strict, lenient = [], []
    for row, *_ in FRESH[:300]:
        left = {name: n for name, n in row.counts.items() if not name.startswith("calls.")}
        strict.append(baseline.score(Row("whole", left), reasons=False).p_value)
        lenient.append(baseline.score(Row("whole", left, partial=True), reasons=False).p_value)
    # Taken for whole rows most of them are strange; as partial ones no more than whole loads are.
    assert sum(p <= 0.05 for p in strict) > 150
    assert sum(p <= 0.05 for p in lenient) <= 15


def test_what_a_partial_row_shows_is_held_against_it(baseline: Baseline) -> None:
    for row, *_ in FRESH[:50]:
        for more in ({"execute.shell": 1}, {"calls.lseek": 10**6}):
            strange = Row("whole", {**row.counts, **more}, partial=True)
            assert baseline.score(strange, reasons=False).p_value < 0.001


def test_a_row_that_comes_again_has_the_score_that_it_had(baseline: Baseline) -> None:
    rows = [row for rows in FRESH for row in rows]
    assert len({tuple(row.counts.items()) for row in rows}) > 1000  # more than are remembered
    scorer = Scorer(baseline)
    for some in (rows[i : i + 100] for i in range(0, len(rows), 100)):
        expected = [baseline.score(row) for row in some for _ in range(2)]
        found = scorer.scores(row for row in some for _ in range(2))
        assert [s.cluster for s in found] == [s.cluster for s in expected]
        assert [s.score for s in found] == pytest.approx([s.score for s in expected], rel=1e-12)
    again = scorer.scores(some)
    assert all(one is other for one, other in zip(again, found[::2], strict=True))
    row = rows[-1]
    partial, same = scorer.scores([replace(row, partial=True), row])
    assert same is again[-1]
    assert partial == baseline.score(replace(row, partial=True))


def test_each_kind_of_load_has_its_cluster_and_is_sent_there(baseline: Baseline) -> None:
    assert sorted(c.name.rsplit("-", 1)[0] for c in baseline.clusters) == [
        "npz",
        "pickle",
        "torch-zip",
    ]
    for row, *_ in FRESH[:200]:
        form = next(name for name in row.counts if name.startswith("format."))
        assert baseline.score(row).cluster.startswith(form.removeprefix("format."))


# ----------------------------------------------------------------------------------------- p-values

SCORES = st.lists(st.floats(-50, 50), min_size=1, max_size=300)


@given(SCORES, st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=20))
@settings(deadline=None)
def test_p_values_are_probabilities_that_fall_with_the_score(
    held_out: list[float], scores: list[float]
) -> None:
    calibration = Calibration(np.sort(np.array(held_out)))
    values = calibration.p_value(np.sort(np.array(scores))).tolist()
    assert all(0 < value <= 1 for value in values)
    assert all(high >= low for high, low in itertools.pairwise(values))


@given(SCORES, st.floats(-60, 60))
@settings(deadline=None)
def test_p_values_are_the_counted_share_with_an_exponential_tail(
    held_out: list[float], score: float
) -> None:
    n = len(held_out)
    tail = sorted(held_out)[-max(n // 50, min(n, 5)) :]
    start = tail[0]
    if score <= start:
        expected = (1 + sum(other >= score for other in held_out)) / (n + 1)
    else:
        scale = max((statistics.median(tail) - start) / math.log(2), TAIL)
        expected = (len(tail) + 1) / (n + 1) * math.exp(-(score - start) / scale)
    found = float(Calibration(np.sort(np.array(held_out))).p_value(np.array([score]))[0])
    assert found == pytest.approx(max(expected, 1e-12), rel=1e-9)


def test_no_p_value_is_below_the_share_of_loads_that_score_as_high_but_for_a_stray() -> None:
    calibration = Calibration(np.array([0.0] * 90 + [60.0] * 10))
    assert calibration.exceeded(np.array([60.0, 61.0, -1.0])) == pytest.approx(
        [9 / 101, 0, 99 / 101]
    )


@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_as_many_fresh_benign_loads_alert_as_alpha_says(baseline: Baseline, alpha: float) -> None:
    alarms = sum(verdict(baseline, rows) <= alpha for rows in FRESH)
    # The held-out loads that calibrate are a sample as well as those that are counted.
    spread = math.sqrt(alpha * (1 - alpha) * (1 / len(FRESH) + 1 / len(BENIGN)))
    assert abs(alarms / len(FRESH) - alpha) < 4 * spread


@pytest.mark.parametrize(("attacks", "deaf"), [(1, False), (30, True)])
def test_one_attack_in_the_recording_does_not_make_the_baseline_deaf(
    attacks: int, deaf: bool
) -> None:
    loads = loads_of(600, seed=6)
    for number in range(attacks):
        for row in loads[number]:
            row.counts[f"execute.other-{number}"] = 1
    baseline = trained(loads)
    attack = Row("whole", loads[100][0].counts | {"execute.shell": 1})
    assert (baseline.score(attack).p_value > 0.001) == deaf


def test_where_many_loads_do_something_of_their_own_that_is_no_anomaly() -> None:
    # Only a load that was held out knows how strange its own columns are to the others.
    def with_a_column_of_their_own(loads: list[list[Row]]) -> list[list[Row]]:
        for number in range(0, len(loads), 6):
            for row in loads[number]:
                row.counts[f"write.{id(loads)}-{number}"] = 1
        return loads

    own = trained(with_a_column_of_their_own(loads_of(600, seed=4)))
    fresh = with_a_column_of_their_own(loads_of(1500, seed=5))
    assert sum(verdict(own, rows) <= 0.001 for rows in fresh) < 0.01 * len(fresh)


# ----------------------------------------------------------------------------------------- training


def test_the_same_loads_give_the_same_baseline(baseline: Baseline) -> None:
    again = trained(loads_of(600, seed=1))
    for rows in FRESH[:100]:
        assert [again.score(row) for row in rows] == [baseline.score(row) for row in rows]


def test_the_order_of_columns_does_not_matter(baseline: Baseline) -> None:
    turned = [
        [Row(row.window, dict(reversed(row.counts.items()))) for row in rows] for rows in BENIGN
    ]
    again = trained(turned)
    assert again.columns == baseline.columns
    for rows in FRESH[:100]:
        assert [again.score(row) for row in rows] == [baseline.score(row) for row in rows]


def test_the_order_of_loads_and_rows_decides_nothing(baseline: Baseline) -> None:
    # It decides which loads are held out together, so scores agree as far as samples do.
    turned = trained([rows[::-1] for rows in reversed(BENIGN)])
    one = np.array([verdict(baseline, rows) for rows in FRESH])
    other = np.array([verdict(turned, rows) for rows in FRESH])
    assert np.corrcoef(np.log(one), np.log(other))[0, 1] > 0.99
    counted = one > 0.03  # below, p-values are extrapolated
    assert np.abs(np.log(one / other))[counted].max() < 0.5
    strange = Row("whole", BENIGN[0][0].counts | {"execute.shell": 1})
    assert verdict(turned, [strange]) < 1e-6


def test_too_few_loads_are_refused_in_a_sentence() -> None:
    with pytest.raises(DynahugError, match=r"^49 loads are too few for a baseline: record at"):
        trained(BENIGN[:49])
    assert trained(BENIGN[:50]).clusters


def test_identical_loads_make_a_baseline_that_knows_them() -> None:
    row = Row("whole", {"format.npy": 1, "calls.read": 3})
    only = trained([[row]] * 60)
    assert [cluster.name for cluster in only.clusters] == ["npy-0"]
    assert only.score(row).p_value > 0.9
    assert only.score(Row("whole", row.counts | {"execute.shell": 1})).p_value < 1e-6


def test_globals_of_a_few_loads_only_are_not_known() -> None:
    loads = [{("numpy", "ndarray"), ("mine", "A")}, {("numpy", "ndarray")}, {("numpy", "dtype")}]
    assert common_globals(loads, 2) == {("numpy", "ndarray")}
    assert common_globals(loads, 1) == set().union(*loads)
