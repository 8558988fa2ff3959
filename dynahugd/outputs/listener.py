"""The HTTP listener: ``/metrics``, ``/-/healthy`` and ``/-/ready``, and nothing else."""

from __future__ import annotations

import errno
import io
import re
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from dynahugd.errors import DynahugError
from dynahugd.outputs.messages import Say

if TYPE_CHECKING:
    from dynahugd.outputs.webconfig import WebConfig, WebConfigFile

__all__ = ["Limits", "Listener", "open_to_others", "parse_address", "web_config"]

#: Bytes of a request up to its empty line; a request to us has no more.
_HEAD = 1 << 16

#: The first byte of a TLS handshake (RFC 8446, 5.1).
_TLS = b"\x16"

_BAD_REQUEST = b"HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Limits:
    """What clients may take of us.

    Attributes
    ----------
    connections : open at once; more are closed as they come.
    pause : seconds for one read or write.
    total : seconds for a connection.
    """

    connections: int = 64
    pause: float = 10.0
    total: float = 30.0


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


def web_config(path: str) -> WebConfig | None:
    """The web configuration in a file; None for no path.

    Raises
    ------
    DynahugError : it cannot be used.
    """
    if not path:
        return None
    from dynahugd.outputs.webconfig import WebConfig  # takes 5 ms, which few have use for

    return WebConfig.read(path)


def open_to_others(address: str, web: WebConfig | None) -> bool:
    """Whether other hosts can ask at an address, and not by TLS as users or with certificates.

    Raises
    ------
    DynahugError : it is no address.
    """
    import ipaddress

    host, _ = parse_address(address)
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host.lower() == "localhost"
    return not loopback and not (web is not None and web.secure)


@dataclass(frozen=True, slots=True)
class _Site:
    """What there is to ask for."""

    registry: CollectorRegistry
    healthy: Callable[[], bool]
    ready: Callable[[], bool]


