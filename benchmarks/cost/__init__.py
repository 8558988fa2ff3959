"""What the daemon costs the host that it watches, beside what a user would take instead.

``python -m benchmarks.cost`` measures it and writes ``docs/benchmarks.md``.
"""
