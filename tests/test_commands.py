"""The commands that need the kernel, one after the other as a user would use them."""

from __future__ import annotations

import json
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.harness import RunningDaemon

pytestmark = pytest.mark.ebpf

LOADS = (
    "import pickle, sys\n"
    "for i in range(int(sys.argv[2])):\n"
    "    with open(sys.argv[1], 'rb') as f: pickle.load(f)"
)


def dynahugd(*arguments: str | Path, status: int = 0) -> str:
    """Run a command; its standard output."""
    done = subprocess.run(
        [sys.executable, "-m", "dynahugd", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def verdicts(text: str) -> list[dict[str, Any]]:
    """JSON lines."""
    return [json.loads(line) for line in text.splitlines()]


def test_doctor_says_that_this_host_can_run_it() -> None:
    report = json.loads(dynahugd("doctor", "--json"))
    assert report["can_run"]
    good = {check["name"]: check["good"] for check in report["checks"]}
    assert good["loader libbpf"]
    assert good["loader bcc"]
    states = {item["path"]: item for item in report["interpreters"]}
    mine = states[str(Path(sys.executable).resolve())]
    assert mine["unpickler"]
    assert mine["version"] == "{}.{}".format(*sys.version_info[:2])


@pytest.mark.parametrize(
    ("text", "status", "name", "said"),
    [
        ("[verdict]\nalpha = 2", 1, "configuration", "'verdict.alpha' has to be from"),
        ("[daemon]\nbaseline = '/nowhere'", 1, "baseline", "/nowhere"),
        ("[daemon]\nlisten = '0.0.0.0:9797'", 0, "listener", "anyone who reaches 0.0.0.0:9797"),
        ("[daemon]\nweb_config = '/nowhere'", 0, "listener", "/nowhere"),
        (
            "[alertmanager]\nurls = ['http://h:1']\nusername = 'u'",
            0,
            "alertmanager",
            "alertmanager.password_file need each other",
        ),
    ],
)
def test_doctor_says_what_is_wrong_with_a_configuration(
    text: str, status: int, name: str, said: str, tmp_path: Path
) -> None:
    file = tmp_path / "dynahugd.toml"
    file.write_text(text)
    report = json.loads(dynahugd("doctor", "--json", "--config", file, status=status))
    (check,) = (check for check in report["checks"] if check["name"] == name)
    assert not check["good"]
    assert said in check["detail"]


def test_record_replay_train_and_run(tmp_path: Path) -> None:
    model, recording, baseline = (tmp_path / name for name in ("m.pkl", "r.parquet", "b.npz"))
    model.write_bytes(pickle.dumps({"weights": list(range(100))}))
    python = sys.executable
    dynahugd("record", "-o", recording, "--", python, "-c", LOADS, model, "200")
    said = [v for v in verdicts(dynahugd("replay", recording, "--json")) if v["path"] == str(model)]
    assert len(said) == 200
    assert {verdict["verdict"] for verdict in said} == {"benign"}
    assert dynahugd("replay", recording, "--json") == dynahugd("replay", recording, "--json")

    metadata = json.loads(dynahugd("train", recording, "-o", baseline, "--clusters", "2", "--json"))
    assert metadata["loads"] >= 200
    assert "usable" in dynahugd("baseline", "check", baseline)
    assert json.loads(dynahugd("baseline", "show", baseline, "--json"))["metadata"] == metadata
    with RunningDaemon(tmp_path, "--baseline", str(baseline)) as daemon:
        model.write_bytes(b"cos\nsystem\n(S'true'\ntR.")
        process = subprocess.Popen([python, "-c", LOADS, str(model), "1"])
        process.wait(30)
        daemon.expect(process.pid, "alert")


def test_recording_keeps_the_commands_exit_status(tmp_path: Path) -> None:
    dynahugd("record", "-o", tmp_path / "r", "--", sys.executable, "-c", "exit(7)", status=7)
    dynahugd("record", "-o", tmp_path / "r", "--", tmp_path / "nothing", status=1)
    dynahugd("record", "-o", tmp_path / "no" / "r", "--", "true", status=1)


@pytest.mark.parametrize("command", [["record", "-o", "r.parquet", "--", "true"], ["doctor"]])
def test_only_training_needs_scikit_learn(command: list[str], tmp_path: Path) -> None:
    source = (
        "import sys; sys.modules['sklearn'] = None\n"
        "from dynahugd.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", source, *command], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def perform(model: Path, processes: int, loads: int) -> None:
    """Loads of a file by so many processes, each so many times."""
    for _ in range(processes):
        subprocess.run([sys.executable, "-c", LOADS, str(model), str(loads)], check=True)


def alerts_on_attack(daemon: RunningDaemon, folder: Path) -> None:
    """Perform one, and wait for the alert."""
    attack = folder / "attack.pkl"
    attack.write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    process = subprocess.Popen([sys.executable, "-c", LOADS, str(attack), "1"])
    process.wait(30)
    daemon.expect(process.pid, "alert")


def test_learn_from_live_loads_and_from_a_recording(tmp_path: Path) -> None:
    model, host = tmp_path / "m.pkl", tmp_path / "host.npz"
    model.write_bytes(pickle.dumps({"weights": list(range(100))}))
    command = [sys.executable, "-m", "dynahugd", "learn", "--loads", "50", "-o", str(host)]
    learning = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert learning.stderr is not None
    assert "learning from every model load" in learning.stderr.readline()
    perform(model, 6, 20)
    out, err = learning.communicate(timeout=60)
    assert learning.returncode == 0, err
    assert "learned from" in out
    metadata = json.loads(dynahugd("baseline", "show", host, "--json"))["metadata"]
    assert metadata["learned_loads"] >= 50
    assert metadata["learned_processes"] >= 3
    with RunningDaemon(tmp_path, "--baseline", str(host)) as daemon:
        alerts_on_attack(daemon, tmp_path)

    recording = tmp_path / "r.parquet"
    source = f'for i in 1 2 3 4 5 6; do {sys.executable} -c "$0" {model} 20; done'
    dynahugd("record", "-o", recording, "--", "sh", "-c", source, LOADS)
    assert "learned from" in dynahugd("learn", recording, "-o", tmp_path / "again.npz")
    # A process counts for twelve loads, so two recordings of one would be too few.
    dynahugd("learn", recording, "-o", host, "--baseline", host, status=1)


def test_learning_ends_with_a_sentence_when_there_was_too_little(tmp_path: Path) -> None:
    out = tmp_path / "host.npz"
    for option in ((), ("--for", "24"), ("--for", "0h"), ("--loads", "1"), ("--loads", "5e3")):
        dynahugd("learn", "-o", out, *option, status=1 if not option else 2)
    command = [sys.executable, "-m", "dynahugd", "learn", "--for", "1h", "-o", str(out)]
    learning = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert learning.stderr is not None
    learning.stderr.readline()
    learning.terminate()
    _, err = learning.communicate(timeout=30)
    assert learning.returncode == 1
    assert "too few to learn from: it takes 50" in err
    assert "Traceback" not in err
    assert not out.exists()


def test_the_daemon_learns_while_it_watches(tmp_path: Path) -> None:
    model, host, config = (tmp_path / name for name in ("m.pkl", "host.npz", "d.toml"))
    model.write_bytes(pickle.dumps({"weights": list(range(100))}))
    config.write_text(f'[learn]\nfile = "{host}"\nloads = 50\n')
    host.write_bytes(b"no baseline")
    with RunningDaemon(tmp_path, "--config", str(config)) as daemon:
        assert any("damaged or no baseline" in line for line in daemon.said)
        perform(model, 6, 20)
        daemon.wait(lambda: any("learned from" in line for line in daemon.said), 20, "learning")
        assert daemon.metric('dynahugd_learnings_total{result="taken_over"}') >= 1
        assert re.search('learned_loads="[5-9][0-9]', daemon.get("/metrics")[1])
        perform(model, 1, 5)
        alerts_on_attack(daemon, tmp_path)
        assert daemon.metric('dynahugd_learnings_total{result="refused"}') == 0
    with RunningDaemon(tmp_path, "--learn", str(host)) as daemon:
        assert any(f"baseline {host}: " in line for line in daemon.said)
        alerts_on_attack(daemon, tmp_path)
