"""What the kernel side sees, on the real kernel, under both loaders."""

from __future__ import annotations

import mmap
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dynahugd.loads import Load, Tracker
from dynahugd.probes import kernel, syscalls
from dynahugd.probes.interpreter import Coverage
from dynahugd.probes.interpreters import MAX_CHANGED, Interpreters
from dynahugd.probes.kernel import MapType
from dynahugd.probes.layout import Bank, Kind, Loss
from dynahugd.probes.maps import Sizes
from dynahugd.probes.probe import Options, Probe, decode
from dynahugd.probes.ring import Ring
from tests.conftest import LOADERS
from tests.harness import cgroup_id

pytestmark = pytest.mark.ebpf

NAMES = syscalls.names(syscalls.machine())
NUMBER = syscalls.numbers(syscalls.machine())
SUFFIXES = ("pkl", "pt", "pth", "npy", "h5")


@pytest.fixture(scope="module", params=LOADERS)
def probe(request: pytest.FixtureRequest) -> Iterator[Probe]:
    """A probe that is attached to everything on this host."""
    probe = Probe(Options(loader=request.param, suffixes=SUFFIXES, wrappers=("gz",), idle=2.0))
    probe.cover_host()
    yield probe
    probe.close()


def watch(probe: Probe, source: str, *arguments: str | Path, late: float = 0.0) -> list[Load]:
    """The loads of one Python program; they are looked at only ``late`` seconds after its start."""
    tracker = Tracker(NAMES, int(5e9), probe.finish)
    process = subprocess.Popen([sys.executable, "-c", source, *map(str, arguments)])
    time.sleep(late)
    loads: dict[int, Load] = {}
    quiet = 0.0
    while not quiet or time.monotonic() - quiet < 0.6 or tracker.open:
        for update in tracker.update(probe.read(0.1)):
            loads[update.load.id] = update.load
        if not quiet and process.poll() is not None:
            quiet = time.monotonic()
        if quiet and time.monotonic() - quiet > 10:
            break
    assert process.returncode == 0
    mine = (None, cgroup_id())  # other loads of this host are none of ours
    return [load for load in loads.values() if load.is_model and load.cgroup in mine]


