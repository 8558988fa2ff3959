"""What the installed service has to do in a guest: one function each, in the order of its life.

A check returns what is worth a line in the table, and raises AssertionError where the service does
not do what the check's first line says.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable

from dynahugd.outputs.messages import Message
from dynahugd.probes import syscalls
from tests.harness import system
from tests.vm.service import DROP_INS, Service

__all__ = ["CHECKS", "Check"]

Check = Callable[[Service], str]

_BENIGN = pickle.dumps({"weights": [0.1] * 1000, "classes": ["cat", "dog"]})
#: CAP_DAC_READ_SEARCH, CAP_SYS_PTRACE, CAP_PERFMON, CAP_BPF: capabilities(7) by number.
_CAPABILITIES = (2, 19, 38, 39)
_SYS_ADMIN = 21

_CONFIG = "/etc/dynahugd.toml"

#: The goal without and with CAP_SYS_ADMIN.
_EXPOSURE, _EXPOSURE_OLDER = 2.0, 2.3

#: clone3: glibc falls back to clone, whose flags the filter can see. mbind: OpenBLAS goes without.
_REFUSED = {"clone3", "mbind"}

#: How long it may take in emulation to be started again, in seconds.
_AGAIN = 150.0


def it_starts(service: Service) -> str:
    """Started, it is active once everything is attached."""
    service.restart()
    assert service.show("ActiveState") == "active"
    ready = service.entry(MESSAGE_ID=Message.READY.id)["MESSAGE"]
    covered = service.samples()['dynahugd_interpreters{state="attached"}']
    assert covered >= 1
    assert service.samples()['dynahugd_interpreters{state="not_covered"}'] == 0
    return str(ready)


def its_status_says_what_it_has_seen(service: Service) -> str:
    """`systemctl status` shows how many loads it has seen."""
    service.wait(lambda: "loads" in service.show("StatusText"), 30, "status")
    text = service.show("StatusText")
    assert text in service.do("systemctl status --full dynahugd").out
    return text


def it_is_not_root(service: Service) -> str:
    """It runs as a user of its own, with the unit's capabilities and no others, under seccomp."""
    status = service.status_of_process()
    held = int(status["CapEff"], 16)
    assert "0" not in status["Uid"].split()
    assert held == int(status["CapPrm"], 16) == int(status["CapBnd"], 16)
    expected = [*_CAPABILITIES, *([_SYS_ADMIN] if _is_older(service) else [])]
    assert held == sum(1 << number for number in expected), f"it holds {held:x}"
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    return f"uid {status['Uid'].split()[0]}, CapEff {held:x}, {status['Seccomp_filters']} filters"


def its_exposure_is_low(service: Service) -> str:
    """`systemd-analyze security` finds it no more exposed than the goal."""
    text = service.do("systemd-analyze security --no-pager dynahugd").out
    found = re.search(r"Overall exposure level for dynahugd.service: ([0-9.]+)", text)
    assert found, text
    goal = _EXPOSURE_OLDER if _is_older(service) else _EXPOSURE
    assert float(found[1]) <= goal, f"{found[1]}, the goal is {goal}"
    return f"{found[1]} (goal: {goal})"


def a_benign_load_is_no_alert(service: Service) -> str:
    """A benign load of another user is counted and not told."""
    service.load("/home/alice/benign.pkl", _BENIGN)
    loads = 'dynahugd_loads_total{format="pickle",verdict="benign"}'
    service.wait(lambda: service.samples().get(loads, 0) >= 1, 60, "verdict on the benign load")
    assert not service.entries(DYNAHUGD_PATH="/home/alice/benign.pkl")
    return "counted as benign"


def an_alert_is_in_the_journal(service: Service) -> str:
    """A malicious load from a home that is hidden from it is an entry with fields."""
    service.load("/home/alice/evil.pkl", system("true"))
    alert = service.entry(DYNAHUGD_PATH="/home/alice/evil.pkl")
    uid = service.do("id -u alice").out.strip()
    assert alert["MESSAGE_ID"] == Message.ANOMALOUS.id
    assert alert["PRIORITY"] == str(Message.ANOMALOUS.level.value)
    assert alert["_SYSTEMD_UNIT"] == "dynahugd.service"
    assert (alert["DYNAHUGD_UID"], alert["DYNAHUGD_COMM"]) == (uid, "python3")
    assert alert["DYNAHUGD_FORMAT"] == "pickle"
    assert float(alert["DYNAHUGD_P_VALUE"]) < 1e-4
    assert "system" in alert["DYNAHUGD_REASON"]
    assert int(alert["OBJECT_PID"]) > 1
    return str(alert["MESSAGE"]).splitlines()[0]


