"""Benign loads: every kind of file, every honest way to read it.

Gathered from `checkpoints` and `arrays` (what is loaded), `importing` (what a pickle imports on
the way), `programs` (threads and processes) and `neighbours` (what else the program does).
"""

from __future__ import annotations

from .arrays import ARRAYS
from .behaviour import Behaviour
from .checkpoints import TORCH
from .importing import IMPORTING
from .neighbours import NEIGHBOURS
from .pickles import LOAD, model, pickled
from .programs import PROGRAMS

__all__ = ["BENIGN"]

_PROTOCOLS = tuple(
    Behaviour(
        name=f"pickle_protocol_{protocol}",
        malicious=False,
        shows=f"plain data pickled with protocol {protocol}: no global resolved",
        loader=LOAD,
        make=pickled(model(["text", 2**70, None, True, (1, 2)]), protocol=protocol),
    )
    for protocol in range(6)
)

BENIGN: tuple[Behaviour, ...] = (*_PROTOCOLS, *TORCH, *ARRAYS, *IMPORTING, *PROGRAMS, *NEIGHBOURS)
