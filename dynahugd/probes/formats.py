"""What a model file really is, told by its first bytes, not by its suffix.

Signatures: the formats' own specifications; torch's legacy magic number is 0x1950a86a20f9469cfc6c
(``torch.serialization.MAGIC_NUMBER``) as the first object of a protocol-2 pickle.
"""

from __future__ import annotations

import os
import stat

__all__ = ["DATA_ONLY", "FORMATS", "HEAD", "identify", "read_head"]

#: Bytes of a file's head that :func:`identify` looks at.
HEAD = 4096

_TORCH_LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_COMPRESSED = (
    b"\x1f\x8b",
    b"BZh",
    b"\xfd7zXZ\0",
    b"]\0\0",
    b"\x04\x22M\x18",
    b"\x28\xb5\x2f\xfd",
)
_ZLIB = (b"x\x01", b"x\x5e", b"x\x9c", b"x\xda")
_PICKLE_SUFFIXES = (".pkl", ".pickle", ".p", ".dill", ".joblib", ".jbl", ".pt", ".pth", ".bin")

#: ... of which these are used for nothing else.
_SURELY_PICKLE = (".pkl", ".pickle", ".dill", ".joblib", ".jbl")

#: Formats that hold no code: only what an unpickling inside such a load does can be a payload.
DATA_ONLY = frozenset({"npy", "npz", "hdf5", "safetensors", "gguf", "onnx"})

#: Every value of the label ``format``; ``memory`` is an unpickling without a file.
FORMATS = (
    "torch-zip",
    "torch-legacy",
    "pickle",
    "joblib",
    "compressed",
    "npy",
    "npz",
    "hdf5",
    "safetensors",
    "gguf",
    "onnx",
    "keras",
    "zip",
    "tar",
    "memory",
    "unknown",
)


def _identify_zip(head: bytes) -> str:
    length = int.from_bytes(head[26:28], "little")
    name = head[30 : 30 + length]
    if name.endswith((b"/data.pkl", b"/byteorder", b"/version", b"/.format_version")):
        return "torch-zip"
    if name.endswith(b".npy"):
        return "npz"
    if name in (b"metadata.json", b"config.json"):
        return "keras"
    return "zip"


def identify(head: bytes | None, path: str) -> str:
    """The format of a file by its first ``HEAD`` bytes; the path only where these do not tell.

    None stands for a file that is out of reach, as when its process has gone.

    Returns one of ``FORMATS``. The path is hostile text and is only compared.
    """
    lower = path.lower()
    if head is None:
        return "pickle" if lower.endswith(_SURELY_PICKLE) else "unknown"
    if head.startswith(b"PK\x03\x04"):
        return _identify_zip(head)
    if head.startswith(b"\x93NUMPY"):
        return "npy"
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "hdf5"
    if head.startswith(b"GGUF"):
        return "gguf"
    if len(head) > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 30:
        return "safetensors"
    if _TORCH_LEGACY in head[:64]:
        return "torch-legacy"
    if head[257:262] == b"ustar":
        return "tar"
    if head.startswith(_COMPRESSED) or head.startswith(_ZLIB):
        return "joblib" if ".joblib" in lower or ".jbl" in lower else "compressed"
    binary_pickle = len(head) > 1 and head[0] == 0x80 and head[1] <= 5
    text_pickle = head[:1] in b"(c]}IKSVN.FGLMJX0l)UT" and lower.endswith(_PICKLE_SUFFIXES)
    if binary_pickle or (head and text_pickle):
        if b"joblib.numpy_pickle" in head or b"joblib" in os.fsencode(lower):
            return "joblib"
        return "pickle"
    if lower.endswith(".onnx"):
        return "onnx"
    return "unknown"


def read_head(*candidates: str) -> bytes | None:
    """The first bytes of the first candidate that is a readable regular file, or None.

    The file belongs to a watched process and is hostile: nothing but a regular file is opened,
    and never in a way that could block.
    """
    for candidate in candidates:
        try:
            place = os.open(candidate, os.O_PATH | os.O_CLOEXEC)
        except (OSError, ValueError):
            continue
        try:
            if stat.S_ISREG(os.fstat(place).st_mode):
                # Through its descriptor: another daemon would take the path's suffix for a load.
                fd = os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_CLOEXEC)
                try:
                    return os.pread(fd, HEAD, 0)
                finally:
                    os.close(fd)
        except OSError:
            continue
        finally:
            os.close(place)
    return None
