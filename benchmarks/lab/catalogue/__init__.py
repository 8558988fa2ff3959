"""Malicious behaviours by family: those of the tests, and many that only the laboratory performs.

What leaves no trace before the model is used, or needs what most hosts lack (Keras, a GPU), is not
here.
"""

from __future__ import annotations

from benchmarks.lab.catalogue.control import CONTROL
from benchmarks.lab.catalogue.hiding import HIDING
from benchmarks.lab.catalogue.inside import INSIDE
from benchmarks.lab.catalogue.native import NATIVE
from benchmarks.lab.catalogue.network import NETWORK
from benchmarks.lab.catalogue.processes import PROCESSES
from benchmarks.lab.catalogue.secrets import SECRETS
from benchmarks.lab.catalogue.writing import WRITING
from tests.behaviours import MALICIOUS, Behaviour

__all__ = ["CATALOGUE", "FAMILIES"]

_BY_NAME = {row.name: row for row in MALICIOUS}


def _of_the_tests(names: str) -> tuple[Behaviour, ...]:
    return tuple(_BY_NAME[name] for name in names.split())


FAMILIES: dict[str, tuple[Behaviour, ...]] = {
    "processes": (*_of_the_tests("os_system subprocess_run python_child execvp"), *PROCESSES),
    "control": (
        *_of_the_tests(
            "detached_write detached_connect delayed_thread_exec delayed_thread_connect"
        ),
        *CONTROL,
    ),
    "network": (*_of_the_tests("reverse_connection udp_send bind_listen"), *NETWORK),
    "secrets": (
        *_of_the_tests("read_aws_credentials read_ssh_key steal_credentials"),
        *SECRETS,
    ),
    "writing": (
        *_of_the_tests(
            "exec_source bashrc_append authorized_keys unlink rename symlink drop_and_chmod"
        ),
        *WRITING,
    ),
    "native": (
        *_of_the_tests("drop_and_dlopen memfd_execve mmap_rwx mprotect_exec"),
        *NATIVE,
    ),
    "inside": (*_of_the_tests("masquerade sleeps_first computes_first"), *INSIDE),
    "hiding": (
        *_of_the_tests(
            "marshalled nested_pickle laundered_global inst_opcode extension_registry raises_after "
            "no_suffix unknown_suffix pickle_from_stdin payload_in_npy payload_in_joblib "
            "payload_in_joblib_zlib payload_in_torch_zip payload_in_torch_legacy "
            "cold_import_then_write cold_import_then_exec"
        ),
        *HIDING,
    ),
}

CATALOGUE: tuple[Behaviour, ...] = tuple(row for rows in FAMILIES.values() for row in rows)
