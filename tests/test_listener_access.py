"""Who may ask the listener: TLS, certificates and users, as with Prometheus itself."""

from __future__ import annotations

import json
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
import trustme
import yaml
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509 import (
    CertificateBuilder,
    Name,
    UnrecognizedExtension,
    load_pem_x509_certificate,
    random_serial_number,
)
from cryptography.x509.oid import ExtensionOID

from dynahugd.errors import DynahugError
from dynahugd.outputs.listener import Listener
from dynahugd.outputs.webconfig import WebConfig
from tests.listening import (
    HASH,
    PASSWORD,
    VERIFY,
    Folder,
    State,
    ask,
    connect,
    listening,
    needs_prometheus,
    outcome,
    wait_for,
    with_tls,
)
from tests.servers import free_port


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """A folder of an operator."""
    return Folder.made(tmp_path)


# --------------------------------------------------------------------------------------------- TLS


def test_metrics_are_served_by_tls(folder: Folder) -> None:
    with listening(WebConfig.read(folder.web())) as listener:
        assert ask(listener.port, tls=folder.client()).status == 200
        stranger = ssl.create_default_context()
        with pytest.raises(ssl.SSLCertVerificationError):
            ask(listener.port, tls=stranger)


def test_certificates_can_be_in_the_file_itself(folder: Folder) -> None:
    path = folder.web(
        yaml.safe_dump(
            {
                "tls_server_config": {
                    "cert": folder.pem("server.pem"),
                    "key": folder.pem("server.key"),
                    "client_ca": folder.pem("ca.pem"),
                    "client_auth_type": "RequireAndVerifyClientCert",
                }
            }
        )
    )
    for name in ("server.pem", "server.key", "ca.pem"):
        (folder.path / name).unlink()
    with listening(WebConfig.read(path)) as listener:
        assert ask(listener.port, tls=folder.client("me")).status == 200
        assert outcome(lambda: ask(listener.port, tls=folder.client())) == "refused"


def test_who_speaks_plain_http_to_a_tls_port_is_told(folder: Folder) -> None:
    with listening(WebConfig.read(folder.web())) as listener:
        answer = ask(listener.port)
    assert answer.status == 400
    assert answer.text == "write https:// to ask here\n"


def test_who_speaks_tls_to_a_plain_port_gets_an_error(folder: Folder) -> None:
    with listening() as listener, pytest.raises(ssl.SSLError, match="WRONG_VERSION_NUMBER"):
        ask(listener.port, tls=folder.client())


def test_client_certificates_are_verified_as_the_type_says(folder: Folder) -> None:
    stranger = trustme.CA()
    clients = (folder.client(), folder.client("me"), folder.client("me", issuer=stranger))
    for kind, results in {
        "NoClientCert": (200, 200, 200),
        "RequestClientCert": (200, 200, 200),
        "VerifyClientCertIfGiven": (200, 200, "refused"),
        "RequireAndVerifyClientCert": ("refused", 200, "refused"),
    }.items():
        ca = {} if kind == "NoClientCert" else {"client_ca_file": "ca.pem"}
        with listening(WebConfig.read(folder.web(client_auth_type=kind, **ca))) as listener:
            got = tuple(outcome(partial(ask, listener.port, tls=client)) for client in clients)
        assert got == results, kind


def test_an_expired_client_certificate_is_refused(folder: Folder) -> None:
    client = folder.client()
    yesterday = datetime.now(UTC) - timedelta(days=1)
    folder.authority.issue_cert("me", not_after=yesterday).configure_cert(client)
    path = folder.web(with_tls(VERIFY))
    with listening(WebConfig.read(path)) as listener:
        assert outcome(lambda: ask(listener.port, tls=client)) == "refused"


def test_an_expired_certificate_of_our_own_is_left_to_the_client(folder: Folder) -> None:
    yesterday = datetime.now(UTC) - timedelta(days=1)
    folder.issue("server", folder.authority.issue_cert("127.0.0.1", not_after=yesterday))
    with (
        listening(WebConfig.read(folder.web())) as listener,
        pytest.raises(ssl.SSLCertVerificationError, match="expired"),
    ):
        ask(listener.port, tls=folder.client())


def test_an_intermediate_authority_is_enough(folder: Folder) -> None:
    team, other = folder.authority.create_child_ca(), folder.authority.create_child_ca()
    folder.write("ca.pem", team.cert_pem.bytes().decode())
    with listening(WebConfig.read(folder.web(with_tls(VERIFY)))) as listener:
        for issuer, result in ((team, 200), (other, "refused"), (folder.authority, "refused")):
            client = folder.client("me", issuer=issuer)
            assert outcome(partial(ask, listener.port, tls=client)) == result


