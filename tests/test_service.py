"""The daemon as a service: what it tells systemd, and how it takes over a new configuration."""

from __future__ import annotations

import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from dynahugd.baseline import embedded
from dynahugd.baseline.files import write
from tests.harness import LOAD, RunningDaemon, run, system
from tests.listening import HASH, PASSWORD, basic

pytestmark = pytest.mark.ebpf


class Manager:
    """The socket of a service manager."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "notify"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self.path))
        self._socket.settimeout(20)

    def told(self) -> dict[str, str]:
        """The next notification."""
        lines = self._socket.recv(65536).decode().splitlines()
        return dict(line.split("=", 1) for line in lines)

    def wait(self, key: str) -> list[dict[str, str]]:
        """Notifications up to the next one that has a key."""
        seen = [self.told()]
        while key not in seen[-1]:
            seen.append(self.told())
        return seen

    def falls_silent(self, seconds: float) -> bool:
        """Whether so long a silence comes before many more notifications do."""
        for _ in range(1000):
            if not select.select([self._socket], [], [], seconds)[0]:
                return True
            self.told()
        return False

    def close(self) -> None:
        """Nobody is told any more."""
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    """A service manager that started us."""
    result = Manager(tmp_path)
    monkeypatch.setenv("NOTIFY_SOCKET", str(result.path))
    yield result
    result.close()


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    """A pickle that runs a program."""
    path = tmp_path / "evil.pkl"
    path.write_bytes(system("true"))
    return path


def test_the_service_manager_is_told_how_it_does(
    manager: Manager, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, evil: Path
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "1000000")
    daemon = RunningDaemon(tmp_path)
    first = manager.wait("READY")
    assert all("WATCHDOG" not in told for told in first), "nothing is watched yet"
    manager.wait("WATCHDOG")
    run(LOAD, evil)
    status = manager.wait("STATUS")[-1]["STATUS"]
    while str(evil) not in status:
        status = manager.wait("STATUS")[-1]["STATUS"]
    assert " anomalous; the last one " in status
    daemon.process.send_signal(signal.SIGHUP)
    reloading = manager.wait("RELOADING")[-1]
    assert 0 < time.monotonic_ns() // 1000 - int(reloading["MONOTONIC_USEC"]) < 20_000_000
    manager.wait("READY")
    daemon.process.terminate()
    assert manager.wait("STOPPING")
    assert daemon.process.wait(60) == 0


def test_a_stuck_loop_says_nothing_although_other_threads_run(
    manager: Manager, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, evil: Path
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "200000")
    log = tmp_path / "alerts"
    os.mkfifo(log)  # the loop will wait for a reader of its alert
    reader = os.open(log, os.O_RDONLY | os.O_NONBLOCK)
    filling = os.open(log, os.O_WRONLY | os.O_NONBLOCK)
    daemon = RunningDaemon(tmp_path, "--alert-log", str(log))
    manager.wait("WATCHDOG")
    try:
        while True:
            os.write(filling, bytes(4096))
    except BlockingIOError:
        pass
    run(LOAD, evil)
    assert manager.falls_silent(2)
    assert daemon.get("/metrics")[0] == 200
    os.read(reader, 1 << 20)
    manager.wait("WATCHDOG")
    daemon.stop()
    os.close(reader)
    os.close(filling)


def test_a_watchdog_meant_for_another_process_is_not_fed(
    manager: Manager, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "100000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    daemon = RunningDaemon(tmp_path)
    manager.wait("READY")
    time.sleep(1)
    daemon.stop()
    assert all("WATCHDOG" not in told for told in manager.wait("STOPPING"))


def test_a_service_manager_that_does_not_listen_is_no_reason_to_stop(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, evil: Path
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    monkeypatch.setenv("WATCHDOG_USEC", "200000")
    with RunningDaemon(tmp_path) as daemon:
        assert daemon.expect(run(LOAD, evil), "alert")
        assert daemon.stop() == 0


# -------------------------------------------------------------------------------------- reloads


class Reloading:
    """A daemon whose configuration changes."""

    def __init__(self, folder: Path, text: str = "", *options: str) -> None:
        self.file = folder / "dynahugd.toml"
        self.file.write_text(text)
        self.daemon = RunningDaemon(folder, "--config", str(self.file), *options)

    def reload(self, text: str, said: str) -> str:
        """Have it read another configuration; what it says of it."""
        before = len(self.daemon.said)
        self.file.write_text(text)
        self.daemon.process.send_signal(signal.SIGHUP)
        found: list[str] = []

        def told() -> bool:
            found[:] = [line for line in self.daemon.said[before:] if line.startswith(said)]
            return bool(found)

        self.daemon.wait(told, 10, said)
        return found[0]

    def __enter__(self) -> Reloading:
        return self

    def __exit__(self, *_: object) -> None:
        if self.daemon.process.poll() is None:
            self.daemon.stop()


def test_a_new_configuration_is_taken_over_and_open_loads_go_on(tmp_path: Path, evil: Path) -> None:
    other = tmp_path / "model.weird"
    other.write_bytes(pickle.dumps([1]))
    source = (
        "import pickle, sys, time\n"
        "f = open(sys.argv[1], 'rb'); f.read(1); print(flush=True); input(); f.seek(0)\n"
        "pickle.load(f)"
    )
    with Reloading(tmp_path, "") as reloading:
        daemon = reloading.daemon
        process = subprocess.Popen(
            [sys.executable, "-c", source, str(evil)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        process.stdout.readline()
        daemon.settle()
        before = daemon.metric("dynahugd_config_last_reload_success_timestamp_seconds")
        reloading.reload('[probe]\nsuffixes = ["pkl", "weird"]\n', "reloaded; baseline embedded")
        assert daemon.metric("dynahugd_config_last_reload_success_timestamp_seconds") > before
        process.communicate(b"\n")
        assert daemon.expect(process.pid, "alert")["path"] == str(evil)
        pid = run("import sys; f = open(sys.argv[1], 'rb'); f.read(1); f.close()", other)
        assert daemon.expect(pid)["path"] == str(other), "its suffix is one of a model file now"
        reloading.reload('[probe]\nsuffixes = ["pkl"]\n', "reloaded")
        pid = run("import sys; f = open(sys.argv[1], 'rb'); f.read(1); f.close()", other)
        daemon.settle()
        assert daemon.of(pid) == []


def test_alpha_and_baseline_are_taken_over(tmp_path: Path, evil: Path) -> None:
    benign = tmp_path / "benign.pkl"
    benign.write_bytes(b"\x80\x04K\x01.")
    own = tmp_path / "own.npz"
    write(embedded(), own)
    with Reloading(tmp_path) as reloading:
        text = f'[daemon]\nbaseline = "{own}"\n[verdict]\nalpha = 0.5\n'
        reloading.reload(text, f"reloaded; baseline {own}")
        metrics = reloading.daemon.get("/metrics")[1]
        assert f'source="{own}"' in metrics
        # At an alpha of one half some benign loads alert; a dozen alike do or do not together.
        pids = [run(LOAD, benign) for _ in range(3)]
        kinds = {reloading.daemon.expect(pid)["verdict"] for pid in pids}
        p_values = [reloading.daemon.expect(pid)["p_value"] for pid in pids]
        assert kinds == {"anomalous" if p <= 0.5 else "benign" for p in p_values}
        assert reloading.daemon.expect(run(LOAD, evil), "alert")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[verdict]\nalpha = 2", "'verdict.alpha' has to be from 1e-09 to 0.5"),
        ("[verdict", "not TOML"),
        ("[verdict]\nalpa = 0.1", "did you mean 'verdict.alpha'?"),
        ("[daemon]\nbaseline = '/nowhere.npz'", "/nowhere.npz"),
        ("[learn]\nfile = '/nowhere/x.npz'\n[daemon]\nbaseline='/etc/hostname'", "/etc/hostname"),
    ],
)
def test_what_cannot_be_used_is_refused_whole(
    text: str, said: str, tmp_path: Path, evil: Path, free_port: int
) -> None:
    with Reloading(tmp_path, "") as reloading:
        daemon = reloading.daemon
        line = reloading.reload(
            text + f"\n[probe]\nsuffixes = ['x']\nidle = {free_port % 100 + 1}\n", "not reloaded"
        )
        assert said in line
        assert "\n" not in line
        assert daemon.metric("dynahugd_config_last_reload_successful") == 0
        assert daemon.expect(run(LOAD, evil), "alert")
        assert daemon.get("/-/ready")[0] == 200
        reloading.reload("", "reloaded")
        assert daemon.metric("dynahugd_config_last_reload_successful") == 1


def test_what_cannot_be_opened_keeps_what_is_open(tmp_path: Path, evil: Path) -> None:
    old, new = tmp_path / "old.jsonl", tmp_path / "new.jsonl"
    config = "[daemon]\nlisten = '{}'\nalert_log = '{}'\n"
    file = tmp_path / "dynahugd.toml"
    file.write_text(config.format("127.0.0.1:0", old))
    process = subprocess.Popen(
        [sys.executable, "-m", "dynahugd", "run", "--config", str(file)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None

    def wait_for(text: str) -> str:
        assert process.stderr is not None
        for line in process.stderr:
            if text in line:
                return line
        raise AssertionError(f"no {text}")

    try:
        wait_for("ready after")
        file.write_text(config.format("127.0.0.1:0", "/nowhere/new.jsonl"))
        process.send_signal(signal.SIGHUP)
        assert "/nowhere/new.jsonl" in wait_for("not reloaded")
        file.write_text(config.format("203.0.113.1:1", new))
        process.send_signal(signal.SIGHUP)
        assert "cannot listen on 203.0.113.1:1" in wait_for("not reloaded")
        run(LOAD, evil)
        for _ in range(50):
            if str(evil) in old.read_text():
                break
            time.sleep(0.1)
        assert str(evil) in old.read_text()
        file.write_text(config.format("127.0.0.1:0", new))
        process.send_signal(signal.SIGHUP)
        wait_for("reloaded")
        assert new.exists()
    finally:
        process.terminate()
        assert process.wait(60) == 0


def test_what_needs_a_restart_is_named(tmp_path: Path) -> None:
    with Reloading(tmp_path) as reloading:
        line = reloading.reload(
            "[tables]\nmax_files = 1024\n[daemon]\nlog_format = 'journal'\n", "reloaded"
        )
        assert line.endswith("in force at the next start: daemon.log_format, [tables]")


def test_another_address_is_listened_on(tmp_path: Path, free_port: int, evil: Path) -> None:
    file = tmp_path / "dynahugd.toml"
    file.write_text("")
    with RunningDaemon(tmp_path, "--config", str(file)) as daemon:
        # The option of the command line wins over the file, also when it is read again.
        file.write_text(f"[daemon]\nlisten = '127.0.0.1:{free_port}'\n")
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait(lambda: any(line.startswith("reloaded") for line in daemon.said), 10, "reload")
        assert daemon.get("/-/ready")[0] == 200
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", free_port))


def test_users_of_the_listener_come_and_go_with_a_reload(tmp_path: Path) -> None:
    web = tmp_path / "web.yml"
    web.write_text(f"basic_auth_users:\n  prometheus: {HASH}\n")
    with Reloading(tmp_path) as reloading:
        daemon = reloading.daemon
        assert daemon.get("/metrics")[0] == 200
        reloading.reload(f'[daemon]\nweb_config = "{web}"\n', "reloaded")
        assert daemon.get("/metrics")[0] == 401
        header = {"Authorization": basic(f"prometheus:{PASSWORD}")}
        request = urllib.request.Request(daemon.url + "/metrics", headers=header)
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert answer.status == 200
        web.write_text("basic_auth_users: {prometheus: secret}\n")
        assert daemon.get("/metrics")[0] == 401
        daemon.wait(lambda: any("is no bcrypt hash" in line for line in daemon.said), 10, "word")
        line = reloading.reload(
            f'[daemon]\nweb_config = "{web}"\n[verdict]\nalpha = 0.1', "not reloaded"
        )
        assert "is no bcrypt hash" in line
        reloading.reload("", "reloaded")
        assert daemon.get("/metrics")[0] == 200


def test_an_address_that_is_open_to_others_is_warned_of(tmp_path: Path) -> None:
    with RunningDaemon(tmp_path, "--listen", "0.0.0.0:0") as daemon:
        assert any("anyone who reaches 0.0.0.0:0" in line for line in daemon.said)


def test_a_hundred_reloads_lose_no_load(tmp_path: Path, evil: Path) -> None:
    with Reloading(tmp_path) as reloading:
        daemon = reloading.daemon
        pids = []
        for _ in range(10):
            for _ in range(10):
                daemon.process.send_signal(signal.SIGHUP)
                time.sleep(0.02)
            pids.append(run(LOAD, evil))
        for pid in pids:
            assert daemon.expect(pid, "alert")
        assert daemon.metric('dynahugd_records_lost_total{reason="ring"}') == 0
