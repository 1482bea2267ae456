"""Who takes part in a round, and why; split by noun. All of it is decided inside the transaction that assigns."""

from federation.sessions.selection.choosing import Chosen, choose_for_round, choose_more
from federation.sessions.selection.pool import Pool, PoolClient, eligible, population

__all__ = ["Chosen", "Pool", "PoolClient", "choose_for_round", "choose_more", "eligible", "population"]
