"""The service unit: what systemd thinks of it, and whether the daemon works under it.

Where systemd is not the first process, ``tests.sandbox`` does to the daemon what the unit says.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import LOADERS
from tests.harness import LOAD, RunningDaemon, run, system
from tests.sandbox import IMITATED, NOT_IMITATED, REPOSITORY, USER, confined, directives

UNIT = REPOSITORY / "systemd/dynahugd.service"
DROP_INS = {path.stem: path for path in (REPOSITORY / "systemd/drop-ins").glob("*.conf")}

#: How the service is started, supervised and named; nothing that restricts it.
MANAGEMENT = frozenset(
    "ExecReload ExecStart LogsDirectory NotifyAccess Restart RestartPreventExitStatus RestartSec "
    "RuntimeDirectory StateDirectory Type WatchdogSec WorkingDirectory".split()
)

#: What 'systemd-analyze security' still counts, and why it is so.
EXPOSED = {
    "AmbientCapabilities": "it is not root",
    "CapabilityBoundingSet_CAP_BPF": "it loads programs",
    "CapabilityBoundingSet_CAP_DAC_FOWNER_IPC_OWNER": "tracefs and model files are others'",
    "CapabilityBoundingSet_CAP_SYS_PTRACE": "it looks at processes of other users",
    "DeviceAllow": "ProtectClock adds the real-time clock, to be read",
    "IPAddressDeny": "only the operator knows who scrapes",
    "PrivateNetwork": "it is scraped",
    "PrivateUsers": "its capabilities are the host's",
    "ProcSubset": "/proc/stat has the time of boot",
    "RestrictAddressFamilies_AF_INET_INET6": "it is scraped",
    "RestrictAddressFamilies_AF_UNIX": "systemd and the journal are told",
    "RootDirectoryOrRootImage": "interpreters are looked for where the host has them",
    "SystemCallFilter_debug": "perf_event_open(2)",
    "SystemCallFilter_privileged": "bpf(2)",
}


# ------------------------------------------------------------------------------- what is written


@pytest.mark.parametrize("drop_in", [None, *DROP_INS])
def test_systemd_has_nothing_to_complain_about(drop_in: str | None, tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/usr/local/bin/dynahugd", "/bin/true"))
    if drop_in:
        (tmp_path / "dynahugd.service.d").mkdir()
        shutil.copy(DROP_INS[drop_in], tmp_path / "dynahugd.service.d")
    verify = ["systemd-analyze", "verify", "--man=no", str(unit)]
    verified = subprocess.run(verify, capture_output=True, text=True, check=True)
    assert verified.stdout + verified.stderr == ""


def test_its_exposure_is_at_most_2_and_all_of_it_is_meant() -> None:
    analyse = ["systemd-analyze", "security", "--offline=true", "--threshold=20"]
    subprocess.run([*analyse, str(UNIT)], stdout=subprocess.DEVNULL, check=True)
    listed = json.loads(subprocess.check_output([*analyse, "--json=short", str(UNIT)]))
    assert {item["json_field"] for item in listed if item["exposure"]} == set(EXPOSED)


def test_every_restriction_is_tried_here_or_known_to_be_harmless() -> None:
    known = IMITATED | set(NOT_IMITATED) | MANAGEMENT
    assert set(directives(UNIT)) - known == set()


# -------------------------------------------------------------------------------- what it does


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The only folder that the service may write to."""
    path = tmp_path / "state"
    path.mkdir()
    os.chown(path, USER, USER)
    return path


@pytest.fixture
def evil() -> Iterator[Path]:
    """A pickle that runs a program, where the service does not see it in its own view."""
    path = Path("/var/tmp/dynahugd-test-evil.pkl")
    path.write_bytes(system("true"))
    yield path
    path.unlink()


@contextmanager
def service(
    folder: Path,
    *options: str,
    drop_in: str = "",
    before: Sequence[str] = (),
) -> Iterator[RunningDaemon]:
    """The daemon under the unit, with a drop-in or without; ``before`` starts all of it."""
    units = [UNIT, DROP_INS[drop_in]] if drop_in else [UNIT]
    program = [*before, *confined(units, folder, [sys.executable, "-m", "dynahugd"])]
    with RunningDaemon(folder, *options, program=program) as daemon:
        yield daemon


ACTS = {
    "write elsewhere": "open('/etc/x', 'w')",
    "execute what it wrote": (
        "p = os.environ['TMPDIR'] + '/true'; shutil.copy('/bin/true', p);"
        "ctypes.CDLL(None).chmod(p.encode(), 0o755); os.execv(p, [p])"
    ),
    "see home folders": "assert os.listdir('/root') or os.listdir('/home')",
    "see temporary files": "os.stat('/var/tmp/dynahugd-test-evil.pkl')",
    "see kernel modules": "assert os.listdir('/usr/lib/modules')",
    "see kernel addresses": "assert open('/proc/kallsyms').read()",
    "become root": "os.setuid(0)",
    "make memory executable": "mmap.mmap(-1, 4096, prot=7)",
    "make a namespace": "assert ctypes.CDLL(None).unshare(0x10000000) == 0",
    "speak netlink": "socket.socket(socket.AF_NETLINK)",
    "trace": "assert ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) == 0",
    "write to a process by its file": "open(f'/proc/{os.getppid()}/mem', 'r+b')",
    "write to a process by a call": (
        "assert ctypes.CDLL(None).process_vm_writev(os.getppid(), None, 0, None, 0, 0) == 0"
    ),
    "take another's place on the processor": "os.sched_setaffinity(0, {0})",
}


