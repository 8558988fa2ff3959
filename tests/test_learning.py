"""Learning on the host: its ordinary work is learned, and nothing that decides."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dynahugd.baseline import Baseline, files
from dynahugd.baseline.learning import (
    LEAST,
    QUORUM,
    Learner,
    _matrix,
    _votes,
    _widened,
    extend,
    learn,
    objection,
    resume,
)
from dynahugd.errors import DynahugError
from dynahugd.features import Row
from dynahugd.loads import Load
from dynahugd.probes.layout import Kind
from tests.test_features import act
from tests.test_scorer import BENIGN, loads_of, trained, verdict

ALPHA = 0.001
#: What attacks are recognised by; none of it is ordinary work.
ATTACKS = ("execute.shell", "connect.public", "write.startup", "read.credentials", "global.capable")
_ids = itertools.count(1)


def base_of(seed: int = 1) -> Baseline:
    """A baseline of 600 loads."""
    return trained(loads_of(600, seed))


BASE = trained(BENIGN)


def load(process: int, user: int = 1000) -> Load:
    """A load that is over."""
    return Load(next(_ids), 1, tgid=process, uid=user, end=2)


def elsewhere(rows: list[Row], times: int = 40, more: int = 60) -> list[Row]:
    """The same load on a host where the same work takes many more calls, one of a new kind."""
    return [
        dataclasses.replace(
            row,
            counts={
                name: count * times if name in ("calls.lseek", "calls.mmap") else count
                for name, count in row.counts.items()
            }
            | {"calls.madvise": more},
        )
        for row in rows
    ]


def plus(rows: list[Row], *columns: str) -> list[Row]:
    """The load with one act more of each kind."""
    return [dataclasses.replace(row, counts=row.counts | dict.fromkeys(columns, 1)) for row in rows]


def taught(
    loads: Iterable[list[Row]], base: Baseline = BASE, processes: int = 40, users: int = 1
) -> Learner:
    """A learner that took in loads, each process performing every so many of them."""
    learner = Learner(base)
    for number, rows in enumerate(loads):
        process = number % processes
        learner.take(load(process, 1000 + process % users), rows)
    return learner


def extended(learner: Learner) -> Baseline:
    """What it has learned."""
    return extend(learner.base, learner.lessons, {})


HERE = [elsewhere(rows) for rows in loads_of(200, seed=5)]
LATER = [elsewhere(rows) for rows in loads_of(600, seed=6)]


def test_the_ordinary_work_of_a_host_is_learned() -> None:
    before = np.array([verdict(BASE, rows) for rows in LATER])
    learned = extended(taught(HERE))
    after = np.array([verdict(learned, rows) for rows in LATER])
    assert (before <= 0.01).mean() > 0.3
    assert (after <= 0.01).mean() < 0.03
    assert (after <= ALPHA).mean() <= 0.005
    assert "calls.madvise" in learned.columns
    # Loads of other hosts are as benign as before.
    assert np.mean([verdict(learned, rows) <= ALPHA for rows in loads_of(600, seed=7)]) <= 0.005


def test_loads_that_show_more_than_benign_loads_do_are_left_out() -> None:
    learner = taught(HERE)
    taken = learner.taken
    for number, column in enumerate(ATTACKS):
        learner.take(load(1000 + number), plus(HERE[0], column))
    assert (learner.taken, learner.refused) == (taken, len(ATTACKS))
    # Known evidence counts, too, beyond what was ever benign; less of it does not.
    known = trained([plus(rows, "write.temporary") for rows in BENIGN])
    strict = Learner(known)
    strict.take(load(1), plus(BENIGN[0], "write.temporary"))
    strict.take(load(2), BENIGN[1])
    many = [dataclasses.replace(row, counts=row.counts | {"write.temporary": 2}) for row in HERE[2]]
    strict.take(load(3), many)
    assert (strict.taken, strict.refused) == (2, 1)


def test_incomplete_loads_are_not_learned_from() -> None:
    learner = Learner(BASE)
    for values in ({"lost": 1}, {"cut": "the daemon stopped"}):
        learner.take(dataclasses.replace(load(1), **values), BENIGN[0])
    learner.take(load(1), [])
    assert (learner.taken, learner.refused) == (0, 0)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(
                ["calls.read", "calls.mmap", "calls.write", "read.python", "child.birth.thread"]
            ),
            st.integers(1, 10**6),
            max_size=4,
        ),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from(ATTACKS),
)
def test_a_poisoned_stream_does_not_move_the_verdict_on_an_attack(
    poison: list[dict[str, int]], attack: str
) -> None:
    # All of the host's loads are the attacker's: any ordinary work, by many processes and users,
    # the attack itself among them.
    loads = []
    for number, rows in enumerate(loads_of(300, seed=8)):
        shape = poison[number % len(poison)]
        changed = [dataclasses.replace(row, counts=row.counts | shape) for row in rows]
        loads.append(plus(changed, attack) if number % 3 == 0 else changed)
    learner = taught(loads, users=3)
    assert learner.refused == 100
    learned = extended(learner)
    for number, rows in enumerate(loads_of(20, seed=9)):
        shape = poison[number % len(poison)]
        changed = [dataclasses.replace(row, counts=row.counts | shape) for row in rows]
        for tried in (rows, changed):
            assert verdict(learned, plus(tried, attack)) <= ALPHA


def strange(number: int, seed: int = 3) -> list[list[Row]]:
    """Loads that make a call very often which hardly any other makes."""
    return [
        [dataclasses.replace(row, counts=row.counts | {"calls.madvise": 5000}) for row in rows]
        for rows in loads_of(number, seed)
    ]


def test_one_process_cannot_shift_the_baseline_alone() -> None:
    learner = taught(loads_of(200, seed=4))
    for rows in strange(100):
        learner.take(load(1), rows)
    assert sum(lesson.process == 1 for lesson in learner.lessons) <= 12
    learned = extended(learner)
    assert "calls.madvise" not in learned.columns
    tried = strange(100, seed=12)
    assert np.mean([verdict(BASE, rows) <= ALPHA for rows in tried]) == 1
    assert np.mean([verdict(learned, rows) <= ALPHA for rows in tried]) == 1
    for number, rows in enumerate(strange(30)):
        learner.take(load(1000 + number % QUORUM), rows)
    vouched = extended(learner)
    assert np.mean([verdict(vouched, rows) <= ALPHA for rows in tried]) < 0.1


def test_where_several_users_load_one_user_cannot_shift_the_baseline_alone() -> None:
    learner = taught(loads_of(200, seed=4), users=2)
    for number, rows in enumerate(strange(100)):
        learner.take(load(2000 + number % 20, 1000), rows)
    learned = extended(learner)
    assert "calls.madvise" not in learned.columns
    tried = strange(100, seed=12)
    assert np.mean([verdict(learned, rows) <= ALPHA for rows in tried]) == 1
    learner.take(load(3000, 1001), strange(1)[0])
    assert "calls.madvise" in extended(learner).columns


def test_globals_that_enough_processes_name_become_known() -> None:
    learner = taught(loads_of(200, seed=4))
    for process, name in ((5000, "often"), (5001, "often"), (5002, "often"), (5003, "once")):
        one = load(process)
        one.acts.append(act(Kind.GLOBAL, text="site_library", second=name))
        # Where a base has seen capable globals in benign loads, a load that names one is learned
        # from; the global is not.
        one.acts.append(act(Kind.GLOBAL, text="os", second="system"))
        learner.take(one, BENIGN[0])
    learned = extended(learner)
    assert ("site_library", "often") in learned.known_globals
    assert ("site_library", "once") not in learned.known_globals
    assert ("os", "system") not in learned.known_globals
    assert learned.known_globals > BASE.known_globals


def test_a_row_without_learned_columns_scores_as_before_but_for_vectors() -> None:
    learner = taught(HERE)
    columns = (*BASE.columns, "calls.madvise")
    counts, owner = _matrix(columns, learner.lessons)
    wide = _widened(BASE.detector, columns, counts, owner, _votes(learner.lessons))
    assert any(cluster.seen[-1] for cluster in wide.clusters)
    for rows in loads_of(100, seed=11):
        narrow, _ = BASE.vector(rows[0].counts)
        row = np.append(narrow, [[0.0]], axis=1)
        assert wide.score(row)[0] == pytest.approx(BASE.detector.score(narrow)[0], abs=1e-9)


def test_it_takes_so_many_loads_of_so_many_processes() -> None:
    with pytest.raises(DynahugError, match="49 loads are too few to learn from: it takes 50"):
        extended(taught(BENIGN[: LEAST - 1]))
    few = taught(BENIGN[:LEAST])
    alone = [dataclasses.replace(lesson, process=1) for lesson in few.lessons]
    with pytest.raises(DynahugError, match="loads of 1 processes are too few"):
        extend(BASE, alone, {})


def test_a_learner_keeps_an_even_sample_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dynahugd.baseline.learning._KEPT", 100)
    learner = Learner(BASE)
    for process in range(1000):
        learner.take(load(process), BENIGN[process % 600])
    assert (len(learner.lessons), learner.taken) == (100, 1000)
    assert 300 < np.mean([lesson.process for lesson in learner.lessons]) < 700
    learner.clear()
    assert (learner.lessons, learner.taken) == ([], 0)


def test_what_is_deaf_or_noisier_than_the_base_is_not_taken_over() -> None:
    learner = taught(loads_of(200, seed=4))
    learned = extended(learner)
    assert objection(BASE, learned, learner.lessons, ALPHA) == ""
    deaf = dataclasses.replace(
        learned,
        detector=dataclasses.replace(
            learned.detector,
            clusters=tuple(
                dataclasses.replace(cluster, weights=cluster.weights * 1e30)
                for cluster in learned.detector.clusters
            ),
        ),
    )
    assert "no longer alerts on" in objection(BASE, deaf, learner.lessons, ALPHA)
    noisy = dataclasses.replace(
        learned,
        detector=dataclasses.replace(
            learned.detector,
            clusters=tuple(
                dataclasses.replace(cluster, weights=cluster.weights * 1e-30)
                for cluster in learned.detector.clusters
            ),
        ),
    )
    assert "alerts on 200 of the host's own loads" in objection(BASE, noisy, learner.lessons, ALPHA)


def test_what_was_learned_is_read_back_with_its_provenance(tmp_path: Path) -> None:
    path = str(tmp_path / "host.npz")
    learner = taught(HERE)
    learned = learn(learner, ALPHA, path)
    again = resume(BASE, path)
    for rows in LATER[:50]:
        assert verdict(again, rows) == verdict(learned, rows)
    told = again.metadata
    assert told["loads"] == BASE.metadata["loads"]
    assert (told["learned_loads"], told["learned_processes"], told["learned_users"]) == (200, 40, 1)
    assert told["learned_base"] == files.digest(BASE)
    with pytest.raises(DynahugError, match="on top of another baseline: learn again"):
        resume(base_of(seed=77), path)
    with pytest.raises(DynahugError, match="name the one underneath"):
        Learner(again)
    files.write(BASE, path)
    with pytest.raises(DynahugError, match="on top of another baseline"):
        resume(BASE, path)


def test_the_same_lessons_teach_the_same() -> None:
    learner = taught(HERE)
    assert files.digest(extended(learner)) == files.digest(extended(learner))
