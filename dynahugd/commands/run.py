"""``dynahugd run``: watch every load on this host."""

from __future__ import annotations

import argparse

from dynahugd.commands.options import (
    add_config,
    add_probe,
    choose_baseline,
    config_from,
    require_root,
)

HELP = "watch every model load on this host and alert when one is unlike benign loads"
EXAMPLES = """\
examples:
  dynahugd run
  dynahugd run --alert-log /var/log/dynahugd/alerts.jsonl --listen 127.0.0.1:9797
  dynahugd run --loader bcc --json | jq 'select(.verdict == "anomalous")'

It runs in the foreground until SIGTERM or SIGINT. Exit status: 0 stopped by a signal, 1 it could
not start or go on, 2 wrong usage."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_config(parser)
    add_probe(parser)
    parser.add_argument(
        "--listen", metavar="HOST:PORT", help="default: 127.0.0.1:9797; '' for none"
    )
    parser.add_argument(
        "--alert-log", metavar="FILE", help="append each alert as a JSON line, and its last word"
    )
    parser.add_argument(
        "--learn", metavar="FILE", help="learn from this host's loads, into FILE (default: not)"
    )
    parser.add_argument("--json", action="store_true", help="print verdicts as JSON lines")


def run(arguments: argparse.Namespace) -> int:
    """Run the daemon."""
    config = config_from(arguments)
    require_root()
    from dynahugd.daemon import Daemon, printers

    baseline, source = choose_baseline(config.daemon.baseline)
    say, show = printers(arguments.json or config.daemon.log_format == "json")
    Daemon(config, baseline, source, say, show).run()
    return 0
