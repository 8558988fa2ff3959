"""A listener and its clients, and a folder with certificates as an operator has it."""

from __future__ import annotations

import base64
import http.client
import os
import shutil
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import bcrypt
import pytest
import trustme
import yaml
from prometheus_client import CollectorRegistry, Counter

from dynahugd.outputs.listener import Limits, Listener
from dynahugd.outputs.messages import Message
from dynahugd.outputs.webconfig import WebConfig

__all__ = [
    "HASH",
    "PASSWORD",
    "TLS",
    "VERIFY",
    "Answer",
    "Folder",
    "State",
    "ask",
    "basic",
    "connect",
    "listening",
    "needs_prometheus",
    "outcome",
    "wait_for",
    "with_tls",
]

PASSWORD = "pass:word"
HASH = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None and "CI" not in os.environ,
    reason="needs Debian's prometheus",
)

#: The beginning of a configuration with TLS, and what verifies clients.
TLS = "tls_server_config: {cert_file: server.pem, key_file: server.key"
VERIFY = "client_auth_type: RequireAndVerifyClientCert, client_ca_file: ca.pem"


def with_tls(more: str) -> str:
    """A web configuration with TLS and other keys."""
    return f"{TLS}, {more}}}"


def basic(credentials: str) -> str:
    """The header of basic authentication."""
    return "Basic " + base64.b64encode(credentials.encode()).decode()


@dataclass
class Folder:
    """A folder with a certificate, its key, and the authority's certificate."""

    path: Path
    authority: trustme.CA

    def issue(self, name: str, certificate: trustme.LeafCert) -> None:
        """Write ``name.pem`` and ``name.key``, each in one step."""
        chain = b"".join(blob.bytes() for blob in certificate.cert_chain_pems)
        self.write(f"{name}.pem", chain.decode())
        self.write(f"{name}.key", certificate.private_key_pem.bytes().decode())

    def write(self, name: str, text: str) -> str:
        """A file that replaces the one before it, and its full name."""
        new = self.path / f"{name}.new"
        new.write_text(text)
        new.rename(self.path / name)
        return str(self.path / name)

    def web(self, text: str = "", **keys: object) -> str:
        """The web configuration: text, or TLS with these keys more."""
        if not text:
            tls = {"cert_file": "server.pem", "key_file": "server.key"} | keys
            text = yaml.safe_dump({"tls_server_config": tls})
        return self.write("web.yml", text)

    def pem(self, name: str) -> str:
        """What a file holds."""
        return (self.path / name).read_text()

    def client(self, *identities: str, issuer: trustme.CA | None = None) -> ssl.SSLContext:
        """A client that trusts the authority, with a certificate of these names, if any."""
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        if identities:
            (issuer or self.authority).issue_cert(*identities).configure_cert(context)
        return context

    @classmethod
    def made(cls, path: Path) -> Folder:
        """A folder with what a listener by TLS needs."""
        folder = cls(path, trustme.CA())
        folder.issue("server", folder.authority.issue_cert("127.0.0.1", "localhost"))
        folder.write("ca.pem", folder.authority.cert_pem.bytes().decode())
        return folder


@dataclass
class State:
    """What a daemon would answer, and what it has said."""

    healthy: bool = True
    ready: bool = True
    said: list[str] = field(default_factory=list)
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        Counter("loads", "Loads.", registry=self.registry).inc(7)

    def say(self, message: Message, text: str) -> None:
        """Keep a message."""
        assert message is Message.WEB_CONFIG_REFUSED
        self.said.append(text)


@contextmanager
def listening(
    web: WebConfig | None = None,
    limits: Limits | None = None,
    state: State | None = None,
    address: str = "127.0.0.1:0",
) -> Iterator[Listener]:
    """A listener on a free port."""
    state = state or State()
    listener = Listener(
        address,
        state.registry,
        lambda: state.healthy,
        lambda: state.ready,
        web=web,
        say=state.say,
        limits=limits or Limits(),
    )
    with closing(listener):
        yield listener


@dataclass(frozen=True)
class Answer:
    """An answer to a request."""

    status: int
    headers: Mapping[str, str]
    text: str


def ask(
    port: int,
    path: str = "/metrics",
    method: str = "GET",
    *,
    tls: ssl.SSLContext | None = None,
    user: str = "",
    headers: Mapping[str, str] | None = None,
    host: str = "127.0.0.1",
) -> Answer:
    """Ask once. ``user`` is ``name:password``."""
    connection = (
        http.client.HTTPSConnection(host, port, timeout=10, context=tls)
        if tls
        else http.client.HTTPConnection(host, port, timeout=10)
    )
    sent = dict(headers or {})
    if user:
        sent["Authorization"] = basic(user)
    with closing(connection):
        connection.request(method, path, headers=sent)
        answer = connection.getresponse()
        return Answer(answer.status, dict(answer.headers), answer.read().decode())


def outcome(asked: Callable[[], Answer]) -> int | str:
    """The status of an answer, or that there was none."""
    try:
        return asked().status
    except (OSError, http.client.HTTPException):
        return "refused"


def wait_for(condition: Callable[[], object], what: str) -> None:
    """Wait until something is so, for half a minute at most."""
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, f"{what}: not within 30 s"
        time.sleep(0.02)


def connect(listener: Listener, data: bytes = b"") -> socket.socket:
    """A connection that has sent something."""
    connection = socket.create_connection(("127.0.0.1", listener.port), timeout=10)
    connection.send(data)
    return connection
