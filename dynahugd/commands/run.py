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

It runs in the foreground until SIGTERM or SIGINT. At SIGHUP it reads its configuration and its
baseline again, and takes them over if they can be used. Verdicts go to standard output, messages to
standard error. Exit status: 0 stopped by a signal, 1 it could not start or go on, 2 wrong usage."""


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
    parser.add_argument(
        "--web.config.file",
        dest="web_config",
        metavar="FILE",
        help="TLS, client certificates and users of the listener, in Prometheus' format",
    )
    parser.add_argument("--json", action="store_true", help="print verdicts as JSON lines")


def run(arguments: argparse.Namespace) -> int:
    """Run the daemon."""
    config_from(arguments)  # what is wrong with it does not need root to be told
    require_root()
    from dynahugd.daemon import Daemon, Setup
    from dynahugd.outputs.log import open_log

    def configure() -> Setup:
        config = config_from(arguments)
        return Setup(config, *choose_baseline(config.daemon.baseline))

    setup = configure()
    form = "json" if arguments.json else setup.config.daemon.log_format
    Daemon(configure, setup, open_log(form)).run()
    return 0
