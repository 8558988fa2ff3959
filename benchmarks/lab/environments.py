"""The environments: how each differs from the others, and what it takes."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.baseline.hosts import NOBODY, Circumstances, installed
from benchmarks.baseline.programs.kind import Kind
from benchmarks.baseline.workload import chosen

__all__ = ["ENVIRONMENTS", "Environment"]

_LIBRARIES = Path("/usr/lib") / f"{os.uname().machine}-linux-gnu"

#: A root of its own, as a container has: an overlay of this one, in namespaces of mounts, processes
#: and the network (loopback only).
_CONTAINER = """\
home=$PWD
mount -t tmpfs tmpfs /mnt
cd /mnt
mkdir upper work root
mount -t overlay overlay -o lowerdir=/,upperdir=upper,workdir=work root
mount -t proc proc root/proc
mount --rbind /dev root/dev
mkdir -p "root$home"
mount --rbind "$home" "root$home"
ip link set lo up
exec chroot root sh -c 'cd "$0" && exec "$@"' "$home" "$@"
"""


@dataclass(frozen=True, slots=True)
class Environment:
    """A kind of host.

    Attributes
    ----------
    differs : in what, in words.
    common : circumstances of all its processes.
    inside : the command that the performing process is started by.
    families : of the workload; empty: all.
    without : kinds of the workload that cannot be had here.
    needs : a file without which the environment cannot be had.
    """

    name: str
    differs: str
    common: Circumstances = field(default_factory=Circumstances)
    inside: tuple[str, ...] = ()
    families: tuple[str, ...] = ()
    without: frozenset[str] = frozenset()
    needs: str = ""

    @property
    def python(self) -> str:
        """The interpreter for malicious loads."""
        return self.common.pythons[0]

    @property
    def kinds(self) -> dict[str, list[Kind]]:
        """What of the workload can be performed here, by family."""
        return {
            family: [kind for kind in kinds if kind.name not in self.without]
            for family, kinds in chosen(None).items()
            if not self.families or family in self.families
        }

    @property
    def missing(self) -> str:
        """What is not there, as a sentence; empty when nothing is missing."""
        if not self.common.pythons:
            return "its interpreters are not installed"
        if self.needs and shutil.which(self.needs) is None and not os.path.exists(self.needs):
            return f"{self.needs} is not there"
        return ""


def _pyenv(*versions: str) -> tuple[str, ...]:
    pythons = installed()[0][1:]
    return tuple(
        path
        for path in pythons
        if Path(path).parts[-3].startswith(tuple(version + "." for version in versions))
    )


def _here(environment: Mapping[str, str] | None = None) -> Circumstances:
    return Circumstances((sys.executable,), (), environment or {}, cold=False)


#: Other versions of torch, as ``make bench-lab`` installs them.
_OLDER = Path(__file__).parent.parent.parent / ".older"
_WITH_TORCH = ("pickles", "users", "crowds", "tensors")
#: Refusing what is not plain data, and safetensors, are younger; the pool of threads that such a
#: torch has made does not survive a fork.
_YOUNGER = frozenset({"torch_refused", "torch_safetensors", "torch_forked"})


def _older(name: str, version: str, python: str) -> Environment:
    path = str(_OLDER / f"torch-{version}" / "bin" / "python")
    return Environment(
        f"torch-{name}",
        f"torch {version} on CPython {python}",
        Circumstances((path,), (path,), cold=False),
        families=_WITH_TORCH,
        without=_YOUNGER,
        needs=path,
    )


_COLD_CACHE = """\
while sleep 1; do echo 3 > /proc/sys/vm/drop_caches; done &
trap "kill $!" EXIT
"$@"
"""
_NO_HOME = ("env", "HOME=/", "PYENV_ROOT=/nowhere")
_JEMALLOC = str(_LIBRARIES / "libjemalloc.so.2")
_TCMALLOC = str(_LIBRARIES / "libtcmalloc_minimal.so.4")
_POOLS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "LOKY_MAX_CPU_COUNT")
_THREADS = dict.fromkeys(_POOLS, "16")

ENVIRONMENTS: tuple[Environment, ...] = (
    Environment(
        "host",
        "the system's CPython 3.11, all libraries, as root; files on disk and in memory",
        _here(),
    ),
    Environment(
        "old-python",
        "CPython 3.8 to 3.10, shared _pickle, standard library alone",
        Circumstances(_pyenv("3.8", "3.9", "3.10"), cold=False),
    ),
    Environment(
        "new-python",
        "CPython 3.12 and 3.13, shared _pickle, standard library alone",
        Circumstances(_pyenv("3.12", "3.13"), cold=False),
    ),
    Environment(
        "fresh-install",
        "CPython 3.8 to 3.13 without any bytecode cached",
        Circumstances(_pyenv("3.11", "3.8", "3.10", "3.12", "3.13"), cold=True),
    ),
    Environment(
        "jemalloc", "jemalloc preloaded", _here({"LD_PRELOAD": _JEMALLOC}), needs=_JEMALLOC
    ),
    Environment(
        "tcmalloc",
        "tcmalloc preloaded, no bytecode written",
        _here({"LD_PRELOAD": _TCMALLOC, "PYTHONDONTWRITEBYTECODE": "1"}),
        needs=_TCMALLOC,
    ),
    Environment(
        "many-threads",
        "16 threads in every pool, one malloc arena",
        _here({"MALLOC_ARENA_MAX": "1"} | _THREADS),
    ),
    Environment(
        "cold-cache",
        "every second the page cache is dropped",
        _here(),
        ("sh", "-uc", _COLD_CACHE, "sh"),
    ),
    _older("1.12", "1.12.1", "3.10"),
    _older("1.8", "1.8.1", "3.8"),
    Environment(
        "plain-user",
        "a user without a home or a name that owns anything",
        _here(),
        ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *_NO_HOME),
        needs="setpriv",
    ),
    Environment(
        "container",
        "an overlay in memory as root directory, namespaces of its own",
        _here(),
        ("unshare", "--mount", "--pid", "--fork", "--net", "sh", "-euc", _CONTAINER, "sh"),
        needs="unshare",
    ),
)
