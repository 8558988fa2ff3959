"""Which column of a row an act counts in, and how to say it in words."""

from __future__ import annotations

import os
from collections.abc import Collection

from dynahugd.features.places import place_read, place_written, port, program, scope
from dynahugd.features.stdlib import CAPABLE, STANDARD
from dynahugd.loads import Act, Load
from dynahugd.probes.layout import Kind

__all__ = ["Classifier"]

_O_ACCMODE, _O_CREAT, _O_TRUNC = 3, 0o100, 0o1000
_CLONE_THREAD = 0x00010000
_AT_FDCWD = 0xFFFFFF9C  # -100
_REMOVE = frozenset("unlink unlinkat rmdir".split())
_RENAME = frozenset("rename renameat renameat2".split())
_LINK = frozenset("link linkat symlink symlinkat".split())
_MODE = frozenset("chmod fchmodat fchmodat2 chown lchown fchownat setxattr lsetxattr".split())
_CREATE = frozenset("creat truncate mknod mknodat".split())
_FOLDER = frozenset("mkdir mkdirat".split())
_RELATIVE = frozenset(["unlinkat", "fchmodat", "fchmodat2", "fchownat", "mknodat", "mkdirat"])
_ADDRESSED = frozenset("connect bind sendto sendmsg sendmmsg".split())
_PR_NAMES = {15: "name", 0x53564D41: "name", 4: "dumpable", 1: "deathsig", 22: "seccomp"}

#: Places where reading is ordinary: descendants that outlive the span may do it.
_ORDINARY_READ = frozenset(
    f"read.{place}"
    for place in "python system proc sys device source cache model shm temporary other home "
    "accounts".split()
)


class Classifier:
    """Names the column of each act.

    Parameters
    ----------
    known_globals : pairs (module, name) seen in the baseline's benign loads; their top-level
        packages are known packages.
    """

    def __init__(
        self,
        known_globals: Collection[tuple[str, str]] = frozenset(),
    ) -> None:
        self._globals = known_globals
        self._packages = {module.split(".", 1)[0] for module, _ in known_globals}

    def column(self, load: Load, act: Act) -> str | None:
        """The column that the act counts in; None when it tells nothing here."""
        if act.kind is Kind.GLOBAL:
            return "global.odd" if act.odd else self.global_column(act.text, act.second)
        name = self._act(load, act)
        if name is None or (act.after and name in _ORDINARY_READ):
            return None
        return f"child.{name}" if act.descendant else name

    def global_column(self, module: str, name: str) -> str | None:
        """The column of a global; None for a known one."""
        package = module.split(".", 1)[0]
        if (module, name) in self._globals:
            # How many of these a load names says how much is in it; and one without a file may
            # have named some before it was a load.
            return None
        if package in CAPABLE or module in CAPABLE:
            return "global.capable"
        known = package in STANDARD or package in self._packages
        if known and "." in name:
            return "global.dotted"
        if package in STANDARD:
            return "global.standard"
        return "global.library" if known else "global.package"

    def _act(self, load: Load, act: Act) -> str | None:
        folder = os.path.dirname(load.path)
        if act.kind is Kind.OPEN:
            return _opened(load, act, folder)
        if act.kind is Kind.BIRTH:
            return "birth.thread" if act.args[1] & _CLONE_THREAD else "birth.process"
        if act.kind is Kind.EXEC:
            return f"execute.{program(act.text, load.cwd)}"
        call = act.call
        if call in ("execve", "execveat"):
            # A search along PATH asks for many; what is executed says so itself.
            return f"attempt.{program(act.text, load.cwd)}"
        if call in _ADDRESSED:
            where = scope(act.raw)[0]
            if call == "bind" and where == "loopback" and port(act.raw) == 0:
                where = "chosen"
            return f"{'send' if call.startswith('send') else call}.{where}"
        if call == "mmap":
            return _mapped(load, act, folder)
        if call in ("mprotect", "pkey_mprotect"):
            return "map.protect"
        if call == "prctl":
            return f"call.prctl_{_PR_NAMES.get(act.args[0], 'other')}"
        for calls, verb in (
            (_REMOVE, "remove"),
            (_RENAME, "rename"),
            (_LINK, "link"),
            (_MODE, "mode"),
            (_CREATE, "write"),
            (_FOLDER, "folder"),
        ):
            if call in calls:
                return f"{verb}.{place_written(_target(load, act), load.cwd, folder)}"
        return f"call.{call}"


def _located(load: Load, act: Act, path: str, dirfd: int) -> str:
    """A path that is relative to a folder's descriptor, as far as that folder was seen."""
    dirfd = dirfd & 0xFFFFFFFF
    if path.startswith("/") or dirfd == _AT_FDCWD:
        return path
    return f"{load.files.get((act.tid, dirfd), '/unknown')}/{path}"


def _target(load: Load, act: Act) -> str:
    """The path that a call makes, changes or removes."""
    if act.call in ("symlinkat", "renameat", "renameat2", "linkat"):
        dirfd = act.args[1 if act.call == "symlinkat" else 2]
        return _located(load, act, act.second or act.text, dirfd)
    if act.call in _RELATIVE:
        return _located(load, act, act.text, act.args[0])
    return act.second or act.text


def _opened(load: Load, act: Act, folder: str) -> str | None:
    flags = act.args[0]
    path = _located(load, act, act.text, act.args[2])
    if flags & _O_ACCMODE or flags & (_O_CREAT | _O_TRUNC):
        return f"write.{place_written(path, load.cwd, folder)}"
    place = place_read(path, load.cwd, folder)
    if act.ret < 0:
        return f"seek.{place}" if place in ("credentials", "memory") else None
    load.remember_file(act.tid, act.ret, os.path.join(load.cwd, path))
    return f"read.{place}"


def _mapped(load: Load, act: Act, folder: str) -> str:
    fd = act.args[0] & 0xFFFFFFFF
    if fd >= 0x80000000:
        return "map.anonymous"
    path = load.files.get((act.tid, fd))
    if path is None:
        return "map.unknown"
    place = place_read(path, load.cwd, folder)
    if place == "source":  # .so files that lie neither with Python nor with the system
        place = "dropped"
    return f"map.{place}"


def describe(act: Act) -> str:
    """An act in words, unescaped: escape it before showing it."""
    if act.kind is Kind.GLOBAL:
        return f"{act.text}.{act.second}"
    if act.kind is Kind.BIRTH:
        return f"{'thread' if act.args[1] & _CLONE_THREAD else 'process'} {act.args[0]}"
    if act.kind is Kind.CALL and act.call in _ADDRESSED:
        return f"{act.call} {scope(act.raw)[1]}"
    words = [act.call or act.kind.name.lower(), act.text, act.second]
    if act.kind is Kind.CALL and not act.text:
        words.append(" ".join(hex(value) for value in act.args))
    if act.kind is Kind.OPEN and act.ret < 0:
        words.append(f"({os.strerror(-act.ret)})")
    return " ".join(word for word in words if word)