def acts(load: Load, call: str) -> list[str]:
    """Texts of the acts of a load by their system call."""
    return [act.text for act in load.acts if act.call == call]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small pickle."""
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps({"weights": list(range(100))}))
    return path


def test_a_load_is_the_span_from_open_to_close(probe: Probe, model: Path) -> None:
    source = "import pickle, sys\nwith open(sys.argv[1], 'rb') as f: pickle.load(f)"
    (load,) = watch(probe, source, model)
    assert load.path == str(model)
    assert load.format == "pickle"
    assert load.exact
    calls = load.counters[Bank.OUTSIDE] + load.counters[Bank.WITHIN]
    assert calls[NUMBER["openat"]] == 1
    assert calls[NUMBER["close"]] == 1


@pytest.mark.parametrize("count", [1, 7, 5000])
def test_calls_in_a_descriptor_span_are_counted_to_the_unit(
    probe: Probe, model: Path, count: int
) -> None:
    source = (
        "import os, sys\nfd = os.open(sys.argv[1], os.O_RDONLY)\nos.read(fd, 1)\n"
        "for _ in range(int(sys.argv[2])): os.getppid()\nos.close(fd)"
    )
    (load,) = watch(probe, source, model, str(count))
    assert load.counters[Bank.OUTSIDE][NUMBER["getppid"]] == count
    assert int(load.counters.sum()) == count + 3  # and openat, read, close


def test_five_million_calls_inside_a_pickle_lose_none(probe: Probe, tmp_path: Path) -> None:
    module = tmp_path / "counting.py"
    module.write_text(
        "import os\n"
        "class Counting:\n"
        "    def __setstate__(self, n):\n"
        "        for _ in range(n): os.getppid()\n"
        "    def __reduce__(self): return object.__new__, (Counting,), self.n\n"
    )
    sys.path.insert(0, str(tmp_path))
    import counting  # type: ignore[import-not-found]

    value = counting.Counting()
    value.n = 5_000_000
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps(value))
    source = (
        f"import pickle, sys\nsys.path.insert(0, {str(tmp_path)!r})\n"
        "with open(sys.argv[1], 'rb') as f: pickle.load(f)"
    )
    before = probe.lost()
    (load,) = watch(probe, source, path)
    assert load.counters[Bank.WITHIN][NUMBER["getppid"]] == 5_000_000
    assert probe.lost() == before


def test_globals_are_named(probe: Probe, tmp_path: Path) -> None:
    path = tmp_path / "model.pkl"
    path.write_bytes(b"\x80\x02cfractions\nFraction\nK\x01K\x02\x86R.")
    source = "import pickle, sys\nwith open(sys.argv[1], 'rb') as f: pickle.load(f)"
    (load,) = watch(probe, source, path)
    named = [(act.text, act.second) for act in load.acts if act.kind is Kind.GLOBAL]
    assert named == [("fractions", "Fraction")]


def test_a_name_that_is_not_ascii_is_read_whole(probe: Probe, tmp_path: Path) -> None:
    module = "mödül€".encode()
    name = "😀".encode()
    path = tmp_path / "model.pkl"
    path.write_bytes(b"\x80\x02c" + module + b"\n" + name + b"\n.")
    source = (
        "import pickle, sys\n"
        "with open(sys.argv[1], 'rb') as f:\n"
        "    try: pickle.load(f)\n"
        "    except ModuleNotFoundError: pass"
    )
    (load,) = watch(probe, source, path)
    (act,) = [act for act in load.acts if act.kind is Kind.GLOBAL]
    assert (act.text, act.second) == ("mödül€", "😀")
    assert act.odd


def test_long_paths_keep_both_ends(probe: Probe, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / ("a" * 200)
    deep = folder / ("b" * 100)
    deep.mkdir(parents=True)
    (folder / "one.old").write_text("x")
    source = (
        "import os, sys\n"
        "fd = os.open(sys.argv[1], os.O_RDONLY); os.read(fd, 1)\n"
        "os.rename(sys.argv[2] + '/one.old', sys.argv[2] + '/two.new')\n"
        "os.rmdir(sys.argv[3]); os.unlink('short')\n"
        "os.close(fd)"
    )
    (tmp_path / "short").write_text("x")
    (load,) = watch(probe, f"import os; os.chdir({str(tmp_path)!r})\n{source}", model, folder, deep)
    told = {act.call: act for act in load.acts}
    for text, end in ((told["rename"].text, "/one.old"), (told["rename"].second, "/two.new")):
        assert text.startswith(str(tmp_path)[:48] + "…aaa")
        assert text.endswith("aaa" + end)
        assert len(text.encode()) == 127
    assert told["rmdir"].text == f"{str(deep)[:128]}…{str(deep)[-128:]}"
    assert (told["unlink"].text, told["unlink"].second) == ("short", "")


def test_an_unpickling_that_raises_ends(probe: Probe, model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.pkl"
    broken.write_bytes(b"\x80\x04\x95garbage")
    source = (
        "import pickle, subprocess, sys\n"
        "f = open(sys.argv[1], 'rb')\n"
        "try: pickle.load(f)\n"
        "except Exception: pass\n"
        "subprocess.run(['true'])\n"
    )
    (load,) = watch(probe, source, broken)
    assert acts(load, "execve") == []


def test_a_descriptor_that_another_file_has_by_now_does_not_tell_the_format(
    probe: Probe, model: Path, tmp_path: Path
) -> None:
    settings = tmp_path / "settings.pt"
    settings.write_text("a text of another kind")
    source = (
        "import os, sys, time\n"
        "os.close(os.open(sys.argv[1], os.O_RDONLY))\n"
        "fd = os.open(sys.argv[2], os.O_RDONLY)\n"
        "time.sleep(0.6)"
    )
    (load,) = watch(probe, source, settings, model, late=0.4)
    assert load.path == str(model)


def test_what_follows_a_forgotten_handle_is_not_the_load(probe: Probe, model: Path) -> None:
    source = (
        "import pickle, socket, subprocess, sys\n"
        "f = open(sys.argv[1], 'rb')\n"
        "pickle.load(f)\n"
        "subprocess.run(['true'])\n"
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "s.sendto(b'x', ('127.0.0.1', 9))\n"
        "open(sys.argv[1] + '.txt', 'w').write('x')\n"
    )
    (load,) = watch(probe, source, model)
    assert [act for act in load.acts if act.kind is not Kind.GLOBAL] == []


def test_other_threads_are_not_the_load(probe: Probe, model: Path) -> None:
    source = (
        "import os, subprocess, sys, threading\n"
        "go = threading.Event(); done = threading.Event()\n"
        "def noise():\n"
        "    go.wait(); subprocess.run(['true'])\n"
        "    open(sys.argv[1] + '.x', 'w').close(); done.set()\n"
        "t = threading.Thread(target=noise); t.start()\n"
        "fd = os.open(sys.argv[1], os.O_RDONLY); os.read(fd, 1)\n"
        "go.set(); done.wait(); os.close(fd); t.join()\n"
    )
    (load,) = watch(probe, source, model)
    assert acts(load, "execve") == []
    assert acts(load, "openat") == []


def test_a_child_is_seen_after_the_load_has_ended(probe: Probe, tmp_path: Path) -> None:
    path = tmp_path / "model.pkl"
    path.write_bytes(b"\x80\x02cposix\nfork\n)R.")
    source = (
        "import os, pickle, sys, time\n"
        "with open(sys.argv[1], 'rb') as f: child = pickle.load(f)\n"
        "if child == 0:\n"
        "    time.sleep(1); open(sys.argv[1] + '.late', 'w').close(); os._exit(0)\n"
        "os.wait()\n"
    )
    (load,) = watch(probe, source, path)
    (late,) = [act for act in load.acts if act.text.endswith(".late")]
    assert late.descendant
    assert late.after
    assert late.time - load.end > 0.9e9


def test_a_program_executed_in_place_is_followed_to_its_end(probe: Probe, tmp_path: Path) -> None:
    # The loader of programs opens and closes files under the number that the model had.
    path = tmp_path / "model.pkl"
    command = f"sleep 0.3; : > {tmp_path}/late"
    path.write_bytes(b"cos\nexecvp\n(Vsh\n(lVsh\naV-c\naV" + command.encode() + b"\natR.")
    source = "import pickle, sys\nwith open(sys.argv[1], 'rb') as f: pickle.load(f)"
    (load,) = watch(probe, source, path)
    (late,) = [act for act in load.acts if act.text.endswith("/late")]
    assert late.descendant
    assert late.after
    assert load.refs == 0


@pytest.mark.parametrize(
    "work",
    ["time.sleep(3)", "end = time.monotonic() + 3\nwhile time.monotonic() < end: sum(range(999))"],
    ids=["sleeps", "computes"],
)
def test_a_payload_that_waits_longer_than_the_idle_time_is_seen(
    probe: Probe, tmp_path: Path, work: str
) -> None:
    # The probe of these tests ends a load whose descriptor is left alone after two seconds.
    code = f"import time, subprocess\n{work}\nsubprocess.run(['true'])"
    path = tmp_path / "model.pkl"
    path.write_bytes(
        b"cbuiltins\nexec\n(V"
        + code.encode("raw_unicode_escape").replace(b"\n", b"\\u000a")
        + b"\ntR."
    )
    source = "import pickle, sys\nf = open(sys.argv[1], 'rb')\npickle.load(f)"
    (load,) = watch(probe, source, path)
    assert any(text.endswith("/true") for text in acts(load, "execve"))


def test_copying_a_model_is_no_load(probe: Probe, model: Path) -> None:
    source = (
        "import subprocess, sys\n"
        "subprocess.run(['cp', sys.argv[1], sys.argv[1] + '.pt'], check=True)\n"
        "subprocess.run(['sha256sum', sys.argv[1]], check=True, stdout=subprocess.DEVNULL)\n"
        "subprocess.run(['tar', 'cPf', sys.argv[1] + '.tar', sys.argv[1]], check=True)\n"
    )
    assert watch(probe, source, model) == []


def test_messages_between_processes_make_no_load(probe: Probe) -> None:
    probe.know_globals([("collections", "OrderedDict")])
    source = (
        "import pickle, collections\n"
        "data = pickle.dumps(collections.OrderedDict(a=1))\n"
        "for _ in range(1000): pickle.loads(data)"
    )
    assert watch(probe, source) == []


def test_deep_nesting_does_not_keep_a_thread_inside(probe: Probe, model: Path) -> None:
    # The kernel keeps 64 return probes of a thread and drops the rest.
    source = (
        "import pickle, subprocess, sys\n"
        "data = pickle.dumps(1)\n"
        "for _ in range(80):\n"
        "    argument = b'B' + len(data).to_bytes(4, 'little') + data\n"
        "    data = b'\\x80\\x02c_pickle\\nloads\\n' + argument + b'\\x85R.'\n"
        "pickle.loads(data)\n"
        "pickle.loads(pickle.dumps(1))\n"
        "subprocess.run(['true'])\n"
        "f = open(sys.argv[1], 'rb'); f.read(); f.close()\n"
    )
    loads = watch(probe, source, model)
    assert all(acts(load, "execve") == [] for load in loads)


def test_records_are_whole_and_in_order_when_the_ring_has_come_round(tmp_path: Path) -> None:
    size = 1 << 16
    model = tmp_path / "model.pkl"
    model.write_bytes(pickle.dumps(1))
    source = (
        "import sys, time\nmodel = open(sys.argv[1], 'rb')\n"
        "for number in range(1000):\n"
        "    try: open(f'{sys.argv[1]}-{number}')\n"
        "    except OSError: time.sleep(0.0002)\n"
    )
    probe = Probe(Options(suffixes=SUFFIXES, sizes=Sizes(ring=size)))
    opened: list[int] = []
    try:
        probe.cover_host()
        process = subprocess.Popen([sys.executable, "-c", source, model])
        over = False
        while not over:
            over = process.poll() is not None
            time.sleep(0.02)  # some ten pages of records
            records = probe.read(0.1).records
            own = records[records["tgid"] == process.pid]
            over = over and not own.size
            texts = [decode(record["text"].tobytes()) for record in own]
            opened += [int(text.rpartition("-")[2]) for text in texts if f"{model}-" in text]
        lost = probe.lost()[Loss.RING]
        assert probe.meter.read().read > 4 * size
    finally:
        probe.close()
    assert opened == sorted(set(opened))
    assert 1000 - lost <= len(opened) <= 1000


def test_a_full_table_of_loads_is_counted(tmp_path: Path) -> None:
    probe = Probe(Options(suffixes=SUFFIXES, sizes=Sizes(loads=2)))
    try:
        probe.cover_host()
        paths = [tmp_path / f"{number}.pkl" for number in range(5)]
        for path in paths:
            path.write_bytes(pickle.dumps(1))
        source = "import sys\nfiles = [open(p, 'rb') for p in sys.argv[1:]]"
        watch(probe, source, *paths)
        assert probe.lost()[Loss.LOADS] == 3
    finally:
        probe.close()


def test_an_interpreter_that_cannot_be_attached_is_forgotten_when_it_is_gone(
    tmp_path: Path,
) -> None:
    reported: list[Coverage] = []
    found = Interpreters(None, lambda item: reported.append(item.coverage))
    odd = tmp_path / "python3.11"
    odd.write_bytes(b"\x7fELF" + bytes(100))
    found.cover(str(odd), str(odd))
    found.release_gone()
    assert found.count() == {Coverage.NOT_COVERED: 1}
    odd.unlink()
    found.release_gone()
    assert reported == [Coverage.NOT_COVERED, Coverage.RELEASED]
    assert found.count()[Coverage.NOT_COVERED] == 0


def test_an_interpreter_that_changes_in_place_is_looked_at_again_but_not_for_ever(
    tmp_path: Path,
) -> None:
    python, other = Path("/usr/bin/python3.11").read_bytes(), b"\x7fELF" + bytes(100)
    found = Interpreters(None)
    file = tmp_path / "python3.11"

    def coverage() -> Coverage:
        interpreter = found.cover(str(file), str(file))
        assert interpreter is not None
        return interpreter.coverage

    def change(to: bytes) -> Coverage:
        inode = file.stat().st_ino
        file.write_bytes(to)
        assert file.stat().st_ino == inode
        return coverage()

    file.write_bytes(other)
    assert coverage() is Coverage.NOT_COVERED
    for _ in range(MAX_CHANGED // 2):
        assert change(python) is Coverage.ATTACHED
        assert change(other) is Coverage.NOT_COVERED
    assert change(python) is Coverage.NOT_COVERED
    found.release_gone()
    assert coverage() is Coverage.ATTACHED


@pytest.mark.parametrize("before", [True, False])
def test_a_wait_for_records_ends_when_somebody_wakes_it(before: bool) -> None:
    size = mmap.PAGESIZE
    fd = kernel.create_map(MapType.RINGBUF, 0, 0, size, 0, "test")
    ring = Ring(fd, size)
    waiting = threading.Thread(target=ring.wait, args=(60,), daemon=True)
    if before:
        ring.wake()
    waiting.start()
    if not before:
        time.sleep(0.1)
        ring.wake()
    waiting.join(10)
    assert not waiting.is_alive()
    ring.close()
    os.close(fd)


def test_closing_detaches_everything(settled: Callable[[], set[str]]) -> None:
    before = settled()
    probe = Probe(Options(suffixes=SUFFIXES))
    probe.cover_host()
    assert len(settled()) > len(before)
    probe.close()
    assert settled() == before


@pytest.fixture
def settled() -> Callable[[], set[str]]:
    """The programs of ours that the kernel holds, once it has tidied up."""

    def programs() -> set[str]:
        time.sleep(0.5)
        output = subprocess.run(
            ["bpftool", "prog", "list"], capture_output=True, text=True, check=True
        ).stdout
        return {line.split(":")[0] for line in output.splitlines() if "name dh_" in line}

    return programs


@pytest.mark.parametrize("folder", ["site-packages", "dist-packages"])
def test_the_path_files_of_installed_packages_are_no_loads(
    probe: Probe, tmp_path: Path, folder: str
) -> None:
    packages = tmp_path / folder
    packages.mkdir()
    names = (packages / "a.pth", packages / "b.pt", tmp_path / "c.pth", packages / "d" / "e.pth")
    names[-1].parent.mkdir()
    for path in names:
        path.write_bytes(pickle.dumps(1))
    source = "import sys\nfor path in sys.argv[1:]: open(path, 'rb').close()"
    opened = {load.path for load in watch(probe, source, *names)}
    assert opened == {str(path) for path in names[1:]}


def test_a_model_that_hides_among_path_files_is_seen_by_its_unpickling(
    probe: Probe, tmp_path: Path
) -> None:
    path = tmp_path / "site-packages" / "evil.pth"
    path.parent.mkdir()
    path.write_bytes(b"cposix\nmkdir\n(V" + str(tmp_path / "made").encode() + b"\ntR.")
    (load,) = watch(probe, "import pickle, sys; pickle.load(open(sys.argv[1], 'rb'))", path)
    assert load.memory
    assert acts(load, "mkdir") == [str(tmp_path / "made")]
