"""Features: the classes of paths, programs, addresses and globals, and the rows of counts."""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynahugd.features import Classifier, Row, RowBuilder, is_context, is_mild, is_usual
from dynahugd.features.classes import describe
from dynahugd.features.places import place_read, place_written, program, scope
from dynahugd.features.rows import total_calls
from dynahugd.loads import Act, Load
from dynahugd.probes import syscalls
from dynahugd.probes.layout import Bank, Kind

CWD, FOLDER = "/srv/app", "/srv/models"
SECOND = 1_000_000_000

# ------------------------------------------------------------------------------------------ places


@pytest.mark.parametrize(
    ("path", "read", "written"),
    [
        ("/srv/models/weights.bin", "model", "model"),
        ("/srv/models/below/weights.bin", "other", "other"),
        ("../models/weights.bin", "model", "model"),
        ("data.csv", "other", "other"),
        ("../../etc/shadow", "credentials", "startup"),
        ("/usr/lib/../../etc/shadow", "credentials", "startup"),
        ("/srv/./models//weights.bin", "model", "model"),
        ("/root/.ssh/id_ed25519", "credentials", "credentials"),
        ("/root/.ssh/authorized_keys", "credentials", "startup"),
        ("/home/u/.aws/credentials", "credentials", "credentials"),
        ("/home/u/.netrc", "credentials", "credentials"),
        ("/home/u/.bash_history", "credentials", "credentials"),
        ("/home/u/.cache/huggingface/token", "credentials", "credentials"),
        ("/run/secrets/db", "credentials", "credentials"),
        ("/var/run/secrets/kubernetes.io/serviceaccount/token", "credentials", "credentials"),
        ("/srv/tls/server.key", "credentials", "credentials"),
        ("/etc/ssl/certs/ca-certificates.crt", "system", "system"),
        ("/etc/passwd", "accounts", "startup"),
        ("/etc/hosts", "system", "system"),
        ("/etc/cron.d/job", "startup", "startup"),
        ("/home/u/.bashrc", "startup", "startup"),
        ("/home/u/.config/systemd/user/x.service", "startup", "startup"),
        ("/usr/lib/python3.11/site-packages/evil.pth", "python", "startup"),
        ("/usr/lib/python3.11/sitecustomize.py", "python", "startup"),
        ("/usr/lib/python3.11/os.py", "python", "python"),
        ("/venv/lib/python3.11/site-packages/numpy/core.so", "python", "python"),
        ("/opt/conda/lib/python3.10/json/__init__.py", "python", "python"),
        ("/usr/lib/python3.11/__pycache__/os.cpython-311.pyc", "python", "bytecode"),
        ("/usr/lib/python3.11/__pycache__/os.cpython-311.pyc.1394", "python", "bytecode"),
        ("/srv/app/__pycache__/m.cpython-311.pyc.12", "source", "bytecode"),
        ("/srv/app/__pycache__/evil.sh", "source", "other"),
        ("module.py", "source", "other"),
        ("native.so", "source", "other"),
        ("/usr/lib/x86_64-linux-gnu/libc.so.6", "system", "system"),
        ("/usr/bin/env", "system", "system"),
        ("/usr/bin2/env", "other", "other"),
        ("/var/lib/dpkg/status", "other", "system"),
        ("/boot/vmlinuz", "other", "system"),
        ("/tmp/x", "other", "temporary"),
        ("/tmpx", "other", "other"),
        # What tempfile and gcc make where TMPDIR says; the same names in a home are not theirs.
        ("/scratch/u/tmpa1b2c3_d", "other", "temporary"),
        ("/scratch/u/tmpa1b2c3_d/weights.bin", "other", "temporary"),
        ("/scratch/u/tmpa1b2c3_de/weights.bin", "other", "other"),
        ("/scratch/u/x7_qpr0z", "other", "temporary"),
        ("/usr/lib/ssl/cert.pem", "system", "credentials"),
        ("/etc/ssl/certs/4a6481c9.0.pem", "system", "credentials"),
        ("/srv/venv/lib/python3.11/site-packages/certifi/cacert.pem", "python", "credentials"),
        ("/etc/ssl/private/host.pem", "credentials", "credentials"),
        ("/srv/tls/host.pem", "credentials", "credentials"),
        ("/srv/app/__pycache__/m.f-1.py311.nbi", "source", "bytecode"),
        ("/var/lib/libuuid/clock.txt", "cache", "cache"),
        ("/scratch/u/x7_qpr0z/y", "other", "other"),
        ("/scratch/u/ccHt1U7J.cdtor.o", "other", "temporary"),
        ("/home/u/tmpa1b2c3_d", "home", "home"),
        ("/etc/x7_qpr0z", "other", "system"),
        ("/srv/shelf.db-wal", "cache", "cache"),
        ("/home/u/.ssh/x-wal", "credentials", "credentials"),
        ("/var/tmp/x", "other", "temporary"),
        ("/home/u/.cache/torch/kernels/x", "cache", "cache"),
        ("/tmp/torchinductor_root/x", "cache", "cache"),
        ("/home/u/notes.txt", "home", "home"),
        ("/root/.config/app.ini", "dotfile", "dotfile"),
        ("/dev/shm/x", "shm", "shm"),
        ("/dev/shm/torch_12_345_0", "shared", "shared"),
        ("/dev/shm/../shm/sub/torch_1_2_3", "shm", "shm"),
        ("/dev/null", "device", "device"),
        ("/sys/devices/system/cpu/online", "sys", "sys"),
        ("/proc/self/status", "proc", "proc"),
        ("/proc/self/mem", "memory", "memory"),
        ("/proc/1234/environ", "memory", "memory"),
        ("/proc/self/task/7/mem", "memory", "memory"),
        ("/proc/self/fd/../mem", "memory", "memory"),
        # Names that are hostile: the class is that of the place.
        (os.fsdecode(b"/root/.ssh/\xff\xfe\n"), "credentials", "credentials"),
        (os.fsdecode(b"/srv/models/\x1b[2J\xff"), "model", "model"),
        ("/tmp/\n/etc/shadow", "other", "temporary"),
        ("/etc/shadow\n", "credentials", "startup"),
        ("", "other", "other"),
        ("/", "other", "other"),
    ],
)
def test_the_class_of_a_path_is_that_of_its_place(path: str, read: str, written: str) -> None:
    assert (place_read(path, CWD, FOLDER), place_written(path, CWD, FOLDER)) == (read, written)


