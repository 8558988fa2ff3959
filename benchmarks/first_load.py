"""The first load after an idle time: is a payload in its first microseconds caught, every time?

    sudo .venv/bin/python -m benchmarks.first_load [--rounds 200] [--from watching|resting]

In each round the probe has stopped counting, so that what a load does first is seen by the probes
that are left. Then a process that was there already (from watching) or a new interpreter (from
resting) loads a file whose payload comes first. A round is right when the load is anomalous and its
act was recorded once; of a benign file, when the load is benign. Times are in ms after the begin of
the load: of the payload's first act, and of the moment from which on every call was counted.

Other ML processes of the host keep the probe from resting, and are waited for.
"""

from __future__ import annotations

import argparse
import math
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from dynahugd.baseline.files import embedded
from dynahugd.config import Config
from dynahugd.daemon import probe_options
from dynahugd.pipeline import Pipeline, Rules
from dynahugd.probes import syscalls
from dynahugd.probes.layout import Loss
from dynahugd.probes.probe import Options, Probe
from dynahugd.probes.stages import ProbeStage
from dynahugd.verdicts import Verdict, VerdictKind

_LOADER = """
import pickle, sys
def load(way, path):
    if way == "message":
        with open(path + ".message", "rb") as file: message = file.read()
        return lambda: pickle.loads(message)
    return lambda: read(path, pickle._Unpickler if way == "python" else pickle.Unpickler)
def read(path, unpickler):
    with open(path, "rb") as file: unpickler(file).load()
for line in sys.stdin:
    work = load(*line.split())
    print(flush=True)
    sys.stdin.readline()
    try: work()
    except OSError: pass
    print(flush=True)
"""

_CONNECT = "import _socket; _socket.socket(1, 1).connect_ex('/dynahugd-nobody')"


@dataclass(frozen=True, slots=True)
class Kind:
    """A way to load, what the file holds, and the call that its payload makes first."""

    name: str
    way: str
    content: bytes
    call: str


def _kinds(victim: Path) -> list[Kind]:
    unlink = b"cposix\nunlink\n(V" + str(victim).encode() + b"\ntR."
    connect = b"cbuiltins\nexec\n(V" + _CONNECT.encode() + b"\ntR."
    benign = pickle.dumps(OrderedDict(weights=list(range(1000))))
    return [
        Kind("a shell, C unpickler", "c", b"cposix\nsystem\n(Vtrue\ntR.", "execve"),
        Kind("a connection, C unpickler", "c", connect, "connect"),
        Kind("a file removed, C unpickler", "c", unlink, "unlink"),
        Kind("a file removed, Python's unpickler", "python", unlink, "unlink"),
        Kind("a file removed, message without a file", "message", unlink, "unlink"),
        Kind("benign, C unpickler", "c", benign, ""),
        Kind("benign, Python's unpickler", "python", benign, ""),
    ]


@dataclass(slots=True)
class Outcome:
    """Rounds of one kind; times in ms after the load's begin."""

    rounds: int = 0
    right: int = 0
    whole: int = 0
    acted: list[float] = field(default_factory=list)
    counted: list[float] = field(default_factory=list)


class Watcher:
    """A probe and the verdicts that the daemon would give."""

    def __init__(self, options: Options) -> None:
        baseline = embedded()
        self.probe = Probe(options)
        names = syscalls.names(syscalls.machine())
        self._pipeline = Pipeline(baseline, names, Rules(linger=1.0), self.probe.finish)
        self.probe.know_globals(baseline.known_globals)
        self.verdicts: deque[Verdict] = deque(maxlen=1000)

    def turn(self) -> None:
        """Once round the daemon's loop."""
        self.verdicts.extend(self._pipeline.process(self.probe.read(0.05), time.monotonic_ns))

    def until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Go round until a condition holds; whether it did in time."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                return False
            self.turn()
        return True

    def last_word(self, tgid: int) -> Verdict | None:
        """The verdict on a process' load that is over."""
        for verdict in self.verdicts:
            if verdict.load.tgid == tgid and verdict.stage.value == "over":
                return verdict
        return None

    def reach(self, stage: ProbeStage) -> None:
        """Go round until the probe is at a stage, and the kernel has let go of what it has left."""
        stages = self.probe.stages
        if not self.until(lambda: stages.stage is stage and not stages.detaching, 600):
            raise SystemExit("other ML processes of this host never leave it alone")


