"""The journal: a real systemd-journald takes what the daemon says, and explains it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dynahugd.outputs.messages import Level, Message, catalog
from tests.harness import LOAD, system

JOURNALD = Path("/lib/systemd/systemd-journald")

# In a mount namespace of its own: folders for the journal's sockets, files and catalog.
_NAMESPACE = """\
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/journal /run/log/journal
[ ! -d /var/log/journal ] || mount -t tmpfs tmpfs /var/log/journal
mount -t tmpfs tmpfs /var/lib/systemd
mkdir -p /var/lib/systemd/catalog
mount --bind "$1" /usr/lib/systemd/catalog
journalctl --update-catalog
/lib/systemd/systemd-journald 2>/dev/null &
journald=$!
trap 'kill $journald' EXIT
while [ ! -S /run/systemd/journal/stdout ]; do sleep 0.05; done
shift
"$@"
journalctl --sync
journalctl --output=json --all SYSLOG_IDENTIFIER=dynahugd
echo
journalctl --catalog --no-pager SYSLOG_IDENTIFIER=dynahugd
"""

# As systemd starts a service: standard error is a stream of the journal.
_SERVICE = """\
import os, subprocess, sys, time, urllib.request
from systemd.journal import stream
err = stream("dynahugd", 6)
status = os.fstat(err.fileno())
environ = os.environ | {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
port, script, *models = sys.argv[1:]
daemon = subprocess.Popen(
    [sys.executable, "-m", "dynahugd", "run", "--linger", "1", "--listen", "127.0.0.1:" + port],
    stderr=err, stdout=subprocess.DEVNULL, env=environ,
)
while True:
    try:
        if urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready").status == 200:
            break
    except OSError:
        assert daemon.poll() is None, daemon.returncode
        time.sleep(0.1)
for model in models:
    subprocess.run(["/usr/bin/python3", "-c", script, os.fsencode(model)], check=True)
time.sleep(3)
daemon.terminate()
sys.exit(daemon.wait())
"""


def _in_namespace(catalog_folder: Path, *command: str) -> tuple[list[dict[str, str]], str]:
    """Entries of the journal, and how it explains them, after a command has run beside it."""
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-euc", _NAMESPACE, "sh", str(catalog_folder), *command],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    entries, explained = done.stdout.split("\n\n", 1)
    return [json.loads(line) for line in entries.splitlines()], explained


@pytest.mark.ebpf
@pytest.mark.skipif(not JOURNALD.exists() and "CI" not in os.environ, reason="no journald")
def test_an_alert_is_an_entry_with_fields_and_an_explanation(
    tmp_path: Path, free_port: int
) -> None:
    folder = tmp_path / "catalog"
    folder.mkdir()
    (folder / "dynahugd.catalog").write_text(catalog())
    (tmp_path / "models").mkdir()
    benign, evil = tmp_path / "models/good.pkl", tmp_path / "models/evil\n\x1b[2J.pkl"
    benign.write_bytes(b"\x80\x04K\x01.")
    evil.write_bytes(system("true"))
    entries, explained = _in_namespace(
        folder, sys.executable, "-c", _SERVICE, str(free_port), LOAD, str(benign), str(evil)
    )
    by_id: dict[str, list[dict[str, str]]] = {}
    for entry in entries:
        by_id.setdefault(entry["MESSAGE_ID"], []).append(entry)
    assert len(by_id[Message.READY.id]) == len(by_id[Message.STOPPING.id]) == 1
    alert = next(
        entry
        for entry in by_id[Message.ANOMALOUS.id]
        if entry["DYNAHUGD_PATH"].startswith(str(tmp_path))
    )
    assert alert["DYNAHUGD_PATH"] == f"{tmp_path}/models/evil\\x0a\\x1b[2J.pkl"
    assert alert["PRIORITY"] == str(Level.CRITICAL.value)
    assert alert["DYNAHUGD_FORMAT"] == "pickle"
    assert alert["DYNAHUGD_UID"] == str(os.getuid())
    assert float(alert["DYNAHUGD_P_VALUE"]) < 0.001
    assert "os.system" in alert["DYNAHUGD_REASON"]
    assert int(alert["OBJECT_PID"]) > 0
    assert len(alert["DYNAHUGD_LOAD_ID"]) == 16
    assert alert["MESSAGE"].startswith("ANOMALOUS")
    assert "os.system" in alert["MESSAGE"]
    assert str(benign) not in json.dumps(entries), "a benign load is not worth an entry"
    # 'journalctl -x' puts the fields into the text of the catalog.
    assert "Subject: A model load is unlike benign loads" in explained
    assert f"Process {alert['OBJECT_PID']} (python3, user {os.getuid()}) loaded" in explained
    assert "docs/runbooks/anomalous-load.md" in explained


def test_every_message_has_an_id_of_its_own_and_an_explanation(tmp_path: Path) -> None:
    assert len({message.id for message in Message}) == len(Message)
    (tmp_path / "dynahugd.catalog").write_text(catalog())
    journalctl = shutil.which("journalctl")
    assert journalctl is not None
    for message in Message:
        assert len(message.id) == 32
        assert int(message.id, 16)
        assert len(message.subject) < 80
    assert catalog().count("\nSubject: ") == len(Message)
