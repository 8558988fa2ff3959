"""Recordings: batches as one Parquet file, to be replayed through the code that the daemon runs.

One row per batch header, record, state or fact. Records and states are kept as the bytes that the
kernel side wrote (``layout.RECORD``, ``layout.LOAD``) beside readable columns; counters as cells
(bank * 512 + number) that are not zero. The architecture, whose numbers these are, is in the
schema's metadata.
"""

from __future__ import annotations

import contextlib
import io
import os
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dynahugd import __version__
from dynahugd.errors import DynahugError
from dynahugd.escape import escape
from dynahugd.probes import layout, syscalls
from dynahugd.probes.batch import Batch, Fact
from dynahugd.probes.formats import FORMATS
from dynahugd.probes.layout import Kind

__all__ = ["Recorder", "architecture", "clock_offset", "read"]

_VERSION = b"1"
_BATCH, _RECORD, _STATE, _FACT = 0, 1, 2, 3
_ROWS = 8192

_SCHEMA = pa.schema(
    [
        ("what", pa.uint8()),
        ("batch", pa.int64()),
        ("time", pa.uint64()),
        ("hop", pa.bool_()),
        ("load", pa.uint64()),
        ("kind", pa.dictionary(pa.int8(), pa.string())),
        ("call", pa.dictionary(pa.int16(), pa.string())),
        ("data", pa.binary()),
        ("cells", pa.list_(pa.uint16())),
        ("counts", pa.list_(pa.uint64())),
        ("exe", pa.binary()),
        ("cwd", pa.binary()),
        ("path", pa.binary()),
        ("format", pa.dictionary(pa.int8(), pa.string())),
    ]
)


