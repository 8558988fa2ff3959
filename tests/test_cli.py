"""The command line without a kernel: what is wrong is said in a sentence and an exit status."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dynahugd import __version__
from dynahugd.baseline import write
from dynahugd.cli import main
from dynahugd.commands import COMMANDS
from dynahugd.probes.batch import Batch
from tests.test_baseline_files import small_baseline
from tests.test_recording import HOSTILE, a_load, later
from tests.test_recording import write as record

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """The width that usage is wrapped to."""
    monkeypatch.setenv("COLUMNS", "100")


@pytest.fixture
def baseline(tmp_path: Path) -> str:
    """A baseline file."""
    path = tmp_path / "b.npz"
    write(small_baseline(), path)
    return str(path)


@pytest.fixture
def config(tmp_path: Path) -> str:
    """A configuration of this test's own: the host may have one."""
    path = tmp_path / "c.toml"
    path.touch()
    return str(path)


def sentence(capsys: Captured, *arguments: str) -> str:
    """The one line that a command that fails says."""
    assert main(list(arguments)) == 1
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert line.isprintable()
    return line.removeprefix("dynahugd: ")


def process(*arguments: str, **options: int) -> subprocess.Popen[bytes]:
    """The program, as a user starts it."""
    command = [sys.executable, "-m", "dynahugd", *arguments]
    buffered = os.environ | {"PYTHONUNBUFFERED": ""}
    return subprocess.Popen(command, stderr=subprocess.PIPE, env=buffered, **options)  # type: ignore[call-overload,no-any-return]


def loads(number: int) -> list[Batch]:
    """Batches of so many loads, watched to their ends."""
    return [*(a_load(n, 1000 * n) for n in range(1, number + 1)), later(1000 * (number + 1))]


# ------------------------------------------------------------------------------------- usage


def test_the_version_and_the_help_are_told(capsys: Captured) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr() == (f"dynahugd {__version__}\n", "")
    assert main(["--help"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    for name, module in COMMANDS.items():
        assert f"    {name} " in said.out
        assert module.HELP[:30] in said.out
    assert "examples:\n  dynahugd " in said.out


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_has_an_example_and_its_exit_status(
    name: str, capsys: Captured
) -> None:
    assert main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"usage: dynahugd {name} " in text
    assert f"examples:\n  dynahugd {name}" in text
    assert "Exit status: " in text
    assert "2 wrong\nusage." in text or "2 wrong usage." in text
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "required: COMMAND"),
        ("nothing", "invalid choice: 'nothing'"),
        ("--verbose", "required: COMMAND"),
        ("run --nothing", "unrecognized arguments: --nothing"),
        ("run --alp 0.1", "unrecognized arguments: --alp 0.1"),
        ("run --alpha much", "argument --alpha: invalid float value: 'much'"),
        ("run --loader gcc", "argument --loader: invalid choice: 'gcc'"),
        ("run --max-loads 1.5", "argument --max-loads: invalid int value: '1.5'"),
        ("record", "required: -o/--output"),
        ("replay", "required: FILE"),
        ("train", "required: FILE, -o/--output"),
        ("train -o b.npz", "required: FILE"),
        ("train r.parquet", "required: -o/--output"),
        ("train r -o b --clusters 0", "argument --clusters: has to be from 1 to 1000"),
        ("train r -o b --seed -1", "argument --seed: has to be from 0 to 4294967295"),
        ("train r -o b --seed x", "argument --seed: invalid whole_number value: 'x'"),
        ("baseline", "required: action"),
        ("baseline look", "invalid choice: 'look'"),
    ],
)
def test_wrong_usage_is_status_2_and_shows_the_usage(
    line: str, said: str, capsys: Captured
) -> None:
    assert main(line.split()) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("usage: dynahugd")
    assert said in shown.err.splitlines()[-1]


def test_an_option_out_of_range_is_named(capsys: Captured, config: str) -> None:
    for option, value, said in (
        ("--alpha", "2", "option --alpha: 'verdict.alpha' has to be from 1e-09 to 0.5"),
        ("--window", "nan", "option --window: 'verdict.window' has to be a number"),
        ("--config", "/missing/c", "/missing/c: there is no such file"),
    ):
        assert sentence(capsys, "replay", "r", "--config", config, option, value) == said


