"""``dynahugd train``: a baseline from recordings of benign loads."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime

from dynahugd.baseline import files
from dynahugd.errors import DynahugError
from dynahugd.escape import escape

HELP = "train a baseline from recordings of benign loads"
EXAMPLES = """\
examples:
  dynahugd train loads.parquet -o mine.npz
  dynahugd train monday.parquet tuesday.parquet -o week.npz --json

Every load in the recordings is taken as benign. Exit status: 0 written, 1 not, 2 wrong usage."""


def _from_to(low: int, high: int) -> Callable[[str], int]:
    def whole_number(text: str) -> int:
        if not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"has to be from {low} to {high}")
        return int(text)

    return whole_number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("recordings", metavar="FILE", nargs="+")
    parser.add_argument("-o", "--output", metavar="BASELINE", required=True)
    parser.add_argument(
        "--clusters",
        type=_from_to(1, 1000),
        metavar="N",
        help="default: the most that held-out false alarms allow",
    )
    parser.add_argument(
        "--seed", type=_from_to(0, 2**32 - 1), default=0, metavar="N", help="default: 0"
    )
    parser.add_argument("--note", default="", metavar="TEXT", help="kept in the metadata")
    parser.add_argument("--json", action="store_true", help="print the metadata as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Train and write."""
    try:
        import sklearn

        from dynahugd.baseline.training import NUMBERS, train
    except ImportError as error:
        raise DynahugError(
            "training needs scikit-learn: train in a clone after 'make setup'"
        ) from error
    from dynahugd.baseline.model import common_globals
    from dynahugd.features import Classifier, Row
    from dynahugd.loads import Load
    from dynahugd.pipeline import Rules, rows_of
    from dynahugd.probes import syscalls
    from dynahugd.recording import architecture, read

    def read_all(classifier: Classifier) -> Iterator[tuple[Load, list[Row]]]:
        for path in arguments.recordings:
            names = syscalls.names(architecture(path))
            yield from rows_of(read(path), names, classifier, Rules())

    # Twice, because what is known decides what is counted: rows of weeks are too many to be kept.
    common = common_globals(load.globals() for load, _ in read_all(Classifier()))
    formats: Counter[str] = Counter()

    def whole() -> Iterator[list[Row]]:
        number = lossy = 0
        for load, rows in read_all(Classifier(common)):
            if load.lost or load.uncounted:
                lossy += 1
                continue
            number += len(rows)
            formats[load.format] += 1
            yield rows
        print(
            f"{formats.total()} loads, {number} rows, {len(common)} known globals"
            + (f"; {lossy} loads that were not recorded whole left out" if lossy else ""),
            file=sys.stderr,
        )

    learned = train(whole(), common, {}, arguments.clusters or NUMBERS, arguments.seed)
    metadata = {
        "trained": datetime.now(UTC).isoformat(timespec="seconds"),
        "loads": formats.total(),
        "formats": dict(sorted(formats.items())),
        "recordings": [_provenance(path) for path in arguments.recordings],
        "scikit_learn": sklearn.__version__,
        "note": arguments.note,
    }
    baseline = replace(learned, metadata=metadata | dict(learned.metadata))
    files.write(baseline, arguments.output)
    if arguments.json:
        print(json.dumps(dict(baseline.metadata)))
    else:
        print(
            f"{escape(arguments.output)}: {len(baseline.clusters)} clusters, "
            f"{len(baseline.columns)} columns"
        )
    return 0


def _provenance(path: str) -> dict[str, str]:
    import hashlib
    import os

    import pyarrow.parquet as pq

    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        metadata = pq.read_schema(file).metadata or {}
    return {"file": os.path.basename(path), "sha256": digest} | {
        key.decode(): metadata[key].decode(errors="replace")
        for key in (b"dynahugd", b"architecture", b"kernel")
        if key in metadata
    }
