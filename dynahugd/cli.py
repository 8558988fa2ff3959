"""The command line."""

from __future__ import annotations

import argparse
import errno
import os
import sys

from dynahugd import __version__
from dynahugd.commands import COMMANDS
from dynahugd.errors import DynahugError

__all__ = ["main", "parser"]

_EPILOG = """\
examples:
  dynahugd doctor          what this host can do
  dynahugd run             watch, in the foreground
  dynahugd COMMAND --help  options and examples of a command"""


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    top = argparse.ArgumentParser(
        prog="dynahugd",
        description="Watch every model load on this host; alert when one is unlike benign loads.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"dynahugd {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, module in COMMANDS.items():
        sub = commands.add_parser(
            name,
            help=module.HELP,
            description=module.HELP[0].upper() + module.HELP[1:] + ".",
            epilog=module.EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        module.add_arguments(sub)
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run a command; the exit status."""
    try:
        status = _run(arguments)
        if sys.stdout is not None:  # as after >&-
            sys.stdout.flush()
    except DynahugError as error:
        print(f"dynahugd: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ENOSPC):
            raise
        # What is left in the buffer must not be tried again at interpreter exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno == errno.EPIPE:  # whoever read us has gone, and wants no more
            return 0
        print(f"dynahugd: {error.strerror}: make room and try again", file=sys.stderr)
        return 1
    return status


def _run(arguments: list[str] | None) -> int:
    try:
        given = parser().parse_args(arguments)
    except SystemExit as end:  # --help, --version or wrong usage, said already
        return int(end.code or 0)
    status: int = COMMANDS[given.command].run(given)
    return status
