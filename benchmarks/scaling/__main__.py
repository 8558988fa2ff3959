"""What the measured curves imply for a large host and for a fleet, as a page in Markdown.

    sudo .venv/bin/python -m benchmarks.scaling build/cost.json docs > docs/scaling.md

The first argument is what ``python -m benchmarks.cost --figures`` has written; pictures go into the
folder.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from textwrap import fill

from benchmarks.cost.figures import count, seconds
from benchmarks.scaling.figures import Figures
from benchmarks.scaling.host import Output, measure
from benchmarks.scaling.pictures import draw
from dynahugd.config import Config
from dynahugd.errors import DynahugError

_HOSTS, _INTERVAL, _DAY = 10_000, 15, 86_400
_ALPHA = Config().verdict.alpha
#: Share of benign loads that alert, docs/bench-lab.md.
_MEASURED = 0.0007
_LOADERS = 8
#: Bytes that Prometheus keeps of a sample: "an average of only 1-2 bytes per sample",
#: prometheus.io/docs/prometheus/latest/storage.
_SAMPLE = 1.5

_CURVES = """\
# Scaling

`python -m benchmarks.scaling` writes this page from the figures of `make bench`
([benchmarks](benchmarks.md)) and from one more daemon that watches 100 loads. What is computed for
more than was measured says so.

{machine}.

## The curves

![CPU by loads that are open, and by their system calls](scaling-open-loads.svg)

Work is by loads that change, not by system calls: these are counted in the kernel, and the daemon
reads the counters {hops:.0f} times a second, whatever they say.

![CPU a load, and delay, by loads a second](scaling-bursts.svg)

A load costs less the more come at once, because what a batch costs is shared: {slow} each at
{slow_rate} loads/s, {fast} at {fast_rate}.

![Time and memory of training, by rows](scaling-training.svg)
"""

_HOST = """\
## A host with 256 cores and 8 loaders

Computed from two cores; nothing larger was at hand.

- **System calls.** What is on their way writes nothing that another processor reads, unless the
  caller belongs to a load, so the cost of a call does not depend on the number of cores. At rest it
  is none, {watching} a call while nothing loads and {counting} while something does. A core that
  does nothing but small system calls, a million a second, pays {share_watching:.1f} % and
  {share_counting:.1f} %; one that makes 10,000 a second pays {little:.2f} %.
