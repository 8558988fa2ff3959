"""Classes of paths, programs and socket addresses. All input is hostile: it is only compared."""

from __future__ import annotations

import ipaddress
import os
import re
import struct
from functools import lru_cache

__all__ = ["place_read", "place_written", "port", "program", "scope"]

_CREDENTIALS = re.compile(
    r"/\.(aws|ssh|gnupg|azure|kube|docker|mozilla|password-store)(/|$)"
    r"|/\.config/(gcloud|gh|google-chrome|chromium|hub|op|rclone)(/|$)"
    r"|/\.(netrc|_netrc|git-credentials|pypirc|pgpass|my\.cnf|npmrc|env|vault-token|s3cfg|boto)$"
    r"|/\.[a-z_]*history$|/huggingface/(token|stored_tokens)$|/\.huggingface/"
    r"|/id_(rsa|dsa|ecdsa|ed25519)|\.(pem|key|kdbx|keytab)$"
    r"|^/etc/(shadow|gshadow|sudoers|krb5\.keytab)|^/etc/ssl/private/"
    r"|^(/var)?/run/secrets/|/(logins\.json|key4\.db|Login Data|Cookies)$"
)
#: Certificates of authorities look like keys by their suffix, and are no secret.
_AUTHORITIES = re.compile(
    r"^/(etc|usr/lib|usr/local)/ssl/(cert\.pem$|certs/)|^/etc/pki/(tls/certs|ca-trust)/"
    r"|^/usr/(local/)?share/ca-certificates/|/(certifi|botocore)/cacert\.pem$"
)
_STARTUP = re.compile(
    r"/\.(bash(rc|_profile|_login|_logout|_aliases)|profile|zshrc|zshenv|zprofile|login|cshrc|tcshrc"
    r"|kshrc|pythonrc\.py|pam_environment|xinitrc|xsession|xprofile|inputrc|vimrc|gitconfig)$"
    r"|/\.ssh/(authorized_keys2?|rc|config|environment)$"
    r"|/\.config/(systemd|autostart|fish|environment\.d)(/|$)|/\.local/share/systemd(/|$)"
    r"|/\.ipython/profile_|/(site|user)customize\.py$|/site-packages/[^/]*\.pth$"
    r"|/dist-packages/[^/]*\.pth$|^/etc/(cron|anacrontab|systemd|init|rc|profile|bash|environment"
    r"|ld\.so\.(preload|conf)|pam\.d|udev|sudoers|passwd|shadow|group|security|X11|xdg)"
    r"|^/var/spool/(cron|at)|^/(usr/)?lib/systemd/|/crontabs(/|$)|/\.git/hooks/"
)
_PYTHON = re.compile(
    r"/(site-packages|dist-packages|lib/python\d|lib64/python\d|lib-dynload)(/|$|\.)"
)
_PYTHON_FILE = re.compile(
    r"(\.pyc?|\.so|/pyvenv\.cfg|/__pycache__(/.*)?)$|\.pyc\.\d+$|\.cpython-[^/]*$"
)
#: The last ones are what sqlite keeps beside a database, such as a shelf of Python 3.13.
#: Also what numba keeps of compiled functions there.
_BYTECODE = re.compile(r"/__pycache__(/[^/]*\.(pyc(\.\d+)?|nb[ic][.\w]*))?$")
_CACHE = re.compile(
    r"/\.cache(/|$)|^/var/cache/|/torchinductor_|/\.triton(/|$)|/\.nv(/|$)|/\.keras(/|$)"
    r"|/\.config/matplotlib|/\.torch(/|$)|/\.theano|/\.dgl(/|$)|/numba_cache|/torch_extensions"
    r"|/\.config$|^/var/lib/libuuid/|-(wal|shm|journal)$"
)
#: Names that tempfile (its files and folders, and its test of a folder) and gcc choose: where
#: TMPDIR says, on many hosts a scratch disk. Whoever chooses such a name could as well choose /tmp.
_TEMPORARY = re.compile(
    r"^/(var/)?tmp/|/tmp[a-z0-9_]{8}([./]|$)|/[a-z0-9_]{8}$|/cc[A-Za-z0-9]{6}\.[^/]*$"
)
_SYSTEM = re.compile(
    r"^/(usr/(lib|lib32|lib64|libx32|share|local/lib|local/share|local/cuda[^/]*|bin|sbin"
    r"|local/bin)|lib|lib64|bin|sbin|opt)(/|$)"
    r"|^/etc/(ld\.so\.cache|localtime|timezone|nsswitch\.conf|host\.conf|hosts|resolv\.conf|gai\.conf"
    r"|mime\.types|machine-id|os-release|debian_version|lsb-release|locale|ssl|ca-certificates"
    r"|fonts|python|magic|protocols|services|OpenCL|nvidia)"
)
#: Semaphores, and shared memory by the names that torch, multiprocessing and joblib give it.
_SHARED = re.compile(
    r"^/dev/shm/(sem\.[\w-]+|torch_\d+_\d+_\d+|psm_\w+|pymp-[\w-]+"
    r"|joblib_memmapping_folder_.*)$"
)
#: What another process keeps to itself. Its own environment a process has anyway; OpenMP reads it.
_MEMORY_OF_PROCESS = re.compile(
    r"^/proc/\w[\w-]*(/task/\d+)?/(mem|pagemap)$"
    r"|^/proc/(\d+/environ|kcore)$"
)

