"""Loads among threads, processes and busy neighbours, by the standard library alone."""

from __future__ import annotations

import asyncio
import concurrent.futures
import http.server
import importlib
import multiprocessing
import os
import pickle
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any, Callable, Dict, Iterator, List, Optional

from benchmarks.baseline.programs import pickles
from benchmarks.baseline.programs.kind import Kind, Load
from benchmarks.baseline.programs.users import beside, worker

__all__ = ["KINDS", "busy", "forked"]

_SCRIPT = "import pickle, sys\npickle.loads(sys.stdin.buffer.read())\n"
_OPEN: List[Any] = []


# ---- threads and processes --------------------------------------------------------------------


def _work(path: Path) -> Any:
    """The function of the user's module that lies beside the model."""
    return importlib.import_module(next(path.parent.glob("*.py")).stem).work


def _threads(path: Path) -> int:
    count = 2 + path.stat().st_size % 7
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        return len(list(pool.map(pickles.load, [path] * 12)))


def _one_thread(path: Path) -> None:
    thread = threading.Thread(target=pickles.load, args=(path,))
    thread.start()
    thread.join()


def _pool(method: str) -> Load:
    def load(path: Path) -> int:
        work = _work(path)
        # Fewer tasks than make a global known: each child's unpickling of one names the function.
        with multiprocessing.get_context(method).Pool(2) as pool:
            done = len(pool.map(work, [str(path)] * 4))
            pool.close()
            pool.join()
        return done

    return load


def _executor(path: Path) -> int:
    with concurrent.futures.ProcessPoolExecutor(2) as pool:
        return len(list(pool.map(_work(path), [str(path)] * 4)))


def forked(load: Load) -> Load:
    """Load in a forked child of a process that has everything imported already."""

    def attempt(path: Path) -> None:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                load(path)
                status = 0
            finally:
                os._exit(status)
        if os.waitpid(child, 0)[1]:
            raise ChildProcessError("the forked child failed")

    return attempt


def _server_of_forks(path: Path) -> int:
    for _ in range(5):
        forked(pickles.load)(path)
    return 5


def _queues(path: Path) -> None:
    """Objects pass through a queue and a pipe before, while and after a file is loaded."""
    context = multiprocessing.get_context("fork")
    tasks, results = context.Queue(), context.Queue()
    ours, theirs = context.Pipe()

    def serve() -> None:
        for task in iter(tasks.get, None):
            results.put({"answer": task["question"] + 1, "thing": task["thing"]})
            theirs.send(task["thing"])

    process = context.Process(target=serve)
    process.start()
    rng = Random(path.name)
    for turn in range(10):
        tasks.put({"question": turn, "thing": pickles.types_of(rng)})
        if turn == 5:
            pickles.load(path)
        assert results.get()["answer"] == turn + 1
        ours.recv()
    tasks.put(None)
    process.join()


def _manager(path: Path) -> None:
    with multiprocessing.get_context("fork").Manager() as manager:
        shared = manager.dict()
        pickles.load(path)
        shared["loaded"] = str(path)


def _stdin(path: Path) -> None:
    subprocess.run([sys.executable, "-c", _SCRIPT], input=path.read_bytes(), check=True)


def _through_socket(path: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sender = threading.Thread(target=theirs.sendall, args=(path.read_bytes(),))
        sender.start()
        with ours.makefile("rb") as stream:
            pickle.load(stream)
        sender.join()


def _event_loop(path: Path) -> int:
    async def serve() -> int:
        loop = asyncio.get_running_loop()
        tasks = [loop.run_in_executor(None, pickles.load, path) for _ in range(4)]
        await asyncio.sleep(0.01)
        return len(await asyncio.gather(*tasks))

    return asyncio.run(serve())


# ---- neighbours -------------------------------------------------------------------------------


def _noise(port: int) -> None:
    """What a program may do beside its loads, and must not do within one."""
    subprocess.run(["true"], check=True)
    with socket.create_connection(("127.0.0.1", port)) as peer:
        peer.sendall(b"GET / HTTP/1.0\r\n\r\n")
        peer.recv(64)
    with tempfile.NamedTemporaryFile("w", suffix=".log") as log:
        log.write("still here\n")
    with open(os.devnull, "w") as null:
        null.write("x")


class _Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        """Answer as a model server does."""
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"0.5")

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


@contextmanager
def _server() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Answer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def meanwhile(act: Callable[[], Any], load: Load, times: int = 6, pause: float = 0.002) -> Load:
    """Load while another thread does something again and again, so many seconds apart."""

    def attempt(path: Path) -> int:
        done = threading.Event()

        def neighbour() -> None:
            while not done.is_set():
                act()
                if pause:
                    done.wait(pause)

        thread = threading.Thread(target=neighbour)
        thread.start()
        try:
            for _ in range(times):
                load(path)
                done.wait(0.004)
        finally:
            done.set()
            thread.join()
        return times

    return attempt


def busy(load: Load, times: int = 8) -> Load:
    """Load while another thread makes noise."""

    def attempt(path: Path) -> Optional[int]:
        with _server() as port:
            return meanwhile(lambda: _noise(port), load, times, 0)(path)

    return attempt


def _before_and_after(path: Path) -> None:
    with _server() as port:
        _noise(port)
        pickles.load(path)
        _noise(port)


def _model_server(path: Path) -> int:
    """Load, serve, and load again when a request asks for it."""
    with _server() as port:
        for _ in range(3):
            pickles.load(path)
            for _ in range(4):
                with urllib.request.urlopen("http://127.0.0.1:%d/" % port) as answer:
                    answer.read()
    return 3


def _forgotten(path: Path) -> None:
    file = open(path, "rb")
    pickle.load(file)
    # Longer than the thread of any other kind: closed at the next turn, or never.
    _OPEN[:] = [file]
    with _server() as port:
        _noise(port)


def _row(name: str, load: Load, fresh: int = 5, warm: int = 6) -> Kind:
    return Kind(name, worker, beside(load), fresh, warm, 1)


_MANY: Dict[str, Callable[[Path], Any]] = {
    "threads": _threads,
    "process_pool_fork": _pool("fork"),
    "process_executor": _executor,
    "forks_of_a_server": _server_of_forks,
    "event_loop": _event_loop,
    "busy_neighbour": busy(pickles.load),
    "model_server": _model_server,
}
_SINGLE: Dict[str, Callable[[Path], Any]] = {
    "one_thread": _one_thread,
    "forked_child": forked(pickles.load),
    "queues": _queues,
    "manager": _manager,
    "from_stdin": _stdin,
    "through_socket": _through_socket,
    "noise_before_and_after": _before_and_after,
    "forgotten_handle": _forgotten,
}

KINDS = (
    *(_row(name, load) for name, load in _MANY.items()),
    *(_row(name, load, 10, 16) for name, load in _SINGLE.items()),
    _row("process_pool_spawn", _pool("spawn"), 3, 4),
    _row("process_pool_forkserver", _pool("forkserver"), 3, 4),
)
