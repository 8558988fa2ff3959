"""The configuration: what is documented can be written down, what is not is refused by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import pytest

from dynahugd.config import DEFAULT_PATH, Config, ConfigError, documentation, load


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str], str]:
    """Write a configuration file; its path."""

    def write(text: str) -> str:
        path = tmp_path / "dynahugd.toml"
        path.write_text(text)
        return str(path)

    return write


def refusal(path: str | None, overrides: Mapping[str, object] | None = None) -> str:
    """The sentence that a configuration is refused with."""
    with pytest.raises(ConfigError) as caught:
        load(path, overrides)
    text = str(caught.value)
    assert text.isprintable(), "one line, nothing of the file unescaped"
    return text


def documented() -> str:
    """A TOML file of all that the documentation shows: tables and keys with their defaults."""
    return "\n".join(
        re.findall(r"^(?:## `(?=\[)|- `(?=\w+ = ))(.*)`$", documentation(), re.MULTILINE)
    )


def test_every_documented_key_with_its_default_is_what_an_empty_file_means(
    written: Callable[[str], str],
) -> None:
    text = documented()
    assert load(written(text)) == load(written("")) == Config()
    keys = [f"{table}.{key}" for table, keys in asdict(Config()).items() for key in keys]
    assert len(re.findall(r" = ", text)) == len(keys)


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("[daemon]\nlisten = ''", ("daemon", "listen", "")),
        ("[daemon]\nlisten = '[::1]:0'", ("daemon", "listen", "[::1]:0")),
        ("[daemon]\nalert_log = '/var/log/ä.jsonl'", ("daemon", "alert_log", "/var/log/ä.jsonl")),
        ("probe.hop = 1", ("probe", "hop", 1.0)),
        ("[probe]\nidle = 86400", ("probe", "idle", 86400.0)),
        ("[probe]\nlinger = 0", ("probe", "linger", 0.0)),
        ("[probe]\nsuffixes = []", ("probe", "suffixes", ())),
        ("probe = {suffixes = ['pt', 'ünï']}", ("probe", "suffixes", ("pt", "ünï"))),
        ("[tables]\nring_bytes = 4096", ("tables", "ring_bytes", 4096)),
        ("[verdict]\nalpha = 1e-9", ("verdict", "alpha", 1e-9)),
    ],
)
def test_values_at_the_edge_are_taken(
    written: Callable[[str], str], line: str, value: tuple[str, str, object]
) -> None:
    table, key, expected = value
    found = getattr(getattr(load(written(line)), table), key)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("\n[deamon]\n", ":2: unknown table or key 'deamon'; did you mean 'daemon'?"),
        ("alpha = 0.1", ":1: unknown table or key 'alpha'"),
        (
            "[verdict]\n# alpha\nalpah = 0.1",
            ":3: unknown key 'verdict.alpah'; did you mean 'verdict.alpha'?",
        ),
        (
            "[tables]\nqqqqqqqqqqqqqqqqqqqqqqq = 1",
            ":2: unknown key 'tables.qqqqqqqqqqqqqqqqqqqqqqq'",
        ),
        ("[probe]\nhop = 1\n[daemon.listen]\nx = 1", ":3: 'daemon.listen' has to be text"),
        ("\n\ndaemon = 1", ":3: 'daemon' has to be a table"),
        ("[[daemon]]\nlisten = ''", ": 'daemon' has to be a table"),
        ("[daemon]\nlisten = 9797", ":2: 'daemon.listen' has to be text"),
        ("[probe]\nhop = '1'", ":2: 'probe.hop' has to be a number"),
        ("[probe]\nhop = true", ":2: 'probe.hop' has to be a number"),
        ("[probe]\nhop = nan", ":2: 'probe.hop' has to be a number"),
        ("[probe]\nhop = inf", ":2: 'probe.hop' has to be from 0.05 to 10"),
        ("[probe]\nidle = 0.5", ":2: 'probe.idle' has to be from 1 to 86400"),
        ("[probe]\nlinger = -0.1", ":2: 'probe.linger' has to be from 0 to 86400"),
        ("[probe]\nloader = 'gcc'", ":2: 'probe.loader' has to be one of auto, libbpf, bcc"),
        ("[daemon]\nlog_format = ''", ":2: 'daemon.log_format' has to be one of auto, plain, json"),
        ("[probe]\nsuffixes = 'pt'", ":2: 'probe.suffixes' has to be a list of texts"),
        ("[probe]\nsuffixes = ['pt', 1]", ":2: 'probe.suffixes' has to be a list of texts"),
        ("[probe]\nsuffixes = ['.pt']", ":2: 'probe.suffixes' holds '.pt': "),
        ("[probe]\nsuffixes = ['']", ":2: 'probe.suffixes' holds '': "),
        ("[probe]\nwrappers = ['a/b']", ":2: 'probe.wrappers' holds 'a/b': "),
        ("[probe]\nwrappers = ['ääääääää']", ":2: 'probe.wrappers' holds 'ääääääää': "),
        (
            f"[probe]\nwrappers = {['x'] * 201}",
            ":2: 'probe.wrappers' may hold at most 120 suffixes",
        ),
        ("[alertmanager]\nurls = ['h:9093']", ":2: 'alertmanager.urls' holds 'h:9093': write"),
        ("[alertmanager]\nurls = ['ftp://h']", ":2: 'alertmanager.urls' holds 'ftp://h': write"),
        ("[alertmanager]\nurls = ['http://h:65536']", ":2: 'alertmanager.urls' holds "),
        ("[alertmanager]\nurls = ['http://h/?a=b']", ":2: 'alertmanager.urls' holds "),
        ("[alertmanager]\nurls = ['http://u:p@h']", ":2: 'alertmanager.urls' holds "),
        (
            f"[alertmanager]\nurls = {['http://h'] * 17}",
            ":2: 'alertmanager.urls' may hold at most 16 addresses",
        ),
        ("[alertmanager]\nlabels = ['a']", ":2: 'alertmanager.labels' holds 'a': write name=value"),
        ("[alertmanager]\nlabels = ['a-b=c']", ":2: 'alertmanager.labels' holds 'a-b=c': "),
        ("[alertmanager]\nquiet = 1", ":2: 'alertmanager.quiet' has to be from 10 to 86400"),
        ("[tables]\nmax_loads = 1024.0", ":2: 'tables.max_loads' has to be a whole number"),
        ("[tables]\nmax_loads = true", ":2: 'tables.max_loads' has to be a whole number"),
        ("[tables]\nmax_loads = 0", ":2: 'tables.max_loads' has to be from 1 to 65536"),
        ("[tables]\nring_bytes = 4097", ":2: 'tables.ring_bytes' has to be a power of two "),
        ("[tables]\nring_bytes = 2048", ":2: 'tables.ring_bytes' has to be a power of two "),
        ("[verdict]\nalpha = 0", ":2: 'verdict.alpha' has to be from 1e-09 to 0.5"),
        ("[verdict]\nalpha = 0.51", ":2: 'verdict.alpha' has to be from 1e-09 to 0.5"),
        ("[verdict]\nwindow = 1979-05-27", ":2: 'verdict.window' has to be a number"),
        ("[daemon]\nlisten = '9797'", ":2: 'daemon.listen' has to be HOST:PORT, or empty"),
        ("[daemon]\nlisten = ':9797'", ":2: 'daemon.listen' has to be HOST:PORT, or empty"),
        ("[daemon]\nlisten = 'a:65536'", ":2: 'daemon.listen' has to be HOST:PORT, or empty"),
        ("[daemon]\nlisten = 'a:-1'", ":2: 'daemon.listen' has to be HOST:PORT, or empty"),
        ('[daemon]\nbaseline = "a\\u0000b"', ":2: 'daemon.baseline' holds a NUL character"),
        ('[daemon]\n"\\u001b[2J\\n" = 1', ": unknown key 'daemon.\\x1b[2J\\x0a'"),
        ('"\\u202e" = 1', ": unknown table or key '\\u202e'"),
        ("alpha", ": not TOML: "),
        ("[daemon]\nlisten = ''\nlisten = ''", ": not TOML: "),
        ("a = " + "[" * 5000, ": not TOML: "),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_line_and_key(
    written: Callable[[str], str], text: str, said: str
) -> None:
    path = written(text)
    assert refusal(path).startswith(path + said)


@pytest.mark.parametrize(
    "text",
    [
        f"[tables]\nmax_loads = {'9' * 5000}",
        f"[verdict]\nalpha = {'9' * 400}",
        f"[daemon]\nlisten = 'a:{'9' * 5000}'",
    ],
    ids=["whole number", "number", "port"],
)
def test_numbers_too_long_for_python_are_refused(written: Callable[[str], str], text: str) -> None:
    path = written(text)
    assert refusal(path).startswith(path)


def test_a_file_that_cannot_be_read_is_refused_by_its_escaped_name(tmp_path: Path) -> None:
    assert refusal(str(tmp_path / "no\x1b\n\udcff")) == (
        f"{tmp_path}/no\\x1b\\x0a\\xff: there is no such file"
    )
    assert refusal(str(tmp_path)) == f"{tmp_path}: Is a directory"
    assert refusal(f"{tmp_path}\0").startswith(f"{tmp_path}\\x00: ")
    binary = tmp_path / "binary"
    binary.write_bytes(b"# \xff")
    assert refusal(str(binary)) == f"{binary}: not UTF-8 at byte 2"


@pytest.mark.skipif(Path(DEFAULT_PATH).exists(), reason=f"this host has a {DEFAULT_PATH}")
def test_only_the_default_file_may_be_missing() -> None:
    assert load(None) == Config()
    assert refusal(DEFAULT_PATH).endswith("there is no such file")


def test_options_win_over_the_file_and_are_named_where_they_are_wrong(
    written: Callable[[str], str],
) -> None:
    path = written("[verdict]\nalpha = 0.2\nwindow = 3\n[daemon]\nalert_log = 'a'")
    config = load(path, {"verdict.alpha": 0.1, "daemon.alert_log": ""})
    assert (config.verdict.alpha, config.verdict.window) == (0.1, 3.0)
    assert config.daemon.alert_log == ""
    for override, said in (
        ({"verdict.alpha": 2.0}, "option --alpha: 'verdict.alpha' has to be from 1e-09 to 0.5"),
        ({"verdict.alpha": float("nan")}, "option --alpha: 'verdict.alpha' has to be a number"),
        ({"daemon.alert_log": "\0"}, "option --alert-log: 'daemon.alert_log' holds a NUL"),
    ):
        assert refusal(path, override).startswith(said)