def an_alert_is_in_the_metrics(service: Service) -> str:
    """The same load is in /metrics, and nothing was lost."""
    samples = service.samples()
    alerts = samples['dynahugd_alerts_total{format="pickle"}']
    assert alerts == 1
    lost = {name: count for name, count in samples.items() if "records_lost_total" in name}
    assert lost
    assert not any(lost.values()), lost
    return f"{alerts:.0f} alert, 0 records lost"


def the_journal_explains_an_alert(service: Service) -> str:
    """`journalctl -x` says what an alert means and what is to be done, from the catalog."""
    service.do("journalctl --update-catalog")
    text = service.do(f"journalctl --no-pager -x MESSAGE_ID={Message.ANOMALOUS.id}").out
    assert Message.ANOMALOUS.subject in text
    assert "loaded /home/alice/evil.pkl" in text
    return Message.ANOMALOUS.subject


def an_interpreter_of_a_user_is_watched(service: Service) -> str:
    """An interpreter that a user has brought along is found when it runs."""
    service.do("cp /usr/bin/python3.11 /home/alice/python3")
    service.guest.run("/home/alice/python3 -c 'import time; time.sleep(5)'", user="alice")
    service.load("/home/alice/mine.pkl", system("true"), python="/home/alice/python3")
    alert = service.entry(DYNAHUGD_PATH="/home/alice/mine.pkl")
    assert alert["DYNAHUGD_EXE"] == "/home/alice/python3"
    return "attached to /home/alice/python3"


def a_load_in_another_mount_namespace_is_seen(service: Service) -> str:
    """A load of a service that has its own /tmp is told by the path that this service knows."""
    service.guest.write("/opt/load.py", b"import pickle\npickle.load(open('/tmp/in.pkl', 'rb'))\n")
    service.guest.write("/opt/in.pkl", system("true"))
    service.do(
        "systemd-run --quiet --wait --property PrivateTmp=yes --property DynamicUser=yes "
        "sh -c 'cp /opt/in.pkl /tmp && python3 /opt/load.py'"
    )
    alert = service.entry(DYNAHUGD_PATH="/tmp/in.pkl")
    assert alert["MESSAGE_ID"] == Message.ANOMALOUS.id
    return "alert on /tmp/in.pkl of another service"


def a_good_configuration_is_taken_over(service: Service) -> str:
    """`systemctl reload` takes a changed configuration over, in the same process."""
    before = service.pid()
    service.guest.write(_CONFIG, b'[daemon]\nalert_log = "/var/log/dynahugd/alerts.jsonl"\n')
    service.do("systemctl reload dynahugd")
    service.entry(MESSAGE_ID=Message.RELOADED.id)
    service.load("/home/alice/logged.pkl", system("true"))
    service.entry(DYNAHUGD_PATH="/home/alice/logged.pkl")
    lines = service.do("cat /var/log/dynahugd/alerts.jsonl").out.splitlines()
    assert json.loads(lines[0])["path"] == "/home/alice/logged.pkl"
    assert service.pid() == before
    return "alert log opened by a reload"


def a_bad_configuration_is_refused(service: Service) -> str:
    """`systemctl reload` with a wrong configuration leaves it active with what was in force."""
    before = service.pid()
    service.guest.write(_CONFIG, b"[probe]\nhop = 'fast'\n")
    service.do("systemctl reload dynahugd")
    entry = service.entry(MESSAGE_ID=Message.RELOAD_REFUSED.id)
    service.load("/home/alice/still.pkl", system("true"))
    service.entry(DYNAHUGD_PATH="/home/alice/still.pkl")
    assert (service.show("ActiveState"), service.pid()) == ("active", before)
    return str(entry["MESSAGE"])


