"""The commands that need the kernel, one after the other as a user would use them."""

from __future__ import annotations

import json
import pickle
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
