"""Interpreters: found, attached once per file, released when the file is gone.

A uprobe belongs to an inode, so one attachment serves every process that maps the file, whatever
its container calls it. Files are reached through the root directory of the process that uses them.
"""

from __future__ import annotations

import ctypes
import glob
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator

from dynahugd.probes.attach import Uprobe, attach_uprobes
from dynahugd.probes.cpython import Runtime
from dynahugd.probes.interpreter import Coverage, Interpreter, look_into, stamp_of
from dynahugd.probes.loaders import Programs

__all__ = ["MAX_CHANGED", "MAX_FILES", "Interpreters"]

_INTERPRETER = re.compile(rb"^(python[0-9.]*[dt]?|libpython[^/]*\.so[^/]*|_pickle\.[^/]*so)$")
_LIBTORCH = re.compile(rb"^libtorch[^/]*\.so")

#: Where distributions put interpreters, below those on the PATH.
_FOLDERS = ("/usr/bin", "/usr/local/bin", "/opt/conda/bin")
_LIBRARIES = ("/lib/python3*/lib-dynload/_pickle*.so", "/lib/libpython3*.so*")

#: ... and the libraries by which other programs embed them.
_EMBEDDED = ("/usr/lib/libpython3*.so*", "/usr/lib/*/libpython3*.so*", "/usr/lib64/libpython3*.so*")

#: More files than any host has; a process that makes interpreters by the thousand is hostile.
MAX_FILES = 512

#: Known files that are looked at again between two calls of ``release_gone``, at most: to change
#: one and run it costs a hostile process less than it costs us.
MAX_CHANGED = 16


def _uprobes(runtime: Runtime) -> list[Uprobe]:
    uprobes: list[Uprobe] = []
    if runtime.load is not None and runtime.find_class is not None:
        uprobes += [
            ("dh_unpickle", runtime.load, False),
            ("dh_unpickled", runtime.load, True),
            (f"dh_find_class{runtime.text_offset}", runtime.find_class, False),
        ]
    if runtime.initialize is not None:
        uprobes.append(("dh_runtime", runtime.initialize, False))
    return uprobes


def mapped_files(tgid: int) -> Iterator[bytes]:
    """Paths of the executable files that a process maps, each once, as it calls them."""
    seen = set()
    try:
        with open(f"/proc/{tgid}/maps", "rb") as maps:
            for line in maps:
                fields = line.split(None, 5)
                if len(fields) == 6 and b"x" in fields[1] and fields[5].startswith(b"/"):
                    path = fields[5].rstrip(b"\n").removesuffix(b" (deleted)")
                    if path not in seen:
                        seen.add(path)
                        yield path
    except OSError:
        return


