"""A listener on 127.0.0.1 that payloads and noisy programs talk to."""

from __future__ import annotations

import selectors
import socket
import threading
from pathlib import Path
from types import TracebackType

from .behaviour import TCP_PORT, UDP_PORT

__all__ = ["ARRIVALS", "Listener"]

#: File in the behaviour's folder with one line per arrival: ``tcp TEXT`` or ``udp TEXT``.
ARRIVALS = "arrivals.txt"


class Listener:
    """TCP and UDP on free loopback ports; writes down what arrives, answers ``ok``.

    A context manager: the ports are open and served within it, by one thread.

    Parameters
    ----------
    folder
        Where `ARRIVALS` is written.
    """

    def __init__(self, folder: Path) -> None:
        self._arrivals = folder / ARRIVALS
        self._tcp = socket.create_server(("127.0.0.1", 0))
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.bind(("127.0.0.1", 0))
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def environment(self) -> dict[str, str]:
        """The two ports, as environment variables of the loading process."""
        return {
            TCP_PORT: str(self._tcp.getsockname()[1]),
            UDP_PORT: str(self._udp.getsockname()[1]),
        }

    def __enter__(self) -> Listener:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._wake.close()
        self._thread.join()
        for end in (self._tcp, self._udp, self._woken):
            end.close()

    def _serve(self) -> None:
        with selectors.DefaultSelector() as selector:
            for end in (self._tcp, self._udp, self._woken):
                selector.register(end, selectors.EVENT_READ)
            while True:
                ready = {key.fileobj for key, _ in selector.select()}
                if self._tcp in ready:
                    self._greet()
                if self._udp in ready:
                    self._note("udp", self._udp.recv(4096))
                if ready == {self._woken}:
                    return

    def _greet(self) -> None:
        peer, _ = self._tcp.accept()
        with peer:
            peer.settimeout(2.0)
            try:
                data = peer.recv(4096)
                peer.sendall(b"ok\n")
            except OSError:  # connected, then gone or mute: an arrival all the same
                data = b""
        self._note("tcp", data)

    def _note(self, protocol: str, data: bytes) -> None:
        with self._arrivals.open("a") as file:
            file.write(f"{protocol} {data.decode(errors='replace').strip()}\n")
