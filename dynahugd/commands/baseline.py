"""``dynahugd baseline``: look at a baseline, or check that one can be used."""

from __future__ import annotations

import argparse
import json

from dynahugd.commands.options import choose_baseline
from dynahugd.escape import escape

HELP = "show or check a baseline"
EXAMPLES = """\
examples:
  dynahugd baseline show
  dynahugd baseline check mine.npz

Without a file the embedded baseline is meant. Exit status: 0 good, 1 it cannot be used, 2 wrong
usage."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("action", choices=("show", "check"))
    parser.add_argument("file", metavar="FILE", nargs="?", default="")
    parser.add_argument("--json", action="store_true", help="print as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Show or check."""
    baseline, source = choose_baseline(arguments.file)
    if arguments.action == "check":
        if arguments.json:
            print(json.dumps({"baseline": source, "usable": True}))
        else:
            print(f"{escape(source)}: usable, {len(baseline.clusters)} clusters")
        return 0
    clusters = [
        {
            "name": cluster.name,
            "loads": cluster.loads,
            "rows": cluster.rows,
            "columns": int(cluster.seen.sum()),
            "support_vectors": len(cluster.vectors),
            "calibration": int(cluster.calibration.scores.size),
        }
        for cluster in baseline.clusters
    ]
    if arguments.json:
        print(
            json.dumps(
                {
                    "baseline": source,
                    "metadata": dict(baseline.metadata),
                    "columns": list(baseline.columns),
                    "known_globals": len(baseline.known_globals),
                    "clusters": clusters,
                }
            )
        )
        return 0
    print(
        f"{escape(source)}: {len(baseline.columns)} columns, "
        f"{len(baseline.known_globals)} known globals"
    )
    for key, value in baseline.metadata.items():
        print(f"  {escape(str(key))}: {escape(str(value))}")
    print(f"  {'cluster':<20} {'loads':>6} {'rows':>6} {'columns':>8} {'vectors':>8}")
    for item in clusters:
        print(
            f"  {escape(str(item['name'])):<20} {item['loads']:>6} {item['rows']:>6} "
            f"{item['columns']:>8} {item['support_vectors']:>8}"
        )
    return 0