@pytest.mark.parametrize(
    "path", ["//etc/shadow", "/proc/self/root/etc/shadow", "/proc/1/root/etc/shadow"]
)
def test_another_name_of_a_credential_is_a_credential(path: str) -> None:
    assert place_read(path, CWD, FOLDER) == "credentials"


@given(st.binary().map(os.fsdecode), st.binary(max_size=9).map(os.fsdecode), st.text(max_size=9))
@settings(deadline=None)
def test_any_path_has_a_class(path: str, cwd: str, folder: str) -> None:
    for place in (place_read, place_written):
        assert place(path, cwd, folder).isidentifier()
    assert program(path, cwd).isidentifier()


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/bin/sh", "shell"),
        ("/usr/bin/bash", "shell"),
        ("/usr/local/bin/zsh", "shell"),
        ("../../bin/sh", "shell"),
        ("/usr/bin/gcc", "compiler"),
        ("/usr/lib/gcc/x86_64-linux-gnu/12/cc1plus", "compiler"),
        ("/usr/bin/git", "inquiry"),
        ("/sbin/ldconfig", "inquiry"),
        ("/usr/bin/curl", "fetcher"),
        ("/opt/conda/bin/curl", "fetcher"),
        ("/home/u/miniconda3/envs/a/bin/git", "inquiry"),
        ("/usr/bin/python3.11", "python"),
        ("/srv/venv/bin/python", "python"),
        ("/usr/bin/true", "other"),
        ("/tmp/git", "other"),
        ("/tmp/bin/git", "other"),
        ("/usr/bin/../../tmp/git", "other"),
        ("git", "other"),
        ("/usr/bin/pythonx", "other"),
        ("", "other"),
    ],
)
def test_a_program_has_its_names_class_only_among_the_systems_binaries(
    path: str, expected: str
) -> None:
    assert program(path, CWD) == expected


