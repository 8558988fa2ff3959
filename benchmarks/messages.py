"""What a message between processes pays while the daemon watches: off and on by turns.

    sudo .venv/bin/python -m benchmarks.messages [--rounds 7]

``unpickle``: pickle.loads of a message that names one known global. ``queue``: a tensor through a
torch.multiprocessing queue. ``loader``: a batch of one through a DataLoader with two workers.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.harness import RunningDaemon

_PROGRAMS = {
    "unpickle": """
import collections, pickle
message, n = pickle.dumps(collections.OrderedDict(a=1)), 200000
def work():
    for _ in range(n): pickle.loads(message)
""",
    "queue": """
import torch, torch.multiprocessing as mp
mp.set_sharing_strategy("file_system")
n, queue, done = 4000, mp.Queue(), mp.Event()
def send():
    for i in range(n): queue.put(torch.full((4,), i))
    done.wait()
process = mp.Process(target=send)
process.start()
def work():
    for _ in range(n): queue.get()
    done.set()
""",
    "loader": """
import torch
from torch.utils.data import DataLoader
n = 4000
loader = DataLoader(torch.zeros(n, 4), batch_size=1, num_workers=2)
def work():
    for _ in loader: pass
""",
}
_TIMED = """
import time
start = time.perf_counter()
work()
print((time.perf_counter() - start) / n * 1e6)
"""


def microseconds(name: str) -> float:
    """One run of a program in a fresh process: microseconds a message."""
    source = _PROGRAMS[name] + _TIMED
    done = subprocess.run([sys.executable, "-c", source], check=True, capture_output=True)
    return float(done.stdout)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    off: dict[str, list[float]] = {name: [] for name in _PROGRAMS}
    on: dict[str, list[float]] = {name: [] for name in _PROGRAMS}
    for _ in range(rounds):
        for name in _PROGRAMS:
            off[name].append(microseconds(name))
        with tempfile.TemporaryDirectory() as folder, RunningDaemon(Path(folder)):
            for name in _PROGRAMS:
                on[name].append(microseconds(name))
    print("| message | off, us | on, us | difference, us | ratio |")
    print("|---|---|---|---|---|")
    for name in _PROGRAMS:
        a, b = statistics.median(off[name]), statistics.median(on[name])
        print(f"| {name} | {a:.2f} | {b:.2f} | {b - a:.2f} | {b / a:.3f} |")


if __name__ == "__main__":
    main()
