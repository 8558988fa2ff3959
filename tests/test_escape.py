"""Escaped text is one printable line that says exactly which text it was."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynahugd.escape import escape, shorten

#: Anything a Python string can hold, lone surrogates too, and what the escapes are made of.
TEXT = st.text(st.characters(codec=None)) | st.text(
    "\\x0a1buU\n\x1b\x85\udc85\ud800\u202e\U000e0001"
)


def told_back(escaped: str) -> str:
    """The text that was escaped, read from the documented forms alone."""
    text, rest = "", escaped
    while rest:
        if rest[0] != "\\":
            text, rest = text + rest[0], rest[1:]
        elif rest[1] == "\\":
            text, rest = text + "\\", rest[2:]
        else:
            length = {"x": 2, "u": 4, "U": 8}[rest[1]]
            code = int(rest[2 : 2 + length], 16)
            if rest[1] == "x" and code >= 0x80:
                code += 0xDC00  # a byte that was not UTF-8
            text, rest = text + chr(code), rest[2 + length :]
    return text


@given(TEXT)
@settings(deadline=None)
def test_escaped_text_is_one_printable_line_and_tells_exactly_its_text(text: str) -> None:
    escaped = escape(text)
    assert escaped.isprintable()
    assert len(escaped.splitlines()) <= 1
    escaped.encode()
    assert told_back(escaped) == text


@given(st.binary())
@settings(deadline=None)
def test_file_names_of_any_bytes_are_told_back(raw: bytes) -> None:
    escaped = escape(os.fsdecode(raw))
    assert escaped.isprintable()
    assert os.fsencode(told_back(escaped)) == raw


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/models/modèle 模型.pkl", "/models/modèle 模型.pkl"),
        ("\x1b]0;owned\x07", "\\x1b]0;owned\\x07"),
        ("two\r\nlines", "two\\x0d\\x0alines"),
        ("\u202egpj.exe", "\\u202egpj.exe"),
        ("\\x1b", "\\\\x1b"),
        ("\x85\udc85", "\\u0085\\x85"),
        ("\u00a0\u2028\U000e0001", "\\u00a0\\u2028\\U000e0001"),
    ],
)
def test_what_prints_as_something_else_is_spelled_out(text: str, expected: str) -> None:
    assert escape(text) == expected


@given(st.text(st.characters(exclude_characters="…")), st.integers(1, 60))
@settings(deadline=None)
def test_shortened_text_keeps_the_limit_and_both_ends(text: str, limit: int) -> None:
    short = shorten(text, limit)
    assert len(short) == min(len(text), limit)
    if len(text) > limit:
        head, tail = short.split("…")
        assert text.startswith(head)
        assert text.endswith(tail)
        assert len(tail) >= len(head)
    else:
        assert short == text