def test_a_dropped_file_named_python_is_no_interpreter() -> None:
    assert program("/tmp/python3", CWD) == "other"


# ---------------------------------------------------------------------------------------- addresses


def internet(host: str, port: int = 80) -> bytes:
    """A ``sockaddr_in`` or ``sockaddr_in6``."""
    address = ipaddress.ip_address(host)
    if address.version == 4:
        return struct.pack("<H", socket.AF_INET) + struct.pack(">H", port) + address.packed
    head = struct.pack("<H", socket.AF_INET6) + struct.pack(">HI", port, 0)
    return head + address.packed + bytes(4)


def unix(path: bytes) -> bytes:
    """A ``sockaddr_un``."""
    return struct.pack("<H", socket.AF_UNIX) + path


@pytest.mark.parametrize(
    ("raw", "kind", "shown"),
    [
        (internet("127.0.0.1"), "loopback", "127.0.0.1:80"),
        (internet("127.8.9.10", 65535), "loopback", "127.8.9.10:65535"),
        (internet("0.0.0.0", 0), "any", "0.0.0.0:0"),
        (internet("10.1.2.3"), "private", "10.1.2.3:80"),
        (internet("192.168.0.1"), "private", "192.168.0.1:80"),
        (internet("169.254.169.254"), "private", "169.254.169.254:80"),
        (internet("8.8.8.8", 53), "public", "8.8.8.8:53"),
        (internet("::1"), "loopback", "[::1]:80"),
        (internet("::"), "any", "[::]:80"),
        (internet("fd00::1"), "private", "[fd00::1]:80"),
        (internet("fe80::1"), "private", "[fe80::1]:80"),
        (internet("2001:4860:4860::8888"), "public", "[2001:4860:4860::8888]:80"),
        (internet("::ffff:127.0.0.1"), "loopback", "127.0.0.1:80"),
        (internet("::ffff:10.0.0.1"), "private", "10.0.0.1:80"),
        (internet("::ffff:8.8.8.8"), "public", "8.8.8.8:80"),
        (internet("8.8.8.8") + bytes(8), "public", "8.8.8.8:80"),
        (unix(b"/run/nscd/socket\0rest"), "unix_system", "unix:/run/nscd/socket"),
        (unix(b"/dev/log"), "unix_system", "unix:/dev/log"),
        (
            unix(b"/tmp/pymp-1/listener-ab_c12de"),
            "unix_queue",
            "unix:/tmp/pymp-1/listener-ab_c12de",
        ),
        (unix(b"/run/docker.sock"), "unix", "unix:/run/docker.sock"),
        (unix(b"\0abstract\0\0"), "unix", "unix:@abstract"),
        (unix(b"\0/run/nscd/socket"), "unix", "unix:@/run/nscd/socket"),
        (unix(b"\xff\n"), "unix", "unix:\udcff\n"),
        (unix(b""), "unix", "unix:"),
        (struct.pack("<H", socket.AF_NETLINK) + bytes(10), "netlink", "netlink"),
        (bytes(16), "none", "no address"),
        (b"", "none", "no address"),
        (b"\2", "none", "no address"),
        (internet("8.8.8.8")[:7], "family", "address family 2"),
        (internet("::1")[:23], "family", "address family 10"),
        (struct.pack("<H", 40) + bytes(14), "family", "address family 40"),
    ],
)
def test_the_scope_of_an_address(raw: bytes, kind: str, shown: str) -> None:
    assert scope(raw) == (kind, shown)


