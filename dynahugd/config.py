"""The configuration: one TOML file, every key of it declared, documented and checked here.

``python -m dynahugd.config`` prints the reference in Markdown.
"""

from __future__ import annotations

import difflib
import math
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from dynahugd.errors import DynahugError
from dynahugd.escape import escape

__all__ = ["DEFAULT_PATH", "Config", "ConfigError", "documentation", "load"]

DEFAULT_PATH = "/etc/dynahugd.toml"

_MODEL_SUFFIXES = (
    "pt pth bin ckpt pkl pickle joblib jbl npy npz safetensors h5 hdf5 keras gguf ggml onnx mar "
    "pt2 ptl dill cloudpickle pdparams nemo model sav weights"
)
_WRAPPER_SUFFIXES = "gz bz2 xz lzma z zst tar"


class ConfigError(DynahugError):
    """A key or value that cannot be used; names the file, the line and the key."""


_TYPE_NAMES = {str: "text", int: "a whole number", float: "a number", tuple: "a list of texts"}


def _number(low: float, high: float) -> Callable[[Any], str]:
    return lambda value: "" if low <= value <= high else f"has to be from {low:g} to {high:g}"


def _one_of(*values: str) -> Callable[[Any], str]:
    return lambda value: "" if value in values else f"has to be one of {', '.join(values)}"


def _ring(value: int) -> str:
    if 4096 <= value <= 1 << 30 and value & (value - 1) == 0:
        return ""
    return "has to be a power of two from 4096 to 1073741824"


def _address(value: str) -> str:
    host, colon, port = value.rpartition(":")
    number = int(port) if re.fullmatch("[0-9]{1,5}", port) else 65536
    good = not value or (host and colon and number < 65536)
    return "" if good else "has to be HOST:PORT, or empty"


def _suffixes(value: tuple[str, ...]) -> str:
    for suffix in value:
        if not 0 < len(suffix.encode(errors="replace")) <= 15 or "." in suffix or "/" in suffix:
            return f"holds {escape(suffix)!r}: a suffix has 1 to 15 bytes and no dot"
    return "" if len(value) <= 120 else "may hold at most 120 suffixes"


_URL = re.compile(
    r"https?://(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?(?:/[A-Za-z0-9._~%/-]*)?"
)


def _urls(value: tuple[str, ...]) -> str:
    for url in value:
        parts = _URL.fullmatch(url)
        if parts is None or int(parts[1] or 0) > 65535:
            return f"holds {escape(url)!r}: write http://host:port or https://host:port"
    return "" if len(value) <= 16 else "may hold at most 16 addresses"


def _labels(value: tuple[str, ...]) -> str:
    for label in value:
        if not re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_]*=.+", label):
            return f"holds {escape(label)!r}: write name=value"
    return "" if len(value) <= 32 else "may hold at most 32 labels"


def _key(default: Any, text: str, check: Callable[[Any], str] = lambda value: "") -> Any:
    return field(default=default, metadata={"text": text, "check": check})


@dataclass(frozen=True, slots=True)
class DaemonKeys:
    """Where the daemon reads and writes."""

    listen: str = _key(
        "127.0.0.1:9797", "Address of /metrics, /-/healthy and /-/ready; empty: none.", _address
    )
    baseline: str = _key("", "The baseline file; empty: the embedded one.")
    alert_log: str = _key(
        "",
        "File to which each alert is appended as a JSON line, and once more, with all that came "
        "after it, when the load is over; empty: none.",
    )
    log_format: str = _key(
        "auto",
        "How verdicts and messages are given: `plain` or `json` lines, `journal` (fields in the "
        "journal), or `auto`: `journal` where standard error is connected to it, else `plain`.",
        _one_of("auto", "plain", "json", "journal"),
    )
    web_config: str = _key(
        "",
        "Web configuration file of Prometheus' own format (TLS, client certificates, users) for "
        "the listener, read again when it changes; empty: plain HTTP for everyone.",
    )


