"""``make install`` and ``make uninstall``: what is installed works, and goes without a trace.

One installation is made into a DESTDIR and moved to its place, as a package would be.
"""

from __future__ import annotations

import argparse
import json
import marshal
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType

import pytest

from dynahugd import __version__
from dynahugd.cli import parser
from dynahugd.config import Config, load
from dynahugd.outputs.messages import Message
from install.manual import dynahugd_8, dynahugd_toml_5, roff
from install.sample import sample
from tests.harness import LOAD, RunningDaemon, run, system

REPOSITORY = Path(__file__).parents[1]


def make(target: str, **variables: Path | str) -> subprocess.CompletedProcess[str]:
    """Run a target of the Makefile."""
    settings = [f"{name}={value}" for name, value in variables.items()]
    command = ["make", "--silent", "-C", str(REPOSITORY), target, *settings]
    return subprocess.run(command, capture_output=True, text=True)


@dataclass(frozen=True, slots=True)
class Installation:
    """Where it was put together (DESTDIR, gone now), and where it is."""

    destination: Path
    prefix: Path
    etc: Path

    @property
    def program(self) -> Path:
        """What users run."""
        return self.prefix / "bin/dynahugd"

    @property
    def configuration(self) -> Path:
        """What operators edit."""
        return self.etc / "dynahugd.toml"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """An installation, as it is found on a host."""
    host = tmp_path_factory.mktemp("host")
    destination = tmp_path_factory.mktemp("destination")
    prefix, etc = host / "prefix", host / "etc"
    done = make("install", DESTDIR=destination, PREFIX=prefix, SYSCONFDIR=etc)
    assert done.returncode == 0, done.stderr
    for path in (prefix, etc):
        shutil.move(destination / path.relative_to("/"), path)
    return Installation(destination, prefix, etc)