def test_a_detour_by_a_systems_socket_leads_where_it_leads() -> None:
    assert scope(unix(b"/run/systemd/journal/../../docker.sock"))[0] == "unix"


@given(
    st.sampled_from([0, 1, 2, 10, 16, 17]) | st.integers(0, 65535),
    st.binary(max_size=130),
    st.integers(0, 2),
)
@settings(deadline=None)
def test_any_address_has_a_scope(family: int, rest: bytes, cut: int) -> None:
    raw = struct.pack("<H", family) + rest
    kind, shown = scope(raw[: len(raw) - cut])
    assert kind.isidentifier()
    assert shown


# --------------------------------------------------------------------------------------------- acts


def act(kind: Kind = Kind.CALL, call: str = "", **parts: Any) -> Act:
    """An act; what is not given is nothing."""
    nothing: dict[str, Any] = {
        "time": 0,
        "tid": 7,
        "inside": True,
        "descendant": False,
        "after": False,
        "ret": 0,
        "args": (0, 0, 0),
        "text": "",
        "second": "",
        "raw": b"",
        "odd": False,
    }
    return Act(kind=kind, call=call, **(nothing | parts))


def a_load(**parts: Any) -> Load:
    """A load of a pickle."""
    given: dict[str, Any] = {
        "id": 1,
        "begin": 0,
        "format": "pickle",
        "cwd": CWD,
        "path": f"{FOLDER}/m.pkl",
    }
    return Load(**(given | parts))


KNOWN = Classifier({("numpy", "ndarray"), ("mine", "Model"), ("torch._utils", "_rebuild")})


@pytest.mark.parametrize(
    ("module", "name", "expected"),
    [
        ("numpy", "ndarray", None),
        ("mine", "Model", None),
        ("numpy", "fromfile", "global.library"),
        ("numpy.lib.npyio", "load", "global.library"),
        ("mine", "Other", "global.library"),
        ("numpy", "os.system", "global.dotted"),
        ("collections", "OrderedDict", "global.standard"),
        ("collections", "abc.sys", "global.dotted"),
        ("collections.abc", "Mapping", "global.standard"),
        ("os", "system", "global.capable"),
        ("os.path", "join", "global.capable"),
        ("posix", "system", "global.capable"),
        ("builtins", "eval", "global.capable"),
        ("__builtin__", "eval", "global.capable"),
        ("osx", "system", "global.package"),
        ("yours", "Other", "global.package"),
        ("__main__", "Model", "global.package"),
        ("", "", "global.package"),
    ],
)
def test_the_class_of_a_global(module: str, name: str, expected: str | None) -> None:
    resolved = act(Kind.GLOBAL, text=module, second=name)
    assert KNOWN.column(a_load(), resolved) == expected
    assert KNOWN.column(a_load(), act(Kind.GLOBAL, text=module, second=name, odd=True)) == (
        "global.odd"
    )
    assert describe(resolved) == f"{module}.{name}"


AT_FDCWD = 2**64 - 100  # as the kernel widens it
O_WRONLY, O_CREAT, O_TRUNC = os.O_WRONLY, os.O_CREAT, os.O_TRUNC


