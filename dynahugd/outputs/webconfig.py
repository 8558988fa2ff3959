"""Prometheus' web configuration file: TLS, client certificates and users of the listener.

The format is the exporter toolkit's
(https://github.com/prometheus/exporter-toolkit/blob/master/docs/web-configuration.md), all keys of
it. `webtls` says where it is stricter. Connections are HTTP/1, whatever ``http2`` says.
"""

from __future__ import annotations

import re
import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass

from dynahugd.errors import DynahugError
from dynahugd.outputs.access import RateLimit, Users, is_bcrypt
from dynahugd.outputs.messages import Message, Say
from dynahugd.outputs.webkeys import Files, Section, Signature, changed, read_keys
from dynahugd.outputs.webtls import names_of, tls_context

__all__ = ["WebConfig", "WebConfigFile"]

_HEADERS = {"X-Content-Type-Options": ("nosniff",), "X-Frame-Options": ("deny", "sameorigin")}
#: Seconds of the units of Go's durations.
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = r"([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|µs|ms|s|m|h)"


@dataclass(frozen=True, slots=True)
class WebConfig:
    """A web configuration that can be used.

    Attributes
    ----------
    path : its file.
    context : for TLS; None for plain HTTP.
    client_names : a client's certificate has to bear one of them; None: any name will do.
    headers : to be added to every answer.
    users : who may ask; None: everyone.
    rate : how often one may ask; None: always.
    read_from : the files that it came from, as they were before they were read.
    """

    path: str
    context: ssl.SSLContext | None
    client_names: frozenset[str] | None
    headers: Mapping[str, str]
    users: Users | None
    rate: RateLimit | None
    read_from: Mapping[str, Signature]

    @classmethod
    def read(cls, path: str) -> WebConfig:
        """Read and check a file and those that it names.

        Raises
        ------
        DynahugError : one of them cannot be read, or a key or value cannot be used.
        """
        return _read(path, Files())

    def allows(self, authorization: str | None) -> bool:
        """Whether a request with this header ``Authorization`` may be answered."""
        return self.users is None or self.users.allow(authorization)

    def admits(self, connection: ssl.SSLSocket) -> bool:
        """Whether the client's certificate, verified by the handshake, bears a right name."""
        return self.client_names is None or not self.client_names.isdisjoint(names_of(connection))

    @property
    def secure(self) -> bool:
        """Whether all is encrypted, and for users or holders of a certificate alone."""
        context = self.context
        return context is not None and (
            self.users is not None or context.verify_mode is ssl.CERT_REQUIRED
        )


class WebConfigFile:
    """A web configuration that is read again when it, or a file that it names, changes."""

    def __init__(self, web: WebConfig, say: Say) -> None:
        self._web = web
        self._seen = web.read_from
        self._say = say
        self._lock = threading.Lock()

    def current(self) -> WebConfig:
        """The latest that can be used; callable from any thread."""
        with self._lock:
            if changed(self._seen):
                files = Files()
                try:
                    self._web = _read(self._web.path, files)
                except DynahugError as error:
                    self._say(Message.WEB_CONFIG_REFUSED, f"{error}; what was in force still is")
                # Also of one that was refused: what it lacks may come.
                self._seen = files.seen
            return self._web


def _read(path: str, files: Files) -> WebConfig:
    sections = read_keys(path, files)
    tls = sections["tls_server_config"]
    context = tls_context(tls, files)
    names = tls.values.get("client_allowed_sans")
    return WebConfig(
        path,
        context,
        None if names is None else frozenset(names),
        _headers(sections["http_server_config"]),
        _users(sections["basic_auth_users"]),
        _rate(sections["rate_limit"]),
        files.seen,
    )


def _headers(http: Section) -> dict[str, str]:
    headers = {}
    for name, text in http.values.items():
        header = name.removeprefix("headers.")
        if header == name or not text:
            continue
        if text not in _HEADERS.get(header, (text,)):
            raise http.error(name, f"has to be {' or '.join(_HEADERS[header])}")
        if not (text.isascii() and text.isprintable()):
            raise http.error(name, "may hold printable ASCII characters only")
        headers[header] = text
    return headers


def _users(section: Section) -> Users | None:
    for user, text in section.values.items():
        if not is_bcrypt(text):
            raise section.error(user, "is no bcrypt hash: make one with htpasswd -nBC 10 USER")
    return Users(section.values) if section.values else None


def _rate(section: Section) -> RateLimit | None:
    text, burst = section.values.get("interval") or "0", section.values.get("burst", 0)
    if text != "0" and not re.fullmatch(f"({_PART})+", text):
        raise section.error("interval", "has to be a duration, such as 500ms or 1s")
    interval = sum(float(number) * _UNITS[unit] for number, unit in re.findall(_PART, text))
    if not interval:
        return None
    if burst < 1:
        raise section.error("burst" if burst else "", "needs a burst of at least 1")
    return RateLimit(interval, burst)
