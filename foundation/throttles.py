"""How often is too often. Counted in the shared cache; while Redis is away nobody is locked out."""

from __future__ import annotations

import hashlib
import math
import time
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.core.cache import cache
from rest_framework.throttling import BaseThrottle

from foundation.errors import StudioError


@dataclass(frozen=True)
class Limit:
    """At most `amount` in the `window_s` seconds that the first of them opens, for each `who`."""

    name: str
    amount: int
    window_s: int

    def _key(self, who: str) -> str:
        mark = hashlib.sha256(who.lower().encode()).hexdigest()[
            :32
        ]  # whatever a stranger typed makes a safe key
        return f"limit:{self.name}:{mark}"

    def count(self, who: str) -> None:
        """One more. Raises StudioError 429 with `retry_after_s` when that is one too many."""
        key = self._key(who)
        if cache.add(key, 0, self.window_s):
            cache.set(f"{key}:since", time.time(), self.window_s)
        try:
            used = cache.incr(key)  # keeps the expiry
        except ValueError:  # it expired this moment
            return
        if used > self.amount:
            self._refuse(key)

    def check(self, who: str) -> None:
        """Counts nothing; raises StudioError 429 when what was counted is too many already."""
        key = self._key(who)
        if int(cache.get(key) or 0) >= self.amount:
            self._refuse(key)

    def _refuse(self, key: str) -> None:
        now = time.time()
        since = float(cache.get(f"{key}:since") or now)
        wait = max(1, math.ceil(since + self.window_s - now))
        raise StudioError("throttled", f"Too many attempts: try again in {wait} s.", 429, retry_after_s=wait)


TOKEN_FAILURES = Limit("token-failures", 60, 60)  # of one address
LOGIN_FAILURES = Limit("login-failures", 10, 60)  # of one address
LOGIN_FAILURES_OF_NAME = Limit("login-failures-of-name", 5, 300)  # of one address for one login
LOGINS = Limit("logins", 60, 60)  # of one address: a password check is dear
SIGN_UPS = Limit("sign-ups", 30, 60)  # of one address
INVITATIONS = Limit("invitations", 100, 3600)  # of one person
INVITATION_FAILURES = Limit("invitation-failures", 20, 60)  # of one person


def address_of(request: Any) -> str:
    """The caller's IP address; a proxy's word is taken only from as many proxies as the settings name."""
    address = BaseThrottle().get_ident(request)
    return address or str(settings.PUBLIC_URL or "local")
