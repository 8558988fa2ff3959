"""Who may ask the listener, and how often: basic authentication and a bound on requests."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
import threading
from collections.abc import Mapping

__all__ = ["RateLimit", "Users", "is_bcrypt"]

#: Wrong credentials that are remembered.
_REMEMBERED = 1000


def is_bcrypt(text: str) -> bool:
    """Whether a text is a hash that bcrypt made."""
    parts = re.fullmatch(r"\$2[abxy]\$([0-9]{2})\$[./A-Za-z0-9]{53}", text)
    return parts is not None and 4 <= int(parts[1]) <= 31


class Users:
    """The users of basic authentication.

    Parameters
    ----------
    hashes : bcrypt hashes of passwords by user, at least one.
    """

    def __init__(self, hashes: Mapping[str, str]) -> None:
        self._hashes = {user.encode(): text.encode() for user, text in hashes.items()}
        # What an unknown user's password is compared with, so that the time does not tell.
        self._decoy = max(self._hashes.values(), key=lambda text: text[4:6])
        # bcrypt is slow on purpose, so that results are kept: the password of a user that was
        # right, where no flood of wrong ones can push it out, and wrong credentials.
        self._key = os.urandom(32)
        self._right: dict[bytes, bytes] = {}
        self._wrong: dict[bytes, None] = {}
        self._lock = threading.Lock()

    def allow(self, authorization: str | None) -> bool:
        """Whether the header ``Authorization`` of a request is that of a user."""
        scheme, _, encoded = (authorization or "").partition(" ")
        if scheme.lower() != "basic":
            return False
        try:
            credentials = base64.b64decode(encoded.strip(), validate=True)
        except ValueError:
            return False
        user, colon, password = credentials.partition(b":")
        if not colon:
            return False
        digest = hashlib.blake2b(credentials, key=self._key).digest()
        if self._is_right(user, digest):
            return True
        # One at a time: a flood of guesses is to take one core at most.
        with self._lock:
            if self._is_right(user, digest):
                return True
            if digest in self._wrong:
                return False
            if self._matches(user, password):
                self._right[user] = digest
                return True
            self._wrong[digest] = None
            if len(self._wrong) > _REMEMBERED:
                del self._wrong[next(iter(self._wrong))]
            return False

    def _is_right(self, user: bytes, digest: bytes) -> bool:
        return hmac.compare_digest(self._right.get(user, b""), digest)

    def _matches(self, user: bytes, password: bytes) -> bool:
        import bcrypt

        try:
            # The algorithm has never looked beyond 72 bytes; bcrypt 5 refuses more.
            matches = bcrypt.checkpw(password[:72], self._hashes.get(user, self._decoy))
        except ValueError:  # a NUL in the password, before bcrypt 4
            matches = False
        return matches and user in self._hashes


class RateLimit:
    """A token bucket: one request in ``interval`` seconds, and ``burst`` at once after a rest."""

    def __init__(self, interval: float, burst: int) -> None:
        self._interval = interval
        self._burst = burst
        self._tokens = float(burst)
        self._then = 0.0
        self._lock = threading.Lock()

    def allow(self, now: float) -> bool:
        """Whether a request may be answered at ``now``, in seconds of a monotonic clock."""
        with self._lock:
            earned = max(now - self._then, 0) / self._interval
            self._tokens = min(self._tokens + earned, self._burst)
            self._then = now
            if self._tokens < 1:
                return False
            self._tokens -= 1
            return True
