"""The disk of the guests: Debian 12, made once, and the project installed into it."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Disk", "make"]

_PROJECT = Path(__file__).parents[2]
_RECIPE = Path(__file__).with_name("base.sh")

#: What 'make install' reads.
_INSTALLED = (
    *("Makefile", "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE"),
    *("bpf", "docs", "dynahugd", "install", "monitoring", "systemd"),
)


@dataclass(frozen=True, slots=True)
class Disk:
    """A file system in ``image``, and the folder with the kernels that are in it."""

    image: Path
    boot: Path

    def kernel(self, version: str) -> tuple[Path, Path]:
        """The kernel of a version, such as 6.12, and its initial RAM disk."""
        (kernel,) = self.boot.glob(f"vmlinuz-{version}.*")
        return kernel, kernel.with_name(kernel.name.replace("vmlinuz", "initrd.img"))


def make(folder: Path) -> Disk:
    """Make what has changed, as root, below a folder: minutes at first, later seconds.

    Raises
    ------
    CalledProcessError : a step failed; it has said why.
    """
    folder.mkdir(parents=True, exist_ok=True)
    key = _digest([_RECIPE])
    tree = folder / f"base-{key}"
    if not tree.exists():
        _remove(folder.glob("base-*"))
        new = folder / "base-new"
        # The mounts of the recipe end with its mount namespace, however it ends.
        _run("unshare", "--mount", "sh", str(_RECIPE), str(new))
        new.rename(tree)
    image = folder / f"guest-{_digest([_RECIPE, *(_PROJECT / name for name in _INSTALLED)])}.img"
    if not image.exists():
        _remove([*folder.glob("guest-*"), folder / "root"])
        root, new = folder / "root", folder / "guest-new"
        _run("cp", "-a", "--reflink=auto", str(tree), str(root))
        _run("make", "--no-print-directory", "-C", str(_PROJECT), "install", f"DESTDIR={root}")
        _run("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", str(root), str(new), "4G")
        _remove([root])
        new.rename(image)
    return Disk(image, tree / "boot")


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _digest(paths: Iterable[Path]) -> str:
    """What the files have in them, those of folders included, and how they are called."""
    digest = hashlib.sha256()
    for top in paths:
        for path in sorted([top, *top.rglob("*")]):
            if path.is_file() and path.suffix not in {".pyc", ".o"}:
                digest.update(f"{path.relative_to(_PROJECT)} {path.stat().st_mode:o}\0".encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