@pytest.mark.parametrize(
    ("names", "allowed"),
    [
        (("metrics.example",), True),
        (("other.example", "metrics.example"), True),
        (("me@example.com",), True),
        (("192.0.2.7",), True),
        (("2001:db8::7",), True),
        (("a.metrics.example",), False),
        (("*.example",), False),
        (("192.0.2.8",), False),
        ((), False),
    ],
)
def test_a_client_needs_an_allowed_name(
    folder: Folder, names: tuple[str, ...], allowed: bool
) -> None:
    sans = ["metrics.example", "me@example.com", "192.0.2.7", "2001:db8::7"]
    path = folder.web(
        client_auth_type="RequireAndVerifyClientCert",
        client_ca_file="ca.pem",
        client_allowed_sans=sans,
    )
    client = folder.client()
    folder.authority.issue_cert(*names, common_name="metrics.example").configure_cert(client)
    with listening(WebConfig.read(path)) as listener:
        got = outcome(lambda: ask(listener.port, tls=client))
    assert got == (200 if allowed else "refused")


def test_a_certificate_with_a_broken_name_is_of_nobody(
    folder: Folder, capfd: pytest.CaptureFixture[str]
) -> None:
    key = load_pem_private_key(folder.authority.private_key_pem.bytes(), None)
    assert isinstance(key, EllipticCurvePrivateKey)
    root = load_pem_x509_certificate(folder.authority.cert_pem.bytes())
    five_bytes = bytes.fromhex("3007 8705 0102030405")  # of an iPAddress, which has 4 or 16
    certificate = (
        CertificateBuilder(root.subject, Name([]), key.public_key(), random_serial_number())
        .not_valid_before(datetime.now(UTC) - timedelta(days=1))
        .not_valid_after(datetime.now(UTC) + timedelta(days=1))
        .add_extension(
            UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, five_bytes), critical=False
        )
        .sign(key, SHA256())
    )
    pem = certificate.public_bytes(Encoding.PEM) + folder.authority.private_key_pem.bytes()
    client = folder.client()
    client.load_cert_chain(folder.write("broken.pem", pem.decode()))
    path = folder.web(with_tls(f"{VERIFY}, client_allowed_sans: [1.2.3.4]"))
    with listening(WebConfig.read(path)) as listener:
        assert outcome(lambda: ask(listener.port, tls=client)) == "refused"
        assert ask(listener.port, tls=folder.client("1.2.3.4")).status == 200
    assert capfd.readouterr().err == ""


def test_an_empty_list_of_names_allows_nobody(folder: Folder) -> None:
    with listening(
        WebConfig.read(folder.web(with_tls(f"{VERIFY}, client_allowed_sans: []")))
    ) as listener:
        assert outcome(lambda: ask(listener.port, tls=folder.client("me"))) == "refused"


def handshake(
    listener: Listener, client: ssl.SSLContext, low: str = "TLSv1_2", high: str = "TLSv1_3"
) -> str:
    """The suite and the version that were agreed upon."""
    client.minimum_version, client.maximum_version = ssl.TLSVersion[low], ssl.TLSVersion[high]
    with (
        connect(listener) as connection,
        client.wrap_socket(connection, server_hostname="localhost") as secure,
    ):
        agreed = secure.cipher()
        assert agreed
        return f"{agreed[0]} {secure.version()}"


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
def test_only_the_versions_that_are_allowed_are_spoken(folder: Folder) -> None:
    for keys, spoken in (
        ("min_version: TLS12", "TLSv1.2 TLSv1.3"),
        ("min_version: TLS10", "TLSv1.2 TLSv1.3"),
        ("min_version: TLS13", "TLSv1.3"),
        ("max_version: TLS12", "TLSv1.2"),
        ("cipher_suites: [TLS_AES_128_GCM_SHA256]", "TLSv1.3"),
    ):
        got = []
        with listening(WebConfig.read(folder.web(with_tls(keys)))) as listener:
            for version in ("TLSv1_1", "TLSv1_2", "TLSv1_3"):
                client = folder.client()
                client.set_ciphers("ALL:@SECLEVEL=0")
                try:
                    got.append(handshake(listener, client, version, version).split()[1])
                except OSError:
                    continue
        assert got == spoken.split(), keys


