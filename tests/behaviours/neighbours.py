"""Benign loads next to work that would be telling within one: programs, sockets, files.

The neighbour is another thread, or the same thread before and after, or with the model file still
open; or the whole program only handles model files as files.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .arrays import hdf5, npz
from .behaviour import TCP_PORT, Behaviour
from .pickles import WEIGHTS, pickled

__all__ = ["NEIGHBOURS"]

#: What a program may do around its loads, and a payload would do within one.
_NOISE = f"""\
import os
import pickle
import socket
import subprocess
import sys


def noise():
    subprocess.run(["true"], check=True)
    with socket.create_connection(("127.0.0.1", int(os.environ["{TCP_PORT}"]))) as peer:
        peer.sendall(b"heartbeat")
        peer.recv(16)
    with open("noise.txt", "a") as log:
        log.write("still here\\n")
    os.unlink("noise.txt")


"""

_NOISY_NEIGHBOUR = (
    _NOISE
    + """\
import threading

done = threading.Event()


def neighbour():
    while not done.is_set():
        noise()


thread = threading.Thread(target=neighbour)
thread.start()
try:
    for _ in range(200):
        with open(sys.argv[1], "rb") as file:
            model = pickle.load(file)
        done.wait(0.002)
finally:
    done.set()
    thread.join()
"""
)

_NOISY_BEFORE_AND_AFTER = (
    _NOISE
    + """\
noise()
with open(sys.argv[1], "rb") as file:
    model = pickle.load(file)
noise()
"""
)

_FORGOTTEN_HANDLE = (
    _NOISE
    + """\
file = open(sys.argv[1], "rb")
model = pickle.load(file)
for _ in range(3):
    noise()
"""
)

_HDF5_KEPT_OPEN = (
    _NOISE
    + """\
import h5py

file = h5py.File(sys.argv[1], "r")
first = file["layer0"][:]
for _ in range(3):
    noise()
"""
)

_NPZ_KEPT_OPEN = (
    _NOISE
    + """\
import numpy

file = numpy.load(sys.argv[1])
first = file["layer0"]
for _ in range(3):
    noise()
"""
)

_HASH = """\
import hashlib
import sys

with open(sys.argv[1], "rb") as file:
    print(hashlib.sha256(file.read()).hexdigest())
"""


# The parent is a Python that opens no model file itself.
_COPY = """\
import subprocess
import sys

subprocess.run(["cp", sys.argv[1], "copy.pkl"], check=True)
"""

_CHECKSUM = """\
import subprocess
import sys

subprocess.run(["sha256sum", sys.argv[1]], check=True)
"""

_ARCHIVE = """\
import os
import subprocess
import sys

name = os.path.basename(sys.argv[1])
subprocess.run(["tar", "-cf", "backup.tar", name], check=True)
os.mkdir("restored")
subprocess.run(["tar", "-xf", "backup.tar", "-C", "restored"], check=True)
"""

_PICKLE = pickled(WEIGHTS)


def _program(
    name: str,
    shows: str,
    loader: str,
    make: Callable[[Path], Path] = _PICKLE,
    needs: tuple[str, ...] = (),
    no_load: bool = False,
) -> Behaviour:
    return Behaviour(name, False, shows, loader, make, needs=needs, no_load=no_load)


NEIGHBOURS: tuple[Behaviour, ...] = (
    _program(
        "noisy_neighbour",
        "another thread executes true, connects to 127.0.0.1, writes and deletes, all the while",
        _NOISY_NEIGHBOUR,
    ),
    _program(
        "noisy_before_and_after",
        "the loading thread does the same just before and just after its load",
        _NOISY_BEFORE_AND_AFTER,
    ),
    _program(
        "forgotten_handle",
        "the same after the load, the model file still open",
        _FORGOTTEN_HANDLE,
    ),
    _program(
        "hdf5_kept_open",
        "the same after a read of an HDF5 file that stays open",
        _HDF5_KEPT_OPEN,
        hdf5,
        needs=("numpy", "h5py"),
    ),
    _program(
        "npz_kept_open",
        "the same after a read of an NpzFile that stays open",
        _NPZ_KEPT_OPEN,
        npz(objects=False),
        needs=("numpy",),
    ),
    _program("hashed_by_python", "a model file read by Python, not unpickled", _HASH),
    _program("copied", "cp of a model file", _COPY, no_load=True),
    _program("checksummed", "sha256sum of a model file", _CHECKSUM, no_load=True),
    _program("archived", "tar of a model file, and back", _ARCHIVE, no_load=True),
)
