"""Baseline files: one ``.npz`` without pickled objects; its member ``metadata`` is JSON.

A file is read whole and checked whole before anything of it is used: format and version, a digest
over all arrays, shapes, finite numbers.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dynahugd.baseline.model import Baseline, Calibration, Cluster
from dynahugd.errors import DynahugError

__all__ = ["FORMAT", "VERSION", "BaselineError", "embedded", "read", "write"]

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
_CLUSTER_VALUES = ("name", "rho", "gamma", "loads", "rows")


class BaselineError(DynahugError):
    """The file cannot be used as a baseline; the sentence says why."""


def _digest(arrays: dict[str, npt.NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def write(baseline: Baseline, path: str | os.PathLike[str]) -> None:
    """Write a baseline; an existing file is replaced only when the new one is complete."""
    arrays: dict[str, npt.NDArray[Any]] = {
        "contexts": baseline.contexts.astype(np.int64),
        "context_mean": baseline.context_mean,
        "context_scale": baseline.context_scale,
    }
    for number, cluster in enumerate(baseline.clusters):
        for name in _CLUSTER_ARRAYS:
            value = getattr(cluster, name)
            arrays[f"{number}.{name}"] = value.scores if name == "calibration" else value
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
    temporary = path.with_name(path.name + ".partial")
    try:
        temporary.write_bytes(buffer.getvalue())
        os.replace(temporary, path)
    except OSError as error:
        raise BaselineError(f"cannot write the baseline {path}: {error.strerror}") from error


def read(path: str | os.PathLike[str]) -> Baseline:
    """Read and validate a baseline.

    Raises
    ------
    BaselineError : when the file is missing, damaged, foreign, or of a newer version.
    """
    path = Path(path)
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise BaselineError(f"{path} is larger than any baseline ({_MAX_BYTES >> 20} MiB)")
        data = path.read_bytes()
    except OSError as error:
        raise BaselineError(f"cannot read the baseline {path}: {error.strerror}") from error
    return _parse(data, str(path))


def embedded() -> Baseline:
    """The baseline that comes with the program."""
    resource = resources.files("dynahugd.baseline") / "embedded.npz"
    if not resource.is_file():
        raise BaselineError("the embedded baseline is missing: run 'make baseline', or reinstall")
    return _parse(resource.read_bytes(), "the embedded baseline")


def _parse(data: bytes, name: str) -> Baseline:
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        metadata = json.loads(arrays.pop("metadata").tobytes())
    except (
        OSError,
        ValueError,
        KeyError,
        EOFError,
        zipfile.BadZipFile,
        NotImplementedError,
    ) as error:
        raise BaselineError(
            f"{name} is damaged or no baseline: restore it or train again"
        ) from error
    except Exception as error:  # zlib.error and struct.error have no common base
        raise BaselineError(f"{name} is damaged: restore it or train again") from error
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


def _assemble(metadata: dict[str, Any], arrays: dict[str, npt.NDArray[Any]]) -> Baseline:
    columns = tuple(str(name) for name in metadata["columns"])
    for key, array in arrays.items():
        if array.dtype.kind not in "fib" or not np.isfinite(array).all():
            raise ValueError(f"array {key} is not numeric and finite")
    contexts = arrays["contexts"].astype(np.intp)
    if contexts.size and not (contexts.min() >= 0 and contexts.max() < len(columns)):
        raise ValueError("a context column does not exist")
    clusters = []
    for number, values in enumerate(metadata["clusters"]):
        parts = {name: arrays[f"{number}.{name}"] for name in _CLUSTER_ARRAYS}
        scores = Calibration(np.sort(parts.pop("calibration").astype(np.float64)))
        _check_shapes(parts, len(columns), contexts.size, scores.scores.size)
        rest: dict[str, Any] = parts | {name: values[name] for name in _CLUSTER_VALUES}
        clusters.append(Cluster(calibration=scores, **rest))
    if not clusters:
        raise ValueError("it has no clusters")
    return Baseline(
        columns,
        contexts,
        arrays["context_mean"],
        arrays["context_scale"],
        tuple(clusters),
        frozenset((str(module), str(name)) for module, name in metadata["known_globals"]),
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
        if parts[name].shape != shape:
            raise ValueError(f"{name} has shape {parts[name].shape} instead of {shape}")
    if not vectors or not scores:
        raise ValueError("a cluster is empty")
