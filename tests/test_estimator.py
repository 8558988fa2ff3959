"""The detector as a scikit-learn estimator on arrays of counts without names."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

import dynahugd.baseline
import dynahugd.baseline.estimator as training
from dynahugd.baseline import ClusteredOneClassSVM, groups

Floats = npt.NDArray[np.float64]

#: Columns: three of ordinary work, a constant one, and one that no benign row shows.
READ, MAP, OPEN, CLOSE, EXEC = range(5)


def counts(number: int, seed: int) -> Floats:
    """Benign rows of two kinds, one of which opens a hundred times as many files."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(2, size=number)
    size = rng.lognormal(3 + 2 * kind, 0.4)
    rows = np.zeros((number, 5))
    rows[:, READ] = 5 + rng.poisson(size)
    rows[:, MAP] = rng.poisson(size / 4)
    rows[:, OPEN] = np.where(kind, 100, 1)
    rows[:, CLOSE] = 7
    return rows


BENIGN = counts(1000, seed=1)
FRESH = counts(5000, seed=2)


def fitted(rows: Floats = BENIGN, **options: object) -> ClusteredOneClassSVM:
    """An estimator with few numbers of clusters to try."""
    return ClusteredOneClassSVM(**({"clusters": (1, 2)} | options)).fit(rows)


@pytest.fixture(scope="module")
def estimator() -> ClusteredOneClassSVM:
    """Learned from 1,000 rows."""
    return fitted()


def test_fit_learns_what_it_documents(estimator: ClusteredOneClassSVM) -> None:
    assert estimator.n_features_in_ == 5
    assert estimator.labels_.shape == estimator.held_out_.shape == (1000,)
    assert set(estimator.alarms_) == {1, 2}
    assert len(estimator.detector_.clusters) == 2
    again = clone(estimator)
    assert again.get_params() == estimator.get_params()
    with pytest.raises(NotFittedError):
        again.predict(BENIGN)


def test_results_have_a_row_each(estimator: ClusteredOneClassSVM) -> None:
    assert estimator.score_samples(FRESH).shape == (5000,)
    p_values = estimator.p_value(FRESH)
    assert p_values.shape == (5000,)
    assert ((p_values > 0) & (p_values <= 1)).all()
    assert set(estimator.predict(FRESH)) <= {-1, 1}
    assert ((estimator.predict(FRESH) == -1) == (p_values <= estimator.alpha)).all()


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.3])
def test_as_many_fresh_rows_are_outliers_as_alpha_says(
    estimator: ClusteredOneClassSVM, alpha: float
) -> None:
    share = (estimator.p_value(FRESH) <= alpha).mean()
    spread = math.sqrt(alpha * (1 - alpha) * (1 / len(FRESH) + 1 / len(BENIGN)))
    assert abs(share - alpha) < 4 * spread


def test_a_feature_that_no_benign_row_showed_decides(estimator: ClusteredOneClassSVM) -> None:
    once = FRESH[:200].copy()
    once[:, EXEC] = 1
    assert (estimator.p_value(once) < 1e-6).all()


def test_one_more_where_benign_rows_never_differ_is_an_outlier(
    estimator: ClusteredOneClassSVM,
) -> None:
    more = FRESH[:200].copy()
    more[:, CLOSE] += 1
    assert (estimator.predict(more) == -1).all()
    assert (estimator.predict(FRESH[:200]) == 1).mean() > 0.99


def test_scores_rank_and_do_not_saturate(estimator: ClusteredOneClassSVM) -> None:
    ever_more = np.repeat(BENIGN[:1], 30, axis=0)
    ever_more[:, CLOSE] = 7 + 2.0 ** np.arange(30)
    assert (np.diff(estimator.score_samples(ever_more)) < 0).all()


def test_a_row_goes_to_its_own_kind(estimator: ClusteredOneClassSVM) -> None:
    # A hundred opens are ordinary in one kind of load, and a payload in the other.
    small = BENIGN[BENIGN[:, OPEN] == 1][:50].copy()
    small[:, OPEN] = 20
    assert (estimator.predict(small) == -1).all()


def test_the_order_of_features_decides_nothing(estimator: ClusteredOneClassSVM) -> None:
    order = [3, 0, 4, 2, 1]
    turned = fitted(BENIGN[:, order])
    difference = turned.score_samples(FRESH[:, order]) - estimator.score_samples(FRESH)
    assert np.abs(difference).max() < 1e-6