@pytest.mark.parametrize(
    ("done", "expected"),
    [
        (act(Kind.OPEN, "openat", text="/etc/shadow", ret=3), "read.credentials"),
        (act(Kind.OPEN, "openat", text="/etc/shadow", ret=-13), "seek.credentials"),
        (act(Kind.OPEN, "openat", text="/proc/1/mem", ret=-13), "seek.memory"),
        (act(Kind.OPEN, "openat", text="x.py", ret=-2), None),
        (act(Kind.OPEN, "openat", text="/tmp/x", ret=3, args=(O_WRONLY, 0, 0)), "write.temporary"),
        (act(Kind.OPEN, "openat", text="/tmp/x", ret=3, args=(os.O_RDWR, 0, 0)), "write.temporary"),
        (act(Kind.OPEN, "openat", text="/tmp/x", ret=3, args=(O_CREAT, 0, 0)), "write.temporary"),
        (act(Kind.OPEN, "openat", text="/tmp/x", ret=3, args=(O_TRUNC, 0, 0)), "write.temporary"),
        (act(Kind.OPEN, "openat", text="/tmp/x", ret=-2, args=(O_CREAT, 0, 0)), "write.temporary"),
        (act(call="execve", text="/bin/sh"), "attempt.shell"),
        (act(call="execveat", text="../../bin/sh"), "attempt.shell"),
        (act(Kind.EXEC, text="/bin/sh", descendant=True), "child.execute.shell"),
        (act(call="connect", raw=internet("8.8.8.8")), "connect.public"),
        (act(call="bind", raw=internet("0.0.0.0")), "bind.any"),
        (act(call="bind", raw=internet("::1")), "bind.loopback"),
        (act(call="bind", raw=internet("::1", 0)), "bind.chosen"),
        (act(call="bind", raw=internet("0.0.0.0", 0)), "bind.any"),
        (act(call="connect", raw=internet("::1", 0)), "connect.loopback"),
        (act(call="sendto", raw=internet("::1")), "send.loopback"),
        (act(call="sendmmsg", raw=b""), "send.none"),
        (act(call="unlinkat", text="/home/u/x"), "remove.home"),
        (act(call="rmdir", text="/tmp/x"), "remove.temporary"),
        (act(call="rename", text="/tmp/x", second="/etc/cron.d/x"), "rename.startup"),
        (act(call="rename", text="/tmp/x"), "rename.temporary"),
        (act(call="symlink", text="/etc/shadow", second="/tmp/x"), "link.temporary"),
        (act(call="chmod", text="/tmp/x"), "mode.temporary"),
        (act(call="truncate", text="/etc/hosts"), "write.system"),
        (act(call="mkdir", text="sub"), "folder.other"),
        (act(call="mprotect"), "map.protect"),
        (act(call="mmap", args=(0xFFFFFFFF, 0, 0)), "map.anonymous"),
        (act(call="mmap", args=(2**64 - 1, 0, 0)), "map.anonymous"),
        (act(call="mmap", args=(9, 0, 0)), "map.unknown"),
        (act(call="prctl", args=(15, 0, 0)), "call.prctl_name"),
        (act(call="prctl", args=(38, 0, 0)), "call.prctl_other"),
        (act(call="ptrace"), "call.ptrace"),
        (act(Kind.BIRTH, args=(9, 0x00010000, 0)), "birth.thread"),
        (act(Kind.BIRTH, args=(9, 17, 0)), "birth.process"),
        (act(Kind.BIRTH, args=(9, 17, 0), descendant=True), "child.birth.process"),
        (act(Kind.EXEC, text="/bin/sh"), "execute.shell"),
    ],
    ids=lambda value: value.call or value.kind.name if isinstance(value, Act) else value,
)
def test_the_column_of_an_act(done: Act, expected: str | None) -> None:
    assert KNOWN.column(a_load(), done) == expected
    assert describe(done)


def test_what_is_mapped_as_code_is_named_by_the_descriptor_it_was_opened_with() -> None:
    for path, expected in (
        ("/usr/lib/libm.so.6", "map.system"),
        ("/venv/lib/python3.11/site-packages/a.so", "map.python"),
        ("/srv/app/evil.so", "map.dropped"),
        ("/tmp/evil.bin", "map.other"),
    ):
        load = a_load()
        KNOWN.column(load, act(Kind.OPEN, "openat", text=path, ret=5))
        mapped = act(call="mmap", args=(5, 0, 0))
        assert KNOWN.column(load, mapped) == expected
        assert KNOWN.column(load, act(call="mmap", args=(6, 0, 0))) == "map.unknown"