#: Tries each act in a process of its own and prints each exit status: 1 where it is refused.
TRY = """
import ctypes, json, mmap, os, shutil, socket, sys
statuses = {}
for name, act in json.loads(sys.argv[1]).items():
    child = os.fork()
    if not child:
        try: exec(act)
        except (AssertionError, OSError): os._exit(1)
        except BaseException: os._exit(2)
        os._exit(0)
    statuses[name] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(json.dumps(statuses))
"""


@pytest.mark.ebpf
def test_what_the_unit_forbids_is_refused(folder: Path, evil: Path) -> None:
    python = [sys.executable, "-c", TRY, json.dumps(ACTS)]
    statuses = json.loads(subprocess.check_output(confined([UNIT], folder, python)))
    assert statuses == dict.fromkeys(ACTS, 1)


@pytest.mark.ebpf
def test_an_alert_comes_under_all_restrictions(folder: Path, evil: Path) -> None:
    with service(folder) as daemon:
        assert not [line for line in daemon.said if "cannot" in line]
        assert any("loader libbpf" in line for line in daemon.said)
        alert = daemon.expect(run(LOAD, evil), "alert")
        assert alert["path"] == str(evil)
        assert alert["exe"] == os.path.realpath(sys.executable)
        assert json.loads(daemon.alert_log.read_text().splitlines()[0])["path"] == str(evil)
        assert "process_start_time_seconds" in daemon.get("/metrics")[1]
        assert daemon.stop() == 0


@pytest.mark.ebpf
def test_it_is_reloaded_by_the_units_command(folder: Path) -> None:
    with service(folder) as daemon:
        command = directives(UNIT)["ExecReload"][0]
        words = shlex.split(command.replace("${MAINPID}", str(daemon.process.pid)))
        subprocess.run(confined([UNIT], folder, words), check=True)
        daemon.wait(lambda: any("reloaded" in line for line in daemon.said), 10, "reload")


@pytest.mark.ebpf
def test_bcc_needs_its_drop_in(folder: Path, evil: Path) -> None:
    command = [sys.executable, "-m", "dynahugd", "run", "--loader", "bcc", "--listen", ""]
    refused = subprocess.run(confined([UNIT], folder, command), capture_output=True, text=True)
    assert refused.returncode == 1
    assert "it needs kernel headers" in refused.stderr
    with service(folder, "--loader", "bcc", drop_in="bcc") as daemon:
        assert daemon.expect(run(LOAD, evil), "alert")


@pytest.mark.ebpf
def test_a_kernel_without_multi_uprobes_needs_its_drop_in(folder: Path, evil: Path) -> None:
    # The daemon takes the way of an older kernel; this one asks for CAP_SYS_ADMIN on it, too.
    older, python = ("setarch", "--uname-2.6"), os.path.realpath(sys.executable)
    refused = f"cannot see into {python}: the kernel refuses its probes: Permission denied"
    with service(folder, before=older) as daemon:
        assert refused in daemon.said
    with service(folder, drop_in="older-kernel", before=older) as daemon:
        assert not [line for line in daemon.said if "cannot" in line]
        alert = daemon.expect(run(LOAD, evil), "alert")
        assert "os.system" in [item["detail"] for item in alert["evidence"]]


@pytest.mark.ebpf
@pytest.mark.parametrize("loader", LOADERS)
def test_it_does_without_perf_events(loader: str, folder: Path, evil: Path) -> None:
    # Debian refuses them to all but CAP_SYS_ADMIN: its kernel.perf_event_paranoid is 3.
    refusing = folder.parent / "refusing.conf"
    refusing.write_text("[Service]\nSystemCallFilter=~perf_event_open\nProtectKernelModules=no\n")
    program = confined([UNIT, refusing], folder, [sys.executable, "-m", "dynahugd"])
    with RunningDaemon(folder, "--loader", loader, program=program) as daemon:
        alert = daemon.expect(run(LOAD, evil), "alert")
        assert alert["path"] == str(evil)
        daemon.settle()
        details = [item["detail"] for item in daemon.of(alert["tgid"])[0]["evidence"]]
        assert "os.system" in details
        assert "exec /bin/sh" in details


CAPABILITIES = directives(UNIT)["AmbientCapabilities"][0].split()


@pytest.mark.ebpf
@pytest.mark.parametrize("without", ["", *CAPABILITIES])
def test_each_capability_is_needed(without: str, folder: Path, tmp_path: Path) -> None:
    lines = UNIT.read_text().splitlines()
    for number, line in enumerate(lines):
        name, _, value = line.partition("=")
        if name in ("AmbientCapabilities", "CapabilityBoundingSet"):
            left = [word for word in value.split() if word != without]
            lines[number] = f"{name}={' '.join(left)}"
    unit = tmp_path / UNIT.name
    unit.write_text("\n".join(lines))
    # This process is root's: without CAP_SYS_PTRACE its executable cannot be told, and without
    # CAP_DAC_READ_SEARCH no file of its own be read.
    model = tmp_path / "model.pkl"
    model.touch(0o600)
    source = (
        f"import os; os.readlink('/proc/{os.getpid()}/exe')\n"
        f"open('/proc/{os.getpid()}/root{model}')\n"
        "from dynahugd.cli import main; raise SystemExit(main(['doctor', '--json']))"
    )
    command = confined([unit], folder, [sys.executable, "-c", source])
    assert subprocess.run(command, capture_output=True).returncode == bool(without)


@pytest.mark.ebpf
def test_it_may_measure_what_it_costs(folder: Path) -> None:
    with service(folder) as daemon:
        assert daemon.metric('dynahugd_self_memory_bytes{part="private"}') > 0
        assert daemon.metric('dynahugd_self_memory_bytes{part="kernel"}') > 0
        assert daemon.metric('dynahugd_self_table_entries{table="globals"}') > 0
