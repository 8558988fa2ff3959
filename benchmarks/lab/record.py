"""Records every environment: ``sudo .venv/bin/python -m benchmarks.lab.record FOLDER``.

Two recordings each, ``NAME-benign.parquet`` and ``NAME-malicious.parquet``, and the behaviours that
did not take place, ``NAME-absent.txt``. The probe records every load on the host: run it on a quiet
one.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.lab.environments import ENVIRONMENTS, Environment
from benchmarks.lab.perform import ABSENT

KINDS = ("benign", "malicious")


def record(environment: Environment, kind: str, folder: Path, scale: float) -> int:
    """One recording; the exit status."""
    recorded = folder / f"{environment.name}-{kind}.parquet"
    performing = ("-m", "benchmarks.lab.perform", environment.name, kind, "--scale", str(scale))
    command = [sys.executable, "-m", "dynahugd", "record", "-o", str(recorded), "--"]
    done = subprocess.run(
        [*command, *environment.inside, sys.executable, *performing],
        capture_output=True,
        text=True,
    )
    sys.stderr.write(done.stderr)
    if kind == "malicious":
        absent = re.findall(f"^{ABSENT}([a-z0-9_]+)", done.stderr, re.MULTILINE)
        (folder / f"{environment.name}-absent.txt").write_text("\n".join(absent))
    last = done.stdout.splitlines()[-1:] or ["nothing"]
    print(f"{environment.name}: {last[0]}", flush=True)
    return done.returncode


def main() -> int:
    """Record, and say what."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="environments (all)")
    parser.add_argument("--scale", type=float, default=0.1, help="of the benign workload (0.1)")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    failed = 0
    for environment in ENVIRONMENTS:
        if arguments.only and environment.name not in arguments.only:
            continue
        if environment.missing:
            print(f"{environment.name}: {environment.missing}: skipped")
            continue
        started = time.monotonic()
        for kind in KINDS:
            failed += bool(record(environment, kind, arguments.folder, arguments.scale))
        print(f"{environment.name}: {time.monotonic() - started:.0f} s", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