def test_a_path_below_a_folders_descriptor_lies_in_that_folder() -> None:
    load = a_load()
    KNOWN.column(load, act(Kind.OPEN, "openat", text="../../etc", ret=5, args=(0, 0, AT_FDCWD)))
    for done, expected in (
        (act(Kind.OPEN, "openat", text="shadow", ret=6, args=(0, 0, 5)), "read.credentials"),
        (act(Kind.OPEN, "openat", text="shadow", ret=-13, args=(0, 0, 5)), "seek.credentials"),
        (act(Kind.OPEN, "openat", text="cron.d/x", ret=6, args=(1, 0, 5)), "write.startup"),
        (act(Kind.OPEN, "openat", text="/srv/models/x", ret=6, args=(0, 0, 5)), "read.model"),
        (act(Kind.OPEN, "openat", text="shadow", ret=6, args=(0, 0, AT_FDCWD)), "read.other"),
        (act(call="unlinkat", text="cron.d/x", args=(5, 0, 0)), "remove.startup"),
        (act(call="renameat", text="x", second="cron.d/x", args=(9, 0, 5)), "rename.startup"),
        (act(call="symlinkat", text="/tmp/x", second="cron.d/x", args=(0, 5, 0)), "link.startup"),
    ):
        assert KNOWN.column(load, done) == expected, done


def test_after_the_span_ordinary_reading_tells_nothing_and_the_rest_still_does() -> None:
    def opened(path: str) -> Act:
        return act(Kind.OPEN, "openat", text=path, ret=3, after=True, descendant=True)

    assert KNOWN.column(a_load(), opened("/usr/lib/python3.11/os.py")) is None
    assert KNOWN.column(a_load(), opened("/etc/shadow")) == "child.read.credentials"
    assert KNOWN.column(a_load(), act(Kind.EXEC, text="/bin/sh", after=True)) == "execute.shell"


# --------------------------------------------------------------------------------------------- rows


@pytest.mark.parametrize(
    ("column", "context", "mild"),
    [
        ("format.pickle", True, True),
        ("calls.read", True, True),
        ("calls.openat", True, True),
        ("calls.futex", False, True),
        ("read.python", True, True),
        ("read.model", False, True),
        ("child.read.python", False, True),
        ("global.package", False, True),
        ("birth.thread", False, True),
        ("write.bytecode", False, True),
        ("connect.unix_system", False, True),
        ("map.python", False, True),
        ("global.capable", False, False),
        ("global.dotted", False, False),
        ("global.odd", False, False),
        ("read.credentials", False, False),
        ("read.memory", False, False),
        ("seek.credentials", False, False),
        ("write.temporary", False, False),
        ("write.startup", False, False),
        ("birth.process", False, False),
        ("execute.python", False, False),
        ("child.execute.shell", False, False),
        ("connect.loopback", False, False),
        ("connect.unix", False, False),
        ("map.anonymous", False, False),
        ("map.dropped", False, False),
        ("call.ptrace", False, False),
        ("call.prctl_other", False, False),
        ("read.pythonic", False, False),
        ("x.read.python", False, False),
    ],
)
def test_which_columns_tell_the_kind_of_load_and_which_are_weak_evidence(
    column: str, context: bool, mild: bool
) -> None:
    assert (is_context(column), is_mild(column)) == (context, mild)


@pytest.mark.parametrize("column", ["birth.process", "execute.inquiry", "child.execute.inquiry"])
def test_asking_the_machine_what_it_is_is_usual(column: str) -> None:
    assert is_usual(column)
    assert not is_mild(column)
    assert not is_usual(column.replace("process", "thread").replace("inquiry", "shell"))


NUMBERS = syscalls.numbers("x86_64")


def builder(window: int = SECOND) -> RowBuilder:
    """A builder of rows for recordings of x86_64."""
    return RowBuilder(KNOWN, syscalls.names("x86_64"), window)


def call_of(time: int, name: str = "ptrace", **parts: Any) -> Act:
    """A call at a time."""
    return act(call=name, time=time, **parts)