@contextmanager
def _loader() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _LOADER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def _tell(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def _judge(watcher: Watcher, tgid: int, kind: Kind, outcome: Outcome) -> None:
    outcome.rounds += 1
    watcher.until(lambda: watcher.last_word(tgid) is not None, 5 if kind.call else 2)
    verdict = watcher.last_word(tgid)
    if verdict is None:
        outcome.right += not kind.call and kind.way == "message"
        return
    load = verdict.load
    acts = [act for act in load.acts if act.call == kind.call] if kind.call else []
    if kind.call == "execve":
        # The shell executes a program in turn, and the search for one may take several tries.
        acts = [act for act in acts if act.text.endswith("/sh")]
    wanted = VerdictKind.ANOMALOUS if kind.call else VerdictKind.BENIGN
    outcome.right += verdict.kind is wanted and len(acts) == bool(kind.call)
    outcome.whole += not load.uncounted
    if acts:
        outcome.acted.append((acts[0].time - load.begin) / 1e6)
    if load.uncounted:
        since = int(watcher.probe.maps.config["counted"][0])
        outcome.counted.append((since - load.begin) / 1e6)


def _round_from_watching(
    watcher: Watcher, process: subprocess.Popen[str], kind: Kind, path: Path, outcome: Outcome
) -> None:
    assert process.stdout is not None
    _tell(process, f"{kind.way} {path}")
    process.stdout.readline()
    watcher.reach(ProbeStage.WATCHING)
    watcher.verdicts.clear()
    _tell(process, "")
    _judge(watcher, process.pid, kind, outcome)
    process.stdout.readline()


def _round_from_resting(watcher: Watcher, kind: Kind, path: Path, outcome: Outcome) -> None:
    watcher.reach(ProbeStage.RESTING)
    watcher.verdicts.clear()
    with _loader() as process:
        assert process.stdout is not None
        _tell(process, f"{kind.way} {path}\n")
        _judge(watcher, process.pid, kind, outcome)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200, help="of each kind; five are malicious")
    parser.add_argument("--from", dest="stage", choices=("watching", "resting"), default="watching")
    given = parser.parse_args()
    options = probe_options(Config())
    # Not to watch before it rests: to let go of what watching attaches to takes seconds.
    quiet, rest = (math.inf, 0.1) if given.stage == "resting" else (0.1, math.inf)
    watcher = Watcher(replace(options, hop=0.01, quiet=quiet, rest=rest))
    watcher.probe.interpreters.cover_installed()
    with tempfile.TemporaryDirectory() as name:
        victim = Path(name) / "victim"
        kinds = _kinds(victim)
        outcomes = {kind.name: Outcome() for kind in kinds}
        with _loader() as process:
            if given.stage == "resting":
                process.kill()
            for number in range(given.rounds):
                for place, kind in enumerate(kinds):
                    path = Path(name) / f"{number}-{place}.pkl"
                    for file in (path, Path(f"{path}.message")):
                        file.write_bytes(kind.content)
                    victim.touch()
                    if given.stage == "watching":
                        _round_from_watching(watcher, process, kind, path, outcomes[kind.name])
                    else:
                        _round_from_resting(watcher, kind, path, outcomes[kind.name])
                    path.unlink()
                right = sum(outcome.right for outcome in outcomes.values())
                done = sum(outcome.rounds for outcome in outcomes.values())
                print(f"\r{right} of {done} right", end="", file=sys.stderr, flush=True)
        lost = watcher.probe.lost()
        watcher.probe.close()
    print(
        f"| first load, from {given.stage} | right | whole | within 0.1 ms | act | counted from |"
    )
    print("|---|---|---|---|---|---|")
    for title, outcome in outcomes.items():
        soon = sum(time <= 0.1 for time in outcome.acted)
        cells = [title, f"{outcome.right} of {outcome.rounds}", str(outcome.whole), str(soon)]
        cells += [
            f"{statistics.median(times):.2f} (max {max(times):.2f})" if times else "-"
            for times in (outcome.acted, outcome.counted)
        ]
        print(f"| {' | '.join(cells)} |")
    print(f"\nlosses: {', '.join(f'{loss.name.lower()} {lost[loss]}' for loss in Loss)}")


if __name__ == "__main__":
    main()
