"""``dynahugd replay``: what the daemon would say about a recording."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator

from dynahugd.commands.options import add_config, choose_baseline, config_from

HELP = "judge a recording with the code that the daemon runs; needs no root"
EXAMPLES = """\
examples:
  dynahugd replay loads.parquet
  dynahugd replay loads.parquet --baseline mine.npz --json > verdicts.jsonl

Exit status: 0 judged, whatever the verdicts; 1 the file or the baseline cannot be used, 2 wrong
usage."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("recording", metavar="FILE")
    add_config(parser)
    parser.add_argument("--json", action="store_true", help="print verdicts as JSON lines")


def run(arguments: argparse.Namespace) -> int:
    """Replay a recording."""
    config = config_from(arguments)
    from dynahugd.daemon import rules
    from dynahugd.outputs.clock import WallClock
    from dynahugd.outputs.text import as_object, as_text
    from dynahugd.pipeline import Pipeline
    from dynahugd.probes import syscalls
    from dynahugd.recording import architecture, clock_offset, read
    from dynahugd.verdicts import Stage, Verdict

    baseline, _ = choose_baseline(config.daemon.baseline)
    names = syscalls.names(architecture(arguments.recording))
    pipeline = Pipeline(baseline, names, rules(config))
    clock = WallClock(clock_offset(arguments.recording))
    verdicts: Counter[str] = Counter()

    def show(given: Iterator[Verdict]) -> None:
        for verdict in given:
            if verdict.stage is not Stage.OVER:
                continue
            verdicts[verdict.kind.value] += 1
            if arguments.json:
                print(json.dumps(as_object(verdict, clock)))
            else:
                print(as_text(verdict, clock))

    last = None
    for batch in read(arguments.recording):
        last = batch.time
        show(pipeline.process(batch))
    if last is not None:  # what is open at the end of the recording is as if the daemon stopped
        show(pipeline.stop(last))
    if not arguments.json:
        print(f"{sum(verdicts.values())} loads: {dict(verdicts)}", file=sys.stderr)
    return 0
