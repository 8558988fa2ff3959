"""The laboratory: its environments can be had here, and its loads are told apart."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from benchmarks.lab.environments import ENVIRONMENTS, Environment
from benchmarks.lab.report import ABLATIONS, Sample, judge
from dynahugd.baseline.training import train
from dynahugd.features import Row
from dynahugd.loads import Load
from tests.test_scorer import loads_of

AVAILABLE = [item for item in ENVIRONMENTS if not item.missing]


def test_there_are_six_environments_or_more_with_names_of_their_own() -> None:
    assert len({item.name for item in ENVIRONMENTS}) == len(ENVIRONMENTS) >= 6


@pytest.mark.ebpf
@pytest.mark.parametrize("environment", AVAILABLE, ids=lambda item: item.name)
def test_an_environment_runs_python_where_it_is_told_to(environment: Environment) -> None:
    source = "import os; print(os.getcwd(), os.getuid(), os.stat('/').st_dev)"
    done = subprocess.run(
        [*environment.inside, environment.python, "-c", source],
        env=os.environ | dict(environment.common.environment),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    folder, uid, device = done.stdout.split()
    assert folder == os.getcwd()
    assert (uid != "0") == (environment.name == "plain-user")
    assert (int(device) != os.stat("/").st_dev) == (environment.name == "container")


def test_a_container_leaves_nothing_mounted() -> None:
    mounts = Path("/proc/self/mounts").read_text()
    assert "upperdir=upper" not in mounts


def test_loads_are_judged_by_their_behaviour_and_the_columns_that_are_kept() -> None:
    loads = loads_of(400, seed=9)
    baseline = train(loads[:300], frozenset(), {}, 3)
    benign = [Sample(Load(1, 1), tuple(rows)) for rows in loads[300:]]
    act = Row("whole", loads[0][0].counts | {"connect.public": 1})
    named = Row("1s", loads[0][0].counts | {"global.capable": 1})
    malicious = [
        Sample(Load(1, 1), (loads[0][0],), "exfiltrate"),
        Sample(Load(1, 1), (act,), "exfiltrate"),
        Sample(Load(1, 1), (named,), "names"),
    ]
    caught = judge(baseline, benign, malicious)
    assert caught.benign == 100
    assert caught.alarms <= 1
    assert caught.behaviours == {"exfiltrate": True, "names": True}
    keep = ABLATIONS["no pickle globals"].keep
    assert judge(baseline, benign, malicious, keep).missed == ["names"]
    keep = ABLATIONS["counts of system calls alone"].keep
    assert judge(baseline, benign, malicious, keep).missed == ["exfiltrate", "names"]
    # A load without any whole row has nothing to be judged by.
    assert judge(baseline, benign, malicious, whole=True).missed == ["names"]