def a_stuck_one_is_restarted(service: Service) -> str:
    """Stopped by SIGSTOP, it misses its watchdog and is started again."""
    service.do(f"rm {_CONFIG}")
    service.guest.write(f"{DROP_INS}/watchdog.conf", b"[Service]\nWatchdogSec=10\n")
    service.restart()
    before = service.pid()
    service.do(f"kill -STOP {before}")
    seconds = service.wait(lambda: _runs_anew(service, before), _AGAIN, "restart by the watchdog")
    said = service.do("journalctl --no-pager --unit dynahugd").out
    assert "Watchdog timeout" in said, said
    service.do(f"rm {DROP_INS}/watchdog.conf")
    return f"WatchdogSec=10: active again after {seconds:.0f} s"


def a_killed_one_is_restarted(service: Service) -> str:
    """Killed, it is started again, and watches."""
    service.restart()
    before = service.pid()
    service.do(f"kill -KILL {before}")
    seconds = service.wait(lambda: _runs_anew(service, before), _AGAIN, "restart after SIGKILL")
    service.load("/home/alice/again.pkl", system("true"))
    service.entry(DYNAHUGD_PATH="/home/alice/again.pkl")
    return f"active again after {seconds:.0f} s"


def stopped_it_leaves_nothing(service: Service) -> str:
    """Stopped, it ends with success and leaves no programs and no links in the kernel."""
    running = _in_the_kernel(service)
    assert running > 0
    service.do("systemctl stop dynahugd")
    assert (service.show("ActiveState"), service.show("Result")) == ("inactive", "success")
    assert _in_the_kernel(service) == 0
    return f"{running} programs while it runs, 0 after"


def a_broken_one_is_not_tried_for_ever(service: Service) -> str:
    """With a configuration that cannot be used it fails, says why, and is left alone."""
    service.guest.write(_CONFIG, b"[daemon]\nlisten = 9797\n")
    service.forget()
    started = service.guest.run("systemctl start dynahugd")
    assert started.status != 0
    service.wait(lambda: service.show("ActiveState") == "failed", _AGAIN, "failed state")
    said = service.do("journalctl --no-pager --output cat --unit dynahugd").out
    assert f"{_CONFIG}:2: 'daemon.listen' has to be text" in said
    assert "Start request repeated too quickly" in said
    restarts = service.show("NRestarts")
    service.do(f"rm {_CONFIG}")
    return f"{service.show('Result')} after {restarts} restarts"


def its_filter_refuses_what_it_can_do_without(service: Service) -> str:
    """Its system-call filter refuses nothing but calls that its libraries have a substitute for."""
    lines = service.do("journalctl --no-pager --output cat _TRANSPORT=kernel").out.splitlines()
    names = syscalls.names("x86_64")
    refused = {
        names[int(found[1])]
        for line in lines
        if "type=1326" in line and 'comm="python3"' in line
        if (found := re.search(r" syscall=(\d+)", line))
    }
    assert refused <= _REFUSED, refused
    return ", ".join(sorted(refused)) or "none"


def _is_older(service: Service) -> bool:
    """Whether the drop-in is there that adds CAP_SYS_ADMIN for a kernel that asks for it."""
    return service.guest.run(f"test -e {DROP_INS}/older-kernel.conf").status == 0


def _runs_anew(service: Service, before: int) -> bool:
    return service.show("ActiveState") == "active" and service.pid() not in (0, before)


def _in_the_kernel(service: Service) -> int:
    """How many programs of ours the kernel holds."""
    programs = json.loads(service.do("bpftool --json prog list").out)
    return sum(program.get("name", "").startswith("dh_") for program in programs)


#: In the order of the service's life: a check finds it as the one before has left it.
CHECKS: tuple[Check, ...] = (
    it_starts,
    its_status_says_what_it_has_seen,
    it_is_not_root,
    its_exposure_is_low,
    a_benign_load_is_no_alert,
    an_alert_is_in_the_journal,
    an_alert_is_in_the_metrics,
    the_journal_explains_an_alert,
    an_interpreter_of_a_user_is_watched,
    a_load_in_another_mount_namespace_is_seen,
    a_good_configuration_is_taken_over,
    a_bad_configuration_is_refused,
    a_stuck_one_is_restarted,
    a_killed_one_is_restarted,
    stopped_it_leaves_nothing,
    a_broken_one_is_not_tried_for_ever,
    its_filter_refuses_what_it_can_do_without,
)
