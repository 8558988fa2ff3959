"""Makes and loads by a plan: ``python run.py PLAN``; run by path, so that ``-I`` works too.

PLAN is a JSON file: family, action, items ``[kind, folder or path, seed, times]``. Prints the paths
made (``make``) or, for each item, kind, loads and seconds (``load``, ``both``) as one JSON line.
"""

from __future__ import annotations

import collections
import importlib
import json
import os
import shutil
import sys
import time
from pathlib import Path
from random import Random
from typing import Any, Deque, Dict, List, Tuple

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))


def make(kind: Any, folder: str, seed: int) -> Path:
    """The files of one item; what another user shall read is readable."""
    os.makedirs(folder)
    path: Path = kind.make(Path(folder), Random(seed))
    return path


def load(kind: Any, path: Path, times: int) -> Tuple[str, int, float]:
    """Load a file so many times; the kind's name, the number of loads, and seconds."""
    started = time.monotonic()
    loads = 0
    for _ in range(times):
        done = kind.load(path)
        loads += 1 if done is None else done
    return kind.name, loads, time.monotonic() - started


def main() -> None:
    """Do as the plan says."""
    plan: Dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    # Last, and not the script's own folder: the user's modules are found as they would be.
    sys.path[:] = [p for p in sys.path if p != os.path.dirname(os.path.abspath(__file__))] + [ROOT]
    # Nothing is written beside the programs; what users' modules do is up to their host.
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    family = importlib.import_module("benchmarks.baseline.programs." + plan["family"])
    keep: float = importlib.import_module("benchmarks.baseline.programs.kind").KEEP
    sys.dont_write_bytecode = writes
    kinds = {kind.name: kind for kind in family.KINDS}
    results: List[Any] = []
    loaded: Deque[Tuple[float, str]] = collections.deque()
    for name, place, seed, times in plan["items"]:
        try:
            if plan["action"] == "make":
                results.append(str(make(kinds[name], place, seed)))
            elif plan["action"] == "load":
                results.append(load(kinds[name], Path(place), times))
            else:
                results.append(load(kinds[name], make(kinds[name], place, seed), times))
                loaded.append((time.monotonic(), place))
                while loaded[0][0] < time.monotonic() - keep:
                    shutil.rmtree(loaded.popleft()[1])
        except Exception as error:
            raise RuntimeError("%s: %s: %s" % (name, type(error).__name__, error)) from error
    # In one write, and last: what libraries print before is not the result.
    sys.stdout.write("\n" + json.dumps(results) + "\n")


if __name__ == "__main__":
    main()
