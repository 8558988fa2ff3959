"""The installed service in guests, as a table; exit status 1 if a check fails.

As root, with Debian's qemu-system-x86, debootstrap and e2fsprogs. The first run makes the disk.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from pathlib import Path

from tests.vm.checks import CHECKS
from tests.vm.guest import Guest, GuestError
from tests.vm.rootfs import Disk, make
from tests.vm.service import DROP_INS, Service

#: The kernels of Debian 12 and of its backports, with the drop-ins that each needs.
_KERNELS: dict[str, tuple[str, ...]] = {"6.1": ("older-kernel.conf",), "6.12": ()}
_EXAMPLES = "/usr/local/share/dynahugd/drop-ins"
_FOLDER = Path(__file__).parents[2] / "build/vm"


def examine(disk: Disk, version: str) -> int:
    """Boot a kernel and go through the checks; how many failed."""
    console = _FOLDER / f"console-{version}.log"
    with Guest(*disk.kernel(version), disk.image, console) as guest:
        service = Service(guest)
        release = service.do("uname -r").out.strip()
        print(f"\n{release}: booted in {guest.boot_seconds:.0f} s", flush=True)
        for name in _KERNELS[version]:
            service.do(f"install -D -m 644 -t {DROP_INS} {_EXAMPLES}/{name}")
        started, failed = time.monotonic(), 0
        for check in CHECKS:
            begun = time.monotonic()
            try:
                mark, said = "ok", check(service)
            except AssertionError as error:
                line = traceback.extract_tb(error.__traceback__)[-1].line
                mark, said = "FAIL", str(error) or f"not so: {line}"
                failed += 1
            seconds = time.monotonic() - begun
            print(f"{mark:<4} {seconds:>4.0f} s  {check.__name__:<44} {said}", flush=True)
            if mark == "FAIL":
                print(service.last_words(), flush=True)
            if failed and check is CHECKS[0]:
                break  # what does not start does nothing else
        print(f"{failed} failed, {time.monotonic() - started:.0f} s")
    return failed


def main() -> int:
    """Read the command line, and examine each kernel."""
    parser = argparse.ArgumentParser(prog="python -m tests.vm", description=__doc__)
    parser.add_argument("--kernel", action="append", choices=_KERNELS, help="default: each")
    given = parser.parse_args()
    if os.geteuid():
        print("dynahugd: only root can make the guests' disk: sudo make vmtest", file=sys.stderr)
        return 1
    disk = make(_FOLDER)
    try:
        failed = [examine(disk, name) for name in given.kernel or _KERNELS]
    except GuestError as error:
        print(f"FAIL {error}")
        return 1
    return min(sum(failed), 1)


if __name__ == "__main__":
    sys.exit(main())
