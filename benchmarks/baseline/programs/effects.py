"""What honest modules do when a load imports them: sources by name.

Gathered from what widespread packages do at import (numba, matplotlib, transformers, urllib3,
soundfile, tqdm, filelock, loky, wandb). ``HOME`` is a scratch home; nothing leaves the machine.
"""

from __future__ import annotations

__all__ = ["CLASSES", "IMPORTS"]

_CACHE = """\
import os, tempfile
HERE = os.path.join(os.path.expanduser("~"), ".cache", __name__.split(".")[0])
os.makedirs(HERE, exist_ok=True)
"""

#: Executed when the user's module is imported.
IMPORTS = {
    "nothing": "",
    "configuration": """\
import json, os
with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "settings.json")) as file:
    SETTINGS = json.load(file)
""",
    "tables": """\
import collections, dataclasses, enum, logging, re, typing
LOG = logging.getLogger(__name__)
TOKEN = re.compile(r"\\b(\\w+)(?:'s)?\\b|\\d+\\.\\d*|[^\\w\\s]")
Point = collections.namedtuple("Point", "x y")
class Mode(enum.Enum):
    TRAIN, EVAL = 1, 2
@dataclasses.dataclass
class Options:
    rate: float = 0.1
    names: typing.List[str] = dataclasses.field(default_factory=list)
""",
    "environment": """\
import os, sys
DEVICE = os.environ.get("DEVICE", "cpu")
HOME = os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache"))
DEBUG = bool(os.environ.get("DEBUG")) and sys.stderr.isatty()
FOUND = [name for name in (HOME, os.getcwd()) if os.path.isdir(name)]
""",
    "uname": 'import subprocess\nCPU = subprocess.run(["uname", "-p"], stdout=subprocess.PIPE)\n',
    "processor": "import platform\nCPU = platform.processor(), platform.machine()\n",
    "git": """\
import os, subprocess
COMMIT = subprocess.run(
    ["git", "rev-parse", "--short", "HEAD"], cwd=os.path.dirname(os.path.abspath(__file__)),
    stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
""",
    "inquiries": """\
import subprocess
for command in (["nproc"], ["getconf", "LONG_BIT"], ["lscpu"], ["hostname"]):
    try:
        subprocess.check_output(command, stderr=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError):
        continue
""",
    "find_library": 'import ctypes.util\nLIBC = ctypes.util.find_library("c")\n',
    "find_no_library": 'import ctypes.util\nFAST = ctypes.util.find_library("fastblas_vendor")\n',
    "cache_file": _CACHE
    + """\
handle, name = tempfile.mkstemp(dir=HERE, suffix=".tmp")
with os.fdopen(handle, "wb") as file:
    file.write(b"index" * 40)
os.chmod(name, 0o644)
os.replace(name, os.path.join(HERE, "index.bin"))
""",
    "cache_bytecode": _CACHE
    + """\
import importlib.util, py_compile
py_compile.compile(__file__, cfile=os.path.join(HERE, "kernel.pyc"), doraise=True)
spec = importlib.util.spec_from_file_location("kernel", os.path.join(HERE, "kernel.pyc"))
""",
    "lock_file": _CACHE
    + """\
import fcntl
name = os.path.join(HERE, "index.lock")
lock = os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
fcntl.flock(lock, fcntl.LOCK_UN)
os.close(lock)
os.unlink(name)
""",
    "temporary_folder": """\
import os, tempfile
with tempfile.TemporaryDirectory() as folder:
    with open(os.path.join(folder, "probe"), "w") as file:
        file.write("writable")
""",
    "thread_pool": """\
import concurrent.futures, threading
with concurrent.futures.ThreadPoolExecutor(2) as pool:
    SQUARES = list(pool.map(lambda n: n * n, range(50)))
LOCK = threading.RLock()
""",
    "host": """\
import getpass, locale, os, platform, socket
NAMES = platform.platform(), socket.gethostname(), locale.getlocale(), os.cpu_count()
try:
    USER = getpass.getuser()
except (KeyError, OSError):
    USER = "nobody"
""",
    # One family, one type: with several addresses glibc sorts them by connecting to each.
    "resolver": """\
import socket
LOCAL = socket.getaddrinfo("localhost", 80, socket.AF_INET, socket.SOCK_STREAM)
""",
    "ipv6": """\
import socket
try:
    with socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
    HAS_IPV6 = True
except OSError:
    HAS_IPV6 = False
""",
    "semaphores": """\
import multiprocessing
LOCKS = multiprocessing.Lock(), multiprocessing.RLock(), multiprocessing.Semaphore(2)
""",
    "native": """\
import ctypes
LIBM = ctypes.CDLL("libm.so.6")
LIBM.cos.restype, LIBM.cos.argtypes = ctypes.c_double, [ctypes.c_double]
ONE = LIBM.cos(0.0)
""",
    "memory": """\
import mmap
ARENA = mmap.mmap(-1, 1 << 20)
ARENA[:4] = b"page"
""",
    "extensions": """\
import bz2, csv, decimal, lzma, sqlite3, ssl, unicodedata, xml.etree.ElementTree, zlib
with sqlite3.connect(":memory:") as memory:
    memory.execute("create table t (x integer)")
""",
    "entry_points": """\
import importlib.metadata
POINTS = importlib.metadata.entry_points()
try:
    VERSION = importlib.metadata.version(__name__)
except importlib.metadata.PackageNotFoundError:
    VERSION = "0"
""",
    "machine": """\
import os
for name in ("/proc/cpuinfo", "/proc/meminfo", "/proc/self/cgroup", "/proc/self/status",
             "/sys/devices/system/cpu/online", "/sys/fs/cgroup/cpu.max"):
    try:
        with open(name) as file:
            file.read()
    except OSError:
        continue
CPUS = len(os.sched_getaffinity(0))
""",
    "warnings": """\
import logging, sys, warnings
logging.basicConfig(stream=sys.stderr)
logging.getLogger(__name__).warning("no GPU found, using the CPU")
warnings.warn("this model was saved by an older version", UserWarning)
""",
    "randomness": """\
import hashlib, os, random, secrets, uuid
RUN = uuid.uuid4().hex, hashlib.sha256(os.urandom(32)).hexdigest(), secrets.token_hex(4)
random.seed(RUN[1])
""",
    "package_data": """\
import gzip, pkgutil
VOCABULARY = gzip.decompress(pkgutil.get_data(__name__, "vocabulary.txt.gz")).split()
""",
    "node": "import uuid\nRUN = uuid.getnode(), uuid.uuid1()\n",
    "account": """\
import grp, os, pwd
try:
    ME = pwd.getpwuid(os.getuid()).pw_name, grp.getgrgid(os.getgid()).gr_name
except KeyError:
    ME = ("user", "user")
""",
    "certificates": "import ssl\nTLS = ssl.create_default_context()\n",
    "tools": """\
import shutil, subprocess
HAS_COMPILER = bool(shutil.which("c++") and shutil.which("nvcc"))
for command in (["which", "ninja"], ["ninja", "--version"], ["nvidia-smi", "-L"], ["rocm-smi"]):
    try:
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    except OSError:
        continue
""",
    "queue": "import multiprocessing\nTASKS = multiprocessing.Queue(), multiprocessing.Event()\n",
    "optional_parts": """\
import importlib
for name in ("cupy_backend", "tensorrt_bindings", "horovod_core", "curses", "zoneinfo"):
    try:
        importlib.import_module(name)
    except ImportError:
        continue
""",
}

