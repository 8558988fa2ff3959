"""Baseline files: read back as they were written, or refused in one sentence."""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dynahugd.baseline import Baseline, Cluster, read, write
from dynahugd.baseline.detector import Calibration, Detector
from dynahugd.baseline.files import VERSION, BaselineError, _digest
from dynahugd.baseline.model import novelty
from dynahugd.features import Row

COLUMNS = ("calls.read", "execute.shell", "format.npz", "format.pickle", "global.package")
Arrays = dict[str, Any]
Table = dict[str, Any]


def cluster(number: int) -> Cluster:
    """A cluster of random numbers that has seen the columns but one."""
    rng = np.random.default_rng(number)
    seen = np.array([True, False, number == 0, number == 1, True])
    return Cluster(
        name=("npz-0", "pickle-1")[number],
        centre=np.array([2.0, 1.0 - number, float(number)]),
        seen=seen,
        low=np.zeros(5),
        high=20.0 * seen,
        median=rng.uniform(1, 9, 3),
        scale=rng.uniform(1, 3, 3),
        mean=rng.normal(size=3),
        whitening=rng.normal(size=(3, 3)),
        vectors=rng.normal(size=(9, 3)),
        weights=rng.uniform(0.1, 1, 9),
        rho=0.7,
        gamma=0.05,
        loads=90 + number,
        rows=120,
        calibration=Calibration(np.sort(rng.normal(size=90))),
    )


def small_baseline() -> Baseline:
    """A baseline of two clusters."""
    return Baseline(
        COLUMNS,
        Detector(
            np.array([0, 2, 3]),
            np.array([1.0, 0.5, 0.5]),
            np.array([1.0, 0.4, 0.4]),
            (cluster(0), cluster(1)),
            np.array([2, 3]),
            np.array([[True, False, True, False, True], [True, True, False, True, True]]),
            Calibration(np.sort(np.random.default_rng(2).normal(size=180))),
            np.array([novelty(name, True) for name in COLUMNS]),
        ),
        frozenset({("numpy", "ndarray"), ("ünï.code", "Näme")}),
        {"trained": "2026-05-04T09:30:00+00:00", "loads": 181, "note": "\x1b and \ud800"},
    )


