"""Text from watched processes, made safe to print.

Paths, module names and arguments come from processes that may be hostile: they hold whatever bytes
their makers want, terminal escapes and newlines among them.
"""

from __future__ import annotations

import unicodedata

__all__ = ["escape", "shorten"]

#: Unicode categories that print as something other than themselves: controls, formats (with the
#: bidirectional overrides), surrogates, private use, unassigned, separators other than the space.
_UNPRINTABLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"})


def _escaped(character: str) -> str:
    if character == "\\":
        return "\\\\"
    if character == " " or unicodedata.category(character) not in _UNPRINTABLE:
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that was not UTF-8, as os.fsdecode keeps it
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def escape(text: str) -> str:
    r"""One printable line; two different texts never give the same.

    Backslashes double, bytes that are not UTF-8 and ASCII controls become ``\xNN``, other
    characters that do not show as themselves ``\uNNNN`` or ``\UNNNNNNNN``.
    """
    if text.isascii() and text.isprintable() and "\\" not in text:
        return text
    return "".join(map(_escaped, text))


def shorten(text: str, limit: int) -> str:
    """The text, or its beginning and end around an ellipsis: at most ``limit`` characters.

    The end of a path is what tells files apart, so it keeps the larger part.
    """
    if len(text) <= limit:
        return text
    head = (limit - 1) // 3
    return text[:head] + "…" + text[len(text) - (limit - 1 - head) :]
