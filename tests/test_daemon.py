"""The daemon as its users have it: started as a program, under each loader, on the real kernel."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.baseline.hosts import cold
from tests.behaviours import TABLE, perform
from tests.conftest import LOADERS
from tests.harness import LOAD, RunningDaemon, run, system

pytestmark = pytest.mark.ebpf

BEHAVIOURS = {behaviour.name: behaviour for behaviour in TABLE}
PYENV = Path(os.environ.get("PYENV_ROOT", "/root/.pyenv"))
INTERPRETERS = [
    path for minor in range(8, 14) for path in PYENV.glob(f"versions/3.{minor}.*/bin/python")
]


def programs() -> set[int]:
    """Ids of the eBPF programs that the kernel holds, of ours and of other daemons."""
    listed = json.loads(subprocess.check_output(["bpftool", "--json", "prog", "list"]))
    return {item["id"] for item in listed if item.get("name", "").startswith("dh_")}


def loaded_by(daemon: RunningDaemon) -> set[int]:
    """Ids of the eBPF programs that a daemon has loaded."""
    found = set()
    for info in Path(f"/proc/{daemon.process.pid}/fdinfo").iterdir():
        with suppress(FileNotFoundError):  # a descriptor that is closed meanwhile is none of these
            if match := re.search(r"^prog_id:\s*(\d+)", info.read_text(), re.MULTILINE):
                found.add(int(match[1]))
    return found & programs()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A pickle of plain data."""
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps({"weights": list(range(100))}))
    return path


def test_a_benign_load_is_told_once_and_counted(daemon: RunningDaemon, model: Path) -> None:
    before = daemon.metric('dynahugd_loads_total{format="pickle",verdict="benign"}')
    pid = run(LOAD, model)
    verdict = daemon.expect(pid)
    assert verdict["verdict"] == "benign"
    assert verdict["path"] == str(model)
    assert verdict["exe"] == os.path.realpath(sys.executable)
    assert 0.001 < verdict["p_value"] <= 1
    daemon.settle()
    assert len(daemon.of(pid)) == 1
    assert daemon.of(pid, "alert") == []
    assert daemon.metric('dynahugd_loads_total{format="pickle",verdict="benign"}') == before + 1


def test_an_alert_says_what_happened(daemon: RunningDaemon, model: Path) -> None:
    model.write_bytes(system("true"))
    before = daemon.metric('dynahugd_alerts_total{format="pickle"}')
    pid = run(LOAD, model)
    alert = daemon.expect(pid, "alert")
    assert alert["verdict"] == "anomalous"
    assert alert["p_value"] < 1e-4
    daemon.expect(pid, "over")
    assert daemon.metric('dynahugd_alerts_total{format="pickle"}') == before + 1
    logged = [json.loads(line) for line in daemon.alert_log.read_text().splitlines()]
    first, last = [entry for entry in logged if entry["tgid"] == pid]
    assert (first["stage"], last["stage"]) == ("alert", "over")
    assert first["load_id"] == last["load_id"]
    # The alert is out before the shell runs, as a rule; the last word has that too.
    assert "os.system" in [item["detail"] for item in first["evidence"]]
    assert any("/bin/sh" in item["detail"] for item in last["evidence"])
    assert all(reason["words"] for reason in last["reasons"])


def test_the_alert_comes_at_once_not_at_the_end(daemon: RunningDaemon, model: Path) -> None:
    model.write_bytes(system("sleep 2"))
    process = subprocess.Popen([sys.executable, "-c", LOAD, str(model)])
    daemon.expect(process.pid, "alert", timeout=1.5)
    assert process.poll() is None
    assert process.wait(10) == 0