def test_the_order_of_rows_decides_what_is_held_out_together_and_no_more(
    estimator: ClusteredOneClassSVM,
) -> None:
    turned = fitted(BENIGN[::-1])
    assert np.abs(turned.score_samples(FRESH) - estimator.score_samples(FRESH)).max() < 1e-3
    one, other = estimator.p_value(FRESH), turned.p_value(FRESH)
    assert np.quantile(np.abs(np.log(one / other))[one > 0.05], 0.99) < 0.5


def test_duplicate_rows_of_a_group_change_no_verdict(estimator: ClusteredOneClassSVM) -> None:
    groups = np.arange(len(BENIGN))
    twice = ClusteredOneClassSVM(clusters=(1, 2)).fit(
        np.repeat(BENIGN, 2, axis=0), groups=np.repeat(groups, 2)
    )
    assert twice.held_out_.shape == (1000,)
    assert (twice.predict(FRESH) == estimator.predict(FRESH)).mean() > 0.999


def test_rows_of_one_group_are_held_out_together() -> None:
    # Ten rows of a kind of its own: alone in a group each, nine vouch for the tenth.
    strange = np.tile([50.0, 9, 1, 7, 3], (10, 1))
    rows = np.concatenate([BENIGN[:300], strange])
    alone = np.arange(310)
    together = np.minimum(alone, 300)
    apart = ClusteredOneClassSVM(clusters=1).fit(rows, groups=alone)
    one = ClusteredOneClassSVM(clusters=1).fit(rows, groups=together)
    assert apart.held_out_[300:].max() < 10
    assert one.held_out_.shape == (301,)
    assert one.held_out_[300] > 40


@pytest.mark.parametrize("alpha", [0.001, 0.02, 0.2])
def test_there_are_as_many_clusters_as_held_out_false_alarms_allow(alpha: float) -> None:
    rows = counts(400, seed=3)
    found = fitted(rows, clusters=(1, 2, 3), alpha=alpha)
    allowed = max(min(found.alarms_.values()), alpha * 400)
    most = max(number for number, alarms in found.alarms_.items() if alarms <= allowed)
    assert len(found.detector_.clusters) == most


def test_what_fewer_groups_than_the_quorum_showed_is_not_known() -> None:
    rows = BENIGN.copy()
    rows[:2, EXEC] = 1
    once = FRESH[:200].copy()
    once[:, EXEC] = 1
    three = fitted(rows, clusters=1, quorum=3)
    assert (three.predict(once) == -1).all()
    # Two rows of one group are one voice.
    two = ClusteredOneClassSVM(clusters=1, quorum=2)
    one_voice = two.fit(rows, groups=np.maximum(np.arange(len(rows)), 1)).detector_.clusters[0]
    two_voices = two.fit(rows).detector_.clusters[0]
    assert not one_voice.seen[EXEC]
    assert two_voices.seen[EXEC]
    assert (two.score_samples(once) > three.score_samples(once)).all()


def test_what_one_kind_shows_is_no_excuse_for_another() -> None:
    # Two kinds that one cluster holds; only the first ever executes anything.
    flags = np.arange(len(BENIGN)) % 2
    rows = np.column_stack([BENIGN, flags == 0, flags == 1])
    rows[::10, EXEC] = 1
    fresh = np.column_stack([FRESH[:200], np.zeros(200), np.ones(200)])
    fresh[:, EXEC] = 1
    assert (fitted(rows, clusters=1).predict(fresh) == 1).all()
    apart = fitted(rows, clusters=1, contexts=range(7), flags=(5, 6))
    assert (apart.predict(fresh) == -1).all()
    fresh[:, 5:] = 1, 0
    assert (apart.predict(fresh) == 1).all()
    ordinary = np.arange(7) == EXEC
    fresh[:, 5:] = 0, 1
    forgiving = fitted(rows, clusters=1, contexts=range(7), flags=(5, 6), ordinary=ordinary)
    assert (forgiving.predict(fresh) == 1).all()


#: Far fewer rows than a cluster has.
SAMPLED = {"max_sample": 300, "max_rows": 200}


