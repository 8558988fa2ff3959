"""Modules of CPython's standard library, and those of them that reach beyond data.

A global of a *capable* module that no benign load ever named is strong evidence: such modules run
code, start programs, touch files, sockets, other processes or the interpreter itself. Names of the
other modules build data. ``STANDARD`` is ``sys.stdlib_module_names`` of CPython 3.11 with the names
of Python 2 that pickles of protocol 2 still carry.
"""

from __future__ import annotations

__all__ = ["CAPABLE", "STANDARD"]

CAPABLE = frozenset(
    """
    __builtin__ _ctypes _distutils_hack _frozen_importlib _frozen_importlib_external _io
    _multiprocessing _operator _osx_support _pickle _posixsubprocess _pyio _socket _sqlite3
    _thread argparse ast asyncio atexit bdb builtins cPickle cProfile cgi cmd code codecs codeop
    commands compileall concurrent configparser copyreg crypt ctypes dbm dis distutils doctest
    ensurepip faulthandler fcntl fileinput ftplib functools gc genericpath getpass glob http
    idlelib imaplib imp importlib inspect io lib2to3 linecache logging mailbox marshal mimetypes
    mmap multiprocessing netrc nntplib nt ntpath nturl2path operator optparse os pdb pickle pip
    pipes pkg_resources pkgutil platform plistlib popen2 poplib posix posixpath profile pty pwd
    py_compile pydoc readline resource rlcompleter runpy sched select selectors setuptools
    shelve shutil signal site smtpd smtplib socket socketserver sqlite3 ssl subprocess symtable
    sys sysconfig syslog tarfile telnetlib tempfile termios test threading timeit tkinter trace
    traceback tracemalloc tty turtle types unittest urllib venv webbrowser wsgiref xmlrpc zipapp
    zipfile zipimport
    """.split()
)

STANDARD = CAPABLE | frozenset(
    """
    __future__ _abc _aix_support _ast _asyncio _bisect _blake2 _bootsubprocess _bz2 _codecs
    _codecs_cn _codecs_hk _codecs_iso2022 _codecs_jp _codecs_kr _codecs_tw _collections
    _collections_abc _compat_pickle _compression _contextvars _crypt _csv _curses _curses_panel
    _datetime _dbm _decimal _elementtree _functools _gdbm _hashlib _heapq _imp _json _locale
    _lsprof _lzma _markupbase _md5 _msi _multibytecodec _opcode _overlapped _posixshmem _py_abc
    _pydecimal _queue _random _scproxy _sha1 _sha256 _sha3 _sha512 _signal _sitebuiltins _sre
    _ssl _stat _statistics _string _strptime _struct _symtable _threading_local _tkinter
    _tokenize _tracemalloc _typing _uuid _warnings _weakref _weakrefset _winapi _zoneinfo abc
    aifc antigravity array asynchat asyncore audioop base64 binascii bisect bz2 calendar cgitb
    chunk cmath collections colorsys contextlib contextvars copy csv curses dataclasses datetime
    decimal difflib email encodings enum errno filecmp fnmatch fractions getopt gettext graphlib
    grp gzip hashlib heapq hmac html imghdr ipaddress itertools json keyword locale lzma mailcap
    math modulefinder msilib msvcrt nis numbers opcode ossaudiodev pathlib pickletools pprint
    pstats pyclbr pydoc_data pyexpat queue quopri random re reprlib secrets shlex sndhdr spwd
    sre_compile sre_constants sre_parse stat statistics string stringprep struct sunau tabnanny
    textwrap this time token tokenize tomllib turtledemo typing unicodedata uu uuid warnings
    wave weakref winreg winsound xdrlib xml zlib zoneinfo UserDict UserList copy_reg exceptions
    itertools
    """.split()
)
