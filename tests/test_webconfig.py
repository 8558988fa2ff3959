"""Web configuration files: what Prometheus takes is taken, what is wrong is said in a sentence."""

from __future__ import annotations

import os
import re
import subprocess
from contextlib import suppress
from pathlib import Path

import bcrypt
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dynahugd.errors import DynahugError
from dynahugd.outputs.access import RateLimit, Users, is_bcrypt
from dynahugd.outputs.webconfig import WebConfig
from tests.listening import HASH, PASSWORD, TLS, VERIFY, Folder, basic, needs_prometheus


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """A folder of an operator."""
    return Folder.made(tmp_path)


# --------------------------------------------------------------------- reading a web configuration

#: What Debian's promtool knows too.
GOOD = [
    "{}",
    "tls_server_config: {}\nhttp_server_config:\nbasic_auth_users:\n",
    TLS + "}",
    TLS + ", client_auth_type: NoClientCert}",
    TLS + ", client_auth_type: RequestClientCert}",
    TLS + ", client_auth_type: RequestClientCert, client_ca_file: ca.pem}",
    TLS + ", client_auth_type: VerifyClientCertIfGiven, client_ca_file: ca.pem}",
    TLS + f", {VERIFY}}}",
    TLS + ", min_version: TLS10, max_version: TLS12}",
    TLS + ", min_version: TLS13, max_version: TLS13}",
    TLS + ", prefer_server_cipher_suites: false, curve_preferences: [CurveP521]}",
    TLS + ", cipher_suites: [TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA, TLS_AES_128_GCM_SHA256]}",
    TLS + "}\nhttp_server_config: {http2: false}",
    "http_server_config: {http2: yes, headers: {X-Frame-Options: deny, X-XSS-Protection: ''}}",
    f"basic_auth_users: {{bob: {HASH}, 7: {HASH}, 'a.b': {HASH}}}",
]
NEW = [
    TLS + f", {VERIFY}, client_allowed_sans: [a, 127.0.0.1]}}",
    TLS + f", {VERIFY}}}\nrate_limit: {{interval: 0, burst: 0}}",
    "rate_limit: {interval: 1m30.5s, burst: 7}",
]


@needs_prometheus
def test_what_prometheus_takes_is_taken(folder: Folder) -> None:
    for text in GOOD:
        path = folder.web(text)
        WebConfig.read(path)
        check = subprocess.run(
            ["promtool", "check", "web-config", path], capture_output=True, text=True
        )
        assert check.returncode == 0, check.stderr