def standard_names() -> dict[str, str]:
    """OpenSSL's names of suites by the standard's."""
    command = ["openssl", "ciphers", "-stdname", "ALL"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return {line.split()[0]: line.split()[2] for line in lines}


def test_a_cipher_suite_is_known_by_the_name_that_go_gives_it(folder: Folder) -> None:
    standard = standard_names()
    for key, kind in (("ECDSA", trustme.KeyType.ECDSA), ("RSA", trustme.KeyType.RSA)):
        folder.issue("server", folder.authority.issue_cert("localhost", key_type=kind))
        for rest in (
            "AES_128_CBC_SHA",
            "AES_256_CBC_SHA",
            "AES_128_GCM_SHA256",
            "AES_256_GCM_SHA384",
            "CHACHA20_POLY1305_SHA256",
        ):
            suite = f"TLS_ECDHE_{key}_WITH_{rest}"
            web = WebConfig.read(folder.web(with_tls(f"cipher_suites: [{suite}]")))
            client = folder.client()
            client.set_ciphers("ALL")
            with listening(web) as listener:
                assert handshake(listener, client, high="TLSv1_2").split()[0] == standard[suite]


def test_the_order_of_suites_is_ours_or_the_clients(folder: Folder) -> None:
    ours, theirs = "AES_256_GCM_SHA384", "AES_128_GCM_SHA256"
    suites = f"cipher_suites: [TLS_ECDHE_ECDSA_WITH_{ours}, TLS_ECDHE_ECDSA_WITH_{theirs}]"
    for prefer, chosen in (("true", "AES256-GCM-SHA384"), ("false", "AES128-GCM-SHA256")):
        text = with_tls(f"{suites}, prefer_server_cipher_suites: {prefer}")
        client = folder.client()
        client.set_ciphers("ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384")
        with listening(WebConfig.read(folder.web(text))) as listener:
            assert handshake(listener, client, high="TLSv1_2").split()[0] == f"ECDHE-ECDSA-{chosen}"


def test_only_the_curve_that_is_preferred_is_used(folder: Folder) -> None:
    curves = {"CurveP256": "prime256v1", "CurveP384": "secp384r1", "CurveP521": "secp521r1"}
    for name in curves:
        got = []
        text = with_tls(f"curve_preferences: [{name}]")
        with listening(WebConfig.read(folder.web(text))) as listener:
            for curve in curves.values():
                client = folder.client()
                client.set_ecdh_curve(curve)
                try:
                    handshake(listener, client)
                    got.append(curve)
                except OSError:
                    continue
        assert got == [curves[name]]


def test_a_curve_that_this_python_cannot_set_is_refused(folder: Folder) -> None:
    path = folder.web(with_tls("curve_preferences: [X25519]"))
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).set_ecdh_curve("X25519")
    except ssl.SSLError:
        with pytest.raises(DynahugError, match="curve_preferences' cannot be X25519 with Python"):
            WebConfig.read(path)
    else:
        assert WebConfig.read(path).context


# ----------------------------------------------------------------- users, headers, rate of requests


@pytest.fixture
def users(folder: Folder) -> WebConfig:
    """A web configuration with a user, in plain HTTP."""
    return WebConfig.read(folder.web(f"basic_auth_users: {{bob: {HASH}}}"))


def test_only_a_user_with_the_right_password_gets_an_answer(users: WebConfig) -> None:
    with listening(users) as listener:
        for path in ("/metrics", "/-/healthy", "/-/ready", "/nothing"):
            status = 404 if path == "/nothing" else 200
            assert ask(listener.port, path, user=f"bob:{PASSWORD}").status == status
            for user in ("", "bob:wrong", f"eve:{PASSWORD}", "bob:", f":{PASSWORD}"):
                for _ in range(2):  # the second answer is a remembered one
                    answer = ask(listener.port, path, user=user)
                    assert answer.status == 401
                    assert answer.headers["WWW-Authenticate"] == 'Basic realm="dynahugd"'
        assert ask(listener.port, method="POST").status == 401
        assert ask(listener.port, method="HEAD", user=f"bob:{PASSWORD}").status == 200


def test_headers_are_added_to_every_answer(folder: Folder) -> None:
    headers = {
        "Content-Security-Policy": "default-src 'none'",
        "Strict-Transport-Security": "max-age=3600",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "deny",
        "X-XSS-Protection": "0",
    }
    content = {"http_server_config": {"headers": headers}, "basic_auth_users": {"bob": HASH}}
    with listening(WebConfig.read(folder.web(yaml.safe_dump(content)))) as listener:
        for answer in (
            ask(listener.port),
            ask(listener.port, user=f"bob:{PASSWORD}"),
            ask(listener.port, "/nothing", user=f"bob:{PASSWORD}"),
            ask(listener.port, "/" + "x" * 70_000),
        ):
            assert headers.items() <= answer.headers.items(), answer.status


