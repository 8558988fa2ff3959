"""What the daemon says: every message with its id, level and what an operator is to do.

``python -m dynahugd.outputs.messages`` prints the catalog that ``journalctl -x`` shows
(https://systemd.io/CATALOG).
"""

from __future__ import annotations

from enum import Enum, IntEnum
from typing import Protocol

__all__ = ["Level", "Message", "Say", "catalog"]


class Level(IntEnum):
    """Priorities of syslog(3), those in use."""

    CRITICAL = 2
    ERROR = 3
    WARNING = 4
    NOTICE = 5
    INFO = 6
    DEBUG = 7


class Message(Enum):
    """A kind of message: id for the journal, level, subject, and what to do.

    The text uses fields of the entry as ``@FIELD@``. An id is never used for another meaning.
    """

    ANOMALOUS = (
        "abb3466a037b4ab1baa258b70e5dd396",
        Level.CRITICAL,
        "A model load is unlike benign loads",
        "Process @OBJECT_PID@ (@DYNAHUGD_COMM@, user @DYNAHUGD_UID@) loaded @DYNAHUGD_PATH@, and "
        "did while loading what benign loads do not do:\n@DYNAHUGD_REASON@\n\n"
        "Treat the host as compromised until you know better: the load was not stopped. Keep the "
        "file from being loaded again, look at the process and its children, and see "
        "docs/runbooks/anomalous-load.md.",
    )
    OVER = (
        "23c6e48e3d3c4ae8ac534e0e181ddb4e",
        Level.CRITICAL,
        "An anomalous load is over",
        "The load @DYNAHUGD_LOAD_ID@ of @DYNAHUGD_PATH@, of which there was an alert, is over, "
        "descendants included. It did more after the alert:\n@DYNAHUGD_REASON@",
    )
    INCONCLUSIVE = (
        "e79141b0cab54fa8aaa13ac886b27ade",
        Level.WARNING,
        "A load could not be judged",
        "Not all that the load of @DYNAHUGD_PATH@ did was seen, so it is not called benign. "
        "Where records are lost, make tables.ring_bytes larger; see "
        "docs/runbooks/verdicts-inconclusive.md.",
    )
    BENIGN = (
        "6581c61ca116480987d8654f1dce4ead",
        Level.DEBUG,
        "A model load is like benign loads",
        "Nothing is to be done.",
    )
    STOPPING = (
        "8ec064ab61f64ffcbf0e9faf2ad872b7",
        Level.NOTICE,
        "dynahugd stops watching",
        "Model loads are not watched until it is started again.",
    )
    STARTING = (
        "57f0990fe7de4fb0bed80be247db0fc4",
        Level.INFO,
        "The probes are loaded",
        "Nothing is to be done.",
    )
    READY = (
        "e3641a6c9f3d4702af36dc71abb8f88f",
        Level.NOTICE,
        "dynahugd watches every model load",
        "Nothing is to be done.",
    )
    LISTENING = (
        "797b0416eeca4f049f5c49ab824e1341",
        Level.INFO,
        "Metrics are served",
        "Let Prometheus scrape the address.",
    )
    LISTENER_OPEN = (
        "42b98188dc824e0293d5f72fdf003efd",
        Level.WARNING,
        "Metrics are served to other hosts without TLS or authentication",
        "Name a file with TLS certificates and users by daemon.web_config, or listen on "
        "127.0.0.1. See docs/operations.md.",
    )
    INTERPRETER_ATTACHED = (
        "6bb8544c843d461496ba1b2d4d7a4651",
        Level.INFO,
        "An interpreter is watched",
        "Nothing is to be done.",
    )
    INTERPRETER_NOT_COVERED = (
        "b6ff50208a7c435eb0d5765b68c94bfd",
        Level.WARNING,
        "The unpickler of an interpreter cannot be seen",
        "Loads of this interpreter are seen by their files and system calls alone. See "
        "docs/runbooks/interpreter-not-covered.md.",
    )
    INTERPRETER_RELEASED = (
        "695ae310387f4b15b7431b9414583adb",
        Level.INFO,
        "An interpreter is no longer watched, for its file is gone",
        "Nothing is to be done.",
    )
    RECORDS_LOST = (
        "d65896beb75a461abc487cc43ee9a40a",
        Level.WARNING,
        "Records from the kernel were lost",
        "Loads that lost records are inconclusive at best. Make the table that is named larger "
        "(tables.* in the configuration) and restart; see docs/runbooks/records-lost.md.",
    )
    LEARNED = (
        "68f9b7fcac7a46b79f84ac823f61cb91",
        Level.NOTICE,
        "A baseline learned from this host's loads is in force",
        "'dynahugd baseline diff FILE' says what it changes.",
    )
    LEARNING_REFUSED = (
        "6cc1165922f4437d970e995eb95c7646",
        Level.WARNING,
        "What was learned from this host's loads was not taken over",
        "The baseline that was in force still is. Learning begins anew.",
    )
    RELOADED = (
        "9e8ea30e17ac4a9194c3cdbc27ae1140",
        Level.NOTICE,
        "The configuration was read again and is in force",
        "Nothing is to be done.",
    )
    RELOAD_REFUSED = (
        "2acaa3c950314362b1abb0a538d3b6d5",
        Level.ERROR,
        "The configuration was read again and cannot be used",
        "What was in force still is. Mend what the message names, and reload once more; see "
        "docs/runbooks/reload-failed.md.",
    )
    ALERT_LOG_FAILED = (
        "1bf25bc0312a44b0af87f888b1333385",
        Level.ERROR,
        "An alert could not be written to the alert log",
        "Make room on its disk, or mend its folder's rights. The alert is in the journal and in "
        "the metrics.",
    )
    ALERTMANAGER_FAILED = (
        "adbec629afb244d595f259874404faec",
        Level.WARNING,
        "An Alertmanager does not take alerts",
        "They are kept, and sent again with growing pauses. Check [alertmanager] in the "
        "configuration; see docs/runbooks/alertmanager-unreachable.md.",
    )
    ALERTMANAGER_BACK = (
        "d79d811039694b3ab2e6a20ad109b44e",
        Level.NOTICE,
        "An Alertmanager takes alerts again",
        "Nothing is to be done: the active alerts were sent.",
    )
    WEB_CONFIG_REFUSED = (
        "5a25714bcad84d2d91236d18623ace3c",
        Level.ERROR,
        "The listener's web configuration has changed and cannot be used",
        "What was in force still is. Mend the file that the message names.",
    )
    SUPPRESSED = (
        "469a444ef6ca4733ba7f2eaddc261e39",
        Level.NOTICE,
        "Messages were not printed, for there were too many of their kind",
        "The alert log has every alert, the metrics count all.",
    )

    def __init__(self, id: str, level: Level, subject: str, help: str) -> None:
        self.id = id
        self.level = level
        self.subject = subject
        self.help = help


class Say(Protocol):
    """Prints a message where it belongs; callable from any thread.

    ``text`` is one line, hostile parts escaped by the caller.
    """

    def __call__(self, message: Message, text: str) -> None: ...


def catalog() -> str:
    """The catalog file of the journal, all messages in it."""
    entries = [
        f"-- {message.id}\nSubject: {message.subject}\nDefined-By: dynahugd\n"
        f"Documentation: man:dynahugd(8)\n\n{message.help}\n"
        for message in Message
    ]
    return "\n".join(entries)


if __name__ == "__main__":
    print(catalog(), end="")
