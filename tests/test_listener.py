"""The listener: three paths, for clients that may be slow, rude or many."""

from __future__ import annotations

import re
import resource
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import Counter

from dynahugd.errors import DynahugError
from dynahugd.outputs.listener import Limits, Listener, open_to_others, parse_address
from dynahugd.outputs.webconfig import WebConfig
from tests.listening import (
    HASH,
    Folder,
    State,
    ask,
    connect,
    listening,
    outcome,
    wait_for,
)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """A folder of an operator."""
    return Folder.made(tmp_path)


@pytest.fixture(scope="module")
def state() -> State:
    """The state behind ``listener``."""
    return State()


@pytest.fixture(scope="module")
def listener(state: State) -> Iterator[Listener]:
    """A listener in plain HTTP, for everyone."""
    with listening(state=state) as made:
        yield made


# ----------------------------------------------------------------------------------------- answers


def test_metrics_are_served_in_the_format_that_is_asked_for(listener: Listener) -> None:
    for accept, kind in (
        ("", "text/plain; version=0.0.4"),
        ("application/openmetrics-text; version=1.0.0", "application/openmetrics-text; version=1"),
        ("application/openmetrics-text; version=abc", "text/plain; version=0.0.4"),
        ("text/plain; version=1..0", "text/plain; version=0.0.4"),
    ):
        answer = ask(listener.port, "/metrics?x=y", headers={"Accept": accept})
        assert answer.status == 200
        assert answer.headers["Content-Type"].startswith(kind)
        assert "loads_total 7.0" in answer.text


def test_health_and_readiness_are_200_or_503(listener: Listener, state: State) -> None:
    for word in ("healthy", "ready"):
        for good, status, text in ((True, 200, f"{word}\n"), (False, 503, f"not {word}\n")):
            setattr(state, word, good)
            answer = ask(listener.port, f"/-/{word}")
            assert (answer.status, answer.text) == (status, text)
            assert answer.headers["Content-Type"] == "text/plain"
        setattr(state, word, True)


def test_there_is_nothing_else(listener: Listener) -> None:
    for path in ("/", "/metrics/", "/metrics/../etc", "/-/", "/%2fmetrics", "http://a/metrics"):
        answer = ask(listener.port, path)
        assert (answer.status, answer.text) == (404, "not found: try /metrics\n")


def test_head_is_get_without_the_text(listener: Listener) -> None:
    for path in ("/metrics", "/-/ready", "/nothing"):
        get = ask(listener.port, path)
        with connect(listener, f"HEAD {path} HTTP/1.1\r\n\r\n".encode()) as connection:
            head = connection.makefile("rb").read().decode()
        assert head.startswith(f"HTTP/1.0 {get.status} ")
        assert head.endswith("\r\n\r\n")
        assert f"\r\nContent-Length: {len(get.text)}\r\n" in head


def test_other_methods_are_not_allowed(listener: Listener) -> None:
    for method in ("POST", "PUT", "DELETE", "TRACE", "OPTIONS", "get", "__init__"):
        answer = ask(listener.port, "/metrics", method)
        assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")


def test_an_ipv6_address_is_served() -> None:
    with listening(address="[::1]:0") as listener:
        assert ask(listener.port, host="::1").status == 200


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:9797", ("127.0.0.1", 9797)),
        ("localhost:0", ("localhost", 0)),
        (":65535", ("0.0.0.0", 65535)),
        ("[::1]:80", ("::1", 80)),
        *(
            (text, None)
            for text in (
                "",
                "9797",
                "host:",
                "host:65536",
                "host:-1",
                "host:²",
                f"host:{'9' * 5000}",
                "hö.st:80",
                "a b:80",
                "\udcff:80",
                "host:80\n",
            )
        ),
    ],
)
def test_an_address_is_host_and_port(text: str, address: tuple[str, int] | None) -> None:
    if address:
        assert parse_address(text) == address
    else:
        with pytest.raises(DynahugError, match="is no address to listen on: write host:port"):
            parse_address(text)


def test_where_one_cannot_listen_is_said(listener: Listener) -> None:
    for address, word in (
        (f"127.0.0.1:{listener.port}", "Address already in use"),
        ("192.0.2.1:0", "Cannot assign requested address"),
        ("a..b:0", "Name or service not known"),
    ):
        with pytest.raises(DynahugError) as caught, listening(address=address):
            pass
        assert str(caught.value) == (
            f"cannot listen on {address}: {word}; choose another with --listen"
        )