def files(folder: Path) -> Iterator[Path]:
    """All files and links below a folder."""
    for path in folder.rglob("*"):
        if path.is_symlink() or not path.is_dir():
            yield path


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory and an environment that would take over a careless Python program."""
    folder = tmp_path / "hostile"
    for name in ("numpy", "json", "dynahugd", "sitecustomize", "bcc", "systemd"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text("open(__file__ + '.ran', 'w')\n")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setenv("PYTHONSTARTUP", str(folder / "json/__init__.py"))
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    return folder


# -------------------------------------------------------------------------------- what is there


def test_no_path_of_the_build_is_left_in_it(installed: Installation) -> None:
    traces = (os.fsencode(installed.destination), b"/lib/.dynahugd.")
    for path in files(installed.prefix):
        text = os.fsencode(path.readlink()) if path.is_symlink() else path.read_bytes()
        assert not [trace for trace in traces if trace in text], path


def test_nobody_but_root_can_change_it(installed: Installation) -> None:
    for path in (installed.prefix, *installed.prefix.rglob("*"), installed.configuration):
        status = path.lstat()
        assert status.st_uid == os.geteuid(), path
        assert path.is_symlink() or status.st_mode & 0o22 == 0, path
        assert path.is_symlink() or status.st_mode & 0o44 == 0o44, path


def test_it_is_compiled_for_its_place(installed: Installation) -> None:
    sources = list(
        installed.prefix.glob("lib/dynahugd/lib/python3*/site-packages/dynahugd/**/*.py")
    )
    assert len(sources) > 40
    for source in sources:
        cache = sys.implementation.cache_tag
        compiled = source.parent / "__pycache__" / f"{source.stem}.{cache}.pyc"
        code = marshal.loads(compiled.read_bytes()[16:])
        assert isinstance(code, CodeType)
        assert code.co_filename == str(source)


def test_all_texts_name_the_prefix(installed: Installation) -> None:
    texts = [*installed.prefix.glob("lib/systemd/**/*"), *installed.prefix.glob("share/man/**/*")]
    texts += [installed.program, *installed.prefix.glob("share/dynahugd/drop-ins/*")]
    assert len([path for path in texts if path.is_file()]) >= 8
    for path in texts:
        assert path.is_dir() or "/usr/local" not in path.read_text(), path


def test_the_documents_and_the_files_for_prometheus_are_there(installed: Installation) -> None:
    documents = installed.prefix / "share/doc/dynahugd"
    for path in (REPOSITORY / "docs").rglob("*.md"):
        assert (documents / path.relative_to(REPOSITORY)).read_text() == path.read_text()
    monitoring = installed.prefix / "share/dynahugd/monitoring"
    assert (monitoring / "alerts.yml").is_file()
    assert not list(monitoring.glob("*.test.yml"))


# -------------------------------------------------------------------------------- the program


def test_nothing_of_the_callers_gets_into_the_program(
    installed: Installation, hostile: Path
) -> None:
    version = subprocess.check_output([installed.program, "--version"], text=True)
    assert version == f"dynahugd {__version__}\n"
    subprocess.run([installed.program, "baseline", "check"], check=True, capture_output=True)
    assert list(hostile.rglob("*.ran")) == []


def test_dependencies_are_its_own(installed: Installation) -> None:
    source = (
        "import bcrypt, numpy, prometheus_client, pyarrow, urllib3, yaml\n"
        "import sys; print(*(module.__file__ for module in (\n"
        "    bcrypt, numpy, prometheus_client, pyarrow, urllib3, yaml)), sep='\\n')"
    )
    python = installed.prefix / "lib/dynahugd/bin/python3"
    found = subprocess.check_output([python, "-I", "-c", source], text=True).splitlines()
    assert [path for path in found if not path.startswith(str(installed.prefix))] == []


@pytest.mark.ebpf
def test_both_loaders_work(installed: Installation, hostile: Path) -> None:
    told = json.loads(subprocess.check_output([installed.program, "doctor", "--json"]))
    checks = {check["name"]: check["good"] for check in told["checks"]}
    assert checks["loader libbpf"]
    assert checks["loader bcc"]
    assert checks["systemd"]
    assert list(hostile.rglob("*.ran")) == []


@pytest.mark.ebpf
def test_it_sees_a_malicious_load(
    installed: Installation, hostile: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    evil = tmp_path / "evil.pkl"
    evil.write_bytes(system("true"))
    with RunningDaemon(tmp_path, program=[str(installed.program)]) as daemon:
        monkeypatch.delenv("PYTHONHOME")
        monkeypatch.delenv("PYTHONPATH")
        pid = run(f"import sys; sys.path.remove('')\n{LOAD}", evil)
        assert daemon.expect(pid, "alert")["path"] == str(evil)
    assert list(hostile.rglob("*.ran")) == []


# ------------------------------------------------------------------------------------ the unit


def test_systemd_finds_all_that_the_unit_names(installed: Installation) -> None:
    unit = installed.prefix / "lib/systemd/system/dynahugd.service"
    assert f"ExecStart={installed.program} run\n" in unit.read_text()
    assert f"ExecPaths=/usr {installed.prefix}\n" in unit.read_text()
    manuals = os.environ | {"MANPATH": str(installed.prefix / "share/man")}
    verify = ["systemd-analyze", "verify", str(unit)]
    verified = subprocess.run(verify, capture_output=True, text=True, check=True, env=manuals)
    assert verified.stdout + verified.stderr == ""


def test_the_journal_reads_the_catalog(installed: Installation, tmp_path: Path) -> None:
    folder = tmp_path / "usr/local/lib/systemd/catalog"
    folder.mkdir(parents=True)
    shutil.copy(installed.prefix / "lib/systemd/catalog/dynahugd.catalog", folder)
    (tmp_path / "var/lib/systemd/catalog").mkdir(parents=True)
    journalctl = ["journalctl", f"--root={tmp_path}"]
    subprocess.run([*journalctl, "--update-catalog"], check=True)
    listed = subprocess.check_output([*journalctl, "--list-catalog"], text=True)
    for message in Message:
        assert f"{message.id} dynahugd: {message.subject}" in listed


# ------------------------------------------------------------------------------- configuration


def test_the_configuration_shows_every_key_and_changes_none(installed: Installation) -> None:
    path = str(installed.configuration)
    assert load(path) == Config()
    text = installed.configuration.read_text()
    assert text == sample()
    # A line that begins with '#' and no space is a key.
    keys = "\n".join(
        line[1:] if line[:1] == "#" and line[1:2].isalpha() else line for line in text.splitlines()
    )
    installed.configuration.write_text(keys)
    try:
        assert load(path) == Config()
    finally:
        installed.configuration.write_text(text)
    assert sum(map(len, tomllib.loads(keys).values())) == keys.count(" = ")


# ---------------------------------------------------------------------------------- completion


def completed(installed: Installation, *words: str) -> set[str]:
    """What bash offers for the last word."""
    script = (
        f"source {installed.prefix}/share/bash-completion/completions/dynahugd\n"
        "call=$(complete -p dynahugd | grep -o -e '-F [^ ]*' | cut -c 4-)\n"
        'COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}\n'
        '"$call" dynahugd "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"\n'
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    command = ["bash", "--norc", "-c", script, "bash", "dynahugd", *words]
    return set(subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL).split())


def test_bash_completes_commands_options_and_choices(installed: Installation) -> None:
    assert {"run", "record", "replay"} <= completed(installed, "r")
    assert completed(installed, "run", "--alert") == {"--alert-log"}
    assert completed(installed, "run", "--loader", "") == {"auto", "libbpf", "bcc"}
    assert completed(installed, "baseline", "d") >= {"diff"}


def test_bash_completes_files(
    installed: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "loads.parquet").touch()
    monkeypatch.chdir(tmp_path)
    for words in (["replay", "lo"], ["run", "--baseline", "lo"], ["train", "lo"], ["learn", "lo"]):
        assert completed(installed, *words) == {"loads.parquet"}, words


@pytest.mark.skipif(not shutil.which("zsh"), reason="no zsh")
def test_zsh_takes_the_completion(installed: Installation, tmp_path: Path) -> None:
    folder = installed.prefix / "share/zsh/site-functions"
    subprocess.run(["zsh", "-f", "-n", folder / "_dynahugd"], check=True)
    script = (
        f"fpath=({folder} $fpath); autoload -U compinit; compinit -u -D\n"
        "echo $_comps[dynahugd]; autoload +X _dynahugd && echo loaded"
    )
    told = subprocess.check_output(["zsh", "-f", "-c", script], text=True, cwd=tmp_path)
    assert told.split() == ["_dynahugd", "loaded"]


# ----------------------------------------------------------------------------------- man pages

MANUALS = {"man8/dynahugd.8": dynahugd_8, "man5/dynahugd.toml.5": dynahugd_toml_5}


@pytest.mark.parametrize("page", MANUALS)
def test_man_renders_without_a_warning(installed: Installation, page: str) -> None:
    path = installed.prefix / "share/man" / page
    environment = os.environ | {"LC_ALL": "C.UTF-8", "MANWIDTH": "80"}
    command = ["man", "--warnings", "--local-file", str(path)]
    shown = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert shown.stderr == ""
    assert f"dynahugd {__version__}" in shown.stdout
    for heading in ("NAME", "SYNOPSIS", "DESCRIPTION", "EXAMPLES", "SEE ALSO"):
        assert f"\n{heading}\n" in shown.stdout
    strict = ["groff", "-ww", "-man", "-Tutf8", str(path)]
    rendered = subprocess.run(strict, capture_output=True, text=True, check=True)
    assert rendered.stderr == ""


@pytest.mark.skipif(not shutil.which("mandoc"), reason="no mandoc")
@pytest.mark.parametrize("page", MANUALS)
def test_mandoc_has_nothing_to_complain_about(installed: Installation, page: str) -> None:
    path = installed.prefix / "share/man" / page
    lint = ["mandoc", "-T", "lint", "-W", "warning", str(path)]
    assert subprocess.run(lint, capture_output=True, text=True).stdout == ""


def test_the_manual_has_every_option_of_every_command() -> None:
    text = dynahugd_8().replace(r"\-", "-")
    commands = [a.choices for a in parser()._actions if isinstance(a, argparse._SubParsersAction)]
    for name, command in commands[0].items():
        section = text.split(f".SS dynahugd {name}\n")[1].split("\n.S")[0]
        for option in command._actions:
            for string in set(option.option_strings) - {"-h", "--help"}:
                assert rf"\fB{string}\fR" in section, (name, string)


def test_text_cannot_be_a_request() -> None:
    assert roff(r".so /etc/passwd") == r"\&.so /etc/passwd"
    assert roff(r"a\fBb 'c' `-d`") == r"a\efBb \(aqc\(aq \fB\-d\fR"


# ---------------------------------------------------------------------- again, and away with it


@pytest.fixture
def copy(installed: Installation, tmp_path: Path) -> Installation:
    """Another installation with state, in a DESTDIR."""
    for path in (installed.prefix, installed.etc):
        target = tmp_path / path.relative_to("/")
        shutil.copytree(path, target, symlinks=True, copy_function=os.link)
    (tmp_path / "var/lib/dynahugd").mkdir(parents=True)
    (tmp_path / "var/lib/dynahugd/host.npz").touch()
    return Installation(tmp_path, installed.prefix, installed.etc)


def uninstall(installation: Installation) -> str:
    """Run it; what it said."""
    done = make(
        "uninstall",
        DESTDIR=installation.destination,
        PREFIX=installation.prefix,
        SYSCONFDIR=installation.etc,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_only_state_is_left_and_it_is_named(copy: Installation) -> None:
    state = copy.destination / "var/lib/dynahugd"
    assert uninstall(copy) == f"left: {state}\n"
    assert list(files(copy.destination)) == [state / "host.npz"]


def test_a_changed_configuration_is_left_and_named(copy: Installation) -> None:
    configuration = copy.destination / copy.configuration.relative_to("/")
    configuration.unlink()
    configuration.write_text("[verdict]\nalpha = 0.01\n")
    assert f"left: {configuration}\n" in uninstall(copy)
    assert configuration.read_text() == "[verdict]\nalpha = 0.01\n"


def test_an_installation_takes_the_place_of_another_but_not_of_a_changed_configuration(
    tmp_path: Path,
) -> None:
    prefix, etc = tmp_path / "prefix", tmp_path / "etc"
    old = prefix / "lib/dynahugd/lib/python3.11/site-packages/old.py"
    old.parent.mkdir(parents=True)
    old.touch()
    etc.mkdir()
    (etc / "dynahugd.toml").write_text("[verdict]\nalpha = 0.01\n")
    done = make("install", PREFIX=prefix, SYSCONFDIR=etc)
    assert done.returncode == 0, done.stderr
    assert not old.exists()
    assert f"left as it is: {etc}/dynahugd.toml" in done.stdout
    assert (etc / "dynahugd.toml").read_text() == "[verdict]\nalpha = 0.01\n"
    assert f"{prefix}/bin/dynahugd doctor" in done.stdout
    version = subprocess.check_output([prefix / "bin/dynahugd", "--version"], text=True)
    assert version == f"dynahugd {__version__}\n"


def test_a_failure_leaves_the_installation_that_was_there(
    copy: Installation, tmp_path: Path
) -> None:
    before = sorted(files(copy.destination))
    failed = make(
        "install",
        DESTDIR=copy.destination,
        PREFIX=copy.prefix,
        SYSCONFDIR=copy.etc,
        PYTHON="/bin/false",
    )
    assert failed.returncode != 0
    assert sorted(files(copy.destination)) == before


@pytest.mark.parametrize("prefix", ["relative", "/with space", "/with,comma", "/with'quote"])
def test_a_prefix_that_cannot_be_used_is_refused(prefix: str, tmp_path: Path) -> None:
    environment = os.environ | {"DESTDIR": str(tmp_path), "PREFIX": prefix}
    refused = subprocess.run(
        [REPOSITORY / "install/install.sh"], env=environment, capture_output=True, text=True
    )
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"dynahugd: {prefix}: PREFIX and SYSCONFDIR ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("script", "said"), [("install", "sudo make install"), ("uninstall", "sudo make uninstall")]
)
@pytest.mark.skipif(os.geteuid() != 0, reason="root becomes another user")
def test_who_may_not_write_is_told_what_to_do(script: str, said: str) -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as prefix:
        os.chmod(prefix, 0o755)
        os.mkdir(f"{prefix}/lib")
        other = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        refused = subprocess.run(
            [*other, REPOSITORY / f"install/{script}.sh"],
            env=os.environ | {"DESTDIR": "", "PREFIX": prefix},
            capture_output=True,
            text=True,
        )
    assert refused.returncode == 1
    assert said in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
