"""Formats are told by what the libraries themselves write, and by nothing that could hurt."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import pickle
import socket
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import joblib
import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dynahugd.probes.formats import DATA_ONLY, FORMATS, HEAD, identify, read_head

ARRAY = np.arange(12.0)
OBJECT = {"weights": list(range(20)), "layers": ("a", None, 1.5)}
DATA = pickle.dumps(OBJECT)


def save_torch(path: Path) -> None:
    """A checkpoint as ``torch.save`` writes it today."""
    torch.save({"weights": torch.ones(3)}, path)


def save_torch_legacy(path: Path) -> None:
    """A checkpoint of before torch 1.6."""
    torch.save({"weights": torch.ones(3)}, path, _use_new_zipfile_serialization=False)


def save_torch_program(path: Path) -> None:
    """An exported program: a ZIP file, whose first member is none of a checkpoint's."""
    program = torch.export.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),))
    torch.export.save(program, path)


def save_hdf5(path: Path) -> None:
    """A file of Keras' older kind."""
    with h5py.File(path, "w") as file:
        file["weights"] = ARRAY


def save_keras(path: Path) -> None:
    """The members of a ``.keras`` file, in Keras' order."""
    with zipfile.ZipFile(path, "w") as file:
        for name in ("metadata.json", "config.json", "model.weights.h5"):
            file.writestr(name, "{}")


def save_zip(path: Path) -> None:
    """A ZIP file of no library's."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("readme.txt", "text")


def save_tar(path: Path) -> None:
    """An archive, with compression where the name says so."""
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as file:
        file.add(__file__, "member")


def dumped(compress: object) -> Callable[[Path], object]:
    """A saver with joblib."""
    return lambda path: joblib.dump({"weights": ARRAY}, path, compress)


def written(data: bytes) -> Callable[[Path], object]:
    """A saver of these bytes."""
    return lambda path: path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "save", "expected"),
    [
        ("model.pt", save_torch, "torch-zip"),
        ("no suffix", save_torch, "torch-zip"),
        ("model.npy", save_torch_legacy, "torch-legacy"),
        ("model.pt2", save_torch_program, "zip"),
        ("model.npy", lambda path: np.save(path, ARRAY), "npy"),
        ("model.npy", lambda path: np.save(path, np.array([OBJECT])), "npy"),
        ("model.npz", lambda path: np.savez(path, a=ARRAY), "npz"),
        ("model.npz", lambda path: np.savez_compressed(path, a=ARRAY, b=ARRAY), "npz"),
        ("model.bin", lambda p: safetensors.numpy.save_file({"a": ARRAY}, p), "safetensors"),
        ("model.pkl", save_hdf5, "hdf5"),
        ("model.keras", save_keras, "keras"),
        ("model.zip", save_zip, "zip"),
        ("model.tar", save_tar, "tar"),
        ("model.tar.gz", save_tar, "compressed"),
        ("model.gguf", written(b"GGUF\x03\0\0\0" + bytes(16)), "gguf"),
        ("model.ONNX", written(b"\x08\x0a\x12\x07pytorch"), "onnx"),
        ("model.joblib", dumped(0), "joblib"),
        ("model.pkl", dumped(0), "joblib"),
        ("model.joblib.z", dumped(3), "joblib"),
        ("model.pkl", dumped(("zlib", 9)), "compressed"),
        ("model.pkl", dumped(("gzip", 3)), "compressed"),
        ("model.pkl", dumped(("bz2", 3)), "compressed"),
        ("model.pkl", dumped(("xz", 3)), "compressed"),
        ("model.pkl", dumped(("lzma", 3)), "compressed"),
        ("model.bin", written(gzip.compress(DATA)), "compressed"),
        ("model.bin", written(bz2.compress(DATA)), "compressed"),
        ("model.bin", written(lzma.compress(DATA)), "compressed"),
        ("model.bin", written(lzma.compress(DATA, lzma.FORMAT_ALONE)), "compressed"),
        *(("model.bin", written(zlib.compress(DATA, level)), "compressed") for level in (1, 5, 9)),
        ("model.pkl", written(b""), "unknown"),
        ("model.pt", written(b"just a text"), "unknown"),
        ("model.bin", written(bytes(8192)), "unknown"),
    ],
)
def test_what_a_library_writes_is_told_by_its_content(
    tmp_path: Path, name: str, save: Callable[[Path], object], expected: str
) -> None:
    path = tmp_path / name
    save(path)
    head = read_head(str(path))
    assert head is not None
    assert identify(head, str(path)) == expected
    assert expected in FORMATS


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "value",
    [OBJECT, [1], (1, 2), "text", 1, -(2**40), None, True, 1.5, b"bytes", {1}, complex, ARRAY],
    ids=lambda value: type(value).__name__,
)
def test_a_pickle_of_any_protocol_is_a_pickle(protocol: int, value: object) -> None:
    head = pickle.dumps(value, protocol)
    assert identify(head, "/models/model.PKL") == "pickle"
    if protocol >= 2:
        assert identify(head, "/models/model") == "pickle"
    assert identify(head, "/models/model.joblib") == "joblib"


@pytest.mark.parametrize(
    ("name", "expected"),
    [("m.pkl", "pickle"), ("m.JOBLIB", "pickle"), ("m.pt", "unknown"), ("m.bin", "unknown")],
)
def test_a_file_out_of_reach_is_a_pickle_only_where_its_name_leaves_no_doubt(
    name: str, expected: str
) -> None:
    assert identify(None, name) == expected


def test_formats_without_code_are_a_part_of_all() -> None:
    assert set(FORMATS) > DATA_ONLY


@given(st.binary(max_size=600), st.binary(max_size=40).map(os.fsdecode))
@example(b"PK\x03\x04", "")
@example(b"PK\x03\x04" + b"\xff" * 30, "")
@example(b"\x80", "")
@example(b"{}", "\udcff.joblib")
@settings(deadline=None)
def test_any_bytes_under_any_name_have_a_format(head: bytes, name: str) -> None:
    assert identify(head, name) in FORMATS


@given(
    st.sampled_from([b"PK\x03\x04", b"\x80\x02", b"]\0\0\x80", b"x\x9c", b"\0" * 257 + b"ustar"]),
    st.binary(max_size=300),
    st.sampled_from([".pkl", ".joblib.gz", ".onnx", ""]),
)
@settings(deadline=None)
def test_any_bytes_behind_a_signature_have_a_format(start: bytes, rest: bytes, name: str) -> None:
    assert identify(start + rest, name) not in ("unknown", "memory")


def test_the_head_is_of_the_first_readable_regular_file_and_nothing_blocks(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(b"1" * HEAD + b"2")
    second.write_bytes(b"second")
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
    bad = [
        *(str(tmp_path / name) for name in ("fifo", "socket", "missing", "first/below")),
        str(tmp_path),
        "/dev/zero",
        "nul\0",
        "\udcff",
        "",
    ]
    assert read_head(*bad, str(first), str(second)) == b"1" * HEAD
    assert read_head(str(second), str(first)) == b"second"
    assert read_head(*bad) is read_head() is None