def test_keys_of_later_versions_are_taken(folder: Folder) -> None:
    for text in NEW:
        WebConfig.read(folder.web(text))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        # The file
        ("- a", ":1: the file has to be a mapping of keys to values"),
        ("a: [", ":1: not YAML: expected the node content, but found '<stream end>'"),
        (
            "a: 1\n\0",
            ": not YAML: unacceptable character #x0000: special characters are not allowed",
        ),
        ("[" * 5000, ": not YAML: maximum recursion depth exceeded"),
        ('"\\UFFFFFFFF": 1', ": not YAML: "),
        ("{}\n---\n{}", ":2: not YAML: but found another document"),
        # Keys
        ("tls_server: {}", ":1: unknown key 'tls_server'; did you mean 'tls_server_config'?"),
        (
            "\ntls_server_config:\n  cert_fil: a",
            ":3: unknown key 'tls_server_config.cert_fil'; did you mean "
            "'tls_server_config.cert_file'?",
        ),
        ("tls_server_config.cert_file: a", ":1: unknown key 'tls_server_config.cert_file'"),
        ("? [a]\n: b", ":1: unknown key '?'"),
        ("<<: {tls_server_config: {}}", ":1: unknown key '<<'"),
        ('"\\e[2J": 1', ":1: unknown key '\\x1b[2J'"),
        (
            "http_server_config:\n  headers:\n    Server: x",
            ":3: unknown key 'http_server_config.headers.Server'",
        ),
        (
            f"basic_auth_users:\n  bob: {HASH}\n  bob: {HASH}",
            ":3: 'basic_auth_users.bob' is there twice",
        ),
        # Kinds
        ("tls_server_config: a", ":1: 'tls_server_config' has to be a mapping of keys to values"),
        (
            TLS + ", client_allowed_sans: a}",
            "'tls_server_config.client_allowed_sans' has to be a list",
        ),
        (
            TLS + ", client_allowed_sans: }",
            "'tls_server_config.client_allowed_sans' has to be a list",
        ),
        (TLS + ", client_allowed_sans: [[a]]}", "client_allowed_sans' has to be a list of texts"),
        ("tls_server_config: {cert_file: [a]}", "'tls_server_config.cert_file' has to be text"),
        ("tls_server_config: {cert_file: }", "'tls_server_config.cert_file' has to be text"),
        ("http_server_config: {http2: 1}", "'http_server_config.http2' has to be true or false"),
        ("http_server_config: {http2: !!bool [a]}", "'http_server_config.http2' has to be true or"),
        ("rate_limit: {burst: 1.5}", "'rate_limit.burst' has to be a whole number"),
        ("rate_limit: {burst: !!int x}", "'rate_limit.burst' has to be a whole number"),
        (f"rate_limit: {{burst: {'9' * 5000}}}", "'rate_limit.burst' has to be a whole number"),
        ("basic_auth_users: {bob: }", "'basic_auth_users.bob' has to be text"),
        # Certificates
        ("tls_server_config: {min_version: TLS13}", "'tls_server_config' needs cert_file or cert"),
        ("tls_server_config: {cert_file: server.pem}", "'tls_server_config' needs key_file or key"),
        (
            "tls_server_config: {cert_file: '', key: a}",
            "'tls_server_config' needs cert_file or cert",
        ),
        (TLS + ", key: a}", "'tls_server_config.key_file' excludes 'tls_server_config.key'"),
        (
            "tls_server_config: {cert_file: none.pem, key_file: server.key}",
            "'tls_server_config.cert_file' names FOLDER/none.pem: No such file or directory",
        ),
        (
            "tls_server_config: {cert_file: server.pem, key_file: .}",
            "'tls_server_config.key_file' names FOLDER/.: it is no regular file",
        ),
        (
            'tls_server_config: {cert_file: "a\\0", key_file: server.key}',
            "'tls_server_config.cert_file' names FOLDER/a\\x00: ",
        ),
        (
            "tls_server_config: {cert_file: fifo, key_file: server.key}",
            "'tls_server_config.cert_file' names FOLDER/fifo: it is no regular file",
        ),
        (
            "tls_server_config: {cert_file: large, key_file: server.key}",
            "'tls_server_config.cert_file' names FOLDER/large: it is larger than 1048576 bytes",
        ),
        (
            "tls_server_config: {cert_file: server.key, key_file: server.key}",
            "'tls_server_config.cert_file' holds no certificate in PEM form",
        ),
        (
            "tls_server_config: {cert_file: server.pem, key_file: server.pem}",
            "'tls_server_config.key_file' holds no private key in PEM form",
        ),
        (
            "tls_server_config: {cert_file: server.pem, key_file: other.key}",
            "'tls_server_config.key_file' is not the key of the certificate",
        ),
        (
            "tls_server_config: {cert_file: server.pem, key_file: encrypted.key}",
            "'tls_server_config.key_file' is encrypted: give the key without its pass phrase",
        ),
        (
            "tls_server_config: {cert_file: broken.pem, key_file: server.key}",
            "'tls_server_config.cert_file' or its key cannot be used: ",
        ),
        # Clients
        (
            TLS + ", client_auth_type: RequireAndVerifyClientCerts}",
            "'tls_server_config.client_auth_type' does not know 'RequireAndVerifyClientCerts'; "
            "did you mean 'RequireAndVerifyClientCert'?",
        ),
        (
            TLS + ", client_auth_type: RequireAnyClientCert, client_ca_file: ca.pem}",
            "'tls_server_config.client_auth_type' would take certificates that nobody signed: "
            "write RequireAndVerifyClientCert",
        ),
        (
            TLS + ", client_auth_type: VerifyClientCertIfGiven}",
            "'tls_server_config.client_auth_type' needs client_ca_file or client_ca",
        ),
        (
            TLS + ", client_ca_file: ca.pem}",
            "'tls_server_config.client_ca_file' needs client_auth_type: RequireAndVerifyClientCert",
        ),
        (
            TLS + ", client_auth_type: RequireAndVerifyClientCert, client_ca_file: none.pem}",
            "'tls_server_config.client_ca_file' names FOLDER/none.pem: No such file or directory",
        ),
        (
            TLS + ", client_auth_type: RequireAndVerifyClientCert, client_ca_file: server.key}",
            "'tls_server_config.client_ca_file' cannot be used: ",
        ),
        (
            TLS + ", client_allowed_sans: [a]}",
            "'tls_server_config.client_allowed_sans' needs client_auth_type: RequireAndVerify",
        ),
        # Parameters
        (TLS + ", min_version: TLS14}", "'tls_server_config.min_version' does not know 'TLS14'"),
        (
            TLS + ", min_version: TLS13, max_version: TLS12}",
            "'tls_server_config.max_version' leaves no version to be spoken",
        ),
        (TLS + ", max_version: TLS11}", "'tls_server_config.max_version' leaves no version"),
        (
            TLS + ", cipher_suites: [TLS_RSA_WITH_RC4_128_SHA]}",
            "'tls_server_config.cipher_suites' does not know 'TLS_RSA_WITH_RC4_128_SHA'",
        ),
        (
            TLS + ", cipher_suites: [TLS_AES_128_GCM_SHA256], max_version: TLS12}",
            "'tls_server_config.max_version' leaves no version to be spoken",
        ),
        (
            TLS + ", curve_preferences: [CurveP25]}",
            "'tls_server_config.curve_preferences' does not know 'CurveP25'; did you mean "
            "'CurveP256'?",
        ),
        (
            TLS + ", curve_preferences: [X25519, CurveP256]}",
            "'tls_server_config.curve_preferences' may hold one curve",
        ),
        # The rest
        (
            "http_server_config: {headers: {X-Frame-Options: no}}",
            "'http_server_config.headers.X-Frame-Options' has to be deny or sameorigin",
        ),
        (
            'http_server_config: {headers: {Content-Security-Policy: "a\\r\\nSet-Cookie: b"}}',
            "'http_server_config.headers.Content-Security-Policy' may hold printable ASCII",
        ),
        (
            "basic_auth_users:\n  eve: x\n  bob: secret",
            ":2: 'basic_auth_users.eve' is no bcrypt hash: make one with htpasswd -nBC 10 USER",
        ),
        ("rate_limit: {interval: 5, burst: 1}", "'rate_limit.interval' has to be a duration, such"),
        ("rate_limit: {interval: 1s}", "'rate_limit' needs a burst of at least 1"),
        ("rate_limit: {interval: 1s, burst: -1}", "'rate_limit.burst' needs a burst of at least 1"),
    ],
)
def test_a_wrong_file_is_refused_in_a_sentence(folder: Folder, text: str, complaint: str) -> None:
    folder.issue("other", folder.authority.issue_cert("127.0.0.1"))
    folder.write("broken.pem", re.sub("[A-Za-z]{40}", "A" * 40, folder.pem("server.pem")))
    folder.write("large", folder.pem("server.pem") + "#" * (1 << 20))
    os.mkfifo(folder.path / "fifo")
    if "encrypted.key" in text:
        command = "openssl pkey -in server.key -aes128 -passout pass:x -out encrypted.key"
        subprocess.run(command.split(), cwd=folder.path, check=True)
    path = folder.web(text)
    with pytest.raises(DynahugError) as caught:
        WebConfig.read(path)
    said = str(caught.value)
    assert said.startswith(f"{path}:")
    assert complaint.replace("FOLDER", str(folder.path)) in said
    assert said.isprintable()
    assert "secret" not in said


