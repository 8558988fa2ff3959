"""The configuration as it is installed: every key with its text and default, commented out.

``python -m install.sample`` prints it.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from dynahugd.config import Config

__all__ = ["sample", "tables", "value_of"]

_HEAD = """\
# Configuration of dynahugd: dynahugd.toml(5). Every key is shown with its default; take the '#'
# away from a key to change it. 'systemctl reload dynahugd' has it read again.
#
# The service sees neither /home nor /tmp, and may write below /var/lib/dynahugd and
# /var/log/dynahugd only.
"""


def value_of(default: object) -> str:
    """A default in TOML, which agrees with JSON on texts, numbers and lists of them."""
    return json.dumps(default)


def tables() -> Iterator[tuple[str, Any]]:
    """Name of each table, and a dataclass of its keys with their defaults."""
    defaults = Config()
    for table in fields(defaults):
        yield table.name, getattr(defaults, table.name)


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text, 97)]


def sample() -> str:
    """The file."""
    lines = [_HEAD]
    for table, keys in tables():
        lines += [*_comment(str(keys.__doc__)), f"[{table}]", ""]
        for key in fields(keys):
            lines += [*_comment(key.metadata["text"]), f"#{key.name} = {value_of(key.default)}", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    print(sample(), end="")
