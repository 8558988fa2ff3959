"""Probe sites in CPython builds: the system's, those of pyenv, and mock builds for other shapes.

What `find_sites` says is compared with what it does not look at: symbol tables (read by
pyelftools), disassembly (objdump) and running interpreters.
"""

import os
import random
import re
import shutil
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from dynahugd.errors import DynahugError
from dynahugd.probes.cpython import LAYOUTS, Runtime, SitesNotFound, find_sites
from dynahugd.probes.elf import MAX_LOADED, Elf

SYSTEM = Path("/usr/bin/python3").resolve()


def _pyenv_versions() -> Iterator[Path]:
    """The directories of all pyenv interpreters of supported versions."""
    roots = [Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()]
    if pyenv := shutil.which("pyenv"):
        roots.append(Path(pyenv).resolve().parent.parent)
    for versions in dict.fromkeys(root / "versions" for root in roots):
        for home in sorted(versions.glob("3.*")):
            if (named := re.match(r"3\.(\d+)\.\d+$", home.name)) and (3, int(named[1])) in LAYOUTS:
                yield home


PYENV = list(_pyenv_versions())
each_pyenv = pytest.mark.parametrize("home", PYENV, ids=lambda home: home.name)


def _version(home: Path) -> tuple[int, int]:
    major, minor, _ = home.name.split(".")
    return int(major), int(minor)


def _shared_pickle(home: Path) -> Path:
    found = list(home.glob("lib/python3.*/lib-dynload/_pickle.*.so"))
    if not found:
        pytest.skip("this build has _pickle built in")
    return found[0]


def _symbols(path: Path, table: str = ".symtab") -> dict[str, tuple[int, int]]:
    """Defined functions and objects as name -> (address, size)."""
    with path.open("rb") as file:
        section = ELFFile(file).get_section_by_name(table)
        if not isinstance(section, SymbolTableSection):
            pytest.skip(f"stripped of {table}")
        return {
            symbol.name: (symbol["st_value"], symbol["st_size"])
            for symbol in section.iter_symbols()
            if symbol["st_shndx"] != "SHN_UNDEF"
        }


def _address(path: Path, offset: int) -> int:
    with path.open("rb") as file:
        return Elf(file.fileno()).vaddr_of(offset)


def _instruction(path: Path, address: int) -> str:
    """What objdump makes of the bytes at an address."""
    if shutil.which("objdump") is None:
        pytest.skip("needs objdump")
    bounds = (f"--start-address={address}", f"--stop-address={address + 8}")
    text = subprocess.check_output(["objdump", "-d", *bounds, path], text=True)
    return next(line for line in text.splitlines() if line.strip().startswith(f"{address:x}:"))


def _check_text_offsets(python: Path, runtime: Runtime) -> None:
    """Let the interpreter look into its own str objects."""
    code = (
        "import ctypes, sys; narrow, wide = map(int, sys.argv[1:])\n"
        "assert ctypes.string_at(id('collections') + narrow, 12) == b'collections\\0'\n"
        "assert ctypes.string_at(id('\\xe9t\\xe9') + wide, 4) == b'\\xe9t\\xe9\\0'\n"
    )
    offsets = (str(runtime.text_offset), str(runtime.wide_text_offset))
    subprocess.run([python, "-I", "-c", code, *offsets], check=True)


def test_the_system_interpreter_has_sites() -> None:
    runtime = find_sites(SYSTEM)
    assert f"python{runtime.version[0]}.{runtime.version[1]}" == SYSTEM.name
    _check_text_offsets(SYSTEM, runtime)
    assert runtime.initialize is not None
    initialize = _symbols(SYSTEM, ".dynsym")["Py_InitializeFromConfig"][0]
    assert _address(SYSTEM, runtime.initialize) == initialize


def test_the_site_of_globals_in_the_system_interpreter_is_a_call_of_pysys_audit() -> None:
    site = find_sites(SYSTEM).find_class
    if site is None:
        pytest.skip("this build has a shared _pickle")
    line = _instruction(SYSTEM, _address(SYSTEM, site))
    assert "call" in line
    assert "PySys_Audit" in line


def test_load_of_a_stripped_interpreter_is_what_its_three_users_call() -> None:
    site = find_sites(SYSTEM).load
    if site is None:
        pytest.skip("this build has a shared _pickle")
    with SYSTEM.open("rb") as file:
        text = ELFFile(file).get_section_by_name(".text")
        assert text is not None
        code, start = text.data(), text["sh_addr"]
    load = _address(SYSTEM, site)
    calls = 0
    for call in re.finditer(rb"\xe8(?=(....))", code, re.DOTALL):
        (distance,) = struct.unpack("<i", call[1])
        calls += start + call.start() + 5 + distance == load
    # pickle.load, pickle.loads and Unpickler.load; a cold part would have no caller.
    assert 1 <= calls <= 3


