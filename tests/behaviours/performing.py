"""Makes a behaviour's files and runs its load in a fresh process."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .behaviour import STDERR, STDOUT, Behaviour
from .loopback import Listener

__all__ = ["NotPerformed", "Performed", "lacking", "make_files", "perform"]

_LIBRARIES = "torch numpy joblib safetensors h5py sklearn cloudpickle pip".split()
_STDERR_TAIL = 4000
#: A detached child sleeps one second before it acts; machines under test are slow.
_FIRE_WITHIN = 10.0

#: What a payload finds to steal or to change in its scratch home.
_HOME = {
    ".aws/credentials": "[default]\naws_access_key_id = FAKE-ACCESS-KEY\n",
    ".ssh/id_rsa": "FAKE-PRIVATE-KEY\n",
    ".ssh/authorized_keys": "",
    ".bashrc": "# nothing here\n",
}


class NotPerformed(RuntimeError):
    """The behaviour did not take place as its row says."""


@dataclass(frozen=True, slots=True)
class Performed:
    """One load that took place as its behaviour says."""

    name: str
    #: Thread group id of the loading process. Some behaviours load in a child of it.
    pid: int
    #: What was loaded.
    path: Path
    returncode: int
    #: The end of what the loading process wrote to its standard error.
    stderr: str
    #: Seconds since the epoch, around the loading process' life.
    started: float
    ended: float

    @property
    def seconds(self) -> float:
        """Life time of the loading process."""
        return self.ended - self.started


@functools.cache
def _libraries(python: str) -> frozenset[str]:
    """Those of the table's libraries that an interpreter has."""
    source = (
        "import importlib.util, sys\n"
        "print(*(name for name in sys.argv[1:] if importlib.util.find_spec(name)))"
    )
    answer = subprocess.run(
        [python, "-c", source, *_LIBRARIES], capture_output=True, text=True, check=True
    )
    return frozenset(answer.stdout.split())


def lacking(behaviour: Behaviour, python: str = sys.executable) -> tuple[str, ...]:
    """Names of the libraries that `behaviour` needs and `python` does not have."""
    return tuple(name for name in behaviour.needs if name not in _libraries(python))


def make_files(behaviour: Behaviour, folder: Path, python: str = sys.executable) -> Path:
    """Fill an empty (or missing) folder with a scratch home and the model file(s).

    Returns the absolute path to load. Raises `ValueError` if the folder is not empty, and
    `NotPerformed` if the behaviour's ``prepare`` fails.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: give every performance a folder of its own")
    for name, text in _HOME.items():
        file = folder / "home" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    path = behaviour.make(folder)
    if behaviour.prepare:
        script = folder / "prepare.py"
        script.write_text(behaviour.prepare)
        # -B: the load itself shall be the first to compile what lies beside the model.
        done = subprocess.run(
            [python, "-B", str(script), str(path)],
            cwd=folder,
            env=_environment(folder) | {"PYTHONHASHSEED": "0"},
            capture_output=True,
            text=True,
        )
        script.unlink()
        if done.returncode:
            raise NotPerformed(f"{behaviour.name}: making its file failed:\n{done.stderr}")
    return path


def _environment(folder: Path) -> dict[str, str]:
    path = os.environ.get("PATH", os.defpath)
    return {"PATH": path, "LANG": "C.UTF-8", "HOME": str(folder / "home")}


def perform(
    behaviour: Behaviour,
    folder: Path,
    python: str = sys.executable,
    env: Mapping[str, str] | None = None,
    timeout: float = 60.0,
) -> Performed:
    """Make the behaviour's files in `folder` and load them in a fresh process.

    Parameters
    ----------
    behaviour
        A row of the table.
    folder
        Empty or missing; becomes the working directory, with the scratch home in it.
    python
        Interpreter that loads.
    env
        Added to the clean environment of the loading process.
    timeout
        Seconds that the loading process may take.

    Raises
    ------
    NotPerformed
        The process took too long or ended with another status than expected, or a malicious
        behaviour's payload left no trace.
    """
    folder = folder.resolve()
    path = make_files(behaviour, folder, python)
    script = folder / "load.py"
    stay = f"\nimport time\n\ntime.sleep({behaviour.after})\n" if behaviour.after else ""
    script.write_text(behaviour.loader + stay)
    command = [python, str(script)] if behaviour.piped else [python, str(script), str(path)]
    with Listener(folder) as listener:
        environment = _environment(folder) | listener.environment() | dict(env or {})
        with (folder / STDOUT).open("wb") as out, (folder / STDERR).open("wb") as err:
            started = time.time()
            process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                stdin=subprocess.PIPE if behaviour.piped else subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        try:
            process.communicate(path.read_bytes() if behaviour.piped else None, timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise NotPerformed(f"{behaviour.name}: still running after {timeout:g} s") from None
        ended = time.time()
        stderr = (folder / STDERR).read_text(errors="replace")[-_STDERR_TAIL:]
        if process.returncode != behaviour.exits:
            raise NotPerformed(
                f"{behaviour.name}: exit status {process.returncode}, "
                f"expected {behaviour.exits}:\n{stderr}"
            )
        if not _fires(behaviour, folder):
            raise NotPerformed(f"{behaviour.name}: the payload left no trace:\n{stderr}")
    return Performed(
        name=behaviour.name,
        pid=process.pid,
        path=path,
        returncode=process.returncode,
        stderr=stderr,
        started=started,
        ended=ended,
    )


def _fires(behaviour: Behaviour, folder: Path) -> bool:
    if behaviour.fired is None:
        return True
    deadline = time.monotonic() + _FIRE_WITHIN
    while not behaviour.fired(folder):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