def test_a_file_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    latin = tmp_path / "latin.yml"
    latin.write_bytes(b"a: \xe4")
    for path, reason in (
        (f"{tmp_path}/none\n.yml", "No such file or directory"),
        (str(tmp_path), "it is no regular file"),
        ("/dev/zero", "it is no regular file"),
        (str(latin), "not UTF-8 at byte 3"),
        ("a\0b", "embedded null byte"),
    ):
        with pytest.raises(DynahugError, match=reason) as caught:
            WebConfig.read(path)
        assert str(caught.value).isprintable()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
SECTIONS = {
    "tls_server_config": ("cert", "key_file", "client_auth_type", "cipher_suites", "min_version"),
    "http_server_config": ("http2", "headers"),
    "rate_limit": ("interval", "burst"),
    "basic_auth_users": ("bob",),
}


@given(
    st.fixed_dictionaries(
        {},
        optional={
            name: VALUES | st.dictionaries(st.sampled_from(keys) | st.text(), VALUES, max_size=4)
            for name, keys in SECTIONS.items()
        },
    ).map(lambda content: yaml.safe_dump(content, allow_unicode=True))
    | st.text()
    | st.text(alphabet="{}[]:,-?!&*#|>%@`'\"\\ \nabU1~<.")
)
@settings(deadline=None, max_examples=300)
def test_whatever_a_file_holds_is_no_crash(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "whatever.yml"
    path.write_bytes(text.encode(errors="surrogatepass"))
    with suppress(DynahugError):
        WebConfig.read(str(path))


# ----------------------------------------------------------------------- users and rate of requests


@pytest.fixture
def users(folder: Folder) -> WebConfig:
    """A web configuration with a user, in plain HTTP."""
    return WebConfig.read(folder.web(f"basic_auth_users: {{bob: {HASH}}}"))


def test_a_header_that_is_no_basic_authentication_is_no_user(users: WebConfig) -> None:
    right = basic(f"bob:{PASSWORD}")
    assert users.allows(right)
    assert users.allows(right.replace("Basic", "bAsIc"))
    for header in (
        None,
        "",
        "Basic",
        "Basic ",
        "Basic !!!",
        "Basic \xff",
        right.removeprefix("Basic "),
        right.replace("Basic", "Bearer"),
        right + "!",
        basic("bob"),
        basic(f"bob:{PASSWORD}\0"),
        basic(f"Bob:{PASSWORD}"),
        basic(f"bob\0:{PASSWORD}"),
        basic("bob:" + "x" * 100_000),
    ):
        assert not users.allows(header), header


def test_hashes_of_all_versions_and_passwords_of_any_length_are_known() -> None:
    long = "ä" * 50
    for version in ("2a", "2b", "2y"):
        for password in ("", "x", long):
            made = bcrypt.hashpw(password.encode()[:72], bcrypt.gensalt(4)).decode()
            text = f"${version}{made[3:]}"
            assert is_bcrypt(text)
            assert Users({"ü": text}).allow(basic(f"ü:{password}"))
    for text in ("", HASH[:-1], HASH + "x", HASH.replace("$04$", "$03$"), "$1$x$y", HASH + "\n"):
        assert not is_bcrypt(text)


def test_bcrypt_is_asked_once_for_each_credentials_and_also_for_unknown_users(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []
    check = bcrypt.checkpw

    def counted(password: bytes, text: bytes) -> bool:
        asked.append(text)
        return check(password, text)

    monkeypatch.setattr(bcrypt, "checkpw", counted)
    costly = bcrypt.hashpw(b"y", bcrypt.gensalt(5)).decode()
    users = Users({"bob": HASH, "ada": costly})
    for _ in range(3):
        assert users.allow(basic(f"bob:{PASSWORD}"))
        assert not users.allow(basic(f"ada:{PASSWORD}"))
        assert not users.allow(basic(f"eve:{PASSWORD}"))
        assert not users.allow(basic("eve:y"))
    assert asked == [text.encode() for text in (HASH, costly, costly, costly)]
    for number in range(1500):  # a flood of guesses pushes out no password that was right
        users.allow(basic(f"bob:{number}"))
    del asked[:]
    assert users.allow(basic(f"bob:{PASSWORD}"))
    assert asked == []


def test_one_request_an_interval_is_earned() -> None:
    rate = RateLimit(interval=2.0, burst=2)
    times = (100, 100, 100, 101, 102, 102.5, 104, 1000, 1000, 1000)
    assert [rate.allow(now) for now in times] == [
        *(True, True, False, False, True, False, True),
        *(True, True, False),
    ]


def test_an_interval_is_a_duration_of_go(folder: Folder) -> None:
    for text, seconds in (("500ms", 0.5), ("1m30s", 90), ("1.5h", 5400), ("2us", 2e-6)):
        rate = WebConfig.read(folder.web(f"rate_limit: {{interval: {text}, burst: 1}}")).rate
        assert rate is not None
        assert rate.allow(1.0)
        assert not rate.allow(1.0 + seconds * 0.9)
        assert rate.allow(1.0 + seconds * 1.1)
