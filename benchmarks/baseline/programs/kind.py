"""What a kind of load is, and what its files are filled with."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any, Callable, Dict, NamedTuple, Optional

__all__ = ["KEEP", "Kind", "Load", "Make", "plain", "user_name", "weights", "word"]

#: Writes the files of one load into an empty folder; the path to load.
Make = Callable[[Path, Random], Path]
#: Loads; how many loads that was, None for one.
Load = Callable[[Path], Optional[int]]

#: Seconds that files stay after their load: a probe reads their first bytes a moment later, and
#: elsewhere models do not vanish once they are loaded.
KEEP = 2.0

_SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]


class Kind(NamedTuple):
    """A row of a family's table.

    Attributes
    ----------
    fresh : processes that do it first of all, what they import for it included.
    warm : turns in processes that have done many others before.
    again : one file is loaded at most so many times in a row. Globals that several loads name
        become known to the baseline, so those of a user's own module must stay rare.
    needs : an optional library; without it the kind is skipped.
    """

    name: str
    make: Make
    load: Load
    fresh: int = 7
    warm: int = 21
    again: int = 4
    needs: str = ""


def word(rng: Random, syllables: int = 4) -> str:
    """A name that no other load has."""
    return "".join(rng.choice(_SYLLABLES) for _ in range(syllables))


def user_name(rng: Random) -> str:
    """A name such as users give to their modules."""
    prefixes = ("", "my_", "train_", "lib", "net_", "models_")
    suffixes = ("", "_model", "_utils", "2", "_layers")
    return rng.choice(prefixes) + word(rng) + rng.choice(suffixes)


def weights(rng: Random, most: int = 400) -> Dict[str, Any]:
    """A state dict of plain lists."""
    size = rng.randint(1, most)
    return {
        "%s.%s" % (word(rng, 2), part): [rng.random() for _ in range(size)]
        for _ in range(rng.randint(1, 8))
        for part in ("weight", "bias")
    }


def plain(rng: Random) -> Dict[str, Any]:
    """What a pickle needs no global for."""
    return {
        "weights": weights(rng),
        "epoch": rng.randrange(300),
        "loss": rng.random(),
        "seed": rng.getrandbits(rng.choice((8, 40, 80))),
        "labels": [word(rng) for _ in range(rng.randrange(50))],
        "flags": (True, None, rng.random() < 0.5),
        "vocabulary": {word(rng): index for index in range(rng.randrange(300))},
    }
