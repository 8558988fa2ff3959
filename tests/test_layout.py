"""The numpy dtypes and enumerations say what ``bpf/dynahug.h`` says, by the C compiler's word."""

from __future__ import annotations

import subprocess
from enum import IntEnum, IntFlag
from pathlib import Path

import numpy as np
import pytest

from dynahugd.probes import layout
from dynahugd.probes.syscalls import SYSCALLS, Action

HEADER = Path(__file__).parents[1] / "bpf" / "dynahug.h"

STRUCTS = {
    "dh_record": layout.RECORD,
    "dh_load": layout.LOAD,
    "dh_counters": layout.COUNTERS,
    "dh_config": layout.CONFIG,
    "dh_task": layout.TASK,
    "dh_file_key": layout.FILE_KEY,
    "dh_global_key": layout.GLOBAL_KEY,
}

ENUMS: dict[str, type[IntEnum] | type[IntFlag]] = {
    "DH_{}": layout.Kind,
    "DH_{} ": layout.Flag,
    " DH_{}": layout.Reason,
    "DH_{}  ": layout.State,
    "  DH_{}": layout.Bank,
    "DH_LOST_{}": layout.Loss,
    "DH_TASK_{}": layout.TaskFlag,
    " DH_{} ": Action,
    "  DH_{} ": layout.Exact,
}

CONSTANTS = {
    "DH_TEXT": layout.TEXT,
    "DH_HALF": layout.HALF,
    "DH_SUFFIX": layout.SUFFIX,
    "DH_SEEN": layout.SEEN,
    "DH_BANKS": layout.BANKS,
    "DH_SYSCALLS": SYSCALLS,
    "DH_LOSSES": len(layout.Loss),
    "DH_ACTIONS": len(Action),
    "DH_NEVER >> 1": layout.NEVER >> 1,
}


def compiled(folder: Path, expressions: list[str]) -> list[int]:
    """The values of C expressions, the header included."""
    source = folder / "layout.c"
    prints = "".join(f'printf("%lld\\n", (long long)({text}));' for text in expressions)
    source.write_text(
        "#include <stddef.h>\n#include <stdio.h>\n#include <linux/types.h>\n"
        f'#include "{HEADER}"\nint main(void) {{ {prints} return 0; }}\n'
    )
    program = folder / "layout"
    subprocess.run(["gcc", "-Wall", "-Werror", "-o", program, source], check=True)
    output = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    return [int(line) for line in output.split()]


@pytest.mark.parametrize("name", STRUCTS)
def test_struct_has_the_compilers_sizes_and_offsets(name: str, tmp_path: Path) -> None:
    dtype = STRUCTS[name]
    assert dtype.names is not None
    expressions = [f"sizeof(struct {name})"]
    for field in dtype.names:
        expressions += [
            f"offsetof(struct {name}, {field})",
            f"sizeof(((struct {name} *)0)->{field})",
        ]
    expected = [dtype.itemsize]
    assert dtype.fields is not None
    for field in dtype.names:
        kind, offset = dtype.fields[field][:2]
        expected += [offset, np.dtype(kind).itemsize]
    assert compiled(tmp_path, expressions) == expected


@pytest.mark.parametrize("pattern", ENUMS)
def test_enumeration_has_the_headers_values(pattern: str, tmp_path: Path) -> None:
    members = list(ENUMS[pattern])
    names = [pattern.strip().format(member.name) for member in members]
    assert compiled(tmp_path, names) == [member.value for member in members]


def test_constants_have_the_headers_values(tmp_path: Path) -> None:
    assert compiled(tmp_path, list(CONSTANTS)) == list(CONSTANTS.values())
