"""``dynahugd record``: keep what the probes see, to replay it or to train from it."""

from __future__ import annotations

import argparse
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace

from dynahugd.commands.options import add_probe, config_from, require_root
from dynahugd.errors import DynahugError

HELP = "record the loads on this host, or those of one command, to a Parquet file"
EXAMPLES = """\
examples:
  dynahugd record -o loads.parquet -- python3 train.py
  dynahugd record -o today.parquet            (until Ctrl-C)

All loads on the host are recorded while the command runs. Exit status: that of the command; without
one 0; 1 it could not record, 2 wrong usage."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("-o", "--output", metavar="FILE", required=True, help="the file to write")
    parser.add_argument(
        "--config", metavar="FILE", help="default: /etc/dynahugd.toml, if it exists"
    )
    parser.add_argument(
        "--linger", type=float, metavar="S", help="seconds a load's children are followed (30)"
    )
    add_probe(parser)
    parser.add_argument("program", nargs=argparse.REMAINDER, metavar="-- COMMAND...")


def run(arguments: argparse.Namespace) -> int:
    """Record until the command ends, or until a signal."""
    config = config_from(arguments)
    require_root()
    from dynahugd.baseline.model import COMMON
    from dynahugd.daemon import probe_options
    from dynahugd.loads import Tracker
    from dynahugd.probes import syscalls
    from dynahugd.probes.probe import Probe
    from dynahugd.recording import Recorder

    command = arguments.program[1:] if arguments.program[:1] == ["--"] else arguments.program
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    if not command:
        signal.signal(signal.SIGINT, lambda number, frame: stopped.append(number))
    recorder = Recorder(arguments.output)
    # What is to be learned from has to be counted whole.
    probe = Probe(replace(probe_options(config), quiet=math.inf, rest=math.inf))
    loads = records = 0
    # What training will call known has to be so while it is recorded: a load without a file begins
    # with the first global that is not.
    named: Counter[tuple[str, str]] = Counter()
    try:
        probe.cover_host()
        # Only the tracker knows when a load is over and its slot free again.
        tracker = Tracker(
            syscalls.names(syscalls.machine()), int(config.probe.linger * 1e9), probe.finish
        )
        child = None
        if command:
            try:
                child = subprocess.Popen(command)
            except OSError as error:
                raise DynahugError(f"cannot run {command[0]}: {error.strerror}") from error
        shown = time.monotonic()
        finished = None
        while not stopped:
            batch = probe.read(0.25)
            recorder.write(batch)
            records += len(batch.records)
            for update in tracker.update(batch):
                if update.over:
                    loads += 1
                    named.update(update.load.globals())
                    probe.know_globals(
                        pair for pair in update.load.globals() if named[pair] == COMMON
                    )
            now = time.monotonic()
            if now - shown > 1 and sys.stderr.isatty():
                shown = now
                print(f"\r{loads} loads, {records} records", end="", file=sys.stderr, flush=True)
            if child is not None and child.poll() is not None:
                # What it left behind belongs to the recording: descendants, the last records.
                finished = finished or now
                if now - finished > 1 and (not tracker.open or now - finished > 5):
                    break
        lost = {loss.name.lower(): count for loss, count in probe.lost().items() if count}
    finally:
        probe.close()
        recorder.close()
    print(f"{arguments.output}: {loads} loads, {records} records", file=sys.stderr)
    if lost:
        print(f"dynahugd: lost {lost}: the recording has gaps", file=sys.stderr)
    return child.returncode if child is not None and child.returncode >= 0 else os.EX_OK
