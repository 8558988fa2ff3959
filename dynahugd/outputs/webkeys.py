"""The keys of a web configuration file: which there are, of what kind, and on which line."""

from __future__ import annotations

import difflib
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from dynahugd.errors import DynahugError
from dynahugd.escape import escape

__all__ = ["Files", "Section", "Signature", "changed", "read_keys"]

#: Device, inode, size, modification and change of a file; None where there is none.
Signature = tuple[int, int, int, int, int] | None

_Value = TypeVar("_Value")

#: Bytes of a configuration, a certificate or a key.
_LARGEST = 1 << 20

#: Kinds of values by dotted names. A section's value is a mapping; any name may be a user's.
_KINDS: dict[str, type] = {
    "tls_server_config": dict,
    "tls_server_config.cert": str,
    "tls_server_config.cert_file": str,
    "tls_server_config.key": str,
    "tls_server_config.key_file": str,
    "tls_server_config.client_auth_type": str,
    "tls_server_config.client_ca": str,
    "tls_server_config.client_ca_file": str,
    "tls_server_config.client_allowed_sans": tuple,
    "tls_server_config.min_version": str,
    "tls_server_config.max_version": str,
    "tls_server_config.cipher_suites": tuple,
    "tls_server_config.prefer_server_cipher_suites": bool,
    "tls_server_config.curve_preferences": tuple,
    "http_server_config": dict,
    "http_server_config.http2": bool,
    "http_server_config.headers": dict,
    "http_server_config.headers.Content-Security-Policy": str,
    "http_server_config.headers.Strict-Transport-Security": str,
    "http_server_config.headers.X-Content-Type-Options": str,
    "http_server_config.headers.X-Frame-Options": str,
    "http_server_config.headers.X-XSS-Protection": str,
    "rate_limit": dict,
    "rate_limit.burst": int,
    "rate_limit.interval": str,
    "basic_auth_users": dict,
}
_KIND_NAMES = {
    str: "text",
    bool: "true or false",
    int: "a whole number",
    tuple: "a list of texts",
    dict: "a mapping of keys to values",
}


class Files:
    """Reads files, and remembers what they were before.

    Attributes
    ----------
    seen : every file that was asked for, also those that could not be read.
    """

    def __init__(self) -> None:
        self.seen: dict[str, Signature] = {}

    def read(self, path: str) -> bytes:
        """All of a file.

        Raises
        ------
        OSError, ValueError : it cannot be read.
        """
        self.seen[path] = _signature(path)
        # A FIFO would make us wait for somebody to write to it.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ValueError("it is no regular file")
        with open(path, "rb") as file:
            content = file.read(_LARGEST + 1)
        if len(content) > _LARGEST:
            raise ValueError(f"it is larger than {_LARGEST} bytes")
        return content


def changed(seen: Mapping[str, Signature]) -> bool:
    """Whether one of the files is not what it was."""
    return any(_signature(path) != was for path, was in seen.items())


def _signature(path: str) -> Signature:
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


@dataclass(frozen=True, slots=True)
class Section:
    """The values below one key.

    Attributes
    ----------
    path : the file.
    name : the key.
    values : what was given, by name.
    lines : where, by dotted name.
    """

    path: str
    name: str
    values: Mapping[str, Any]
    lines: Mapping[str, int]

    def error(self, name: str, complaint: str) -> DynahugError:
        """What to say of the value of ``name``; of the section, where ``name`` is empty."""
        key = f"{self.name}.{name}" if name else self.name
        line = self.lines.get(key, self.lines.get(self.name, 1))
        return DynahugError(f"{escape(self.path)}:{line}: '{escape(key)}' {complaint}")

    def choice(self, name: str, table: Mapping[str, _Value], default: str) -> _Value:
        """What the table has for the value.

        Raises
        ------
        DynahugError : it has nothing.
        """
        return self._known(name, self.values.get(name) or default, table)

    def choices(self, name: str, table: Mapping[str, _Value]) -> list[_Value]:
        """What the table has for each text of a list; empty without one.

        Raises
        ------
        DynahugError : it lacks one.
        """
        return [self._known(name, text, table) for text in self.values.get(name, ())]

    def _known(self, name: str, text: str, table: Mapping[str, _Value]) -> _Value:
        if text not in table:
            near = _near(text, table) or f"; write one of {', '.join(table)}"
            raise self.error(name, f"does not know '{escape(text)}'{near}")
        return table[text]

    def pem(self, name: str, files: Files) -> tuple[bytes, str]:
        """What ``name`` holds or the file that ``name_file`` names, and the key that gave it.

        Without either, empty bytes. A relative name belongs to the configuration's folder.

        Raises
        ------
        DynahugError : both are given, or the file cannot be read.
        """
        by_file = f"{name}_file"
        inline, file = self.values.get(name), self.values.get(by_file)
        if not file:
            return (inline or "").encode(), name
        if inline:
            raise self.error(by_file, f"excludes '{self.name}.{name}': keep one of them")
        path = os.path.join(os.path.dirname(self.path), file)
        try:
            return files.read(path), by_file
        except (OSError, ValueError) as error:
            raise self.error(by_file, f"names {escape(path)}: {_reason(error)}") from error