_SHELLS = frozenset("sh bash dash zsh ksh csh tcsh fish busybox ash".split())
_COMPILERS = frozenset(
    "gcc g++ cc c++ cc1 cc1plus as ld ld.bfd ld.gold ld.lld collect2 ninja make cmake nvcc ptxas "
    "cicc clang clang++ lto-wrapper ar ranlib objdump objcopy strip nm".split()
)
_INQUIRIES = frozenset(
    "lscpu uname ldconfig ldconfig.real fc-list git nvidia-smi file which getconf lsb_release "
    "hostname nproc arch rocm-smi rocminfo ldd true".split()
) - {"true"}
_FETCHERS = frozenset(
    "curl wget nc ncat netcat nc.openbsd nc.traditional ssh scp sftp socat ftp tftp telnet rsync "
    "aria2c lynx".split()
)
_BINARIES = re.compile(
    r"^(/usr(/local)?)?/s?bin/[^/]+$|^/usr/(lib|libexec)/gcc/|^/opt/[^/]+/bin/[^/]+$"
    r"|/(anaconda|miniconda|miniforge|conda)[^/]*/(envs/[^/]+/)?bin/[^/]+$"
)
_PYTHON_NAME = re.compile(r"^python[0-9.]*$")


#: Other names of the root directory, as far as a path tells.
_ROOTS = re.compile(r"^/proc/(self|thread-self|\d+)(/task/\d+)?/root(?=/|$)")


@lru_cache(8192)
def _normal(path: str, cwd: str) -> str:
    if not path.startswith("/"):
        path = os.path.join(cwd or "/unknown", path)
    path = "/" + os.path.normpath(path).lstrip("/")
    while match := _ROOTS.match(path):
        path = path[match.end() :] or "/"
    return path


def _common(path: str, model_folder: str) -> str:
    if path.startswith("/dev/shm/"):
        return "shared" if _SHARED.match(path) else "shm"
    if path.startswith("/dev/"):
        return "memory" if path in ("/dev/mem", "/dev/kmem", "/dev/port") else "device"
    if path.startswith("/sys/"):
        return "sys"
    if path.startswith("/proc/"):
        return "memory" if _MEMORY_OF_PROCESS.match(path) else "proc"
    if _CACHE.search(path):
        return "cache"
    if model_folder and os.path.dirname(path) == model_folder:
        return "model"
    return ""


