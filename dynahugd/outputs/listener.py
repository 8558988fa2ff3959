"""The HTTP listener: ``/metrics``, ``/-/healthy`` and ``/-/ready``, and nothing else."""

from __future__ import annotations

import re
import socket
import socketserver
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from dynahugd.errors import DynahugError

__all__ = ["Listener", "parse_address"]

#: Seconds that a client may take for its request.
_PATIENCE = 10.0


def parse_address(text: str) -> tuple[str, int]:
    """``host:port`` or ``[v6]:port`` as a pair.

    Raises
    ------
    DynahugError : when it is neither.
    """
    parts = re.fullmatch(r"\[?([!-~]*?)\]?:([0-9]{1,5})", text)
    if parts is None or int(parts[2]) > 65535:
        raise DynahugError(f"{text!r} is no address to listen on: write host:port")
    return parts[1] or "0.0.0.0", int(parts[2])


class _Server(socketserver.ThreadingTCPServer):
    """Not ``HTTPServer``: that one asks the DNS for its own name before it listens."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128  # with the default of 5 the kernel drops connections that come at once

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no error of ours."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class Listener:
    """Serves in a thread of its own until it is closed.

    Parameters
    ----------
    healthy, ready : asked at each request to the probes' paths.
    """

    def __init__(
        self,
        address: str,
        registry: CollectorRegistry,
        healthy: Callable[[], bool],
        ready: Callable[[], bool],
    ) -> None:
        class Handler(BaseHTTPRequestHandler):
            timeout = _PATIENCE
            server_version = "dynahugd"
            sys_version = ""

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                if path == "/metrics":
                    try:
                        encode, content_type = choose_encoder(self.headers.get("Accept", ""))
                    except (TypeError, ValueError):  # version=abc, prometheus_client 0.26
                        encode, content_type = choose_encoder("")
                    self._answer(200, encode(registry), content_type)
                elif path == "/-/healthy":
                    self._state(healthy(), "healthy")
                elif path == "/-/ready":
                    self._state(ready(), "ready")
                else:
                    self._answer(404, b"not found: try /metrics\n", "text/plain")

            def _state(self, good: bool, word: str) -> None:
                text = f"{word}\n" if good else f"not {word}\n"
                self._answer(200 if good else 503, text.encode(), "text/plain")

            def _answer(self, status: int, body: bytes, content_type: str) -> None:
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Scrapes are not worth a line."""

        host, port = parse_address(address)
        server = type("_Server6", (_Server,), {"address_family": socket.AF_INET6})
        try:
            self._server: socketserver.TCPServer = (server if ":" in host else _Server)(
                (host, port), Handler
            )
        except OSError as error:
            raise DynahugError(
                f"cannot listen on {address}: {error.strerror}; choose another with --listen"
            ) from error
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, name="http", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