#: Bodies of the pickled class: what the unpickler calls.
CLASSES = {
    "set_state": """\
    def __setstate__(self, state):
        self.__dict__.update(state)
        self.total = sum(self.weights)
""",
    "set_state_reads": """\
    def __setstate__(self, state):
        import json, os
        self.__dict__.update(state)
        here = os.path.dirname(os.path.abspath(__file__))
        with open(os.path.join(here, "settings.json")) as file:
            self.settings = json.load(file)
""",
    "set_state_threads": """\
    def __setstate__(self, state):
        import threading
        self.__dict__.update(state)
        self.lock = threading.Lock()
        thread = threading.Thread(target=self.weights.sort)
        thread.start()
        thread.join()
""",
    "set_state_unpickles": """\
    def __getstate__(self):
        import pickle
        return pickle.dumps(self.__dict__, 4)
    def __setstate__(self, state):
        import pickle
        self.__dict__.update(pickle.loads(state))
""",
    "set_state_logs": """\
    def __setstate__(self, state):
        import logging, sys
        self.__dict__.update(state)
        logging.getLogger(__name__).warning("restored %d weights", len(self.weights))
        print("restored", file=sys.stderr)
""",
    "set_state_raises": """\
    def __setstate__(self, state):
        raise ValueError("this model is of an older version")
""",
    "reduce": """\
    def __reduce__(self):
        return type(self), (self.weights,)
""",
    "new_arguments": """\
    __slots__ = ("weights",)
    def __new__(cls, weights=()):
        return object.__new__(cls)
    def __getnewargs__(self):
        return (self.weights,)
""",
    "list_and_dict": """\
    def __reduce_ex__(self, protocol):
        return Layers, (), {"weights": self.weights}, iter(self.weights), iter({"a": 1}.items())
    def append(self, item):
        self.__dict__.setdefault("items", []).append(item)
    def __setitem__(self, name, value):
        self.__dict__[name] = value
""",
}
