"""Offsets of kernel structures, by the kernel's own word."""

from __future__ import annotations

import re
import subprocess

import pytest

from dynahugd.errors import DynahugError
from dynahugd.probes.btf import Kernel, offsets

pytestmark = pytest.mark.ebpf


def test_the_offsets_are_those_that_bpftool_tells() -> None:
    dump = subprocess.check_output(
        ["bpftool", "btf", "dump", "file", "/sys/kernel/btf/vmlinux"], text=True
    )

    def told(structure: str, field: str) -> int:
        body = re.search(rf"STRUCT '{structure}' size=.*\n((?:\t.*\n)+)", dump)
        assert body
        bits = re.search(rf"\t'{field}' type_id=\d+ bits_offset=(\d+)", body[1])
        assert bits
        return int(bits[1]) // 8

    found = offsets()
    assert found.task_pid == told("task_struct", "pid")
    assert found.program_filename == told("linux_binprm", "filename")


def test_a_field_within_a_nameless_part_is_found() -> None:
    kernel = Kernel()
    # struct page is a union of nameless structures, of which 'mapping' is none of the first.
    assert kernel.offset("page", "mapping") > 0
    kernel.close()


@pytest.mark.parametrize(
    ("structure", "field"), [("task_struct", "no_such_field"), ("no_such_struct", "pid")]
)
def test_what_this_kernel_does_not_have_is_told(structure: str, field: str) -> None:
    kernel = Kernel()
    with pytest.raises(DynahugError, match=f"this kernel's struct {structure} has no {field}"):
        kernel.offset(structure, field)
    kernel.close()
