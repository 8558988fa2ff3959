"""Performs benign loads of every kind: ``python -m benchmarks.baseline.workload``.

Each kind is the first load of some fresh processes, and one among many in long-lived ones.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.baseline.hosts import Circumstances, Host, installed, make_host
from benchmarks.baseline.programs import (
    arrays,
    compilers,
    crowds,
    ecosystem,
    estimators,
    hubs,
    pickles,
    surroundings,
    tensors,
    users,
)
from benchmarks.baseline.programs.kind import KEEP, Kind, word

__all__ = ["FAMILIES", "Workload", "WorkloadError", "chosen", "main", "scratch"]

FAMILIES: dict[str, tuple[Kind, ...]] = {
    "pickles": pickles.KINDS,
    "users": users.KINDS,
    "crowds": crowds.KINDS,
    "surroundings": surroundings.KINDS,
    "arrays": arrays.KINDS,
    "estimators": estimators.KINDS,
    "tensors": tensors.KINDS,
    "ecosystem": ecosystem.KINDS,
    "hubs": hubs.KINDS,
    "compilers": compilers.KINDS,
}
#: Families that need nothing but the standard library.
_BARE = frozenset({"pickles", "users", "crowds", "surroundings"})
#: Long-lived processes of a family that needs libraries; of the others, one per interpreter.
_LIVES = 3

_RUN = Path(__file__).parent / "programs" / "run.py"
_TIMEOUT = 300.0
#: A tmpfs; not /dev/shm, where nobody keeps models, and whose files are a class of their own.
_MEMORY = Path("/run")
_ON_MEMORY = 0.3

#: Kind, folder or path, seed, times: an item of a plan of ``programs/run.py``.
Item = tuple[str, str, int, int]


class WorkloadError(RuntimeError):
    """A kind could not be performed."""


class Children:
    """The running child processes: all of them end with this one."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def run(self, host: Host, family: str, action: str, items: list[Item]) -> list[Any]:
        """What ``run.py`` says about a plan."""
        plan = host.folder / "plan.json"
        plan.write_text(json.dumps({"family": family, "action": action, "items": items}))
        host.give()
        with self._lock:
            if self._stopped:
                raise WorkloadError("stopped")
            process = subprocess.Popen(
                [host.python, *host.flags, str(_RUN), str(plan)],
                cwd=host.cwd,
                env=host.environment,
                user=host.uid,
                group=host.uid,
                extra_groups=[] if host.uid != os.geteuid() else None,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                start_new_session=True,
            )
            self._running.add(process)
        try:
            out, err = process.communicate(timeout=_TIMEOUT)
        except subprocess.TimeoutExpired:
            names = ", ".join(sorted({item[0] for item in items})[:5])
            raise WorkloadError(f"{names}: not done after {_TIMEOUT:g} s") from None
        finally:
            self._end(process)
        if process.returncode:
            last = err.strip().splitlines()[-1:] or [f"exit status {process.returncode}"]
            message = last[0].removeprefix("RuntimeError: ")
            raise WorkloadError(f"{message} (family {family}, {host.python})")
        answer: list[Any] = json.loads(out.splitlines()[-1])
        return answer

    def _end(self, process: subprocess.Popen[str]) -> None:
        # Trackers of shared memory ignore SIGTERM, and clean up once the others are gone.
        with suppress(ProcessLookupError):
            for _ in range(100):
                os.killpg(process.pid, signal.SIGTERM)
                process.poll()
                time.sleep(0.02)
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        with self._lock:
            self._running.discard(process)

    def stop(self) -> None:
        """End all, and start no more."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGTERM)


@dataclass(slots=True)
class Tally:
    """What has been done of each kind, told when nothing of it is left."""

    left: Counter[str] = field(default_factory=Counter)
    loads: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, results: list[Any]) -> None:
        """Take in what `Children.run` gave for ``load`` or ``both``."""
        for name, loads, seconds in results:
            self.loads[name] += loads
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds
            self.left[name] -= 1
            if not self.left[name]:
                print(f"{name:32} {self.loads[name]:5} loads {self.seconds[name]:7.1f} s")
                sys.stdout.flush()


class Workload:
    """Plans and performs the loads.

    Parameters
    ----------
    kinds : the kinds to perform, by family.
    scale : multiplies how often each is performed; at least once each.
    roots : folders for all files; on disk, and in memory where there is such a place.
    common : circumstances of all processes.
    """

    def __init__(
        self,
        kinds: dict[str, list[Kind]],
        rng: Random,
        scale: float,
        roots: list[Path],
        common: Circumstances | None = None,
    ) -> None:
        self._kinds = kinds
        self._rng = rng
        self._scale = scale
        self._roots = roots
        self._children = Children()
        self._left: deque[tuple[float, Host]] = deque()
        self.tally = Tally()
        self._common = common or Circumstances()
        pythons, self.missing = installed()
        self._pythons = list(self._common.pythons) or pythons
        # The others have no libraries.
        equipped = {sys.executable, *self._common.equipped}
        self._libraries = [python for python in self._pythons if python in equipped]

    def _host(self, python: str) -> Host:
        memory = self._rng.random() < _ON_MEMORY
        root = self._roots[-1 if memory else 0]
        return make_host(root / word(self._rng, 5), python, self._rng, self._common)

    def _times(self, often: int) -> int:
        return max(1, round(often * self._scale)) if often else 0

    def _item(self, kind: Kind, host: Host, times: int) -> Item:
        folder = host.folder / self._rng.choice(("project", "home", "home/.cache"))
        place = folder / f"{kind.name}-{word(self._rng)}"
        self.tally.left[kind.name] += 1
        return kind.name, str(place), self._rng.getrandbits(40), times

    def _fresh(self, family: str) -> Iterator[tuple[str, list[tuple[Host, Item]]]]:
        """For each interpreter, processes that load one file, for another to make before."""
        pythons = self._pythons if family in _BARE else self._libraries
        turns = [kind for kind in self._kinds[family] for _ in range(self._times(kind.fresh))]
        self._rng.shuffle(turns)
        for index, python in enumerate(pythons):
            jobs = []
            for kind in turns[index :: len(pythons)]:
                host = self._host(python)
                again = kind.again > 1 and self._rng.random() < 0.3
                jobs.append((host, self._item(kind, host, 2 if again else 1)))
            if jobs:
                yield python, jobs

    def _warm(self, family: str) -> Iterator[tuple[Host, list[Item]]]:
        """Long-lived processes that make files and load them, in any order."""
        pythons = self._pythons if family in _BARE else self._libraries * _LIVES
        lives: list[tuple[Host, list[Item]]] = [(self._host(python), []) for python in pythons]
        if not lives:
            return
        turn = 0
        for kind in self._kinds[family]:
            left = self._times(kind.warm)
            while left > 0:
                host, items = lives[turn % len(lives)]
                times = min(left, self._rng.randint(1, kind.again))
                items.append(self._item(kind, host, times))
                left, turn = left - times, turn + 1
        for host, items in lives:
            self._rng.shuffle(items)
            yield host, items

    def _make(self, python: str, family: str, jobs: list[tuple[Host, Item]]) -> list[Item]:
        """The files of fresh processes, made by one process; the items to load."""
        paths = self._children.run(
            Host(jobs[0][0].folder, python, (), dict(os.environ), Path("/"), os.geteuid()),
            family,
            "make",
            [item for _, item in jobs],
        )
        return [
            (name, str(path), seed, times)
            for (_, (name, _, seed, times)), path in zip(jobs, paths, strict=True)
        ]

    def _load(self, host: Host, family: str, action: str, items: list[Item]) -> list[Any]:
        try:
            return self._children.run(host, family, action, items)
        finally:
            self._left.append((time.monotonic(), host))

    def _clean(self) -> None:
        while self._left and self._left[0][0] < time.monotonic() - KEEP:
            self._left.popleft()[1].remove()

    def perform(self, processes: int) -> None:
        """Perform everything, so many processes at a time; raises `WorkloadError`."""
        with ThreadPoolExecutor(processes) as pool:
            making: dict[Future[list[Any]], tuple[str, list[Host]]] = {}
            loading: set[Future[list[Any]]] = set()
            for family in self._kinds:
                for python, jobs in self._fresh(family):
                    made = pool.submit(self._make, python, family, jobs)
                    making[made] = family, [host for host, _ in jobs]
            for family in self._kinds:
                for host, items in self._warm(family):
                    loading.add(pool.submit(self._load, host, family, "both", items))
            try:
                while making or loading:
                    wait(loading | making.keys(), return_when=FIRST_COMPLETED)
                    for made in [future for future in making if future.done()]:
                        family, hosts = making.pop(made)
                        for host, item in zip(hosts, made.result(), strict=True):
                            loading.add(pool.submit(self._load, host, family, "load", [item]))
                    for loaded in [future for future in loading if future.done()]:
                        loading.discard(loaded)
                        self.tally.add(loaded.result())
                    self._clean()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                self._children.stop()
                raise


def chosen(only: list[str] | None) -> dict[str, list[Kind]]:
    """The kinds by family; raises `WorkloadError` for a name that is none."""
    names = {kind.name for rows in FAMILIES.values() for kind in rows}
    for name in only or ():
        if name not in names and name not in FAMILIES:
            raise WorkloadError(f"there is no kind {name!r}: --list shows them")
    kinds: dict[str, list[Kind]] = {}
    for family, rows in FAMILIES.items():
        for kind in rows:
            if kind.needs and find_spec(kind.needs) is None:
                print(f"{kind.name} needs {kind.needs}, which is not installed: skipped")
            elif not only or {kind.name, family} & set(only):
                kinds.setdefault(family, []).append(kind)
    return kinds


def scratch(stack: ExitStack) -> list[Path]:
    """Folders for all files, deleted with the stack; on disk, and in memory where there is one."""
    places = [None, _MEMORY] if os.access(_MEMORY, os.W_OK) else [None]
    roots = [
        Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="loads-", dir=place)))
        for place in places
    ]
    for root in roots:
        root.chmod(0o1777)  # one of the processes' users is not ours
    return roots


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.baseline.workload", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of everything random (0)")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the loads (1)")
    parser.add_argument("--only", nargs="+", metavar="KIND", help="kinds or families to perform")
    parser.add_argument("--list", action="store_true", help="list the kinds, and do nothing")
    return parser


def _perform(arguments: argparse.Namespace) -> None:
    kinds = chosen(arguments.only)
    if arguments.list:
        print(f"{'kind':32} {'family':12} {'fresh':>6} {'warm':>5}")
        for family, rows in kinds.items():
            for kind in rows:
                print(f"{kind.name:32} {family:12} {kind.fresh:6} {kind.warm:5}")
        return
    started = time.monotonic()
    with ExitStack() as stack:
        roots = scratch(stack)
        workload = Workload(kinds, Random(arguments.seed), arguments.scale, roots)
        for version in workload.missing:
            print(f"CPython {version} is not installed by pyenv: skipped")
        workload.perform((os.cpu_count() or 1) + 1)
        time.sleep(KEEP)
    loads, seconds = workload.tally.loads, time.monotonic() - started
    print(f"{loads.total()} loads of {len(loads)} kinds in {seconds:.0f} s")


def main() -> int:
    """Command line; exit status 0, or 1 after one sentence about what failed."""
    arguments = _parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("benchmarks.baseline.workload: terminated"))
    try:
        _perform(arguments)
    except WorkloadError as error:
        print(f"benchmarks.baseline.workload: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
