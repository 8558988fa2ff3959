"""The service in a guest: what systemd, the journal and the metrics say of it, and loads for it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.harness import LOAD
from tests.vm.guest import Guest, Output

__all__ = ["DROP_INS", "Service"]

DROP_INS = "/etc/systemd/system/dynahugd.service.d"
_METRICS = "http://127.0.0.1:9797/metrics"
_GET = f"import urllib.request as r; print(r.urlopen('{_METRICS}', timeout=30).read().decode())"


@dataclass(frozen=True, slots=True)
class Service:
    """dynahugd.service of a guest."""

    guest: Guest

    def do(self, command: str, timeout: float = 120) -> Output:
        """Run a command that has to succeed, as root."""
        output = self.guest.run(command, timeout=timeout)
        if output.status:
            raise AssertionError(
                f"'{command}' ended with {output.status}: {output.out}{output.err}"
            )
        return output

    def restart(self) -> None:
        """Start it anew, by the units and drop-ins that are there now."""
        self.forget()
        self.do("systemctl restart dynahugd")

    def forget(self) -> None:
        """Read units and drop-ins again, and forget earlier failures and restarts."""
        self.do("systemctl daemon-reload")
        self.guest.run("systemctl reset-failed dynahugd")  # fails where nothing is known of it

    def show(self, name: str) -> str:
        """A property of the unit; see systemctl(1)."""
        return self.do(f"systemctl show --property {name} --value dynahugd").out.strip()

    def pid(self) -> int:
        """The number of its main process."""
        return int(self.show("MainPID"))

    def status_of_process(self) -> dict[str, str]:
        """``/proc/PID/status`` of its main process."""
        lines = self.do(f"cat /proc/{self.pid()}/status").out.splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}

    def entries(self, **fields: str) -> list[dict[str, Any]]:
        """Entries of the journal with these fields."""
        matches = " ".join(f"'{name}={value}'" for name, value in fields.items())
        lines = self.do(f"journalctl --all --output json {matches}").out.splitlines()
        return [json.loads(line) for line in lines]

    def entry(self, timeout: float = 30, **fields: str) -> dict[str, Any]:
        """The first such entry, waited for."""
        self.wait(lambda: bool(self.entries(**fields)), timeout, f"entry with {fields}")
        return self.entries(**fields)[0]

    def samples(self) -> dict[str, float]:
        """All samples of /metrics, by name with labels."""
        text = self.do(f'python3 -c "{_GET}"').out
        pairs = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        return {pair[0]: float(pair[1]) for pair in pairs if len(pair) == 2}

    def last_words(self) -> str:
        """The end of what the unit has said."""
        return self.guest.run("journalctl --no-pager --unit dynahugd --lines 30").out

    def load(self, path: str, content: bytes, python: str = "python3") -> None:
        """Have the user alice unpickle a file that has this content."""
        self.guest.write(path, content)
        done = self.guest.run(f'{python} -c "{LOAD}" {path}', user="alice")
        assert done.status == 0, done.err

    def wait(self, condition: Callable[[], bool], timeout: float, what: str) -> float:
        """Wait until a condition holds; the seconds that it took."""
        started = time.monotonic()
        while not condition():
            if time.monotonic() - started > timeout:
                raise AssertionError(f"no {what} within {timeout:g} s")
            time.sleep(0.5)
        return time.monotonic() - started