class Recorder:
    """Writes batches to a Parquet file; it appears under its name when it is closed."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.fspath(path)
        self._partial = f"{self._path}.partial"
        self._names = syscalls.names(syscalls.machine())
        schema = _SCHEMA.with_metadata(
            {
                b"dynahugd-recording": _VERSION,
                b"dynahugd": __version__.encode(),
                b"architecture": syscalls.machine().encode(),
                b"kernel": os.uname().release.encode(),
                b"clock": str(time.time_ns() - time.monotonic_ns()).encode(),
            }
        )
        # Opened here: Arrow takes no paths that are not UTF-8.
        try:
            self._file = io.FileIO(self._partial, "wb")
        except OSError as error:
            raise DynahugError(f"cannot write {escape(self._path)}: {error.strerror}") from error
        self._writer = pq.ParquetWriter(
            self._file, schema, compression="zstd", write_page_checksum=True
        )
        self._schema = schema
        self._rows: list[dict[str, Any]] = []
        self._batch = 0

    def write(self, batch: Batch) -> None:
        """Append a batch; one in which nothing happened is left out."""
        if not (len(batch.records) or len(batch.states) or batch.facts):
            return
        number = self._batch
        self._batch += 1
        self._rows.append(
            {
                "what": _BATCH,
                "batch": number,
                "time": batch.time,
                "hop": batch.hop,
                "counts": batch.lost.tolist(),
            }
        )
        for record in batch.records:
            kind = Kind(int(record["kind"]))
            call = kind in (Kind.CALL, Kind.OPEN)
            self._rows.append(
                {
                    "what": _RECORD,
                    "batch": number,
                    "time": int(record["time"]),
                    "load": int(record["load"]),
                    "kind": kind.name.lower(),
                    "call": self._names[int(record["nr"])] if call else None,
                    "data": record.tobytes(),
                }
            )
        for state, counters in zip(batch.states, batch.counters, strict=True):
            flat = counters.ravel()
            cells = np.flatnonzero(flat)
            self._rows.append(
                {
                    "what": _STATE,
                    "batch": number,
                    "load": int(state["id"]),
                    "data": state.tobytes(),
                    "cells": cells.tolist(),
                    "counts": flat[cells].tolist(),
                }
            )
        for fact in batch.facts:
            self._rows.append(
                {
                    "what": _FACT,
                    "batch": number,
                    "load": fact.load,
                    "exe": os.fsencode(fact.exe),
                    "cwd": os.fsencode(fact.cwd),
                    "path": os.fsencode(fact.path),
                    "format": fact.format,
                }
            )
        if len(self._rows) >= _ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, self._schema))
            self._rows.clear()

    def close(self) -> None:
        """Finish the file."""
        self._flush()
        self._writer.close()
        self._file.close()
        os.replace(self._partial, self._path)


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[pq.ParquetFile]:
    name = escape(os.fspath(path))
    try:
        with open(path, "rb") as source:
            file = pq.ParquetFile(source, page_checksum_verification=True)
            version = (file.schema_arrow.metadata or {}).get(b"dynahugd-recording")
            if version is None:
                raise DynahugError(f"{name} is Parquet, but not a recording of dynahugd")
            if version != _VERSION:
                raise DynahugError(
                    f"{name} is a recording of version {escape(version.decode(errors='replace'))}, "
                    f"this program reads {_VERSION.decode()}: update dynahugd"
                )
            if file.schema_arrow.names != _SCHEMA.names:
                raise ValueError("its columns are not those of a recording")
            yield file
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, IndexError) as error:
        if isinstance(error, OSError) and error.strerror:
            raise DynahugError(f"cannot read the recording {name}: {error.strerror}") from error
        what = escape(str(error).strip())
        raise DynahugError(f"{name} is damaged or no recording: {what}") from error


def architecture(path: str | os.PathLike[str]) -> str:
    """The architecture that a recording was made on."""
    with _opened(path) as file:
        name: str = file.schema_arrow.metadata.get(b"architecture", b"").decode(errors="replace")
    if name not in ("x86_64", "aarch64"):
        raise DynahugError(
            f"{escape(os.fspath(path))} was recorded on an unknown architecture {name!r}"
        )
    return name


def clock_offset(path: str | os.PathLike[str]) -> int:
    """Nanoseconds from CLOCK_MONOTONIC to Unix time on the host that recorded."""
    with _opened(path) as file:
        return int(file.schema_arrow.metadata.get(b"clock", b"0"))


def read(path: str | os.PathLike[str]) -> Iterator[Batch]:
    """The batches of a recording, in order."""
    with _opened(path) as file:
        pending: list[dict[str, Any]] = []
        for group in range(file.num_row_groups):
            for row in file.read_row_group(group).to_pylist():
                if row["what"] == _BATCH and pending:
                    yield _assemble(pending)
                    pending = []
                pending.append(row)
        if pending:
            yield _assemble(pending)


def _assemble(rows: list[dict[str, Any]]) -> Batch:
    header = rows[0]
    if header["what"] != _BATCH or header["time"] is None:
        raise ValueError("a batch has no header")
    data = b"".join(row["data"] for row in rows if row["what"] == _RECORD)
    records = np.frombuffer(data, layout.RECORD)
    if (records["nr"] >= syscalls.SYSCALLS).any():
        raise ValueError("a record has no known system call")
    states = [row for row in rows if row["what"] == _STATE]
    counters = np.zeros((len(states), layout.BANKS * 512), np.uint64)
    for position, row in enumerate(states):
        if len(row["cells"]) != len(row["counts"]):
            raise ValueError("a state has counts without cells")
        counters[position, row["cells"]] = row["counts"]
    facts = tuple(
        Fact(
            row["load"],
            os.fsdecode(row["exe"]),
            os.fsdecode(row["cwd"]),
            os.fsdecode(row["path"]),
            row["format"],
        )
        for row in rows
        if row["what"] == _FACT
    )
    if any(fact.format not in FORMATS for fact in facts):
        raise ValueError("a file has no known format")
    return Batch(
        header["time"],
        header["hop"],
        records,
        np.frombuffer(b"".join(row["data"] for row in states), layout.LOAD),
        counters.reshape(len(states), layout.BANKS, 512),
        facts,
        np.array(header["counts"], np.uint64),
    )
