"""An HTTP endpoint that JSON is posted to, with TLS and basic authentication.

The files of the keys are read again when they change: a password or certificate that is replaced
needs no restart. Proxies of the environment are not asked and redirects not followed: alerts go
where the configuration says, or nowhere.
"""

from __future__ import annotations

import base64
import os
import re
import ssl
import stat
from http import HTTPStatus
from urllib.parse import urlsplit

import urllib3

from dynahugd import __version__
from dynahugd.config import AlertmanagerKeys
from dynahugd.errors import DynahugError
from dynahugd.escape import escape, shorten

__all__ = ["Endpoint"]

#: Bytes of an answer or a password file that are read.
_ENOUGH = 4096


class Endpoint:
    """Where JSON is posted to, over a new connection each time.

    None is kept open: one that the other side has closed meanwhile would look like a failure, and
    so the host's name is resolved anew.

    Attributes
    ----------
    name : ``host:port``.

    Raises
    ------
    DynahugError : the address or a file of the keys cannot be used, or keys do not fit together.
    """

    def __init__(self, base: str, path: str, keys: AlertmanagerKeys) -> None:
        self._url, self._keys = base.rstrip("/") + path, keys
        try:
            parts = urlsplit(base)
            port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        except (ValueError, KeyError):
            raise DynahugError(
                f"alertmanager.urls: {escape(base)} is no address; write http://host:port or "
                "https://host:port"
            ) from None
        if "?" in base or "#" in base:
            raise DynahugError(f"alertmanager.urls: {escape(base)} may hold neither ? nor #")
        self.name = parts.netloc if parts.port else f"{parts.netloc.rstrip(':')}:{port}"
        self._https = parts.scheme == "https"
        if bool(keys.username) != bool(keys.password_file):
            raise DynahugError(
                "alertmanager.username and alertmanager.password_file need each other: set both, "
                "or neither"
            )
        if ":" in keys.username:
            raise DynahugError("alertmanager.username may not hold a colon")
        if keys.key_file and not keys.cert_file:
            raise DynahugError("alertmanager.key_file needs alertmanager.cert_file")
        self._authorization()
        self._stamps = self._stamp()
        self._context = self._new_context()

    def post(self, body: bytes, timeout: float) -> str:
        """Post JSON. Returns why it was not taken, in one bounded line; empty: it was.

        ``timeout``: seconds for the connection and until the answer, and between parts of it.
        """
        try:
            headers = self._authorization() | {
                "Content-Type": "application/json",
                "User-Agent": f"dynahugd/{__version__}",
                "Connection": "close",
            }
            if self._stamps != (stamps := self._stamp()):
                self._context, self._stamps = self._new_context(), stamps
            with (
                urllib3.PoolManager(1, ssl_context=self._context) as pool,
                pool.request(
                    "POST",
                    self._url,
                    body=body,
                    headers=headers,
                    timeout=urllib3.Timeout(total=timeout),
                    retries=False,
                    redirect=False,
                    preload_content=False,
                ) as answer,
            ):
                return "" if 200 <= answer.status < 300 else _refusal(answer)
        except DynahugError as error:
            return str(error)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            return _cause(error, timeout)

    def _authorization(self) -> dict[str, str]:
        """The header of basic authentication, with the password that is in the file now."""
        path = self._keys.password_file
        if not path:
            return {}
        _stat("password_file", path)
        try:
            with open(path, "rb") as file:
                password = file.read(_ENOUGH).partition(b"\n")[0].removesuffix(b"\r")
        except OSError as error:
            raise _unreadable("password_file", path, error) from error
        if not password:
            raise DynahugError(
                f"alertmanager.password_file {escape(path)} holds no password in its first line"
            )
        credentials = base64.b64encode(self._keys.username.encode() + b":" + password)
        return {"Authorization": f"Basic {credentials.decode()}"}

    def _stamp(self) -> list[tuple[int, int, int]]:
        """What changes when a file of TLS does."""
        keys = ("ca_file", "cert_file", "key_file")
        found = [_stat(key, path) for key in keys if (path := getattr(self._keys, key))]
        return [(file.st_ino, file.st_mtime_ns, file.st_size) for file in found]

    def _new_context(self) -> ssl.SSLContext | None:
        """TLS by the keys; None where there is nothing of it."""
        ca, cert, key = self._keys.ca_file, self._keys.cert_file, self._keys.key_file
        if not (self._https or ca or cert):
            return None
        try:
            context = ssl.create_default_context(cafile=ca or None)
        except ssl.SSLError as error:
            raise DynahugError(
                f"alertmanager.ca_file {escape(ca)} cannot be used: {_words(error)}; it has to "
                "hold certificates as PEM"
            ) from error
        except OSError as error:
            raise _unreadable("ca_file", ca, error) from error
        if cert:
            try:
                # Without a password of ours OpenSSL would ask for one on the terminal.
                context.load_cert_chain(cert, key or None, password=lambda: "")
            except OSError as error:
                raise DynahugError(
                    f"alertmanager.cert_file {escape(cert)} and its key cannot be used: "
                    f"{_words(error)}; both have to be PEM, the key without a passphrase"
                ) from error
        return context


def _stat(key: str, path: str) -> os.stat_result:
    """Of a file of the keys. It has to be an ordinary one: reading a pipe could take for ever."""
    try:
        found = os.stat(path)
    except OSError as error:
        raise _unreadable(key, path, error) from error
    if not stat.S_ISREG(found.st_mode):
        raise DynahugError(f"alertmanager.{key} {escape(path)} is not a regular file")
    return found


def _unreadable(key: str, path: str, error: OSError) -> DynahugError:
    return DynahugError(f"cannot read alertmanager.{key} {escape(path)}: {error.strerror}")


def _words(error: OSError) -> str:
    """What an error says, without the places in OpenSSL and Python that it names."""
    return re.sub(r"^\[.*?\] | \(_ssl\.c:[0-9]+\)$", "", error.strerror or str(error))


def _cause(error: BaseException, timeout: float) -> str:
    """The system's own word in a chain of exceptions, instead of the library's objects."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, TimeoutError):
            return f"no answer within {timeout:g} s"
        if isinstance(link, ssl.SSLCertVerificationError):
            return f"its certificate is not trusted: {shorten(escape(link.verify_message), 200)}"
        if isinstance(link, ssl.SSLEOFError):
            return "it ended TLS early; it may want another alertmanager.cert_file"
        if isinstance(link, OSError):
            return shorten(escape(_words(link)), 200)
        link = link.__cause__ or link.__context__
    return shorten(escape(str(error)), 200)


def _refusal(answer: urllib3.BaseHTTPResponse) -> str:
    """A status that is no success, and the first line of what came with it."""
    try:
        text = os.fsdecode(answer.read(_ENOUGH, decode_content=False))
    except urllib3.exceptions.HTTPError:
        text = ""
    phrase = next((f" {known.phrase}" for known in HTTPStatus if known == answer.status), "")
    detail = next((line.strip() for line in text.splitlines() if line.strip()), "")
    if 300 <= answer.status < 400:
        detail = "redirects are not followed"
    what = f"it answered {answer.status}{phrase}"
    return what + (f": {shorten(escape(detail), 200)}" if detail else "")
