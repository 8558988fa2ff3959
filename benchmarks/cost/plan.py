"""What is measured while no ML process lives, as a shell script.

Every Python is an ML process to the daemon, the driver of these benchmarks too. So the driver
becomes a shell (``exec``), which measures with C programs, and the shell becomes the driver again.
In the script, a measurement under a condition of a round prints into ``ROUND/CONDITION/CASE``.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cost.watching import READY, TASKS_MAP, command

__all__ = ["STAGE", "TASKS", "Measurement", "State", "script"]

#: What is not measured but asked: the tasks that the daemon tracks meanwhile, and its stage when
#: the measurements are done that are no ML processes, and when all are.
TASKS, STAGE = "tasks", "stage"

#: The daemon goes down from stage to stage after a second, instead of half a minute.
_CONFIGURATION = "[probe]\nquiet = 1\nrest = 1\n"

_FUNCTIONS = """\
set -u
daemon= server= program=
trap 'exit 1' INT TERM
said() {
    while ! grep -qs -e "$1" "$2"; do
        kill -0 "$3" || exit 1
        sleep 0.02
    done
}
stop() {
    eval "kill \\$$1; wait \\$$1 2> /dev/null; $1="
}
tasks() {
    for id in $(sed -n 's/^map_id:[[:space:]]*//p' "/proc/$1/fdinfo"/* 2> /dev/null | sort -u); do
        bpftool map show id "$id" | grep -q " name $2 " && bpftool -j map dump id "$id"
    done
}
stage() {
    port=$(sed -n 's|.*http://127.0.0.1:\\([0-9]*\\)/metrics.*|\\1|p' "$1")
    bash -c 'exec 3<> "/dev/tcp/127.0.0.1/$0"; echo "GET /metrics HTTP/1.0" >&3; echo >&3
        cat <&3' "$port" | sed -n 's/^dynahugd_probe_stage{stage="\\(.*\\)"} 1.0/\\1/p'
}
note() {
    echo "  round $(($1 + 1)): $2" >&2
    mkdir -p "$1/$2"
    cd "$1/$2"
}
"""


@dataclass(frozen=True, slots=True)
class State:
    """A state of the host.

    Attributes
    ----------
    program : a command that runs meanwhile, from its first output on; empty: none.
    """

    name: str
    daemon: bool
    program: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Measurement:
    """A command that prints figures, and the states in which it is run; empty: in all.

    ``wakes``: it is an ML process itself, so what the daemon has attached changes with it.
    """

    name: str
    command: tuple[str, ...]
    states: frozenset[str] = frozenset()
    wakes: bool = False


def _in_state(
    folder: Path, state: State, turn: int, measurements: Sequence[Measurement], settle: int
) -> Iterator[str]:
    yield f"note {turn} {shlex.quote(state.name)}"
    if state.program:
        yield f"{shlex.join(state.program)} > program 2>&1 &\nprogram=$!\nsaid . program $program"
    if state.daemon:
        options = ("--config", str(folder / "dynahugd.toml"))
        yield f"{shlex.join(command(*options))} > /dev/null 2> daemon &\ndaemon=$!"
        yield f"said {shlex.quote(READY)} daemon $daemon\nsleep {settle}"
    for wakes in (False, True):
        for item in measurements:
            if item.wakes is wakes and (not item.states or state.name in item.states):
                yield f"{shlex.join(item.command)} > {shlex.quote(item.name)} || exit 1"
        if state.daemon:
            yield f"stage daemon >> {STAGE}"
    if state.daemon:
        yield f"tasks $daemon {TASKS_MAP} > {TASKS}\nstop daemon"
    if state.program:
        yield "stop program"
    yield "cd ../.."


def script(
    folder: Path,
    states: Sequence[State],
    measurements: Sequence[Measurement],
    rounds: int,
    settle: int,
    server: tuple[Sequence[str], str],
    then: Sequence[str],
) -> str:
    """A script that measures and becomes another program in the end; what it reads is written.

    Parameters
    ----------
    folder : results go here; it is removed when something fails.
    settle : seconds that a daemon has to go down to its stage: some hops for each step.
    server : a command that runs all the time, and what it says when it is ready.
    then : the command that it becomes.
    """
    place = shlex.quote(str(folder))
    (folder / "dynahugd.toml").write_text(_CONFIGURATION)
    lines = [
        _FUNCTIONS,
        f"trap 'kill $server $daemon $program 2> /dev/null; rm -rf {place}' EXIT",
        f"home=$PWD\ncd {place}",
        f"{shlex.join(server[0])} > server 2>&1 &\nserver=$!",
        f"said {shlex.quote(server[1])} server $server",
    ]
    for turn in range(rounds):
        for state in states[:: -1 if turn % 2 else 1]:
            lines += _in_state(folder, state, turn, measurements, settle)
    lines.append(f'stop server\ntrap - EXIT\ncd "$home"\nexec {shlex.join(then)}')
    return "\n".join(lines) + "\n"
