"""Recordings: every batch comes back as it was; anything else is refused in one sentence."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dynahugd.errors import DynahugError
from dynahugd.probes import layout, syscalls
from dynahugd.probes.batch import Batch, Fact
from dynahugd.probes.layout import Bank, Flag, Kind, State
from dynahugd.recording import Recorder, architecture, read

NUMBERS = syscalls.numbers(syscalls.machine())
HOSTILE = os.fsdecode(b"/models/\xff\n\x1b[2J.pkl")


def record(kind: Kind, time: int, load: int = 1, **fields: object) -> npt.NDArray[np.void]:
    """A record; ``text`` may be shorter than its field."""
    made = np.zeros(1, layout.RECORD)
    made["kind"], made["time"], made["load"], made["tgid"], made["tid"] = kind, time, load, 40, 41
    for name, value in fields.items():
        made[name] = value.ljust(layout.TEXT, b"\0") if isinstance(value, bytes) else value
    return made


def state(load: int = 1, **fields: object) -> npt.NDArray[np.void]:
    """A slot of the table of loads."""
    made = np.zeros(1, layout.LOAD)
    made["id"], made["tgid"], made["tid"], made["state"] = load, 40, 41, State.OPENED
    for name, value in fields.items():
        made[name] = value
    return made


def a_load(load: int = 1, begin: int = 1000, path: str = HOSTILE, shell: bool = False) -> Batch:
    """A load of a pickle in one batch, which may run a shell."""
    records = [
        record(Kind.BEGIN, begin, load, args=(3, 0, begin), text=os.fsencode(path)[:200]),
        record(
            Kind.GLOBAL,
            begin + 1,
            load,
            args=(5, 7, 0x101),
            flags=Flag.INSIDE,
            text=b"torch".ljust(128, b"\0") + b"Tensors",
        ),
        record(Kind.END, begin + 9, load, args=(1, 0, 0)),
    ]
    if shell:
        ran = {"flags": Flag.INSIDE, "text": b"/bin/sh", "length": 7}
        records[2:2] = [
            record(Kind.CALL, begin + 2, load, nr=NUMBERS["execve"], **ran),
            record(Kind.EXEC, begin + 3, load, **ran),
        ]
    counters = np.zeros((1, layout.BANKS, 512), np.uint64)
    counters[0, Bank.OUTSIDE, NUMBERS["read"]] = 5
    counters[0, Bank.CHILDREN, 511] = 2**64 - 1
    return Batch(
        begin + 10,
        True,
        np.concatenate(records),
        state(load, exact=1),
        counters,
        (Fact(load, "/usr/bin/python3", "", path, "pickle"),),
        np.arange(len(layout.Loss), dtype=np.uint64),
    )


def later(time: int) -> Batch:
    """A batch that is about another load."""
    nothing = np.empty(0, layout.RECORD)
    return Batch(time, True, nothing, facts=(Fact(99999, "", "", "", "unknown"),))


def write(path: Path, *batches: Batch) -> Path:
    """Record batches."""
    recorder = Recorder(path)
    for batch in batches:
        recorder.write(batch)
    recorder.close()
    return path


def same(one: Batch, other: Batch) -> bool:
    """Whether two batches are equal in every bit."""
    return (one.time, one.hop, one.facts) == (other.time, other.hop, other.facts) and all(
        getattr(one, name).dtype == getattr(other, name).dtype
        and getattr(one, name).shape == getattr(other, name).shape
        and getattr(one, name).tobytes() == getattr(other, name).tobytes()
        for name in ("records", "states", "counters", "lost")
    )


def refusal(path: Path) -> str:
    """The sentence that a recording is refused with, whichever way it is opened."""
    with pytest.raises(DynahugError) as caught:
        list(read(path))
    text = str(caught.value)
    assert text.isprintable()
    return text


def test_batches_come_back_as_they_were(tmp_path: Path) -> None:
    random = np.frombuffer(np.random.default_rng(0).bytes(50 * layout.RECORD.itemsize), np.uint8)
    noise = random.view(layout.RECORD).copy()
    noise["kind"], noise["nr"] = Kind.CALL, noise["nr"] % 512
    batches = [
        a_load(),
        Batch(2**63 + 5, False, noise),
        Batch(7, True, np.empty(0, layout.RECORD), np.concatenate([state(5), state(2**64 - 1)]),
              np.arange(2 * 3 * 512, dtype=np.uint64).reshape(2, 3, 512)),
        a_load(2**63, path=""),
    ]  # fmt: skip
    path = write(tmp_path / HOSTILE.replace("/", "_"), *batches)
    assert all(same(one, other) for one, other in zip(read(path), batches, strict=True))
    assert os.listdir(tmp_path) == [path.name]


def test_a_batch_in_which_nothing_happened_is_left_out(tmp_path: Path) -> None:
    nothing = Batch(5, False, np.empty(0, layout.RECORD))
    path = write(tmp_path / "r", nothing, a_load(), nothing)
    assert [batch.time for batch in read(path)] == [1010]
    assert list(read(write(tmp_path / "empty", nothing))) == []


def test_long_recordings_are_read_in_pieces_that_fit(tmp_path: Path) -> None:
    batches = [a_load(number, 1000 * number) for number in range(1, 4000)]
    path = write(tmp_path / "r", *batches)
    assert pq.ParquetFile(path).num_row_groups > 2
    assert all(same(one, other) for one, other in zip(read(path), batches, strict=True))


def test_the_file_appears_under_its_name_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "r"
    path.write_bytes(b"before")
    recorder = Recorder(path)
    recorder.write(a_load())
    assert path.read_bytes() == b"before"
    recorder.close()
    assert len(list(read(path))) == 1


def test_the_columns_can_be_read_by_other_programs(tmp_path: Path) -> None:
    table = pq.read_table(write(tmp_path / "r", a_load(shell=True))).to_pylist()
    assert [row["kind"] for row in table if row["kind"]] == [
        *("begin", "global", "call", "exec", "end")
    ]
    assert [row["call"] for row in table if row["call"]] == ["execve"]
    assert [row["path"] for row in table if row["path"]] == [os.fsencode(HOSTILE)]


def test_a_recording_knows_its_architecture(tmp_path: Path) -> None:
    path = write(tmp_path / "r", a_load())
    assert architecture(path) == syscalls.machine()
    table = pq.read_table(path)
    for name, value in (("arm", b"aarch64"), ("vax", b"vax\n\x1b"), ("none", b"")):
        metadata = table.schema.metadata | {b"architecture": value}
        pq.write_table(table.replace_schema_metadata(metadata), tmp_path / name)
    assert architecture(tmp_path / "arm") == "aarch64"
    for name in ("vax", "none"):
        with pytest.raises(DynahugError, match="unknown architecture") as caught:
            architecture(tmp_path / name)
        assert str(caught.value).isprintable()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(DynahugError) as caught:
        Recorder(tmp_path / "no\n" / "r")
    assert str(caught.value) == f"cannot write {tmp_path}/no\\x0a/r: No such file or directory"


def test_what_is_no_recording_is_refused(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign\n\udcff"
    for data in (b"", b"text", b"PAR1PAR1", b"PAR1" + bytes(100) + b"PAR1"):
        foreign.write_bytes(data)
        assert f"{tmp_path}/foreign\\x0a\\xff is damaged or no recording" in refusal(foreign)
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other")
    assert refusal(tmp_path / "other").endswith("is Parquet, but not a recording of dynahugd")
    assert refusal(tmp_path).endswith("Is a directory")
    assert refusal(tmp_path / "missing").endswith("No such file or directory")
    with pytest.raises(DynahugError):
        architecture(tmp_path / "other")


def test_a_recording_cut_at_any_length_is_refused(tmp_path: Path) -> None:
    whole = write(tmp_path / "r", a_load(), a_load(2, 2000)).read_bytes()
    path = tmp_path / "cut"
    for length in [*range(0, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:length])
        refusal(path)


def test_a_byte_changed_among_the_data_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path / "r", a_load(), a_load(2, 2000))
    whole = path.read_bytes()
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    # The pages have checksums. Their headers have none, but hold little that matters.
    noticed = total = 0
    for position in range(4, footer, 17):
        damaged = bytearray(whole)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        total += 1
        try:
            batches = list(read(path))
        except DynahugError:
            noticed += 1
        else:
            assert same(batches[0], a_load())
            assert same(batches[1], a_load(2, 2000))
    assert noticed > total / 2


def test_rows_that_make_no_batch_are_refused(tmp_path: Path) -> None:
    table = pq.read_table(write(tmp_path / "r", a_load()))
    columns, kinds = table.to_pydict(), table.schema
    what = columns["what"]
    for column, row, value, said in (
        ("what", what.index(0), 1, "no header"),
        ("time", what.index(0), None, "no header"),
        ("counts", what.index(0), None, ""),
        ("data", what.index(1), None, ""),
        ("data", what.index(1), b"short", ""),
        ("data", what.index(1), b"\xff" * layout.RECORD.itemsize, "no known system call"),
        ("data", what.index(2), b"short", ""),
        ("cells", what.index(2), [60000, 60000], ""),
        ("cells", what.index(2), None, ""),
        ("counts", what.index(2), [1], ""),
        ("path", what.index(3), None, ""),
        ("format", what.index(3), "gif", "no known format"),
        ("format", what.index(3), None, "no known format"),
    ):
        changed = dict(columns)
        changed[column] = [*changed[column][:row], value, *changed[column][row + 1 :]]
        pq.write_table(pa.Table.from_pydict(changed, kinds), tmp_path / "changed")
        sentence = refusal(tmp_path / "changed")
        assert "changed is damaged or no recording: " in sentence
        assert said in sentence, (column, value)
    pq.write_table(table.drop_columns(["cwd"]), tmp_path / "less")
    assert "its columns are not those" in refusal(tmp_path / "less")
    newer = table.replace_schema_metadata(kinds.metadata | {b"dynahugd-recording": b"2\n"})
    pq.write_table(newer, tmp_path / "newer")
    assert "version 2\\x0a, this program reads 1: update" in refusal(tmp_path / "newer")