ROWS = [
    Row("whole", {"format.pickle": 1, "calls.read": reads, "global.package": 3, name: 1})
    for reads in (0, 1, 7, 10**9)
    for name in ("format.npz", "execute.shell", "connect.public")
]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a good file."""
    path = tmp_path_factory.mktemp("good") / "b.npz"
    write(small_baseline(), path)
    return path.read_bytes()


def refusal(path: Path) -> str:
    """The one sentence that a file is refused with."""
    with pytest.raises(BaselineError) as caught:
        read(path)
    text = str(caught.value)
    assert text.isprintable()
    assert len(text) < 500
    return text


def test_what_is_written_is_read_back_and_scores_the_same(tmp_path: Path) -> None:
    baseline, path = small_baseline(), tmp_path / "b.npz"
    write(baseline, path)
    again = read(path)
    assert again.columns == baseline.columns
    assert again.known_globals == baseline.known_globals
    assert again.metadata == baseline.metadata
    for row in ROWS:
        assert again.score(row) == baseline.score(row)
    assert len({baseline.score(row).score for row in ROWS}) > 4


def test_writing_twice_gives_the_same_file_contents(tmp_path: Path, good: bytes) -> None:
    path = tmp_path / "b.npz"
    path.write_bytes(good)
    write(read(path), path)
    with np.load(io.BytesIO(good)) as one, np.load(path) as other:
        assert one.files == other.files
        assert all(np.array_equal(one[name], other[name]) for name in one.files)


# ----------------------------------------------------------------------------------------- damage


def test_a_file_cut_at_any_length_is_refused(tmp_path: Path, good: bytes) -> None:
    path = tmp_path / "b.npz"
    for length in [*range(0, len(good), 61), len(good) - 1]:
        path.write_bytes(good[:length])
        assert "damaged" in refusal(path)


def test_a_file_with_a_byte_changed_is_refused_or_says_the_same(
    tmp_path: Path, good: bytes
) -> None:
    # Times and attributes of a ZIP file's members can change without any effect.
    path, expected = tmp_path / "b.npz", small_baseline()
    harmless, positions = 0, range(0, len(good), len(good) // 300)
    for position in positions:
        damaged = bytearray(good)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            found = read(path)
        except BaselineError:
            continue
        harmless += 1
        assert [found.score(row) for row in ROWS] == [expected.score(row) for row in ROWS]
        assert found.known_globals == expected.known_globals
        assert found.metadata == expected.metadata
    assert harmless < len(positions) / 4


# -------------------------------------------------------------------------------------- other files


def npz(arrays: Arrays) -> bytes:
    """A NumPy archive."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def zipped(members: dict[str, bytes]) -> bytes:
    """A ZIP file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def npy(shape: str, data: bytes = b"", descr: str = "<f8") -> bytes:
    """An array file whose header says what one likes."""
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}"
    header += " " * (-(len(header) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\0" + len(header).to_bytes(2, "little") + header.encode() + data


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"a text\n",
        b"PK\x05\x06" + bytes(18),
        zipped({"readme.txt": b"text"}),
        zipped({"metadata.npy": b"text"}),
        zipped({"metadata": b"{}"}),
        npz({"a": np.zeros(3)}),
        npz({"metadata": np.zeros(3)}),
        npz({"metadata": np.frombuffer(b"[" * 100000, np.uint8)}),
        npz({"metadata": np.frombuffer(b"[1]", np.uint8)}),
        npz({"metadata": np.frombuffer(b'{"format": "other"}', np.uint8)}),
        npz({"metadata": np.frombuffer(b'{"format": "dynahugd-baseline"}', np.uint8)}),
        npy("(3,)", bytes(24)),
        b"\x93NUMPY\x01\0",
        pickle.dumps({"a": 1}),
    ],
    ids=lambda data: repr(data[:12]),
)
def test_a_foreign_file_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "b\x1b\n\udcff.npz"
    path.write_bytes(data)
    assert f"{tmp_path}/b\\x1b\\x0a\\xff.npz" in refusal(path)


def test_what_is_no_file_is_refused_with_the_systems_word(tmp_path: Path) -> None:
    assert refusal(tmp_path) == f"cannot read the baseline {tmp_path}: Is a directory"
    missing = tmp_path / "missing\n"
    assert refusal(missing) == (
        f"cannot read the baseline {tmp_path}/missing\\x0a: No such file or directory"
    )


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.mkdir, (os.fspath(self.path),)


def test_nothing_in_a_file_is_ever_unpickled(tmp_path: Path) -> None:
    fired, path = tmp_path / "fired", tmp_path / "b.npz"
    bomb = np.array([Bomb(fired)], object)
    for data in (
        npz({"metadata": bomb}),
        npz({"contexts": bomb, "metadata": np.frombuffer(b"{}", np.uint8)}),
        pickle.dumps(Bomb(fired)),
    ):
        path.write_bytes(data)
        refusal(path)
        assert not fired.exists()
    with np.load(io.BytesIO(npz({"metadata": bomb})), allow_pickle=True) as file:
        file["metadata"]
    assert fired.exists(), "the bomb is a real one"


_PEAK = """
import re, sys
from dynahugd.baseline import read
from dynahugd.errors import DynahugError
for path in sys.argv[1:]:
    try:
        read(path)
    except DynahugError:
        print("refused")
