"""Where loads happen: the interpreters of this machine, and the circumstances of a process."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

__all__ = ["NOBODY", "Circumstances", "Host", "cold", "installed", "make_host"]

#: A plain user that every host has.
NOBODY = 65534

#: Share of the processes whose interpreter has no bytecode cached: of a container image that was
#: built without, or the first to run after an installation. The virtual environment's copies are
#: large, and its libraries take long to compile.
_COLD, _COLD_LIBRARIES = 0.2, 0.07

#: CPython versions that dynahugd covers.
_VERSIONS = [f"3.{minor}" for minor in range(8, 14)]


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What all processes of a workload have in common; chance decides the rest.

    Attributes
    ----------
    pythons : interpreters to load with; empty: all that are installed.
    equipped : those of them that have torch and what goes with it, besides this one.
    environment : variables on top of each process' own.
    cold : whether no interpreter has bytecode cached; None: some have not.
    """

    pythons: tuple[str, ...] = ()
    equipped: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    cold: bool | None = None


@dataclass(frozen=True, slots=True)
class Host:
    """Circumstances of one process, all below `folder`."""

    folder: Path
    python: str
    flags: tuple[str, ...]
    environment: dict[str, str]
    cwd: Path
    uid: int

    def give(self) -> None:
        """Let the user of the process own what has been made for it."""
        if self.uid != os.geteuid():
            for place, _, files in os.walk(self.folder):
                for path in (place, *(os.path.join(place, name) for name in files)):
                    os.chown(path, self.uid, self.uid)

    def remove(self) -> None:
        """Delete what the process was given and what it has left."""
        shutil.rmtree(self.folder)


def installed() -> tuple[list[str], list[str]]:
    """This interpreter and one of pyenv's for each version; the versions that are not there."""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found: dict[str, str] = {}
    for path in sorted(root.glob("3.*/bin/python")):
        if version := re.match(r"3\.\d+", path.parts[-3]):
            found[version[0]] = str(path)
    pythons = [sys.executable, *(found[version] for version in _VERSIONS if version in found)]
    return pythons, [version for version in _VERSIONS if version not in found]


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)


def cold(python: str, folder: Path) -> str:
    """A copy of an interpreter's installation in which nothing is compiled yet; its interpreter.

    By hard links where the file system is the same: do not change the files.
    """
    prefix = Path(python).parent.parent
    copy = folder / prefix.name.lstrip(".")
    ignore = shutil.ignore_patterns("__pycache__", "test")
    shutil.copytree(prefix, copy, symlinks=True, ignore=ignore, copy_function=_link)
    return str(copy / "bin" / Path(python).name)


def make_host(folder: Path, python: str, rng: Random, common: Circumstances) -> Host:
    """Choose circumstances and make the folders that they need."""
    bare = python != sys.executable
    home, scratch = folder / "home", folder / "tmp"
    for place in (home / ".cache", scratch):
        place.mkdir(parents=True)
    environment = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(home)}
    environment["TMPDIR"] = str(scratch if rng.random() < 0.5 else folder.parent)
    environment["LANG"] = rng.choice(("C.UTF-8", "C", "en_US.UTF-8"))
    for name, value, share in (
        ("OMP_NUM_THREADS", "1", 0.3),
        ("MALLOC_ARENA_MAX", "2", 0.2),
        ("PYTHONDONTWRITEBYTECODE", "1", 0.3),
        ("PYTHONUNBUFFERED", "1", 0.2),
        ("PYTHONHASHSEED", "0", 0.2),
        ("XDG_CACHE_HOME", str(home / ".cache"), 0.2),
        ("TZ", "Europe/Berlin", 0.2),
    ):
        if rng.random() < share:
            environment[name] = value
    site = ("-S",) if bare and python not in common.equipped else ()
    flags = rng.choice(((), (), (), ("-B",), ("-u",), ("-I",), ("-s",), site))
    # pyenv's interpreters lie in a home that nobody else may enter.
    plain = os.geteuid() == 0 and not bare and rng.random() < 0.3
    share = _COLD if bare else _COLD_LIBRARIES
    near = Path(python).parent.stat().st_dev == folder.stat().st_dev
    is_cold = rng.random() < share and near if common.cold is None else common.cold
    if is_cold and not plain:  # a plain user would be given the files, which are the originals' too
        python = cold(python, folder)
    return Host(
        folder=folder,
        python=python,
        flags=flags,
        environment=environment | dict(common.environment),
        cwd=rng.choice((folder, home, Path("/"))),
        uid=NOBODY if plain else os.geteuid(),
    )