# ------------------------------------------------------------------------------- baseline


def test_a_baseline_is_checked_and_shown(capsys: Captured, baseline: str) -> None:
    assert main(["baseline", "check", baseline]) == 0
    assert capsys.readouterr() == (f"{baseline}: usable, 2 clusters\n", "")
    assert main(["baseline", "check", baseline, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"baseline": baseline, "usable": True}
    assert main(["baseline", "show", baseline]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{baseline}: 5 columns, 2 known globals"
    assert "  note: \\x1b and \\ud800" in lines
    assert [line.split() for line in lines[-2:]] == [
        ["npz-0", "90", "120", "3", "9"],
        ["pickle-1", "91", "120", "3", "9"],
    ]
    assert main(["baseline", "show", baseline, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["metadata"]["loads"] == 181
    assert [item["name"] for item in shown["clusters"]] == ["npz-0", "pickle-1"]


def test_two_baselines_are_compared(capsys: Captured, baseline: str, tmp_path: Path) -> None:
    other = str(tmp_path / "other.npz")
    small = small_baseline()
    columns = tuple(name.replace("execute.shell", "write.\x1b[2J") for name in small.columns)
    known = frozenset({("numpy", "ndarray"), ("torch", "Size")})
    write(replace(small, columns=columns, known_globals=known, index={}), other)
    assert main(["baseline", "diff", baseline, other]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{baseline} -> {other}: 181 -> 181 loads, 2 -> 2 clusters",
        "+ column  write.\\x1b[2J",
        "- column  execute.shell",
        "+ global  torch.Size",
        "- global  ünï.code.Näme",
    ]
    assert main(["baseline", "diff", baseline, baseline]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert main(["baseline", "diff", other, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["baselines"] == ["embedded", other]
    assert "write.\x1b[2J" in printed["columns"]["added"]
    assert printed["columns"]["removed"]


def test_baseline_takes_as_many_files_as_make_sense(capsys: Captured, baseline: str) -> None:
    assert sentence(capsys, "baseline", "diff") == (
        "diff takes two baselines, or one to compare with the embedded one"
    )
    assert sentence(capsys, "baseline", "show", baseline, baseline) == (
        "show takes one baseline at a time"
    )


def test_a_baseline_that_cannot_be_used_is_refused_in_a_sentence(
    capsys: Captured, baseline: str, tmp_path: Path
) -> None:
    path = Path(baseline)
    path.write_bytes(path.read_bytes()[:-1000])
    damaged = f"{baseline} is damaged or no baseline: restore it or train again"
    assert sentence(capsys, "baseline", "check", baseline) == damaged
    assert sentence(capsys, "baseline", "show", baseline, "--json") == damaged
    hostile = f"{tmp_path}/\x1b\n\udcff"
    assert sentence(capsys, "baseline", "check", hostile) == (
        f"cannot read the baseline {tmp_path}/\\x1b\\x0a\\xff: No such file or directory"
    )


# --------------------------------------------------------------------------------- replay


def test_a_recording_is_judged(
    capsys: Captured, baseline: str, config: str, tmp_path: Path
) -> None:
    batches = [a_load(number, 1000 * number, shell=number == 2) for number in range(1, 4)]
    recording = str(record(tmp_path / "r.parquet", *batches))
    options = ["--config", config, "--baseline", baseline]
    assert main(["replay", recording, *options, "--json"]) == 0
    verdicts = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [verdict["path"] for verdict in verdicts] == ["/models/\\xff\\x0a\\x1b[2J.pkl"] * 3
    assert verdicts[1]["verdict"] == "anomalous"
    assert verdicts[1]["reasons"][0]["feature"] == "execute.shell"
    assert "exec /bin/sh" in [item["detail"] for item in verdicts[1]["evidence"]]
    assert main(["replay", recording, *options]) == 0
    said = capsys.readouterr()
    assert said.out.isascii()
    assert said.out.count("ANOMALOUS") == sum(v["verdict"] == "anomalous" for v in verdicts)
    assert said.err.startswith("3 loads: ")


def test_a_load_that_lasts_beyond_the_recording_is_judged_too(
    capsys: Captured, baseline: str, config: str, tmp_path: Path
) -> None:
    batch = a_load(shell=True)
    batch.records["load"][-1] = 0  # its end is not in the recording
    recording = str(record(tmp_path / "r.parquet", batch))
    assert main(["replay", recording, "--config", config, "--baseline", baseline, "--json"]) == 0
    (verdict,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert verdict["verdict"] == "anomalous"


def test_a_recording_that_cannot_be_used_is_refused_in_a_sentence(
    capsys: Captured, baseline: str, config: str, tmp_path: Path
) -> None:
    hostile = tmp_path / HOSTILE.replace("/", "")
    options = ("--config", config, "--baseline", baseline)
    name = f"{tmp_path}/models\\xff\\x0a\\x1b[2J.pkl"
    assert sentence(capsys, "replay", str(hostile), *options) == (
        f"cannot read the recording {name}: No such file or directory"
    )
    hostile.write_bytes(b"PAR1")
    assert sentence(capsys, "replay", str(hostile), *options).startswith(f"{name} is damaged")
    assert sentence(capsys, "train", str(hostile), "-o", "b").startswith(f"{name} is damaged")


# ---------------------------------------------------------------------------------- train


def test_a_baseline_is_trained_from_recordings(
    capsys: Captured, config: str, tmp_path: Path
) -> None:
    recordings = [
        str(record(tmp_path / f"{day}\udcff", *loads(39))) for day in ("monday", "tuesday")
    ]
    output = f"{tmp_path}/b\udcff.npz"
    assert main(["train", recordings[0], "-o", output]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    counted, failed = said.err.splitlines()
    assert re.fullmatch("39 loads, [0-9]+ rows, 1 known globals", counted)
    assert failed == "dynahugd: 39 loads are too few for a baseline: record at least 50"
    assert not os.path.exists(output)
    assert main(["train", *recordings, "-o", output, "--seed", "3", "--note", "both days"]) == 0
    said = capsys.readouterr()
    assert said.out == f"{tmp_path}/b\\xff.npz: 1 clusters, 2 columns\n"
    assert said.err.startswith("78 loads, ")
    assert main(["baseline", "show", output, "--json"]) == 0
    metadata = json.loads(capsys.readouterr().out)["metadata"]
    assert (metadata["loads"], metadata["note"]) == (78, "both days")
    assert [item["file"] for item in metadata["recordings"]] == ["monday\udcff", "tuesday\udcff"]
    again = recordings[1]
    assert main(["replay", again, "--config", config, "--baseline", output, "--json"]) == 0
    verdicts = {json.loads(line)["verdict"] for line in capsys.readouterr().out.splitlines()}
    assert verdicts == {"benign"}


def test_a_baseline_that_cannot_be_written_is_said(capsys: Captured, tmp_path: Path) -> None:
    recording = str(record(tmp_path / "r", *loads(60)))
    assert main(["train", recording, "-o", f"{tmp_path}/no/b.npz"]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"dynahugd: cannot write the baseline {tmp_path}/no/b.npz: No such file or directory"
    )


# -------------------------------------------------------------------------- as a program


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("line", ["run", "record -o /tmp/never"])
def test_who_is_not_root_is_told_so(line: str) -> None:
    try:
        child = process(*line.split(), user=65534, group=65534)
    except PermissionError:
        pytest.skip("this Python cannot be read by others")
    said = child.communicate(timeout=30)[1].decode()
    if "No module named" in said:
        pytest.skip("this program cannot be read by others")
    assert child.returncode == 1
    assert said == (
        "dynahugd: dynahugd has to run as root, or with CAP_BPF and CAP_PERFMON: try sudo\n"
    )


@pytest.mark.parametrize("line", ["--help", "baseline show FILE", "baseline show FILE --json"])
def test_a_reader_that_goes_away_is_no_error(line: str, baseline: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    child = process(*line.replace("FILE", baseline).split(), stdout=writing)
    os.close(writing)
    assert child.communicate(timeout=30)[1] == b""
    assert child.returncode == 0


def test_a_full_disk_is_said_in_a_sentence(baseline: str) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    child = process("baseline", "show", baseline, stdout=full)
    os.close(full)
    said = child.communicate(timeout=30)[1]
    assert said == b"dynahugd: No space left on device: make room and try again\n"
    assert child.returncode == 1
