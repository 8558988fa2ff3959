"""A virtual machine: boots an image under software emulation, and runs commands in it."""

from __future__ import annotations

import base64
import json
import shlex
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

__all__ = ["Guest", "GuestError", "Output"]

#: The oldest processor that numpy's wheels run on: less to emulate. One of them: QEMU 7.2 lets a
#: second one run into code that the first is patching (the kernel's static keys), and hang there.
_MACHINE = """
qemu-system-x86_64 -accel tcg,thread=multi -machine q35,sata=off,smbus=off -cpu Nehalem
-smp 1 -m 1536 -nodefaults -display none -no-reboot
-device virtio-serial-pci -device virtserialport,chardev=agent,name=org.qemu.guest_agent.0
"""

#: QEMU 7.2 spoils registers where it emulates cmpxchg16b, and Linux 6.12 panics: it is told to do
#: without (clearcpuid). What is no parameter of the kernel becomes a variable of systemd's
#: environment: its filters tell the kernel's log what they refuse.
_KERNEL = "root=/dev/vda rw console=ttyS0 panic=-1 clearcpuid=cx16 SYSTEMD_LOG_SECCOMP=1"

#: How long the guest may take until its agent answers, and the agent until it does, in seconds.
_BOOT = 600.0
_ANSWER = 300.0


class GuestError(Exception):
    """The guest does not do what every guest does: it ended, or it does not answer."""


@dataclass(frozen=True, slots=True)
class Output:
    """What a command left: its exit status, standard output and standard error."""

    status: int
    out: str
    err: str


class Guest:
    """A booted guest. What it writes to its disk goes with it.

    Commands go to QEMU's guest agent by a serial line of virtio, so no network is needed.

    Parameters
    ----------
    kernel, initrd, image : what to boot; the image holds a file system, without partitions.
    console : the file for what the guest says on its console.

    Attributes
    ----------
    boot_seconds : from the start of the emulator to the end of the guest's start.
    """

    def __init__(self, kernel: Path, initrd: Path, image: Path, console: Path) -> None:
        started = time.monotonic()
        self._console = console
        self._folder = tempfile.TemporaryDirectory(prefix="dynahugd-vm-")
        path = f"{self._folder.name}/agent"
        self._process = subprocess.Popen(
            [
                *_MACHINE.split(),
                *("-kernel", str(kernel), "-initrd", str(initrd), "-append", _KERNEL),
                *("-drive", f"file={image},format=raw,if=virtio,snapshot=on"),
                *("-serial", f"file:{console}"),
                *("-chardev", f"socket,id=agent,path={path},server=on,wait=off"),
            ]
        )
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._connect(path)
            self._socket.settimeout(_BOOT)
            self._ask("guest-sync", id=1)
            self._socket.settimeout(_ANSWER)
            self.run("systemctl is-system-running --wait", timeout=_BOOT)
        except BaseException:
            self.close()
            raise
        self.boot_seconds = time.monotonic() - started

    def _connect(self, path: str) -> None:
        for _ in range(100):
            try:
                self._socket.connect(path)
            except (FileNotFoundError, ConnectionRefusedError):
                time.sleep(0.1)
            else:
                return
        raise GuestError("QEMU does not start")

    def run(self, command: str, *, user: str = "root", timeout: float = 120) -> Output:
        """Run a shell command as a user.

        Raises
        ------
        GuestError : when the guest does not answer. A command that takes longer than ``timeout``
            seconds is ended with status 124.
        """
        shell = f"timeout {timeout:g} sh -c {shlex.quote(command)}"
        if user != "root":
            shell = f"runuser -u {user} -- {shell}"
        started = self._ask(
            "guest-exec", path="/bin/sh", arg=["-c", shell], **{"capture-output": True}
        )
        end = time.monotonic() + timeout + _ANSWER
        while time.monotonic() < end:
            state = self._ask("guest-exec-status", pid=started["pid"])
            if state["exited"]:
                out, err = (
                    base64.b64decode(state.get(name, "")).decode(errors="replace")
                    for name in ("out-data", "err-data")
                )
                return Output(state.get("exitcode", 128 + state.get("signal", 0)), out, err)
            time.sleep(0.1)
        raise GuestError(f"'{command}' does not end: see {self._console}")

    def write(self, path: str, content: bytes) -> None:
        """Write a file, readable by all, and the folders that it is in."""
        data = base64.b64encode(content).decode()
        quoted = shlex.quote(path)
        done = self.run(f'mkdir -p "$(dirname {quoted})" && echo {data} | base64 -d > {quoted}')
        if done.status:
            raise GuestError(f"{path} cannot be written: {done.err}")

    def _ask(self, command: str, **arguments: Any) -> Any:
        """What the agent returns for a command."""
        request = json.dumps({"execute": command, "arguments": arguments}) + "\n"
        answer = b""
        try:
            self._socket.sendall(request.encode())
            while not answer.endswith(b"\n"):
                part = self._socket.recv(1 << 16)
                if not part:
                    raise GuestError(f"the guest has ended: see {self._console}")
                answer += part
        except OSError as error:  # also a time-out
            raise GuestError(f"the guest does not answer: see {self._console}") from error
        said = json.loads(answer)
        if "return" not in said:
            raise GuestError(f"{command}: {said}")
        return said["return"]

    def close(self) -> None:
        """Switch the guest off, as by its mains."""
        self._process.kill()
        self._process.wait()
        self._socket.close()
        self._folder.cleanup()

    def __enter__(self) -> Guest:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
