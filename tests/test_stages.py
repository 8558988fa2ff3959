"""What is on the way of system calls at each stage, and that nothing is missed from one to another.

The probe here goes down within a moment, so that what takes half a minute on a host can be tried.
Other ML processes of this host keep it up: it is waited for.
"""

from __future__ import annotations

import ctypes
import errno
import math
import os
import pickle
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from dynahugd.loads import Load, Tracker
from dynahugd.probes import attach, syscalls
from dynahugd.probes.layout import Bank, Kind, Loss
from dynahugd.probes.probe import Options, Probe
from dynahugd.probes.stages import ProbeStage
from tests.conftest import LOADERS

pytestmark = pytest.mark.ebpf

NAMES = syscalls.names(syscalls.machine())
NUMBER = syscalls.numbers(syscalls.machine())

#: Calls of this architecture that do more than use a descriptor.
TELLING = [
    name
    for name, action in syscalls.ACTIONS.items()
    if name in NUMBER and action not in (syscalls.Action.TOUCH, syscalls.Action.IGNORE)
]

OPENS = ("sys_exit_open", "sys_exit_openat", "sys_exit_openat2")


def made(loader: str, **times: float) -> Probe:
    """A probe that has no ML process yet: those of this host from before are not looked for."""
    options = Options(loader=loader, suffixes=("pkl", "pt"), hop=0.05)
    probe = Probe(replace(options, **times))  # type: ignore[arg-type]
    probe.interpreters.cover_installed()
    return probe


@pytest.fixture(scope="module", params=LOADERS)
def resting(request: pytest.FixtureRequest) -> Iterator[Watcher]:
    """A probe that rests as soon as no ML process lives, and watches none."""
    watcher = Watcher(made(request.param, rest=0.3, quiet=math.inf))
    yield watcher
    watcher.probe.close()


@pytest.fixture(scope="module", params=LOADERS)
def watching(request: pytest.FixtureRequest) -> Iterator[Watcher]:
    """A probe that only watches as soon as nothing loads, and never rests."""
    watcher = Watcher(made(request.param, rest=math.inf, quiet=0.3))
    yield watcher
    watcher.probe.close()


def exists(event: str) -> bool:
    """Whether the kernel has this tracepoint on a system call."""
    return (attach.tracefs() / "events/syscalls" / event).is_dir()


