"""Exponential backoff with full jitter: a thousand clients do not come back in the same moment."""

from __future__ import annotations

import random

FIRST_S = 0.2
MOST_S = 15.0


class Backoff:
    """Grows with every failure; `reset` after a success."""

    def __init__(self, first_s: float = FIRST_S, most_s: float = MOST_S) -> None:
        self.first_s = first_s
        self.most_s = most_s
        self.failures = 0

    def reset(self) -> None:
        """The next failure is the first again."""
        self.failures = 0

    def next_s(self) -> float:
        """Seconds to wait after one more failure."""
        limit = min(self.most_s, self.first_s * 2.0 ** min(self.failures, 30))
        self.failures += 1
        return random.uniform(0, limit)
