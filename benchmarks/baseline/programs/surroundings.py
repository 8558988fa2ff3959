"""What goes on around a load: downloads, servers, logs, profilers, shells; standard library alone.

It is done before or after the load, or by another thread or process, as programs do it. Servers
listen on loopback, homes and credentials are made up: nothing leaves the machine.
"""

from __future__ import annotations

import asyncio
import cProfile
import ctypes
import gc
import http.server
import importlib
import io
import json
import logging
import logging.handlers
import mmap
import multiprocessing
import netrc
import os
import pickle
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import trace
import urllib.request
import zipfile
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any, Dict, Iterator, List, Optional

from benchmarks.baseline.programs import pickles
from benchmarks.baseline.programs.crowds import meanwhile
from benchmarks.baseline.programs.kind import Kind, Load, Make, word
from benchmarks.baseline.programs.users import beside, module, worker

__all__ = ["KINDS", "absent", "fetch", "home", "mirror", "settings"]

_SCRIPT = "import pickle, sys\nwith open(sys.argv[1], 'rb') as file:\n    pickle.load(file)\n"
#: The number of get_mempolicy(2), which the C library does not wrap.
_MEMPOLICY = {"x86_64": 239, "aarch64": 236}


# ---- for other families too -------------------------------------------------------------------


@contextmanager
def settings(**variables: Optional[str]) -> Iterator[None]:
    """Environment variables for a while; None unsets one."""
    before = {name: os.environ.get(name) for name in variables}

    def put(values: Dict[str, Optional[str]]) -> None:
        for name, value in values.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value

    put(variables)
    try:
        yield
    finally:
        put(before)


@contextmanager
def mirror(files: Dict[str, bytes]) -> Iterator[str]:
    """A web server with these files, as hubs and object stores answer; its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def _answer(self) -> bytes:
            data = files.get(self.path.split("?")[0].lstrip("/"))
            self.send_response(404 if data is None else 200)
            for name, value in (
                ("Content-Length", str(len(data or b""))),
                ("ETag", '"%032x"' % len(data or b"")),
                ("X-Repo-Commit", "%040x" % len(files)),
            ):
                self.send_header(name, value)
            self.end_headers()
            return data or b""

        def do_HEAD(self) -> None:
            """Say what there is."""
            self._answer()

        def do_GET(self) -> None:
            """Send it."""
            self.wfile.write(self._answer())

        def log_message(self, *_: Any) -> None:
            """Print nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield "http://127.0.0.1:%d/" % server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def absent(suffix: str) -> Make:
    """A maker of nothing: the file comes with the load."""

    def make(folder: Path, rng: Random) -> Path:
        return folder / (word(rng) + suffix)

    return make


def home(path: Path) -> Path:
    """A home beside the model, with tokens of nobody: the real one is not touched."""
    place = path.parent / "home"
    rng = Random(path.name)
    for name, text in (
        (".netrc", "machine 127.0.0.1 login %s password %s\n" % (word(rng), word(rng))),
        (".cache/huggingface/token", "hf_" + word(rng, 12)),
        (
            ".aws/credentials",
            "[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n"
            % (word(rng), word(rng, 9)),
        ),
    ):
        file = place / name
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
            file.chmod(0o600)
    return place


def fetch(url: str, path: Path, headers: Optional[Dict[str, str]] = None) -> None:
    """Download under another name first, as everybody does."""
    part = path.with_name(path.name + ".incomplete")
    request = urllib.request.Request(url, headers=headers or {})
    with urllib.request.urlopen(request) as answer, open(part, "wb") as file:
        shutil.copyfileobj(answer, file)
    os.replace(part, path)


def _content(path: Path) -> bytes:
    return pickle.dumps(pickles.types_of(Random(path.name)), 4)


# ---- from elsewhere ---------------------------------------------------------------------------


def _download(path: Path) -> None:
    if not path.exists():
        with mirror({path.name: _content(path)}) as address:
            fetch(address + path.name, path)
    pickles.load(path)


def _download_signed(path: Path) -> None:
    """With a token of the user, or the password of the host, as clients of hubs do."""
    if not path.exists():
        place = home(path)
        found = netrc.netrc(str(place / ".netrc")).authenticators("127.0.0.1")
        token = (place / ".cache" / "huggingface" / "token").read_text()
        headers = {"Authorization": "Bearer " + token, "X-User": (found or ("",))[0] or ""}
        with mirror({path.name: _content(path)}) as address:
            fetch(address + path.name, path, headers)
    pickles.load(path)