print(re.search("VmHWM: *([0-9]+) kB", open("/proc/self/status").read().replace("\\t", ""))[1])
"""


def peak_of_reading(*paths: Path) -> tuple[int, int]:
    """How many of these files a process of its own refuses, and its largest size in KiB."""
    command = [sys.executable, "-c", _PEAK, *map(str, paths)]
    *refused, peak = subprocess.check_output(command, text=True).splitlines()
    return len(refused), int(peak)


def test_a_declared_size_is_not_believed(tmp_path: Path, good: bytes) -> None:
    (tmp_path / "good").write_bytes(good)
    for number, member in enumerate(
        (
            npy("(1000000000000,)", bytes(64)),
            npy("(40000000,)", bytes(64)),
            npy("(1000000, 1000000, 1000000)", bytes(64)),
            npy("(-1,)", bytes(64)),
            npy("(4,)", bytes(64), "V1000000000"),
            npy("(35000000,)", bytes(280_000_000)),  # packed, these are a megabyte
        )
    ):
        (tmp_path / str(number)).write_bytes(zipped({"metadata.npy": member}))
    assert (tmp_path / "5").stat().st_size < 2_000_000
    with open(tmp_path / "6", "wb") as file:
        file.truncate(257 << 20)
    assert "larger than any baseline" in refusal(tmp_path / "6")
    refused, peak = peak_of_reading(*(tmp_path / str(number) for number in range(6)))
    assert refused == 6
    assert peak < peak_of_reading(tmp_path / "good")[1] + 50_000


# ---------------------------------------------------------------------------- consistently wrong


def rewritten(good: bytes, change: Callable[[Table, Arrays], object]) -> bytes:
    """The file after a change, with a digest that is right."""
    with np.load(io.BytesIO(good)) as file:
        arrays = {name: file[name] for name in file.files}
    table = json.loads(arrays.pop("metadata").tobytes())
    change(table, arrays)
    table.setdefault("sha256", _digest(arrays))
    text = json.dumps(table).encode()
    return npz(arrays | {"metadata": np.frombuffer(text, np.uint8)})


def putting(**values: object) -> Callable[[Table, Arrays], object]:
    """Replace entries of the metadata."""
    return lambda table, arrays: table.update(values)


def in_cluster(**values: object) -> Callable[[Table, Arrays], object]:
    """Replace values of the first cluster."""
    return lambda table, arrays: table["clusters"][0].update(values)


def array(name: str, change: Callable[[Any], object]) -> Callable[[Table, Arrays], object]:
    """Replace an array, and the digest with it."""

    def replace(table: Table, arrays: Arrays) -> None:
        arrays[name] = np.asarray(change(arrays[name]))
        del table["sha256"]

    return replace


def without(name: str) -> Callable[[Table, Arrays], object]:
    """Leave an array out."""

    def drop(table: Table, arrays: Arrays) -> None:
        del arrays[name], table["sha256"]

    return drop


def filled(value: float) -> Callable[[Any], object]:
    """The array with another first number."""
    return lambda old: np.concatenate([[value], old.ravel()[1:]]).reshape(old.shape)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (putting(version=VERSION + 1), f"format version {VERSION + 1}, this program reads"),
        (putting(version="\n1"), "update dynahugd or train again"),
        (putting(format="dynahugd-recording"), "not a dynahugd baseline"),
        (putting(sha256="0" * 64), "its digest differs"),
        (putting(columns=None), "no names"),
        (putting(columns="abcde"), "no names"),
        (putting(columns=[1, 2, 3, 4, 5]), "no names"),
        (putting(columns=["a", "a", "b", "c", "d"]), "no names"),
        (putting(columns=list(COLUMNS[:4])), "shape"),
        (putting(known_globals=[["os"]]), "inconsistent"),
        (putting(known_globals=["os"]), "no names"),
        (putting(known_globals=[["os", 1]]), "no names"),
        (putting(known_globals=7), "inconsistent"),
        (putting(clusters=[]), "no clusters"),
        (putting(clusters=["a"]), "inconsistent"),
        (putting(clusters=3), "inconsistent"),
        (putting(clusters=[{}]), "inconsistent"),
        (putting(metadata=["a"]), "no table"),
        (lambda table, arrays: table.pop("metadata"), "inconsistent"),
        (lambda table, arrays: table["clusters"].append(table["clusters"][0]), "inconsistent"),
        (in_cluster(name=1), "name is not of type str"),
        (in_cluster(rho="a"), "rho is not of type float"),
        (in_cluster(rho=float("nan")), "rho is not positive and finite"),
        (in_cluster(gamma=float("inf")), "gamma is not positive and finite"),
        (in_cluster(rho=-0.5), "rho is not positive and finite"),
        (in_cluster(loads="9"), "loads is not of type int"),
        (array("0.median", filled(np.nan)), "not finite"),
        (array("1.vectors", filled(np.inf)), "not finite"),
        (array("0.calibration", filled(np.nan)), "not finite"),
        (array("context_scale", filled(0)), "not positive"),
        (array("0.scale", filled(0)), "not positive"),
        (array("1.weights", filled(-1)), "not positive"),
        (array("contexts", lambda old: old + 3), "context column does not exist"),
        (array("contexts", lambda old: old - 1), "context column does not exist"),
        (array("contexts", lambda old: old.astype(float)), "type float64"),
        (array("contexts", lambda old: old[:2]), "shape"),
        (array("contexts", lambda old: old[None]), "context column does not exist"),
        (array("flags", lambda old: old + 9), "context column does not exist"),
        (array("flags", lambda old: old[:1]), "shown has shape"),
        (array("shown", lambda old: old[:, :3]), "shown has shape"),
        (array("shown", lambda old: old.astype(float)), "type float64"),
        (without("shown"), "inconsistent"),
        (array("context_mean", lambda old: old[:1]), "shape"),
        (array("0.centre", lambda old: old[:2]), "shape"),
        (array("0.seen", lambda old: ~old), "shape"),
        (array("0.seen", lambda old: old.astype(float)), "type float64"),
        (array("0.high", lambda old: old.astype(complex)), "type complex128"),
        (array("0.high", lambda old: old.astype(str)), "type <U"),
        (array("0.low", lambda old: old[:, None]), "shape"),
        (array("0.whitening", lambda old: old[:2]), "shape"),
        (array("0.vectors", lambda old: old[:, :2]), "shape"),
        (array("0.vectors", lambda old: old[0]), "inconsistent"),
        (array("0.vectors", lambda old: old[:3]), "shape"),
        (array("0.calibration", lambda old: old[:0]), "empty"),
        (without("1.whitening"), "inconsistent"),
        (without("contexts"), "inconsistent"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(
    tmp_path: Path, good: bytes, change: Callable[[Table, Arrays], object], said: str
) -> None:
    path = tmp_path / "b.npz"
    path.write_bytes(rewritten(good, lambda table, arrays: None))
    read(path)
    path.write_bytes(rewritten(good, change))
    assert said in refusal(path)


# ----------------------------------------------------------------------------------------- writing


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, good: bytes) -> None:
    path = tmp_path / "b.npz"
    path.write_bytes(b"before")
    child = os.fork()
    if not child:  # a disk that fills up while the file is written
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(good) // 2, len(good) // 2))
            write(small_baseline(), path)
        except BaselineError as error:
            os._exit(7 if "File too large" in str(error) else 8)
        finally:
            os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["b.npz"]
    inode = path.stat().st_ino
    write(small_baseline(), path)
    assert path.stat().st_ino != inode, "the old file is not written into"
    assert os.listdir(tmp_path) == ["b.npz"]
    assert read(path).columns == COLUMNS


@pytest.mark.parametrize(
    "place", ["missing/b.npz", "", "/", ".", "file/b.npz", "folder", "b" * 255]
)
def test_a_place_that_cannot_be_written_is_named_and_left_clean(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(BaselineError, match=r"^cannot write the baseline"):
        write(small_baseline(), place)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]
    assert not Path("/.partial").exists()
