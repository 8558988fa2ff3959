"""The man pages, from the command line's parser and the tables of the configuration.

``python -m install.manual 8`` prints dynahugd(8), ``python -m install.manual 5`` dynahugd.toml(5).
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import fields

from dynahugd import __version__
from dynahugd.cli import parser
from dynahugd.config import DEFAULT_PATH
from install.sample import tables, value_of

__all__ = ["dynahugd_8", "dynahugd_toml_5", "roff"]

_SPECIAL = {"\\": r"\e", "-": r"\-", "'": r"\(aq", "`": r"\(ga", "^": r"\(ha", "~": r"\(ti"}

_DESCRIPTION = f"""\
dynahugd watches with eBPF every model load on a host: torch.load, pickle.load, joblib.load,
numpy.load, safetensors, h5py and others. Loading a pickle can run any code, so what a load does,
its system calls, the files, programs and peers that it touches, the globals that its pickles name,
is compared with what benign loads do. A load that behaves unlike them raises an alert at the first
act that decides, and once more, with all that came after, when it is over.

It only watches: it needs nothing from the programs that load, and never blocks, kills or changes
one.

It runs as the service dynahugd.service, or in the foreground by `dynahugd run`, as root or with the
capabilities CAP_BPF, CAP_PERFMON, CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH. The configuration is
{DEFAULT_PATH}, see dynahugd.toml(5).\
"""

_CONFIGURATION = """\
A file in TOML. Neither the file nor any key has to be there; defaults are shown here. An unknown
key or a value that cannot be used is an error that names file, line and key. Options of the command
line win over the file. At SIGHUP it is read again, see dynahugd(8).

The service sees neither /home nor /tmp, and may write below /var/lib/dynahugd and /var/log/dynahugd
only.\
"""

_FILES = {
    DEFAULT_PATH: "The configuration.",
    "/usr/local/lib/systemd/system/dynahugd.service": "The service; see systemd.service(5).",
    "/usr/local/share/dynahugd/drop-ins": "Examples of changes to the service, each with its use.",
    "/usr/local/share/dynahugd/monitoring": "Rules, dashboard and routing for Prometheus.",
    "/usr/local/share/doc/dynahugd": "Documents, with a page for each alert of the rules.",
    "/var/lib/dynahugd, /var/log/dynahugd": "The only folders that the service may write to.",
}

_SIGNALS = {
    "SIGHUP": "Read the configuration and the baseline again. They are validated whole, then taken "
    "over; no record and no open load is lost. What cannot be used is refused, and what was in "
    "force still is. `systemctl reload dynahugd` sends it.",
    "SIGTERM, SIGINT": "Give the verdicts on open loads, detach, and end.",
}

_STATUS = {
    "0": "Done; for `dynahugd run`: stopped by a signal.",
    "1": "It could not start or go on. One line on standard error says why and what to do.",
    "2": "Wrong usage.",
    "130": "Interrupted by SIGINT; not by `dynahugd run`, which ends with 0.",
}

_ENVIRONMENT = {
    "NOTIFY_SOCKET": "systemd is told by sd_notify(3) when the daemon is ready, reloads and stops, "
    "and what it has seen.",
    "WATCHDOG_USEC, WATCHDOG_PID": "The loop that reads the kernel's records tells systemd that it "
    "goes on, twice in this time.",
    "JOURNAL_STREAM": "Where standard error is connected to the journal, verdicts and messages are "
    "entries with fields. `journalctl -x` explains each.",
}


def roff(text: str) -> str:
    """One line of text as roff: nothing in it is a request or an escape; `code` is bold."""
    parts = re.split(r"`([^`]*)`", text)
    escaped = ["".join(_SPECIAL.get(letter, letter) for letter in part) for part in parts]
    escaped[1::2] = [rf"\fB{part}\fR" for part in escaped[1::2]]
    line = "".join(escaped)
    return rf"\&{line}" if line.startswith(".") else line


def _filled(text: str) -> Iterator[str]:
    """A paragraph, in lines that diff(1) likes."""
    for line in textwrap.wrap(roff(text), 78, break_long_words=False, break_on_hyphens=False):
        yield rf"\&{line}" if line.startswith(".") else line


def _paragraphs(text: str) -> Iterator[str]:
    for paragraph in text.split("\n\n"):
        yield ".PP"
        yield from _filled(paragraph)


def _tagged(tag: str, text: str) -> Iterator[str]:
    yield ".TP"
    yield tag
    yield from _filled(text) if text else [r"\&"]


def _table(entries: dict[str, str]) -> Iterator[str]:
    for tag, text in entries.items():
        yield from _tagged(rf"\fB{roff(tag)}\fR", text)


def _title(page: str, section: int, name: str, what: str) -> Iterator[str]:
    when = time.gmtime(int(os.environ.get("SOURCE_DATE_EPOCH", time.time())))
    date = time.strftime("%Y-%m-%d", when)
    yield f'.TH {page} {section} {date} "dynahugd {__version__}"'
    yield ".nh"  # neither hyphens nor wide gaps in names and commands
    yield ".ad l"
    yield ".SH NAME"
    yield rf"{roff(name)} \- {roff(what)}"


def _commands(top: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in top._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _option(action: argparse.Action) -> str:
    """An option or argument as the tag of a paragraph."""
    value = action.metavar or "{" + ",".join(map(str, action.choices or ())) + "}"
    shown = "" if action.nargs == 0 else rf"\fI{roff(str(value))}\fR"
    if not action.option_strings:
        return shown
    names = ", ".join(rf"\fB{roff(name)}\fR" for name in action.option_strings)
    return f"{names} {shown}".rstrip()


def _usage(command: argparse.ArgumentParser) -> Iterator[str]:
    usage = command.format_usage().removeprefix("usage: ").replace(" [-h]", "")
    yield from _filled(re.sub(r"^dynahugd [a-z]+", r"`\g<0>`", usage))


def _command(name: str, command: argparse.ArgumentParser, examples: list[str]) -> Iterator[str]:
    """A command's subsection; its examples are put aside."""
    yield f".SS dynahugd {name}"
    yield from _usage(command)
    yield from _paragraphs(command.description or "")
    for action in command._actions:
        if not isinstance(action, argparse._HelpAction):
            yield from _tagged(_option(action), action.help or "")
    for block in (command.epilog or "").split("\n\n"):
        if block.startswith("examples:\n"):
            examples += [line.removeprefix("  ") for line in block.splitlines()[1:]]
        else:
            yield from _paragraphs(block)