@each_pyenv
def test_sites_of_a_shared_pickle_agree_with_its_symbol_table(home: Path) -> None:
    path = _shared_pickle(home)
    runtime = find_sites(path)
    assert runtime.version == _version(home)
    assert runtime.initialize is None
    symbols = _symbols(path)
    assert runtime.load is not None
    assert _address(path, runtime.load) == symbols["load"][0]
    assert runtime.find_class is not None
    start, size = symbols["_pickle_Unpickler_find_class"]
    site = _address(path, runtime.find_class)
    assert start < site < start + size
    line = _instruction(path, site)
    assert "call" in line
    assert "<PySys_Audit@plt>" in line


@each_pyenv
def test_text_offsets_are_those_of_the_running_interpreter(home: Path) -> None:
    _check_text_offsets(home / "bin" / "python3", find_sites(_shared_pickle(home)))


@each_pyenv
def test_a_libpython_shows_where_it_is_initialised(home: Path) -> None:
    libraries = list(home.glob("lib/libpython3.*.so.1.0"))
    if not libraries:
        pytest.skip("this build has no libpython")
    runtime = find_sites(libraries[0])
    assert runtime.version == _version(home)
    assert (runtime.load, runtime.find_class, runtime.libpython) == (None, None, None)
    assert runtime.initialize is not None
    initialize = _symbols(libraries[0], ".dynsym")["Py_InitializeFromConfig"][0]
    assert _address(libraries[0], runtime.initialize) == initialize


@each_pyenv
def test_an_executable_without_an_interpreter_names_its_libpython(home: Path) -> None:
    if not list(home.glob("lib/libpython3.*.so.1.0")):
        pytest.skip("this build has no libpython")
    runtime = find_sites(home / "bin" / "python3")
    assert (runtime.load, runtime.find_class, runtime.initialize) == (None, None, None)
    assert runtime.libpython == f"libpython3.{_version(home)[1]}.so.1.0"


@each_pyenv
def test_stripping_changes_no_site(home: Path, tmp_path: Path) -> None:
    if (strip := shutil.which("strip")) is None:
        pytest.skip("needs strip")
    path = _shared_pickle(home)
    copy = tmp_path / path.name
    subprocess.run([strip, "-o", copy, path], check=True)
    assert find_sites(copy) == find_sites(path)


def test_search_is_fast_enough_to_attach_when_an_interpreter_starts() -> None:
    def best(path: Path) -> float:
        times = []
        for _ in range(3):
            start = time.perf_counter()
            find_sites(path)
            times.append(time.perf_counter() - start)
        return min(times)

    # Measured: 25 ms for Debian's 3.11, 0.5 ms for a shared _pickle. The bound allows a busy host.
    assert best(SYSTEM) < 0.25
    assert all(best(_shared_pickle(home)) < 0.1 for home in PYENV)


# Other shapes of builds: a mock with the texts, calls and names that matter.
MOCK = r"""
#ifdef SPLIT /* gcc moves what leads to a cold call into a part of its own, as profiles do */
__attribute__((cold))
#endif
void *PyErr_Format(void *type, const char *format, ...);
#ifdef INTERPRETER
const unsigned long Py_Version = 0x030c01f0;
__attribute__((noinline, noipa)) int PySys_Audit(const char *event, ...) { return event != 0; }
__attribute__((noinline, noipa)) void *PyErr_Format(void *type, const char *format, ...)
{ return 0; }
int Py_Main(void) { return 0; }
int Py_InitializeFromConfig(void) { return 1; }
#else
int PySys_Audit(const char *event, ...);
void *PyModuleDef_Init(void *);
void *PyInit__pickle(void) { return PyModuleDef_Init(0); }
#endif
#ifdef EXTRA
void EXTRA(void *);
void forget(void *object) { EXTRA(object); }
#endif
__attribute__((noinline, noipa)) static char *load(char *sum, const char *pickle)
{
    for (;; sum += *pickle++) {
        if (*pickle == '.')
            return sum;
        if (*pickle < 0)
            return PyErr_Format(sum, "invalid load key, '%c'.", *pickle);
    }
}
__attribute__((noinline, noipa)) static int find_class(void *module, void *name)
{
    return PySys_Audit("pickle.find_class", "OO", module, name) < 0 ? -1 : module != name;
}
int entry(void *a, const char *b) { return (load(a, b) != 0) + find_class(a, a); }
"""
SHARED = ["-shared", "-fPIC"]
MAIN = ["-DINTERPRETER", "-rdynamic", "-Dentry=main"]
SHAPES = {
    "shared": SHARED,
    "shared without plt": [*SHARED, "-fno-plt"],
    "shared with branch protection": [*SHARED, "-fcf-protection=full", "-Wl,-z,ibtplt"],
    "shared with an old hash table": [*SHARED, "-Wl,--hash-style=sysv"],
    "executable at a fixed address": [*MAIN, "-no-pie", "-fno-pie"],
    "position-independent executable": [*MAIN, "-pie", "-fPIE"],
    "executable with relaxed calls": [*MAIN, "-pie", "-fPIE", "-fno-plt"],
    "libpython": [*SHARED, "-DINTERPRETER"],
}
MODULE = "_pickle.cpython-312-x86_64-linux-gnu.so"


