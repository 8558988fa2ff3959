"""The small C programs of the benchmarks: compiled when they are needed.

An executable whose name begins with ``python`` is an ML process to the daemon; the same under
another name is not.
"""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

__all__ = ["compile_bpf", "compile_c"]

_SOURCES = Path(__file__).parent / "c"


def compile_c(source: str, program: Path, *libraries: str) -> Path:
    """Compile ``c/<source>.c`` to an executable; the executable."""
    flags = ["-O2", "-Wall", "-pthread", "-o", str(program)]
    links = [f"-l{library}" for library in libraries]
    subprocess.run(["gcc", *flags, str(_SOURCES / f"{source}.c"), *links], check=True)
    return program


def compile_bpf(source: str, program: Path) -> Path:
    """Compile ``c/<source>.bpf.c`` to an object; the object."""
    include = f"/usr/include/{platform.machine()}-linux-gnu"
    flags = ["-O2", "-g", "-target", "bpf", "-mcpu=v2", "-Wall", f"-I{include}"]
    subprocess.run(
        ["clang", *flags, "-c", str(_SOURCES / f"{source}.bpf.c"), "-o", str(program)], check=True
    )
    return program