class Loader:
    """A Python process that does as it is told, line by line, and nothing in between."""

    def __init__(self, *start: str) -> None:
        source = "import os, pickle, sys\nfor line in sys.stdin: exec(line); print(flush=True)"
        self.process = subprocess.Popen(
            [*(start or (sys.executable,)), "-c", source],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def begin(self, line: str) -> None:
        """Have it execute a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def done(self) -> bool:
        """Whether it has, said once."""
        stdout = self.process.stdout
        assert stdout is not None
        return bool(select.select([stdout], [], [], 0)[0]) and stdout.readline() == "\n"

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.communicate()


class Watcher:
    """Goes round the daemon's loop, and keeps the loads."""

    def __init__(self, probe: Probe) -> None:
        self.probe = probe
        self.loads: dict[int, Load] = {}
        self._tracker = Tracker(NAMES, int(1e9), probe.finish)

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Go round until a condition holds."""
        end = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < end, f"never {what}"
            self.turn()

    def turn(self) -> None:
        """Once round."""
        for update in self._tracker.update(self.probe.read(0.05)):
            self.loads[update.load.id] = update.load

    def reach(self, stage: ProbeStage) -> None:
        """Go round until the probe is at a stage, and the kernel has let go of what it has left."""
        stages = self.probe.stages
        self.until(lambda: stages.stage is stage and not stages.detaching, stage)

    def of(self, tgid: int) -> list[Load]:
        """The loads of a process, once they are over."""
        self.until(
            lambda: all(load.end for load in self.loads.values() if load.tgid == tgid),
            "the end of its loads",
        )
        return [load for load in self.loads.values() if load.tgid == tgid]

    @contextmanager
    def loader(self) -> Iterator[Loader]:
        """A new process, once it waits for its first line."""
        with Loader() as loader:
            loader.begin("pass")
            self.until(loader.done, "an interpreter")
            yield loader

    def perform(self, loader: Loader, line: str) -> Load:
        """Have a line executed; the one load that it makes."""
        known = len(self.of(loader.process.pid))
        loader.begin(line)
        tgid = loader.process.pid
        self.until(lambda: sum(load.tgid == tgid for load in self.loads.values()) > known, "a load")
        self.until(loader.done, "the end of the load")
        (load,) = self.of(tgid)[known:]
        return load


def _info(fd: int | str) -> dict[str, str]:
    try:
        lines = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
    except OSError:
        return {}
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def on_the_way(probe: Probe) -> tuple[int, int]:
    """What a probe has attached to every system call, and to single ones, at entry or return."""
    programs = probe._programs
    assert programs is not None
    own = {_info(fd)["prog_id"] for fd in programs.fds.values()}
    found = [info for info in map(_info, os.listdir("/proc/self/fd")) if info.get("prog_id") in own]
    links = [info for info in found if "link_type" in info]
    every = [info for info in links if info.get("tp_name", "") in ("sys_enter", "sys_exit")]
    return len(every), sum(info["link_type"] == "perf" for info in links)


def test_nothing_is_on_the_way_of_system_calls_while_no_ml_process_lives(resting: Watcher) -> None:
    resting.reach(ProbeStage.RESTING)
    assert on_the_way(resting.probe) == (0, 0)


def test_every_call_is_looked_at_once_an_ml_process_lives(resting: Watcher) -> None:
    resting.reach(ProbeStage.RESTING)
    with resting.loader():
        resting.reach(ProbeStage.COUNTING)
        assert on_the_way(resting.probe) == (1, sum(map(exists, OPENS)))


def test_only_chosen_calls_are_looked_at_while_nothing_loads(watching: Watcher) -> None:
    with watching.loader():
        watching.reach(ProbeStage.WATCHING)
        apart = [attach.event_of(name) for name in TELLING]
        assert on_the_way(watching.probe) == (0, sum(map(exists, [*apart, *OPENS])))


def test_every_telling_call_that_this_kernel_has_can_be_looked_at_alone() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    for name in TELLING:
        if exists(attach.event_of(name)):
            continue
        assert libc.syscall(NUMBER[name], -1, -1, -1, -1, -1, -1) == -1
        assert ctypes.get_errno() == errno.ENOSYS, name


#: Telling calls in a row, for longer than it takes to begin to count.
WORK = """\
for i in range(500):
    os.mkdir(f'{where}/{i}'); os.rename(f'{where}/{i}', f'{where}/{i}.old')
    os.chmod(f'{where}/{i}.old', 0o700); os.rmdir(f'{where}/{i}.old')
"""


def test_no_call_is_missed_doubled_or_out_of_order_when_counting_begins(
    watching: Watcher, tmp_path: Path
) -> None:
    path = tmp_path / "model.pkl"
    code = WORK.replace("{where}", str(tmp_path))
    path.write_bytes(pickle.dumps(0)[:2] + b"cbuiltins\nexec\n" + pickled(code) + b"\x85R.")
    line = f"with open({str(path)!r}, 'rb') as f: pickle.load(f)"
    with watching.loader() as loader:
        for stage in (ProbeStage.WATCHING, ProbeStage.COUNTING):
            watching.reach(stage)
            load = watching.perform(loader, line)
            assert load.uncounted == (stage is ProbeStage.WATCHING)
            calls = ("mkdir", "rename", "chmod", "rmdir")
            told = [(act.call, act.text) for act in load.acts if act.call in calls]
            assert told == [
                (call, f"{tmp_path}/{i}" + (".old" if call in ("chmod", "rmdir") else ""))
                for i in range(500)
                for call in calls
            ]
            assert [int(load.counters[Bank.WITHIN][NUMBER[call]]) for call in calls] == [500] * 4
            times = [act.time for act in load.acts]
            assert times == sorted(times)


def pickled(text: str) -> bytes:
    """The opcodes that push a text."""
    raw = text.encode()
    return b"X" + len(raw).to_bytes(4, "little") + raw


def test_the_second_load_is_counted_to_the_unit(watching: Watcher, tmp_path: Path) -> None:
    path = tmp_path / "model.pkl"
    path.write_bytes(b"N.")
    line = (
        f"fd = os.open({str(path)!r}, os.O_RDONLY); [os.getppid() for _ in range(7)]; os.close(fd)"
    )
    with watching.loader() as loader:
        watching.reach(ProbeStage.WATCHING)
        first = watching.perform(loader, line)
        second = watching.perform(loader, line)
    assert (first.uncounted, second.uncounted) == (True, False)
    assert second.counters[Bank.OUTSIDE][NUMBER["getppid"]] == 7
    assert int(second.counters.sum()) == 7 + 2  # and openat, close


def test_a_payload_that_hides_behind_a_harmless_pickle_is_held_against_the_first_load(
    watching: Watcher, tmp_path: Path
) -> None:
    # Nobody sees what the C unpickler reads before reads are looked at: not the file, here.
    victim = tmp_path / "victim"
    victim.touch()
    path = tmp_path / "model.pkl"
    path.write_bytes(
        b"(c_pickle\nloads\nC\x02N.\x85R0cposix\nunlink\n" + pickled(str(victim)) + b"\x85R."
    )
    line = f"with open({str(path)!r}, 'rb') as f: pickle._Unpickler(f).load()"
    with watching.loader() as loader:
        watching.reach(ProbeStage.WATCHING)
        load = watching.perform(loader, line)
    (act,) = (act for act in load.acts if act.call == "unlink")
    assert act.text == str(victim)
    assert load.holds(act)


def test_the_first_file_of_an_unknown_format_is_a_load_once_it_is_unpickled(
    watching: Watcher, tmp_path: Path
) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(b"\x88.")
    line = f"with open({str(path)!r}, 'rb') as f: pickle.load(f)"
    with watching.loader() as loader:
        watching.reach(ProbeStage.WATCHING)
        load = watching.perform(loader, line)
    assert load.uncounted
    assert load.is_model
    assert load.format == "pickle"


def test_a_new_interpreter_is_seen_to_from_its_first_load_on(
    resting: Watcher, tmp_path: Path
) -> None:
    path = tmp_path / "model.pkl"
    victim = tmp_path / "victim"
    victim.touch()
    path.write_bytes(b"cposix\nunlink\n" + pickled(str(victim)) + b"\x85R.")
    resting.reach(ProbeStage.RESTING)
    with resting.loader() as loader:
        load = resting.perform(
            loader, f"with open({str(path)!r}, 'rb') as f: pickle._Unpickler(f).load()"
        )
    assert [act.text for act in load.acts if act.call == "unlink"] == [str(victim)]


@pytest.mark.parametrize("name", LOADERS)
def test_an_unpickling_that_nobody_watched_is_never_called_whole(name: str) -> None:
    with Loader() as loader:
        loader.begin("import fractions")
        while not loader.done():
            time.sleep(0.01)
        resting = Watcher(made(name, rest=0.3, quiet=math.inf))
        try:
            resting.reach(ProbeStage.RESTING)
            before = resting.probe.lost()[Loss.LATE]
            load = resting.perform(loader, "pickle.loads(b'cfractions\\nFraction\\n.')")
            assert resting.probe.lost()[Loss.LATE] > before
        finally:
            resting.probe.close()
    assert [act.second for act in load.acts if act.kind is Kind.GLOBAL] == ["Fraction"]
    assert load.lost


EMBEDDING = """
#include <dlfcn.h>
int main(int argc, char **argv)
{
	void *python = dlopen(argv[1], RTLD_NOW | RTLD_GLOBAL);
	((void (*)(void))dlsym(python, "Py_Initialize"))();
	return ((int (*)(const char *))dlsym(python, "PyRun_SimpleString"))(argv[2]);
}
"""


def test_an_interpreter_in_another_program_is_found_by_looking(
    resting: Watcher, tmp_path: Path
) -> None:
    libraries = sorted(Path("/usr/lib").glob("*/libpython3.*.so.1.0"))
    library = shutil.copy(libraries[0], tmp_path)  # one that nobody has seen
    program = tmp_path / "embedding"
    gcc = ["gcc", "-x", "c", "-", "-o", str(program), "-ldl"]
    subprocess.run(gcc, input=EMBEDDING, text=True, check=True)
    path = tmp_path / "model.pkl"
    victim = tmp_path / "victim"
    victim.touch()
    path.write_bytes(b"cposix\nunlink\n" + pickled(str(victim)) + b"\x85R.")
    resting.reach(ProbeStage.RESTING)
    source = f"import pickle, time; time.sleep(2); pickle.load(open({str(path)!r}, 'rb'))"
    with subprocess.Popen([program, library, source]) as process:
        resting.until(lambda: process.poll() is not None, "the end of the program")
        (load,) = resting.of(process.pid)
    assert [act.second for act in load.acts if act.kind is Kind.GLOBAL] == ["unlink"]
    assert [act.text for act in load.acts if act.call == "unlink"] == [str(victim)]


def attachments() -> int:
    """Links and perf events that this process holds."""
    targets = []
    for fd in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            targets.append(os.readlink(f"/proc/self/fd/{fd}"))
    return sum("link" in target or "perf_event" in target for target in targets)


def test_closing_while_watching_leaves_nothing_attached() -> None:
    before = attachments()
    probe = Probe(Options(suffixes=("pkl",), hop=0.05, quiet=0.3))
    try:
        watcher = Watcher(probe)
        with watcher.loader():
            watcher.reach(ProbeStage.WATCHING)
    finally:
        probe.close()
    assert attachments() == before