def count(load: Load, name: str, calls: int, bank: Bank = Bank.OUTSIDE) -> None:
    """What the kernel's counters say now: like there, a new array each time."""
    load.counters = load.counters.copy()
    load.counters[bank, NUMBERS[name]] = calls


def test_a_short_load_has_one_row_of_all_it_did() -> None:
    rows, load = builder(), a_load()
    count(load, "read", 5)
    count(load, "lseek", 2, Bank.WITHIN)
    count(load, "getpid", 9, Bank.CHILDREN)
    rows.add(load, [call_of(10), call_of(20), act(Kind.GLOBAL, text="os", second="system")])
    assert rows.build(load, SECOND) == [
        Row(
            "whole",
            {
                "format.pickle": 1,
                "calls.read": 5,
                "calls.lseek": 2,
                "call.ptrace": 2,
                "global.capable": 1,
            },
        )
    ]
    assert total_calls(load) == 16


def test_a_long_load_has_a_second_row_of_its_last_second_alone() -> None:
    rows, load = builder(), a_load()
    for step in range(1, 13):  # a quarter of a second each: one read and one act
        now = step * SECOND // 4
        count(load, "read", step)
        rows.add(load, [call_of(now)])
        whole, *recent = rows.build(load, now)
        assert (whole.counts["calls.read"], whole.counts["call.ptrace"]) == (step, step)
        if step <= 4:
            assert recent == []
        else:
            # Acts have times of their own, and one is just a second old.
            assert recent == [Row("1s", {"format.pickle": 1, "calls.read": 4, "call.ptrace": 5})]
    later = rows.build(load, now + 10 * SECOND)[1]
    assert later == Row("1s", {"format.pickle": 1})


def test_the_window_has_the_length_that_is_set() -> None:
    rows, load = builder(SECOND // 2), a_load()
    rows.add(load, [call_of(0), call_of(SECOND)])
    assert rows.build(load, SECOND)[1] == Row("0.5s", {"format.pickle": 1, "call.ptrace": 1})


def test_calls_that_are_telling_only_by_their_arguments_count_as_acts_alone() -> None:
    rows, load = builder(), a_load()
    for name in ("execve", "unlink", "prctl", "connect", "sendto"):
        count(load, name, 1)
    assert rows.build(load, 0)[0].counts == {"format.pickle": 1, "calls.sendto": 1}


def test_of_a_format_without_code_only_what_an_unpickling_does_counts() -> None:
    rows, load = builder(), a_load(format="npy")
    count(load, "read", 5)
    count(load, "lseek", 2, Bank.WITHIN)
    rows.add(load, [call_of(0, inside=False), call_of(1, "mprotect", inside=True)])
    assert rows.build(load, 2)[0].counts == {"format.npy": 1, "calls.lseek": 2, "map.protect": 1}
    assert set(rows.evidence(load)) == {"map.protect"}


def test_the_evidence_is_the_first_act_of_each_column_until_the_load_is_forgotten() -> None:
    rows, load, other = builder(), a_load(), a_load(id=2)
    first, second, third = call_of(1), call_of(2), call_of(3, "mprotect")
    rows.add(load, [first, second])
    rows.add(load, [third])
    assert rows.evidence(load) == {"call.ptrace": first, "map.protect": third}
    assert rows.columns(load) == {"call.ptrace": 2, "map.protect": 1}
    assert rows.evidence(other) == {}
    rows.forget(load)
    assert rows.evidence(load) == {}
    assert rows.build(load, 4)[0].counts == {"format.pickle": 1}


def test_what_was_counted_long_before_is_not_of_the_window_however_seldom_one_looked() -> None:
    rows, load = builder(), a_load()
    count(load, "read", 100)
    rows.build(load, SECOND // 2)
    count(load, "read", 103)
    assert rows.build(load, 60 * SECOND)[1].counts["calls.read"] == 3
    assert np.array_equal(load.calls().nonzero()[0], [NUMBERS["read"]])
