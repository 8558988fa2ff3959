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

__all__ = ["TASKS", "Measurement", "State", "script"]

#: The case that is not measured but asked: the tasks that the daemon tracks meanwhile.
TASKS = "tasks"

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
    """A command that prints figures, and the states in which it is run; empty: in all."""

    name: str
    command: tuple[str, ...]
    states: frozenset[str] = frozenset()


def _in_state(state: State, turn: int, measurements: Sequence[Measurement]) -> Iterator[str]:
    yield f"note {turn} {shlex.quote(state.name)}"
    if state.program:
        yield f"{shlex.join(state.program)} > program 2>&1 &\nprogram=$!\nsaid . program $program"
    if state.daemon:
        yield f"{shlex.join(command())} > /dev/null 2> daemon &\ndaemon=$!"
        yield f"said {shlex.quote(READY)} daemon $daemon"
    for item in measurements:
        if not item.states or state.name in item.states:
            yield f"{shlex.join(item.command)} > {shlex.quote(item.name)} || exit 1"
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
    server: tuple[Sequence[str], str],
    then: Sequence[str],
) -> str:
    """A script that measures and becomes another program in the end.

    Parameters
    ----------
    folder : results go here; it is removed when something fails.
    server : a command that runs all the time, and what it says when it is ready.
    then : the command that it becomes.
    """
    place = shlex.quote(str(folder))
    lines = [
        _FUNCTIONS,
        f"trap 'kill $server $daemon $program 2> /dev/null; rm -rf {place}' EXIT",
        f"home=$PWD\ncd {place}",
        f"{shlex.join(server[0])} > server 2>&1 &\nserver=$!",
        f"said {shlex.quote(server[1])} server $server",
    ]
    for turn in range(rounds):
        for state in states[:: -1 if turn % 2 else 1]:
            lines += _in_state(state, turn, measurements)
    lines.append(f'stop server\ntrap - EXIT\ncd "$home"\nexec {shlex.join(then)}')
    return "\n".join(lines) + "\n"
