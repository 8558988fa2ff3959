"""The command line."""

from __future__ import annotations

import argparse
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
    given = parser().parse_args(arguments)
    try:
        status: int = COMMANDS[given.command].run(given)
        sys.stdout.flush()
    except DynahugError as error:
        print(f"dynahugd: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read us has gone: nothing more to say, also not at interpreter exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return status