def test_no_more_rows_than_the_sample_enter_what_does_not_scale(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes: dict[str, list[int]] = {}
    for name in ("KMeans", "LedoitWolf", "OneClassSVM"):
        fit = getattr(training, name).fit

        def counted(
            self: object, rows: Floats, name: str = name, fit: Callable[..., object] = fit
        ) -> object:
            sizes.setdefault(name, []).append(len(rows))
            return fit(self, rows)

        monkeypatch.setattr(getattr(training, name), "fit", counted)
    fitted(FRESH, **SAMPLED)
    assert set(sizes["KMeans"]) == {300}
    assert max(sizes["LedoitWolf"]) == 300
    assert max(sizes["OneClassSVM"]) == 200


def test_what_is_sampled_is_told_by_the_seed() -> None:
    one, again, other = (fitted(FRESH, **SAMPLED, random_state=seed) for seed in (3, 3, 4))
    assert np.array_equal(one.score_samples(BENIGN), again.score_samples(BENIGN))
    assert np.array_equal(one.held_out_, again.held_out_)
    assert not np.array_equal(one.score_samples(BENIGN), other.score_samples(BENIGN))


@pytest.mark.parametrize("alpha", [0.05, 0.1])
def test_a_sample_costs_neither_calibration_nor_recall(alpha: float) -> None:
    fresh = counts(5000, seed=4)
    more = fresh[:500].copy()
    more[:, CLOSE] += 1
    for options in ({}, SAMPLED):
        found = fitted(FRESH, alpha=alpha, **options)
        spread = math.sqrt(alpha * (1 - alpha) * (1 / len(fresh) + 1 / len(FRESH)))
        assert abs((found.predict(fresh) == -1).mean() - alpha) < 4 * spread
        assert (found.predict(more) == -1).all()
        assert found.held_out_.shape == (len(FRESH),)


def test_what_rows_outside_the_sample_show_is_known_nevertheless() -> None:
    rows = FRESH.copy()
    rows[:5, EXEC] = 3
    found = fitted(rows, **SAMPLED, clusters=1, quorum=3).detector_.clusters[0]
    assert found.seen[EXEC]
    assert (found.low == rows.min(axis=0)).all()
    assert (found.high == rows.max(axis=0)).all()
    assert found.rows == found.loads == len(rows)


def test_single_precision_changes_no_score_of_whole_counts(
    estimator: ClusteredOneClassSVM,
) -> None:
    half = fitted(BENIGN.astype(np.float32))
    expected = estimator.score_samples(FRESH)
    assert np.array_equal(half.score_samples(FRESH.astype(np.float32)), expected)


def test_chunks_change_nothing_but_the_last_digits(
    estimator: ClusteredOneClassSVM, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = estimator.score_samples(FRESH)
    monkeypatch.setattr(groups, "_CHUNK", 64)
    again = fitted()
    assert np.allclose(again.score_samples(FRESH), expected, rtol=1e-9)
    assert np.allclose(again.held_out_, estimator.held_out_, rtol=1e-9)


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_a_tally_counts_each_group_once(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    rows, owner, fold = (
        rng.poisson(0.2, (200, 4)),
        rng.integers(40, size=200),
        rng.integers(3, size=40),
    )
    some = rng.permutation(200)[:150]
    monkeypatch.setattr(groups, "_CHUNK", chunk)
    tally = groups.Groups(rows.astype(float), owner, fold, 3).tally(some)
    for part in range(3):
        own = some[fold[owner[some]] == part]
        pairs = {(owner[row], feature) for row in own for feature in np.flatnonzero(rows[row])}
        showing = [sum(feature == f for _, f in pairs) for feature in range(4)]
        assert tally.showing[part].tolist() == showing
        assert tally.groups[part] == len(set(owner[own]))
        assert tally.rows[part] == len(own)
        assert (tally.low[part] == rows[own].min(axis=0)).all()
        assert (tally.high[part] == rows[own].max(axis=0)).all()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[1.0, -1.0], [1.0, 2.0]], "negative"),
        ([[1.0, math.nan], [1.0, 2.0]], "NaN"),
        ([[1.0, 2.0]], "minimum of 2"),
        ([1.0, 2.0], "2D array"),
    ],
)
def test_what_is_no_table_of_counts_is_refused(rows: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClusteredOneClassSVM().fit(rows)


def test_another_width_is_refused(estimator: ClusteredOneClassSVM) -> None:
    with pytest.raises(ValueError, match="X has 4 features, but 5 were learned"):
        estimator.predict(FRESH[:, :4])


def test_the_package_has_no_other_lazy_names() -> None:
    with pytest.raises(AttributeError, match="no attribute 'ClusteredSVM'"):
        _ = dynahugd.baseline.ClusteredSVM
