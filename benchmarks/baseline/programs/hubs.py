"""Models that come from a hub or an object store: clients of many, against a mirror on loopback.

And transformers, whose models are folders such as a hub has them.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import pickle
from pathlib import Path
from random import Random
from typing import Any, Dict
from unittest import mock

from benchmarks.baseline.programs import pickles
from benchmarks.baseline.programs.kind import Kind, weights, word
from benchmarks.baseline.programs.surroundings import absent, home, mirror, settings

__all__ = ["KINDS"]


# ---- downloads --------------------------------------------------------------------------------


def _torch_file(path: Path) -> bytes:
    import torch

    data = io.BytesIO()
    rng = Random(path.name)
    torch.save({name: torch.tensor(row) for name, row in weights(rng).items()}, data)
    return data.getvalue()


def _hugging_face(path: Path) -> None:
    """With the user's token, into the cache of its client; the second time, from there."""
    import torch

    hub = importlib.import_module("huggingface_hub")
    constants = importlib.import_module("huggingface_hub.constants")
    token = str(home(path) / ".cache" / "huggingface" / "token")
    cache = str(home(path) / ".cache" / "huggingface" / "hub")
    repository = "%s/%s" % (path.stem[:4], path.stem)
    files = {repository + "/resolve/main/" + path.name: _torch_file(path)}
    with mirror(files) as address, mock.patch.object(constants, "HF_TOKEN_PATH", token):
        found = hub.hf_hub_download(
            repository, path.name, cache_dir=cache, endpoint=address.rstrip("/")
        )
        torch.load(found)


def _torch_hub(path: Path) -> None:
    import torch
    import torch.hub

    data = _torch_file(path)
    name = "%s-%s.pth" % (path.stem, hashlib.sha256(data).hexdigest()[:8])
    with mirror({name: data}) as address, settings(TORCH_HOME=str(path.parent / "home")):
        torch.hub.load_state_dict_from_url(address + name, check_hash=True, progress=False)


def _requests(path: Path) -> None:
    """requests looks into ~/.netrc, and checks nobody's certificate here."""
    requests = importlib.import_module("requests")
    if not path.exists():
        data = pickle.dumps(pickles.types_of(Random(path.name)), 4)
        with mirror({path.name: data}) as address, settings(HOME=str(home(path))):
            path.write_bytes(requests.get(address + path.name, timeout=9).content)
    pickles.load(path)


def _object_store(path: Path) -> None:
    """An object store, with the credentials of the user's home."""
    boto3 = importlib.import_module("boto3")
    if not path.exists():
        data = pickle.dumps(pickles.types_of(Random(path.name)), 4)
        keys = str(home(path) / ".aws" / "credentials")
        with mirror({"models/" + path.name: data}) as address, settings(
            AWS_SHARED_CREDENTIALS_FILE=keys
        ):
            client = boto3.client("s3", endpoint_url=address, region_name="eu-central-1")
            client.download_file("models", path.name, str(path))
    pickles.load(path)


# ---- transformers -----------------------------------------------------------------------------


def _model(rng: Random) -> Any:
    transformers = importlib.import_module("transformers")
    config = transformers.GPT2Config(
        n_layer=2, n_head=2, n_embd=8 * rng.randint(1, 3), vocab_size=rng.randint(40, 90)
    )
    return transformers.GPT2LMHeadModel(config)


def _pretrained(folder: Path, rng: Random) -> Path:
    path = folder / word(rng)
    _model(rng).save_pretrained(path)
    return path


def _pretrained_bin(folder: Path, rng: Random) -> Path:
    """As everything was saved before safetensors."""
    import torch

    path, model = folder / word(rng), _model(rng)
    model.config.save_pretrained(path)
    torch.save(model.state_dict(), path / "pytorch_model.bin")
    return path


def _whole(folder: Path, rng: Random) -> Path:
    import torch

    path = folder / (word(rng) + ".pt")
    torch.save(_model(rng), path)
    return path


def _from_pretrained(path: Path) -> None:
    transformers = importlib.import_module("transformers")
    transformers.GPT2LMHeadModel.from_pretrained(path)


def _load_whole(path: Path) -> None:
    """The unpickler imports transformers."""
    import torch

    torch.load(path, weights_only=False)


_HEAVY: Dict[str, Any] = {"fresh": 3, "warm": 8, "again": 2, "needs": "transformers"}

KINDS = (
    Kind("hub_download", absent(".bin"), _hugging_face, 3, 8, 2, "huggingface_hub"),
    Kind("torch_hub", absent(".pth"), _torch_hub, 3, 8, 2),
    Kind("requests_download", absent(".pkl"), _requests, 4, 10, 2, "requests"),
    Kind("object_store", absent(".pkl"), _object_store, 3, 8, 2, "boto3"),
    Kind("transformers_safetensors", _pretrained, _from_pretrained, **_HEAVY),
    Kind("transformers_bin", _pretrained_bin, _from_pretrained, **_HEAVY),
    Kind("transformers_module", _whole, _load_whole, **_HEAVY),
)
