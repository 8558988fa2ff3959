"""``dynahugd learn``: extend a baseline by the ordinary work of this host's loads."""

from __future__ import annotations

import argparse
import re
import signal
import sys
import time
from typing import TYPE_CHECKING

from dynahugd.commands.options import (
    add_config,
    add_probe,
    choose_baseline,
    config_from,
    require_root,
)
from dynahugd.errors import DynahugError
from dynahugd.escape import escape

if TYPE_CHECKING:
    from dynahugd.baseline.learning import Learner
    from dynahugd.config import Config

HELP = "extend the baseline by the ordinary work of the loads on this host"
EXAMPLES = """\
examples:
  dynahugd learn --for 24h -o /var/lib/dynahugd/host.npz
  dynahugd learn --loads 500 --for 7d -o host.npz    (whichever comes first)
  dynahugd learn monday.parquet tuesday.parquet -o host.npz
  dynahugd baseline diff host.npz                    what it has learned
  dynahugd run --baseline host.npz                   judge by it

It takes 50 loads or more, of three processes or more; a process counts for at most 12 loads. What
decides is never learned: a load that executes, connects, writes or names more than benign loads do
is left out, and is judged as before whatever is learned. A baseline that would alert more often
than the one underneath, or would be deaf where that is not, is not written.

'dynahugd run --learn FILE' goes on learning while it watches.

Exit status: 0 written, 1 not, 2 wrong usage. Ctrl-C and SIGTERM: learn from what there is."""

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _duration(text: str) -> float:
    match = re.fullmatch(r"([0-9]{1,9})([smhd])", text)
    if not match or not int(match[1]):
        raise argparse.ArgumentTypeError("has to be a number and one of s, m, h, d, such as 24h")
    return float(int(match[1]) * _UNITS[match[2]])


def _number(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text) or not 50 <= int(text) <= 2000:
        raise argparse.ArgumentTypeError("has to be a number of loads from 50 to 2000")
    return int(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("recordings", metavar="RECORDING", nargs="*", help="instead of live loads")
    parser.add_argument("-o", "--output", metavar="FILE", required=True, help="the file to write")
    parser.add_argument(
        "--for", dest="duration", type=_duration, metavar="TIME", help="such as 90m, 24h or 7d"
    )
    parser.add_argument("--loads", type=_number, metavar="N", help="so many loads to learn from")
    add_config(parser)
    add_probe(parser)


def run(arguments: argparse.Namespace) -> int:
    """Learn, and write what was learned."""
    config = config_from(arguments)
    live = not arguments.recordings
    if live and not (arguments.duration or arguments.loads):
        raise DynahugError("say how long: --for 24h, --loads 500, or both; or name recordings")
    if live:
        require_root()
    from dynahugd.baseline.learning import Learner, learn

    base, _ = choose_baseline(config.daemon.baseline)
    learner = Learner(base)
    if live:
        _watch(learner, config, arguments.duration or float("inf"), arguments.loads or 2**62)
    else:
        _replay(learner, config, arguments.recordings)
    learned = learn(learner, config.verdict.alpha, arguments.output)
    vectors, before = (
        sum(len(cluster.vectors) for cluster in one.clusters) for one in (learned, base)
    )
    print(
        f"{escape(arguments.output)}: learned from {len(learner.lessons)} loads; left out "
        f"{learner.refused} that showed more than benign loads do; "
        f"{vectors - before} support vectors, {len(learned.columns) - len(base.columns)} columns "
        f"and {len(learned.known_globals) - len(base.known_globals)} globals more"
    )
    return 0


def _watch(learner: Learner, config: Config, seconds: float, loads: int) -> None:
    """Take in the loads of this host for so long, or until there are enough."""
    from dynahugd.daemon import probe_options, rules
    from dynahugd.pipeline import Pipeline
    from dynahugd.probes import syscalls
    from dynahugd.probes.probe import Probe

    stopped: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: stopped.append(number))
    probe = Probe(probe_options(config))
    try:
        names = syscalls.names(syscalls.machine())
        pipeline = Pipeline(learner.base, names, rules(config), probe.finish, learner)
        probe.know_globals(learner.base.known_globals)
        probe.cover_host()
        print("learning from every model load on this host", file=sys.stderr, flush=True)
        end = time.monotonic() + seconds
        shown = 0.0
        while not stopped and learner.taken < loads and time.monotonic() < end:
            for _ in pipeline.process(probe.read(0.25)):
                pass
            if sys.stderr.isatty() and time.monotonic() - shown > 1:
                shown = time.monotonic()
                text = f"\r{learner.taken} loads, {learner.refused} left out"
                print(text, end="", file=sys.stderr, flush=True)
    finally:
        probe.close()


def _replay(learner: Learner, config: Config, recordings: list[str]) -> None:
    """Take in the loads of recordings."""
    from dynahugd.daemon import rules
    from dynahugd.features import Classifier
    from dynahugd.pipeline import rows_of
    from dynahugd.probes import syscalls
    from dynahugd.recording import architecture, read

    classifier = Classifier(learner.base.known_globals)
    for path in recordings:
        names = syscalls.names(architecture(path))
        for load, rows in rows_of(read(path), names, classifier, rules(config)):
            learner.take(load, rows)
