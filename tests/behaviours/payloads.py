"""What payloads are made of: source texts for `exec`, and calls without any source.

The source texts must be understood by every CPython from 3.8 on.
"""

from __future__ import annotations

import ctypes.util
import mmap
import operator
import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

from .behaviour import TCP_PORT, UDP_PORT
from .pickles import Call, model, pickled

__all__ = [
    "BIND",
    "CHMOD",
    "CONNECT",
    "CONNECTION",
    "MASQUERADE",
    "MEMFD",
    "MPROTECT",
    "PYTHON_CHILD",
    "RWX",
    "SEND_UDP",
    "append",
    "delayed",
    "detached",
    "drop_and_dlopen",
    "read",
    "shared_object",
]


def read(path: str) -> Call:
    """The text of a file, ``~`` expanded: without source code, and nothing but the reading."""
    file = Call(open, Call(os.path.expanduser, path))
    return Call(operator.methodcaller("read"), file)


def append(path: str, data: bytes) -> Call:
    """Bytes added to the end of a file, ``~`` expanded."""
    # Unbuffered: the unpickler's memo keeps the file open until the load is over.
    file = Call(open, Call(os.path.expanduser, path), "ab", 0)
    return Call(operator.methodcaller("write", data), file)


CONNECT = f"""\
import os, socket
with socket.create_connection(("127.0.0.1", int(os.environ["{TCP_PORT}"]))) as peer:
    peer.sendall(b"hello")
    peer.recv(16)
"""

SEND_UDP = f"""\
import os, socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
    peer.sendto(b"hello", ("127.0.0.1", int(os.environ["{UDP_PORT}"])))
"""

BIND = """\
import os, socket
with socket.socket() as door:
    door.bind(("127.0.0.1", 0))
    door.listen(1)
    os.environ["FIRED"] = "listened on %s" % door.getsockname()[0]
"""

PYTHON_CHILD = """\
import subprocess, sys
subprocess.run([sys.executable, "-c", "open('fired', 'w').close()"])
"""

CHMOD = """\
import os
with open("dropped.sh", "w") as file:
    file.write("#!/bin/true\\n")
os.chmod("dropped.sh", 0o755)
"""

MPROTECT = """\
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
page = libc.mmap(None, 4096, 3, 0x22, -1, 0)
ctypes.memset(page, 0xC3, 1)
os.environ["FIRED"] = "mprotect gave %d" % libc.mprotect(page, 4096, 5)
"""

MASQUERADE = """\
import ctypes, os
ctypes.CDLL(None).prctl(15, b"kworker/0:1", 0, 0, 0)
"""

MEMFD = f"""\
import os
with open({shutil.which("touch")!r}, "rb") as file:
    program = file.read()
memory = os.memfd_create("x")
os.write(memory, program)
child = os.fork()
if child == 0:
    try:
        os.execve("/proc/self/fd/%d" % memory, ["touch", "fired"], {{}})
    finally:
        os._exit(1)
os.waitpid(child, 0)
"""


def detached(act: str) -> str:
    """Source: an orphan in a session of its own waits a second, then acts."""
    body = "".join(f"            {line}\n" for line in act.splitlines())
    return f"""\
import os, time
child = os.fork()
if child == 0:
    try:
        os.setsid()
        if os.fork() == 0:
            time.sleep(1)
{body}    finally:
        os._exit(0)
os.waitpid(child, 0)
"""


def delayed(act: str) -> str:
    """Source: a thread waits until the load is over, then acts."""
    body = "".join(f"    {line}\n" for line in act.splitlines())
    return f"""\
import threading, time
def act():
    time.sleep(0.7)
{body}threading.Thread(target=act, daemon=True).start()
"""


def shared_object() -> bytes:
    """The smallest library that can be built here; else a copy of one that is installed."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "built.so"
        if compiler is not None:
            subprocess.run(
                [compiler, "-shared", "-nostdlib", "-s", "-x", "c", "-", "-o", str(built)],
                input=b"int answer(void) { return 42; }\n",
                check=True,
            )
            return built.read_bytes()
    soname = ctypes.util.find_library("z") or "libz.so.1"
    for place in ("/lib", "/usr/lib", "/lib64", "/usr/lib64"):
        for found in sorted(Path(place).glob(f"**/{soname}")):
            return found.read_bytes()
    raise FileNotFoundError("neither a C compiler nor libz to make a shared object from")


def drop_and_dlopen(folder: Path) -> Path:
    """Make a model that writes a shared object to the working directory and opens it."""
    file = Call(open, "libdropped.so", "wb", 0)
    drop = Call(operator.methodcaller("write", shared_object()), file)
    return pickled(model([drop, Call(ctypes.CDLL, "./libdropped.so")]))(folder)


RWX = Call(
    mmap.mmap,
    -1,
    4096,
    mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS,
    mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC,
)

#: A connection to the listener without a line of source code.
CONNECTION = Call(socket.create_connection, ("127.0.0.1", Call(os.getenv, TCP_PORT)))
