"""The programs that load: one module per family of kinds, for every CPython from 3.8 on.

The standard library's families run in interpreters that have nothing installed, so nothing here
imports a library before a load needs it.
"""
