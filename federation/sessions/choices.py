"""States and their legal moves, as ROUNDS draws them."""

from __future__ import annotations

from django.db import models

from foundation.moves import Moves


class SessionStatus(models.TextChoices):
    CREATED = "created"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    STOPPED = "stopped"


SESSION_MOVES: Moves = {
    "created": frozenset({"running"}),
    "running": frozenset({"finished", "failed", "stopped"}),
    # continue: back to running
    "finished": frozenset({"running"}),
    "failed": frozenset({"running"}),
    "stopped": frozenset({"running"}),
}


class RoundStatus(models.TextChoices):
    TRAINING = "training"
    CLOSING = "closing"
    REDUCING = "reducing"
    FINISHED = "finished"
    FAILED = "failed"
    STOPPED = "stopped"


ROUND_MOVES: Moves = {
    "training": frozenset({"closing", "failed", "stopped"}),
    "closing": frozenset(
        {"reducing", "finished", "failed", "stopped"}
    ),  # finished: its only partial is the model
    "reducing": frozenset({"finished", "failed", "stopped"}),
    "finished": frozenset(),
    "failed": frozenset(),
    "stopped": frozenset(),
}
OPEN_ROUND = ("training", "closing", "reducing")
PAST_TRAINING = ("closing", "reducing")


class ShareStatus(models.TextChoices):
    OPEN = "open"
    CLOSING = "closing"
    FINISHED = "finished"
    ABANDONED = "abandoned"


SHARE_MOVES: Moves = {
    "open": frozenset({"closing", "abandoned"}),
    "closing": frozenset({"finished", "abandoned"}),
    "finished": frozenset({"abandoned"}),
    "abandoned": frozenset(),
}


class AssignmentStatus(models.TextChoices):
    ASSIGNED = "assigned"
    DELIVERED = "delivered"
    ACCEPTED = "accepted"
    REJECTED = "rejected"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    LOST = "lost"


_ENDS = frozenset({"accepted", "rejected", "failed", "expired", "cancelled"})
ASSIGNMENT_MOVES: Moves = {
    "assigned": _ENDS | {"delivered"},
    "delivered": _ENDS,
    "accepted": frozenset({"lost"}),
    "rejected": frozenset(),
    "failed": frozenset(),
    "expired": frozenset(),
    "cancelled": frozenset(),
    "lost": frozenset(),
}
LIVE_ASSIGNMENT = ("assigned", "delivered")


class AssignmentKind(models.TextChoices):
    TRAIN = "train"
    VALIDATE = "validate"


class CommandKind(models.TextChoices):
    CUSTOM = "custom"  # user code of that name runs on the client
    PREDICT = "predict"  # the client predicts with a model and sends what it found
    VALIDATE = "validate"  # the client measures a model
    STAGE = "stage"  # the client fetches a model and keeps it
    RESTART = "restart"  # the client starts again, with the package that is active then


class OrderStatus(models.TextChoices):
    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    SKIPPED = "skipped"
    TIMEOUT = "timeout"


_ORDER_ENDS = frozenset({"completed", "failed", "interrupted", "skipped", "timeout"})
ORDER_MOVES: Moves = {
    "pending": _ORDER_ENDS | {"running"},
    "running": _ORDER_ENDS - {"skipped"},
    **{end: frozenset() for end in _ORDER_ENDS},
}
LIVE_ORDER = ("pending", "running")
