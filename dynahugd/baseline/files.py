"""Baseline files: one ``.npz`` without pickled objects; its member ``metadata`` is JSON.

A file is read whole and checked whole before anything of it is used: format and version, a digest
over all arrays, shapes, finite numbers.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dynahugd.baseline.detector import Calibration, Cluster, Detector
from dynahugd.baseline.model import Baseline, novelty
from dynahugd.errors import DynahugError
from dynahugd.escape import escape

__all__ = ["FORMAT", "VERSION", "BaselineError", "digest", "embedded", "read", "write"]

FORMAT = "dynahugd-baseline"
VERSION = 1
_MAX_BYTES = 256 << 20

_CLUSTER_ARRAYS = (
    "centre",
    "seen",
    "low",
    "high",
    "median",
    "scale",
    "mean",
    "whitening",
    "vectors",
    "weights",
    "calibration",
)
_TYPES = {"contexts": np.int64, "flags": np.int64, "seen": np.bool_, "shown": np.bool_}
_CLUSTER_VALUES = {"name": str, "rho": float, "gamma": float, "loads": int, "rows": int}


class BaselineError(DynahugError):
    """The file cannot be used as a baseline; the sentence says why."""


def _digest(arrays: dict[str, npt.NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def digest(baseline: Baseline) -> str:
    """SHA-256 of what a baseline judges by."""
    return _digest(_arrays(baseline))


def _arrays(baseline: Baseline) -> dict[str, npt.NDArray[Any]]:
    arrays: dict[str, npt.NDArray[Any]] = {
        "contexts": baseline.detector.contexts.astype(np.int64),
        "context_mean": baseline.detector.context_mean,
        "context_scale": baseline.detector.context_scale,
        "flags": baseline.detector.flags.astype(np.int64),
        "shown": baseline.detector.shown,
        "pool": baseline.detector.pool.scores,
    }
    for number, cluster in enumerate(baseline.clusters):
        for name in _CLUSTER_ARRAYS:
            value = getattr(cluster, name)
            arrays[f"{number}.{name}"] = value.scores if name == "calibration" else value
    return arrays


def write(baseline: Baseline, path: str | os.PathLike[str]) -> None:
    """Write a baseline; an existing file is replaced only when the new one is complete."""
    arrays = _arrays(baseline)
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "columns": list(baseline.columns),
        "known_globals": sorted([list(pair) for pair in baseline.known_globals]),
        "clusters": [
            {name: getattr(cluster, name) for name in _CLUSTER_VALUES}
            for cluster in baseline.clusters
        ],
        "metadata": dict(baseline.metadata),
        "sha256": _digest(arrays),
    }
    text = json.dumps(metadata, sort_keys=True).encode()
    buffer = io.BytesIO()
    np.savez_compressed(buffer, metadata=np.frombuffer(text, np.uint8), **arrays)  # type: ignore[arg-type]
    path = Path(path)
    temporary = path.parent / f"{path.name}.partial"
    try:
        temporary.write_bytes(buffer.getvalue())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise BaselineError(
            f"cannot write the baseline {escape(str(path))}: {error.strerror}"
        ) from error


def read(path: str | os.PathLike[str]) -> Baseline:
    """Read and validate a baseline.

    Raises
    ------
    BaselineError : when the file is missing, damaged, foreign, or of a newer version.
    """
    name = escape(os.fspath(path))
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise BaselineError(f"cannot read the baseline {name}: {error.strerror}") from error
    if len(data) > _MAX_BYTES:
        raise BaselineError(f"{name} is larger than any baseline ({_MAX_BYTES >> 20} MiB)")
    return _parse(data, name)


def embedded() -> Baseline:
    """The baseline that comes with the program."""
    resource = resources.files("dynahugd.baseline") / "embedded.npz"
    if not resource.is_file():
        raise BaselineError("the embedded baseline is missing: run 'make baseline', or reinstall")
    return _parse(resource.read_bytes(), "the embedded baseline")


def _parse(data: bytes, name: str) -> Baseline:
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            # Nothing unpacks to more than it declares, so this bounds what is allocated.
            if sum(member.file_size for member in file.zip.infolist()) > _MAX_BYTES:
                raise ValueError("it unpacks to too much")
            arrays = {key: file[key] for key in file.files}
        metadata = json.loads(arrays.pop("metadata").tobytes())
    except Exception as error:  # those of zipfile, zlib, struct and numpy have no common base
        raise BaselineError(
            f"{name} is damaged or no baseline: restore it or train again"
        ) from error
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise BaselineError(f"{name} is not a dynahugd baseline")
    if metadata.get("version") != VERSION:
        raise BaselineError(
            f"{name} has format version {metadata.get('version')!r}, this program reads {VERSION}: "
            "update dynahugd or train again"
        )
    if metadata.get("sha256") != _digest(arrays):
        raise BaselineError(f"{name} is damaged (its digest differs): restore it or train again")
    try:
        return _assemble(metadata, arrays)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise BaselineError(f"{name} is inconsistent ({error}): train again") from error


def _check(good: bool | np.bool_, complaint: str) -> None:
    if not good:
        raise ValueError(complaint)


def _are_texts(values: object) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _assemble(metadata: dict[str, Any], arrays: dict[str, npt.NDArray[Any]]) -> Baseline:
    columns, known = metadata["columns"], metadata["known_globals"]
    _check(_are_texts(columns) and len(set(columns)) == len(columns), "its columns are no names")
    _check(all(_are_texts(pair) for pair in known), "its globals are no names")
    _check(isinstance(metadata["metadata"], dict), "its metadata are no table")
    for key, array in arrays.items():
        part = key.rpartition(".")[2]
        kind = _TYPES.get(part, np.float64)
        _check(array.dtype == kind, f"array {key} has type {array.dtype}")
        _check(np.isfinite(array).all(), f"array {key} is not finite")
        if part in ("context_scale", "scale", "weights"):
            _check((array > 0).all(), f"array {key} is not positive")
    contexts, flags = arrays["contexts"].astype(np.intp), arrays["flags"].astype(np.intp)
    for indices in (contexts, flags):
        _check(
            indices.ndim == 1 and ((indices >= 0) & (indices < len(columns))).all(),
            "a context column does not exist",
        )
    shown = arrays["shown"]
    _check(shown.shape == (flags.size, len(columns)), f"shown has shape {shown.shape}")
    for key in ("contexts", "context_mean", "context_scale"):
        _check(arrays[key].shape == (contexts.size,), f"{key} has shape {arrays[key].shape}")
    clusters = []
    for number, values in enumerate(metadata["clusters"]):
        rest: dict[str, Any] = {name: values[name] for name in _CLUSTER_VALUES}
        for name, kind in _CLUSTER_VALUES.items():
            _check(type(rest[name]) is kind, f"{name} is not of type {kind.__name__}")
        for name in ("rho", "gamma"):
            _check(0 < rest[name] < math.inf, f"{name} is not positive and finite")
        parts = {name: arrays[f"{number}.{name}"] for name in _CLUSTER_ARRAYS}
        scores = np.sort(parts.pop("calibration").ravel())
        _check_shapes(parts, len(columns), contexts.size, scores.size)
        clusters.append(Cluster(calibration=Calibration(scores), **(rest | parts)))
    _check(bool(clusters), "it has no clusters")
    detector = Detector(
        contexts,
        arrays["context_mean"],
        arrays["context_scale"],
        tuple(clusters),
        flags,
        shown,
        Calibration(np.sort(arrays["pool"].ravel())),
        np.array([novelty(name, True) for name in columns], np.float64),
    )
    return Baseline(
        tuple(columns),
        detector,
        frozenset((module, name) for module, name in known),
        metadata["metadata"],
    )


def _check_shapes(
    parts: dict[str, npt.NDArray[Any]], columns: int, contexts: int, scores: int
) -> None:
    seen = int(parts["seen"].sum())
    vectors = parts["vectors"].shape[0]
    expected = {
        "centre": (contexts,),
        "seen": (columns,),
        "low": (columns,),
        "high": (columns,),
        "median": (seen,),
        "scale": (seen,),
        "mean": (seen,),
        "whitening": (seen, seen),
        "vectors": (vectors, seen),
        "weights": (vectors,),
    }
    for name, shape in expected.items():
        found = parts[name].shape
        _check(found == shape, f"{name} has shape {found} instead of {shape}")
    _check(vectors > 0 and scores > 0, "a cluster is empty")
