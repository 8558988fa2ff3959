"""What one daemon hands out: series, bytes of a scrape, of an alert, of a verdict."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cost.watching import watching

__all__ = ["Output", "measure"]

_LOADS = """
import pickle, sys
for path in sys.argv[1:]:
    with open(path, "rb") as file: pickle.load(file)
"""
_EACH = 50


@dataclass(frozen=True, slots=True)
class Output:
    """Of one daemon.

    Attributes
    ----------
    series : samples of a scrape.
    scrape : its bytes.
    alert : bytes in the alert log for an anomalous load.
    verdict : bytes of the JSON line of a benign load.
    """

    series: int
    scrape: int
    alert: float
    verdict: float


def measure(folder: Path) -> Output:
    """Watch some benign and some malicious (inert) loads."""
    benign, malicious = folder / "benign.pkl", folder / "malicious.pkl"
    benign.write_bytes(pickle.dumps({"weights": list(range(1000))}))
    malicious.write_bytes(b"cposix\nsystem\n(Vtrue\ntR.")
    said = folder / "verdicts.jsonl"
    with said.open("wb") as file, watching("--json", stdout=file) as daemon:
        paths = [str(path) for path in (benign, malicious) for _ in range(_EACH)]
        subprocess.run([sys.executable, "-c", _LOADS, *paths], check=True)
        if not daemon.wait_for(lambda: daemon.total("dynahugd_loads_total") >= 2 * _EACH, 30):
            raise RuntimeError("the daemon has not judged all loads")
        with urllib.request.urlopen(daemon.metrics_url, timeout=30) as answer:
            scrape = len(answer.read())
        series = len(daemon.metrics())
        alert = daemon.alert_log.stat().st_size / daemon.total("dynahugd_alerts_total")
    lines = said.read_bytes().splitlines(keepends=True)
    of_benign = [len(line) for line in lines if json.loads(line)["path"] == str(benign)]
    return Output(series, scrape, alert, sum(of_benign) / len(of_benign))
