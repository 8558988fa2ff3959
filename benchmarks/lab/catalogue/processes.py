"""Loads that start other programs, or more of their own."""

from __future__ import annotations

import imaplib
import multiprocessing.context
import multiprocessing.util
import operator
import os
import pty
import pydoc
import shutil
import types
import webbrowser

from benchmarks.lab.catalogue.making import payload, torch_file
from tests.behaviours.behaviour import Behaviour
from tests.behaviours.libraries import library
from tests.behaviours.pickles import LOAD, LOAD_TORCH, Call, exists, holds, source

__all__ = ["PROCESSES"]

_TOUCH = shutil.which("touch") or "/bin/touch"

_FORK_BURST = """\
import os
children = []
for turn in range(20):
    child = os.fork()
    if child == 0:
        file = os.open("forks.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(file, b"x")
        os._exit(0)
    children.append(child)
for child in children:
    os.waitpid(child, 0)
"""

# The fork server is a new Python that imports the module before it serves anything; it ends when
# the loading process does.
_FORK_SERVER = """\
import multiprocessing.forkserver
multiprocessing.forkserver.set_forkserver_preload(["preloaded"])
multiprocessing.forkserver.ensure_running()
"""

_IN_CHILD = "open('fired', 'w').close()"

# Its own browser, found through the environment: none of the host's is ever started.
_LOAD_WITH_BROWSER = (
    "import os\n\nos.environ['BROWSER'] = os.path.abspath('bin/browser')\n"
    "os.environ['TERM'] = 'dumb'\n\n" + LOAD
)


def _asyncio_spawn() -> Call:
    start = library("asyncio.unix_events")._UnixSubprocessTransport._start
    transport = Call(types.SimpleNamespace)
    return Call(start, transport, "echo hello > fired", True, None, None, None, 0)


def _collect_env() -> Call:
    return Call(library("torch.utils.collect_env").run, "echo hello > fired")


PROCESSES: tuple[Behaviour, ...] = (
    payload(
        "popen",
        "pipe, then vfork and execve of sh whose output is read",
        Call(operator.methodcaller("read"), Call(os.popen, "echo hello | tee fired")),
        exists("fired"),
    ),
    payload(
        "posix_spawn",
        "vfork and execve of touch with an empty environment",
        Call(os.posix_spawn, _TOUCH, ["touch", "fired"], {}),
        exists("fired"),
    ),
    payload(
        "spawnv_passfds",
        "fork and execve of touch below the subprocess module, no audit event of it",
        Call(multiprocessing.util.spawnv_passfds, os.fsencode(_TOUCH), (b"touch", b"fired"), ()),
        exists("fired"),
    ),
    payload(
        "pty_spawn",
        "/dev/ptmx opened, fork, setsid, execve of touch on a terminal of its own",
        Call(pty.spawn, ("touch", "fired")),
        exists("fired"),
    ),
    payload(
        "asyncio_spawn",
        "vfork and execve of sh by asyncio's own transport, after the import of asyncio",
        _asyncio_spawn(),
        exists("fired"),
    ),
    payload(
        "imap_stream",
        "pipes and execve of sh, taken for a mail server that hangs up: the load raises",
        Call(imaplib.IMAP4_stream, "echo hello > fired"),
        exists("fired"),
        exits=1,
    ),
    payload(
        "pydoc_pager",
        "a pipe and execve of sh, taken for a pager",
        Call(pydoc.pipepager, "hello", "cat > fired"),
        holds("fired", "hello"),
    ),
    payload(
        "osx_support_output",
        "a temporary file, and execve of sh that writes to it",
        Call(library("_osx_support")._read_output, "touch fired"),
        exists("fired"),
    ),
    payload(
        "browser_command",
        "vfork and execve of touch, taken for a web browser",
        Call(operator.methodcaller("open", "fired"), Call(webbrowser.GenericBrowser, "touch")),
        exists("fired"),
    ),
    payload(
        "browser_popup",
        "browsers looked for along PATH, one executed with an address",
        Call(webbrowser.open, "http://127.0.0.1/advert"),
        holds("fired", "advert"),
        loader=_LOAD_WITH_BROWSER,
        files={"bin/browser": '#!/bin/sh\necho "$1" > fired\n'},
    ),
    payload(
        "fork_child",
        "fork without execve: the child runs the source",
        Call(
            operator.methodcaller("start"),
            Call(multiprocessing.context.ForkProcess, None, exec, None, (_IN_CHILD,)),
        ),
        exists("fired"),
    ),
    payload(
        "fork_server",
        "execve of a Python with -c, which imports a module that lies beside the model",
        source(_FORK_SERVER),
        exists("fired"),
        files={"preloaded.py": "open('fired', 'w').close()\n"},
    ),
    payload(
        "fork_burst",
        "twenty forks in a row, each child writing one byte",
        source(_FORK_BURST),
        holds("forks.txt", "x" * 20),
    ),
    Behaviour(
        name="torch_collect_env",
        malicious=True,
        shows="execve of sh by a helper of torch that describes the host",
        loader=LOAD_TORCH,
        make=torch_file(_collect_env),
        fired=exists("fired"),
        needs=("torch",),
    ),
)