- **Counters** are one set a load. Threads of one load that count at once on several cores wait for
  each other (see "Ways" in [benchmarks](benchmarks.md#the-kernel-side)); eight loaders have eight
  sets. A set for each core would take 3 MiB a load on such a host; it is 12 KiB.
- **The daemon** has one thread. At {fast} a load it can judge {capacity} loads/s. Eight loaders
  that load files of 100 MB from the page cache as fast as torch can ({big_time} each, {big_rate}
  loads/s in all) take {eight:.1f} % of one of the 256 cores. Eight that do nothing but load files
  of 20 KB ({small_time} each, {small_rate} loads/s in all) are {verdict}.
- **The ring** is one for all cores, with a lock. Only records pass it, some ten a load.
- **Memory** of the kernel's tables does not grow with cores, but for 4.5 KiB of scratch space each:
  1.1 MiB at 256.
"""

_FLEET = """\
## A fleet of 10,000 hosts

| | one host | {hosts} hosts |
|---|---|---|
| series | {series} | {all_series} |
| samples/s, scraped every {interval} s | {samples:.0f} | {all_samples} |
| bytes/day in Prometheus, 1.5 a sample | {kept} | {all_kept} |
| bytes of a scrape, not compressed | {scrape} | {all_scrape}/s |

Labels are bounded, so series do not grow with processes, users or files.

**Alerts.** The p-values are calibrated: of loads like those of the baseline, a share of `alpha`
({alpha:g}) alerts at most. The laboratory measured 0.07 % of loads of known environments, and up to
0.9 % in single ones ([bench-lab](bench-lab.md)).

| loads a day and host | alerts a day, one host | {hosts} hosts | at 0.07 % |
|---|---|---|---|
{alerts}

So a fleet that loads a lot has more alerts than people can look at, if each is looked at alone. A
smaller `alpha` does not help: what alerts is evidence, of a kind that payloads show, too. It helps
that a fleet loads the same files again and again: a file is one question, not one for each host and
load. The alert log names the file; Alertmanager groups by host and format, for labels have to be
bounded.

**History.** An anomalous load takes {alert:.0f} bytes in the alert log (the alert, and the last
word). The verdict on a benign one is {verdict:.0f} bytes as a JSON line (`run --json`), which
nobody has to keep.

| loads a day and host | alert log, one host | {hosts} hosts | all verdicts, one host | {hosts} |
|---|---|---|---|---|
{history}
"""


def _bytes(number: float) -> str:
    """Bytes with their (decimal) unit."""
    units = ["TB", "GB", "MB", "kB", "B"]
    while number >= 1000 and len(units) > 1:
        number /= 1000
        units.pop()
    return f"{number:.3g} {units[-1]}"


def _by_loads(output: Output) -> tuple[str, str]:
    """The rows of the tables of alerts and of history."""
    alerts, history = [], []
    for loads in (100, 1_000, 10_000):
        each = loads * _ALPHA
        found = loads * _HOSTS * _MEASURED
        alerts.append(f"| {loads:,} | {each:g} | {each * _HOSTS:,.0f} | {found:,.0f} |")
        log, every = each * output.alert, loads * output.verdict
        cells = (_bytes(log), _bytes(log * _HOSTS), _bytes(every), _bytes(every * _HOSTS))
        history.append(f"| {loads:,} | {' | '.join(cells)} |")
    return "\n".join(alerts), "\n".join(history)


def _page(figures: Figures, output: Output) -> Iterator[str]:
    bursts = sorted(
        (line.values["rate"], line.values["cpu"])
        for line in figures.table("Scale", "Bursts of loads")
        if line.values["wrong"] == 0
    )
    (slow_rate, slow), (fast_rate, fast) = bursts[0], bursts[-1]
    box = "The rest of the host"
    counting = figures.value(box, "", "more", "getppid", "loads, daemon")
    # What a call pays that has no tracepoint of its own, whatever else is attached.
    watching = figures.value(box, "", "more", "getppid", "daemon, idle ML process")
    big, small = (
        figures.value("A load", "The load itself", "nothing", f"torch.load, {size}")
        for size in ("100 MB", "20 KB")
    )
    yield _CURVES.format(
        machine=figures.machine,
        hops=1 / Config().probe.hop,
        slow=seconds(slow),
        slow_rate=count(slow_rate),
        fast=seconds(fast),
        fast_rate=count(fast_rate),
    )
    yield _HOST.format(
        watching=seconds(watching),
        counting=seconds(counting),
        share_watching=100 * watching * 1e6,
        share_counting=100 * counting * 1e6,
        little=100 * counting * 1e4,
        fast=seconds(fast),
        capacity=count(1 / fast),
        big_time=seconds(big),
        big_rate=count(_LOADERS / big),
        eight=100 * _LOADERS / big * slow,
        small_time=seconds(small),
        small_rate=count(_LOADERS / small),
        verdict="within that"
        if _LOADERS / small < 1 / fast
        else "more than that: the table of loads fills, and what does not fit is counted as lost",
    )
    alerts, history = _by_loads(output)
    samples = output.series / _INTERVAL
    kept = samples * _DAY * _SAMPLE
    yield _FLEET.format(
        hosts=f"{_HOSTS:,}",
        interval=_INTERVAL,
        series=output.series,
        all_series=count(output.series * _HOSTS),
        samples=samples,
        all_samples=count(samples * _HOSTS),
        kept=_bytes(kept),
        all_kept=_bytes(kept * _HOSTS),
        scrape=_bytes(output.scrape),
        all_scrape=_bytes(output.scrape * _HOSTS / _INTERVAL),
        alpha=_ALPHA,
        alerts=alerts,
        alert=output.alert,
        verdict=output.verdict,
        history=history,
    )


def _wrapped(part: str) -> Iterator[str]:
    """Markdown, its running text broken anew: a figure is not as long as its name."""
    for block in part.split("\n\n"):
        if block.startswith("- "):
            for item in block.removeprefix("- ").split("\n- "):
                yield fill(" ".join(item.split()), 100, initial_indent="- ", subsequent_indent="  ")
            yield ""
        elif block[:1] in ("", "|", "#", "!"):
            yield block.strip() + "\n"
        else:
            yield fill(" ".join(block.split()), 100, break_on_hyphens=False) + "\n"


def main() -> None:
    """Measure, draw and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("figures", type=Path, metavar="FIGURES")
    parser.add_argument("pictures", type=Path, metavar="FOLDER")
    given = parser.parse_args()
    try:
        figures = Figures.read(given.figures)
        with tempfile.TemporaryDirectory() as folder:
            output = measure(Path(folder))
        lines = (line for part in _page(figures, output) for line in _wrapped(part))
        print("\n".join(lines).rstrip())
        draw(figures, given.pictures)
    except DynahugError as error:
        sys.exit(f"benchmarks.scaling: {error}")


if __name__ == "__main__":
    main()