def test_requests_beyond_the_rate_are_too_many(folder: Folder) -> None:
    web = WebConfig.read(folder.web("rate_limit: {interval: 1h, burst: 2}"))
    with listening(web) as listener:
        assert [ask(listener.port).status for _ in range(4)] == [200, 200, 429, 429]


# ----------------------------------------------------------------------------------------- changes


def served(listener: Listener) -> int:
    """The serial number of the certificate that the next connection gets."""
    pem = ssl.get_server_certificate(("127.0.0.1", listener.port))
    return load_pem_x509_certificate(pem.encode()).serial_number


def test_a_changed_certificate_is_served_to_the_next_connection(folder: Folder) -> None:
    with listening(WebConfig.read(folder.web())) as listener:
        first = served(listener)
        assert served(listener) == first
        folder.issue("server", folder.authority.issue_cert("127.0.0.1"))
        assert served(listener) != first
        assert ask(listener.port, tls=folder.client()).status == 200


def test_a_changed_authority_and_changed_users_count_at_once(folder: Folder) -> None:
    text = with_tls(VERIFY)
    other = trustme.CA()
    with listening(WebConfig.read(folder.web(text))) as listener:
        ours, theirs = folder.client("me"), folder.client("me", issuer=other)
        assert outcome(lambda: ask(listener.port, tls=ours)) == 200
        folder.write("ca.pem", other.cert_pem.bytes().decode())
        assert outcome(lambda: ask(listener.port, tls=ours)) == "refused"
        assert outcome(lambda: ask(listener.port, tls=theirs)) == 200
        folder.web(f"{text}\nbasic_auth_users: {{bob: {HASH}}}")
        assert outcome(lambda: ask(listener.port, tls=theirs)) == 401
        folder.web(f"basic_auth_users: {{eve: {HASH}}}")
        assert ask(listener.port, user=f"eve:{PASSWORD}").status == 200
        assert ask(listener.port, user=f"bob:{PASSWORD}").status == 401


def test_an_invalid_change_is_refused_and_said_once(folder: Folder) -> None:
    state = State()
    path = folder.web()
    with listening(WebConfig.read(path), state=state) as listener:
        first = served(listener)

        def still(number: int, words: str = "") -> None:
            """The old certificate is served, and so many complaints were made."""
            for _ in range(3):
                assert served(listener) == first
            assert len(state.said) == number
            assert words in "".join(state.said[-1:])

        still(0)
        folder.web(" tls_server_confi: {}")
        still(1, f"{path}:1: unknown key 'tls_server_confi'")
        assert state.said[0].endswith("; what was in force still is")
        (folder.path / "web.yml").unlink()
        still(2, f"{path}: No such file or directory")
        folder.web()
        still(2)
        (folder.path / "server.pem").unlink()
        still(3, "server.pem: No such file or directory")
        folder.issue("other", folder.authority.issue_cert("127.0.0.1"))
        folder.write("server.pem", folder.pem("other.pem"))
        still(4, "'tls_server_config.key_file' is not the key of the certificate")
        folder.write("server.key", folder.pem("other.key"))
        assert served(listener) != first
        assert len(state.said) == 4


def test_another_web_configuration_is_for_the_connections_from_now_on(folder: Folder) -> None:
    state = State()
    with listening(state=state) as listener:
        assert ask(listener.port).status == 200
        listener.use(WebConfig.read(folder.web()))
        assert ask(listener.port, tls=folder.client()).status == 200
        folder.web("nonsense")
        assert ask(listener.port, tls=folder.client()).status == 200
        assert len(state.said) == 1
        listener.use(None)
        assert ask(listener.port).status == 200


def test_what_a_refused_file_lacked_may_come_later(folder: Folder) -> None:
    state = State()
    with listening(WebConfig.read(folder.web()), state=state) as listener:
        first = served(listener)
        folder.web(cert_file="later.pem", key_file="later.key")
        assert served(listener) == first
        folder.issue("later", folder.authority.issue_cert("127.0.0.1"))
        assert served(listener) != first
        assert len(state.said) == 1