def _download_archive(path: Path) -> None:
    """A folder of data comes as an archive, and stays in a cache."""
    cache = path.parent / "home" / ".cache" / path.stem
    if not cache.exists():
        rng, data = Random(path.name), io.BytesIO()
        with zipfile.ZipFile(data, "w") as archive:
            archive.writestr(path.name, _content(path))
            for _ in range(12):
                archive.writestr("corpora/%s.txt" % word(rng), word(rng) * 30)
        with mirror({"data.zip": data.getvalue()}) as address:
            fetch(address + "data.zip", path.with_suffix(".zip"))
        with zipfile.ZipFile(path.with_suffix(".zip")) as archive:
            archive.extractall(cache)
        path.with_suffix(".zip").unlink()
    pickles.load(cache / path.name)


# ---- in a server, in a notebook ---------------------------------------------------------------


def _asyncio_server(path: Path) -> int:
    """A server of connections loads for each request, on its loop and beside it."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.readline() == b"here\n":
            pickles.load(path)
        else:
            await asyncio.get_running_loop().run_in_executor(None, pickles.load, path)
        writer.write(b"0.5\n")
        await writer.drain()
        writer.close()

    async def serve() -> int:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            for line in (b"here\n", b"beside\n", b"here\n"):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(line)
                assert await reader.readline() == b"0.5\n"
                writer.close()
        return 3

    return asyncio.run(serve())


def _logs(path: Path) -> Optional[int]:
    """Log lines and counters go to collectors, by datagrams."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as collector, socket.socket(
        socket.AF_UNIX, socket.SOCK_DGRAM
    ) as journal, tempfile.TemporaryDirectory() as folder:
        collector.bind(("127.0.0.1", 0))
        journal.bind(folder + "/log")
        address = collector.getsockname()
        logger = logging.Logger(path.stem)
        logger.addHandler(logging.handlers.SysLogHandler(address))
        logger.addHandler(logging.handlers.SysLogHandler(folder + "/log"))
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

        def act() -> None:
            logger.warning("%s is slow", path.name)
            journal.recv(4096)
            sender.sendto(b"loads:1|c", address)

        with sender:
            done = meanwhile(act, pickles.load)(path)
            for handler in logger.handlers:
                handler.close()
        return done


def _notebook(path: Path) -> Optional[int]:
    """Saves itself and shows its scheduler that it lives, while a cell loads."""
    notebook = path.parent / "notebooks" / (path.stem + ".ipynb")
    notebook.parent.mkdir(exist_ok=True)
    with mirror({"alive": b"1"}) as address:

        def act() -> None:
            part = notebook.with_suffix(".tmp")
            part.write_text(json.dumps({"cells": [path.name], "nbformat": 4}))
            os.replace(part, notebook)
            with urllib.request.urlopen(address + "alive") as answer:
                answer.read()

        return meanwhile(act, pickles.load, 4)(path)


def _beside_spawned(method: str) -> Load:
    def load(path: Path) -> int:
        work = next(path.parent.glob("*.py")).stem
        process: Any = multiprocessing.get_context(method).Process(  # type: ignore[attr-defined]
            target=importlib.import_module(work).work, args=(str(path),)
        )
        process.start()
        for _ in range(3):
            pickles.load(path)
        process.join()
        return 4

    return beside(load)


# ---- under observation ------------------------------------------------------------------------


def _profiled(path: Path) -> None:
    profile = cProfile.Profile()
    profile.runcall(pickles.load, path)
    profile.dump_stats(str(path.with_suffix(".prof")))


def _traced(path: Path) -> None:
    tracer = trace.Trace(count=True, trace=False)
    tracer.runfunc(pickles.load, path)
    assert tracer.results().counts


def _every_call(path: Path) -> None:
    calls: List[str] = []
    sys.setprofile(lambda frame, event, _: calls.append(frame.f_code.co_name))
    try:
        pickles.load(path)
    finally:
        sys.setprofile(None)
    assert calls


# ---- started in some way ----------------------------------------------------------------------


def _child(path: Path, *command: str, **variables: str) -> None:
    subprocess.run(
        [*command, sys.executable, "-c", _SCRIPT, str(path)],
        env={**os.environ, **variables},
        check=True,
        stdout=subprocess.DEVNULL,
    )


