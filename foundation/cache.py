"""A cache whose loss costs nothing: Redis away reads as a miss."""

from __future__ import annotations

import logging
from typing import Any

from django.core.cache.backends.redis import RedisCache
from redis.exceptions import RedisError

log = logging.getLogger(__name__)


def _tolerant(name: str, default: Any) -> Any:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return getattr(RedisCache, name)(self, *args, **kwargs)
        except (RedisError, OSError) as error:
            log.warning("cache.away %s", type(error).__name__)
            if name == "get":
                return args[1] if len(args) > 1 else kwargs.get("default")
            return default

    return call


class TolerantRedisCache(RedisCache):
    get = _tolerant("get", None)
    set = _tolerant("set", None)
    add = _tolerant("add", True)
    touch = _tolerant("touch", False)
    delete = _tolerant("delete", False)
    incr = _tolerant("incr", 0)
    clear = _tolerant("clear", False)
    get_many = _tolerant("get_many", {})
    set_many = _tolerant("set_many", [])
    has_key = _tolerant("has_key", False)