@lru_cache(8192)
def place_read(path: str, cwd: str, model_folder: str) -> str:
    """The class of a file that is read: what kind of place it lies in."""
    path = _normal(path, cwd)
    if _CREDENTIALS.search(path) and not _AUTHORITIES.search(path):
        return "credentials"
    if _PYTHON.search(path):
        return "python"
    if path in ("/etc/passwd", "/etc/group"):
        return "accounts"
    if _STARTUP.search(path):
        return "startup"
    if _SYSTEM.match(path):
        return "system"
    if _PYTHON_FILE.search(path):
        return "source"
    return _common(path, model_folder) or _personal(path) or "other"


@lru_cache(8192)
def place_written(path: str, cwd: str, model_folder: str) -> str:
    """The class of a file that is created, changed or removed."""
    path = _normal(path, cwd)
    if _STARTUP.search(path):
        return "startup"
    if _CREDENTIALS.search(path):
        return "credentials"
    if _BYTECODE.search(path):
        return "bytecode"
    if _PYTHON.search(path):
        return "python"
    common = _common(path, model_folder)
    if common:
        return common
    if _SYSTEM.match(path) or path.startswith(("/etc/", "/boot/", "/var/lib/")):
        return "system"
    return _personal(path) or ("temporary" if _TEMPORARY.search(path) else "other")


def _personal(path: str) -> str:
    parts = path.split("/")
    if parts[1:2] == ["root"] or parts[1:2] == ["home"]:
        hidden = any(part.startswith(".") for part in parts[2:])
        return "dotfile" if hidden else "home"
    return ""


@lru_cache(4096)
def program(path: str, cwd: str) -> str:
    """The class of a program: by its name only where it lies among the system's binaries."""
    path = _normal(path, cwd)
    name = os.path.basename(path)
    if _PYTHON_NAME.match(name) and path.endswith(f"/bin/{name}"):
        return "python"
    if not _BINARIES.search(path):
        return "other"
    for names, label in (
        (_SHELLS, "shell"),
        (_COMPILERS, "compiler"),
        (_INQUIRIES, "inquiry"),
        (_FETCHERS, "fetcher"),
    ):
        if name in names:
            return label
    return "compiler" if "/gcc/" in path else "other"


#: Sockets over which multiprocessing and torch pass objects between processes.
_QUEUE = re.compile(r"(^|/)listener-[^/]{8}$|/torch-shm-dir-[^/]{6}/manager\.sock$")
_UNIX_SYSTEM = re.compile(
    r"^(/var)?/run/(nscd/socket|uuidd/request|systemd/(journal|notify|userdb|resolve)/?.*"
    r"|dbus/system_bus_socket)$|^/dev/log$"
)


def scope(raw: bytes) -> tuple[str, str]:
    """The class of a socket address and how to print it; ``raw`` is a ``struct sockaddr``."""
    if len(raw) < 2:
        return "none", "no address"
    family = struct.unpack_from("<H", raw)[0]
    if family == 1:
        name = raw[2:].split(b"\0", 1)[0] if raw[2:3] != b"\0" else b"@" + raw[3:].rstrip(b"\0")
        text = os.fsdecode(name)
        place = text if text.startswith("@") else _normal(text, "")
        if _UNIX_SYSTEM.match(place):
            return "unix_system", f"unix:{text}"
        if _QUEUE.search(place):
            return "unix_queue", f"unix:{text}"
        return "unix", f"unix:{text}"
    if family == 2 and len(raw) >= 8:
        return _internet(ipaddress.IPv4Address(raw[4:8]), raw)
    if family == 10 and len(raw) >= 24:
        address = ipaddress.IPv6Address(raw[8:24])
        return _internet(address.ipv4_mapped or address, raw)
    if family == 16:
        return "netlink", "netlink"
    if family == 0:
        return "none", "no address"
    return "family", f"address family {family}"


def port(raw: bytes) -> int:
    """The port of an Internet address that :func:`scope` understood."""
    return int(struct.unpack_from(">H", raw, 2)[0])


def _internet(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, raw: bytes
) -> tuple[str, str]:
    text = f"[{address}]:{port(raw)}" if address.version == 6 else f"{address}:{port(raw)}"
    if address.is_loopback:
        return "loopback", text
    if address.is_unspecified:
        return "any", text
    return ("private" if address.is_private or address.is_link_local else "public"), text
