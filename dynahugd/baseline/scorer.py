"""Scores of rows that come again and again: what loads often is a server with the same models."""

from __future__ import annotations

from collections.abc import Iterable

from dynahugd.baseline.model import Baseline, Score
from dynahugd.features.rows import Row

__all__ = ["Scorer"]

#: Scores that are remembered: a kilobyte each.
_REMEMBERED = 512


class Scorer:
    """Scores rows by one baseline, and the same row once only.

    Parameters
    ----------
    baseline : what to score by.
    """

    def __init__(self, baseline: Baseline) -> None:
        self._baseline = baseline
        self._known: dict[tuple[object, ...], Score] = {}

    def scores(self, rows: Iterable[Row]) -> list[Score]:
        """The score of each row, in their order."""
        # In the order of the row: it is that of reasons which weigh the same.
        keyed = [((row.partial, *row.counts, *row.counts.values()), row) for row in rows]
        new = {key: row for key, row in keyed if key not in self._known}
        if new:
            self._known |= zip(new, self._baseline.scores(list(new.values())), strict=True)
        scores = [self._known[key] for key, _ in keyed]
        while len(self._known) > _REMEMBERED:
            del self._known[next(iter(self._known))]  # the oldest one
        return scores
