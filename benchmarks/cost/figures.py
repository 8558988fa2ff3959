"""Samples of a measurement, what is made of them, and tables of it in Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from textwrap import fill

__all__ = ["Goal", "Ratio", "Row", "Samples", "Section", "Table", "compare", "count", "seconds"]


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio within rounds: median, half of the distance between its quartiles, rounds."""

    median: float
    spread: float
    rounds: int

    def __str__(self) -> str:
        if self.median >= 10:
            return f"{self.median:.0f}x"
        return f"{self.median:.3f}x ±{self.spread:.3f}"


def _spread(values: Sequence[float]) -> float:
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / 2


@dataclass(slots=True)
class Samples:
    """One value for each case, condition and round. A condition may sit out rounds."""

    _values: dict[tuple[str, str], dict[int, float]] = field(default_factory=dict)

    def add(self, case: str, condition: str, turn: int, value: float) -> None:
        """Take in a value of a round."""
        self._values.setdefault((case, condition), {})[turn] = value

    def rounds(self, case: str, condition: str) -> int:
        """Number of values."""
        return len(self._values.get((case, condition), {}))

    def median(self, case: str, condition: str) -> float:
        """Median of the values, of which there is at least one."""
        return statistics.median(self._values[case, condition].values())

    def _pairs(self, case: str, condition: str, base: str) -> list[tuple[float, float]]:
        of, to = self._values[case, condition], self._values[case, base]
        return [(of[turn], to[turn]) for turn in of if turn in to]

    def ratio(self, case: str, condition: str, base: str) -> Ratio:
        """A condition over another, round by round: what drifts from round to round cancels."""
        ratios = [a / b for a, b in self._pairs(case, condition, base)]
        return Ratio(statistics.median(ratios), _spread(ratios), len(ratios))

    def difference(self, case: str, condition: str, base: str) -> float:
        """Median of a condition minus another, round by round."""
        return statistics.median(a - b for a, b in self._pairs(case, condition, base))


def _scaled(value: float, units: Sequence[tuple[float, str]]) -> str:
    unit, name = next((pair for pair in units if abs(value) >= pair[0]), units[-1])
    shown = value / unit
    digits = 0 if abs(shown) >= 100 else 1 if abs(shown) >= 10 else 2
    return f"{shown:.{digits}f} {name}".rstrip()


def seconds(value: float) -> str:
    """A time with its unit, in three digits."""
    return _scaled(value, ((1, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns")))


def count(value: float) -> str:
    """A number, or a rate, in three digits; a small whole one as it is."""
    if abs(value) < 1000 and value == int(value):
        return str(int(value))
    return _scaled(value, ((1e6, "M"), (1e3, "k"), (1, "")))


@dataclass(frozen=True, slots=True)
class Goal:
    """What a figure should be at most, and what it is.

    Attributes
    ----------
    text, shown : both in words.
    """

    text: str
    figure: float
    most: float
    shown: str

    @property
    def met(self) -> bool:
        """Whether the figure is at most what it should be."""
        return self.figure <= self.most

    @property
    def result(self) -> str:
        """In words."""
        return f"{'met' if self.met else 'missed'}: {self.shown}"


@dataclass(frozen=True, slots=True)
class Row:
    """Cells of a table, the first of which names the row, and the goal that it is about.

    Attributes
    ----------
    values : what the cells say, as numbers in SI units by name, for pictures.
    """

    cells: tuple[str, ...]
    goal: Goal | None = None
    values: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Table:
    """A table; the columns of goals come by themselves.

    Attributes
    ----------
    about : how it was measured, if the section's does not say so.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[Row, ...]
    about: str = ""

    def lines(self) -> Iterator[str]:
        """Markdown."""
        if self.title:
            yield f"### {self.title}\n"
        if self.about:
            yield fill(" ".join(self.about.split()), 100) + "\n"
        yield f"| {' | '.join((*self.header, 'goal', 'result'))} |"
        yield "|" + "---|" * (len(self.header) + 2)
        for row in self.rows:
            goal = row.goal
            tail = (goal.text, goal.result) if goal else ("-", "-")
            yield f"| {' | '.join((*row.cells, *tail))} |"
        yield ""


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the document.

    Attributes
    ----------
    about : how it was measured.
    notes : what was left out, and why; what one has to know of this run.
    """

    title: str
    about: str
    tables: tuple[Table, ...]
    notes: tuple[str, ...] = ()

    def lines(self) -> Iterator[str]:
        """Markdown."""
        yield f"## {self.title}\n"
        yield fill(" ".join(self.about.split()), 100) + "\n"
        for table in self.tables:
            yield from table.lines()
        for note in self.notes:
            yield f"- {note}"
        if self.notes:
            yield ""


def compare(
    samples: Samples,
    cases: Sequence[str],
    conditions: Sequence[str],
    shown: Callable[[float], str] = seconds,
    goal: Callable[[str], Goal | None] = lambda _: None,
) -> tuple[tuple[str, ...], tuple[Row, ...]]:
    """Header and rows: a case a row, a condition a column, the first of which is the base."""
    base, *others = conditions
    rows = []
    for case in cases:
        cells = [case, shown(samples.median(case, base))]
        for condition in others:
            if samples.rounds(case, condition):
                ratio = samples.ratio(case, condition, base)
                cells.append(f"{shown(samples.median(case, condition))} ({ratio})")
            else:
                cells.append("-")
        cells.append(str(samples.rounds(case, base)))
        values = {base: samples.median(case, base)}
        rows.append(Row(tuple(cells), goal(case), values))
    return ("", base, *others, "rounds"), tuple(rows)
