"""The test laboratory: one table of ways to load a model file, malicious and benign.

`perform` makes a behaviour's files and runs its load in a fresh process. What a payload does is
inert: it stays in the folder it was given and talks to 127.0.0.1 only.
"""

from __future__ import annotations

from .behaviour import Behaviour
from .benign import BENIGN
from .malicious import MALICIOUS
from .performing import NotPerformed, Performed, lacking, make_files, perform

__all__ = [
    "BENIGN",
    "MALICIOUS",
    "TABLE",
    "Behaviour",
    "NotPerformed",
    "Performed",
    "lacking",
    "make_files",
    "perform",
]

TABLE: tuple[Behaviour, ...] = (*BENIGN, *MALICIOUS)