def test_a_process_from_before_the_daemon_is_watched(tmp_path: Path, model: Path) -> None:
    model.write_bytes(system("true"))
    source = (
        "import pickle, sys\nprint(flush=True); sys.stdin.readline()\n"
        "pickle.load(open(sys.argv[1], 'rb'))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", source, str(model)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    with RunningDaemon(tmp_path) as daemon:
        process.communicate(b"\n", 30)
        daemon.expect(process.pid, "alert")


def test_a_hundred_thousand_tensors_through_queues_are_quiet(daemon: RunningDaemon) -> None:
    source = """
import torch, torch.multiprocessing as mp
from torch.utils.data import DataLoader, Dataset

class Items(Dataset):
    def __len__(self): return 50000
    def __getitem__(self, i): return torch.full((4,), i)

def send(queue, n):
    for i in range(n): queue.put(torch.full((4,), i))
    done.wait()

mp.set_sharing_strategy('file_system')
total = sum(len(batch) for batch in DataLoader(Items(), batch_size=1, num_workers=2))
queue, done = mp.Queue(1000), mp.Event()
process = mp.Process(target=send, args=(queue, 50000)); process.start()
for _ in range(50000): queue.get(); total += 1
done.set(); process.join()
assert total == 100000
"""
    alerts = daemon.metric('dynahugd_alerts_total{format="memory"}')
    process = subprocess.Popen([sys.executable, "-c", source])
    assert process.wait(240) == 0
    daemon.settle()
    assert daemon.metric('dynahugd_alerts_total{format="memory"}') == alerts
    assert daemon.of(process.pid, "alert") == []


def test_hostile_names_are_escaped_and_break_nothing(daemon: RunningDaemon, tmp_path: Path) -> None:
    hostile = os.fsencode(tmp_path) + b"/\x1b[2J\x1b]0;owned\x07\n\r\xff\xfe\xe2\x80\xae{}\"'\\.pkl"
    with open(hostile, "wb") as file:
        file.write(b"\x80\x02c" + b"os\x1b[31m\xe2\x80\xae\nsy\x1bstem\n.")
    source = (
        "import os, pickle, sys\n"
        "try: pickle.load(open(os.fsencode(sys.argv[1]), 'rb'))\n"
        "except ImportError: pass"
    )
    pid = run(source, hostile)
    verdict = daemon.expect(pid)
    assert verdict["path"].endswith(
        "/\\x1b[2J\\x1b]0;owned\\x07\\x0a\\x0d\\xff\\xfe\\u202e{}\"'\\\\.pkl"
    )
    # What such a load runs is as hostile as its name.
    program = os.fsencode(tmp_path) + b"/\x1b[5m\xff"
    os.symlink("/bin/true", program)
    with open(hostile, "wb") as file:
        file.write(b"cos\nsystem\n" + pickle.dumps((b"'" + program + b"'",), 0)[:-1] + b"R.")
    pid = run(source.replace("ImportError", "TypeError"), hostile)
    daemon.expect(pid, "alert")
    for line in daemon.alert_log.read_bytes().splitlines():
        entry = json.loads(line.decode())
        assert line.decode().isprintable()
        assert entry["path"].isprintable()
    status, text = daemon.get("/metrics")
    assert status == 200
    assert list(text_string_to_metric_families(text))
    assert "owned" not in text


def test_the_longest_path_is_told_with_both_ends(daemon: RunningDaemon, tmp_path: Path) -> None:
    parts = [b"d" * 250] * 15
    folder = os.fsencode(tmp_path) + b"/" + b"/".join(parts)
    os.makedirs(folder)
    name = b"m" * (4095 - len(folder) - 5) + b".pkl"
    path = folder + b"/" + name[-255:]
    with open(path, "wb") as file:
        file.write(system("true"))
    pid = run("import os, pickle, sys\npickle.load(open(os.fsencode(sys.argv[1]), 'rb'))", path)
    alert = daemon.expect(pid, "alert")
    assert alert["path"].startswith(str(tmp_path))
    assert alert["path"].endswith(".pkl")
    shutil.rmtree(tmp_path / parts[0].decode())


@pytest.mark.parametrize("loader", LOADERS)
def test_a_ring_too_small_loses_records_and_says_so(
    loader: str, tmp_path: Path, model: Path
) -> None:
    # Opens of files are records: far more than fit, faster than anyone reads them, and of those
    # that the standard library's imports are made of.
    source = (
        "import os, sys\n"
        "fd = os.open(sys.argv[1], os.O_RDONLY); os.read(fd, 1)\n"
        "for _ in range(500): os.stat(os.__file__); os.close(os.open(os.__file__, os.O_RDONLY))\n"
        "os.close(fd)"
    )
    options = ["--ring-bytes", "4096", "--loader", loader, "--alpha", "1e-9"]
    with RunningDaemon(tmp_path, *options) as daemon:
        pid = run(source, model)
        daemon.expect(pid)  # the record with its path may be among the lost ones
        daemon.settle()
        for verdict in daemon.of(pid):
            assert verdict["verdict"] == "inconclusive"
            assert "lost" in verdict["note"]
        assert daemon.metric('dynahugd_records_lost_total{reason="ring"}') > 0
        daemon.wait(lambda: any("lost" in line for line in daemon.said), 5, "word of it")


@pytest.mark.parametrize("loader", LOADERS)
def test_sigterm_detaches_everything_within_a_second(loader: str, tmp_path: Path) -> None:
    daemon = RunningDaemon(tmp_path, "--loader", loader)
    loaded = loaded_by(daemon)
    assert len(loaded) > 5
    begun = time.monotonic()
    assert daemon.stop() == 0
    assert time.monotonic() - begun < 1
    assert not programs() & loaded


@pytest.mark.parametrize("loader", LOADERS)
def test_sigkill_leaves_nothing_attached(loader: str, tmp_path: Path, model: Path) -> None:
    daemon = RunningDaemon(tmp_path, "--loader", loader)
    loaded = loaded_by(daemon)
    assert len(loaded) > 5
    daemon.process.send_signal(signal.SIGKILL)
    daemon.process.wait(10)
    for _ in range(50):  # the kernel frees programs after a grace period
        if not programs() & loaded:
            break
        time.sleep(0.1)
    assert not programs() & loaded
    run(LOAD, model)


def test_a_load_under_way_when_the_daemon_stops_is_inconclusive(
    tmp_path: Path, model: Path
) -> None:
    daemon = RunningDaemon(tmp_path)
    source = "import sys, time\nf = open(sys.argv[1], 'rb'); f.read(1); time.sleep(30)"
    process = subprocess.Popen([sys.executable, "-c", source, str(model)])
    try:
        daemon.wait(lambda: daemon.metric("dynahugd_loads_open") == 1, 10, "open load")
        assert daemon.stop() == 0
    finally:
        process.kill()
        process.wait()
    daemon.wait(lambda: bool(daemon.of(process.pid)), 5, "verdict")
    assert daemon.of(process.pid)[0]["verdict"] == "inconclusive"


@pytest.fixture(scope="module")
def watching(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    """One daemon for the tests of interpreters."""
    with RunningDaemon(tmp_path_factory.mktemp("watching")) as running:
        yield running


@pytest.mark.parametrize("python", INTERPRETERS, ids=lambda path: path.parts[-3])
@pytest.mark.parametrize("name", ["stdlib_types", "os_system", "nested_pickle", "read_ssh_key"])
def test_every_interpreter_is_seen(
    watching: RunningDaemon, python: Path, name: str, tmp_path: Path
) -> None:
    behaviour = BEHAVIOURS[name]
    done = perform(behaviour, tmp_path / "scratch", python=str(python))
    if behaviour.malicious:
        alert = watching.expect(done.pid, "alert")
        assert alert["exe"] == os.path.realpath(python)
    else:
        assert watching.expect(done.pid)["verdict"] == "benign"
        assert watching.of(done.pid, "alert") == []


@pytest.mark.parametrize("python", INTERPRETERS, ids=lambda path: path.parts[-3])
def test_the_first_load_after_an_installation_is_benign(
    watching: RunningDaemon, python: Path, tmp_path: Path
) -> None:
    # Nothing is compiled yet: the load compiles, and writes, the bytecode of all that it imports.
    installed = cold(str(python), tmp_path)
    done = perform(BEHAVIOURS["stdlib_types"], tmp_path / "scratch", python=installed)
    assert watching.expect(done.pid)["verdict"] == "benign"
    assert watching.of(done.pid, "alert") == []


def test_an_interpreter_that_is_written_over_a_program_is_seen(
    watching: RunningDaemon, tmp_path: Path
) -> None:
    python, model = tmp_path / "python3.11", tmp_path / "model.pkl"
    model.write_bytes(system("true"))
    shutil.copy("/bin/sleep", python)
    subprocess.run([python, "0.5"], check=True)
    watching.wait(
        lambda: any(f"cannot see into {python}" in line for line in watching.said), 10, "complaint"
    )
    python.write_bytes(Path("/usr/bin/python3.11").read_bytes())  # in the same inode
    pid = run(f"import time\ntime.sleep(1)\n{LOAD}", model, python=str(python))
    assert watching.expect(pid, "alert")["path"] == str(model)


def test_an_interpreter_in_a_root_of_its_own_is_seen_and_released(
    watching: RunningDaemon, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    (root / "usr/bin").mkdir(parents=True)
    (root / "tmp").mkdir()
    shutil.copy("/usr/bin/python3.11", root / "usr/bin/python3.11")
    (root / "tmp/model.pkl").write_bytes(system("true"))
    mounts = "".join(
        f"mkdir -p {root}{place}; mount --bind {place} {root}{place}; "
        for place in ("/usr/lib", "/lib", "/lib64", "/bin", "/dev", "/proc")
        if os.path.exists(place)
    )
    # A new mount namespace, as of a container: outside of it these mounts do not exist.
    command = (
        f"{mounts} exec chroot {root} /usr/bin/python3.11 -c "
        # Its first process: time to look into an interpreter that was never seen before.
        '\'import pickle, time; time.sleep(1); pickle.load(open("/tmp/model.pkl", "rb"))\''
    )
    process = subprocess.Popen(["unshare", "--mount", "sh", "-ec", command])
    assert process.wait(30) == 0
    alert = watching.expect(process.pid, "alert")
    assert alert["path"] == "/tmp/model.pkl"
    assert any("attached to" in line and str(root) in line for line in watching.said) or any(
        "attached to" in line and "/root/usr/bin/python3.11" in line for line in watching.said
    )
    (root / "usr/bin/python3.11").unlink()
    watching.wait(lambda: any(line.startswith("released") for line in watching.said), 15, "release")


def test_ready_within_a_second_and_healthy(tmp_path: Path) -> None:
    with RunningDaemon(tmp_path, "--loader", "libbpf") as daemon:
        assert daemon.get("/-/ready")[0] == 200
        assert daemon.get("/-/healthy")[0] == 200
        assert daemon.get("/nothing")[0] == 404
        with pytest.raises(AssertionError):
            daemon.metric("no_such_metric")


def test_it_takes_no_processor_from_what_it_watches(watching: RunningDaemon) -> None:
    tasks = os.listdir(f"/proc/{watching.process.pid}/task")
    assert {os.sched_getscheduler(int(task)) for task in tasks} == {os.SCHED_BATCH}


def test_two_daemons_on_one_address_say_so(tmp_path: Path, watching: RunningDaemon) -> None:
    address = watching.url.removeprefix("http://").rstrip("/")
    done = subprocess.run(
        [sys.executable, "-m", "dynahugd", "run", "--listen", address],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 1
    assert address in done.stderr
    assert len(done.stderr.splitlines()) == 1
