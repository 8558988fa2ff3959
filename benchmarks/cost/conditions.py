"""Conditions that are measured side by side, round by round."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from benchmarks.cost.figures import Samples
from benchmarks.cost.watching import watching

__all__ = ["AGAIN", "DAEMON", "NOTHING", "Condition", "interleave", "progress"]


def progress(text: str) -> None:
    """Say on standard error what is being done."""
    print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True, slots=True)
class Condition:
    """Something under which a measurement is made.

    Attributes
    ----------
    enter : makes it hold, for the whole host.
    prefix : command that the measured program is started by.
    every : it takes part in the first of so many rounds.
    """

    name: str
    enter: Callable[[], AbstractContextManager[object]] = nullcontext
    prefix: tuple[str, ...] = ()
    every: int = 1


NOTHING = Condition("nothing")
#: The same once more: how far two equal conditions are apart is what the others can be told from.
AGAIN = Condition("nothing, again")
DAEMON = Condition("dynahugd", watching)


def interleave(
    conditions: Sequence[Condition],
    rounds: int,
    measure: Callable[[Condition], Mapping[str, float]],
) -> Samples:
    """Measure all cases under each condition in turn, forwards and backwards by turns.

    A drift of the machine then meets all conditions alike.
    """
    samples = Samples()
    for turn in range(rounds):
        taking_part = [c for c in conditions if turn % c.every == 0]
        for condition in taking_part[:: -1 if turn % 2 else 1]:
            progress(f"  round {turn + 1} of {rounds}: {condition.name}")
            with condition.enter():
                for case, value in measure(condition).items():
                    samples.add(case, condition.name, turn, value)
    return samples
