"""Completion for bash and zsh, from the command line's parser.

``python -m install.completion SHELL`` prints it.
"""

from __future__ import annotations

import argparse
import sys

import shtab

from dynahugd.cli import parser

__all__ = ["completion"]

#: What arguments that are files are called in the usage.
_FILES = {"FILE", "BASELINE", "RECORDING"}


def _name_files(command: argparse.ArgumentParser) -> None:
    for action in command._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                _name_files(sub)
        elif action.metavar in _FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]


def completion(shell: str) -> str:
    """The script for a shell, ``bash`` or ``zsh``."""
    top = parser()
    _name_files(top)
    return str(shtab.complete(top, shell=shell))


if __name__ == "__main__":
    print(completion(sys.argv[1]))