@pytest.mark.parametrize(
    ("address", "is_open"),
    [
        ("127.0.0.1:1", False),
        ("127.9.9.9:1", False),
        ("[::1]:1", False),
        ("localhost:1", False),
        (":1", True),
        ("0.0.0.0:1", True),
        ("[::]:1", True),
        ("192.0.2.1:1", True),
        ("127.example.com:1", True),
    ],
)
def test_an_address_beyond_loopback_is_open_to_others(address: str, is_open: bool) -> None:
    assert open_to_others(address, None) is is_open


def test_only_tls_with_users_or_certificates_closes_an_address(folder: Folder) -> None:
    tls = {"cert_file": "server.pem", "key_file": "server.key"}
    verify = {"client_auth_type": "RequireAndVerifyClientCert", "client_ca_file": "ca.pem"}
    if_given = verify | {"client_auth_type": "VerifyClientCertIfGiven"}
    users = {"basic_auth_users": {"bob": HASH}}
    for content, is_open in (
        ({}, True),
        (users, True),
        ({"tls_server_config": tls}, True),
        ({"tls_server_config": tls | if_given}, True),
        ({"tls_server_config": tls | verify}, False),
        ({"tls_server_config": tls} | users, False),
    ):
        web = WebConfig.read(folder.web(yaml.safe_dump(content)))
        assert open_to_others("0.0.0.0:1", web) is is_open, content


