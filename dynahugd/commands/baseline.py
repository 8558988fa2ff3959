"""``dynahugd baseline``: look at a baseline, check that one can be used, compare two."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

from dynahugd.baseline import Baseline
from dynahugd.commands.options import choose_baseline
from dynahugd.errors import DynahugError
from dynahugd.escape import escape

HELP = "show, check or compare baselines"
EXAMPLES = """\
examples:
  dynahugd baseline show
  dynahugd baseline check mine.npz
  dynahugd baseline diff monday.npz tuesday.npz
  dynahugd baseline diff mine.npz           (the embedded one with mine)

Without a file the embedded baseline is meant. diff says what the second knows that the first does
not (+), and the reverse (-): columns, whose first appearance is evidence, and globals.

Exit status: 0 good, equal or not; 1 it cannot be used; 2 wrong usage."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("action", choices=("show", "check", "diff"))
    parser.add_argument("files", metavar="FILE", nargs="*")
    parser.add_argument("--json", action="store_true", help="print as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Show, check or compare."""
    files = arguments.files
    if arguments.action == "diff":
        if not 1 <= len(files) <= 2:
            raise DynahugError("diff takes two baselines, or one to compare with the embedded one")
        one, other = ["", *files][-2:]
        _diff(choose_baseline(one), choose_baseline(other), arguments.json)
        return 0
    if len(files) > 1:
        raise DynahugError(f"{arguments.action} takes one baseline at a time")
    look = {"show": _show, "check": _check}[arguments.action]
    look(*choose_baseline(files[0] if files else ""), arguments.json)
    return 0


def _check(baseline: Baseline, source: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"baseline": source, "usable": True}))
    else:
        print(f"{escape(source)}: usable, {len(baseline.clusters)} clusters")


def _show(baseline: Baseline, source: str, as_json: bool) -> None:
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
    if as_json:
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
        return
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


def _diff(one: tuple[Baseline, str], other: tuple[Baseline, str], as_json: bool) -> None:
    baselines, names = (one[0], other[0]), (one[1], other[1])
    kinds: dict[str, Callable[[Baseline], set[str]]] = {
        "columns": lambda baseline: set(baseline.columns),
        "globals": lambda baseline: {".".join(pair) for pair in baseline.known_globals},
    }
    found = {}
    for kind, known in kinds.items():
        first, second = map(known, baselines)
        found[kind] = {"added": sorted(second - first), "removed": sorted(first - second)}
    loads = [baseline.metadata.get("loads", 0) for baseline in baselines]
    clusters = [len(baseline.clusters) for baseline in baselines]
    if as_json:
        print(json.dumps({"baselines": names, "loads": loads, "clusters": clusters} | found))
        return
    print(
        f"{escape(names[0])} -> {escape(names[1])}: {loads[0]} -> {loads[1]} loads, "
        f"{clusters[0]} -> {clusters[1]} clusters"
    )
    for kind, changes in found.items():
        for sign, change in (("+", "added"), ("-", "removed")):
            for text in changes[change]:
                print(f"{sign} {kind.removesuffix('s'):<7} {escape(text)}")