@dataclass(frozen=True, slots=True)
class ProbeKeys:
    """What is watched, and how."""

    loader: str = _key(
        "auto",
        "Who loads the eBPF programs: `libbpf`, `bcc`, or `auto` (libbpf where it can).",
        _one_of("auto", "libbpf", "bcc"),
    )
    hop: float = _key(0.25, "Seconds between two looks at the counters.", _number(0.05, 10))
    idle: float = _key(
        30.0,
        "Seconds after which a descriptor that nobody uses is no longer a load.",
        _number(1, 86400),
    )
    linger: float = _key(
        30.0,
        "Seconds for which threads and processes born in a load are followed after it.",
        _number(0, 86400),
    )
    quiet: float = _key(
        30.0,
        "Seconds without a load or a new ML process after which system calls are watched, but not "
        "counted any more: that costs the host less, and the first load after it is judged by what "
        "was counted of it.",
        _number(1, 1e9),
    )
    rest: float = _key(
        30.0,
        "Seconds without any ML process after which system calls are not even watched.",
        _number(1, 1e9),
    )
    suffixes: tuple[str, ...] = _key(
        tuple(_MODEL_SUFFIXES.split()),
        "Suffixes of model files, in any case. A file without one of them is seen when it is "
        "unpickled.",
        _suffixes,
    )
    wrappers: tuple[str, ...] = _key(
        tuple(_WRAPPER_SUFFIXES.split()),
        "Suffixes that wrap a file; the suffix before them decides.",
        _suffixes,
    )


@dataclass(frozen=True, slots=True)
class TableKeys:
    """Sizes of the kernel's tables. What does not fit counts in `dynahugd_records_lost_total`."""

    max_loads: int = _key(1024, "Loads open at once.", _number(1, 65536))
    max_tasks: int = _key(16384, "Threads and processes tracked at once.", _number(64, 4194304))
    max_files: int = _key(16384, "Descriptors of loads tracked at once.", _number(64, 4194304))
    max_globals: int = _key(65536, "Known globals of benign pickles.", _number(64, 4194304))
    ring_bytes: int = _key(8388608, "Bytes of the ring of records.", _ring)


@dataclass(frozen=True, slots=True)
class VerdictKeys:
    """When a load is an anomaly."""

    alpha: float = _key(
        0.001,
        "A load with at most this p-value is anomalous: the share of benign loads that may alert.",
        _number(1e-9, 0.5),
    )
    window: float = _key(1.0, "Seconds of a sliding window.", _number(0.25, 60))


@dataclass(frozen=True, slots=True)
class LearnKeys:
    """Learning from the loads of this host while the daemon runs (`dynahugd learn --help`)."""

    file: str = _key(
        "",
        "The file to which what is learned is written, and from which it is taken over at start; "
        "empty: nothing is learned.",
    )
    loads: int = _key(
        1000,
        "So many loads are learned from at a time; what they teach takes the place of what was "
        "learned before.",
        _number(50, 2000),
    )


@dataclass(frozen=True, slots=True)
class AlertmanagerKeys:
    """Alerts pushed to Alertmanager at once, beside what Prometheus' rules make of the metrics."""

    urls: tuple[str, ...] = _key(
        (),
        "Base addresses of Alertmanager's instances, such as `https://host:9093`, each of "
        "which gets every alert; empty: nothing is pushed.",
        _urls,
    )
    job: str = _key("dynahugd", "Label `job`, as Prometheus has it for this daemon.")
    instance: str = _key(
        "",
        "Label `instance`, as Prometheus has it; empty: the host's name and the port of `listen`.",
    )
    labels: tuple[str, ...] = _key(
        (), "More labels, as `name=value`: the external labels of Prometheus.", _labels
    )
    quiet: float = _key(
        600.0,
        "Seconds without another anomalous load after which an alert is resolved; as long as the "
        "rule looks back (10 minutes).",
        _number(10, 86400),
    )
    timeout: float = _key(
        10.0, "Seconds for the connection and until the answer.", _number(0.1, 300)
    )
    username: str = _key("", "User of basic authentication; empty: none.")
    password_file: str = _key("", "File whose first line is the user's password.")
    ca_file: str = _key("", "Authorities that sign Alertmanager's certificate; empty: the host's.")
    cert_file: str = _key("", "Certificate that is shown to Alertmanager; empty: none.")
    key_file: str = _key("", "Its key; empty: it is in `cert_file`.")


@dataclass(frozen=True, slots=True)
class Config:
    """The whole configuration; each attribute is a table of the file."""

    daemon: DaemonKeys = field(default_factory=DaemonKeys)
    probe: ProbeKeys = field(default_factory=ProbeKeys)
    tables: TableKeys = field(default_factory=TableKeys)
    verdict: VerdictKeys = field(default_factory=VerdictKeys)
    learn: LearnKeys = field(default_factory=LearnKeys)
    alertmanager: AlertmanagerKeys = field(default_factory=AlertmanagerKeys)