def read_keys(path: str, files: Files) -> dict[str, Section]:
    """The sections of a file, each there, by name.

    Raises
    ------
    DynahugError : it cannot be read, is no YAML, or has a key that is unknown, there twice, or of
        a wrong kind.
    """
    import yaml

    shown = escape(path)
    try:
        text = files.read(path).decode()
        # Nodes, not values: they tell lines, and which keys are there twice.
        root: Any = yaml.compose(text, Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise DynahugError(f"{shown}: not UTF-8 at byte {error.start}") from error
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise DynahugError(f"{shown}{line}: not YAML: {escape(str(error.problem))}") from error
    except (yaml.YAMLError, OverflowError, RecursionError) as error:
        # Characters that YAML does not allow, numbers of none, and too many brackets.
        problem = str(error).partition("\n")[0]
        raise DynahugError(f"{shown}: not YAML: {escape(problem)}") from error
    except (OSError, ValueError) as error:
        raise DynahugError(f"{shown}: {_reason(error)}") from error
    values: dict[str, Any] = {}
    lines: dict[str, int] = {}
    if root is not None:
        if root.id != "mapping":
            raise DynahugError(f"{shown}:1: the file has to be {_KIND_NAMES[dict]}")
        _take(path, root, "", values, lines)
    return {
        name: Section(
            path,
            name,
            {
                key.removeprefix(f"{name}."): value
                for key, value in values.items()
                if key.startswith(f"{name}.")
            },
            lines,
        )
        for name, kind in _KINDS.items()
        if kind is dict and "." not in name
    }


def _take(path: str, node: Any, above: str, values: dict[str, Any], lines: dict[str, int]) -> None:
    """Put the keys of a mapping, and of those in it, by dotted name into ``values``."""
    for key_node, value_node in node.value:
        name = key_node.value if key_node.id == "scalar" else "?"
        key = above + name
        shown = f"{escape(path)}:{key_node.start_mark.line + 1}"
        if key in lines:
            raise DynahugError(f"{shown}: '{escape(key)}' is there twice")
        lines[key] = key_node.start_mark.line + 1
        known = _KINDS if "." not in name else {}
        kind = str if above == "basic_auth_users." else known.get(key)
        if kind is None:
            raise DynahugError(f"{shown}: unknown key '{escape(key)}'{_near(key, _KINDS)}")
        if kind is dict and value_node.id == "mapping":
            _take(path, value_node, f"{key}.", values, lines)
            continue
        try:
            values[key] = _value(kind, value_node)
        except ValueError:
            raise DynahugError(f"{shown}: '{escape(key)}' has to be {_KIND_NAMES[kind]}") from None


def _value(kind: type, node: Any) -> object:
    """The value of a node; ValueError: it is of another kind.

    As in Go, a number in the place of a text is a text. Only a section may be left empty: what is
    meant by a key without a value, a list of names say, is not to be guessed.
    """
    if kind is tuple and node.id == "sequence":
        return tuple(_value(str, item) for item in node.value)
    if node.id != "scalar":
        raise ValueError
    tag = node.tag.removeprefix("tag:yaml.org,2002:")
    if kind is dict and tag == "null":
        return {}
    if kind is str and tag != "null":
        return str(node.value)
    if kind is int and tag == "int":
        return int(node.value)
    if kind is bool and tag == "bool":
        return node.value.lower() in ("true", "yes", "on")
    raise ValueError


def _near(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean '{near[0]}'?" if near and near[0] != name else ""