class _Handler(BaseHTTPRequestHandler):
    """Answers the one request of a connection."""

    server_version = "dynahugd"
    sys_version = ""
    # What is not even a request gets a status line too.
    default_request_version = "HTTP/1.0"

    def __init__(self, site: _Site, web: WebConfig | None, *connection: Any) -> None:
        self._site = site
        self._web = web
        super().__init__(*connection)

    def handle(self) -> None:
        """Take a request of any method, but of a bounded size."""
        head: list[bytes] = []
        left = _HEAD
        while not head or head[-1] not in (b"\r\n", b"\n"):
            head.append(self.rfile.readline(left))
            left -= len(head[-1])
            if not head[-1]:
                return  # the client went away, or took all of its time
            if left == 0:
                self.command = self.requestline = ""
                self.request_version = self.default_request_version
                self.send_error(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
                return
        self.rfile.close()
        self.raw_requestline, self.rfile = head[0], io.BytesIO(b"".join(head[1:]))
        if self.parse_request():
            self._respond()

    def _respond(self) -> None:
        web = self._web
        path = self.path.partition("?")[0]
        if web is not None and web.rate is not None and not web.rate.allow(time.monotonic()):
            self.send_error(HTTPStatus.TOO_MANY_REQUESTS)
        elif web is not None and not web.allows(self.headers.get("Authorization")):
            self._answer(
                HTTPStatus.UNAUTHORIZED,
                b"unauthorized\n",
                {"WWW-Authenticate": 'Basic realm="dynahugd"'},
            )
        elif self.command not in ("GET", "HEAD"):
            self._answer(
                HTTPStatus.METHOD_NOT_ALLOWED, b"method not allowed\n", {"Allow": "GET, HEAD"}
            )
        elif path == "/metrics":
            try:
                encode, content_type = choose_encoder(self.headers.get("Accept", ""))
            except (TypeError, ValueError):  # version=abc, prometheus_client 0.26
                encode, content_type = choose_encoder("")
            self._answer(HTTPStatus.OK, encode(self._site.registry), {"Content-Type": content_type})
        elif path == "/-/healthy":
            self._state(self._site.healthy(), "healthy")
        elif path == "/-/ready":
            self._state(self._site.ready(), "ready")
        else:
            self._answer(HTTPStatus.NOT_FOUND, b"not found: try /metrics\n")

    def _state(self, good: bool, word: str) -> None:
        if good:
            self._answer(HTTPStatus.OK, f"{word}\n".encode())
        else:
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, f"not {word}\n".encode())

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        own = {"Content-Type": "text/plain", "Content-Length": str(len(body))}
        added = self._web.headers if self._web is not None else {}
        for name, text in (own | (headers or {}) | dict(added)).items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Say what is wrong with a request, without repeating any of it."""
        self._answer(code, f"{HTTPStatus(code).phrase.lower()}\n".encode())

    def log_message(self, format: str, *args: object) -> None:
        """Scrapes are not worth a line."""


class _Server(socketserver.ThreadingTCPServer):
    """Not ``HTTPServer``: that one asks the DNS for its own name before it listens."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128  # with the default of 5 the kernel drops connections that come at once

    def __init__(self, address: tuple[str, int], site: _Site, limits: Limits) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._site = site
        self.web: WebConfigFile | None = None
        self._limits = limits
        # By accepted socket: when it has to end, and the socket that now has its descriptor.
        self._open: dict[socket.socket, tuple[float, socket.socket]] = {}
        super().__init__(address, _Handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept, and rest where it has to fail: the connection still waits, and wakes us anew."""
        try:
            return super().get_request()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                time.sleep(0.1)
            raise

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether there is a place left."""
        return len(self._open) < self._limits.connections

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start the connection's thread."""
        self._open[request] = (time.monotonic() + self._limits.total, request)
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # there are too many threads
            self.shutdown_request(request)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection, in its own thread: neither files nor a handshake hold up others."""
        request.settimeout(self._limits.pause)
        file = self.web
        web = file.current() if file is not None else None
        context = web.context if web is not None else None
        first = request.recv(1, socket.MSG_PEEK)
        if first and (first == _TLS) is not (context is not None):
            request.recv(_HEAD)  # the kernel resets what is closed with data unread
            scheme = "http" if context is None else "https"
            request.sendall(_BAD_REQUEST + f"write {scheme}:// to ask here\n".encode())
            return
        if web is None or context is None:
            _Handler(self._site, web, request, client_address, self)
            return
        with context.wrap_socket(
            request, server_side=True, do_handshake_on_connect=False
        ) as secure:
            self._open[request] = (self._open[request][0], secure)
            secure.do_handshake()
            if web.admits(secure):
                _Handler(self._site, web, secure, client_address, self)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection, and free its place."""
        super().shutdown_request(request)
        self._open.pop(request, None)

    def service_actions(self) -> None:
        """End the connections whose time is up; called a tenth of that time apart."""
        self.hang_up(time.monotonic())

    def hang_up(self, until: float) -> None:
        """End the connections that had to end by then; their threads see it and close them."""
        for deadline, connection in self._open.copy().values():
            if deadline <= until:
                with suppress(OSError):
                    # Not SSLSocket's own: after that one, the thread would go on in plain text.
                    socket.socket.shutdown(connection, socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away, or breaks off a handshake, is no error of ours."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class Listener:
    """Serves in threads of its own until it is closed.

    Parameters
    ----------
    healthy, ready : asked at each request to the probes' paths.
    web : TLS, users and headers, read again when they change; None: plain HTTP for everyone.
    say : told of a changed ``web`` that cannot be used; the one before it stays in force.

    Attributes
    ----------
    port : the port, also where 0 was asked for.
    """

    def __init__(
        self,
        address: str,
        registry: CollectorRegistry,
        healthy: Callable[[], bool],
        ready: Callable[[], bool],
        web: WebConfig | None,
        say: Say,
        limits: Limits = Limits(),
    ) -> None:
        site = _Site(registry, healthy, ready)
        try:
            self._server = _Server(parse_address(address), site, limits)
        except OSError as error:
            raise DynahugError(
                f"cannot listen on {address}: {error.strerror}; choose another with --listen"
            ) from error
        self.port = int(self._server.server_address[1])
        self._say = say
        self.use(web)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(limits.total / 10,), name="http", daemon=True
        )
        self._thread.start()

    def use(self, web: WebConfig | None) -> None:
        """Take over another web configuration, for connections from now on."""
        if web is None:
            self._server.web = None
            return
        from dynahugd.outputs.webconfig import WebConfigFile  # as above

        self._server.web = WebConfigFile(web, self._say)

    def close(self) -> None:
        """Stop serving, and end the connections that are open."""
        with suppress(OSError):
            # Wakes the thread, which else looks now and then only whether it is to stop.
            self._server.socket.shutdown(socket.SHUT_RDWR)
        self._server.shutdown()
        self._server.server_close()
        self._server.hang_up(float("inf"))
