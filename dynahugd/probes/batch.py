"""What the probes yield: the one input type of everything downstream, live or replayed."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from dynahugd.probes import layout

__all__ = ["Batch", "Fact"]


@dataclass(frozen=True, slots=True)
class Fact:
    """What user space found out about a load when it began. All text is hostile.

    Attributes
    ----------
    load : id of the load.
    exe, cwd : program and working directory of its process, empty when it was gone already.
    path : the model file as an absolute path in the process' own view; empty for kind ``memory``.
    format : one of ``formats.FORMATS``.
    """

    load: int
    exe: str
    cwd: str
    path: str
    format: str


@dataclass(frozen=True, slots=True)
class Batch:
    """What happened since the batch before.

    Attributes
    ----------
    time : CLOCK_MONOTONIC in ns when the batch was read.
    hop : whether all open loads are in ``states``, not only those with records.
    records : shape (n,), dtype ``layout.RECORD``, in the order of the ring.
    states : shape (m,), dtype ``layout.LOAD``: slots as they were after the records were read.
    counters : uint64, shape (m, 3, 512): calls of these loads by bank and number since they began.
    facts : about the loads that begin in this batch.
    lost : uint64, shape (len(Loss),): total losses since the start.
    """

    time: int
    hop: bool
    records: npt.NDArray[np.void]
    states: npt.NDArray[np.void] = field(default_factory=lambda: np.empty(0, layout.LOAD))
    counters: npt.NDArray[np.uint64] = field(
        default_factory=lambda: np.empty((0, layout.BANKS, 512), np.uint64)
    )
    facts: tuple[Fact, ...] = ()
    lost: npt.NDArray[np.uint64] = field(
        default_factory=lambda: np.zeros(len(layout.Loss), np.uint64)
    )
