"""What one row of the table says: how its file is made, how it is loaded, what must show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["STDERR", "STDOUT", "TCP_PORT", "UDP_PORT", "Behaviour"]

#: Environment variables with the ports of the harness' listener on 127.0.0.1.
TCP_PORT = "LISTENER_TCP_PORT"
UDP_PORT = "LISTENER_UDP_PORT"

#: Where the loading process' output ends up, in the behaviour's folder. Files, because a
#: child that outlives its parent would keep a pipe open.
STDOUT = "stdout.txt"
STDERR = "stderr.txt"


@dataclass(frozen=True, slots=True)
class Behaviour:
    """A way of loading a model file, malicious or benign.

    Every process of a behaviour runs with the behaviour's folder as its working directory and
    ``home`` in it as ``HOME``: relative paths and ``~`` are all that a payload touches.
    """

    #: Unique in the table.
    name: str
    #: Should a load like this raise an alert?
    malicious: bool
    #: One line: what must be visible from outside.
    shows: str
    #: Python source of the loading program; ``sys.argv[1]`` is the path to load.
    loader: str
    #: Writes the model file(s) into an empty folder and returns the path to load.
    make: Callable[[Path], Path]
    #: Python source run before the load, by the loading interpreter in a process of its own, with
    #: the path as ``sys.argv[1]``: for files that depend on the interpreter's version, or on a
    #: module that lies beside them.
    prepare: str = ""
    #: Proof that the payload ran, from the folder alone; malicious behaviours have one.
    fired: Callable[[Path], bool] | None = None
    #: Seconds that the loading process stays alive after the load.
    after: float = 0.0
    #: Libraries that the loading interpreter (and the maker) must have; none: standard library.
    needs: tuple[str, ...] = ()
    #: Exit status expected of the loading process.
    exits: int = 0
    #: The file's bytes are piped into the loading process, which is given no path.
    piped: bool = False
    #: Takes ten seconds or more.
    slow: bool = False
    #: Touches model files without being a load: nothing at all may be reported.
    no_load: bool = False

    def __post_init__(self) -> None:
        if self.malicious != (self.fired is not None):
            raise ValueError(
                f"{self.name}: malicious behaviours, and only they, prove their payload"
            )