class Interpreters:
    """All interpreters seen, by (device, inode).

    Parameters
    ----------
    programs : the loaded programs; None only looks and attaches nothing (``dynahugd doctor``).
    report : called with each interpreter when its coverage becomes known or changes.
    """

    def __init__(
        self, programs: Programs | None, report: Callable[[Interpreter], None] = lambda _: None
    ) -> None:
        self._programs = programs
        self._report = report
        self.files: dict[tuple[int, int], Interpreter] = {}
        self._looks = 0
        self._changed = 0

    def cover(self, reach: str, path: str) -> Interpreter | None:
        """Attach to a file if it is new or has changed.

        Parameters
        ----------
        reach : where we can open it, such as ``/proc/12/root/usr/bin/python3.11``.
        path : what its process calls it.
        """
        try:
            status = os.stat(reach)
            known = self._known(status)
            if known is not None and known.stamp == stamp_of(status) is not None:
                return known
            fd = os.open(reach, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except (OSError, ValueError):
            return None
        try:
            if os.pread(fd, 4, 0) != b"\x7fELF":
                return None  # a script of that name
            status = os.fstat(fd)
            stamp = stamp_of(status)
            known = self._known(status)
            if known is not None:
                if self._changed >= MAX_CHANGED:
                    return known
                self._changed += 1
            elif len(self.files) >= MAX_FILES:
                self._forget_released()
                if len(self.files) >= MAX_FILES:
                    return None
            self._looks += 1
            found = look_into(fd, path)
            if known is not None:
                if known.found == found:
                    known.stamp = stamp
                    return known
                known.detach()
            interpreter = self._attach(fd, path, found)
            interpreter.reach, interpreter.stamp = reach, stamp
            self.files[status.st_dev, status.st_ino] = interpreter
            self._report(interpreter)
        except OSError:
            return None  # a folder, or gone
        finally:
            os.close(fd)
        if os.path.basename(path).startswith("python"):
            self._cover_libraries(reach, path)
        return interpreter

    def _known(self, status: os.stat_result) -> Interpreter | None:
        """What is known of a file, unless it was released."""
        known = self.files.get((status.st_dev, status.st_ino))
        return None if known is None or known.coverage is Coverage.RELEASED else known

    def _attach(self, fd: int, path: str, found: Runtime | str) -> Interpreter:
        if isinstance(found, str):
            return Interpreter(path, Coverage.NOT_COVERED, found, found)
        uprobes = _uprobes(found)
        fds: list[int] = []
        if self._programs is not None and uprobes:
            try:
                fds = attach_uprobes(self._programs, f"/proc/self/fd/{fd}", uprobes)
            except OSError as error:
                reason = f"the kernel refuses its probes: {error.strerror}"
                return Interpreter(path, Coverage.NOT_COVERED, found, reason)
        return Interpreter(path, Coverage.ATTACHED, found, fds=fds)

    def consider(self, tgid: int, text: str) -> None:
        """A process shows that it is an ML process by executing or opening ``text`` (or ``''``)."""
        exe = f"/proc/{tgid}/exe"
        try:
            target = os.readlink(exe)
        except OSError:
            target = ""
        if _INTERPRETER.match(os.path.basename(os.fsencode(target))):
            self.cover(exe, target)
        if text and _INTERPRETER.match(os.path.basename(os.fsencode(text))):
            base = "root" if text.startswith("/") else "cwd"
            self.cover(f"/proc/{tgid}/{base}/{text.lstrip('/')}", text)

    def cover_installed(self) -> None:
        """Attach to the interpreters that are installed in the usual places, running or not.

        The first process of an interpreter must not be faster than its examination.
        """
        folders = [*os.get_exec_path(), *_FOLDERS]
        for folder in dict.fromkeys(os.path.realpath(folder) for folder in folders):
            for path in glob.glob(f"{glob.escape(folder)}/python3*"):
                if _INTERPRETER.match(os.path.basename(os.fsencode(path))):
                    path = os.path.realpath(path)
                    self.cover(path, path)
        for pattern in _EMBEDDED:
            for path in glob.glob(pattern):
                path = os.path.realpath(path)
                self.cover(path, path)
        path = os.path.realpath(sys.executable)
        self.cover(path, path)

    def _cover_libraries(self, reach: str, path: str) -> None:
        """The libraries that belong to an executable, before it has had time to load them."""
        prefix = os.path.dirname(os.path.dirname(path))
        root = reach.removesuffix(path) if reach.endswith(path) else ""
        if reach.endswith("/exe"):
            root = reach.removesuffix("/exe") + "/root"
        for pattern in _LIBRARIES:
            for found in glob.glob(glob.escape(root + prefix) + pattern):
                name = os.path.basename(os.fsencode(found))
                if _INTERPRETER.match(name) and not os.path.islink(found):
                    self.cover(found, found.removeprefix(root))

    def scan(self) -> list[int]:
        """Attach to the interpreters of all running processes; the tgids of the ML processes."""
        found = []
        for entry in os.listdir("/proc"):
            if not entry.isdigit() or int(entry) == os.getpid():
                continue
            if self.look(int(entry)):
                found.append(int(entry))
        self._give_back_memory()
        return found

    def look(self, tgid: int) -> bool:
        """Attach to the interpreters that a process maps; whether it is an ML process."""
        is_ml = False
        for path in mapped_files(tgid):
            name = os.path.basename(path)
            if _INTERPRETER.match(name):
                is_ml = True
                text = os.fsdecode(path)
                self.cover(f"/proc/{tgid}/root{text}", text)
            elif _LIBTORCH.match(name):
                is_ml = True
        return is_ml

    def _give_back_memory(self) -> None:
        """Return what looking into files took: of 16 MB, glibc keeps 7."""
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if self._looks and trim is not None:  # other C libraries have none
            trim(ctypes.c_size_t(0))
        self._looks = 0

    def release_gone(self) -> None:
        """Detach from files that no longer exist where they were and that no process runs.

        A probe keeps its inode alive and the file system busy, so a removed container's
        interpreter must not stay attached. What could not be attached is forgotten, too. Also gives
        back the memory that files took that were looked into since the last time.
        """
        self._changed = 0
        self._give_back_memory()
        gone = {
            key: item
            for key, item in self.files.items()
            if item.coverage is not Coverage.RELEASED and not self._exists(key, item)
        }
        if not gone:
            return
        used = self._in_use(set(gone))
        for key, interpreter in gone.items():
            if key not in used:
                self._release(interpreter)

    @staticmethod
    def _exists(key: tuple[int, int], interpreter: Interpreter) -> bool:
        # The service's own view of the host has neither /home nor /tmp; that of process 1 has.
        for path in (interpreter.reach, f"/proc/1/root{interpreter.path}", interpreter.path):
            try:
                status = os.stat(path)
            except (OSError, ValueError):
                continue
            if (status.st_dev, status.st_ino) == key and status.st_nlink:
                return True
        return False

    @staticmethod
    def _in_use(keys: set[tuple[int, int]]) -> set[tuple[int, int]]:
        inodes = {inode: (device, inode) for device, inode in keys}
        used = set()
        for entry in os.listdir("/proc"):
            if not entry.isdigit():
                continue
            try:
                with open(f"/proc/{entry}/maps", "rb") as maps:
                    for line in maps:
                        fields = line.split(None, 5)
                        # The device in maps is the superblock's, not what an overlay shows.
                        if len(fields) > 4 and int(fields[4]) in inodes:
                            used.add(inodes[int(fields[4])])
            except OSError:
                continue
        return used

    def _release(self, interpreter: Interpreter) -> None:
        interpreter.detach()
        interpreter.coverage = Coverage.RELEASED
        self._report(interpreter)

    def _forget_released(self) -> None:
        for key in [k for k, item in self.files.items() if item.coverage is Coverage.RELEASED]:
            del self.files[key]

    def count(self) -> Counter[Coverage]:
        """Number of files by coverage."""
        return Counter(item.coverage for item in self.files.values())

    def close(self) -> None:
        """Detach everything."""
        for interpreter in self.files.values():
            interpreter.detach()
