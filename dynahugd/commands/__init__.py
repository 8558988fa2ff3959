"""The commands, one module each: ``HELP``, ``add_arguments`` and ``run``."""

from __future__ import annotations

from types import ModuleType

from dynahugd.commands import baseline, doctor, learn, record, replay, run, train

__all__ = ["COMMANDS"]

COMMANDS: dict[str, ModuleType] = {
    "run": run,
    "doctor": doctor,
    "record": record,
    "replay": replay,
    "train": train,
    "learn": learn,
    "baseline": baseline,
}
