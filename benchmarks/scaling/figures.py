"""The numbers that ``python -m benchmarks.cost --figures`` has written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dynahugd.errors import DynahugError

__all__ = ["Figures", "Line"]


@dataclass(frozen=True, slots=True)
class Line:
    """A row of a table: its cells as text, and what they say as numbers in SI units."""

    cells: tuple[str, ...]
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Figures:
    """Rows by section and table, and the machine that they were measured on."""

    machine: str
    tables: Mapping[tuple[str, str], tuple[Line, ...]]

    @classmethod
    def read(cls, file: Path) -> Figures:
        """The figures in a file.

        Raises
        ------
        DynahugError : when it is no such file, with the next step.
        """
        try:
            content = json.loads(file.read_text())
            tables: dict[tuple[str, str], list[Line]] = {}
            for row in content["rows"]:
                line = Line(tuple(row["cells"]), row["values"])
                tables.setdefault((row["section"], row["table"]), []).append(line)
            return cls(content["machine"], {key: tuple(rows) for key, rows in tables.items()})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DynahugError(
                f"{file} has no figures ({error}): write it with 'make bench'"
            ) from error

    def table(self, section: str, title: str = "") -> tuple[Line, ...]:
        """The rows of a table.

        Raises
        ------
        DynahugError : when it was not measured, with the next step.
        """
        try:
            return self.tables[section, title]
        except KeyError as error:
            raise DynahugError(
                f"{section!r} was left out of the figures: measure all with 'make bench'"
            ) from error

    def value(self, section: str, title: str, name: str, *cells: str) -> float:
        """A number of the first row whose cells begin with these."""
        for line in self.table(section, title):
            if line.cells[: len(cells)] == cells:
                return line.values[name]
        raise DynahugError(f"no row {', '.join(cells)!r} in {section!r}: measure again")