def test_many_connections_take_over_a_change_once(folder: Folder) -> None:
    state = State()
    with listening(WebConfig.read(folder.web()), state=state) as listener:
        folder.web("nonsense")
        threads = [threading.Thread(target=served, args=(listener,)) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(state.said) == 1


# -------------------------------------------------------------------------------------- Prometheus


@contextmanager
def prometheus(folder: Folder, config: object, web: str = "") -> Iterator[int]:
    """A running Prometheus, and its port."""
    port = free_port()
    command = [
        "prometheus",
        f"--config.file={folder.write('prometheus.yml', yaml.safe_dump(config))}",
        f"--storage.tsdb.path={folder.path}/data",
        f"--web.listen-address=127.0.0.1:{port}",
        *([f"--web.config.file={web}"] if web else []),
    ]
    with open(folder.path / "prometheus.log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_for(lambda: "ready to receive" in folder.pem("prometheus.log"), "Prometheus is ready")
        yield port
    finally:
        process.kill()
        process.wait()


@needs_prometheus
def test_prometheus_scrapes_by_tls_as_a_user_with_a_certificate(folder: Folder) -> None:
    web = WebConfig.read(folder.web(f"{with_tls(VERIFY)}\nbasic_auth_users: {{bob: {HASH}}}"))
    folder.issue("client", folder.authority.issue_cert("prometheus"))
    tls = {"ca_file": "ca.pem", "cert_file": "client.pem", "key_file": "client.key"}
    right = {"username": "bob", "password": PASSWORD}
    with listening(web) as listener:
        jobs: dict[str, dict[str, object]] = {
            "right": {"basic_auth": right, "tls_config": tls},
            "guesses": {"basic_auth": right | {"password": "x"}, "tls_config": tls},
            "stranger": {"basic_auth": right, "tls_config": {"ca_file": "ca.pem"}},
            "plain": {"scheme": "http", "basic_auth": right},
        }
        config = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
            "scrape_configs": [
                {
                    "job_name": name,
                    "scheme": "https",
                    "static_configs": [{"targets": [f"127.0.0.1:{listener.port}"]}],
                }
                | job
                for name, job in jobs.items()
            ],
        }
        with prometheus(folder, config) as port:

            def targets() -> dict[str, str]:
                data = json.loads(ask(port, "/api/v1/targets").text)["data"]
                return {
                    target["labels"]["job"]: target["lastError"] or target["health"]
                    for target in data["activeTargets"]
                }

            def samples() -> list[tuple[str, str]]:
                answer = ask(port, "/api/v1/query?query=loads_total").text
                return [
                    (sample["metric"]["job"], sample["value"][1])
                    for sample in json.loads(answer)["data"]["result"]
                ]

            wait_for(
                lambda: samples() and targets() and "unknown" not in targets().values(),
                "all are scraped",
            )
            got = targets()
            assert samples() == [("right", "7")]
    assert got["right"] == "up"
    assert "401 Unauthorized" in got["guesses"]
    assert got["stranger"] != "up"
    assert "400 Bad Request" in got["plain"]


@needs_prometheus
@pytest.mark.parametrize(
    "text",
    [
        f"basic_auth_users: {{bob: {HASH}}}",
        with_tls(VERIFY),
        with_tls(VERIFY.replace("RequireAndVerifyClientCert", "VerifyClientCertIfGiven"))
        + f"\nbasic_auth_users: {{bob: {HASH}}}",
    ],
    ids=["users", "certificates", "both"],
)
def test_the_same_clients_get_in_as_with_prometheus_itself(folder: Folder, text: str) -> None:
    path = folder.web(text)
    child = folder.authority.create_child_ca()
    clients = {
        "plain": None,
        "none": folder.client(),
        "known": folder.client("me"),
        "child": folder.client("me", issuer=child),
        "strange": folder.client("me", issuer=trustme.CA()),
        "old": folder.client(),
    }
    assert clients["old"]
    clients["old"].maximum_version = ssl.TLSVersion.TLSv1_2
    users = ("", f"bob:{PASSWORD}", "bob:x", f"eve:{PASSWORD}", "bob")

    def answers(port: int) -> dict[str, int | str]:
        return {
            f"{name} {user} {page}": outcome(partial(ask, port, page, tls=tls, user=user))
            for name, tls in clients.items()
            for user in users
            for page in ("/metrics", "/-/healthy")
        }

    with listening(WebConfig.read(path)) as listener:
        ours = answers(listener.port)
    with prometheus(folder, {}, path) as port:
        theirs = answers(port)
    assert ours == theirs
    assert set(ours.values()) > {200}
