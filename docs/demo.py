"""One benign and one malicious load, for the terminal in which ``make run`` watches.

The malicious pickle is inert: it lists a temporary folder of this script and connects to a port of
this script on 127.0.0.1.
"""

from __future__ import annotations

import os
import pickle
import socket
import sys
import tempfile
import time
from pathlib import Path


class Payload:
    """Runs a shell command when it is loaded, as any pickle can."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


def load(path: Path) -> None:
    """Load a model file as everyone does."""
    print(f"process {os.getpid()} loads {path}", flush=True)
    with path.open("rb") as file:
        pickle.load(file)


def main() -> None:
    """Make both files, load both."""
    with tempfile.TemporaryDirectory(prefix="dynahugd-demo-") as name:
        folder = Path(name)
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        fetch = f"ls {folder} >/dev/null; exec 3<>/dev/tcp/127.0.0.1/{port}"
        models = {
            "benign.pkl": {"weights": [0.1] * 1000, "classes": ["cat", "dog"]},
            "malicious.pkl": Payload(f"/bin/bash -c '{fetch}'"),
        }
        for file, content in models.items():
            (folder / file).write_bytes(pickle.dumps(content))
        for file in models:
            load(folder / file)
            time.sleep(1)
        listener.close()
    print("the daemon's terminal, or its alert log, now shows one benign and one anomalous load")


if __name__ == "__main__":
    sys.exit(main())