def _build(directory: Path, options: list[str], name: str = MODULE) -> Path:
    if (compiler := shutil.which("gcc")) is None:
        pytest.skip("needs gcc")
    path = directory / name
    command = [compiler, "-w", "-O2", "-x", "c", "-", *options, "-o", str(path)]
    subprocess.run(command, input=MOCK.encode(), check=True)
    return path


@pytest.mark.parametrize("split", [False, True], ids=["whole", "split"])
@pytest.mark.parametrize("options", SHAPES.values(), ids=SHAPES.keys())
def test_sites_are_found_in_builds_of_any_shape(
    options: list[str], split: bool, tmp_path: Path
) -> None:
    path = _build(tmp_path, [*options, "-DSPLIT"] if split else options)
    runtime, symbols = find_sites(path), _symbols(path)
    assert ("load.cold" in symbols) == split
    assert runtime.version == (3, 12)
    assert runtime.load is not None
    assert _address(path, runtime.load) == symbols["load"][0]
    assert runtime.find_class is not None
    start, size = symbols["find_class"]
    site = _address(path, runtime.find_class)
    assert start < site < start + size
    assert "call" in _instruction(path, site)
    assert (runtime.initialize is not None) == ("-DINTERPRETER" in options)


REFUSED = {
    "free-threaded": (["-DEXTRA=_Py_DecRefShared"], MODULE),
    "Py_TRACE_REFS": (["-DEXTRA=PyModule_Create2TraceRefs"], MODULE),
    "free-threaded CPython": ([], "_pickle.cpython-313t-x86_64-linux-gnu.so"),
    "neither the file nor its name": ([], "_pickle.so"),
    "CPython 3.14 is not supported": ([], "_pickle.cpython-314-x86_64-linux-gnu.so"),
    "not built as CPython 3.11": ([], "_pickle.cpython-311-x86_64-linux-gnu.so"),
    "3.12 and 3.13 at once": (["-DINTERPRETER", "-Wl,-soname,libpython3.13.so"], "libpython.so"),
    "'pickle.find_class', not one": (["-DPySys_Audit=PySys_Adieu"], MODULE),
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_a_build_that_is_not_understood_is_refused_by_name(sentence: str, tmp_path: Path) -> None:
    options, name = REFUSED[sentence]
    with pytest.raises(SitesNotFound, match=re.escape(sentence)):
        find_sites(_build(tmp_path, [*SHARED, *options], name))


# Hostile files: the outcome is sites or one exception, soon.
@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `_pickle` to mutilate: pyenv's newest, else the mock."""
    if PYENV and (found := list(PYENV[-1].glob("lib/python3.*/lib-dynload/_pickle.*.so"))):
        return found[0]
    return _build(tmp_path_factory.mktemp("victim"), SHARED)


def _outcome(path: Path, name: str | None = None) -> Runtime | str:
    start = time.perf_counter()
    try:
        return find_sites(path, name)
    except SitesNotFound as error:
        sentence = str(error)
        assert "\n" not in sentence
        return sentence
    finally:
        assert time.perf_counter() - start < 2


def test_a_truncated_file_is_refused(victim: Path, tmp_path: Path) -> None:
    content, path = victim.read_bytes(), tmp_path / "truncated"
    with victim.open("rb") as file:
        loaded = max(s.offset + len(s.data) for s in Elf(file.fileno()).segments)
    for length in [*range(64), *range(64, loaded, 997), loaded - 1]:
        path.write_bytes(content[:length])
        assert isinstance(_outcome(path, victim.name), str), length
    # The rest is debug information and section headers, which nobody looks at.
    path.write_bytes(content[:loaded])
    assert _outcome(path, victim.name) == find_sites(victim)


def test_section_headers_may_lie_without_effect(victim: Path, tmp_path: Path) -> None:
    content, path = bytearray(victim.read_bytes()), tmp_path / "lying"
    struct.pack_into("<Q", content, 40, 2**63)  # e_shoff
    struct.pack_into("<HHH", content, 58, 64, 0xFFFF, 0xFFFF)  # e_shentsize, e_shnum, e_shstrndx
    path.write_bytes(content)
    assert _outcome(path, victim.name) == find_sites(victim)


def test_flipped_bytes_end_in_sites_or_in_one_exception(victim: Path, tmp_path: Path) -> None:
    content, path = victim.read_bytes(), tmp_path / "flipped"
    with victim.open("rb") as file:
        tables = [(s["p_offset"], s["p_filesz"]) for s in ELFFile(file).iter_segments()]
    places = [(0, 0x300)] * 4 + [(at, min(size, 0x800)) for at, size in tables]
    chance = random.Random(20260419)
    outcomes = set()
    for _ in range(800):
        flipped = bytearray(content)
        for _ in range(chance.choice((1, 2, 8))):
            start, size = chance.choice(places)
            at = start + chance.randrange(size or 1)
            if chance.random() < 0.5 and at + 8 <= len(flipped):
                value = chance.choice((0, 2**32 - 1, 2**63 - 1, 2**64 - 1, 2**47 - 1, len(content)))
                flipped[at & ~7 : (at & ~7) + 8] = value.to_bytes(8, "little")
            else:
                flipped[at % len(flipped)] = chance.randrange(256)
        path.write_bytes(flipped)
        outcomes.add(type(_outcome(path, victim.name)))
    assert outcomes == {Runtime, str}


def _header(victim: Path, at: int, value: bytes) -> bytes:
    content = bytearray(victim.read_bytes())
    content[at : at + len(value)] = value
    return bytes(content)


@pytest.mark.parametrize(
    ("sentence", "at", "value"),
    [
        ("not an ELF file", 0, b"\x7fELG"),
        ("not a 64-bit", 4, b"\x01"),
        ("little-endian", 5, b"\x02"),
        ("neither an executable nor", 16, b"\x01\0"),
        ("not supported on arm64 yet", 18, b"\xb7\0"),
        ("machine 243 is not supported", 18, b"\xf3\0"),
        ("program headers", 56, b"\xff\xff"),
        ("program headers", 32, b"\xff" * 8),
    ],
)
def test_other_files_are_refused_with_a_reason(
    sentence: str, at: int, value: bytes, victim: Path, tmp_path: Path
) -> None:
    path = tmp_path / "other"
    path.write_bytes(_header(victim, at, value))
    outcome = _outcome(path, victim.name)
    assert isinstance(outcome, str)
    assert sentence in outcome


def test_a_file_that_loads_too_much_is_refused_unread(victim: Path, tmp_path: Path) -> None:
    content, path = bytearray(victim.read_bytes()), tmp_path / "large"
    (at,) = struct.unpack_from("<Q", content, 32)
    struct.pack_into("<Q", content, at + 32, MAX_LOADED + 1)  # p_filesz of the first segment
    path.write_bytes(content)
    os.truncate(path, MAX_LOADED * 2)
    assert "256 MiB" in str(_outcome(path, victim.name))


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for name, content in {"empty": b"", "text": b"#!/bin/sh\nexec python3\n"}.items():
        (tmp_path / name).write_bytes(content)
        assert "not an ELF file" in str(_outcome(tmp_path / name))
    os.mkfifo(tmp_path / "fifo")
    assert "not a regular file" in str(_outcome(tmp_path / "fifo"))
    assert "not a regular file" in str(_outcome(tmp_path))
    assert "No such file" in str(_outcome(tmp_path / "missing"))
    assert "no CPython interpreter" in str(_outcome(Path("/bin/ls")))


def test_a_hostile_name_is_escaped_in_the_sentence(tmp_path: Path) -> None:
    path = tmp_path / "_pickle\n\x1b[31m"
    path.write_bytes(b"")
    with pytest.raises(DynahugError, match=r"_pickle\\n\\x1b\[31m"):
        find_sites(path)


def test_a_descriptor_serves_as_well_and_stays_where_it_was() -> None:
    with SYSTEM.open("rb") as file:
        file.seek(5)
        assert find_sites(file.fileno()) == find_sites(SYSTEM)
        assert file.tell() == 5
