"""What several families make their files and their loading programs with."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.behaviours.behaviour import Behaviour
from tests.behaviours.libraries import library
from tests.behaviours.pickles import LOAD, LOAD_AND_TELL, Call, model, pickled, source

__all__ = [
    "REQUESTS",
    "SHELL",
    "TELL",
    "WRITE",
    "Maker",
    "accepting",
    "payload",
    "serving",
    "telling",
    "torch_file",
    "url",
    "with_files",
]

Maker = Callable[[Path], Path]

#: The two plainest payloads: one executes a shell, the other makes a file.
SHELL = Call(os.system, "echo hello > fired")
WRITE = source("with open('fired', 'w') as file: file.write('hello')")

#: File in the behaviour's folder with what the server was asked for.
REQUESTS = "requests.txt"

#: Ends a loading program: what the payload left in memory, and nothing of the model.
TELL = "\nimport os\n\nprint(os.environ.get('FIRED'))\n"

# A process of its own: what the server does shall not count as the load's.
_SERVE = f"""\
import os
import subprocess
import sys

command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"]
with open("{REQUESTS}", "wb") as log:
    server = subprocess.Popen(
        command + ["--directory", "served"], stdout=subprocess.PIPE, stderr=log
    )
os.environ["SERVER_PORT"] = server.stdout.readline().split()[5].decode()
try:
"""

_STOP_SERVING = """\
finally:
    server.terminate()
    server.wait()
    server.stdout.close()
"""


def serving(load: str = LOAD) -> str:
    """A loading program during which the folder ``served`` is served by HTTP on 127.0.0.1."""
    return _SERVE + textwrap.indent(load, "    ") + _STOP_SERVING


def url(name: str) -> Call:
    """Where `serving` serves a file."""
    return Call(str.format, "http://127.0.0.1:{}/" + name, Call(os.getenv, "SERVER_PORT"))


def accepting(path: str) -> str:
    """A loading program that owns a Unix socket, and prints what the load sent to it."""
    return f"""\
import os
import pickle
import socket
import sys

os.makedirs(os.path.dirname("{path}"))
with socket.socket(socket.AF_UNIX) as door:
    door.bind("{path}")
    door.listen(1)
    door.settimeout(2)
    with open(sys.argv[1], "rb") as file:
        model = pickle.load(file)
    print(door.accept()[0].recv(4096).decode())
"""


def telling(before: str = "", after: str = "") -> str:
    """`LOAD_AND_TELL` with something before it, or between the load and the telling."""
    tell = LOAD_AND_TELL.removeprefix(LOAD)
    return before + LOAD + after + tell


def with_files(make: Maker, texts: Mapping[str, str | bytes]) -> Maker:
    """The same maker, after it has written other files: path to content."""

    def make_all(folder: Path) -> Path:
        for name, content in texts.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
            # netrc refuses files that others may read; scripts are executed.
            path.chmod(0o700 if path.read_bytes().startswith(b"#!") else 0o600)
        return make(folder)

    return make_all


def payload(
    name: str,
    shows: str,
    notes: object,
    fired: Callable[[Path], bool],
    loader: str = LOAD,
    after: float = 0.0,
    exits: int = 0,
    files: Mapping[str, str | bytes] | None = None,
    needs: tuple[str, ...] = (),
) -> Behaviour:
    """A row whose file is a pickle that carries `notes`, with other `files` beside it."""
    make = with_files(pickled(model(notes)), files or {})
    return Behaviour(
        name, True, shows, loader, make, fired=fired, after=after, exits=exits, needs=needs
    )


def torch_file(notes: Callable[[], object], name: str = "model.pt", zipped: bool = True) -> Maker:
    """A maker of a torch checkpoint that carries `notes`, which may need torch to be told."""

    def make(folder: Path) -> Path:
        torch = library("torch")
        path = folder / name
        value = {"layer.weight": torch.arange(256.0), "notes": notes()}
        torch.save(value, path, _use_new_zipfile_serialization=zipped)
        return path

    return make