def test_what_only_a_web_configuration_needs_is_imported_for_one_alone() -> None:
    program = (
        "import sys, dynahugd.outputs.listener\n"
        "print({'yaml', 'bcrypt', 'dynahugd.outputs.webconfig'} & sys.modules.keys())"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert run.stdout == b"set()\n"


# ------------------------------------------------------------------------------------------ limits


def is_closed(connection: socket.socket) -> bool:
    """Whether the other side has ended a connection without a word. Waits until it does."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_slow_clients_block_nobody(listener: Listener) -> None:
    with ExitStack() as stack:
        for _ in range(50):
            stack.enter_context(connect(listener, b"GET /metrics HTTP/1.1\r\nX:"))
        assert ask(listener.port, "/-/healthy").status == 200


def test_a_handshake_that_does_not_go_on_blocks_nobody(folder: Folder) -> None:
    with ExitStack() as stack:
        listener = stack.enter_context(listening(WebConfig.read(folder.web())))
        for data in (b"", b"\x16", b"\x16\x03\x01\x02\x00\x01") * 10:
            stack.enter_context(connect(listener, data))
        assert ask(listener.port, tls=folder.client()).status == 200


def test_connections_beyond_the_limit_are_closed_until_one_ends() -> None:
    with ExitStack() as stack:
        listener = stack.enter_context(listening(limits=Limits(connections=2)))
        first, _ = (stack.enter_context(connect(listener, b"GET")) for _ in range(2))
        with connect(listener, b"GET /metrics HTTP/1.1\r\n\r\n") as third:
            assert is_closed(third)
        first.close()
        wait_for(lambda: outcome(lambda: ask(listener.port)) == 200, "a place becomes free")


def test_a_client_that_pauses_too_long_is_left() -> None:
    for data in (b"", b"GET /metrics HTTP/1.1\r\nX: y"):
        with (
            listening(limits=Limits(pause=0.2, total=60)) as listener,
            connect(listener, data) as slow,
        ):
            assert is_closed(slow)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_client_that_trickles_is_left_when_its_time_is_up(folder: Folder, tls: bool) -> None:
    web = WebConfig.read(folder.web()) if tls else None
    # A record of 16 KiB, of which a byte comes at a time.
    data = b"\x16\x03\x01\x40\x00" if tls else b"GET /metrics?"
    limits = Limits(pause=60, total=0.5)
    with listening(web, limits) as listener, connect(listener, data) as slow:
        slow.setblocking(False)

        def trickle() -> bool:
            try:
                slow.send(b"x")
                return slow.recv(1) == b""
            except BlockingIOError:
                return False
            except OSError:
                return True

        wait_for(trickle, "the connection ends")


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize(
    "limits",
    [Limits(1, pause=1, total=60), Limits(1, pause=60, total=2)],
    ids=["pause", "total"],
)
def test_a_client_that_does_not_read_its_answer_is_left(
    folder: Folder, tls: bool, limits: Limits
) -> None:
    state = State()
    Counter("large", "x" * 20_000_000, registry=state.registry)
    web = WebConfig.read(folder.web()) if tls else None
    client = folder.client() if tls else None
    with listening(web, limits, state) as listener, connect(listener) as slow:
        if client:
            slow = client.wrap_socket(slow, server_hostname="localhost")
        with slow:
            slow.send(b"GET /metrics HTTP/1.1\r\n\r\n")
            assert slow.recv(4) == b"HTTP"
            # The one place is taken until the client is left.
            wait_for(
                lambda: outcome(lambda: ask(listener.port, "/-/ready", tls=client)) == 200,
                "the place becomes free",
            )


def test_a_request_is_of_a_bounded_size(listener: Listener) -> None:
    long = {"X": "y" * 60_000}
    assert ask(listener.port, headers=long).status == 200
    assert ask(listener.port, headers=long | {"Y": "z" * 6000}).status == 431
    assert ask(listener.port, "/" + "x" * 70_000).status == 431
    assert ask(listener.port, headers={f"X-{number}": "y" for number in range(200)}).status == 431


NONSENSE = (
    b"",
    b"\0" * 100,
    b"\r\n\r\n",
    b"GET\r\n\r\n",
    b"POST /metrics\r\n\r\n",
    b"GET /metrics HTTP/9.9\r\n\r\n",
    b"GET /metrics HTTP/x\r\n\r\n",
    b"GET /metrics HTTP/1.1\r\n: \xff\r\nA\0\r\n b\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"A" * 70000,
    b"\x16\x03\x01\x00\x05hello",
    b"\x16\x03\x01\x40\x00" + b"\xff" * 0x4000,
)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_client_that_goes_away_or_talks_nonsense_leaves_no_trace(
    folder: Folder, tls: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    web = WebConfig.read(folder.web()) if tls else None
    client = folder.client() if tls else None
    with listening(web) as listener:
        for data in (*NONSENSE, b"GET /metrics HTTP/1.1\r\n\r\n"):
            for resets in (False, True):
                with connect(listener, data) as connection:
                    if resets:  # closing resets the connection instead of ending it
                        linger = struct.pack("ii", 1, 0)
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                if client:
                    with connect(listener) as connection:
                        secure = client.wrap_socket(connection, server_hostname="localhost")
                        with secure:
                            secure.send(data)
        assert ask(listener.port, tls=client).status == 200
        wait_for(lambda: serving() == 0, "the connections end")
    assert capfd.readouterr() == ("", "")


def serving() -> int:
    """How many connections' threads there are."""
    return sum("process_request_thread" in thread.name for thread in threading.enumerate())


@given(st.binary(max_size=200))
@settings(deadline=None, max_examples=100)
def test_no_request_gets_more_than_an_error(listener: Listener, data: bytes) -> None:
    with connect(listener, data + b"\r\n\r\n") as connection:
        status = connection.makefile("rb").readline()
    assert status == b"" or re.match(rb"HTTP/1\.0 (400|404|405|431|505) ", status)


def test_what_an_error_says_repeats_nothing_of_the_request(listener: Listener) -> None:
    with connect(listener, b"GET /<script> HTTP/<script>\r\n\r\n") as connection:
        answer = connection.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.0 400 Bad Request\r\n")
    assert b"script" not in answer


def test_a_connection_that_cannot_be_accepted_now_is_later(listener: Listener) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as client, closing(socket.socket()) as lowest:
        client.settimeout(10)
        free = lowest.fileno()
        lowest.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
        try:
            client.connect(("127.0.0.1", listener.port))
            client.send(b"GET /-/ready HTTP/1.1\r\n\r\n")
            time.sleep(0.3)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert client.recv(15) == b"HTTP/1.0 200 OK"


def test_closing_ends_connections_and_frees_the_port() -> None:
    limits = Limits(pause=60, total=60)
    with listening(limits=limits) as first, connect(first, b"GET /metrics HTTP/1.1\r\n") as held:
        assert ask(first.port, "/-/ready").status == 200
        first.close()
        with pytest.raises(ConnectionRefusedError):
            ask(first.port)
        with listening(address=f"127.0.0.1:{first.port}") as second:
            assert second.port == first.port
            assert is_closed(held)
            assert ask(second.port, "/-/ready").status == 200


def test_open_connections_do_not_keep_the_program_from_ending() -> None:
    program = (
        "import socket; from prometheus_client import CollectorRegistry\n"
        "from dynahugd.outputs.listener import Listener\n"
        "listener = Listener('127.0.0.1:0', CollectorRegistry(), bool, bool, None, print)\n"
        "held = socket.create_connection(('127.0.0.1', listener.port))\n"
        "held.send(b'GET')\n"
        "print('end')\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=20)
    assert (run.returncode, run.stdout, run.stderr) == (0, b"end\n", b"")