_TABLES: dict[str, type[Any]] = {
    "daemon": DaemonKeys,
    "probe": ProbeKeys,
    "tables": TableKeys,
    "verdict": VerdictKeys,
    "learn": LearnKeys,
    "alertmanager": AlertmanagerKeys,
}
_KEYS = {f"{table}.{key.name}": key for table, cls in _TABLES.items() for key in fields(cls)}


def load(path: str | None, overrides: Mapping[str, object] | None = None) -> Config:
    """Read and check a configuration.

    Parameters
    ----------
    path : the file; None means ``DEFAULT_PATH``, which need not exist.
    overrides : values from the command line by ``table.key``; they win.

    Raises
    ------
    ConfigError : the file cannot be read, or a key or value cannot be used.
    """
    values = _read(path)
    for key, value in (overrides or {}).items():
        values[key] = _checked(key, value, f"option --{key.partition('.')[2].replace('_', '-')}")
    return Config(
        **{
            table: cls(
                **{
                    key.name: values[f"{table}.{key.name}"]
                    for key in fields(cls)
                    if f"{table}.{key.name}" in values
                }
            )
            for table, cls in _TABLES.items()
        }
    )


def _read(path: str | None) -> dict[str, Any]:
    name = path or DEFAULT_PATH
    shown = escape(name)
    try:
        text = Path(name).read_bytes().decode()
    except FileNotFoundError:
        if path is None:
            return {}
        raise ConfigError(f"{shown}: there is no such file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{shown}: not UTF-8 at byte {error.start}") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{shown}: {getattr(error, 'strerror', None) or error}") from error
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also of a number with too many digits
        raise ConfigError(f"{shown}: not TOML: {escape(str(error))}") from error
    values: dict[str, Any] = {}
    for table, content in document.items():
        if table not in _TABLES:
            where = f"{shown}{_line(text, table)}"
            raise ConfigError(f"{where}: unknown table or key {_unknown(table, _TABLES)}")
        if not isinstance(content, dict):
            raise ConfigError(f"{shown}{_line(text, table)}: '{table}' has to be a table")
        for name, value in content.items():
            key = f"{table}.{name}"
            values[key] = _checked(key, value, f"{shown}{_line(text, key)}")
    return values


def _checked(key: str, value: object, where: str) -> Any:
    if key not in _KEYS:
        raise ConfigError(f"{where}: unknown key {_unknown(key, _KEYS)}")
    kind = type(_KEYS[key].default)
    if kind is float and type(value) is int:
        value = float(value) if abs(value) < 1e300 else math.inf
    if kind is tuple and isinstance(value, list) and all(isinstance(item, str) for item in value):
        value = tuple(value)
    if type(value) is not kind or value != value:
        raise ConfigError(f"{where}: '{key}' has to be {_TYPE_NAMES[kind]}")
    if kind is str and "\0" in str(value):
        raise ConfigError(f"{where}: '{key}' holds a NUL character")
    complaint = _KEYS[key].metadata["check"](value)
    if complaint:
        raise ConfigError(f"{where}: '{key}' {complaint}")
    return value


def _unknown(name: str, known: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"'{escape(name)}'" + (f"; did you mean '{near[0]}'?" if near else "")


def _line(text: str, key: str) -> str:
    """``:LINE`` of a key, which the TOML parser does not tell; empty where it is not seen."""
    table = ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[\s*([^\[\]]+?)\s*\]", line):
            table = header[1].replace('"', "").replace("'", "")
            found = table
        elif assignment := re.match(r"\s*([^=#\[\]{]+?)\s*=", line):
            name = assignment[1].replace('"', "").replace("'", "").replace(" ", "")
            found = f"{table}.{name}" if table else name
        else:
            continue
        if found == key or (found + ".").startswith(key + "."):
            return f":{number}"
    return ""


def _toml(value: object) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(f'"{item}"' for item in value) + "]"
    return f'"{value}"' if isinstance(value, str) else str(value)


def documentation() -> str:
    """The reference of every key, in Markdown."""
    lines = [
        "# Configuration",
        "",
        f"One TOML file, `{DEFAULT_PATH}` unless `--config` names another. Neither file nor any",
        "key has to be there; defaults are shown. An unknown key or a value that cannot be used is",
        "an error that names file, line and key. Options of the command line win over the file.",
    ]
    for table, cls in _TABLES.items():
        lines += ["", f"## `[{table}]`", "", str(cls.__doc__), ""]
        for key in fields(cls):
            lines += [f"- `{key.name} = {_toml(key.default)}`", "  " + key.metadata["text"]]
    return "\n".join(lines)


if __name__ == "__main__":
    print(documentation())