def _from_shell(path: Path) -> None:
    """A shell prepares the environment, then becomes the interpreter."""
    script = path.parent / "activate.sh"
    script.write_text('export PATH="$PWD/bin:$PATH"\nwhich ninja || true\nexec "$@"\n')
    _child(path, "sh", str(script), VIRTUAL_ENV=str(path.parent))


def _customised(path: Path) -> None:
    """The user's site has modules and lines of its own to execute at every start."""
    packages = path.parent / "packages"
    packages.mkdir(exist_ok=True)
    text = "import site\nsite.addsitedir(%r)\n" % str(packages)
    (packages / "sitecustomize.py").write_text(text)
    (packages / "easy.pth").write_text("import sys; sys.customised = True\n%s\n" % path.parent)
    _child(path, PYTHONPATH=str(packages), PYTHONSTARTUP=str(packages / "start.py"))


def _preloaded(path: Path) -> None:
    _child(path, LD_PRELOAD="libm.so.6", PYTHONFAULTHANDLER="1")


def _homeless(path: Path) -> None:
    """Where no variable names the home, the accounts do."""
    with settings(HOME=None, XDG_CACHE_HOME=None):
        beside(pickles.load)(path)


# ---- memory -----------------------------------------------------------------------------------


def _pinned(path: Path) -> None:
    """Huge and locked pages for the weights, on a node of its own."""
    libc = ctypes.CDLL(None, use_errno=True)
    number = _MEMPOLICY.get(platform.machine())
    if number:
        libc.syscall(number, 0, 0, 0, 0, 0)
    with mmap.mmap(-1, 4 << 20) as arena:
        arena.madvise(mmap.MADV_HUGEPAGE)
        start = ctypes.c_char.from_buffer(arena)
        libc.mlock(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(1 << 14))
        with open(path, "rb") as file:
            size = file.readinto(memoryview(arena)[: path.stat().st_size])
            pickle.loads(memoryview(arena)[:size])
        libc.munlock(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(1 << 14))
        del start
        arena.madvise(mmap.MADV_DONTNEED)


def _mapped_ahead(path: Path) -> None:
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as pages:
        pages.madvise(mmap.MADV_SEQUENTIAL)
        pages.madvise(mmap.MADV_WILLNEED)
        pickle.loads(pages)


def _garbage(path: Path) -> None:
    """Temporary objects that only the collector finds: it comes while the load allocates."""
    gc.collect()
    for _ in range(3):
        cycle: List[Any] = [tempfile.NamedTemporaryFile(suffix=".part"), socket.socket()]
        cycle.append(cycle)
    del cycle
    pickles.load(path)


def _lists(rng: Random) -> Any:
    return [[index, rng.random()] for index in range(rng.randint(2000, 9000))]


def _row(name: str, make: Make, load: Load, fresh: int = 5, warm: int = 12) -> Kind:
    return Kind(name, make, load, fresh, warm, 2)


_PLAIN = pickles.pickled(pickles.types_of)

KINDS = (
    _row("downloaded", absent(".pkl"), _download),
    _row("downloaded_signed", absent(".pkl"), _download_signed),
    _row("downloaded_archive", absent(".pkl"), _download_archive),
    _row("asyncio_server", _PLAIN, _asyncio_server, 5, 6),
    _row("logs_beside", _PLAIN, _logs, 4, 4),
    _row("notebook", _PLAIN, _notebook, 4, 4),
    _row("spawned_beside", worker, _beside_spawned("spawn"), 3, 3),
    _row("forkserver_beside", worker, _beside_spawned("forkserver"), 3, 3),
    _row("profiled", _PLAIN, _profiled),
    _row("traced", _PLAIN, _traced),
    _row("every_call_watched", _PLAIN, _every_call),
    _row("started_by_shell", _PLAIN, _from_shell, 4, 6),
    _row("customised_site", _PLAIN, _customised, 4, 6),
    _row("preloaded_library", _PLAIN, _preloaded, 4, 6),
    Kind(
        "import_without_home",
        module('import os\nCACHE = os.path.expanduser(os.path.join("~", ".cache"))\n'),
        _homeless,
        6,
        12,
        1,
    ),
    _row("pinned_memory", _PLAIN, _pinned),
    _row("mapped_ahead", _PLAIN, _mapped_ahead),
    _row("garbage_collected", pickles.pickled(_lists), _garbage, 6, 14),
)