def dynahugd_8() -> str:
    """dynahugd(8)."""
    top = parser()
    examples: list[str] = []
    lines = [
        *_title("DYNAHUGD", 8, "dynahugd", "watch every model load on this host"),
        ".SH SYNOPSIS",
        r"\fBdynahugd\fR \fICOMMAND\fR [\fIOPTION\fR...]",
        ".br",
        r"\fBdynahugd\fR [\fICOMMAND\fR] \fB\-\-help\fR",
        ".br",
        r"\fBdynahugd \-\-version\fR",
        ".SH DESCRIPTION",
        *list(_paragraphs(_DESCRIPTION))[1:],
        ".SH COMMANDS",
    ]
    for name, command in _commands(top).items():
        lines += _command(name, command, examples)
    for heading, entries in (
        ("FILES", _FILES),
        ("SIGNALS", _SIGNALS),
        ("EXIT STATUS", _STATUS),
        ("ENVIRONMENT", _ENVIRONMENT),
    ):
        lines += [f".SH {heading}", *_table(entries)]
    lines += [".SH EXAMPLES", ".nf", *map(roff, examples), ".fi"]
    lines += [
        ".SH SEE ALSO",
        r"\fBdynahugd.toml\fR(5), \fBjournalctl\fR(1), \fBsystemctl\fR(1), \fBcapabilities\fR(7)",
    ]
    return "\n".join(lines) + "\n"


def dynahugd_toml_5() -> str:
    """dynahugd.toml(5)."""
    lines = [
        *_title("DYNAHUGD.TOML", 5, "dynahugd.toml", "configuration of dynahugd"),
        ".SH SYNOPSIS",
        rf"\fI{roff(DEFAULT_PATH)}\fR",
        ".SH DESCRIPTION",
        *list(_paragraphs(_CONFIGURATION))[1:],
    ]
    for table, keys in tables():
        lines += [f".SH [{table}]", *_filled(str(keys.__doc__))]
        for key in fields(keys):
            tag = rf"\fB{key.name}\fR = {roff(value_of(key.default))}"
            lines += _tagged(tag, key.metadata["text"])
    lines += [
        ".SH EXAMPLES",
        ".nf",
        *map(roff, ["[daemon]", 'alert_log = "/var/log/dynahugd/alerts.jsonl"']),
        ".sp",
        *map(roff, ["[learn]", 'file = "/var/lib/dynahugd/host.npz"']),
        ".fi",
        ".SH SEE ALSO",
        r"\fBdynahugd\fR(8)",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print({"8": dynahugd_8, "5": dynahugd_toml_5}[sys.argv[1]](), end="")
