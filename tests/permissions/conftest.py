"""Everybody, and the world they meet."""

from __future__ import annotations

from tests.permissions.world import callers, world  # noqa: F401
