"""Who may see the page: a token opens a session, a session holds a role and a secret that every form must send back.

Tokens are compared by digest in constant time; sessions live in memory and end with the service. The cookie is HttpOnly
and SameSite=Strict, and what changes anything also needs the session's secret and an Origin of ours (OWASP's
synchronizer token beside its origin check).
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from concordct.serving.config import Page

Role = Literal["reader", "operator", "sender"]
COOKIE = "concordct-session"
#: A session ends so long after it was last used, s.
SESSION_S = 8 * 3600.0
#: Wrong tokens in so many seconds, from anywhere, before logins wait: a token cannot be found by trying.
TRIES, TRIES_S = 20, 60.0


@dataclass
class Session:
    """An open session; `secret` goes with every form."""

    name: str
    role: Role
    secret: str
    used_at: float


class Access:
    """Tokens and sessions."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._tokens: list[tuple[bytes, str, Role]] = [
            (_digest(token.file.read_text().strip()), token.name, token.role) for token in page.tokens
        ]
        self._sessions: dict[str, Session] = {}
        self._wrong: list[float] = []
        self._lock = threading.Lock()

    def role_of(self, token: str) -> tuple[str, Role] | None:
        """(name, role) that a token stands for; None for a wrong one, and for any while too many wrong ones came."""
        now, given = time.monotonic(), _digest(token)
        with self._lock:
            self._wrong = [at for at in self._wrong if now - at < TRIES_S]
            if len(self._wrong) >= TRIES:
                return None
            # All are compared, so that time tells nothing.
            found = [(name, role) for digest, name, role in self._tokens if hmac.compare_digest(digest, given)]
            if not found:
                self._wrong.append(now)
            return found[0] if found else None

    def bearer(self, header: str | None) -> Role | None:
        """The role of an Authorization header."""
        kind, _, token = (header or "").partition(" ")
        found = self.role_of(token.strip()) if kind.lower() == "bearer" else None
        return found[1] if found else None

    def open(self, token: str) -> str | None:
        """The key of a new session; None for a token that opens none. A sender has no page."""
        found = self.role_of(token)
        if found is None or found[1] == "sender":
            return None
        key = secrets.token_urlsafe(32)
        with self._lock:
            now = time.monotonic()
            self._sessions = {k: one for k, one in self._sessions.items() if now - one.used_at < SESSION_S}
            self._sessions[key] = Session(*found, secrets.token_urlsafe(32), now)
        return key

    def session(self, key: str | None) -> Session | None:
        """The session of a cookie."""
        with self._lock:
            one = self._sessions.get(key or "")
            if one is None or time.monotonic() - one.used_at >= SESSION_S:
                return None
            one.used_at = time.monotonic()
            return one

    def close(self, key: str | None) -> None:
        """End a session."""
        with self._lock:
            self._sessions.pop(key or "", None)

    def same_origin(self, origin: str | None, host: str | None) -> bool:
        """Whether a request that changes something comes from our own page."""
        if origin is None:
            return False
        if self._page.origin is not None:
            return origin.rstrip("/") == self._page.origin.rstrip("/")
        return urlsplit(origin).netloc == host and bool(host)


def may(session: Session, secret: str) -> bool:
    """Whether a form of that session may change anything."""
    return session.role == "operator" and hmac.compare_digest(session.secret.encode(), secret.encode())


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
