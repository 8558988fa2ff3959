"""TLS as a web configuration file wants it, as far as Python's ssl can.

What ssl has no means for is refused, or becomes something at least as strict:

- ``RequestClientCert`` is ``NoClientCert``: either lets everyone in, and nobody looks at the
  certificate. ``RequireAnyClientCert``, which takes certificates that nobody signed, is refused.
- Client certificates are verified by ``client_ca`` or ``client_ca_file``, never by the host's
  authorities: a certificate of any public authority would do.
- ``TLS10`` and ``TLS11`` as ``min_version`` are ``TLS12``; as ``max_version`` they are refused.
- ``curve_preferences`` may hold one curve; X25519 is none of those that Python 3.11 can set.
"""

from __future__ import annotations

import os
import platform
import re
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from dynahugd.outputs.webkeys import Files, Section

__all__ = ["names_of", "tls_context"]

_VERSIONS = {
    "TLS10": ssl.TLSVersion.TLSv1,
    "TLS11": ssl.TLSVersion.TLSv1_1,
    "TLS12": ssl.TLSVersion.TLSv1_2,
    "TLS13": ssl.TLSVersion.TLSv1_3,
}
_CLIENT_AUTH = {
    "NoClientCert": ssl.CERT_NONE,
    "RequestClientCert": ssl.CERT_NONE,
    "RequireAnyClientCert": None,
    "RequireClientCert": None,  # the same, as early versions of the format named it
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}
_CURVES = {
    "CurveP256": "prime256v1",
    "CurveP384": "secp384r1",
    "CurveP521": "secp521r1",
    "X25519": "X25519",
}
#: OpenSSL's names of the suites in Go's ``tls.CipherSuites()``. Those of TLS 1.3 have none: they
#: are always on, in Go as here.
_SUITES = {
    f"TLS_ECDHE_{key}_WITH_{name}": f"ECDHE-{key}-{openssl}"
    for key in ("ECDSA", "RSA")
    for name, openssl in {
        "AES_128_CBC_SHA": "AES128-SHA",
        "AES_256_CBC_SHA": "AES256-SHA",
        "AES_128_GCM_SHA256": "AES128-GCM-SHA256",
        "AES_256_GCM_SHA384": "AES256-GCM-SHA384",
        "CHACHA20_POLY1305_SHA256": "CHACHA20-POLY1305",
    }.items()
} | {"TLS_AES_128_GCM_SHA256": "", "TLS_AES_256_GCM_SHA384": "", "TLS_CHACHA20_POLY1305_SHA256": ""}


def tls_context(tls: Section, files: Files) -> ssl.SSLContext | None:
    """A context for the section ``tls_server_config``; None of an empty one.

    Raises
    ------
    DynahugError : a file cannot be read, or a value cannot be used.
    """
    if not tls.values:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.options |= ssl.OP_NO_RENEGOTIATION
    _set_certificate(context, tls, files)
    _set_clients(context, tls, files)
    _set_versions(context, tls)
    _set_curve(context, tls)
    if tls.values.get("prefer_server_cipher_suites") is False:
        context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    return context


def names_of(connection: ssl.SSLSocket) -> set[str]:
    """The alternative names in a verified certificate of the peer, as Go writes them."""
    import ipaddress

    certificate: Mapping[str, Any] = connection.getpeercert() or {}
    names = set()
    for kind, name in certificate.get("subjectAltName", ()):
        if kind == "IP Address":
            # OpenSSL writes all groups of an IPv6 address, in capitals; <invalid> of other lengths.
            with suppress(ValueError):
                names.add(str(ipaddress.ip_address(name)))
        elif kind in ("DNS", "email", "URI"):
            names.add(name)
    return names


@contextmanager
def _named(content: bytes) -> Iterator[str]:
    """A name for what ssl reads from files alone. It is in memory: a key reaches no disk."""
    with os.fdopen(os.memfd_create("dynahugd-pem"), "wb") as file:
        file.write(content)
        file.flush()
        yield f"/proc/self/fd/{file.fileno()}"


def _set_certificate(context: ssl.SSLContext, tls: Section, files: Files) -> None:
    (cert, cert_name), (key, key_name) = tls.pem("cert", files), tls.pem("key", files)
    for name, content, given, kind, pattern in (
        ("cert", cert, cert_name, "certificate", rb"-----BEGIN [A-Z ]*CERTIFICATE-----"),
        ("key", key, key_name, "private key", rb"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    ):
        if not content:
            raise tls.error("", f"needs {name}_file or {name}")
        if not re.search(pattern, content):
            raise tls.error(given, f"holds no {kind} in PEM form")
    if b"ENCRYPTED" in key:
        raise tls.error(key_name, "is encrypted: give the key without its pass phrase")
    with _named(cert) as cert_file, _named(key) as key_file:
        try:
            # Without a password, OpenSSL would ask for one on the terminal.
            context.load_cert_chain(cert_file, key_file, password="")
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise tls.error(key_name, "is not the key of the certificate") from error
            raise tls.error(cert_name, f"or its key cannot be used: {_reason(error)}") from error


def _set_clients(context: ssl.SSLContext, tls: Section, files: Files) -> None:
    mode = tls.choice("client_auth_type", _CLIENT_AUTH, "NoClientCert")
    authorities, name = tls.pem("client_ca", files)
    verify = "RequireAndVerifyClientCert"
    if mode is None:
        raise tls.error(
            "client_auth_type", f"would take certificates that nobody signed: write {verify}"
        )
    if mode is not ssl.CERT_REQUIRED and "client_allowed_sans" in tls.values:
        raise tls.error("client_allowed_sans", f"needs client_auth_type: {verify}")
    if mode is ssl.CERT_NONE:
        if authorities and tls.values.get("client_auth_type") != "RequestClientCert":
            raise tls.error(name, f"needs client_auth_type: {verify}")
        return
    if not authorities:
        raise tls.error("client_auth_type", "needs client_ca_file or client_ca")
    context.verify_mode = mode
    # As in Go, the certificate of an intermediate authority is enough.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    with _named(authorities) as file:
        try:
            context.load_verify_locations(file)
        except ssl.SSLError as error:
            raise tls.error(name, f"cannot be used: {_reason(error)}") from error


def _set_versions(context: ssl.SSLContext, tls: Section) -> None:
    low = max(tls.choice("min_version", _VERSIONS, "TLS12"), ssl.TLSVersion.TLSv1_2)
    high = tls.choice("max_version", _VERSIONS, "TLS13")
    suites = tls.choices("cipher_suites", _SUITES)
    if older := [suite for suite in suites if suite]:
        context.set_ciphers(":".join(older))
    elif suites:
        low = ssl.TLSVersion.TLSv1_3
    if high < low:
        raise tls.error("max_version", f"leaves no version to be spoken: the lowest is {low.name}")
    context.minimum_version, context.maximum_version = low, high


def _set_curve(context: ssl.SSLContext, tls: Section) -> None:
    curves = tls.choices("curve_preferences", _CURVES)
    if len(curves) > 1:
        raise tls.error("curve_preferences", "may hold one curve")
    if curves:
        try:
            context.set_ecdh_curve(curves[0])
        except (ssl.SSLError, ValueError) as error:
            version = platform.python_version()
            raise tls.error(
                "curve_preferences", f"cannot be {curves[0]} with Python {version}"
            ) from error


def _reason(error: ssl.SSLError) -> str:
    """What OpenSSL has against a file, in words."""
    return error.reason.lower().replace("_", " ") if error.reason else "not in PEM form"
