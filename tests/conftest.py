"""Fixtures: a running daemon, a probe, and what has to be there for them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import servers
from tests.harness import RunningDaemon, own_cgroup

LOADERS = ("libbpf", "bcc")


def _can_trace() -> bool:
    return os.geteuid() == 0 and Path("/sys/kernel/btf/vmlinux").exists()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs the kernel where it cannot be had; in CI that is a failure, see below."""
    if _can_trace() or os.environ.get("CI"):
        return
    for item in items:
        if item.get_closest_marker("ebpf"):
            item.add_marker(pytest.mark.skip(reason="needs root and a kernel with eBPF"))


@pytest.fixture(scope="module", params=LOADERS)
def daemon(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningDaemon]:
    """A daemon with the embedded baseline, under each loader."""
    with RunningDaemon(tmp_path_factory.mktemp("daemon"), "--loader", request.param) as running:
        yield running


@pytest.fixture(scope="session", autouse=True)
def _alone() -> Iterator[None]:
    """What the tests do is told apart from other loads of this host."""
    if _can_trace():
        with own_cgroup():
            yield
    else:
        yield


@pytest.fixture
def free_port() -> int:
    """A port of loopback that nobody listened on a moment ago."""
    return servers.free_port()
